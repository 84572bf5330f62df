"""The CPU kernels of 3x3 convolutions by Winograd's minimal filtering: 36 products for 16 pixels in address of 144.

A tile of 4 x 4 output pixels is A^T [(G g G^T) * (B^T d B)] A of its 6 x 6 input pixels d and the filter g (Lavin and
Gray, CVPR 2016, equation 8); summed over input channels, the product in the middle is one of matrices for each of the
36 points. The matrices come from Toom and Cook's construction at 0, +-5/8, +-3/2 and infinity, which of the mirrored
pairs of sixteenths up to 2 round least: 5 times a direct sum's error, where the usual +-1, +-2 have 12 times.

A dilated convolution is one of each of the interleaved grids that its taps see. Tensors are pixels of unit channel
stride in float32, or in bfloat16 between which everything is float32; filters have their input channels innermost, and
their nine taps between those and the output channels. Channels come in multiples of PANEL. The order of every sum is
fixed by the sizes alone.
"""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from ccnet_cli.ops.cpu import simd
from ccnet_cli.ops.cpu.simd import FLOAT, I64, INT, LANES, NUMBERS, PANEL, TILE, VECTOR, WORD

# output and input pixels of a tile's side, and products of a tile
OUT = 4
IN = OUT + 2
POINTS = IN * IN
TAPS = 9
# floats of a row of the left operand: a tile of rows stays in the first cache
DEPTH = 256
# rows of a tile of the gradient's product: two of them share a vector of channels
ROWS = LANES // 2
TASKS = {name: number for number, name in enumerate(("filters", "flipped", "forward", "spread", "gradient"))}
_FILTERS, _FLIPPED, _FORWARD, _SPREAD, _GRADIENT = TASKS.values()

# functions that are called by address: it differs between processes, so it must not be a constant in Numba's cache
LEAVES = ("multiply", "correlate", "gather", "unfold", "scatter", "transform", "collect")

PLAN = np.dtype(
    [
        *((name, np.int64) for name in ("task", "height", "width", "inputs", "outputs", "dilation")),
        # addresses of tensors, and the bytes from a pixel, or a tap of the filters, to the next
        *((f"{name}{suffix}", np.int64) for name in ("x", "out", "weight") for suffix in ("", "_step")),
        *((name, np.int64) for name in ("filters", "bias", "spread", "add")),
        # output tiles: the rows and columns of them in an image, and the first pixel of each
        *((name, np.int64) for name in ("down", "across", "rows", "columns")),
        # tiles from first to last; tiles, input channels and output channels of one task
        *((name, np.int64) for name in ("first", "last", "group", "block", "part")),
        *((name, np.int64) for name in ("scratch", "scratch_whole", "zeros")),
        *((name, np.int64) for name in LEAVES),
        # counters of all threads: the next task, and the threads that have started
        *((name, np.int64) for name in ("count", "next", "threads")),
        ("slope", np.float32),
    ],
    align=True,
)
NEXT, THREADS = (simd.offset(PLAN, name) for name in ("next", "threads"))


def forward_scratch(tiles: int, inputs: int, outputs: int) -> int:
    """Bytes of scratch memory for this many tiles at once."""
    row = -(-inputs // DEPTH) * DEPTH + outputs
    return POINTS * 8 + WORD * (outputs + POINTS * tiles * row)


def gradient_scratch(tiles: int, block: int, part: int) -> int:
    """Bytes of scratch memory for the gradient of a block of input channels and a part of the output channels."""
    return POINTS * 8 + WORD * POINTS * block * (tiles + part)


def _matrices() -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """A^T (4 x 6), G (6 x 3) and B^T (6 x 6)."""
    points = [Fraction(0), Fraction(5, 8), -Fraction(5, 8), Fraction(3, 2), -Fraction(3, 2)]

    def product(roots: Sequence[Fraction]) -> list[Fraction]:
        """Coefficients, from the constant one on, of the polynomial with these roots."""
        terms = [Fraction(1)]
        for root in roots:
            terms = [low - root * high for low, high in zip([Fraction(0), *terms], [*terms, Fraction(0)], strict=True)]
        return terms

    others = [[q for q in points if q != p] for p in points]
    values = [
        sum((c * p**k for k, c in enumerate(product(rest))), Fraction(0))
        for p, rest in zip(points, others, strict=True)
    ]
    output = [[p**k for p in points] + [Fraction(k == OUT - 1)] for k in range(OUT)]
    filters = [[p**k / value for k in range(3)] for p, value in zip(points, values, strict=True)]
    filters.append([Fraction(0), Fraction(0), Fraction(1)])
    inputs = [[*product(rest), Fraction(0)] for rest in others] + [product(points)]
    a, g, b = ([[float(x) for x in row] for row in matrix] for matrix in (output, filters, inputs))
    return a, g, b


def _transpose(matrix: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*matrix, strict=True)]


_OUTPUT, _FILTER, _INPUT = _matrices()


# LLVM code


def _combine(builder: Any, row: Sequence[float], vectors: Sequence[Any]) -> Any:
    """The sum of a row's factors times the vectors; None if all factors are 0."""
    total = None
    for factor, vector in sorted(zip(row, vectors, strict=True), key=lambda pair: abs(pair[0]) != 1):
        if not factor:
            continue
        if total is None:
            total = vector if factor == 1 else builder.fmul(vector, simd.constant(factor))
        elif abs(factor) == 1:
            total = (builder.fadd if factor > 0 else builder.fsub)(total, vector)
        else:
            total = simd.fma(builder, vector, simd.constant(factor), total)
    return total


def _line(builder: Any, matrix: list[list[float]], vectors: Sequence[Any]) -> list[Any]:
    """A matrix times a column of vectors; rows that differ in the odd factors' signs share their halves."""
    results: list[Any] = []
    for index, row in enumerate(matrix):
        mirror = [factor if k % 2 == 0 else -factor for k, factor in enumerate(row)]
        if index and matrix[index - 1] == mirror and row != mirror:
            continue
        if index + 1 < len(matrix) and matrix[index + 1] == mirror and row != mirror:
            even = _combine(builder, [f if k % 2 == 0 else 0.0 for k, f in enumerate(row)], vectors)
            odd = _combine(builder, [f if k % 2 else 0.0 for k, f in enumerate(row)], vectors)
            results += [builder.fadd(even, odd), builder.fsub(even, odd)]
        else:
            results.append(_combine(builder, row, vectors))
    return results


def _square(builder: Any, matrix: list[list[float]], vectors: Sequence[Any]) -> list[Any]:
    """matrix @ square of vectors @ matrix^T, row by row."""
    side = len(matrix[0])
    columns = [_line(builder, matrix, vectors[column::side]) for column in range(side)]
    return [result for row in range(len(matrix)) for result in _line(builder, matrix, [c[row] for c in columns])]


def _read(builder: Any, address: Any) -> Any:
    return builder.load(simd.pointer(builder, address), align=WORD)


def _write(builder: Any, vector: Any, address: Any) -> None:
    builder.store(vector, simd.pointer(builder, address), align=WORD)


def _read_half(builder: Any, address: Any) -> Any:
    """A vector of bfloat16, which are the upper halves of float32."""
    kind = ir.VectorType(ir.IntType(16), LANES)
    halves = builder.load(simd.pointer(builder, address, kind), align=2)
    return builder.bitcast(builder.shl(builder.zext(halves, NUMBERS), simd.integer(16)), VECTOR)


def _write_half(builder: Any, vector: Any, address: Any) -> None:
    """A vector as bfloat16, rounded to nearest, ties to even; nan stays nan."""
    bits = builder.bitcast(vector, NUMBERS)
    odd = builder.and_(builder.lshr(bits, simd.integer(16)), simd.integer(1))
    rounded = builder.add(builder.add(bits, simd.integer(0x7FFF)), odd)
    unordered = builder.fcmp_unordered("uno", vector, vector)
    rounded = builder.select(unordered, simd.integer(0x7FC00000), rounded)
    halves = builder.trunc(builder.lshr(rounded, simd.integer(16)), ir.VectorType(ir.IntType(16), LANES))
    builder.store(halves, simd.pointer(builder, address, halves.type), align=2)


# functions that read and write a vector, and the bytes of a number
_FULL, _HALF = (_read, _write, WORD), (_read_half, _write_half, WORD // 2)


def _gathering(matrix: list[list[float]], access: tuple[Any, Any, int]) -> Any:
    read_one, _, size = access

    @intrinsic
    def gathering(typingctx, table, offset, vectors, target, step, pair_step, odd_step):
        """matrix d matrix^T of the pixels d whose addresses a table holds; its entries are `step` bytes apart.

        offset is the first channel; two vectors of channels are odd_step apart, and pair_step from the next two.
        """

        def generate(context, builder, signature, arguments):
            table, offset, vectors, target, step, pair_step, odd_step = arguments
            with cgutils.for_range(builder, vectors) as loop:
                shift = builder.mul(builder.add(offset, builder.mul(loop.index, I64(LANES))), I64(size))
                pixels = len(matrix[0]) ** 2
                read = [read_one(builder, builder.add(simd.entry(builder, table, i), shift)) for i in range(pixels)]
                pair = builder.mul(builder.lshr(loop.index, I64(1)), pair_step)
                odd = builder.mul(builder.and_(loop.index, I64(1)), odd_step)
                address = builder.add(target, builder.add(pair, odd))
                for result in _square(builder, matrix, read):
                    _write(builder, result, address)
                    address = builder.add(address, step)
            return context.get_dummy_value()

        return types.void(*[INT] * 7), generate

    return gathering


def _moving(matrix: list[list[float]]) -> Any:
    @intrinsic
    def moving(typingctx, source, source_step, target, target_step, vectors, add):
        """matrix u matrix^T of the entries u, source_step apart, to such target_step apart, or added to them."""

        def generate(context, builder, signature, arguments):
            source, source_step, target, target_step, vectors, add = arguments
            more = simd.mask(builder, builder.mul(add, I64(LANES)))
            with cgutils.for_range(builder, vectors) as loop:
                shift = builder.mul(loop.index, I64(LANES * WORD))
                address = builder.add(source, shift)
                read = []
                for _ in range(len(matrix[0]) ** 2):
                    read.append(_read(builder, address))
                    address = builder.add(address, source_step)
                address = builder.add(target, shift)
                for result in _square(builder, matrix, read):
                    before = simd.load(builder, address, more, simd.constant(0.0))
                    _write(builder, builder.fadd(result, before), address)
                    address = builder.add(address, target_step)
            return context.get_dummy_value()

        return types.void(*[INT] * 6), generate

    return moving


_gather_full, _gather_half = (_gathering(_INPUT, access) for access in (_FULL, _HALF))
_unfold_full, _unfold_half = (_gathering(_transpose(_OUTPUT), access) for access in (_FULL, _HALF))
_move_filter, _move_gradient = _moving(_FILTER), _moving(_transpose(_FILTER))


def _scattering(access: tuple[Any, Any, int]) -> Any:
    read_one, write_one, size = access

    @intrinsic
    def scattering(typingctx, source, step, table, vectors, bias, add, slope):
        """A^T m A of entries m, `step` bytes apart, plus bias, added to pixels or not; negative results times slope."""

        def generate(context, builder, signature, arguments):
            source, step, table, vectors, bias, add, slope = arguments
            more = simd.mask(builder, builder.mul(add, I64(LANES)))
            factor = simd.splat(builder, slope)
            zero = simd.constant(0.0)
            with cgutils.for_range(builder, vectors) as loop:
                shift = builder.mul(loop.index, I64(LANES * WORD))
                address = builder.add(source, shift)
                read = []
                for _ in range(POINTS):
                    read.append(_read(builder, address))
                    address = builder.add(address, step)
                constant = _read(builder, builder.add(bias, shift))
                for index, result in enumerate(_square(builder, _OUTPUT, read)):
                    address = builder.add(simd.entry(builder, table, index), builder.mul(loop.index, I64(LANES * size)))
                    result = builder.fadd(result, constant)
                    # read even where nothing is added: the vector is written next
                    result = builder.fadd(result, builder.select(more, read_one(builder, address), zero))
                    negative = builder.fcmp_ordered("<", result, zero)
                    write_one(builder, builder.select(negative, builder.fmul(result, factor), result), address)
            return context.get_dummy_value()

        return types.void(*[INT] * 6, FLOAT), generate

    return scattering


_scatter_full, _scatter_half = _scattering(_FULL), _scattering(_HALF)


def _sums(builder: Any, rows: int, row_step: int, depth_step: int, arguments: Sequence[Any]) -> None:
    """One tile of `tiling` of `rows` rows, with all sums in registers."""
    depth, left, right, out, step, add = arguments
    products = simd.product(builder, rows, 2, depth, left, I64(WORD * depth_step), right, row_step)
    with builder.if_else(builder.icmp_signed("!=", add, I64(0))) as branches:
        for branch, added in zip(branches, (True, False), strict=True):
            with branch:
                for row, half in itertools.product(range(rows), range(2)):
                    address = simd.tile_address(builder, out, step, row, half)
                    total = products[row][half]
                    _write(builder, builder.fadd(total, _read(builder, address)) if added else total, address)


def _tiling(heights: Sequence[int], row_step: int, depth_step: int) -> Any:
    @intrinsic
    def tiling(typingctx, rows, depth, left, right, out, step, add):
        """out = left @ right, or added to it, for a number of rows among the heights, and a panel's columns."""

        def generate(context, builder, signature, arguments):
            rows, *others = arguments
            done = builder.append_basic_block("end")
            switch = builder.switch(rows, done)
            for height in heights:
                block = builder.append_basic_block("tile")
                switch.add_case(I64(height), block)
                builder.position_at_end(block)
                _sums(builder, height, row_step, depth_step, others)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(*[INT] * 7), generate

    return tiling


_tile_forward = _tiling(range(1, TILE + 1), DEPTH, 1)
_tile_gradient = _tiling([ROWS], 1, 2 * ROWS)


@simd.leaf(*[INT] * 8)
def _multiply(rows, columns, depth, left, right, out, step, add):
    """out = left @ right, or added to it: left has DEPTH floats a row, right is in panels."""
    tiles = (rows + TILE - 1) // TILE
    for panel in range(columns // PANEL):
        across = panel * PANEL * WORD
        for tile in range(tiles):
            first, last = rows * tile // tiles, rows * (tile + 1) // tiles
            address = out + first * step + across
            _tile_forward(last - first, depth, left + first * DEPTH * WORD, right + across * depth, address, step, add)


@simd.leaf(*[INT] * 7)
def _correlate(rows, columns, depth, left, right, out, step):
    """out = left^T @ right: left holds vectors of 2 ROWS rows for each depth, right is in panels."""
    for panel in range(columns // PANEL):
        across = panel * PANEL * WORD
        for tile in range(rows // ROWS):
            there = left + (tile // 2 * depth * 2 + tile % 2) * ROWS * WORD
            _tile_gradient(ROWS, depth, there, right + across * depth, out + tile * ROWS * step + across, step, 0)


@simd.leaf(*[INT] * 7)
def _gather_full_leaf(table, offset, vectors, target, step, pair_step, odd_step):
    _gather_full(table, offset, vectors, target, step, pair_step, odd_step)


@simd.leaf(*[INT] * 7)
def _gather_half_leaf(table, offset, vectors, target, step, pair_step, odd_step):
    _gather_half(table, offset, vectors, target, step, pair_step, odd_step)


@simd.leaf(*[INT] * 7)
def _unfold_full_leaf(table, offset, vectors, target, step, pair_step, odd_step):
    _unfold_full(table, offset, vectors, target, step, pair_step, odd_step)


@simd.leaf(*[INT] * 7)
def _unfold_half_leaf(table, offset, vectors, target, step, pair_step, odd_step):
    _unfold_half(table, offset, vectors, target, step, pair_step, odd_step)


@simd.leaf(*[INT] * 6, FLOAT)
def _scatter_full_leaf(source, step, table, vectors, bias, add, slope):
    _scatter_full(source, step, table, vectors, bias, add, slope)


@simd.leaf(*[INT] * 6, FLOAT)
def _scatter_half_leaf(source, step, table, vectors, bias, add, slope):
    _scatter_half(source, step, table, vectors, bias, add, slope)


@simd.leaf(*[INT] * 4)
def _transform(source, source_step, target, target_step):
    _move_filter(source, source_step, target, target_step, 1, 0)


@simd.leaf(*[INT] * 6)
def _collect(source, source_step, target, target_step, vectors, add):
    _move_gradient(source, source_step, target, target_step, vectors, add)


@simd.helper
def _filters(plan, task, scratch):
    """G g G^T of LANES input channels, into panels of output channels, DEPTH input channels at a time."""
    first = task * LANES
    inputs, outputs = plan.inputs, plan.outputs
    block = first // DEPTH * DEPTH
    depth = min(DEPTH, inputs - block)
    point = inputs * outputs * WORD
    for output in range(0, outputs, LANES):
        for tap in range(TAPS):
            source = plan.weight + (output * TAPS + tap) * plan.weight_step + first * WORD
            target = scratch + tap * LANES * LANES * WORD
            simd.transpose(target, LANES * WORD, source, TAPS * plan.weight_step, LANES, LANES)
        panel = block * outputs + output // PANEL * PANEL * depth + output % PANEL
        for lane in range(LANES):
            target = plan.filters + (panel + (first - block + lane) * PANEL) * WORD
            simd.call(plan.transform, (scratch + lane * LANES * WORD, LANES * LANES * WORD, target, point))


@simd.helper
def _flip(plan, task):
    """The same for the backward convolution, from output to input channels, with the taps rotated by 180 degrees."""
    inputs, outputs = plan.inputs, plan.outputs
    block = task // DEPTH * DEPTH
    depth = min(DEPTH, inputs - block)
    point = inputs * outputs * WORD
    for output in range(0, outputs, LANES):
        source = plan.weight + (task * TAPS + TAPS - 1) * plan.weight_step + output * WORD
        panel = block * outputs + output // PANEL * PANEL * depth + output % PANEL
        target = plan.filters + (panel + (task - block) * PANEL) * WORD
        simd.call(plan.transform, (source, -plan.weight_step, target, point))


@simd.helper
def _forward(plan, task, scratch):
    """The output pixels of a group of tiles."""
    first = plan.first + task * plan.group
    tiles = min(plan.group, plan.last - first)
    inputs, outputs = plan.inputs, plan.outputs
    table, waste = scratch, scratch + POINTS * 8
    gathered = waste + outputs * WORD
    # rows of the last block are as long as the others'
    step = tiles * ((inputs + DEPTH - 1) // DEPTH) * DEPTH * WORD
    product = gathered + POINTS * step
    for tile in range(tiles):
        simd.pixel_table(plan, first + tile, plan.x, plan.x_step, IN, 1, plan.zeros, table)
        for block in range(0, inputs, DEPTH):
            target = gathered + (block * tiles + tile * DEPTH) * WORD
            vectors = min(DEPTH, inputs - block) // LANES
            simd.call(plan.gather, (table, block, vectors, target, step, 2 * LANES * WORD, LANES * WORD))
    out_step = tiles * outputs * WORD
    for point in range(POINTS):
        for block in range(0, inputs, DEPTH):
            depth = min(DEPTH, inputs - block)
            left = gathered + point * step + block * tiles * WORD
            right = plan.filters + (point * inputs + block) * outputs * WORD
            out, add = product + point * out_step, 1 if block else 0
            simd.call(plan.multiply, (tiles, outputs, depth, left, right, out, outputs * WORD, add))
    for tile in range(tiles):
        simd.pixel_table(plan, first + tile, plan.out, plan.out_step, OUT, 0, waste, table)
        source = product + tile * outputs * WORD
        simd.call(plan.scatter, (source, out_step, table, outputs // LANES, plan.bias, plan.add, plan.slope))


@simd.helper
def _spread(plan, task, scratch):
    """A d A^T of one tile of the output's gradient d, which out is."""
    tiles, outputs = plan.last - plan.first, plan.outputs
    simd.pixel_table(plan, plan.first + task, plan.out, plan.out_step, OUT, 0, plan.zeros, scratch)
    step, vector = outputs * tiles * WORD, tiles * LANES * WORD
    target = plan.spread + task * LANES * WORD
    simd.call(plan.unfold, (scratch, 0, outputs // LANES, target, step, 2 * vector, vector))


@simd.helper
def _gradient(plan, task, scratch):
    """The filters' gradient for a block of input and a part of the output channels: inputs against spread gradients."""
    tiles, inputs, outputs = plan.last - plan.first, plan.inputs, plan.outputs
    parts = (outputs + plan.part - 1) // plan.part
    start, begin = task // parts * plan.block, task % parts * plan.part
    width, height = min(plan.block, inputs - start), min(plan.part, outputs - begin)
    table, gathered = scratch, scratch + POINTS * 8
    product = gathered + POINTS * tiles * width * WORD
    step, panel = tiles * width * WORD, tiles * PANEL * WORD
    for tile in range(tiles):
        simd.pixel_table(plan, plan.first + tile, plan.x, plan.x_step, IN, 1, plan.zeros, table)
        target = gathered + tile * PANEL * WORD
        simd.call(plan.gather, (table, start, width // LANES, target, step, panel, LANES * WORD))
    point_step = height * width * WORD
    for point in range(POINTS):
        left = plan.spread + (point * outputs + begin) * tiles * WORD
        right, out = gathered + point * step, product + point * point_step
        simd.call(plan.correlate, (height, width, tiles, left, right, out, width * WORD))
    for output in range(height):
        target = plan.weight + (begin + output) * TAPS * plan.weight_step + start * WORD
        source = product + output * width * WORD
        simd.call(plan.collect, (source, point_step, target, plan.weight_step, width // LANES, plan.add))


@simd.leaf(types.CPointer(from_dtype(PLAN)))
def work(plans):
    """One thread's work: take the next task until there is none."""
    plan = carray(plans, 1)[0]
    scratch = plan.scratch + simd.fetch_and_add(plans, THREADS) * plan.scratch_whole
    task = simd.fetch_and_add(plans, NEXT)
    while task < plan.count:
        if plan.task == _FILTERS:
            _filters(plan, task, scratch)
        elif plan.task == _FLIPPED:
            _flip(plan, task)
        elif plan.task == _FORWARD:
            _forward(plan, task, scratch)
        elif plan.task == _SPREAD:
            _spread(plan, task, scratch)
        else:
            _gradient(plan, task, scratch)
        task = simd.fetch_and_add(plans, NEXT)


_COMMON = {"multiply": _multiply, "correlate": _correlate, "transform": _transform, "collect": _collect}
# by bytes per number
_READ = {
    4: {"gather": _gather_full_leaf, "unfold": _unfold_full_leaf},
    2: {"gather": _gather_half_leaf, "unfold": _unfold_half_leaf},
}
_WRITTEN = {4: {"scatter": _scatter_full_leaf}, 2: {"scatter": _scatter_half_leaf}}


def addresses(read: int = 4, written: int = 4) -> dict[str, int]:
    """The leaves' addresses, for tensors with numbers of these sizes in bytes."""
    leaves = _COMMON | _READ[read] | _WRITTEN[written]
    return {name: leaf.address for name, leaf in leaves.items()}
