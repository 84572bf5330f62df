"""The attention figure: its scale, its colours, its marks and its layout."""

import dataclasses
import html
import itertools
import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from ccnet_cli.figures import charts, sheet
from ccnet_cli.figures.attention import (
    Fractions,
    ModelMaps,
    Point,
    add_inset,
    clip_limit,
    draw_figure,
    encode_figure,
    enlarge,
    overlay,
)
from ccnet_cli.figures.sheet import Print
from ccnet_cli.media import images


def test_the_scale_is_that_of_what_lies_off_the_cross():
    map_hw = np.full((20, 20), 0.01)
    map_hw[3] = map_hw[:, 5] = 0.5
    assert clip_limit(map_hw, (5, 3), 99) == pytest.approx(0.01)
    map_hw[map_hw == 0.01] = 1e-9
    assert clip_limit(map_hw, (5, 3), 99) == pytest.approx(0.005)
    map_hw[map_hw == 1e-9] = 0
    map_hw[3, 0] = 9
    assert clip_limit(map_hw, (5, 3), 95) == pytest.approx(0.5)
    assert clip_limit(map_hw, (5, 3), 100) == 9
    assert clip_limit(np.ones((1, 1)), (0, 0), 99) == 1


def test_weights_are_colours_over_the_dimmed_image():
    image = np.full((2, 3, 3), 200, np.uint8)
    weight = np.array([[0, 0.5, 1], [0, 0, 0]], np.float32)
    drawn = overlay(image, weight)
    brightest = cv2.applyColorMap(np.full((1, 1), 255, np.uint8), cv2.COLORMAP_INFERNO)[0, 0]
    assert (drawn[0, 2] == brightest).all() and (drawn[1] == 104).all()
    assert drawn[0, 1].tolist() not in (drawn[0, 0].tolist(), drawn[0, 2].tolist())


def test_the_grey_below_is_the_colours_lightness_and_never_black():
    """Of black, pure blue, green and red, 0, 29, 150 and 76 of 255, in steps of 20: two fifths of it above 24."""
    image = np.array([[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    drawn = overlay(image, np.zeros((1, 4), np.float32))
    assert drawn[0].tolist() == [[24] * 3, [32] * 3, [80] * 3, [48] * 3]


def panels(picture, count, size=(400, 600)):
    """The panels of the first row of a figure of one model, by its documented margins."""
    with charts.style():
        line = sheet.Sheet((1, 1), Print(), 1892).line
    top = round(1.8 * line)
    return [
        picture[top : top + size[0], left : left + size[1]] for left in (28 + k * (size[1] + 18) for k in range(count))
    ]


def test_a_point_of_an_enlarged_picture_lies_in_the_middle_of_its_pixel():
    """40 panel pixels for one of the image: (3, 2) is around column 140 and row 100, the marks' lines cross there."""
    point = Point((3, 2), (0, 0), "car", (Fractions(1, 1, 0),))
    picture = draw_figure(np.zeros((10, 15, 3), np.uint8), [ModelMaps([point], [[np.full((2, 2), 0.25)]])])
    (panel,) = panels(picture, 1)
    rows, columns = (panel[:, 300].min(-1).astype(float), panel[300].min(-1).astype(float))
    assert abs(rows.argmax() - 100) <= 1 and abs(columns.argmax() - 140) <= 1
    assert (rows > 60).sum() <= 3 and (columns > 60).sum() <= 3


def test_a_map_is_enlarged_with_its_corners_in_the_corners():
    map_hw = np.array([[0.0, 2.0], [1.0, 0.5]], np.float32)
    large = enlarge(map_hw, (5, 9), align_corners=True)
    assert large.shape == (5, 9) and large[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 1, 1, 0.5]
    assert large[0, 4] == 0.5 and large.min() >= 0 and large.max() <= 1


@pytest.mark.parametrize("size", [(360, 480), (480, 360), (1, 500), (500, 1), (1, 1), (33, 2000)])
def test_figures_of_any_shape_have_a_row_for_each_point_and_a_panel_for_each_map(size):
    H, W = size
    image = np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8)
    h, w = -(-H // 8), -(-W // 8)
    map_hw = np.full((h, w), 1 / (h * w), np.float32)
    one = Point((W - 1, H - 1), (w - 1, h - 1), "Tür", (Fractions(1, 0.5, 0.5),) * 2)
    single = draw_figure(image, [ModelMaps([one], [[map_hw, map_hw]])])
    double = draw_figure(image, [ModelMaps([one, one], [[map_hw, map_hw]] * 2)])
    short = Point(one.point, one.cell, one.name, one.fractions[:1])
    narrow = draw_figure(image, [ModelMaps([short], [[map_hw]])])
    assert single.dtype == np.uint8 and single.shape[2] == 3
    assert double.shape[1] == single.shape[1] and double.shape[0] > single.shape[0]
    assert narrow.shape[1] < single.shape[1] and narrow.shape[0] == single.shape[0]


def test_a_photograph_keeps_its_colours_and_the_maps_do_not():
    folder = Path(__file__).parents[3] / "shared" / "data" / "camvid" / "val"
    if not folder.is_dir():
        pytest.skip("CamVid is not here")
    image = images.read_image(min(folder.glob("*.jpg")))
    map_hw = np.zeros((46, 61), np.float32)
    map_hw[20], map_hw[:, 30] = 0.01, 0.01
    point = Point((240, 160), (30, 20), "car", (Fractions(1, 1, 0),))
    picture = draw_figure(image, [ModelMaps([point], [[map_hw]])])
    photograph, map_panel = panels(picture, 2, (400, 533))
    expected = cv2.resize(image, (533, 400), interpolation=cv2.INTER_CUBIC)
    assert (photograph[:100, :200] == expected[:100, :200]).all()
    # dimmed and grey away from the cross
    right = map_panel[20:100, 20:200].astype(int)
    assert (right.max(-1) == right.min(-1)).all() and right.mean() < 0.65 * expected[:100, :200].mean()


def test_marks_lie_at_the_point_at_the_ends_of_its_cross_and_around_the_largest_weight():
    image = np.zeros((400, 600, 3), np.uint8)
    map_hw = np.full((40, 60), 1 / 2400)
    map_hw[30, 10] *= 1.5
    picture = draw_figure(image, [ModelMaps([Point((450, 100), (45, 10), "car", (Fractions(1, 1, 0),))], [[map_hw]])])
    _, panel = panels(picture, 2)
    green = (abs(panel.astype(int) - (0x78, 0xFF, 0x3C)) < 60).all(-1)
    ring = green[70:130, 420:480]
    assert [float(where.mean()) for where in ring.nonzero()] == pytest.approx([30, 30], abs=1) and not ring[
        25:35, 25:35
    ].any()
    for rows, columns in ((slice(95, 105), 2), (slice(95, 105), -3), (2, slice(445, 455)), (-3, slice(445, 455))):
        assert green[rows, columns].any()
    assert not green[150:380, 50:430].any()
    # cells lie 599/59 and 399/39 pixels apart
    white = (panel > 250).all(-1)
    assert [round(float(where.mean())) for where in white.nonzero()] == pytest.approx([307, 102], abs=2)


def test_a_close_up_lies_in_the_corner_farthest_from_what_matters():
    coloured = np.zeros((400, 600, 3), np.uint8)
    coloured[95:106, 495:506] = (10, 20, 30)
    before = coloured.copy()
    drawn, (left, top, side) = add_inset(coloured, (100, 500), (550, 350), (97, 128))
    assert (coloured == before).all() and left + side < 300 and top > 200
    inside = (drawn[top : top + side, left : left + side] == (10, 20, 30)).all(-1)
    # 11 pixels, three times as large, their edges softened
    assert 25 <= inside.sum() ** 0.5 <= 36
    same, nowhere = add_inset(coloured, (100, 500), (550, 350), (5, 8))
    assert nowhere is None and (same == before).all()


def test_only_a_narrow_peak_is_shown_larger():
    image = np.full((400, 600, 3), 90, np.uint8)
    one = [Point((500, 300), (106, 73), "car", (Fractions(1, 1, 0),))]
    narrow = np.full((97, 128), 0.4 / 97 / 128)
    wide = narrow.copy()
    narrow[10, 10] = 0.6
    wide[10], wide[:, 10] = 0.6 / 225, 0.6 / 225
    framed = [
        (panels(draw_figure(image, [ModelMaps(one, [[map_hw]])]), 2)[1] > 250).all(-1).any(0).sum()
        for map_hw in (narrow, wide)
    ]
    assert framed[0] > 80 and framed[1] < 60


PASSES = (Fractions(0.5, 1, 0), Fractions(own_class=0.25, on_cross=0.9, off_cross=0.1))


def maps_of(points=1, name="Tür 道", smallest=1e-5):
    """A model of two maps for each point, the second with small weights."""
    first = np.zeros((20, 30))
    first[3], first[:, 4] = 0.02, 0.02
    second = np.full((20, 30), smallest)
    second[3, 20] = 0.5
    point = Point((48, 35), (4, 3), name, PASSES)
    return ModelMaps([point] * points, [[first, second]] * points, True, "runs/one")


def texts_of(svg):
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())]


def test_captions_say_what_the_fractions_are_and_how_the_colours_are_scaled():
    image = np.full((200, 300, 3), 90, np.uint8)
    texts = texts_of(encode_figure(image, [maps_of(name="car")], how=Print("svg")))
    assert {"input", "(48, 35)  car", "R = 1", "R = 2"} <= set(texts)
    assert [text for text in texts if text.startswith("on cross")] == [
        "on cross 100%, off 0%, own class 50%",
        "on cross 90%, off 10%, own class 25%",
    ]
    # the second map's percentile is far below its peak, of which a hundredth is the least scale
    assert [text for text in texts if "≥" in text] == ["≥ 0.02", "≥ 0.005"]
    assert any("each map has its own scale, up to percentile 99" in text for text in texts)
    shared = texts_of(encode_figure(image, [maps_of()], 98, Print("svg", one_scale=True)))
    assert [text for text in shared if "≥" in text] == ["≥ 0.02"] * 2
    assert any("one scale for the maps of a row, up to percentile 98" in text for text in shared)


def test_small_weights_have_a_proper_minus():
    assert [sheet.write_weight(weight) for weight in (0.013, 3.456e-7, 1.0)] == ["0.013", "3.5e−7", "1"]


@pytest.mark.parametrize(("width", "points"), [(3.3, 2), (7.0, 1), (None, 1)])
def test_a_pdf_has_its_width_its_text_and_its_font(width, points):
    """Read as bytes: the page's size in points, TrueType fonts that are embedded, no letters as outlines."""
    image = np.full((200, 300, 3), 90, np.uint8)
    content = encode_figure(image, [maps_of(points)], how=Print("pdf", width))
    assert content.startswith(b"%PDF-") and content == encode_figure(image, [maps_of(points)], how=Print("pdf", width))
    left, _, right, _ = (float(number) for number in re.search(rb"/MediaBox \[ ([\d. ]+) \]", content)[1].split())
    assert right - left == pytest.approx(72 * (width or 18.92), abs=0.5)
    assert b"/FontFile2" in content and b"/Subtype /Type3" not in content


@pytest.mark.parametrize(("width", "passes", "least"), [(3.3, 2, 5.5), (None, 2, 5.5), (3.3, 3, 5)])
def test_no_text_leaves_the_sheet_or_covers_another(width, passes, least, tmp_path, chromium):
    """In a browser, where an SVG's letters have their size; none is smaller than `least` points."""
    image = np.full((200, 300, 3), 90, np.uint8)
    model = maps_of(2)
    if passes == 3:
        point = dataclasses.replace(model.points[0], fractions=(*PASSES, PASSES[0]))
        maps = [[*each, each[1] / 7] for each in model.maps]
        model = dataclasses.replace(model, points=[point] * 2, maps=maps)
    path = tmp_path / "figure.svg"
    path.write_bytes(encode_figure(image, [model, model], how=Print("svg", width)))
    page = chromium.page(2200, 1600)
    page.open(path)
    boxes = page.value(
        "[...document.querySelectorAll('text')].map((t) => { const b = t.getBoundingClientRect();"
        "return [t.textContent, b.left, b.top, b.right, b.bottom, parseFloat(getComputedStyle(t).fontSize)]; })"
    )
    box = "document.documentElement.getBoundingClientRect()"
    size = page.value(f"[{box}.width, {box}.height]")
    assert page.complaints() == [] and page.value("[...document.fonts].map((font) => font.status)") == ["loaded"]
    assert len(boxes) > 20
    for text, left, top, right, bottom, points in boxes:
        assert left >= 0 and top >= 0 and right <= size[0] + 2 and bottom <= size[1] + 2, text
        # pixels of the drawing are points
        assert points >= least, text
    # captions of a figure are of one size
    assert len({each[5] for each in boxes if "%" in each[0]}) == 1
    lines = [each for each in boxes if "×" not in each[0]]
    for one, other in itertools.combinations(lines, 2):
        # boxes have the font's height, letters less
        apart = one[3] <= other[1] or other[3] <= one[1] or one[4] <= other[2] + 4 or other[4] <= one[2] + 4
        assert apart, (one[0], other[0])


@pytest.mark.parametrize("width", [3.3, None])
def test_a_small_inset_is_named_in_the_note_instead_of_in_itself(width):
    """An inset of some letters' height would be hidden by its text."""
    narrow = np.full((97, 128), 0.4 / 97 / 128)
    narrow[10, 10] = 0.6
    one = [Point((500, 300), (106, 73), "car", (Fractions(1, 1, 0),))]
    svg = encode_figure(np.full((400, 600, 3), 90, np.uint8), [ModelMaps(one, [[narrow]])] * 3, how=Print("svg", width))
    texts = texts_of(svg)
    assert texts.count("3×") == (0 if width else 3)
    assert texts[-1].endswith(" Insets: 3×.") == bool(width)


def test_a_png_for_print_has_its_resolution_and_its_width(tmp_path):
    image = np.full((200, 300, 3), 90, np.uint8)
    content = encode_figure(image, [maps_of()], how=Print("png", 3.3, 200))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert images.read_image(path).shape[1] == 660
    per_metre = struct.unpack(">I", content[content.index(b"pHYs") + 4 :][:4])[0]
    assert per_metre * 0.0254 == pytest.approx(200, abs=0.01)


def test_two_models_stand_side_by_side():
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    map_hw = np.full((5, 8), 1 / 40)
    first, second = (Point((3, 4), (0, 1), name, (Fractions(1, 0.5, 0.5),) * 2) for name in ("car", "bus"))
    model = ModelMaps([first], [[map_hw]], True, "a")
    alone = draw_figure(image, [model])
    both = draw_figure(image, [model, ModelMaps([second], [[map_hw, map_hw]], True, "b")])
    column = alone.shape[1] - draw_figure(image, [ModelMaps([first], [[]])]).shape[1]
    assert both.shape[1] == alone.shape[1] + 2 * column and both.shape[0] > alone.shape[0]
    # the second model's name is written above its own maps
    assert (both[:40, -2 * column :] < 100).any() and not (alone[:8] < 255).any()
