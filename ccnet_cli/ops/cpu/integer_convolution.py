"""3x3 convolutions of 8-bit integers by minimal filtering; nothing of Numba loads before the first use.

Stride 1, as much padding as dilation. `integers` explains the method.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.ops.cpu.convolution import PANEL, WORD, Tiles, address, supports, workspace
from ccnet_cli.ops.cpu.threads import run_threads
from ccnet_cli.ops.layout import pixels

# B batch, H height, W width, C input channels, K output channels, P the points of a tile

# with fewer input or output channels more time goes to tiles than the products leave
MIN_CHANNELS = 64
# output tiles that a thread computes at once: few, so that threads end together
MAX_TILES = 42
# floats that a thread quantises at once
BLOCK = 1 << 16


@dataclass(frozen=True)
class IntegerFilters:
    """Filters (K, C, 3, 3) as the kernels read them: integers, their scales, the inputs' factors, the first sums."""

    widths: tuple[int, ...]
    packed: Tensor
    scales: Tensor
    factors: Tensor
    starts: Tensor


@dataclass(frozen=True)
class Input:
    """A map (B, C, H, W) of uint8 with channels innermost; zero is the integer that stands for 0."""

    data_BCHW: Tensor
    zero: int


@dataclass(frozen=True)
class Finish:
    """What becomes of sums: times unit, plus bias_K and, where `add` says so, what is in out already.

    Into bytes: the latter counts times factor, no result is less than low, and what is behind the point is left out.
    Into floats: negative results are multiplied by factor.
    """

    bias_K: Tensor
    out_BKHW: Tensor
    add: bool
    factor: float
    low: float = 0.0
    unit: float = 1.0


def is_faster(widths: Sequence[int], outputs: int) -> bool:
    """Whether the kernels run on this processor, and gain time for these numbers of channels."""
    capable: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fits = all(supports(width, outputs) and width >= MIN_CHANNELS for width in widths)
    return bool(capable.get("avx512_vnni") and capable.get("avx512_bw")) and fits and outputs >= MIN_CHANNELS


def transform_filters(
    weight_KCYX: Tensor, widths: Sequence[int], steps: Sequence[float], zeros: Sequence[int]
) -> IntegerFilters:
    """Filters for inputs of these widths, whose integers are `steps` apart, and stand for 0 at `zeros`."""
    from ccnet_cli.ops.cpu import integers

    K, C = weight_KCYX.shape[:2]
    step_C = torch.cat([torch.full((width,), step) for width, step in zip(widths, steps, strict=True)])
    zero_C = torch.cat([torch.full((width,), zero) for width, zero in zip(widths, zeros, strict=True)])
    # what no point exceeds: two integers less two others, or four less four zeros
    highest_CP = torch.full((C, integers.POINTS), 2 * 255)
    highest_CP[:, integers.SUM] = 4 * torch.maximum(zero_C, 255 - zero_C)
    unit = 1 << 15 - integers.SHIFT
    factors_CP = (unit * 127 / highest_CP).round_()
    matrix = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    weight_KCP = weight_KCYX.flatten(2).float() @ torch.kron(matrix, matrix).T
    weight_KCP *= unit * step_C[:, None] / factors_CP
    scales_KP = weight_KCP.abs().amax(dim=1).clamp_(min=1e-30) / 127
    whole_KCP = (weight_KCP / scales_KP[:, None]).round_().to(torch.int8)
    starts_KP = -integers.MIDDLE * whole_KCP.sum(dim=1, dtype=torch.int32)
    packed = whole_KCP.view(K // PANEL, PANEL, C // 4, 4, integers.POINTS).permute(0, 4, 2, 1, 3).contiguous()
    scales, starts = (each.view(K // PANEL, PANEL, -1).transpose(1, 2).contiguous() for each in (scales_KP, starts_KP))
    return IntegerFilters(tuple(widths), packed, scales, factors_CP.T.to(torch.int16).contiguous(), starts)


def quantise(x: Tensor, factor: float, zero: float) -> Tensor | None:
    """Floats, in whatever order they lie, times factor plus zero as bytes; None where the kernels are not in use yet.

    What is behind the point is left out.
    """
    if "ccnet_cli.ops.cpu.integers" not in sys.modules or x.dtype != torch.float32 or x.numel() % PANEL:
        return None
    from ccnet_cli.ops.cpu import integers

    out, plan = torch.empty_like(x, dtype=torch.uint8), np.zeros(1, integers.ROUNDING)
    fields = {"source": x.data_ptr(), "target": out.data_ptr(), "count": x.numel(), "block": BLOCK}
    for name, value in (fields | {"factor": factor, "zero": zero}).items():
        plan[name] = value
    run_threads(integers.round_floats.address, plan.ctypes.data, min(torch.get_num_threads(), -(-x.numel() // BLOCK)))
    return out


def convolve(inputs: Sequence[Input], filters: IntegerFilters, dilation: int, finish: Finish) -> None:
    """Write the convolution of all inputs' concatenation to finish.out, (B, K, H, W), channels innermost."""
    from ccnet_cli.ops.cpu import integers

    out = pixels(finish.out_BKHW)
    if out.data_ptr() != finish.out_BKHW.data_ptr():
        raise ValueError("out must have its channels innermost in memory")
    B, H, W, K = out.shape
    C, threads = sum(filters.widths), torch.get_num_threads()
    tiles = Tiles(H, W, dilation, integers.OUT)
    count = B * tiles.per_image
    # equally many groups for each thread, of whole tiles of products
    groups = -(-max(count // MAX_TILES, 1) // threads) * threads
    group = -(-count // (groups * integers.ROWS)) * integers.ROWS
    count_groups = -(-count // group)
    maps = [pixels(each.data_BCHW) for each in inputs]
    outside = [torch.full((x.shape[-1],), each.zero, dtype=torch.uint8) for x, each in zip(maps, inputs, strict=True)]
    sources = np.array(
        [
            (*address("x", x).values(), x.shape[-1], pad.data_ptr(), 4 * each.zero)
            for x, pad, each in zip(maps, outside, inputs, strict=True)
        ],
        np.int64,
    )
    size = -(-integers.scratch_size(group, C, K) // 64) * 64
    threads = min(threads, count_groups)
    scratch = workspace("scratch")(threads * size // WORD)
    tensors = {"filters": filters.packed, "factors": filters.factors, "starts": filters.starts}
    tensors |= {"scales": filters.scales * finish.unit, "bias": finish.bias_K, "scratch": scratch}
    fields = tiles.fields | {name: tensor.data_ptr() for name, tensor in tensors.items()} | address("out", out)
    fields |= {"inputs": C, "outputs": K, "sources": sources.ctypes.data, "number": len(sources)}
    fields |= {"last": count, "group": group, "count": count_groups, "scratch_whole": size, "add": int(finish.add)}
    fields |= integers.addresses(out.dtype == torch.uint8)
    plan = np.zeros(1, integers.PLAN)
    for name, value in (fields | {"factor": finish.factor, "low": finish.low}).items():
        plan[name] = value
    run_threads(integers.work.address, plan.ctypes.data, threads)
