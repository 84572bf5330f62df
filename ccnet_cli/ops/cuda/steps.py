"""Which kernels an operator launches, with which tiles and on which buffers: plain arithmetic, no GPU, no numba."""

from dataclasses import dataclass, replace

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
ENTRY = "kernel"  # the compiled function's name
MAX_INDEX = 2**31 - 1  # in the kernels, whose indices are int32


@dataclass(frozen=True)
class Kernel:
    """One kernel to compile.

    sizes: threads across and down a tile; for a softmax threads of a group, entries per thread, and pixels; on tensor
    cores warps across and down a tile, and parts of 8 pixels per warp.
    """

    form: str
    dtype: str
    sizes: tuple[int, ...]
    aligned: bool
    lanes: int

    @property
    def name(self) -> str:
        """The form, its tile or group, and the type that it stores."""
        if self.form == "tensor":
            across, down, parts = self.sizes
            sizes: tuple[int, ...] = (CHANNELS * across, SIDE * parts * down)
        else:
            sizes = self.sizes if "softmax" in self.form else tuple(SIDE * size for size in self.sizes)
        return f"{self.form}-{'x'.join(map(str, sizes))}-{self.dtype}{'' if self.aligned else '-unaligned'}"

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


@dataclass(frozen=True)
class Grid:
    """Sizes that the kernels of one operator share. arm: the offset of the row in a pixel's energies.

    largest and lanes are smaller than a GPU's only where threads are simulated one by one. tensor: gather on tensor
    cores, in TF32 or bfloat16; nothing chooses it before a GPU has confirmed it.
    """

    images: int
    height: int
    width: int
    arm: int
    dtype: str = "float32"
    largest: int = 16
    lanes: int = 32
    tensor: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of all images."""
        return self.images * self.height * self.width


def pad_length(length: int) -> int:
    """An arm's length in a padded buffer of energies: whole 32-byte sectors."""
    return -(-length // 8) * 8


def check(grid: Grid, *strides: int) -> None:
    """InputError if an element of a buffer has an index that the kernels cannot hold."""
    if grid.pixels * max(strides) > MAX_INDEX or grid.images > 65535:
        raise InputError(
            f"{grid.images} maps of {grid.height}x{grid.width}",
            "too large for the numba kernels, whose indices have 32 bits",
            "use fewer images at once, or another implementation",
        )


def tile_size(length: int, largest: int) -> int:
    """Threads along a tile so that equal tiles cover length with the least waste; of equal ones, the largest tile."""
    least = min(4, largest)
    return min(range(largest, least - 1, -1), key=lambda n: -(-length // (SIDE * n)) * n)


def products(form: str, grid: Grid, left: Buffer, right: Buffer, out: Buffer, channels: int, mask: bool) -> list[Step]:
    """Rows, then columns; in one launch if both need the same tiles and write to different addresses."""
    check(grid, left.stride, right.stride, out.stride)
    H, W = grid.height, grid.width
    aligned = left.aligned and right.aligned and out.aligned
    steps = []
    sizes = []
    for length in (W, H):
        down = tile_size(length, grid.largest)
        sizes.append((down if form == "nt" else tile_size(channels, grid.largest), down))
    merged = form == "nt" and sizes[0] == sizes[1]
    for start, lines in ((0, H + W),) if merged else ((0, H), (H, W)):
        across, down = sizes[0 if start == 0 else 1]
        lengths = (W, H) if merged else (W,) if start == 0 else (H,)
        tiles = max(
            -(-length // (SIDE * down)) * -(-(length if form == "nt" else channels) // (SIDE * across))
            for length in lengths
        )
        kernel = Kernel(form, grid.dtype, (across, down), aligned, grid.lanes)
        arguments = (left.name, right.name, out.name, left.stride, right.stride, out.stride)
        numbers = (grid.arm, H, W, channels, start, int(mask))
        steps.append(Step(kernel, (tiles, lines, grid.images), (*arguments, *numbers)))
    return steps


def gathering(grid: Grid, left: Buffer, right: Buffer, out: Buffer, channels: int) -> list[Step]:
    """The form nn, on tensor cores if the grid asks for them."""
    if not grid.tensor:
        return products("nn", grid, left, right, out, channels, mask=False)
    if grid.dtype == "float16":
        why = "they take float32 as TF32, and bfloat16"
        raise InputError("numba kernels on tensor cores for float16", why, "use another type, or not tensor cores")
    check(grid, left.stride, right.stride, out.stride)
    H, W = grid.height, grid.width
    across = min(4, -(-channels // CHANNELS), grid.largest)
    steps = []
    for start, lines, length in ((0, H, W), (H, W, H)):
        # so that a thread fetches two vectors of each operand at most
        parts = tile_size(-(-length // BANDS), min(PARTS, 2 * across, grid.largest))
        sizes = (across, BANDS, parts)
        kernel = Kernel("tensor", grid.dtype, sizes, left.aligned and right.aligned and out.aligned, grid.lanes)
        tiles = -(-length // (SIDE * BANDS * parts)) * -(-channels // (CHANNELS * across))
        arguments = (left.name, right.name, out.name, left.stride, right.stride, out.stride)
        numbers = (grid.arm, H, W, channels, start, 0)
        steps.append(Step(kernel, (tiles, lines, grid.images), (*arguments, *numbers)))
    return steps


def softmaxes(form: str, grid: Grid, names: tuple[str, ...], stride: int) -> Step:
    """The softmax over every pixel's cross, or its backward."""
    group = grid.lanes
    while group * ENTRIES[0] < stride and group < 1024:
        group *= 2
    keep = next(entries for entries in ENTRIES if group * entries >= stride)
    pixels = max(grid.lanes * 8 // group, 1)
    kernel = Kernel(form, "float32", (group, keep, pixels), True, grid.lanes)
    numbers = (stride, grid.arm, grid.height, grid.width, grid.pixels)
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
