"""Class scores against a plain numpy oracle that upsamples every tile whole, counts tiles by pixel, flips arrays."""

import math
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from calls import class_scores, segment
from torch import nn

from ccnet_cli.errors import EnvironmentFailure, NonFiniteError
from ccnet_cli.inference import views as inference
from ccnet_cli.models.network import Normalisation

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).parents[2]
# landscape, portrait, smaller than the tile in one side or both, one pixel wide or high, square
SHAPES = [(40, 70), (70, 40), (20, 70), (70, 20), (17, 23), (33, 1), (1, 33), (1, 1), (24, 24)]
TILE = (24, 30)


class Pointwise(nn.Module):
    """Scores of a pixel from that pixel alone, at full resolution: any tiling must give the same."""

    align_corners = True

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(5, 3, 1, 1, generator=generator))

    def forward(self, x):
        return F.conv2d(x, self.weight)


class Strided(nn.Module):
    """A network of stride 4 that knows left from right and top from bottom, and is not linear."""

    normalisation = Normalisation("rgb", (110.0, 115.0, 120.0), (50.0, 60.0, 70.0))

    def __init__(self, align_corners=True):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.align_corners = align_corners
        self.weight = nn.Parameter(torch.randn(6, 3, 5, 5, generator=generator))
        self.mix = nn.Parameter(torch.randn(4, 6, 1, 1, generator=generator))

    def forward(self, x):
        return F.conv2d(F.conv2d(x, self.weight, stride=4, padding=2).relu(), self.mix)


def photo(height, width, seed=0):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def snapshot(height, width):
    """A uint8 BGR image of noise, the worst case for places between pixels."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def normalised(image_bgr, normalisation):
    """An RGB picture (3, H, W) float64 of a uint8 BGR image."""
    return ((image_bgr[:, :, ::-1].astype(np.float64) - normalisation.mean) / normalisation.std).transpose(2, 0, 1)


def strided(model, picture_CHW):
    """What Strided computes, output by output: (4, ceil(H / 4), ceil(W / 4)) float64."""
    weight, mix = (parameter.detach().double().numpy() for parameter in (model.weight, model.mix[:, :, 0, 0]))
    _, height, width = picture_CHW.shape
    padded = np.pad(picture_CHW, ((0, 0), (2, 2), (2, 2)))
    out = np.empty((4, math.ceil(height / 4), math.ceil(width / 4)))
    for i, j in product(range(out.shape[1]), range(out.shape[2])):
        hidden = (weight * padded[:, 4 * i : 4 * i + 5, 4 * j : 4 * j + 5]).sum((1, 2, 3))
        out[:, i, j] = mix @ np.maximum(hidden, 0)
    return out


def resize(array_KHW, height, width, align_corners):
    """Bilinear: along each axis a pixel weighs 1 - its distance from the output's place, and nothing beyond 1."""
    for axis, pixels in ((1, height), (2, width)):
        size = array_KHW.shape[axis]
        if align_corners:
            # the first and last pixels' centres coincide
            places = np.linspace(0, size - 1, pixels)
        else:
            # the pictures' borders coincide; what lies beyond the outermost centres takes their value
            places = np.clip((np.arange(pixels) + 0.5) / pixels * size - 0.5, 0, size - 1)
        weights = np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0)
        array_KHW = np.moveaxis(np.tensordot(weights, array_KHW, (1, axis)), 0, axis)
    return array_KHW


def begins(length, side):
    """Where tiles of two thirds' stride begin; the last one is pulled back to the border."""
    found, at = [], 0
    while at + side < length:
        found.append(at)
        at += math.ceil(side * 2 / 3)
    return [*found, max(length - side, 0)]


# the steps that official code got wrong, or that are easily got wrong
STEPS = {
    "begins": begins,
    "resize": resize,
    "resize_back": resize,
    "unflip": lambda scores: scores[:, :, ::-1],
    "average": lambda total, count: total / count,
}


def oracle(model, picture_CHW, mode, tile, scales, flip, **wrong):
    """The averaged scores, the plain way: (K, H, W) float64; `wrong` takes the place of steps of the same name."""
    step = SimpleNamespace(**(STEPS | wrong))
    _, height, width = picture_CHW.shape
    views = []
    for scale in scales:
        size = max(1, round(scale * height)), max(1, round(scale * width))
        scaled = step.resize(picture_CHW, *size, model.align_corners)
        for mirrored in [False, True] if flip else [False]:
            view = scaled[:, :, ::-1] if mirrored else scaled
            scores = strided(model, view) if mode == "whole" else slide(model, view, tile, step)
            scores = step.resize_back(scores, height, width, model.align_corners)
            views.append(step.unflip(scores) if mirrored else scores)
    return sum(views) / len(views)


def slide(model, picture_CHW, tile, step):
    """Scores of a picture from its tiles, at its own size; a tile that is larger than the picture sees zeros there."""
    _, height, width = picture_CHW.shape
    total, count = np.zeros((4, height, width)), np.zeros((height, width))
    for y, x in product(step.begins(height, tile[0]), step.begins(width, tile[1])):
        part = picture_CHW[:, y : y + tile[0], x : x + tile[1]]
        _, h, w = part.shape
        seen = np.pad(part, ((0, 0), (0, tile[0] - h), (0, tile[1] - w)))
        total[:, y : y + h, x : x + w] += step.resize(strided(model, seen), *tile, model.align_corners)[:, :h, :w]
        count[y : y + h, x : x + w] += 1
    assert count.min() >= 1
    return step.average(total, count)


def agree(scores_KHW, expected_KHW):
    """Equal to 1e-5 of the scores' spread; float32 places of bilinear samples are good to a few 1e-6 of a pixel."""
    np.testing.assert_allclose(scores_KHW, expected_KHW, rtol=0, atol=1e-5 * np.ptp(expected_KHW))


VIEWS = {
    "one": {"scales": (1.0,), "flip": False},
    "flip": {"scales": (1.0,), "flip": True},
    "scales": {"scales": (0.75, 1.0, 1.25), "flip": False},
    "scales and flip": {"scales": (0.5, 1.0, 1.75), "flip": True},
}


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("mode", ["whole", "sliding"])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_labels_match_the_oracle(shape, mode, views, align_corners):
    model, image = Strided(align_corners), snapshot(*shape)
    settings = {"mode": mode, "tile": TILE, **VIEWS[views]}
    expected = oracle(model, normalised(image, model.normalisation), **settings)
    scores = class_scores(model, inference.to_input(image, model.normalisation, CPU), **settings)
    assert scores.dtype == torch.float32
    agree(scores.numpy(), expected)
    second, first = np.sort(expected, axis=0)[-2:]
    # by more than both may be off
    decided = first - second > 2e-5 * np.ptp(expected)
    assert decided.mean() > 0.99
    labels = segment(model, image, CPU, **settings)
    np.testing.assert_array_equal(labels[decided], expected.argmax(0)[decided])


def in_the_corner(scores_KHW, height, width, _):
    """Scores of another size as they are, cut off or followed by nothing."""
    out = np.zeros((len(scores_KHW), height, width))
    part = scores_KHW[:, :height, :width]
    out[:, : part.shape[1], : part.shape[2]] = part
    return out


DEFECTS = {
    "flip undone on height": {"unflip": lambda scores: scores[:, ::-1]},
    "flip not undone": {"unflip": lambda scores: scores},
    "scales not resized back": {"resize_back": in_the_corner},
    "overlaps added up": {"average": lambda total, count: total},
    "last tile hangs over the border": {"begins": lambda length, side: range(0, length, math.ceil(side * 2 / 3))},
    "no overlap": {"begins": lambda length, side: [*range(0, length - side, side), max(length - side, 0)]},
    "the other align_corners": {"resize": lambda array, height, width, align: resize(array, height, width, not align)},
    "the other align_corners on the way back": {
        "resize_back": lambda array, height, width, align: resize(array, height, width, not align)
    },
}


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_would_be_noticed(defect, align_corners):
    model = Strided(align_corners)
    picture = normalised(snapshot(40, 70), model.normalisation)
    settings = {"mode": "sliding", "tile": TILE, **VIEWS["scales and flip"]}
    scores = class_scores(model, torch.from_numpy(picture).float()[None], **settings).numpy()
    agree(scores, oracle(model, picture, **settings))
    bad = oracle(model, picture, **settings, **DEFECTS[defect])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        agree(scores, bad)
    # and not by a hair
    assert np.abs(scores - bad).max() > 1e-2 * np.ptp(scores)


def test_the_oracle_resizes_as_its_definition_says():
    ramp = np.arange(4.0)[None, None] * np.array([1.0, 10.0])[:, None, None]
    np.testing.assert_allclose(resize(ramp, 1, 7, True)[:, 0], [np.arange(7) / 2, np.arange(7) * 5])
    np.testing.assert_allclose(resize(ramp, 1, 8, False)[0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    np.testing.assert_allclose(resize(ramp, 1, 2, False)[0, 0], [0.5, 2.5])
    np.testing.assert_allclose(resize(ramp, 3, 1, True)[1, :, 0], [0, 0, 0])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(129, 257, 1024, 2048), (97, 97, 769, 769), (5, 300, 2, 301), (1, 1, 9, 7)])
def test_upsampling_in_blocks_equals_interpolate_on_the_full_map(size, align_corners):
    h, w, height, width = size
    logits = torch.randn(2, h, w, generator=torch.Generator().manual_seed(3))
    scores = inference.upsample(logits, (height, width), align_corners).dense()
    expected = F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=align_corners)[0]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("overlap", [(1, 1), (2, 3), (1, 2)], ids=["0", "third", "half"])
@pytest.mark.parametrize("length", [1, 5, 23, 24, 25, 55, 1024, 2048])
def test_every_pixel_is_covered_and_no_tile_leaves_the_picture(length, overlap):
    tile = 769 if length > 1000 else 24
    step = max(1, tile * overlap[0] // overlap[1])
    begins = inference.tile_starts(length, tile, step)
    counts = np.zeros(length, int)
    for begin in begins:
        counts[begin : begin + tile] += 1
    assert counts.min() >= 1
    assert begins == sorted(set(begins))
    assert begins[-1] + tile == max(length, tile)
    axis = inference.Axis(length, length, tile, step)
    total = torch.zeros(length)
    for begin in begins:
        taps = inference.tile_taps(axis, begin, 7, True)
        total[taps.start : taps.start + len(taps)] += taps.weights.sum(0)
    # a constant stays constant
    torch.testing.assert_close(total, torch.ones(length))


def test_the_official_tiles_of_a_cityscapes_image():
    assert inference.tile_stride(769) == 513
    assert inference.tile_starts(1024, 769, 513) == [0, 255]
    assert inference.tile_starts(2048, 769, 513) == [0, 513, 1026, 1279]
    assert [inference.tile_stride(n) for n in (1, 2, 3, 9)] == [1, 2, 2, 6]


@pytest.mark.parametrize("shape", [*SHAPES, (23, 29), (25, 31), (55, 67)])
def test_sliding_equals_whole_for_a_pointwise_network(shape):
    model, image = Pointwise(), photo(*shape)
    expected = F.conv2d(image, model.weight.detach())[0]
    for mode, flip in product(("whole", "sliding"), (False, True)):
        scores = class_scores(model, image, mode=mode, tile=TILE, flip=flip)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.5, 0.6, 1.25, 2.0])
@pytest.mark.parametrize("shape", [(15, 27), (3, 40), (1, 1)])
def test_scaled_tiles_of_a_constant_picture_are_constant(shape, scale):
    image = torch.ones(1, 3, *shape)
    model = Pointwise()
    expected = model.weight.detach().sum(1).view(-1, 1, 1).expand(5, *shape)
    for tile in ((1, 1), (7, 11), TILE):
        scores = class_scores(model, image, mode="sliding", tile=tile, scales=(scale,), flip=True)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="slidng"):
        inference.Views("slidng")


class Failing(Pointwise):
    """Runs out of memory at the given calls."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.calls = at, error, 0

    def forward(self, x):
        self.calls += 1
        if self.calls - 1 in self.at:
            raise self.error
        return super().forward(x)


OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("at", [0, 2, 5])
def test_memory_that_runs_out_once_changes_nothing(at, error):
    image = photo(40, 70)
    expected = class_scores(Pointwise(), image, mode="sliding", tile=TILE)
    scores = class_scores(Failing({at}, error), image, mode="sliding", tile=TILE)
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize(("mode", "advice"), [("whole", "sliding"), ("sliding", "smaller tiles")])
def test_memory_that_stays_short_is_told_in_one_line(mode, advice, error):
    with pytest.raises(EnvironmentFailure, match=advice):
        class_scores(Failing(range(100), error), photo(40, 70), mode=mode, tile=TILE)


def test_other_errors_are_not_tried_again():
    model = Failing(range(100), RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        class_scores(model, photo(4, 4))
    assert model.calls == 1


def test_views_that_do_not_fit_together_are_seen_one_by_one():
    """The network takes one tile at a time only; what it answers is what it always does."""

    class Narrow(Pointwise):
        def forward(self, x):
            if len(x) > 1:
                raise MemoryError
            return super().forward(x)

    image = photo(40, 70)
    expected = class_scores(Pointwise(), image, mode="sliding", tile=TILE, batch=4)
    assert torch.equal(class_scores(Narrow(), image, mode="sliding", tile=TILE, batch=4), expected)


def test_label_map_is_the_argmax():
    scores = photo(150, 9)[0]
    labels = inference.upsample(scores, (150, 9), True).predict()
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, scores.numpy().argmax(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(value):
    scores = torch.zeros(3, 100, 4)
    scores[1, 99, 2] = value
    with pytest.raises(NonFiniteError, match="not finite"):
        inference.upsample(scores, (100, 4), True).predict()


def test_input_is_normalised_in_the_order_of_the_channels():
    class Normalisation:
        channel_order, mean, std = "rgb", (1.0, 2.0, 3.0), (2.0, 4.0, 8.0)

    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    tensor = inference.to_input(image, Normalisation, "cpu")
    assert tensor.shape == (1, 3, 2, 3)
    blue, green, red = image[1, 2].astype(float)
    assert tensor[0, :, 1, 2].tolist() == [(red - 1) / 2, (green - 2) / 4, (blue - 3) / 8]


def test_autocast_is_for_the_network_alone():
    model, image = Pointwise(), photo(30, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = class_scores(model, image, mode="sliding", tile=(7, 9))
        expected = model(image).float()[0]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux gives it")
def test_memory_of_a_cityscapes_image_is_bounded():
    # scores of 19 x 1024 x 2048 are 152 MiB, and those of scale 1.5 over twice that: neither is ever there
    code = """
import torch
from torch import nn
from ccnet_cli.inference import views as inference

class Stub(nn.Module):
    align_corners = True
    def forward(self, x):
        return x[:, :1, ::8, ::8].repeat(1, 19, 1, 1)

def peak():
    # ru_maxrss would begin with the size of the process that started this one
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

model, image, cpu, Views = Stub(), torch.randn(1, 3, 1024, 2048), torch.device("cpu"), inference.Views
inference.batch_scores(model, image[:, :, :64, :64], Views("sliding", (32, 32), (1.0, 1.5), True), cpu)[0].dense()
before = peak()
for mode in ("sliding", "whole"):
    (scores,) = inference.batch_scores(model, image, Views(mode, (769, 769), (1.0, 1.5), True), cpu)
    scores.predict()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert 50 < float(done.stdout) < 300


def enlarged(picture_1CHW, size, align_corners):
    return F.interpolate(picture_1CHW, size=size, mode="bilinear", align_corners=align_corners)


# sizes worked out by hand: the larger of what fits, 50 x 28.6, is 29 rows, and 30 rows scaled to 52.5 are 53 columns
@pytest.mark.parametrize(
    ("shape", "fit", "scale", "size"),
    [
        ((40, 70), (50, 30), 1.0, (29, 50)),
        ((40, 70), (90, 30), 1.0, (30, 53)),
        ((70, 40), (90, 30), 0.5, (26, 15)),
        ((17, 23), (90, 31), 1.25, (39, 52)),
        ((33, 1), (66, 9), 1.0, (66, 2)),
        ((40, 70), (70, 40), 1.0, (40, 70)),
    ],
)
@pytest.mark.parametrize("align_corners", [True, False])
def test_a_picture_made_to_fit_is_scored_at_its_own_size(shape, fit, scale, size, align_corners):
    model, image = Strided(align_corners), photo(*shape)
    fitted = enlarged(image, size, align_corners)
    with torch.no_grad():
        expected = enlarged(model(fitted), shape, align_corners)[0]
    scores = class_scores(model, image, scales=(scale,), fit=fit)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    # averaging tiles and then resizing back are two steps here, and one there
    tiled = class_scores(model, fitted, mode="sliding", tile=TILE)[None]
    scores = class_scores(model, image, mode="sliding", tile=TILE, scales=(scale,), fit=fit)
    torch.testing.assert_close(scores, enlarged(tiled, shape, align_corners)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_classes_that_a_mirror_exchanges_are_exchanged_back(mode):
    model, image = Strided(), photo(40, 70)
    plain = class_scores(model, image, mode=mode, tile=TILE)
    flipped = class_scores(model, image.flip(3), mode=mode, tile=TILE).flip(2)
    scores = class_scores(model, image, mode=mode, tile=TILE, flip=True, mirrored=((0, 3), (1, 2)))
    torch.testing.assert_close(scores, (plain + flipped[[3, 2, 1, 0]]) / 2, atol=1e-4, rtol=1e-4)
    assert (scores - (plain + flipped) / 2).abs().max() > 0.1
    # what is not mirrored is left as it is
    assert torch.equal(class_scores(model, image, mode=mode, tile=TILE, mirrored=((0, 3),)), plain)
