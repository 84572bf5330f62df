"""Which kernels an operator launches, with which tiles and on which buffers: plain arithmetic, no GPU, no numba."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from ccnet_cli.errors import InputError

SIDE = 8  # rows and columns of a product that a thread holds
DEPTH = 8  # steps of the summed axis in shared memory at once
VECTOR = 4  # elements of one aligned access
ENTRIES = (8, 48)  # of a cross in one thread of a softmax; more only where the first do not suffice
THREADS = 256  # per block, but 1024 where a cross needs them
# a product on tensor cores (tensor.py), by words of 32 bits
WORDS = 16  # steps of the summed axis in shared memory at once: 16 numbers in TF32, 32 in bfloat16
CHANNELS = 32  # per warp
PARTS = 7  # at most, of 8 pixels each, per warp; 8 would not fit into 128 registers
BANDS = 2  # warps down a tile
MAX_INDEX = 2**31 - 1  # in the kernels, whose indices are int32
MAX_BLOCKS = 65535  # along the second and third axis of a launch


@dataclass(frozen=True)
class Kernel:
    """One kernel to compile.

    sizes: threads across and down a tile; for a softmax threads of a group, entries per thread, and pixels; on tensor
    cores warps across and down a tile, and parts of 8 pixels per warp. copies: how a fused kernel brings numbers to
    shared memory, through registers (plain) or by themselves (async).
    """

    form: str
    dtype: str
    sizes: tuple[int, ...]
    aligned: bool
    lanes: int
    copies: str = "plain"

    @property
    def name(self) -> str:
        """The form, its tile or group, and the type that it stores."""
        if self.form == "tensor":
            across, down, parts = self.sizes
            sizes: tuple[int, ...] = (CHANNELS * across, SIDE * parts * down)
        else:
            sizes = self.sizes if "softmax" in self.form else tuple(SIDE * size for size in self.sizes)
        rest = ("" if self.aligned else "-unaligned") + ("" if self.copies == "plain" else f"-{self.copies}")
        return f"{self.form}-{'x'.join(map(str, sizes))}-{self.dtype}{rest}"

    @property
    def entry(self) -> str:
        """The compiled function's name, by which profiles tell kernels apart."""
        return "ccnet_" + self.name.replace("-", "_")

    @property
    def threads(self) -> int:
        """Threads per block; each one of a product fetches at least one vector or holds a part."""
        if "softmax" in self.form:
            return self.sizes[0] * self.sizes[2]
        if self.form == "tensor":
            return 32 * self.sizes[0] * self.sizes[1]
        if self.form.startswith("fused"):
            return 32 * self.sizes[1]
        across, down = self.sizes
        # a tile has SIDE * size pixels or channels, and SIDE steps
        most = max(across * down, *(SIDE * size * DEPTH // VECTOR for size in self.sizes))
        return -(-most // self.lanes) * self.lanes


@dataclass(frozen=True)
class Step:
    """One launch: arguments are names of buffers, then numbers."""

    kernel: Kernel
    grid: tuple[int, int, int]
    arguments: tuple[str | int, ...]


@dataclass(frozen=True)
class Buffer:
    """A tensor with unit channel stride whose pixel p, image by image and row by row, starts at p * stride."""

    name: str
    stride: int
    aligned: bool = True


class Arm(NamedTuple):
    """Lines along an axis: pixels of a line, pixels from one to the next, offset in the energies, lines per image."""

    length: int
    stride: int
    offset: int
    lines: int


@dataclass(frozen=True)
class Grid:
    """Sizes that the kernels of one operator share. arm: the offset of the row in a pixel's energies.

    Of a clip, an image has `frames`, whose arm begins at 0, and the column begins at `column`.
    largest and lanes are smaller than a GPU's only where threads are simulated one by one. tensor: gather on tensor
    cores, in TF32 or bfloat16; nothing chooses it before a GPU has confirmed it. copies: as for a kernel.
    """

    images: int
    height: int
    width: int
    arm: int
    dtype: str = "float32"
    largest: int = 16
    lanes: int = 32
    tensor: bool = False
    frames: int = 0
    column: int = 0
    copies: str = "plain"

    @property
    def image(self) -> int:
        """Pixels of an image, all its frames."""
        return max(self.frames, 1) * self.height * self.width

    @property
    def pixels(self) -> int:
        """Pixels of all images."""
        return self.images * self.image

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, in the order in which they are launched: rows, columns, and lines through the frames."""
        H, W, frames = self.height, self.width, max(self.frames, 1)
        arms = Arm(W, 1, self.arm, frames * H), Arm(H, W, self.column, frames * W), Arm(frames, H * W, 0, H * W)
        return arms if self.frames else arms[:2]


def pad_length(length: int) -> int:
    """An arm's length in a padded buffer of energies: whole 32-byte sectors."""
    return -(-length // 8) * 8


def check(grid: Grid, *strides: int) -> None:
    """InputError if an element of a buffer has an index that the kernels cannot hold, or there are too many lines."""
    if grid.pixels * max(strides) > MAX_INDEX or max(grid.images, *(arm.lines for arm in grid.arms)) > MAX_BLOCKS:
        clip = f"{grid.frames}x" if grid.frames else ""
        raise InputError(
            f"{grid.images} maps of {clip}{grid.height}x{grid.width}",
            "too large for the numba kernels, whose indices have 32 bits",
            "use fewer images at once, or another implementation",
        )


def tile_size(length: int, largest: int) -> int:
    """Threads along a tile so that equal tiles cover length with the least waste; of equal ones, the largest tile."""
    least = min(4, largest)
    return min(range(largest, least - 1, -1), key=lambda n: -(-length // (SIDE * n)) * n)


def products(form: str, grid: Grid, left: Buffer, right: Buffer, out: Buffer, channels: int, mask: bool) -> list[Step]:
    """Arm by arm, rows first; two in one launch if both need the same tiles and write to different addresses."""
    check(grid, left.stride, right.stride, out.stride)
    aligned = left.aligned and right.aligned and out.aligned

    def sizes(arm: Arm) -> tuple[int, int]:
        down = tile_size(arm.length, grid.largest)
        return (down if form == "nt" else tile_size(channels, grid.largest)), down

    steps = []
    for (across, down), same in groupby(grid.arms, sizes):
        alike = list(same)
        many = 2 if form == "nt" and sum(arm.lines for arm in alike[:2]) <= MAX_BLOCKS else 1
        for arms in (alike[start : start + many] for start in range(0, len(alike), many)):
            tiles = max(
                -(-arm.length // (SIDE * down)) * -(-(arm.length if form == "nt" else channels) // (SIDE * across))
                for arm in arms
            )
            kernel = Kernel(form, grid.dtype, (across, down), aligned, grid.lanes)
            steps.append(_launch(kernel, tiles, grid, (left, right, out), channels, arms, mask or form != "nt"))
    return steps


def _launch(
    kernel: Kernel, tiles: int, grid: Grid, buffers: Sequence[Buffer], channels: int, arms: Sequence[Arm], flag: bool
) -> Step:
    """A product along the lines of one arm or of two; flag is for all arms but the rows."""
    rows, *_ = grid.arms
    ends = [number for arm in arms for number in (arm.length, arm.stride, arm.offset, int(flag and arm != rows))]
    numbers: tuple[int, ...] = (arms[0].lines, *ends, *[0] * (8 - len(ends)), grid.image, channels)
    names, strides = [x.name for x in buffers], [x.stride for x in buffers]
    return Step(kernel, (tiles, sum(arm.lines for arm in arms), grid.images), (*names, *strides, *numbers))


def gathering(grid: Grid, left: Buffer, right: Buffer, out: Buffer, channels: int) -> list[Step]:
    """The form nn, on tensor cores if the grid asks for them."""
    if not grid.tensor:
        return products("nn", grid, left, right, out, channels, mask=False)
    if grid.dtype == "float16":
        why = "they take float32 as TF32, and bfloat16"
        raise InputError("numba kernels on tensor cores for float16", why, "use another type, or not tensor cores")
    check(grid, left.stride, right.stride, out.stride)
    across = min(4, -(-channels // CHANNELS), grid.largest)
    steps = []
    for arm in grid.arms:
        # so that a thread fetches two vectors of each operand at most
        parts = tile_size(-(-arm.length // BANDS), min(PARTS, 2 * across, grid.largest))
        sizes = (across, BANDS, parts)
        kernel = Kernel("tensor", grid.dtype, sizes, left.aligned and right.aligned and out.aligned, grid.lanes)
        tiles = -(-arm.length // (SIDE * BANDS * parts)) * -(-channels // (CHANNELS * across))
        steps.append(_launch(kernel, tiles, grid, (left, right, out), channels, [arm], True))
    return steps


def softmaxes(form: str, grid: Grid, names: tuple[str, ...], stride: int) -> Step:
    """The softmax over every pixel's cross, or its backward."""
    group = grid.lanes
    while group * ENTRIES[0] < stride and group < 1024:
        group *= 2
    keep = next(entries for entries in ENTRIES if group * entries >= stride)
    pixels = max(grid.lanes * 8 // group, 1)
    kernel = Kernel(form, "float32", (group, keep, pixels), True, grid.lanes)
    ends = [end for arm in grid.arms for end in (arm.offset, arm.offset + arm.length)]
    numbers = (stride, *ends, *[0] * (6 - len(ends)), grid.pixels)
    return Step(kernel, (-(-grid.pixels // pixels), 1, 1), (*names, *numbers))


def forward(grid: Grid, c: int, C: int, *buffers: Buffer) -> list[Step]:
    """One pass with c channels of query and key, C of value.

    The buffers are query, key and value, energy, which ends as the attention, and out.
    """
    query, key, value, energy, out = buffers
    return [
        *products("nt", replace(grid, dtype="float32"), query, key, energy, c, mask=True),
        softmaxes("softmax", grid, (energy.name,), energy.stride),
        *gathering(grid, energy, value, out, C),
    ]


def backward(grid: Grid, c: int, C: int, *buffers: Buffer) -> list[Step]:
    """Gradients of query, key and value.

    The buffers are query, key, value, attention, grad, pull, d_query, d_key and d_value; pull, laid out like the
    attention, ends as the gradient of the energies.
    """
    query, key, value, attention, grad, pull, d_query, d_key, d_value = buffers
    full = replace(grid, dtype="float32")
    return [
        *products("nt", grid, grad, value, pull, C, mask=False),
        softmaxes("softmax_backward", grid, (pull.name, attention.name), pull.stride),
        *products("tn", grid, attention, grad, d_value, C, mask=False),
        *products("nn", full, pull, key, d_query, c, mask=False),
        *products("tn", full, pull, query, d_key, c, mask=False),
    ]
