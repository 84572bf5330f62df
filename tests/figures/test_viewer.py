"""The viewer: what its file holds, and in a real browser what it shows and does."""

import base64
import html
import json
import re
import zlib
from pathlib import Path

import browser
import cv2
import numpy as np
import pytest
import torch
from accessible import find_faults
from attentive import CLASSES, saved
from calls import explore
from tiny import picture, write

from ccnet_cli import ops
from ccnet_cli.errors import InputError, NonFiniteError
from ccnet_cli.figures import viewer
from ccnet_cli.figures.viewer import payload
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.inference.attention import locate
from ccnet_cli.inference.views import to_input
from ccnet_cli.media import images
from ccnet_cli.media.classes import Classes
from ccnet_cli.models.attention import attention_map

PIXELS = "document.querySelector('{}').toDataURL()"


@pytest.fixture(scope="module")
def page(chromium: browser.Browser) -> browser.Page:
    return chromium.page()


@pytest.fixture(scope="module")
def written(photograph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a label, whose first pin is at (20, 30)."""
    folder = tmp_path_factory.mktemp("page")
    label = write(folder / "label.png", np.tile(np.repeat(np.uint8([7, 23, 9, 0]), 46), (120, 1)))
    checkpoint = saved(folder / "run", query_channels=4, strength=100.0)
    explore([photograph], folder / "viewer.html", [(20, 30)], checkpoint, label=label)
    return folder / "viewer.html"


# query and key are embedded where they have few channels, else the weights
NARROW, WIDE = {"query_channels": 4, "strength": 100.0}, {"query_channels": 32, "strength": 30.0}
FORMS = {
    "projections": NARROW,
    "weights": WIDE,
    "one pass": NARROW | {"recurrence": 1},
    "three passes": WIDE | {"recurrence": 3},
    "corners apart": NARROW | {"align_corners": False},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_numbers_in_the_page_are_the_network_s(form, page, photograph, tmp_path, capfd):
    checkpoint = saved(tmp_path / "run", **FORMS[form])
    output = tmp_path / "viewer.html"
    explore([photograph], output, checkpoint=checkpoint)
    held = "query and key of each pass" if FORMS[form]["query_channels"] == 4 else "weights of each pass in 1023 steps"
    assert held in output.read_text(encoding="utf-8")
    page.open(output)

    restored = load_model(checkpoint)
    model = restored.network
    with torch.no_grad():
        scores, passes = model.attend(to_input(images.read_image(photograph), model.normalisation, "cpu"))
    assert max(attention.max() for attention in passes) > 0.3, "an even attention would agree with anything"
    random = np.random.default_rng(1)
    for x, y in zip(random.integers(0, 184, 20).tolist(), random.integers(0, 120, 20).tolist(), strict=True):
        (column, row), _ = locate(scores[0], (x, y), (120, 184), model.align_corners)
        assert page.value(f"ccnet.cell({x}, {y})") == [column, row]
        for recurrence in range(1, model.recurrence + 1):
            expected = attention_map(passes[:recurrence], row, column).numpy().ravel()
            shown = np.array(page.value(f"Array.from(ccnet.map({x}, {y}, {recurrence}))"))
            assert abs(shown - expected).max() < expected.max() / 255
    assert page.complaints() == []


def test_the_page_asks_for_nothing_and_complains_of_nothing(page, written, tmp_path):
    page.open(written)
    assert page.complaints() == [] and page.requests() == [written.resolve().as_uri()]
    assert page.value("[...document.querySelectorAll('.panel h2')].map((title) => title.textContent)") == [
        "Picture",
        "R = 1",
        "R = 2",
        "Prediction",
        "Label",
    ]
    # what it may not do is refused, so the quiet above was not for want of asking
    page.value("fetch('https://example.org').catch(() => 0)")
    page.value("void document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">')")
    assert len(page.complaints()) >= 2
    shot = images.read_image(page.screenshot(tmp_path / "viewer.png", whole=True))
    assert shot.shape[1] == 1440 and shot.std() > 20


def test_a_hover_changes_maps_and_read_out_and_leaves_the_pin(page, written):
    page.open(written)
    shown = ["#picture", "#map-1", "#map-2", "#prediction"]
    before = [page.value(PIXELS.format(name)) for name in shown]
    page.mouse("#picture", 0.8015, 0.704)
    page.settle()
    assert all(page.value(PIXELS.format(name)) != old for name, old in zip(shown, before, strict=True))
    assert page.value("location.hash") == "#x=147&y=84"
    assert "(147, 84)" in page.value("document.querySelector('#where').textContent")
    assert page.value("document.querySelector('#status').textContent").startswith("Point 147, 84: ")
    page.mouse("#reading", 0.9, 0.9)
    page.settle()
    assert page.value("location.hash") == "#x=20&y=30"
    assert page.value(PIXELS.format("#map-2")) == before[2]


def test_the_read_out_says_what_the_map_holds(page, written):
    page.open(written, "#x=147&y=84")
    map_hw = np.array(page.value("Array.from(ccnet.map(147, 84, 2))")).reshape(15, 23)
    column, row = page.value("ccnet.cell(147, 84)")
    told = page.value(
        "Object.fromEntries([...document.querySelectorAll('#reading tbody tr')]"
        ".map((line) => [line.cells[0].textContent, line.cells[2].textContent]))"
    )
    on = map_hw[row].sum() + map_hw[:, column].sum() - map_hw[row, column]
    assert float(told["on the cross"].split()[0]) == pytest.approx(100 * on, abs=0.06)
    assert float(told["off the cross"].split()[0]) == pytest.approx(100 * (1 - on), abs=0.06)
    entropy = -(map_hw * np.log2(map_hw, where=map_hw > 0, out=np.zeros_like(map_hw))).sum()
    assert float(told["entropy"].split()[0]) == pytest.approx(entropy, abs=0.006)
    y, x = np.unravel_index(map_hw.argmax(), map_hw.shape)
    assert told["largest weight"].endswith(f"at ({round(x * 183 / 22)}, {round(y * 119 / 14)})")
    classes = [name for name in told if name.startswith("on ") and name != "on the cross"]
    assert classes and {name[3:] for name in classes} <= set(CLASSES.names)
    assert sum(float(told[name].split()[0]) for name in classes) == pytest.approx(100, abs=0.3)
    # over a map, the weight beneath the pointer
    page.mouse("#map-2", (x + 0.5) / 23, (y + 0.5) / 15)
    page.settle()
    first = page.value("document.querySelector('#reading tbody tr').textContent")
    assert "under the pointer" in first and float(first.split()[-1][-6:].lstrip(")")) > 0
    assert page.value("location.hash") == "#x=147&y=84"


def test_clicks_pin_and_pins_can_be_chosen_and_removed(page, written):
    page.open(written)
    names = "[...document.querySelectorAll('#pins .pin')].map((pin) => pin.textContent)"
    chosen = "[...document.querySelectorAll('#pins [aria-pressed]')].map((pin) => pin.ariaPressed)"
    page.mouse("#picture", 0.5025, 0.504, click=True)
    page.mouse("#prediction", 0.2525, 0.754, click=True)
    page.mouse("#prediction", 0.2525, 0.754, click=True)
    page.settle()
    assert [name[:12] for name in page.value(names)] == ["1: (20, 30) ", "2: (92, 60) ", "3: (46, 90) "]
    assert page.value(chosen) == ["false", "false", "true"]
    page.value("document.querySelector('#pins button').click()")
    page.settle()
    assert page.value(chosen) == ["true", "false", "false"] and page.value("location.hash") == "#x=20&y=30"
    page.value("document.querySelector('[aria-label=\"Remove pin 1\"]').click()")
    page.settle()
    assert len(page.value(names)) == 2 and page.value("location.hash") == "#x=92&y=60"
    assert page.value("document.activeElement.textContent").startswith("1: (92, 60)")
    # a click on a map looks from there, without a pin
    page.mouse("#map-1", 0.1005, 0.104, click=True)
    page.settle()
    assert len(page.value(names)) == 2 and page.value("location.hash") == "#x=18&y=12"


def test_a_finger_looks_and_pins(chromium, written):
    phone = chromium.page()
    phone.resize(390, 844, touch=True)
    phone.open(written)
    assert not phone.value("document.querySelector('#options').open")
    assert phone.value("document.documentElement.scrollWidth") <= 390
    phone.touch("#picture", 0.5025, 0.504)
    phone.settle()
    assert phone.value("document.querySelectorAll('#pins .pin').length") == 2
    assert phone.value("location.hash") == "#x=92&y=60"
    assert phone.complaints() == []


def test_the_keyboard_does_what_the_mouse_does(page, written):
    page.open(written)
    order = []
    for _ in range(13):
        page.key("Tab")
        order.append(page.value("document.activeElement.id || document.activeElement.textContent"))
    assert order[:2] == ["Skip to the picture", "How the maps are drawn"]
    controls = ["colours", "clip", "opacity", "log", "residual", "only", "theme", "save", "copy", "keys"]
    assert order[2:] == [*controls, "picture"]

    at = "ccnet.cell(...location.hash.match(/\\d+/g).map(Number))"
    for key, moved in (("ArrowRight", [3, 4]), ("ArrowDown", [3, 5]), ("ArrowLeft", [2, 5]), ("ArrowUp", [2, 4])):
        page.key(key)
        page.settle()
        assert page.value(at) == moved
    x = page.value("location.hash")
    page.key("ArrowRight", shift=True)
    page.settle()
    assert int(page.value("location.hash").split("=")[1].split("&")[0]) == int(re.findall(r"\d+", x)[0]) + 1
    page.key("Enter")
    page.settle()
    assert page.value("document.querySelectorAll('#pins .pin').length") == 2
    page.key("1")
    page.settle()
    assert page.value("location.hash") == "#x=20&y=30"
    page.key("m")
    page.settle()
    peak = page.value("(() => { const m = ccnet.map(20, 30, 2); return m.indexOf(Math.max(...m)); })()")
    assert page.value(at) == [peak % 23, peak // 23]
    page.key("Delete")
    assert page.value("document.querySelectorAll('#pins .pin').length") == 1
    for key, control in (("l", "log"), ("r", "residual")):
        page.key(key)
        assert page.value(f"document.querySelector('#{control}').checked")
    page.key("c")
    assert page.value("document.querySelector('#colours').value") == "viridis"
    page.key("?")
    assert page.value("document.querySelector('#help').open")
    page.key("Escape")
    page.settle()
    assert not page.value("document.querySelector('#help').open")
    # at the edge it stays inside
    page.open(written, "#x=0&y=0")
    page.value("document.querySelector('#picture').focus()")
    page.key("ArrowLeft")
    page.key("ArrowUp", shift=True)
    page.settle()
    assert page.value("location.hash") == "#x=0&y=0"


@pytest.mark.parametrize(
    ("link", "shown"),
    [("#x=150&y=7", "#x=150&y=7"), ("#x=184&y=7", "#x=20&y=30"), ("#x=1e1&y=-2", "#x=20&y=30"), ("#", "#x=20&y=30")],
)
def test_a_link_opens_at_its_point(link, shown, page, written):
    page.open(written, link)
    page.settle()
    assert page.value("location.hash") == shown
    assert page.complaints() == []
    page.value("location.hash = '#x=5&y=6'")
    page.settle()
    assert "(5, 6)" in page.value("document.querySelector('#where').textContent")


def choose(page: browser.Page, control: str, value: object) -> None:
    field = "checked" if value is True else "value"
    page.value(
        f"(() => {{ const field = document.querySelector('#{control}'); field.{field} = {json.dumps(value)};"
        "field.dispatchEvent(new Event('input')); })()"
    )


CHANGES = {"colours": "grey", "clip": "60", "opacity": "0.9", "log": True, "residual": True}


@pytest.mark.parametrize("control", CHANGES)
def test_each_control_changes_the_maps_and_not_the_network_s_numbers(control, page, written):
    page.open(written, "#x=100&y=60")
    before, numbers = page.value(PIXELS.format("#map-2")), page.value("Array.from(ccnet.map(100, 60, 2))")
    choose(page, control, CHANGES[control])
    page.settle()
    assert page.value(PIXELS.format("#map-2")) != before
    assert page.value("Array.from(ccnet.map(100, 60, 2))") == numbers
    note = page.value("document.querySelector('#residual-note').hidden")
    assert note == (control != "residual")
    assert page.value("document.querySelector('#gamma').textContent").endswith(" = 0.500")


def test_the_residual_adds_what_each_pass_keeps(page, written):
    page.open(written, "#x=100&y=60")
    page.value("document.querySelector('#residual').click()")
    page.settle()
    column, row = page.value("ccnet.cell(100, 60)")
    first = np.array(page.value("Array.from(ccnet.map(100, 60, 1))")).reshape(15, 23)
    # half a unit of what is gathered joins one of what was there
    told = page.value("document.querySelector('#reading tbody tr').cells[1].textContent")
    assert float(told) == pytest.approx((0.5 * first[row, column] + 1) / 1.5, rel=0.02)


def test_a_saved_picture_is_the_paper_s_figure(chromium, page, written, tmp_path):
    page.open(written)
    page.mouse("#picture", 0.5025, 0.504, click=True)
    chromium.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.value("document.querySelector('#save').click()")
    page.until(lambda: any(path.suffix == ".png" for path in tmp_path.iterdir()))
    drawn = images.read_image(tmp_path / "street-attention.png")
    width, height = page.value("[document.querySelector('#picture').width, document.querySelector('#picture').height]")
    assert drawn.shape[1] > 3 * width and 2 * height < drawn.shape[0] < 3 * height
    assert (drawn[0] == 255).all()


def test_everything_is_named_for_those_who_do_not_see_it(page, written):
    page.open(written)
    page.settle()
    unnamed = (
        "[...document.querySelectorAll('input, select, button, canvas, img')].filter((e) => !(e.labels?.length || "
        "e.ariaLabel || e.alt || e.textContent.trim() || e.ariaHidden === 'true')).map((e) => e.outerHTML)"
    )
    assert page.value(unnamed) == []
    assert page.value("document.documentElement.lang") == "en"
    label = page.value("document.querySelector('#map-2').ariaLabel")
    assert re.fullmatch(r"Attention map, R = 2: [\d.]+ % on the cross, [\d.]+ % off it", label)


def test_light_and_dark_are_readable():
    style = (viewer.FOLDER / "viewer.css").read_text(encoding="utf-8")
    colours = re.findall(r"--(\w+): #(\w{6})", style)
    themes = [dict(colours[start : start + 6]) for start in range(0, len(colours), 6)]
    assert len(themes) == 3 and themes[1] == themes[2] != themes[0]
    for theme in themes:
        for ink in ("ink", "faint", "accent"):
            for ground in ("ground", "card"):
                assert contrast(theme[ink], theme[ground]) > 4.5


def contrast(one: str, other: str) -> float:
    """The ratio of two colours by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_the_theme_follows_the_system_until_one_is_chosen(page, written):
    page.open(written)
    ground = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        seen[scheme] = page.value(ground)
    assert seen["light"] != seen["dark"]
    choose(page, "theme", "light")
    assert page.value(ground) == seen["light"]
    page.prefer("light")


def test_names_are_text_and_nothing_else(page, photograph, tmp_path):
    names = ("</script><b>road</b>", "<!--<script>", "{{policy}} & \"sky\" 'Tür'")
    checkpoint = saved(tmp_path / "run", query_channels=2, classes=Classes(names, CLASSES.palette, (7, 23, 9)))
    image = tmp_path / "<b onclick=alert(1)>&\"'{{page}}.png"
    image.write_bytes(photograph.read_bytes())
    explore([image, photograph], tmp_path / "pages", checkpoint=checkpoint)
    page.open(tmp_path / "pages" / f"{image.stem}.html")
    page.settle()
    assert page.value("document.querySelector('h1').textContent") == f"What the network attends to in {image.name}"
    assert page.value("document.querySelectorAll('b').length") == 0
    listed = page.value("[...document.querySelectorAll('#reading th')].map((e) => e.textContent.slice(3))")
    assert set(names) & set(listed)
    assert page.complaints() == []
    page.open(tmp_path / "pages" / "index.html")
    assert page.value("document.querySelectorAll('b').length") == 0
    page.value("document.querySelector('a').click()")
    page.until(lambda: page.value("document.title") == f"{image.name}: what the network attends to")


def test_a_folder_gets_a_page_for_each_image_and_a_list(page, photograph, tmp_path):
    checkpoint = saved(tmp_path / "run", query_channels=2)
    other = write(tmp_path / "other.png", picture(64, 40, seed=2))
    output = tmp_path / "pages"
    written = explore([photograph, other], output, checkpoint=checkpoint)
    assert written == [output / "street.html", output / "other.html", output / "index.html"]
    page.open(output / "index.html")
    entries = page.value("[...document.querySelectorAll('a')].map((a) => [a.textContent, a.href])")
    assert entries == [[name, (output / name).with_suffix(".html").as_uri()] for name in ("street.png", "other.png")]
    assert (
        page.value("Promise.all([...document.images].map((i) => i.decode())).then(() => document.images.length)") == 2
    )
    assert page.value("document.images[0].naturalWidth") == 184
    assert find_faults((output / "index.html").read_text(encoding="utf-8")) == []
    assert page.complaints() == [] and page.requests() == [(output / "index.html").as_uri()]
    with pytest.raises(InputError, match="exists"):
        explore([photograph], output, checkpoint=checkpoint)
    explore([photograph], output, checkpoint=checkpoint, overwrite=True)


def test_without_javascript_the_figure_is_there(written):
    text = written.read_text(encoding="utf-8")
    assert find_faults(text) == []
    (still,) = re.findall(r'<noscript>.*?base64,([\w+/=]+)">\n</noscript>', text, re.S)
    drawn = cv2.imdecode(np.frombuffer(base64.b64decode(still), np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape[1] > 900 and drawn.std() > 20
    assert 'alt="street.png with a point at 20, 30' in text


@pytest.mark.parametrize("size", [(8, 8), (1, 300), (300, 1), (1, 1)])
def test_images_of_any_shape_have_a_page(size, page, tmp_path):
    image = write(tmp_path / "image.png", picture(*size, seed=1))
    explore([image], tmp_path / "viewer.html", checkpoint=saved(tmp_path / "run", query_channels=2))
    page.open(tmp_path / "viewer.html")
    page.mouse("#picture", 0.9, 0.9)
    page.settle()
    assert page.complaints() == []
    assert sum(page.value(f"Array.from(ccnet.map({size[1] - 1}, {size[0] - 1}, 2))")) == pytest.approx(1, abs=1e-3)


def test_what_cannot_be_shown_is_refused_in_one_line(photograph, tmp_path):
    checkpoint = saved(tmp_path / "run", query_channels=2)
    folder = tmp_path / "pages"
    single = tmp_path / "viewer.html"
    twin = write(tmp_path / "twin" / "street.png", picture(40, 64, seed=2))
    index = write(tmp_path / "index.png", picture(40, 64, seed=2))
    small = write(tmp_path / "label.png", np.zeros((40, 64), np.uint8))
    cases = {
        "one file for 2 images": lambda: explore([photograph, twin], single, checkpoint=checkpoint),
        "is called so too": lambda: explore([photograph, twin], folder, checkpoint=checkpoint),
        "would be the list": lambda: explore([index], folder, checkpoint=checkpoint),
        "one label for 2 images": lambda: explore([photograph, twin], folder, checkpoint=checkpoint, label=small),
        "64x40 pixels, its image 184x120": lambda: explore([photograph], single, checkpoint=checkpoint, label=small),
        "outside the image": lambda: explore([photograph], single, [(184, 0)], checkpoint),
        "25 given": lambda: explore([photograph], single, [(0, 0)] * 25, checkpoint),
        "percentile": lambda: explore([photograph], single, checkpoint=checkpoint, clip=0),
        "no attention": lambda: explore([photograph], single, checkpoint=saved(tmp_path / "r0", recurrence=0)),
    }
    for words, call in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(NonFiniteError):
        explore([photograph], single, checkpoint=saved(tmp_path / "nan", poison=True))
    assert not single.exists() and not folder.exists()


def test_a_label_holds_the_data_set_s_ids_or_train_ids_if_so_named(photograph, tmp_path):
    checkpoint = saved(tmp_path / "run", query_channels=2)
    expected = np.tile(np.repeat(np.uint8([0, 1, 2, 255]), 46), (120, 1))
    own = write(tmp_path / "label.png", np.array([7, 23, 9], np.uint8)[expected % 253 % 3] * (expected < 255))
    train = write(tmp_path / "a_labelTrainIds.png", expected)
    for label in (own, train):
        output = label.with_suffix(".html")
        explore([photograph], output, checkpoint=checkpoint, label=label)
        assert (held(output)["label"].reshape(120, 184) == expected).all()


def held(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a page, read from its text alone."""
    text = path.read_text(encoding="utf-8")
    facts = json.loads(html.unescape(re.search(r'id="page">(.*?)</script>', text)[1]))
    content = zlib.decompress(base64.b64decode(re.search(r'id="payload">(.*?)</script>', text)[1]))
    return unpacked(facts["arrays"], content)


def unpacked(directory: dict[str, tuple[str, int, int]], content: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    for name, (kind, offset, count) in directory.items():
        if kind.endswith("p"):
            low, high = np.frombuffer(content, np.uint8, 2 * count, offset).reshape(2, count)
            exact = low + 256 * high.astype(np.int64) - (128 if kind == "i2p" else 0)
            arrays[name] = exact.astype(f"<{kind[:2]}")
        else:
            arrays[name] = np.frombuffer(content, f"<{kind}", count, offset)
    return arrays


def test_arrays_come_back_as_they_were_packed():
    random = np.random.default_rng(0)
    arrays = {
        "a": random.integers(0, 256, (3, 7), np.uint8),
        "b": random.integers(-32768, 32768, (5, 3), np.int16),
        "c": random.integers(0, 65536, 11, np.uint16),
        "d": random.normal(size=13).astype(np.float32),
    }
    directory, text = payload.pack(arrays)
    back = unpacked(directory, zlib.decompress(base64.b64decode(text)))
    assert all((back[name] == array.ravel()).all() for name, array in arrays.items())
    assert [offset % 8 for _, offset, _ in directory.values()] == [0] * 4


@pytest.mark.parametrize("levels", payload.LEVELS)
@pytest.mark.parametrize("strength", [0.3, 3, 30])
def test_codes_keep_the_composed_maps_whatever_the_attention(levels, strength):
    size = h, w = 11, 14
    random = torch.Generator().manual_seed(0)
    passes = [torch.randn(1, h + w, h, w, generator=random, dtype=torch.float64) * strength for _ in range(3)]
    for attention in passes:
        attention[0, torch.arange(h), torch.arange(h)] = -torch.inf
    passes = [attention.softmax(1) for attention in passes]
    arrays = payload.weights([attention[0].flatten(1).T.numpy() for attention in passes], size, levels)
    # decoded position by position, without the table that encoded them
    decoded = []
    for number in (1, 2, 3):
        codes = arrays[f"codes{number}"].astype(np.float64).reshape(h, w, h + w)
        gain = arrays[f"gain{number}"].astype(np.float64).reshape(h, w)
        scale = arrays[f"scale{number}"].astype(np.float64).reshape(h, w, 1)
        reached = np.stack(
            [np.concatenate([gain[:, x], gain[y]]) for y in range(h) for x in range(w)],
        ).reshape(h, w, h + w)
        decoded.append(torch.from_numpy((codes / levels) ** 2 * scale * reached).permute(2, 0, 1)[None])
    for y, x in [(0, 0), (10, 13), (4, 9), (7, 2)]:
        for count in (1, 2, 3):
            expected, kept = (attention_map(of[:count], y, x) for of in (passes, decoded))
            assert (expected - kept).abs().max() < expected.max() * (1 if levels > 255 else 2) / 255


def projected(size: tuple[int, int], channels: int, strength: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Query and key of two passes, noise whose energies vary by strength."""
    random = np.random.default_rng(0)
    scale = (strength / channels**0.5) ** 0.5
    return [tuple(scale * random.normal(size=(2, channels, size[0] * size[1]))) for _ in range(2)]


@pytest.mark.parametrize("steps", [32767, 255, 31])
def test_coarser_queries_and_keys_are_off_by_what_is_told(steps):
    size = h, w = 9, 14
    passes = projected(size, 8, 3.0)
    arrays, worth = payload.projections(passes, steps)
    assert max(abs(array).max() for array in arrays.values()) == steps
    kept = [(step * arrays[f"query{n}"], step * arrays[f"key{n}"]) for n, step in enumerate(worth, start=1)]
    maps = {}
    for name, parts in (("exact", passes), ("kept", kept)):
        attention = []
        for query, key in parts:
            q, k = (torch.from_numpy(part).reshape(1, -1, h, w) for part in (query, key))
            attention.append(ops.affinity(q, k, "reference").softmax(1))
        maps[name] = [attention_map(attention, *divmod(pixel, w)) for pixel in (0, 37, 125)]
    pairs = zip(maps["exact"], maps["kept"], strict=True)
    expected = max(float((one - other).abs().max() / one.max()) for one, other in pairs)
    assert payload.map_error(passes, arrays, worth, size, (0, 37, 125)) == pytest.approx(expected, rel=1e-6)
    assert expected < 40 / steps


@pytest.mark.slow
def test_the_page_of_a_large_image_stays_below_8_mb_and_says_how_far_it_is_off():
    size = 129, 257
    image = cv2.resize(picture(128, 256, seed=3), (2048, 1024))
    text = viewer.render_page(noise(image, size, projections_CN=projected(size, 64, 2.0)))
    steps, off = re.search(r"each pass in (\d+) steps, .* up to ([\d.e-]+) of their largest weight", text).groups()
    assert 5_000_000 < len(text.encode()) < 8_000_000
    assert int(steps) < 32767 and 0 < float(off) < 1


def test_queries_and_keys_are_as_fine_as_their_room_allows(monkeypatch, page, photograph, tmp_path):
    monkeypatch.setattr(viewer, "CELLS", 0)
    checkpoint = saved(tmp_path / "run", **WIDE)
    steps, sizes = [], []
    for name in ("fine", "coarse", "between"):
        most = {"fine": viewer.LARGE_PAGE_BYTES, "coarse": 0}.get(name, sum(sizes) // 2)
        monkeypatch.setattr(viewer, "LARGE_PAGE_BYTES", most)
        explore([photograph], tmp_path / f"{name}.html", checkpoint=checkpoint)
        text = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        steps.append(int(re.search(r"each pass in (\d+) steps", text)[1]))
        sizes.append(len(text))
    assert payload.STEPS[0] == steps[0] > steps[2] > steps[1] == payload.STEPS[-1]
    # the page's own words and numbers are not counted
    assert sizes[2] < most + 20_000
    page.open(tmp_path / "between.html")
    assert sum(page.value("Array.from(ccnet.map(90, 60, 2))")) == pytest.approx(1, abs=1e-3)


def test_a_grid_that_is_too_large_for_weights_has_queries_and_keys(monkeypatch, photograph, tmp_path):
    monkeypatch.setattr(viewer, "CELLS", 15 * 23 - 1)
    explore([photograph], tmp_path / "a.html", checkpoint=saved(tmp_path / "run", **WIDE))
    assert "0/query1" in held(tmp_path / "a.html")


def noise(image: np.ndarray, size: tuple[int, int], **attention: object) -> viewer.PageContent:
    """What a page shows of an image and of an attention given in one of the two ways."""
    model = viewer.ModelContent(
        cells=np.zeros(size, np.uint8),
        prediction=np.zeros(image.shape[:2], np.uint8),
        recurrence=2,
        gamma=0.5,
        align_corners=True,
        **attention,
    )
    return viewer.PageContent(
        name="noise.png",
        frames_bgr=[image],
        place=0,
        classes=CLASSES,
        label=None,
        models=[model],
        points=[],
        clip=99.0,
        still_bgr=cv2.resize(image, (640, 220)),
        source="noise",
    )


def test_energies_of_plus_and_minus_a_thousand_have_finite_weights(page, tmp_path):
    """All weight is spread evenly over the cells of the cross whose key has the sign of the pixel's query."""
    h, w = 4, 5
    random = np.random.default_rng(0)
    key, query = random.permuted(np.repeat([-1.0, 1.0], 10)), random.permuted(np.repeat([-1000.0, 1000.0], 10))
    image = cv2.resize(picture(8, 10, seed=3), (50, 40))
    (tmp_path / "a.html").write_text(
        viewer.render_page(noise(image, (h, w), projections_CN=[(query[None], key[None])] * 2)), encoding="utf-8"
    )
    page.open(tmp_path / "a.html")
    for pixel in range(h * w):
        row, column = divmod(pixel, w)
        cross = [y * w + x for y in range(h) for x in range(w) if y == row or x == column]
        chosen = [cell for cell in cross if key[cell] * query[pixel] > 0]
        assert chosen
        x, y = round(column * 49 / (w - 1)), round(row * 39 / (h - 1))
        assert page.value(f"ccnet.cell({x}, {y})") == [column, row]
        # null stands for what is not a number
        shown = np.array(page.value(f"Array.from(ccnet.map({x}, {y}, 1))"), float)
        expected = np.isin(np.arange(h * w), chosen) / len(chosen)
        np.testing.assert_allclose(shown, expected, atol=1e-6, err_msg=f"the map of cell ({column}, {row})")
    assert page.complaints() == []


def test_even_noise_of_97x97_cells_stays_below_5_mb():
    h = w = 97
    energies = torch.randn(2, h * w, h + w, generator=torch.Generator().manual_seed(0))
    image = cv2.resize(picture(97, 97, seed=3), (769, 769))
    text = viewer.render_page(noise(image, (h, w), weights_NP=[attention.numpy() for attention in energies.softmax(2)]))
    assert "in 255 steps" in text and 3_000_000 < len(text.encode()) < 5_000_000


def test_the_finer_codes_give_way_where_they_would_be_too_large(monkeypatch, photograph, tmp_path):
    checkpoint = saved(tmp_path / "run", query_channels=32)
    monkeypatch.setattr(viewer, "PAGE_BYTES", 1_000_000)
    explore([photograph], tmp_path / "a.html", checkpoint=checkpoint)
    monkeypatch.setattr(viewer, "PAGE_BYTES", 0)
    explore([photograph], tmp_path / "b.html", checkpoint=checkpoint)
    fine, coarse = (held(tmp_path / name)["0/codes1"] for name in ("a.html", "b.html"))
    assert fine.dtype == np.uint16 and coarse.dtype == np.uint8
    assert "in 255 steps" in (tmp_path / "b.html").read_text(encoding="utf-8")
