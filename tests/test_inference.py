"""Class scores against a plain numpy oracle that upsamples every tile whole, counts pixel by pixel and flips arrays."""

import math
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ccnet_cli import inference
from ccnet_cli.errors import EnvironmentFailure, NonFiniteError

REPOSITORY = Path(__file__).parent.parent
SHAPES = [(40, 70), (70, 40), (17, 23), (33, 1), (1, 33), (1, 1), (24, 24)]
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
    """A network of stride 4 that knows left from right and top from bottom."""

    def __init__(self, align_corners=True):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.align_corners = align_corners
        self.weight = nn.Parameter(torch.randn(4, 3, 5, 5, generator=generator))

    def forward(self, x):
        return F.conv2d(x, self.weight, stride=4, padding=2)


def photo(height, width, seed=0):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def bilinear(array_KHW, height, width, align_corners):
    """Bilinear resampling of (K, h, w) in float64, one pixel at a time."""
    _, h, w = array_KHW.shape

    def place(i, size, pixels):
        if align_corners:
            at = i * (size - 1) / (pixels - 1) if pixels > 1 else 0.0
        else:
            at = max((i + 0.5) * size / pixels - 0.5, 0.0)
        low = min(int(at), size - 1)
        return low, min(low + 1, size - 1), at - low

    out = np.empty((len(array_KHW), height, width))
    for y, x in product(range(height), range(width)):
        a, b, down = place(y, h, height)
        c, d, across = place(x, w, width)
        upper = (1 - across) * array_KHW[:, a, c] + across * array_KHW[:, a, d]
        lower = (1 - across) * array_KHW[:, b, c] + across * array_KHW[:, b, d]
        out[:, y, x] = (1 - down) * upper + down * lower
    return out


def oracle(model, image, mode, tile, scales, flip, fit=None, pairs=()):
    """The averaged scores, the plain way: (K, H, W) float64."""
    height, width = image.shape[-2:]
    pixels = image[0].numpy().astype(np.float64)
    total = 0
    for scale in scales:
        h, w = max(1, round(scale * height)), max(1, round(scale * width))
        if fit is not None:
            factor = scale * min(fit[0] / max(height, width), fit[1] / min(height, width))
            h, w = (max(1, math.floor(side * factor + 0.5)) for side in (height, width))
        picture = bilinear(pixels, h, w, model.align_corners)
        views = [picture, picture[:, :, ::-1]] if flip else [picture]
        for number, view in enumerate(views):
            scores = slide(model, view, tile) if mode == "sliding" else run(model, view)
            scores = bilinear(scores, height, width, model.align_corners)
            for one, other in pairs if number else ():
                scores[[one, other]] = scores[[other, one]]
            total = total + (scores[:, :, ::-1] if number else scores)
    return total / (len(scales) * (1 + flip))


def run(model, array):
    with torch.no_grad():
        return model(torch.from_numpy(array.copy()).float()[None])[0].numpy().astype(np.float64)


def slide(model, picture, tile):
    _, h, w = picture.shape
    th, tw = tile
    total, count = 0, np.zeros((h, w))

    def begins(length, side):
        step, at, found = math.ceil(side * 2 / 3), 0, []
        while at + side < length:
            found.append(at)
            at += step
        return [*found, max(length - side, 0)]

    for y, x in product(begins(h, th), begins(w, tw)):
        part = picture[:, y : y + th, x : x + tw]
        padded = np.pad(part, ((0, 0), (0, th - part.shape[1]), (0, tw - part.shape[2])))
        scores = bilinear(run(model, padded), th, tw, model.align_corners)[:, : part.shape[1], : part.shape[2]]
        if isinstance(total, int):
            total = np.zeros((len(scores), h, w))
        total[:, y : y + th, x : x + tw] += scores
        count[y : y + th, x : x + tw] += 1
    assert count.min() >= 1
    return total / count


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("mode", ["whole", "sliding"])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_match_the_oracle(shape, mode, align_corners):
    model = Strided(align_corners)
    image = photo(*shape)
    for scales, flip in (((1.0,), False), ((0.75, 1.0, 1.5), True)):
        scores = inference.class_scores(model, image, mode, TILE, scales, flip)
        assert scores.shape == (4, *shape)
        assert scores.dtype == torch.float32
        expected = oracle(model, image, mode, TILE, scales, flip)
        # float32 places of bilinear samples are good to a few 1e-6 of a pixel
        np.testing.assert_allclose(scores.numpy(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("mode", ["whole", "sliding"])
@pytest.mark.parametrize("shape", [(40, 70), (17, 23), (33, 1)])
def test_a_picture_made_to_fit_is_scored_at_its_own_size(shape, mode, align_corners):
    model = Strided(align_corners)
    image = photo(*shape)
    for fit, scales, flip in (((50, 30), (1.0,), False), ((90, 31), (0.5, 1.25), True)):
        scores = inference.class_scores(model, image, mode, TILE, scales, flip, fit)
        assert scores.shape == (4, *shape)
        expected = oracle(model, image, mode, TILE, scales, flip, fit)
        np.testing.assert_allclose(scores.numpy(), expected, atol=3e-4, rtol=0)
    if shape == (40, 70):
        assert np.abs(expected - oracle(model, image, mode, TILE, scales, flip)).max() > 0.1


def test_a_picture_that_fits_already_is_left_as_it_is():
    image = photo(30, 50)
    assert torch.equal(inference.class_scores(Strided(), image, fit=(50, 40)), inference.class_scores(Strided(), image))


@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_classes_that_a_mirror_exchanges_are_exchanged_back(mode):
    model, image, pairs = Strided(), photo(40, 70), ((0, 3), (1, 2))
    scores = inference.class_scores(model, image, mode, TILE, (1.0, 0.75), True, mirrored=pairs)
    expected = oracle(model, image, mode, TILE, (1.0, 0.75), True, pairs=pairs)
    np.testing.assert_allclose(scores.numpy(), expected, atol=2e-4, rtol=0)
    assert np.abs(expected - oracle(model, image, mode, TILE, (1.0, 0.75), True)).max() > 0.1
    plain = inference.class_scores(model, image, mode, TILE, mirrored=pairs)
    assert torch.equal(plain, inference.class_scores(model, image, mode, TILE))


def test_the_oracle_tells_the_official_defects_apart():
    model, image = Strided(), photo(24, 30)
    good = oracle(model, image, "whole", TILE, (1.0,), True)
    mirrored = run(model, image[0].numpy()[:, :, ::-1])
    plain = bilinear(run(model, image[0].numpy()), 24, 30, True)
    on_height = (plain + bilinear(mirrored, 24, 30, True)[:, ::-1]) / 2
    assert np.abs(on_height - good).max() > 0.1
    one = oracle(model, photo(40, 70), "sliding", TILE, (1.0,), False)
    assert np.abs(one - oracle(model, photo(40, 70), "whole", TILE, (1.0,), False)).max() > 0.1


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(129, 257, 1024, 2048), (97, 97, 769, 769), (5, 300, 2, 301), (1, 1, 9, 7)])
def test_upsampling_in_blocks_equals_interpolate_on_the_full_map(size, align_corners):
    h, w, height, width = size
    logits = torch.randn(2, h, w, generator=torch.Generator().manual_seed(3))
    scores = torch.zeros(2, height, width)
    rows = inference.interpolation(height, h, align_corners)
    columns = inference.interpolation(width, w, align_corners)
    inference.add(scores, logits, rows, columns, 0, 0)
    expected = F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=align_corners)[0]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("overlap", [(1, 1), (2, 3), (1, 2)], ids=["0", "third", "half"])
@pytest.mark.parametrize("length", [1, 5, 23, 24, 25, 55, 1024, 2048])
def test_every_pixel_is_covered_and_no_tile_leaves_the_picture(length, overlap):
    tile = 769 if length > 1000 else 24
    step = max(1, tile * overlap[0] // overlap[1])
    begins = inference.starts(length, tile, step)
    counts = np.zeros(length, int)
    for begin in begins:
        counts[begin : begin + tile] += 1
    assert counts.min() >= 1
    assert begins == sorted(set(begins))
    assert begins[-1] + tile == max(length, tile)
    axis = inference.sliding(length, length, tile, step)
    total = torch.zeros(length)
    for begin in begins:
        first, matrix = axis.placement(begin, 7, True)
        total[first : first + len(matrix)] += matrix.sum(1)
    # a constant stays constant
    torch.testing.assert_close(total, torch.ones(length))


def test_the_official_tiles_of_a_cityscapes_image():
    assert inference.stride(769) == 513
    assert inference.starts(1024, 769, 513) == [0, 255]
    assert inference.starts(2048, 769, 513) == [0, 513, 1026, 1279]
    assert [inference.stride(n) for n in (1, 2, 3, 9)] == [1, 2, 2, 6]


@pytest.mark.parametrize("shape", [*SHAPES, (23, 29), (25, 31), (55, 67)])
def test_sliding_equals_whole_for_a_pointwise_network(shape):
    model, image = Pointwise(), photo(*shape)
    expected = F.conv2d(image, model.weight.detach())[0]
    for mode, flip in product(("whole", "sliding"), (False, True)):
        scores = inference.class_scores(model, image, mode, TILE, (1.0,), flip)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.5, 0.6, 1.25, 2.0])
@pytest.mark.parametrize("shape", [(15, 27), (3, 40), (1, 1)])
def test_scaled_tiles_of_a_constant_picture_are_constant(shape, scale):
    image = torch.ones(1, 3, *shape)
    model = Pointwise()
    expected = model.weight.detach().sum(1).view(-1, 1, 1).expand(5, *shape)
    for tile in ((1, 1), (7, 11), TILE):
        scores = inference.class_scores(model, image, "sliding", tile, (scale,), True)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="slidng"):
        inference.class_scores(Pointwise(), photo(4, 4), "slidng")


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
    expected = inference.class_scores(Pointwise(), image, "sliding", TILE)
    scores = inference.class_scores(Failing({at}, error), image, "sliding", TILE)
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize(("mode", "advice"), [("whole", "sliding"), ("sliding", "smaller tiles")])
def test_memory_that_stays_short_is_told_in_one_line(mode, advice, error):
    with pytest.raises(EnvironmentFailure, match=advice):
        inference.class_scores(Failing(range(100), error), photo(40, 70), mode, TILE)


def test_other_errors_are_not_tried_again():
    model = Failing(range(100), RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        inference.class_scores(model, photo(4, 4))
    assert model.calls == 1


def test_label_map_is_the_argmax():
    scores = photo(150, 9)[0]
    labels = inference.label_map(scores)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, scores.numpy().argmax(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(value):
    scores = torch.zeros(3, 100, 4)
    scores[1, 99, 2] = value
    with pytest.raises(NonFiniteError, match="not finite"):
        inference.label_map(scores)


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
        scores = inference.class_scores(model, image, "sliding", (7, 9))
        expected = model(image).float()[0]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux gives it")
def test_memory_of_a_cityscapes_image_is_bounded():
    # one accumulator of 19 x 1024 x 2048 is 152 MiB; an upsampled copy would be as much again, scale 1.5 over twice
    code = """
import torch
from torch import nn
from ccnet_cli import inference

class Stub(nn.Module):
    align_corners = True
    def forward(self, x):
        return x[:, :1, ::8, ::8].repeat(1, 19, 1, 1)

def peak():
    # ru_maxrss would begin with the size of the process that started this one
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

model, image = Stub(), torch.randn(1, 3, 1024, 2048)
inference.class_scores(model, image[:, :, :64, :64], "sliding", (32, 32), (1.0, 1.5), True)
before = peak()
inference.label_map(inference.class_scores(model, image, "sliding", (769, 769), (1.0, 1.5), True))
inference.label_map(inference.class_scores(model, image, "whole", (769, 769), (1.0, 1.5), True))
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert 100 < float(done.stdout) < 400
