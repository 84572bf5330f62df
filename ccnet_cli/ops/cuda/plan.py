"""Which fused kernels (fused.py) a pass and its gradients launch, with which tiles: plain arithmetic, no numba."""

from dataclasses import dataclass, replace

from ccnet_cli.ops.cuda.steps import Buffer, Grid, Kernel, Step, check

STEP = 16  # words of a pixel in shared memory at once
CUT = 64  # channels of an output that a thread holds at once; 32 of float32
LINE = 128  # pixels of a line in one block of tiles
BLOCK = 64  # of a longer line, whose energies take fewer registers
# the same as LINE for numbers that are read one by one, which leaves fewer registers
UNALIGNED = {"float32": 64, "float16": 104, "bfloat16": 104}
WARPS = 8  # of a block of delta
# words between pixels in shared memory that are copied there; eight rows of 16 bytes use every bank once
COPIED_PITCH = CUT // 2 + 4
# through registers, or by cp.async and ldmatrix
COPIES = ("plain", "async")
FORMS = ("fused", "fused_residual", "fused_backward", "fused_delta")


@dataclass(frozen=True)
class Line:
    """How the lines of one direction are cut: `blocks` of 8 `tiles` pixels to sum over, `parts` of 16 `warps`."""

    tiles: int
    warps: int
    blocks: int
    parts: int


def cut_line(length: int, line: int = LINE, block: int = BLOCK) -> Line:
    """Equal blocks and parts with the least waste."""
    blocks = 1 if length <= line else -(-length // block)
    parts = -(-length // line)
    return Line(-(-length // (8 * blocks)), -(-length // (16 * parts)), blocks, parts)


def numbers_per_word(dtype: str) -> int:
    """How many numbers a word of 32 bits holds."""
    return 1 if dtype == "float32" else 2


def cut_channels(dtype: str) -> tuple[int, int]:
    """Channels of an output that are made at once, and words between rows of them in shared memory.

    A row is a pixel in float32, and a pair of pixels in 16 bits. What a warp reads at once uses every bank once.
    """
    return (CUT // 2, CUT // 2 + 4) if dtype == "float32" else (CUT, CUT + 8)


def shared_words(tiles: int) -> int:
    """Words of shared memory: two buffers of pixels, larger than two of energies, and two rows of numbers."""
    return 2 * 4 * tiles * (CUT + 8) + 2 * 8 * tiles


def turned_words(dtype: str, warps: int) -> int:
    """Words between rows of a block's numbers with rows and columns exchanged, so that every bank is used once."""
    return 16 * warps // numbers_per_word(dtype) + 4


def scratch_width(c: int) -> int:
    """Numbers of a pixel in what the rows leave of a narrow gradient: all that a thread may hold."""
    return -(-c // CUT) * CUT


def _directions(form: str, grid: Grid, names: tuple[str, ...], numbers: tuple[int, ...], aligned: bool) -> list[Step]:
    """Rows, then columns; the kernels' last number tells which."""
    steps = []
    largest = grid.largest if aligned else min(grid.largest, UNALIGNED[grid.dtype])
    for column, length, lines in ((0, grid.width, grid.height), (1, grid.height, grid.width)):
        # a grid for tests has lines that are long sooner
        cut = cut_line(length, largest, min(largest, BLOCK))
        # only what is aligned can be copied by itself
        copies = grid.copies if aligned else "plain"
        kernel = Kernel(form, grid.dtype, (cut.tiles, cut.warps, int(cut.blocks > 1)), aligned, grid.lanes, copies)
        # of a line in one block, one makes all three gradients
        jobs = 3 if form == "fused_backward" and cut.blocks > 1 else 1
        steps.append(Step(kernel, (jobs * cut.parts, lines, grid.images), (*names, *numbers, column)))
    return steps


def forward(grid: Grid, c: int, C: int, *buffers: Buffer) -> list[Step]:
    """One pass with c channels of query and key, C of value: to out, whose pixels are side by side, and the logarithms.

    Buffers are query, key, value and out, and may have another, to which the pass is added, times gamma. The rows leave
    their logarithms in log_rows; log is of all.
    """
    (query, key, value, _), added = buffers[:4], buffers[4:]
    check(grid, *(buffer.stride for buffer in buffers))
    numbers = (query.stride, key.stride, value.stride, grid.height, grid.width, c, C)
    names = tuple(buffer.name for buffer in buffers[:4])
    aligned = all(buffer.aligned for buffer in buffers)
    rows, columns = _directions("fused", grid, (*names, "log_rows", "log"), numbers, aligned)
    # what the rows do not read is what they write, under the name that they read it by
    rows = replace(rows, arguments=(*names, "log_rows", "log_rows", *rows.arguments[6:]))
    for x in added:
        rest = columns.arguments[6:]
        arguments = (*names, x.name, "log_rows", "log", "gamma", *rest[:3], x.stride, *rest[3:])
        columns = Step(replace(columns.kernel, form="fused_residual"), columns.grid, arguments)
    return [rows, columns]


def backward(grid: Grid, c: int, C: int, out: Buffer, *buffers: Buffer) -> list[Step]:
    """Delta, then gradients, whose pixels are side by side; buffers are query, key, value and the output's gradient."""
    grad = buffers[-1]
    check(grid, *(buffer.stride for buffer in (out, *buffers)))
    kernel = Kernel("fused_delta", grid.dtype, (1, WARPS, 0), out.aligned and grad.aligned, grid.lanes)
    pixels = (out.name, grad.name, "delta", out.stride, grad.stride, C, grid.pixels)
    names = (
        *(buffer.name for buffer in buffers),
        "d_query",
        "d_key",
        "d_value",
        "log",
        "delta",
        "query_rows",
        "key_rows",
    )
    numbers = (*(buffer.stride for buffer in buffers), grid.height, grid.width, c, C)
    aligned = all(buffer.aligned for buffer in buffers)
    delta = Step(kernel, (-(-grid.pixels // WARPS), 1, 1), pixels)
    return [delta, *_directions("fused_backward", grid, names, numbers, aligned)]
