"""Attention maps of a small random network, from the checkpoint to the figure and the arrays."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ccnet_cli import checkpoint as checkpoints
from ccnet_cli import config, images, loading
from ccnet_cli.datasets import Classes
from ccnet_cli.errors import InputError, NonFiniteError
from ccnet_cli.inference import to_input
from ccnet_cli.model import build
from ccnet_cli.visualize import (
    MOST_POINTS,
    Point,
    Share,
    clip_limit,
    enlarged,
    figure,
    locate,
    marked,
    overlay,
    share,
    visualize,
)

CLASSES = Classes(("road", "sky", "Tür"), ((128, 64, 128), (70, 130, 180), (1, 2, 3)), (7, 23, 9))
POINTS = [(0, 0), (37, 20), (63, 39)]


def saved(folder: Path, recurrence: int = 2, gamma: float = 0.5, poison: bool = False, **model: object) -> Path:
    """A checkpoint of a random tiny network with clearly uneven attention."""
    preset = config.load("toyscapes-r2", [f"model.recurrence={recurrence}", "model.width=8", "model.channels=16"])
    preset = preset.model_copy(update={"model": preset.model.model_copy(update=model)})
    torch.manual_seed(0)
    network = build(preset.model, len(CLASSES))
    if recurrence:
        network.head.rcca.attention.gamma.data.fill_(gamma)
        network.head.rcca.attention.query_conv.weight.data.mul_(3.0)
        if poison:
            for conv in (network.head.rcca.attention.query_conv, network.head.rcca.attention.key_conv):
                conv.weight.data.mul_(1e30)
    state = {
        "format": checkpoints.FORMAT,
        "model": network.state_dict(),
        "preset": config.to_mapping(preset),
        "classes": CLASSES.to_mapping(),
        "step": 1,
        "metrics": {},
    }
    return checkpoints.save(folder, 1, state, keep=2)


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

    restored = loading.restore(checkpoint)
    image = to_input(images.read_image(photograph), restored.model.normalisation, "cpu")
    with torch.no_grad():
        scores, passes = restored.model.attend(image)
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
        for map, part in zip((r1[index], r2[index]), point.shares, strict=True):
            assert abs(map.sum() - 1) < 1e-5 and abs(part.on_cross + part.off_cross - 1) < 1e-5
            assert part.own_class == pytest.approx(map[own].sum(), abs=1e-6)
            assert part.off_cross == pytest.approx(map[~on_cross].sum(), abs=1e-6)
        assert point.shares[0].off_cross == 0 and point.shares[1].off_cross > 0.1

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


def test_without_an_image_the_sample_is_drawn(checkpoint, photograph, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(checkpoints, "sample_image", lambda: photograph)
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
        f"{MOST_POINTS + 1} given": (photograph, [(0, 0)] * (MOST_POINTS + 1), new),
        "exists": (photograph, [(0, 0)], taken),
        "end in .png": (photograph, [(0, 0)], tmp_path / "new.jpg"),
        "is the image itself": (photograph, [(0, 0)], photograph),
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
    part = share(map_hw, (0, 1), own)
    assert (part.own_class, part.on_cross, part.off_cross) == pytest.approx((0.5, 0.8, 0.2))


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


def test_a_map_is_enlarged_with_its_corners_in_the_corners():
    map_hw = np.array([[0.0, 2.0], [1.0, 0.5]], np.float32)
    large = enlarged(map_hw, (5, 9), align_corners=True)
    assert large.shape == (5, 9) and large[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 1, 1, 0.5]
    assert large[0, 4] == 0.5 and large.min() >= 0 and large.max() <= 1


def test_the_point_is_marked_where_it_is():
    panel = np.zeros((50, 80, 3), np.uint8)
    drawn = marked(panel, (60, 10), lines=True)
    assert not panel.any()
    assert (drawn[10, :40] > 0).all() and (drawn[30:, 60] > 0).all() and not drawn[30:, :50].any()
    rows, columns = marked(panel, (60, 10)).any(-1).nonzero()
    assert abs(rows.mean() - 10) < 1 and abs(columns.mean() - 60) < 1


@pytest.mark.parametrize("size", [(360, 480), (480, 360), (1, 500), (500, 1), (1, 1), (33, 2000)])
def test_figures_of_any_shape_have_a_row_for_each_point_and_a_panel_for_each_map(size):
    H, W = size
    image = np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8)
    h, w = -(-H // 8), -(-W // 8)
    map_hw = np.full((h, w), 1 / (h * w), np.float32)
    one = Point((W - 1, H - 1), (w - 1, h - 1), "Tür", (Share(1, 0.5, 0.5),) * 2)
    single = figure(image, [one], [[map_hw, map_hw]])
    double = figure(image, [one, one], [[map_hw, map_hw]] * 2)
    narrow = figure(image, [Point(one.point, one.cell, one.name, one.shares[:1])], [[map_hw]])
    assert single.dtype == np.uint8 and single.shape[2] == 3
    assert double.shape[1] == single.shape[1] and double.shape[0] > single.shape[0]
    assert narrow.shape[1] < single.shape[1] and narrow.shape[0] == single.shape[0]


def test_a_photograph_keeps_its_colours_and_the_maps_do_not():
    folder = Path(__file__).parents[2] / "shared" / "data" / "camvid" / "val"
    if not folder.is_dir():
        pytest.skip("CamVid is not here")
    image = images.read_image(min(folder.glob("*.jpg")))
    map_hw = np.zeros((46, 61), np.float32)
    map_hw[20], map_hw[:, 30] = 0.01, 0.01
    picture = figure(image, [Point((240, 160), (30, 20), "car", (Share(1, 1, 0),))], [[map_hw]])
    top, left = 46, 28
    expected = cv2.resize(image, (533, 400), interpolation=cv2.INTER_CUBIC)
    assert (picture[top : top + 100, left : left + 200] == expected[:100, :200]).all()
    right = picture[top : top + 100, left + 533 + 18 : left + 533 + 18 + 200].astype(int)
    # dimmed and grey away from the cross
    assert (right.max(-1) == right.min(-1)).all() and right.mean() < 0.6 * expected[:100, :200].mean()
