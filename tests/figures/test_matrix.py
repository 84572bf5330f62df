"""The confusion matrix of a page: what each cell says, and in a browser that it can be read in any theme and width."""

from xml.etree import ElementTree

import browser
import numpy as np
import pytest

from ccnet_cli.figures.matrix import draw_matrix
from ccnet_cli.figures.report import write_report
from ccnet_cli.media.classes import Classes

COUNTS = np.array([[750, 250, 0, 0], [0, 9996, 4, 0], [0, 0, 0, 0], [3, 0, 0, 3]])
LONG = "a name that is far too long for a margin"
NAMES = ("road", 'sky "<b>"', "never seen", LONG)


def test_a_cell_has_its_class_s_percent_and_says_in_words_what_was_seen_as_what():
    left, right = ElementTree.fromstring(f"<p>{draw_matrix(COUNTS, NAMES)}</p>")
    cells = [
        (*(each.text for each in group if each.text), group.find("rect").get("fill-opacity"))
        for group in right.iter("g")
    ]
    assert cells == [
        ("road, seen as road: 75.00 % (750 pixels)", "75", "0.750"),
        ('road, seen as sky "<b>": 25.00 % (250 pixels)', "25", "0.250"),
        ('sky "<b>", seen as sky "<b>": 99.96 % (9,996 pixels)', "100", "1.000"),
        # too little to be a number in the cell
        ('sky "<b>", seen as never seen: 0.04 % (4 pixels)', "0.000"),
        (f"{LONG}, seen as road: 50.00 % (3 pixels)", "50", "0.500"),
        (f"{LONG}, seen as {LONG}: 50.00 % (3 pixels)", "50", "0.500"),
    ]
    # rows and columns are where the names are
    places = [(float(rect.get("x")), float(rect.get("y"))) for rect in right.iter("rect")]
    (grey, *others), step = places, places[2][0] - places[1][0]
    assert [rect.get("class") for rect in right.iter("rect")] == ["none", *["cell"] * 6]
    top = others[0][1]
    assert [(x / step, (y - top) / step) for x, y in others] == [(0, 0), (1, 0), (1, 1), (2, 1), (0, 3), (3, 3)]
    assert (grey[1] - top) / step == 2
    for texts in (left, [text for text in right.iter("text") if text.find("title") is not None]):
        titles = [text.find("title") for text in texts]
        assert [each.text for each in titles] == list(NAMES)
        assert [each.tail for each in titles] == [*NAMES[:3], "a name that is far …"]
    assert right.get("aria-label").endswith('road 75, sky "<b>" 100, ' + LONG + " 50")


def luminance(colour):
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_stand_out_and_names_stay_at_the_left_of_a_narrow_page(chromium: browser.Browser, tmp_path, scheme):
    names = [f"class {number}" for number in range(19)]
    counts = np.random.default_rng(1).integers(0, 1000, (19, 19)) + 20_000 * np.eye(19, dtype=int)
    classes = Classes(tuple(names), ((90, 90, 90),) * 19, tuple(range(19)))
    write_report(tmp_path / "report.html", "", {"device": "cpu", "command": []}, [], classes, counts, [])
    page = chromium.page()
    page.resize(390, 844, touch=True)
    page.prefer(scheme)
    page.open(tmp_path / "report.html")
    colour = "getComputedStyle(document.querySelector('{}')).{}.match(/\\d+/g).slice(0, 3).map(Number)"
    ink = luminance(page.value(colour.format(".matrix g text", "fill")))
    cell = np.array(page.value(colour.format(".cell", "fill")))
    paper = np.array(page.value(colour.format("body", "backgroundColor")))
    for fraction in np.linspace(0, 1, 11):
        below = luminance(fraction * cell + (1 - fraction) * paper)
        assert (max(ink, below) + 0.05) / (min(ink, below) + 0.05) > 4.5
    # the page stays as wide as the screen, for all its long name; the matrix moves within it, beneath its names
    assert page.value("document.documentElement.scrollWidth") <= 390
    page.value("void (document.querySelector('.flat').scrollLeft = 300)")
    shown = "[...document.querySelectorAll('.matrix')].map((each) => each.getBoundingClientRect().left)"
    left, right = page.value(shown)
    assert 0 <= left < 30 and right < -100
    beneath = "document.elementFromPoint({}, {}).closest('svg').getAttribute('class')"
    x, y, width, height = page.box(".names")
    assert page.value(beneath.format(x + width / 2, y + height - 10)) == "matrix names"
    assert page.complaints() == []
