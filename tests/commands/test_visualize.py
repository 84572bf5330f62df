"""Attention maps of a small random network, from the checkpoint to the figure, the arrays and the page."""

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from attentive import CLASSES, saved
from calls import explore, visualize
from torch import nn

from ccnet_cli import config
from ccnet_cli.cli.visualize import inches_of
from ccnet_cli.commands import visualize as figures
from ccnet_cli.commands.visualize import MAX_POINTS
from ccnet_cli.errors import InputError, NonFiniteError
from ccnet_cli.figures import viewer
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.inference.attention import fractions_of, locate
from ccnet_cli.inference.views import to_input
from ccnet_cli.media import images
from ccnet_cli.models.heads import HEADS
from ccnet_cli.models.network import build
from ccnet_cli.parts import Part, Section
from ccnet_cli.runs import checkpoint as checkpoints

POINTS = [(0, 0), (37, 20), (63, 39)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("run"))


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    path = tmp_path / "photograph.png"
    images.write_image(path, cv2.resize(noise, (64, 40), interpolation=cv2.INTER_CUBIC))
    return path


def test_the_maps_of_a_checkpoint_are_drawn_and_written(checkpoint, photograph, tmp_path, capfd):
    output, arrays = tmp_path / "out" / "attention.png", tmp_path / "out" / "maps.npz"
    summary = visualize(photograph, POINTS, output, checkpoint, maps=arrays)
    assert capfd.readouterr() == ("", "")
    with np.load(arrays) as npz:
        assert set(npz) == {"r1", "r2", "points", "image_size"}
        assert npz["points"].tolist() == [list(point) for point in POINTS] and npz["image_size"].tolist() == [40, 64]
        r1, r2 = npz["r1"], npz["r2"]
    assert r1.dtype == r2.dtype == np.float64 and r1.shape == r2.shape == (3, 5, 8)

    restored = load_model(checkpoint)
    image = to_input(images.read_image(photograph), restored.network.normalisation, "cpu")
    with torch.no_grad():
        scores, passes = restored.network.attend(image)
    predicted = scores[0].argmax(0).numpy()
    for index, point in enumerate(summary.points):
        x, y = point.cell
        assert point.cell == [(0, 0), (4, 2), (7, 4)][index] and point.point == POINTS[index]
        own = predicted == predicted[y, x]
        assert point.name == CLASSES.names[predicted[y, x]]
        on_cross = np.zeros((5, 8), bool)
        on_cross[y] = on_cross[:, x] = True
        assert (r1[index][~on_cross] == 0).all() and (r1[index][on_cross] > 0).all() and (r2[index] > 0).all()
        # the first pass read straight from the module: its column without the pixel, its row with it
        column, row = passes[0][0, :5, y, x].numpy(), passes[0][0, 5:, y, x].numpy()
        np.testing.assert_allclose(np.delete(r1[index][:, x], y), np.delete(column, y), rtol=1e-6)
        np.testing.assert_allclose(r1[index][y], row, rtol=1e-6)
        for map, part in zip((r1[index], r2[index]), point.fractions, strict=True):
            assert abs(map.sum() - 1) < 1e-5 and abs(part.on_cross + part.off_cross - 1) < 1e-5
            assert part.own_class == pytest.approx(map[own].sum(), abs=1e-6)
            assert part.off_cross == pytest.approx(map[~on_cross].sum(), abs=1e-6)
        assert point.fractions[0].off_cross == 0 and point.fractions[1].off_cross > 0.1

    mapping = summary.to_mapping()
    assert mapping["recurrence"] == 2 and mapping["gamma"] == 0.5 and mapping["grid"] == [5, 8]
    assert mapping["points"][1]["class"] in CLASSES.names and mapping["points"][1]["point"] == [37, 20]
    assert set(mapping["points"][0]["r2"]) == {"own_class", "on_cross", "off_cross"}
    picture = images.read_image(output)
    assert picture.shape[0] > 3 * 375 and picture.shape[1] > 3 * 600


@pytest.mark.parametrize("recurrence", [1, 3])
def test_there_is_a_map_for_each_pass(recurrence, photograph, tmp_path, capfd):
    path = saved(tmp_path, recurrence)
    visualize(photograph, [(9, 9)], tmp_path / "a.png", path, maps=tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as npz:
        assert {name for name in npz if name.startswith("r")} == {f"r{r}" for r in range(1, recurrence + 1)}
    told = capfd.readouterr().err
    assert ("only its R=1 map" in told) == (recurrence == 1) and told.count("\n") == (recurrence == 1)


def test_an_attention_that_is_not_used_is_told(photograph, tmp_path, capfd):
    visualize(photograph, [(9, 9)], tmp_path / "a.png", saved(tmp_path, gamma=-2e-4))
    told = capfd.readouterr().err
    assert "-2.0e-04" in told and told.startswith("ccnet: ") and told.count("\n") == 1


@pytest.mark.parametrize(("gamma", "announced"), [(0.0, True), (9e-4, True), (2e-3, False), (-0.5, False)])
def test_attention_of_little_weight_of_either_sign_is_announced(gamma, announced, photograph, tmp_path, capfd):
    summary = visualize(photograph, [(9, 9)], tmp_path / "a.png", saved(tmp_path, gamma=gamma))
    assert summary.gamma == pytest.approx(gamma) and summary.to_mapping()["gamma"] is not None
    assert ("hardly used" in capfd.readouterr().err) == announced


def test_without_an_image_the_sample_is_drawn(checkpoint, photograph, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(figures, "sample_image", lambda: photograph)
    summary = visualize(None, [(9, 9)], tmp_path / "a.png", checkpoint)
    assert summary.image == str(photograph) and "sample image" in capfd.readouterr().err


def test_what_cannot_be_drawn_is_refused_in_one_line(checkpoint, photograph, tmp_path):
    taken = tmp_path / "taken.png"
    taken.write_bytes(b"precious")
    new = tmp_path / "new.png"
    cases = {
        "outside the image of 64x40": (photograph, [(1, 1), (64, 0)], new),
        "outside the image": (photograph, [(0, -1)], new),
        "x must lie in 0 to 63, y in 0 to 39": (photograph, [(0, 40)], new),
        "0 given": (photograph, [], new),
        f"{MAX_POINTS + 1} given": (photograph, [(0, 0)] * (MAX_POINTS + 1), new),
        "exists": (photograph, [(0, 0)], taken),
        "end in .png": (photograph, [(0, 0)], tmp_path / "new.jpg"),
        "is read by this command": (photograph, [(0, 0)], photograph),
        "does not exist": (tmp_path / "absent.png", [(0, 0)], new),
    }
    for words, (image, points, output) in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            visualize(image, points, output, checkpoint, overwrite=output == photograph)
        assert "\n" not in str(caught.value)
    for clip in (0, -1, 101, float("nan")):
        with pytest.raises(InputError, match="percentile"):
            visualize(photograph, [(0, 0)], new, checkpoint, clip=clip)
    with pytest.raises(InputError, match=r"end in \.npz"):
        visualize(photograph, [(0, 0)], new, checkpoint, maps=tmp_path / "maps.npy")
    with pytest.raises(InputError, match="no attention"):
        visualize(photograph, [(0, 0)], new, saved(tmp_path / "r0", recurrence=0))
    with pytest.raises(NonFiniteError):
        visualize(photograph, [(0, 0)], new, saved(tmp_path / "nan", poison=True))
    assert not new.exists() and taken.read_bytes() == b"precious"


def test_a_second_model_is_drawn_beside_the_first(checkpoint, photograph, tmp_path, capfd):
    single = saved(tmp_path / "single", recurrence=1)
    summary = visualize(photograph, POINTS, tmp_path / "both.png", single, compare=checkpoint)
    assert "one pass" in capfd.readouterr().err
    alone = visualize(photograph, POINTS, tmp_path / "alone.png", checkpoint)
    assert summary.recurrence == 1 and summary.compared.points == alone.points
    assert summary.compared.checkpoint == str(checkpoint) and summary.to_mapping()["compared"]["recurrence"] == 2
    assert alone.to_mapping()["compared"] is None
    both, one = (images.read_image(tmp_path / name) for name in ("both.png", "alone.png"))
    # a map more, and a line more for the models' names
    assert both.shape[1] > one.shape[1] * 1.25 and one.shape[0] < both.shape[0] < one.shape[0] + 60
    with pytest.raises(InputError, match="no attention"):
        visualize(photograph, POINTS, tmp_path / "new.png", checkpoint, compare=saved(tmp_path / "r0", recurrence=0))
    assert not (tmp_path / "new.png").exists()


def test_files_are_replaced_when_asked(checkpoint, photograph, tmp_path):
    old = tmp_path / "old.png"
    old.write_bytes(b"old")
    visualize(photograph, [(0, 0)], old, checkpoint, overwrite=True)
    assert images.read_image(old).ndim == 3


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("H", "W", "h", "w"), [(769, 769, 97, 97), (40, 64, 5, 8), (1024, 2048, 129, 257), (1, 9, 1, 2)]
)
def test_a_pixel_s_cell_and_class_follow_the_enlarged_scores(H, W, h, w, align_corners):
    scores = torch.randn(4, h, w, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(scores[None], (H, W), mode="bilinear", align_corners=align_corners)[0]
    for x, y in [(0, 0), (W - 1, H - 1), (W // 3, H // 2), (W // 2 + 3, H // 5)]:
        (column, row), own = locate(scores, (x, y), (H, W), align_corners)
        assert own == large[:, y, x].argmax()
        for cell, pixel, cells, pixels in ((column, x, w, W), (row, y, h, H)):
            exact = pixel * (cells - 1) / max(pixels - 1, 1) if align_corners else (pixel + 0.5) * cells / pixels - 0.5
            assert abs(cell - exact) <= 0.5 + 1e-4


def test_shares_add_what_lies_where():
    map_hw = np.array([[0.1, 0.2, 0.0], [0.3, 0.0, 0.4]])
    own = np.array([[True, False, True], [False, False, True]])
    part = fractions_of(map_hw, (0, 1), own)
    assert (part.own_class, part.on_cross, part.off_cross) == pytest.approx((0.5, 0.8, 0.2))


class StrangersHead(nn.Module):
    """A classifier whose `attend` says that every cell looks evenly along its cross, and nothing more."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.classify = nn.Conv2d(inputs, classes, 1)

    def forward(self, features):
        return self.classify(features[-1])

    def attend(self, features):
        B, _, h, w = features[-1].shape
        # a pixel stands on both arms of its cross: it counts in the row
        own = torch.arange(h)[:, None, None] == torch.arange(h)[:, None]
        weights = torch.cat([(~own).expand(h, h, w), torch.ones(w, h, w, dtype=torch.bool)]).double()
        return self.forward(features), [(weights / (h + w - 1)).expand(B, h + w, h, w)]


def save_with_head(folder, kind):
    """A random tiny network's checkpoint with another head."""
    preset = config.load("toyscapes-r2", [f"model.head.kind={kind}", "model.auxiliary=null", "model.backbone.width=8"])
    torch.manual_seed(0)
    state = {
        "format": checkpoints.FORMAT,
        "model": build(preset.model, len(CLASSES)).state_dict(),
        "preset": config.to_mapping(preset),
        "classes": CLASSES.to_mapping(),
        "step": 1,
        "metrics": {},
    }
    return checkpoints.save(folder, 1, state, keep=2)


def test_a_head_without_attention_is_refused_by_name(photograph, tmp_path):
    path = save_with_head(tmp_path, "fcn")
    words = "the head fcn has no attention to draw; use a checkpoint with another"
    with pytest.raises(InputError, match=words):
        visualize(photograph, [(9, 9)], tmp_path / "new.png", path)
    with pytest.raises(InputError, match=words):
        explore([photograph], tmp_path / "new.html", checkpoint=path)
    assert not list(tmp_path.glob("new.*"))


class EvenSettings(Section):
    kind: Literal["even"] = "even"


@pytest.fixture
def even(tmp_path, monkeypatch):
    """A checkpoint with the stranger's head."""
    part = Part(EvenSettings, lambda settings, channels, classes: StrangersHead(channels[-1], classes))
    monkeypatch.setitem(HEADS, "even", part)
    return save_with_head(tmp_path, "even")


def test_a_strangers_head_is_asked_for_attend_and_no_more(even, photograph, tmp_path, monkeypatch, capfd):
    summary = visualize(photograph, [(37, 20)], tmp_path / "a.png", even)
    (fractions,) = summary.points[0].fractions
    assert (summary.recurrence, summary.gamma) == (1, None)
    assert fractions.on_cross == pytest.approx(1) and fractions.off_cross == 0
    # the page holds the weights, as there are no queries and keys
    explore([photograph], tmp_path / "a.html", [(37, 20)], even)
    assert "weights of each pass" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert capfd.readouterr().err == ""
    # a head may attend in another way than along the cross
    monkeypatch.setattr(StrangersHead, "attend", lambda self, features: (self(features), [torch.ones(1, 40, 5, 8)]))
    with pytest.raises(InputError, match="head even is not over each cell's row and column"):
        visualize(photograph, [(37, 20)], tmp_path / "b.png", even)


def test_a_page_of_many_cells_needs_queries_and_keys(even, photograph, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "CELLS", 39)
    with pytest.raises(InputError, match="image of 64x40 pixels: a page holds the weights of at most 39 cells"):
        explore([photograph], tmp_path / "a.html", checkpoint=even)


def test_the_arrays_and_the_summary_are_the_first_model_s_with_a_second_one_too(checkpoint, photograph, tmp_path):
    second = saved(tmp_path / "second", strength=9.0)
    summary = visualize(photograph, POINTS, tmp_path / "a.png", checkpoint, maps=tmp_path / "a.npz", compare=second)
    visualize(photograph, POINTS, tmp_path / "b.png", checkpoint, maps=tmp_path / "b.npz")
    visualize(photograph, POINTS, tmp_path / "c.png", second, maps=tmp_path / "c.npz")
    with np.load(tmp_path / "a.npz") as both, np.load(tmp_path / "b.npz") as one, np.load(tmp_path / "c.npz") as other:
        assert (both["r2"] == one["r2"]).all() and not np.allclose(other["r2"], one["r2"])
        assert (both["compared_r1"] == other["r1"]).all() and (both["compared_r2"] == other["r2"]).all()
        assert "compared_r1" not in one
    assert (summary.checkpoint, summary.compared.checkpoint) == (str(checkpoint), str(second))
    assert summary.compared.compared is None


def test_a_figure_for_print_is_what_its_name_says(checkpoint, photograph, tmp_path):
    for suffix, begins in (("pdf", b"%PDF-"), ("SVG", b"<?xml"), ("png", b"\x89PNG")):
        output = tmp_path / f"a.{suffix}"
        visualize(photograph, POINTS[:1], output, checkpoint, width=3.3, one_scale=True)
        assert output.read_bytes().startswith(begins)
    assert images.read_image(tmp_path / "a.png").shape[1] == 990
    for option, words in (({"width": 0.5}, "not a width of a figure"), ({"dpi": 5}, "not a resolution of a figure")):
        with pytest.raises(InputError, match=words):
            visualize(photograph, POINTS[:1], tmp_path / "b.pdf", checkpoint, **option)
    assert not (tmp_path / "b.pdf").exists()


@pytest.mark.parametrize(("text", "inches"), [("3.3in", 3.3), ("3.3", 3.3), ("84mm", 84 / 25.4), ("240pt", 10 / 3)])
def test_widths_have_units(text, inches):
    assert inches_of(text) == pytest.approx(inches)
    with pytest.raises(InputError, match="not a length"):
        inches_of(text + "x")
