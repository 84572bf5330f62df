"""Charts: what is dark, coloured and named where; that nothing of the user's or of the process decides over them."""

import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest

from ccnet_cli.figures import charts

PANEL = charts.PANEL_HEIGHT, charts.PANEL_WIDTH


def coloured(picture, index=0):
    """Rows and columns of the pixels in a line's colour."""
    blue_green_red = list(bytes.fromhex(charts.COLOURS[index][1:]))[::-1]
    return np.argwhere((picture == np.array(blue_green_red)).all(2))


def row_at(picture, left, index=0):
    """Mean row of a line's pixels in the tenth of the panel that begins at `left`, a fraction of its width."""
    width = charts.PANEL_WIDTH
    places = coloured(picture, index)
    return places[(places[:, 1] >= left * width) & (places[:, 1] < (left + 0.1) * width), 0].mean()


def test_curves_rise_where_values_rise():
    ramp = [(step, 0.1 * step) for step in range(100)]
    rising = charts.line_charts([charts.Panel("", {"a": ramp})])
    falling = charts.line_charts([charts.Panel("", {"a": [(x, -y) for x, y in ramp]})])
    assert rising.shape == (*PANEL, 3) and rising.dtype == np.uint8
    assert row_at(rising, 0.15) > 200 > 140 > row_at(rising, 0.8)
    assert row_at(falling, 0.15) < 140 < 200 < row_at(falling, 0.8)


def test_logarithmic_axes_make_powers_straight():
    power = [(x, 3.0 * x**2) for x in np.logspace(0, 3, 50)]
    picture = charts.line_charts([charts.Panel("", {"a": power}, log=True)])
    rows = [row_at(picture, left) for left in (0.2, 0.4, 0.6, 0.8)]
    np.testing.assert_allclose(np.diff(rows), np.diff(rows).mean(), atol=2)


@pytest.mark.parametrize("points", [[], [(1, float("nan"))], [(float("inf"), 1.0)]])
def test_a_panel_without_data_says_so(points):
    empty = charts.line_charts([charts.Panel("loss", {"a": points})])
    assert not len(coloured(empty)) and (empty < 128).any()
    assert (charts.line_charts([charts.Panel("loss", {})]) == empty).all()


@pytest.mark.parametrize("points", [[(1, 2.0)], [(1, 2.0), (1, 2.0)], [(1, 2.0), (2, float("nan"))]])
def test_one_point_is_a_dot(points):
    places = coloured(charts.line_charts([charts.Panel("", {"a": points})]))
    assert 4 < len(places) < 60 and np.ptp(places[:, 0]) < 8


def test_training_curves_are_loss_with_its_terms_rate_and_score():
    rows = [{"step": step, "loss": 3.0, "lr": 0.1, "loss/b": 2.0, "loss/a": 1.0} for step in range(0, 1000, 10)]
    rows += [{"step": 500, "miou": 0.5, "classes": {"a": 1.0}}, {"step": 510, "skipped": ["x"]}]
    picture = charts.training_curves(rows)
    assert picture.shape == (PANEL[0], 3 * PANEL[1], 3)
    loss, rate, score = np.split(picture, 3, axis=1)
    # by name: loss, then its terms in order; the larger the number the higher the line
    assert row_at(loss, 0.3, 0) < row_at(loss, 0.3, 2) < row_at(loss, 0.3, 1)
    assert len(coloured(rate)) and not len(coloured(rate, 1))
    assert len(coloured(score)) < 60 and not len(coloured(score, 1))
    bare = np.split(charts.training_curves([]), 3, axis=1)
    assert not any(len(coloured(panel)) for panel in bare)


def test_each_panel_of_the_curves_is_its_own_number():
    """The loss falls, the rate rises, the score rises and falls."""
    rows = [{"step": step, "loss": 9.0 - step, "lr": float(step), "miou": 1 - abs(step - 5) / 5} for step in range(11)]
    loss, rate, score = np.split(charts.training_curves(rows), 3, axis=1)
    left, middle, right = 0.15, 0.5, 0.85
    assert row_at(loss, left) < row_at(loss, right)
    assert row_at(rate, left) > row_at(rate, right)
    assert row_at(score, middle) < min(row_at(score, left), row_at(score, right)) - 50


@pytest.mark.parametrize(
    ("lines", "right"),
    [
        ({"a": [(0, 9.0), (1, 0.25)]}, "last 0.25"),
        ({"a": [(0, 2.0), (1, float("nan"))]}, "last 2"),
        ({"a": [(0, 1.0)], "b": [(0, 2.0)]}, ""),
    ],
)
def test_one_line_has_its_last_value_beside_it_and_several_a_legend(lines, right):
    axes = charts._figure(400, 300).subplots()
    charts._draw_panel(axes, charts.Panel("title", lines))
    assert (axes.get_title(), axes.get_title(loc="right")) == ("title", right)
    assert (axes.get_legend() is not None) == (len(lines) > 1)


def test_a_row_is_dark_where_the_truth_goes_and_grey_without_any():
    counts = np.array([[1, 9, 0], [0, 5, 0], [0, 0, 0]])
    picture = charts.confusion_matrix(counts, ["a", "b", "c"])
    size, (height, width) = charts.CELL, picture.shape[:2]
    assert height == width
    # beside the number in the middle of a cell
    shade = [
        [
            int(picture[height - 10 - (3 - row) * size + 8, width - 10 - (3 - column) * size + 8].sum())
            for column in range(3)
        ]
        for row in range(3)
    ]
    assert shade[1][1] < shade[0][1] < shade[0][0] < shade[0][2] == shade[1][0]
    assert shade[2] == [3 * int(charts.MISSING[1:3], 16)] * 3


def test_numbers_are_percent_of_the_row():
    """Cells with a half and with a hundredth have a number, one below half a per cent has none."""
    picture = charts.confusion_matrix(np.array([[500, 496, 4], [500, 494, 6], [0, 0, 1]]), ["a", "b", "c"]).astype(int)
    size, (height, width) = charts.CELL, picture.shape[:2]

    def contrast(row, column):
        top, left = height - 10 - (3 - row) * size + 8, width - 10 - (3 - column) * size + 8
        return np.ptp(picture[top : top + size - 16, left : left + size - 16].sum(2))

    assert contrast(0, 0) > 100 and contrast(1, 2) > 100 and contrast(2, 2) > 100
    assert contrast(0, 2) < 10 and contrast(2, 0) < 10


def test_numbers_stand_out_from_cells_of_every_blue():
    """The contrast by WCAG of a cell and the pixel in it that differs most; 4.5 but for soft edges of digits."""
    count, size = 26, charts.CELL
    counts = np.diag(np.arange(50, 102, 2)) + np.roll(np.diag(np.arange(50, -2, -2)), 1, axis=1)
    picture = charts.confusion_matrix(counts, ["a"] * count) / 255
    linear = np.where(picture <= 0.04045, picture / 12.92, ((picture + 0.055) / 1.055) ** 2.4) @ [
        0.0722,
        0.7152,
        0.2126,
    ]
    for row, column in np.argwhere(counts):
        top, left = (length - 10 - (count - at) * size for length, at in zip(linear.shape, (row, column), strict=True))
        cell = linear[top + 4 : top + size - 4, left + 4 : left + size - 4]
        ratios = (np.maximum(cell, cell[0, 0]) + 0.05) / (np.minimum(cell, cell[0, 0]) + 0.05)
        assert ratios.max() > 4.2, (counts[row, column], ratios.max())


def test_names_of_any_alphabet_are_text_and_shown_whole():
    counts = np.eye(2)
    short = charts.confusion_matrix(counts, ["a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for names in (["Straße", "дорога"], ["日本", "\U0001f6a6"], ["$x_2", "$\\frac{1$"], ["x" * 80, "b"], ["", ""]):
            picture = charts.confusion_matrix(counts, names)
            assert (picture[:, :2] == 255).all() and (picture[:2] == 255).all()
            assert (picture.shape > short.shape) == (len(names[0]) > 1)
    dollars = charts.confusion_matrix(counts, ["$x$", "b"])
    assert not np.array_equal(dollars, charts.confusion_matrix(counts, ["x", "b"]))


SCRIPT = """
import hashlib, sys
from ccnet_cli.figures import charts
assert not [name for name in sys.modules if name.startswith("matplotlib")]
picture = charts.training_curves([{"step": x, "loss": 1 / (1 + x), "miou": 0.1} for x in range(9)])
assert "matplotlib.pyplot" not in sys.modules
print(hashlib.sha256(picture.tobytes()).hexdigest())
"""


def test_the_same_numbers_give_the_same_pixels_in_silence(tmp_path):
    """With fonts never looked for, a home that nothing can be written to, and a style of the user's own."""
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 30\naxes.facecolor: red\nno.such: key\n")
    answers = set()
    for variables in ({"MPLCONFIGDIR": str(tmp_path)}, {"HOME": "/dev/null"}, {}):
        environment = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path)), **variables}
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert ran.stderr == ""
        answers.add(ran.stdout)
    assert len(answers) == 1


def test_the_process_s_own_settings_stay():
    import matplotlib

    level, before = logging.getLogger("matplotlib").level, dict(matplotlib.rcParams)
    charts.line_charts([charts.Panel("", {"a": [(0, 1)]})])
    assert logging.getLogger("matplotlib").level == level and dict(matplotlib.rcParams) == before
