"""Curves of a page: round ticks, points where their numbers are, and both themes readable in a browser."""

import itertools
import re
from pathlib import Path

import browser
import pytest
from markupsafe import Markup

from ccnet_cli.figures import curves, pages
from ccnet_cli.figures.curves import Plot, ticks, write_number


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 600, [0, 200, 400, 600]),
        (0.31, 1.87, [0, 0.5, 1, 1.5, 2]),
        (-0.19, 0, [-0.2, -0.15, -0.1, -0.05, 0]),
        (3, 3, [3, 4]),
        (0, 0, [0, 0.5]),
        (1e-6, 3e-6, [1e-6, 1.5e-6, 2e-6, 2.5e-6, 3e-6]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert ticks(low, high)[: len(expected)] == expected


def test_whatever_the_values_there_are_two_ticks_to_six():
    for low, high in itertools.product((-7e5, -3.3, -1e-9, 0, 0.123, 97, 1e7), repeat=2):
        if low <= high:
            shown, little = ticks(low, high), 1e-6 * (high - low)
            assert 2 <= len(shown) <= 6 and shown[0] <= low + little and shown[-1] >= high - little


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (-0.25, "−0.25"), (1e-5, "1e−5"), (80.444444, "80.44"), (123456, "1.235e5")]
)
def test_numbers_are_short_with_a_proper_minus(value, text):
    assert write_number(value) == text


def test_points_lie_where_their_numbers_are():
    """By hand: 328 wide from 58 on, 198 high from 10 down, for steps 0 to 100 and values 0 to 1."""
    drawn = Plot("a", {"x": [(0, 0.0), (50, 0.5), (100, 1.0)]}, marked=True).render()
    assert re.findall(r'cx="(.*?)" cy="(.*?)"', drawn) == [("58.0", "208.0"), ("222.0", "109.0"), ("386.0", "10.0")]
    assert 'd="M58.0 208.0L222.0 109.0L386.0 10.0"' in drawn
    labels = re.findall(r">([^<]+)</text>", drawn)
    assert labels == ["0", "0.5", "1", "0", "50", "100", "step"]


def test_a_long_line_is_thinned_and_what_is_not_finite_left_out():
    line = [(step, float("nan") if step == 5 else step / 10) for step in range(5000)]
    drawn = Plot("a", {"x": line}).render()
    assert 500 < drawn.count("L") <= curves.MAX_POINTS + 1 and "nan" not in drawn
    assert Plot("a", {"x": [(1, float("nan"))]}).render() == Plot("a", {"x": []}).render() == ""


def test_names_are_text():
    drawn = Plot('<b> "a"', {"<i>": [(0, 1), (1, 2)], "b": [(0, 1), (1, 2)]}).render()
    assert isinstance(drawn, Markup) and "<b>" not in drawn and "<i>" not in drawn and "&lt;i&gt;" in drawn


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[browser.Page, Path]:
    path = tmp_path_factory.mktemp("page") / "report.html"
    lines = {
        f"loss/{name}": [(step, 1 / (step + k + 1)) for step in range(0, 1001, 40)] for k, name in enumerate("abcdef")
    }
    style = (pages.FOLDER / "report.css").read_text(encoding="utf-8")
    fill = {"started": "now", "device": "cpu", "command": "ccnet " + 40 * "word ", "facts": {"mIoU": "80 %"}}
    fill |= {"headings": ["IoU %"], "width": 260, "height": 26, "matrix": "data:,", "examples": [], "preset": "a: 1"}
    fill |= {"classes": [{"name": "road", "colour": "#804080", "numbers": ["50.00"]}], "environment": "{}"}
    drawn = [Plot("Training loss", lines, marked=True).render()]
    path.write_text(pages.render("report.html", style, title="run", curves=drawn, **fill), encoding="utf-8")
    with browser.launched() as running:
        yield running.page(), path


INK = """[...document.querySelectorAll('h1, h2, h3, p, dt, dd, th, td, pre, text, .key, path.line')].map((e) => {
  const style = getComputedStyle(e);
  const colour = e.matches('path') ? style.stroke : e.matches('text') ? style.fill : style.color;
  return [e.className.baseVal ?? e.tagName, colour, getComputedStyle(document.body).backgroundColor];
})"""


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_both_themes(page, scheme):
    tab, path = page
    tab.prefer(scheme)
    tab.resize(390, 844, touch=True)
    tab.open(path)
    inks = tab.value(INK)
    assert len(inks) > 25
    for name, ink, ground in inks:
        assert contrast(ink, ground) >= 4.5, (name, ink, ground)
    grounds = {ground for _, _, ground in inks}
    assert len(grounds) == 1 and (contrast(grounds.pop(), "rgb(255, 255, 255)") > 10) == (scheme == "dark")
    assert tab.complaints() == [] and tab.requests() == [path.resolve().as_uri()]


def test_curves_are_readable_on_a_telephone(page):
    tab, path = page
    tab.resize(390, 844, touch=True)
    tab.open(path)
    assert tab.value("document.documentElement.scrollWidth") <= 390
    heights = tab.value("[...document.querySelectorAll('text')].map((t) => t.getBoundingClientRect().height)")
    assert min(heights) > 10
    # no label covers another
    boxes = tab.value(
        "[...document.querySelectorAll('text')].map((t) => { const b = t.getBoundingClientRect();"
        "return [b.left, b.top, b.right, b.bottom]; })"
    )
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] + 3 or other[3] <= one[1] + 3
    # and none is cut off at the drawing's edge
    left, right = tab.value("(b => [b.left, b.right])(document.querySelector('svg.curves').getBoundingClientRect())")
    drawn = tab.value("[...document.querySelectorAll('svg.curves text')].map((t) => t.textContent)")
    assert "1,000" in drawn and all(left <= box[0] and box[2] <= right for box in boxes)
    assert tab.value("document.documentElement.lang") == "en"
    assert tab.value("document.querySelectorAll('h1').length") == 1
