"""The attention figure: its scale, its colours, its marks and its layout."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ccnet_cli.figures import attention as figures
from ccnet_cli.figures.attention import (
    Fractions,
    ModelMaps,
    Point,
    add_inset,
    clip_limit,
    draw_figure,
    enlarge,
    mark_cross_ends,
    mark_point,
    overlay,
)
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
    assert (drawn[0, 2] == brightest).all() and (drawn[1] == 90).all()
    assert drawn[0, 1].tolist() not in (drawn[0, 0].tolist(), drawn[0, 2].tolist())


def test_the_grey_below_is_the_colours_lightness():
    """Of pure blue, green and red, 29, 150 and 76 of 255, in steps of 20 and dimmed to 45 per cent."""
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    drawn = overlay(image, np.zeros((1, 3), np.float32))
    assert drawn[0].tolist() == [[9, 9, 9], [63, 63, 63], [27, 27, 27]]


def test_a_point_of_an_enlarged_picture_lies_in_the_middle_of_its_pixel():
    """40 panel pixels for one of the image: (3, 2) is around column 140 and row 100, the marks' lines cross there."""
    point = Point((3, 2), (0, 0), "car", (Fractions(1, 1, 0),))
    picture = draw_figure(np.zeros((10, 15, 3), np.uint8), [ModelMaps([point], [[np.full((2, 2), 0.25)]])])
    panel = picture[46:446, 28:628]
    rows, columns = (panel[:, 300] > 100).all(-1).nonzero()[0], (panel[300] > 100).all(-1).nonzero()[0]
    assert (rows.tolist(), columns.tolist()) == ([100], [140])


def test_a_map_is_enlarged_with_its_corners_in_the_corners():
    map_hw = np.array([[0.0, 2.0], [1.0, 0.5]], np.float32)
    large = enlarge(map_hw, (5, 9), align_corners=True)
    assert large.shape == (5, 9) and large[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 1, 1, 0.5]
    assert large[0, 4] == 0.5 and large.min() >= 0 and large.max() <= 1


def test_the_point_is_marked_where_it_is():
    panel = np.zeros((50, 80, 3), np.uint8)
    drawn = mark_point(panel, (60, 10), lines=True)
    assert not panel.any()
    assert (drawn[10, :40] > 0).all() and (drawn[30:, 60] > 0).all() and not drawn[30:, :50].any()
    rows, columns = mark_point(panel, (60, 10)).any(-1).nonzero()
    assert abs(rows.mean() - 10) < 1 and abs(columns.mean() - 60) < 1


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
    top, left = 46, 28
    expected = cv2.resize(image, (533, 400), interpolation=cv2.INTER_CUBIC)
    assert (picture[top : top + 100, left : left + 200] == expected[:100, :200]).all()
    right = picture[top : top + 100, left + 533 + 18 : left + 533 + 18 + 200].astype(int)
    # dimmed and grey away from the cross
    assert (right.max(-1) == right.min(-1)).all() and right.mean() < 0.6 * expected[:100, :200].mean()


def test_ticks_show_where_the_cross_ends_and_hide_nothing_else():
    panel = np.zeros((50, 80, 3), np.uint8)
    drawn = mark_cross_ends(panel, (60, 10))
    assert not panel.any()
    for y, x in ((10, 0), (10, 79), (0, 60), (49, 60)):
        assert drawn[y, x].any()
    assert not drawn[15:35].any() and not drawn[:, 15:55].any()


def test_a_close_up_lies_in_the_corner_farthest_from_what_matters():
    panel = np.zeros((400, 600, 3), np.uint8)
    coloured = panel.copy()
    coloured[95:106, 495:506] = (10, 20, 30)
    drawn = add_inset(panel, coloured, (100, 500), (550, 350), (97, 128))
    rows, columns = drawn.any(-1).nonzero()
    assert rows.min() > 200 and columns.max() < 300 and not panel.any()
    # 11 pixels, three times as large, their edges softened
    assert 25 <= (drawn == (10, 20, 30)).all(-1).sum() ** 0.5 <= 36
    assert not add_inset(panel, coloured, (100, 500), (550, 350), (5, 8)).any()


def test_only_a_narrow_peak_is_shown_larger():
    image = np.full((400, 600, 3), 90, np.uint8)
    one = [Point((500, 300), (106, 73), "car", (Fractions(1, 1, 0),))]
    narrow = np.full((97, 128), 0.4 / 97 / 128)
    wide = narrow.copy()
    narrow[10, 10] = 0.6
    wide[10], wide[:, 10] = 0.6 / 225, 0.6 / 225
    framed = [
        (draw_figure(image, [ModelMaps(one, [[map_hw]])])[46:446, 646:1246] == 255).all(-1).any(0).sum()
        for map_hw in (narrow, wide)
    ]
    assert framed[0] > 80 and framed[1] < 60


def test_captions_say_what_the_fractions_are(monkeypatch):
    texts = []
    monkeypatch.setattr(figures, "write_text", lambda canvas, text, *_: texts.append(text))
    passes = (Fractions(0.5, 1, 0), Fractions(own_class=0.25, on_cross=0.9, off_cross=0.1))
    map_hw = np.full((2, 3), 1 / 6)
    draw_figure(np.zeros((20, 30, 3), np.uint8), [ModelMaps([Point((4, 7), (0, 0), "car", passes)], [[map_hw] * 2])])
    assert texts[:2] == ["input", "(4, 7)  car"]
    assert [text for text in texts if text.startswith("R = ")] == ["R = 1", "R = 2"]
    assert [text for text in texts if "cross" in text] == [
        "on cross 100%, off 0%, own class 50%",
        "on cross 90%, off 10%, own class 25%",
    ]


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
    assert (both[:40, -2 * column :] < 100).any() and not (alone[:10] < 255).any()
