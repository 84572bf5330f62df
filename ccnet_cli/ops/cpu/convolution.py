"""3x3 convolutions and their gradients by Winograd's minimal filtering; nothing of Numba loads before the first use.

Stride 1, as much padding as dilation; input and output channels come in multiples of PANEL. Tensors are float32, or
bfloat16 with filters, sums and the filters' gradient in float32. `winograd` explains the method. Each thread that calls
keeps its scratch memory: allocating it anew each time costs as much as the products.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.ops.cpu.threads import run_threads
from ccnet_cli.ops.layout import pixel_step, pixels

# B batch, H height, W width, C input channels, K output channels, Y and X the taps

# the kernels' start costs more than smaller convolutions, in multiply-adds
MIN_MACS = 1 << 30
# two of the longest vectors
PANEL = 32
# input and output channels whose filters are transformed at once
MAX_BLOCK = 512
# output tiles that a thread computes at once
MAX_TILES = 84
# of the filters' gradient: floats of the transformed output gradient, and input channels of one task
MAX_SPREAD, MAX_INPUTS = 1 << 23, 64
WORD = 4

_memory = threading.local()


@dataclass(frozen=True)
class Filters:
    """Filters (outputs, inputs, 3, 3) as the kernels read them: block(first input, first output) is a block of them."""

    inputs: int
    outputs: int
    block: Callable[[tuple[int, int]], Tensor]


def supports(inputs: int, outputs: int) -> bool:
    """Whether the kernels convolve these numbers of channels."""
    return inputs % PANEL == 0 and outputs % PANEL == 0


# how many numbers each one becomes in a transformed filter, and the weights of a block
FILTER_GROWTH, BLOCK_WEIGHTS = 4, 9 * MAX_BLOCK**2


def transform_filters(weight_KCYX: Tensor) -> Filters:
    """Filters for any number of convolutions; they take four times the weights' memory."""
    K, C = weight_KCYX.shape[:2]
    blocks = {
        (i, o): _transform(weight_KCYX, _span(C, i), _span(K, o), torch.empty)
        for o in range(0, K, MAX_BLOCK)
        for i in range(0, C, MAX_BLOCK)
    }
    return Filters(C, K, blocks.__getitem__)


def lend_filters(weight_KCYX: Tensor) -> Filters:
    """The same, transformed block by block when they are used, each into the memory of the one before."""
    K, C = weight_KCYX.shape[:2]

    def block(first: tuple[int, int]) -> Tensor:
        return _transform(weight_KCYX, _span(C, first[0]), _span(K, first[1]), workspace("filters"))

    return Filters(C, K, block)


def convolve_transformed(
    x_BCHW: Tensor,
    filters: Filters,
    dilation: int,
    bias_K: Tensor | None = None,
    onto_BKHW: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    """(B, C, H, W) -> (B, K, H, W): the convolution and the bias, added to `onto` in place if there is one.

    Negative results are multiplied by slope.
    """
    return _convolve(x_BCHW, filters, dilation, bias_K, onto_BKHW, slope)


def convolve(x_BCHW: Tensor, weight_KCYX: Tensor, bias_K: Tensor | None, dilation: int) -> Tensor:
    """(B, C, H, W) -> (B, K, H, W)."""
    return _convolve(x_BCHW, lend_filters(weight_KCYX), dilation, bias_K)


def input_gradient(grad_BKHW: Tensor, weight_KCYX: Tensor, dilation: int) -> Tensor:
    """(B, K, H, W) -> (B, C, H, W): the convolution with turned filters, from outputs to inputs."""
    K, C = weight_KCYX.shape[:2]

    def block(first: tuple[int, int]) -> Tensor:
        return _transform(weight_KCYX, _span(K, first[0]), _span(C, first[1]), workspace("filters"), flipped=True)

    return _convolve(grad_BKHW, Filters(K, C, block), dilation)


def weight_gradient(x_BCHW: Tensor, grad_BKHW: Tensor, dilation: int) -> Tensor:
    """(K, C, 3, 3), input channels innermost in memory."""
    from ccnet_cli.ops.cpu import winograd

    x, grad = pixels(x_BCHW), pixels(grad_BKHW)
    (B, H, W, C), K = x.shape, grad.shape[-1]
    out = x.new_empty(K, 3, 3, C, dtype=torch.float32)
    tiles = Tiles(H, W, dilation, winograd.OUT)
    count = B * tiles.per_image
    pieces = -(-count * winograd.POINTS * K // MAX_SPREAD)
    most = -(-count // pieces)
    spread = workspace("spread")(winograd.POINTS * most * K)
    # at least one task for every thread
    threads = torch.get_num_threads()
    block = PANEL if MAX_INPUTS * threads > C else MAX_INPUTS
    blocks = -(-C // block)
    part = K if blocks >= threads else max(K * blocks // threads // PANEL, 1) * PANEL
    size = winograd.gradient_scratch(most, min(block, C), part)
    plan = tiles.plan(C, K) | address("x", x) | address("out", grad)
    plan |= {"weight": out.data_ptr(), "weight_step": C * WORD, "spread": spread.data_ptr()}
    plan |= {"block": block, "part": part}
    for piece in range(pieces):
        first, last = (count * edge // pieces for edge in (piece, piece + 1))
        plan |= {"first": first, "last": last, "add": int(piece > 0)}
        _run("spread", last - first, plan, size, grad.element_size())
        _run("gradient", blocks * -(-K // part), plan, size, x.element_size())
    return out.permute(0, 3, 1, 2)


def _convolve(
    x_BCHW: Tensor,
    filters: Filters,
    dilation: int,
    bias_K: Tensor | None = None,
    onto_BKHW: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    """The convolution in blocks of channels."""
    from ccnet_cli.ops.cpu import winograd

    x, C, K = pixels(x_BCHW), filters.inputs, filters.outputs
    B, H, W, _ = x.shape
    starts = range(0, C, MAX_BLOCK)
    # round sums once: bfloat16 cannot hold those of the first blocks
    exact = x.dtype == torch.float32 or len(starts) == 1
    if onto_BKHW is None:
        out = x.new_empty(B, H, W, K, dtype=x.dtype if exact else torch.float32)
    else:
        out = pixels(onto_BKHW) if exact else onto_BKHW.permute(0, 2, 3, 1).float()
        if exact and out.data_ptr() != onto_BKHW.data_ptr():
            raise ValueError("onto must have its channels innermost in memory")
    bias = None if bias_K is None else bias_K.detach().float().contiguous()
    tiles = Tiles(H, W, dilation, winograd.OUT)
    count, threads = B * tiles.per_image, torch.get_num_threads()
    # equally many groups for each thread
    groups = -(-max(count // MAX_TILES, 1) // threads) * threads
    group = -(-count // groups)
    for o in range(0, K, MAX_BLOCK):
        for i in starts:
            (_, inputs), (_, outputs) = _span(C, i), _span(K, o)
            plan = tiles.plan(inputs, outputs) | address("x", x, i) | address("out", out, o)
            plan |= {"filters": filters.block((i, o)).data_ptr(), "first": 0, "last": count, "group": group}
            plan |= {"bias": plan["zeros"] if bias is None or i else bias.data_ptr() + o * WORD}
            plan |= {"add": int(onto_BKHW is not None or i > 0), "slope": slope if i == starts[-1] else 1.0}
            size = winograd.forward_scratch(group, inputs, outputs)
            _run("forward", -(-count // group), plan, size, x.element_size(), out.element_size())
    out_BKHW = out.permute(0, 3, 1, 2)
    if exact:
        return out_BKHW
    return out_BKHW.to(x.dtype) if onto_BKHW is None else onto_BKHW.copy_(out_BKHW)


def _transform(
    weight_KCYX: Tensor,
    inputs: tuple[int, int],
    outputs: tuple[int, int],
    empty: Callable[[int], Tensor],
    flipped: bool = False,
) -> Tensor:
    """The filters of a block; inputs and outputs are each its first channel and how many it has."""
    from ccnet_cli.ops.cpu import simd, winograd

    (_, count), (_, width) = inputs, outputs
    row, column = (inputs, outputs) if flipped else (outputs, inputs)
    weight = weight_KCYX.detach()[row[0] : sum(row), column[0] : sum(column)].permute(0, 2, 3, 1).float()
    # of channels-last float32, nothing is copied
    step = weight.stride(2)
    if weight.stride() != (winograd.TAPS * step, 3 * step, step, 1):
        weight = weight.contiguous()
        step = weight.stride(2)
    out = empty(winograd.POINTS * count * width)
    plan = {"inputs": count, "outputs": width, "filters": out.data_ptr()}
    plan |= {"weight": weight.data_ptr(), "weight_step": step * WORD}
    size = winograd.TAPS * simd.LANES**2 * WORD
    _run("flipped" if flipped else "filters", count if flipped else count // simd.LANES, plan, size)
    return out


def _span(channels: int, first: int) -> tuple[int, int]:
    """The first channel of a block, and how many it has."""
    return first, min(MAX_BLOCK, channels - first)


class Tiles:
    """The output tiles of an image, grid by grid: a dilated convolution is one of each of several interleaved grids."""

    def __init__(self, H: int, W: int, dilation: int, side: int) -> None:
        self.sizes = {"height": H, "width": W, "dilation": dilation}
        span = side * dilation
        self.rows, self.columns = (
            np.array([pixel for grid in range(min(dilation, side)) for pixel in range(grid, side, span)], np.int64)
            for side in (H, W)
        )

    @property
    def per_image(self) -> int:
        """Tiles in one image."""
        return len(self.rows) * len(self.columns)

    def plan(self, inputs: int, outputs: int) -> dict[str, Any]:
        """The fields of a plan that describe them."""
        zeros = workspace("zeros", torch.zeros)(max(inputs, outputs))
        return self.fields | {"inputs": inputs, "outputs": outputs, "zeros": zeros.data_ptr()}

    @property
    def fields(self) -> dict[str, int]:
        """Those that describe the tiles alone."""
        addresses = {"rows": self.rows.ctypes.data, "columns": self.columns.ctypes.data}
        return self.sizes | addresses | {"down": len(self.rows), "across": len(self.columns)}


def address(name: str, x_BHWC: Tensor, first: int = 0) -> dict[str, int]:
    """The fields of a plan that say where a channel of the first pixel lies, and how far it is to the next pixel."""
    size = x_BHWC.element_size()
    return {name: x_BHWC.data_ptr() + first * size, f"{name}_step": pixel_step(x_BHWC) * size}


def workspace(name: str, make: Callable[[int], Tensor] = torch.empty) -> Callable[[int], Tensor]:
    """A function that returns N floats of this thread's memory of that name, with what was last written there."""

    def empty(count: int) -> Tensor:
        if len(getattr(_memory, name, ())) < count:
            setattr(_memory, name, make(count))
        memory: Tensor = getattr(_memory, name)[:count]
        return memory

    return empty


def _run(task: str, count: int, fields: dict[str, Any], size: int, *elements: int) -> None:
    """Run `count` tasks in all threads, each of which has `size` bytes of its own.

    elements are the bytes of a number in the tensors that are read and in those that are written.
    """
    from ccnet_cli.ops.cpu import winograd

    threads = min(torch.get_num_threads(), count)
    # a cache line's multiple
    size = -(-size // 64) * 64
    scratch = workspace("scratch")(threads * size // WORD)
    plan = np.zeros(1, winograd.PLAN)
    fields = fields | {"task": winograd.TASKS[task], "count": count} | winograd.addresses(*elements)
    for name, value in (fields | {"scratch": scratch.data_ptr(), "scratch_whole": size}).items():
        plan[name] = value
    run_threads(winograd.work.address, plan.ctypes.data, threads)
