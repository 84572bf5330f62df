"""The viewer in a browser: zoom and moving, one class alone, two models, insets, a telephone."""

from pathlib import Path

import browser
import numpy as np
import pytest
from attentive import CLASSES, saved
from calls import explore
from tiny import picture, write

from ccnet_cli.errors import InputError
from ccnet_cli.figures import viewer
from ccnet_cli.media.classes import Classes

IMAGE = "document.querySelector('{}').toDataURL()"
POINT = "[...location.hash.matchAll(/\\d+/g)].map(Number)"
ZOOM = "parseFloat(document.querySelector('#zoom-value').textContent)"


@pytest.fixture
def page(chromium: browser.Browser) -> browser.Page:
    return chromium.page()


@pytest.fixture(scope="module")
def written(photograph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    explore([photograph], folder / "a.html", [(20, 30)], saved(folder / "run", query_channels=4, strength=100.0))
    return folder / "a.html"


def wheel(page: browser.Page, selector: str, across: float, down: float, by: float) -> None:
    left, top, width, height = page.box(selector)
    place = {"x": left + across * width, "y": top + down * height}
    page.call("Input.dispatchMouseEvent", type="mouseWheel", **place, deltaX=0, deltaY=by)
    page.settle()


def test_the_wheel_zooms_about_the_pointer_in_every_panel(page, written):
    page.open(written)
    page.mouse("#picture", 0.75, 0.25)
    page.settle()
    there, maps = page.value(POINT), page.value(IMAGE.format("#map-2"))
    numbers = page.value(f"Array.from(ccnet.map({there[0]}, {there[1]}, 2))")
    for _ in range(4):
        wheel(page, "#picture", 0.75, 0.25, -100)
    assert page.value(ZOOM) == pytest.approx(4, abs=0.1)
    # what lies under the pointer stays there, a quarter of the picture is shown around it
    page.mouse("#picture", 0.75, 0.25)
    page.settle()
    assert page.value(POINT) == pytest.approx(there, abs=1)
    page.mouse("#picture", 0.99, 0.99)
    page.settle()
    moved = [there[0] + 0.24 * 184 / 4, there[1] + 0.74 * 120 / 4]
    assert page.value(POINT) == pytest.approx(moved, abs=1.5)
    assert page.value(IMAGE.format("#map-2")) != maps
    assert page.value(f"Array.from(ccnet.map({there[0]}, {there[1]}, 2))") == numbers
    wheel(page, "#map-1", 0.5, 0.5, 100)
    assert page.value(ZOOM) == pytest.approx(2.8, abs=0.1)
    page.value("document.querySelector('#zoom-all').click()")
    page.settle()
    assert page.value(ZOOM) == 1 and page.complaints() == []


def test_keys_zoom_and_arrows_keep_the_point_in_sight(page, written):
    page.open(written, "#x=20&y=30")
    page.value("document.querySelector('#picture').focus()")
    for _ in range(4):
        page.key("+")
    page.settle()
    assert page.value(ZOOM) == pytest.approx(1.5**4, abs=0.06)
    for _ in range(16):
        page.key("ArrowRight")
    page.settle()
    x = page.value(POINT)[0]
    assert x > 120
    # the pointer at the right edge is on what the arrows reached, or left of it
    page.mouse("#picture", 0.99, 0.5)
    page.settle()
    assert abs(page.value(POINT)[0] - x) < 184 / 1.5**4 / 4
    page.value("document.querySelector('#picture').focus()")
    page.key("-")
    page.settle()
    assert page.value(ZOOM) == pytest.approx(1.5**3, abs=0.06)
    page.key("0")
    page.settle()
    assert page.value(ZOOM) == 1


def test_a_drag_moves_and_pins_nothing(page, written):
    page.open(written)
    for _ in range(4):
        wheel(page, "#picture", 0.5, 0.5, -100)
    pins = "document.querySelectorAll('#pins .pin').length"
    page.mouse("#picture", 0.5, 0.5)
    page.settle()
    (x, y), before = page.value(POINT), page.value(pins)
    left, top, width, height = page.box("#picture")
    middle, end = (left + 0.5 * width, top + 0.5 * height), (left + 0.75 * width, top + 0.25 * height)
    for kind, place in (("mousePressed", middle), ("mouseMoved", end), ("mouseReleased", end)):
        page.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", buttons=1, clickCount=1)
    page.mouse("#picture", 0.75, 0.25)
    page.settle()
    # what was in the middle has come along
    assert page.value(POINT) == pytest.approx([x, y], abs=1) and page.value(pins) == before
    page.mouse("#picture", 0.5, 0.5, click=True)
    page.settle()
    assert page.value(pins) == before + 1


@pytest.mark.parametrize("panel", ["#picture", "#map-1", "#prediction"])
def test_two_fingers_zoom_the_panels_and_not_the_page_and_pin_nothing(panel, chromium, written):
    phone = chromium.page()
    phone.resize(390, 844, touch=True)
    phone.open(written)
    left, top, width, height = phone.box(panel)
    middle = left + width / 2, top + height / 2

    def fingers(kind: str, apart: float) -> None:
        points = [{"x": middle[0] + side * apart, "y": middle[1], "id": side} for side in (-1, 1)] if apart else []
        phone.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    fingers("touchStart", 30)
    for apart in (40, 50, 60, 75, 90):
        fingers("touchMove", apart)
    fingers("touchEnd", 0)
    phone.settle()
    assert phone.value(ZOOM) == pytest.approx(3, rel=0.15)
    assert phone.value("visualViewport.scale") == 1
    assert phone.value("document.querySelectorAll('#pins .pin').length") == 1
    assert phone.complaints() == []


def test_a_fingertip_hits_every_control(chromium, written):
    phone = chromium.page()
    phone.resize(390, 844, touch=True)
    phone.open(written)
    phone.value("document.querySelector('#options').open = true")
    # a control is hit on its label too
    boxes = phone.value(
        "[...document.querySelectorAll('main button, select, input, summary')].filter((e) => e.checkVisibility())"
        ".map((e) => [e, ...(e.labels ?? [])].map((one) => one.getBoundingClientRect()))"
        ".map((all) => [Math.max(...all.map((b) => b.width)), Math.max(...all.map((b) => b.height))])"
    )
    assert len(boxes) == 16 and min(min(box) for box in boxes) >= 44


def test_one_class_alone_keeps_its_part_of_maps_and_prediction(page, written):
    page.open(written)
    before = {name: page.value(IMAGE.format(name)) for name in ("#map-2", "#prediction")}
    numbers = page.value("Array.from(ccnet.map(20, 30, 2))")
    page.value(
        "(() => { const e = document.querySelector('#only'); e.value = '1'; e.dispatchEvent(new Event('input')); })()"
    )
    page.settle()
    assert all(page.value(IMAGE.format(name)) != old for name, old in before.items())
    assert page.value("Array.from(ccnet.map(20, 30, 2))") == numbers
    # only pixels of the class have its colour, the others are grey
    colours = """(() => {
      const c = document.querySelector('#prediction');
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      let coloured = 0;
      for (let i = 0; i < d.length; i += 4) coloured += d[i] !== d[i + 1] || d[i] !== d[i + 2];
      return coloured / (d.length / 4);
    })()"""
    alone = page.value(colours)
    page.value("document.querySelector('#picture').focus()")
    for _ in range(len(CLASSES.names) - 1):
        page.key("f")
    page.settle()
    assert page.value("document.querySelector('#only').value") == ""
    assert alone < page.value(colours) and page.value(IMAGE.format("#map-2")) == before["#map-2"]


def test_two_models_stand_side_by_side(page, photograph, tmp_path):
    one = saved(tmp_path / "one", query_channels=4, strength=100.0)
    other = saved(tmp_path / "two", query_channels=32, strength=30.0, recurrence=1)
    explore([photograph], tmp_path / "both.html", [(20, 30)], one, compare=other)
    explore([photograph], tmp_path / "single.html", [(20, 30)], other)
    page.open(tmp_path / "single.html")
    alone = np.array(page.value("Array.from(ccnet.map(90, 60, 1))"))
    page.open(tmp_path / "both.html")
    both = np.array(page.value("Array.from(ccnet.map(90, 60, 1, 1))"))
    assert abs(both - alone).max() < alone.max() / 250
    assert abs(np.array(page.value("Array.from(ccnet.map(90, 60, 1))")) - alone).max() > alone.max() / 10
    first, second = ("/".join(path.parts[-2:]) for path in (one, other))
    titles = page.value("[...document.querySelectorAll('.panel h2')].map((title) => title.textContent)")
    maps = [f"{first}, R = 1", f"{first}, R = 2", f"{second}, R = 1"]
    # the first prediction begins the second row, so that passes stand one below the other
    assert titles == ["Picture", *maps[:2], f"Prediction, {first}", maps[2], f"Prediction, {second}"]
    tops = page.value("[...document.querySelectorAll('.panel')].map((panel) => panel.getBoundingClientRect().top)")
    assert len({*tops[:3]}) == len({*tops[3:]}) == 1 and tops[0] < tops[3]
    assert page.value("[...document.querySelectorAll('#reading thead th')].map((e) => e.textContent)") == maps
    assert page.complaints() == [] and page.requests() == [(tmp_path / "both.html").resolve().as_uri()]
    # a telephone has no room for all columns: the read-out moves by keys, its names stay
    page.resize(390, 844, touch=True)
    page.open(tmp_path / "both.html")
    page.value("document.querySelector('#reading').focus()")
    page.value("document.querySelector('#reading').scrollLeft = 1000")
    moved = page.value("document.querySelector('#reading').scrollLeft")
    lefts = "[...document.querySelectorAll('#reading tbody th')].map((e) => Math.round(e.getBoundingClientRect().left))"
    assert moved > 0 and page.value("document.activeElement.id") == "reading" and min(page.value(lefts)) >= 0
    strange = saved(tmp_path / "strange", classes=Classes(("a", "b", "c"), CLASSES.palette, (7, 23, 9)))
    with pytest.raises(InputError, match="its classes are not those of"):
        explore([photograph], tmp_path / "new.html", checkpoint=one, compare=strange)


def test_a_narrow_peak_has_an_inset_and_a_wide_map_none(page, written):
    page.open(written)
    script = "\n".join((viewer.FOLDER / name).read_text(encoding="utf-8") for name in viewer.SCRIPTS[:2])
    call = """(() => {{
      {script}
      const map = new Float32Array(600).fill({rest});
      map[315] = 1;
      return isPeaked(map, {{ height: 20, width: 30 }}, 315);
    }})()"""
    assert page.value(call.format(script=script, rest=0.0001)) is True
    assert page.value(call.format(script=script, rest=0.01)) is False


@pytest.mark.parametrize(("size", "beside"), [((120, 184), False), ((120, 150), True)])
def test_on_a_telephone_the_picture_stays_and_the_last_map_is_with_it(chromium, size, beside, tmp_path):
    image = write(tmp_path / "image.png", picture(*size, seed=5))
    explore([image], tmp_path / "a.html", [(20, 30)], saved(tmp_path / "run", query_channels=4))
    phone = chromium.page()
    phone.resize(390, 844, touch=True)
    phone.open(tmp_path / "a.html")
    box = """(() => {{
      const b = document.querySelector('{}').getBoundingClientRect();
      return [b.left, b.top, b.right, b.bottom];
    }})()"""
    picture_box, last = phone.value(box.format("#picture")), phone.value(box.format("#map-2"))
    assert picture_box[3] < 844 and last[3] <= 844 + 40
    assert (last[0] >= picture_box[2]) == beside and (last[1] >= picture_box[3]) != beside
    # side by side they end together, and the buttons take one line
    bottoms = [phone.value(box.format(f"figure:has({canvas})"))[3] for canvas in ("#picture", "#map-2")]
    assert (abs(bottoms[0] - bottoms[1]) < 1) == beside
    assert phone.value("document.querySelector('#zoom').offsetHeight") < 88
    phone.value("window.scrollTo(0, 10000)")
    phone.settle()
    assert phone.value(box.format("#picture"))[1] >= 0
    assert phone.value("document.documentElement.scrollWidth") <= 390


def test_technical_notes_are_at_the_foot(page, written):
    page.open(written)
    assert "cells" not in page.value("document.querySelector('header').textContent")
    assert "query and key of each pass" in page.value("document.querySelector('footer').textContent")
