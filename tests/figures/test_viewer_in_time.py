"""The viewer of a clip: its numbers are the network's, and its frames are shown one by one."""

import re
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from attentive import CLASSES
from calls import explore

from ccnet_cli import config
from ccnet_cli.datasets import toyclips
from ccnet_cli.errors import InputError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.inference.attention import locate
from ccnet_cli.inference.views import to_input
from ccnet_cli.media import images, video
from ccnet_cli.models.attention import attention_map
from ccnet_cli.models.network import build
from ccnet_cli.runs import checkpoint as checkpoints

SMALL = ("model.backbone.width=8", "model.head.channels=8", "model.head.query_channels=4", "model.head.recurrence=3")
# of three frames the middle one is labelled
FRAMES, PLACE = 3, 1


def saved(folder: Path, frames: int = FRAMES, place: int | None = PLACE) -> Path:
    """A checkpoint of a random network of clips whose attention is clearly uneven."""
    clip = f"data.clip={{frames: {frames}, stride: 1, labelled: {'null' if place is None else place}}}"
    preset = config.load("toyclips-t5", [*SMALL, clip])
    torch.manual_seed(0)
    network = build(preset.model, len(CLASSES))
    network.head.rcca.attention.gamma.data.fill_(0.5)
    network.head.rcca.attention.query_conv.weight.data.mul_(40)
    state = {"format": checkpoints.FORMAT, "model": network.state_dict(), "preset": config.to_mapping(preset)}
    return checkpoints.save(folder, 1, state | {"classes": CLASSES.to_mapping(), "step": 1, "metrics": {}}, keep=2)


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    with browser.launched() as running:
        yield running.page()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with video.open_writer(path, 10, toyclips.SIZE) as write:
        for frame in toyclips.clip(np.random.default_rng(0))[0]:
            write(frame)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def written(film: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "viewer.html"
    explore([film], output, [(30, 60)], checkpoint, frame=2)
    return output


def test_the_maps_of_every_pass_are_the_network_s(page, film, checkpoint, written):
    page.open(written)
    network = load_model(checkpoint).network
    frames = [each for index, each in enumerate(video.frames(film)) if index in (1, 2, 3)]
    clip = torch.stack([to_input(frame, network.normalisation, "cpu") for frame in frames], dim=1)
    with torch.no_grad():
        scores, passes = network.attend(clip)
    assert max(attention.max() for attention in passes) > 0.2, "an even attention would agree with anything"
    for x, y in ((0, 0), (127, 79), (30, 60), (71, 18)):
        (column, row), _ = locate(scores[0], (x, y), toyclips.SIZE, network.align_corners)
        for number in (1, 2, 3):
            expected = attention_map(passes[:number], PLACE, row, column).numpy().ravel()
            shown = np.array(page.value(f"Array.from(ccnet.map({x}, {y}, {number}))"))
            assert shown.sum() == pytest.approx(1, abs=1e-4)
            assert abs(shown - expected).max() < expected.max() / 255
    assert page.complaints() == [] and page.requests() == [written.resolve().as_uri()]


def read(page: browser.Page) -> dict[str, list[str]]:
    """The lines of the read-out by their titles."""
    lines = "[...document.querySelectorAll('#reading tbody tr')].map((l) => [...l.cells].map((c) => c.textContent))"
    return {title: cells for title, *cells in page.value(lines)}


def test_the_read_out_has_the_share_of_each_frame(page, written):
    page.open(written)
    lines, size = read(page), page.value("ccnet.map(30, 60, 1).length")
    names = ["in the frame −1", "in the labelled frame", "in the frame +1"]
    for number in (1, 2, 3):
        map_T = np.array(page.value(f"Array.from(ccnet.map(30, 60, {number}))")).reshape(FRAMES, size // FRAMES)
        shown = [float(lines[name][number - 1].split()[0]) for name in names]
        assert shown == pytest.approx(100 * map_T.sum(1), abs=0.06)
    # one pass looks along the cross, three look everywhere
    assert lines["on the cross"][0].startswith("100.0") and not lines["on the cross"][2].startswith("100.0")


def test_slider_and_keys_choose_the_frame_that_every_panel_shows(page, written):
    page.open(written)
    panels = [f"document.querySelector('#{name}').toDataURL()" for name in ("picture", "map-1", "map-3", "prediction")]
    shown = "document.querySelector('#frame-value').textContent"
    assert page.value(shown) == "labelled frame, 2 of 3"
    before = [page.value(each) for each in panels]
    page.value("document.querySelector('#picture').focus()")
    page.key(",")
    page.settle()
    assert page.value(shown) == "frame −1, 1 of 3" and page.value("location.hash") == "#x=30&y=60&frame=0"
    assert "The frame −1 is shown" in page.value("document.querySelector('#status').textContent")
    earlier = [page.value(each) for each in panels]
    assert all(one != other for one, other in zip(before, earlier, strict=True))
    page.key(",")
    page.settle()
    assert page.value(shown) == "frame −1, 1 of 3"
    page.value(
        "(() => { const e = document.querySelector('#frame'); e.value = 1; e.dispatchEvent(new Event('input')); })()"
    )
    page.settle()
    assert [page.value(each) for each in panels] == before and page.value("location.hash") == "#x=30&y=60"
    for _ in range(3):
        page.key(".")
    page.settle()
    assert page.value(shown) == "frame +1, 3 of 3"
    # the point is looked from in the labelled frame, whatever frame is shown
    page.mouse("#picture", 0.8, 0.3)
    page.settle()
    assert re.fullmatch(r"#x=10\d&y=2\d&frame=2", page.value("location.hash"))
    page.open(written, "#x=5&y=6&frame=0")
    page.settle()
    assert page.value(shown) == "frame −1, 1 of 3" and page.value("location.hash") == "#x=5&y=6&frame=0"
    page.open(written, "#x=5&y=6&frame=3")
    page.settle()
    assert page.value("location.hash") == "#x=5&y=6"
    assert page.complaints() == []


def test_a_map_on_another_frame_is_read_there(page, written):
    page.open(written, "#x=30&y=60&frame=2")
    page.mouse("#map-3", 0.5, 0.5)
    page.settle()
    grid = page.value("JSON.parse(document.querySelector('#page').textContent).models[0].grid")
    column, row = page.value("ccnet.cell(64, 40)")
    index = (2 * grid["height"] + row) * grid["width"] + column
    title, cells = next(iter(read(page).items()))
    assert title == "weight under the pointer, (64, 40)"
    weight = page.value(f"ccnet.map(30, 60, 3)[{index}]")
    assert float(cells[2].replace("−", "-")) == pytest.approx(weight, rel=0.06)


def test_a_clip_of_one_frame_is_an_image_and_two_models_need_the_same_clips(page, film, checkpoint, tmp_path):
    single = saved(tmp_path / "one", 1, None)
    images.write_image(tmp_path / "one.png", next(video.frames(film)))
    explore([tmp_path / "one.png"], tmp_path / "one.html", checkpoint=single)
    page.open(tmp_path / "one.html")
    assert page.value("document.querySelector('#time').hidden")
    assert sum(page.value("Array.from(ccnet.map(3, 4, 2))")) == pytest.approx(1, abs=1e-4)
    with pytest.raises(InputError, match="its clips are not those of"):
        explore([film], tmp_path / "two.html", checkpoint=checkpoint, compare=single)
    with pytest.raises(InputError, match="has 5 frames"):
        explore([film], tmp_path / "two.html", checkpoint=checkpoint, frame=5)
    assert not (tmp_path / "two.html").exists()
