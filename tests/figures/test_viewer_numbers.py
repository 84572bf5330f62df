"""The viewer's functions one by one, in a browser, against numpy and against what the figure does with the same."""

import base64
import html
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import browser
import numpy as np
import pytest

from ccnet_cli.figures import viewer
from ccnet_cli.figures.attention import clip_limit, enlarge
from ccnet_cli.figures.viewer import payload
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.resampling import interpolation, neighbours

SIZES = [(40, 5), (41, 7), (9, 9), (3, 5), (1, 3), (17, 1)]
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call() -> Iterator[Call]:
    """Call a function of the page's scripts; typed arrays come back as lists."""
    scripts = "\n".join((viewer.FOLDER / name).read_text(encoding="utf-8") for name in viewer.SCRIPTS[:2])
    plain = "(_, x) => ArrayBuffer.isView(x) ? Array.from(x) : x"
    with browser.launched() as running:
        page = running.page()

        def run(expression: str, **values: Any) -> Any:
            given = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
            text = page.value(f"(() => {{\n{scripts}\n{given}return JSON.stringify({expression}, {plain});\n}})()")
            return json.loads(text)

        yield run


def close(shown: Any, expected: Any, what: object) -> None:
    np.testing.assert_allclose(np.array(shown, float), expected, atol=1e-6, err_msg=str(what))


@pytest.mark.parametrize("percent", [0, 1, 50, 97.5, 100])
def test_percentiles_are_numpy_s(call, percent):
    values = np.random.default_rng(0).random(11).tolist()
    close(call("percentile(values, percent)", values=values, percent=percent), np.percentile(values, percent), percent)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize(("pixels", "cells"), SIZES)
def test_pixels_lie_between_the_cells_that_the_network_mixes(call, pixels, cells, align):
    shown = call("neighbours(pixels, cells, align)", pixels=pixels, cells=cells, align=align)
    low, high, fraction = (each.numpy() for each in neighbours(pixels, cells, align))
    mixed = np.zeros((2, pixels, cells))
    for matrix, (lows, highs, weights) in zip(
        mixed, ((low, high, fraction), (shown["low"], shown["high"], np.array(shown["fraction"]))), strict=True
    ):
        np.add.at(matrix, (np.arange(pixels), lows), 1 - weights)
        np.add.at(matrix, (np.arange(pixels), highs), weights)
    close(mixed[1], mixed[0], (pixels, cells, align))


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize(("pixels", "cells"), SIZES)
def test_a_pixel_s_cell_weighs_most_and_a_cell_s_pixel_is_its_middle(call, pixels, cells, align):
    weights = interpolation(pixels, cells, align).numpy()
    shown = call(
        "{cells: Array.from({length: pixels}, (_, i) => cellOf(i, pixels, cells, align)),"
        " pixels: Array.from({length: cells}, (_, i) => pixelOf(i, pixels, cells, align))}",
        **{"pixels": pixels, "cells": cells, "align": align},
    )
    for pixel, cell in enumerate(shown["cells"]):
        assert weights[pixel, cell] >= weights[pixel].max() - 1e-6, (pixel, cell)
    for cell, pixel in enumerate(shown["pixels"]):
        # of all pixels, none is nearer to the cell's centre by more than half of one
        place = weights @ np.arange(cells)
        assert abs(place[pixel] - cell) <= abs(place - cell).min() + 0.5 * cells / pixels + 1e-6, (cell, pixel)


@pytest.mark.parametrize("align", [True, False])
def test_maps_are_enlarged_as_in_the_figure(call, align):
    map_hw = np.random.default_rng(1).random((4, 5))
    shown = call(
        "enlarge(map, 5, neighbours(13, 4, align), neighbours(17, 5, align))", map=map_hw.ravel().tolist(), align=align
    )
    close(shown, enlarge(map_hw, (13, 17), align).ravel(), align)


def test_the_brightest_colour_is_the_figure_s(call):
    random = np.random.default_rng(2)
    spread = random.random((6, 7)) ** 4
    on_cross = np.zeros((6, 7))
    on_cross[2], on_cross[:, 3] = random.random(7), random.random(6)
    narrow = np.full((6, 7), 1e-9)
    narrow[5, 5] = 1
    for map_hw in (spread, on_cross, narrow):
        for percent in (50, 90, 99):
            shown = call(
                "clipLimit(Float64Array.from(map), {height: 6, width: 7}, 2 * 7 + 3, percent)",
                **{"map": map_hw.ravel().tolist(), "percent": percent},
            )
            assert shown == pytest.approx(clip_limit(map_hw, (3, 2), percent), rel=1e-5), (map_hw, percent)


@pytest.mark.parametrize(
    ("weight", "linear", "logarithmic"),
    # four powers of ten below the brightest
    [(0.0, 0, 0), (2e-5, 1e-5, 0), (2e-4, 1e-4, 0), (2e-2, 0.01, 0.5), (0.2, 0.1, 0.75), (2, 1, 1), (9, 1, 1)],
)
def test_shades_grow_with_the_weight_or_its_powers_of_ten(call, weight, linear, logarithmic):
    shown = [call("shade(weight, 2, log)", weight=weight, log=log) for log in (False, True)]
    close(shown, [linear, logarithmic], weight)


def test_colours_cover_the_grey_picture_as_shades_and_opacity_say(call):
    """By hand: of shade 1/4 half is colour, and with opacity 1/2 three quarters are."""
    table = [channel for level in range(256) for channel in (level, 255 - level, 7)]
    for opacity, alpha in ((0.0, 0.5), (0.5, 0.75)):
        shown = call(
            "((words) => (paintShades(words, [100, 255], [0.25, 1], table, opacity), new Uint8Array(words.buffer)))"
            "(new Uint32Array(2))",
            **{"table": table, "opacity": opacity},
        )
        expected = [100 * (1 - alpha) + colour * alpha for colour in (64, 191, 7)]
        close(shown, [*(round(value) for value in expected), 255, *table[-3:], 255], opacity)


def test_classes_are_seven_tenths_of_a_panel(call):
    """Each pixel of the panel takes the class at its middle; a class past the palette is black."""
    image = {"width": 4, "height": 2, "data": [0] * 32}
    shown = call(
        "(paintClasses(image, Array(8).fill(10), [0, 1], {width: 2, height: 1}, [[100, 200, 30]]), image.data)",
        image=image,
    )
    pixels = np.array(shown).reshape(2, 4, 4)
    close(pixels[:, :2], np.broadcast_to([73, 143, 24, 255], (2, 2, 4)), "of the class")
    close(pixels[:, 2:], np.broadcast_to([3, 3, 3, 255], (2, 2, 4)), "of none")


def test_statistics_are_numpy_s(call):
    map_hw = np.random.default_rng(3).dirichlet(np.ones(12)).reshape(3, 4)
    classes = [0, 1, 2, 0, 1, 1, 2, 2, 0, 0, 1, 2]
    shown = call(
        "describe(Float64Array.from(map), {height: 3, width: 4}, 6, classes, 4)",
        **{"map": map_hw.ravel().tolist(), "classes": classes},
    )
    on = map_hw[1].sum() + map_hw[:, 2].sum() - map_hw[1, 2]
    by_class = np.bincount(classes, map_hw.ravel(), 4)
    close([shown["on"], shown["off"], *shown["byClass"]], [on, 1 - on, *by_class], "weights")
    close(shown["entropy"], -(map_hw * np.log2(map_hw)).sum(), "bits")
    assert shown["peak"] == map_hw.argmax()


def test_a_map_is_the_last_pass_spread_by_those_before_it_and_keeps_what_was_there(call):
    """Two passes as matrices: (I + g A1)(I + g A2) of a pixel's unit, each scaled to sum to 1."""
    h, w, random = 2, 3, np.random.default_rng(4)
    rows = random.random((2, h * w, h + w))
    for pixel in range(h * w):
        # the pixel itself counts in its row alone
        rows[:, pixel, pixel // w] = 0
    rows /= rows.sum(2, keepdims=True)
    dense = np.zeros((2, h * w, h * w))
    for number, pixel, position in np.ndindex(rows.shape):
        y, x = divmod(pixel, w)
        target = position * w + x if position < h else y * w + position - h
        dense[number, pixel, target] += rows[number, pixel, position]
    for residual in (0, 0.5):
        for pixel in range(h * w):
            shown = call(
                "compose(rows.map((pass) => crossPass(grid, (i) => pass[i])), grid, pixel, residual)",
                **{"rows": rows.tolist(), "grid": {"height": 2, "width": 3}, "pixel": pixel, "residual": residual},
            )
            first, second = dense
            if residual:
                first, second = ((np.eye(h * w) + residual * a) / (1 + residual) for a in dense)
            close(shown, (second @ first)[pixel], (pixel, residual))


def test_a_pixel_s_group_gets_its_softmax_and_keys_are_shared(call):
    """By hand: energies log 2 and log 6 are weights 1/4 and 3/4; two pixels share the second key, padding has none."""
    values = {
        "query": [1, 1, 1, 1],
        "key": np.log([2, 6, 1, 9]).tolist(),
        "own": [0, 1, 1, 2],
        "group": [0, 0, 0, 5],
        "keygroup": [0, 0, 5, 5],
    }
    grid = {"height": 1, "width": 4}
    shown = [
        call("compose([passOfGroups(grid, values, 1)], grid, pixel)", grid=grid, values=values, pixel=pixel)
        for pixel in (2, 3)
    ]
    close(shown[0], [0.25, 0.375, 0.375, 0], "shared")
    close(shown[1], [0, 0, 0, 0.1], "padding")


def test_sixteen_bits_and_their_signs_come_back(call):
    signed, unsigned = [-32768, -129, -1, 0, 127, 128, 32767], [0, 256, 65535]
    directory, text = payload.pack({"a": np.array(signed, np.int16), "b": np.array(unsigned, np.uint16)})
    content = list(zlib.decompress(base64.b64decode(text)))
    shown = call("unpack(directory, Uint8Array.from(content).buffer)", directory=directory, content=content)
    assert shown == {"a": signed, "b": unsigned}


def test_classes_of_a_large_picture_stay_classes_when_it_is_made_smaller():
    """Between classes 0 and 2 nothing is mixed to class 1."""
    random = np.random.default_rng(0)
    prediction = random.choice(np.array([0, 2], np.uint8), (3, 3000))
    classes = Classes(("a", "b", "c"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), (0, 1, 2))
    small = np.zeros((2, 2), np.uint8)
    model = viewer.ModelContent(small, prediction, 1, 0.5, True, weights_NP=[np.full((4, 4), 0.25)])
    image, still = np.zeros((3, 3000, 3), np.uint8), np.zeros((9, 9, 3), np.uint8)
    content = viewer.PageContent("a.png", [image], 0, classes, 2 - prediction, [model], [], 99.0, still, "a test")
    text = viewer.render_page(content)
    facts = json.loads(html.unescape(re.search(r'id="page">(.*?)</script>', text)[1]))
    packed = zlib.decompress(base64.b64decode(re.search(r'id="payload">(.*?)</script>', text)[1]))
    held = {}
    for name in ("prediction", "label"):
        _, offset, count = facts["arrays"]["0/prediction" if name == "prediction" else name]
        held[name] = np.frombuffer(packed, np.uint8, count, offset)
        assert count == 2 * 2048 and set(held[name].tolist()) == {0, 2}
    assert (held["label"] == 2 - held["prediction"]).all()
    assert facts["classes_size"] == {"width": 2048, "height": 2}


def test_codes_are_rounded_to_the_nearest():
    """One row of three cells: square roots 1, 113.6 and 0.4 of 255 steps are the codes 255, 114 and 0."""
    weights = np.array([[1.0, (113.6 / 255) ** 2, (0.4 / 255) ** 2, 0]] * 3)
    arrays = payload.weights([weights], (1, 3), 255)
    assert arrays["codes1"].tolist() == [[255, 114, 0, 0]] * 3
    assert arrays["scale1"].tolist() == [1, 1, 1] and arrays["gain1"].tolist() == [1, 1, 1]


def test_the_colour_maps_begin_and_end_in_their_colours():
    """RGB, as their authors published them."""
    ends = {
        "viridis": ([68, 1, 84], [253, 231, 37]),
        "cividis": ([0, 34, 78], [254, 232, 56]),
        "inferno": ([0, 0, 4], [252, 255, 164]),
        "grey": ([0, 0, 0], [255, 255, 255]),
    }
    for name, (first, last) in ends.items():
        table = viewer._colour_table(viewer.COLOURS[name]).astype(int)
        assert np.abs(table[[0, 255]] - [first, last]).max() <= 3, (name, table[[0, 255]].tolist())
