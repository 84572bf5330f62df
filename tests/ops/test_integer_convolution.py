"""Integer convolutions by minimal filtering: the same numbers by plain arithmetic, and near those of a direct sum."""

import pytest
import torch
from tensors import by_threads
from torch import Tensor
from torch.nn import functional as F

from ccnet_cli.ops.cpu import integer_convolution as kernels
from ccnet_cli.ops.cpu.integer_convolution import Finish, Input

pytestmark = pytest.mark.skipif(not kernels.is_faster([64], 64), reason="no such products on this processor")

INPUTS = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]).double()
FILTERS = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
OUTPUTS = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]]).double()

# widths of the inputs and where their zeros lie, outputs, H, W, dilation: grids of unequal sizes, more than one block
CASES = [
    ([64], [0], 64, 9, 12, 1),
    ([32], [40], 32, 1, 1, 1),
    ([64, 96], [0, 30], 64, 13, 7, 4),
    ([96, 992], [255, 17], 32, 5, 11, 2),
    ([1056], [3], 64, 6, 9, 1),
]


def make(widths: list[int], outputs: int, H: int, W: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Maps of integers, filters and bias."""
    torch.manual_seed(sum(widths))
    maps = [torch.randint(0, 256, (2, width, H, W), dtype=torch.uint8) for width in widths]
    maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    return maps, torch.randn(outputs, sum(widths), 3, 3) / 30, torch.randn(outputs)


def filtered(x: Tensor, zero: int, weight: Tensor, step: float, scales_KP: Tensor, dilation: int) -> Tensor:
    """By the definition, tile by tile of one grid after the other, in float64 where all integers are exact."""
    out = torch.zeros(len(x), len(weight), *x.shape[2:], dtype=torch.float64)
    factor = torch.full((4, 4), 255.0).double()
    factor[1, 1] = (1024 * 127 / (4 * max(zero, 255 - zero)) + 0.5) // 1
    transformed = (FILTERS @ weight @ FILTERS.T) * (1024 * step / factor).float()
    whole = (transformed.double() / scales_KP.unflatten(1, (4, 4))[:, None]).round()
    for top in range(dilation):
        for left in range(dilation):
            own = x[:, :, top::dilation, left::dilation].double() - zero
            h, w = own.shape[2:]
            if not h * w:
                continue
            tiles = F.pad(own, (1, 1 + w % 2, 1, 1 + h % 2)).unfold(2, 4, 2).unfold(3, 4, 2)
            points = INPUTS @ tiles @ INPUTS.T
            small = ((points * 32 * factor + (1 << 14)) / (1 << 15)).floor().clamp(-128, 127)
            sums = torch.einsum("bcyxij,kcij->bkyxij", small, whole)
            ready = OUTPUTS @ (sums * scales_KP.unflatten(1, (4, 4))[None, :, None, None]) @ OUTPUTS.T
            grid = ready.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
            out[:, :, top::dilation, left::dilation] = grid[:, :, :h, :w]
    return out


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_into_floats_they_are_what_the_method_defines_and_near_the_direct_sum(case, add):
    widths, zeros, K, H, W, dilation = case
    maps, weight, bias = make(widths, K, H, W)
    steps = [0.02 * (1 + index) for index in range(len(widths))]
    filters = kernels.transform_filters(weight, widths, steps, zeros)
    before = torch.randn(2, K, H, W).contiguous(memory_format=torch.channels_last)
    out = before.clone(memory_format=torch.preserve_format)
    inputs = [Input(x, zero) for x, zero in zip(maps, zeros, strict=True)]
    kernels.convolve(inputs, filters, dilation, Finish(bias, out, add, 0.25))
    scales_KP = filters.scales.transpose(1, 2).flatten(0, 1).double()
    parts = zip(maps, zeros, weight.split(widths, dim=1), steps, strict=True)
    total = sum(filtered(x, zero, own, step, scales_KP, dilation) for x, zero, own, step in parts)
    rest = bias.double()[:, None, None] + (before if add else 0)
    expected = F.leaky_relu(total + rest, 0.25)
    # a transformed filter half-way between two integers may go to either
    assert float((out - expected).norm() / expected.norm()) < 2e-3
    real = torch.cat([(x.double() - z) * s for x, z, s in zip(maps, zeros, steps, strict=True)], dim=1)
    direct = F.conv2d(real, weight.double(), padding=dilation, dilation=dilation)
    assert float((total - direct).norm() / direct.norm()) < 0.03
    assert float((out - F.leaky_relu(direct + rest, 0.25)).norm() / direct.norm()) < 0.03


@pytest.mark.parametrize("add", [False, True])
def test_into_bytes_they_are_those_into_floats_rounded(add):
    maps, weight, bias = make([64], 96, 9, 13)
    filters = kernels.transform_filters(weight, [64], [0.02], [7])
    floats = torch.zeros(2, 96, 9, 13).contiguous(memory_format=torch.channels_last)
    kernels.convolve([Input(maps[0], 7)], filters, 2, Finish(bias, floats, False, 1.0))
    before = torch.randint(0, 256, floats.shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    expected = floats.double() / 0.02 + (0.5 * before.double() if add else 0)
    for low in (0.0, 60.0):
        out = before.clone(memory_format=torch.preserve_format)
        kernels.convolve([Input(maps[0], 7)], filters, 2, Finish(bias / 0.02 + 0.5, out, add, 0.5, low + 0.5, 50.0))
        error = (out - expected.clamp(low, 255)).abs()
        assert error.max() < 0.501 and len(out.unique()) > 50


def test_sums_of_any_size_fit_and_threads_change_nothing(monkeypatch):
    widest = torch.full((1, 1024, 40, 40), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    filters = kernels.transform_filters(torch.ones(64, 1024, 3, 3), [1024], [1.0], [0])

    def convolve() -> list[Tensor]:
        out = torch.empty(1, 64, 40, 40).contiguous(memory_format=torch.channels_last)
        kernels.convolve([Input(widest, 0)], filters, 1, Finish(torch.zeros(64), out, False, 1.0))
        return [out]

    results = list(by_threads(convolve, monkeypatch))
    expected = F.conv2d(widest.double(), torch.ones(1, 1024, 3, 3).double(), padding=1)
    for (out,) in results:
        assert float((out / expected - 1).abs().max()) < 0.02
        assert torch.equal(out, results[0][0])
