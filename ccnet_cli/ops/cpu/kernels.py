"""The CPU kernels: products of one line's matrices in vector registers, and the softmax of one pixel's cross.

A line is a row or a column of the map, or lies along another axis. Everything is float32 and addressed in bytes: an
address and a step from one pixel, row or vector to the next. A product runs over tiles of TILE rows and 2 vectors of
columns, whose sums stay in registers; both operands are first packed so that the tile's loop reads them in order. The
order of every sum is fixed by the sizes alone, so that results do not depend on the number of threads.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from ccnet_cli.ops.cpu import simd
from ccnet_cli.ops.cpu.simd import F32, FLOAT, I1, I32, I64, INT, LANES, MASK, NUMBERS, PANEL, TILE, VECTOR, WORD

TASKS = {
    name: number for number, name in enumerate(("forward", "backward", "affinity", "product", "aggregate", "scatter"))
}
_FORWARD, _BACKWARD, _AFFINITY, _PRODUCT, _, _SCATTER = TASKS.values()
# channels that are packed at once for a product with weights
MAX_PACKED = 128
# rows, columns and depth of a product; an address, and the bytes from row to row
SIZES, MATRIX = types.UniTuple(INT, 3), types.UniTuple(INT, 2)
# steps of a task: lines along each axis but the last alone, rows, and the part of the others that needs the rows
COLUMN, ROW, REST = range(3)
# functions that are called by address: it differs between processes, so it must not be a constant in Numba's cache
LEAVES = ("product", "pack_tiles", "pack_panels", "pack_transposed", "softmaxes", "softmaxes_backward")

# a task's description: the arm of a step, its length, the pixels from one to the next and its offset in the attention,
# and whether it is the first; for each tensor its address, or 0 for none, and the bytes from pixel to pixel; attention
# and its gradient, pull, have `positions` floats a pixel, dots has one for each row
TENSORS = ("query", "key", "value", "base", "out", "grad", "d_query", "d_key", "d_value")
PLAN = np.dtype(
    [
        *((name, np.int64) for name in ("task", "step", "first", "length", "stride", "arm")),
        *((name, np.int64) for name in ("positions", "reduced", "channels")),
        *((f"{name}{suffix}", np.int64) for name in TENSORS for suffix in ("", "_step")),
        *((name, np.int64) for name in ("attention", "pull", "dots", "scratch", "scratch_left", "scratch_whole")),
        *((name, np.int64) for name in LEAVES),
        # counters of all threads: the next line to do, and the threads that have started
        *((name, np.int64) for name in ("count", "next", "threads")),
        ("scale", np.float32),
    ],
    align=True,
)
NEXT, THREADS = (simd.offset(PLAN, name) for name in ("next", "threads"))


def scratch(line: int, reduced: int, channels: int, deep: int) -> tuple[int, int]:
    """Bytes of a thread's packed left operand, and of both operands; packing writes whole squares.

    line is the length of the longest; deep is the number of channels that products sum over which give energies or
    their gradient.
    """
    left = -(-line // TILE) * max(line, deep) + LANES
    # panels hold pixels in a transposed operand, channels in the others
    across = min(max(reduced, channels), MAX_PACKED)
    right = max(-(-line // PANEL) * deep, -(-across // PANEL) * line) + LANES
    return WORD * LANES * left, WORD * (LANES * left + PANEL * right)


def _exponential(builder: Any, x: Any) -> Any:
    """e to the power of numbers up to 0, to float32's rounding; 0 where the result would be subnormal."""
    low = simd.constant(-87.0)
    # nan stays in x, and is clipped here: it would have no integer
    clipped = simd.maximum(builder)(x, low)
    rounded = builder.call(
        simd.function(builder, f"llvm.rint.v{LANES}f32", VECTOR, VECTOR),
        [builder.fmul(clipped, simd.constant(1.44269504088896341))],
    )
    # log(2) as a sum, whose first number has few bits
    rest = simd.fma(builder, rounded, simd.constant(-0.693359375), x)
    rest = simd.fma(builder, rounded, simd.constant(2.12194440054690583e-4), rest)
    result = simd.constant(1 / 5040)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        result = simd.fma(builder, result, rest, simd.constant(factor))
    exponent = builder.shl(builder.add(builder.fptosi(rounded, NUMBERS), simd.integer(127)), simd.integer(23))
    result = builder.fmul(result, builder.bitcast(exponent, VECTOR))
    return builder.select(builder.fcmp_ordered("<", x, low), simd.constant(0.0), result)


class _Vectors:
    """A loop over a pixel's floats, a vector at a time, that carries sums."""

    def __init__(self, builder: Any, count: Any, *sums: Any) -> None:
        self.builder, self.count = builder, count
        self.cells = [cgutils.alloca_once_value(builder, value) for value in sums]

    def each(self, body: Callable[..., Any]) -> list[Any]:
        """Call body(byte offset, mask, *sums) -> new sums for each vector; return the last sums."""
        builder = self.builder
        blocks = builder.sdiv(builder.add(self.count, I64(LANES - 1)), I64(LANES))
        with cgutils.for_range(builder, blocks) as loop:
            first = builder.mul(loop.index, I64(LANES))
            mask = simd.mask(builder, builder.sub(self.count, first))
            new = body(builder.mul(first, I64(WORD)), mask, *(builder.load(cell) for cell in self.cells))
            for cell, value in zip(self.cells, new, strict=True):
                builder.store(value, cell)
        return [builder.load(cell) for cell in self.cells]


@intrinsic
def _softmax(typingctx, address, count):
    """Softmax over `count` floats, in address."""

    def generate(context, builder, signature, arguments):
        address, count = arguments
        lowest = simd.constant(float("-inf"))
        zero = simd.constant(0.0)

        def largest(offset, mask, most):
            return [simd.maximum(builder)(most, simd.load(builder, builder.add(address, offset), mask, lowest))]

        (most,) = _Vectors(builder, count, lowest).each(largest)
        most = simd.reduce(builder, most, simd.maximum(builder))

        def powers(offset, mask, total):
            vector = builder.add(address, offset)
            result = _exponential(builder, builder.fsub(simd.load(builder, vector, mask, lowest), most))
            simd.store(builder, result, vector, mask)
            return [builder.fadd(total, builder.select(mask, result, zero))]

        (total,) = _Vectors(builder, count, zero).each(powers)
        factor = builder.fdiv(simd.constant(1.0), simd.reduce(builder, total, builder.fadd))

        def scaled(offset, mask):
            vector = builder.add(address, offset)
            simd.store(builder, builder.fmul(simd.load(builder, vector, mask, zero), factor), vector, mask)
            return []

        _Vectors(builder, count).each(scaled)
        return context.get_dummy_value()

    return types.void(INT, INT), generate


@intrinsic
def _softmax_backward(typingctx, weights, pull, count, scale):
    """pull = weights * (pull - sum of weights * pull) * scale over `count` floats; returns that sum."""

    def generate(context, builder, signature, arguments):
        weights, pull, count, scale = arguments
        zero = simd.constant(0.0)

        def both(offset, mask):
            return [simd.load(builder, builder.add(address, offset), mask, zero) for address in (weights, pull)]

        def products(offset, mask, total):
            return [simd.fma(builder, *both(offset, mask), total)]

        (total,) = _Vectors(builder, count, zero).each(products)
        total = simd.reduce(builder, total, builder.fadd)
        factor = simd.splat(builder, scale)

        def gradient(offset, mask):
            weight, pulled = both(offset, mask)
            result = builder.fmul(builder.fmul(weight, builder.fsub(pulled, total)), factor)
            simd.store(builder, result, builder.add(pull, offset), mask)
            return []

        _Vectors(builder, count).each(gradient)
        return builder.extract_element(total, I32(0))

    return FLOAT(INT, INT, INT, FLOAT), generate


@intrinsic
def _put(typingctx, address, value):
    """Write a float."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[1], simd.pointer(builder, arguments[0], F32), align=WORD)
        return context.get_dummy_value()

    return types.void(INT, FLOAT), generate


@intrinsic
def _copy(typingctx, target, source, count):
    """Copy `count` floats, at most a panel's row, and fill the row with zeros."""

    def generate(context, builder, signature, arguments):
        target, source, count = arguments
        for first in (0, LANES):
            offset = I64(WORD * first)
            mask = simd.mask(builder, builder.sub(count, I64(first)))
            vector = simd.load(builder, builder.add(source, offset), mask, simd.constant(0.0))
            builder.store(vector, simd.pointer(builder, builder.add(target, offset)), align=WORD)
        return context.get_dummy_value()

    return types.void(INT, INT, INT), generate


def _sums(builder: Any, rows: int, halves: int, whole: bool, arguments: Any) -> None:
    """One tile of _tile, with all sums in registers; whole means that it has all columns.

    Prefetches output and addend during the product.
    """
    (_, columns, depth), (left, left_step), right, (out, out_step), (base, base_step), scale = arguments
    based = builder.icmp_signed("!=", base, I64(0))
    near, near_step = builder.select(based, base, out), builder.select(based, base_step, out_step)
    for row, half in itertools.product(range(rows), range(halves)):
        simd.prefetch(builder, simd.tile_address(builder, near, near_step, row, half))
        simd.prefetch(builder, simd.tile_address(builder, out, out_step, row, half), write=True)
    products = simd.product(builder, rows, halves, depth, left, left_step, right)
    factor, all_lanes = simd.splat(builder, scale), ir.Constant(MASK, [I1(1)] * LANES)
    masks = [
        all_lanes if whole else simd.mask(builder, builder.sub(columns, I64(LANES * half))) for half in range(halves)
    ]
    with builder.if_else(based) as branches:
        for branch, added in zip(branches, (True, False), strict=True):
            with branch:
                for row, half in itertools.product(range(rows), range(halves)):
                    if added:
                        start = simd.tile_address(builder, base, base_step, row, half)
                        start = simd.load(builder, start, masks[half], simd.constant(0.0))
                        total = simd.fma(builder, factor, products[row][half], start)
                    else:
                        total = builder.fmul(factor, products[row][half])
                    simd.store(builder, total, simd.tile_address(builder, out, out_step, row, half), masks[half])


@intrinsic
def _tile(typingctx, sizes, left, right, out, base, scale):
    """out = base + scale * left @ right: up to TILE rows, up to a panel's columns; no base where its address is 0."""

    def generate(context, builder, signature, arguments):
        parts = [
            cgutils.unpack_tuple(builder, value) if isinstance(kind, types.BaseTuple) else value
            for kind, value in zip(signature.args, arguments, strict=True)
        ]
        rows, columns, _ = parts[0]
        wide, whole = (builder.zext(builder.icmp_signed(">=", columns, I64(n)), I64) for n in (LANES + 1, PANEL))
        done = builder.append_basic_block("end")
        switch = builder.switch(builder.add(builder.mul(rows, I64(3)), builder.add(wide, whole)), done)
        for count, (kind, halves) in itertools.product(range(1, TILE + 1), enumerate((1, 2, 2))):
            block = builder.append_basic_block("tile")
            switch.add_case(I64(3 * count + kind), block)
            builder.position_at_end(block)
            _sums(builder, count, halves, kind == 2, parts)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(SIZES, MATRIX, INT, MATRIX, MATRIX, FLOAT), generate


@simd.leaf(SIZES, MATRIX, INT, INT, MATRIX, MATRIX, FLOAT)
def _product(sizes, left, packed, right, out, base, scale):
    """out = base + scale * left @ right, right in panels; left in tiles where packed, else transposed in memory."""
    rows, columns, depth = sizes
    tiles = (rows + TILE - 1) // TILE
    for panel in range((columns + PANEL - 1) // PANEL):
        across = panel * PANEL * WORD
        for tile in range(tiles):
            first, last = rows * tile // tiles, rows * (tile + 1) // tiles
            _tile(
                (last - first, columns - panel * PANEL, depth),
                (left[0] + (tile * depth * LANES * WORD if packed else first * WORD), left[1]),
                right + across * depth,
                (out[0] + first * out[1] + across, out[1]),
                (base[0] + first * base[1] + across if base[0] else 0, base[1]),
                scale,
            )


@simd.leaf(*[INT] * 5)
def _pack_tiles(target, source, step, rows, depth):
    """Pack rows into tiles: for each depth, a vector of the rows' floats."""
    tiles = (rows + TILE - 1) // TILE
    for tile in range(tiles):
        first, last = rows * tile // tiles, rows * (tile + 1) // tiles
        there = target + tile * depth * LANES * WORD
        simd.transpose(there, LANES * WORD, source + first * step, step, last - first, depth)


@simd.leaf(*[INT] * 5)
def _pack_panels(target, source, step, depth, columns):
    """Pack rows into panels, as they are."""
    for panel in range((columns + PANEL - 1) // PANEL):
        first = panel * PANEL
        there = target + first * depth * WORD
        for row in range(depth):
            _copy(there + row * PANEL * WORD, source + row * step + first * WORD, columns - first)


@simd.leaf(*[INT] * 5)
def _pack_transposed(target, source, step, columns, depth):
    """Pack rows into panels, each as a column."""
    for first in range(0, columns, LANES):
        there = target + (first // PANEL * PANEL * depth + first % PANEL) * WORD
        simd.transpose(there, PANEL * WORD, source + first * step, step, columns - first, depth)


@simd.leaf(*[INT] * 3)
def _softmaxes(attention, pixels, positions):
    for pixel in range(pixels):
        _softmax(attention + pixel * positions * WORD, positions)


@simd.leaf(*[INT] * 5, FLOAT)
def _softmaxes_backward(attention, pull, pixels, positions, dot, scale):
    """The softmax's backward for all pixels; dot becomes the sum of attention * pull."""
    total = np.float32(0)
    for pixel in range(pixels):
        offset = pixel * positions * WORD
        total += _softmax_backward(attention + offset, pull + offset, positions, scale)
    _put(dot, total)


# a line is: its first pixel, the step to the next pixel, the number of pixels, the offset of its arm in the attention


@simd.helper
def _energies(plan, line, scratch, out, left, right, depth):
    """Write a line's left @ right^T to its arm of out."""
    first, stride, n, arm = line
    positions, panels = plan.positions, scratch + plan.scratch_left
    simd.call(plan.pack_tiles, (scratch, left[0] + first * left[1], stride * left[1], n, depth))
    simd.call(plan.pack_transposed, (panels, right[0] + first * right[1], stride * right[1], n, depth))
    target = out + (first * positions + arm) * WORD, stride * positions * WORD
    simd.call(plan.product, ((n, n, depth), (scratch, LANES * WORD), 1, panels, target, (0, 0), np.float32(1)))


@simd.helper
def _weigh(plan, line, scratch, weights, right, out, base, scale):
    """Write a line's base + scale * weights @ right.

    weights are an address and 1 where they are transposed, right a matrix and its number of columns.
    """
    first, stride, n, arm = line
    (address, spread), (matrix, columns) = weights, right
    positions, panels = plan.positions, scratch + plan.scratch_left
    left = address + (first * positions + arm) * WORD, stride * positions * WORD
    if not spread:
        simd.call(plan.pack_tiles, (scratch, *left, n, n))
        left = scratch, LANES * WORD
    for start in range(0, columns, MAX_PACKED):
        count = min(MAX_PACKED, columns - start)
        source, target = _part(matrix, line, start), _part(out, line, start)
        start_base = _part(base, line, start) if base[0] else (0, 0)
        simd.call(plan.pack_panels, (panels, *source, n, count))
        simd.call(plan.product, ((n, count, n), left, 1 - spread, panels, target, start_base, scale))


@simd.helper
def _part(matrix, line, start):
    """A line's pixels of a matrix, from channel `start` on."""
    address, step = matrix
    return address + line[0] * step + start * WORD, line[1] * step


@simd.helper
def _scores(plan, line, scratch):
    """Energies of query and key; all but the rows mask the pixel itself, but not in a plain product."""
    first, stride, n, arm = line
    positions = plan.positions
    query, key = (plan.query, plan.query_step), (plan.key, plan.key_step)
    _energies(plan, line, scratch, plan.attention, query, key, plan.reduced)
    if plan.step == COLUMN and plan.task != _PRODUCT:
        for i in range(n):
            # the pixel lies on every arm: count it once, in the row
            _put(plan.attention + ((first + i * stride) * positions + arm + i) * WORD, np.float32(-np.inf))


@simd.helper
def _gather(plan, line, scratch):
    """Base plus scale times the sums over the rows' arms, to which those over the others' are added later."""
    weights = plan.attention, 1 if plan.task == _SCATTER else 0
    value, out = ((plan.value, plan.value_step), plan.channels), (plan.out, plan.out_step)
    base = (plan.base, plan.base_step) if plan.step == ROW else out
    _weigh(plan, line, scratch, weights, value, out, base, plan.scale)


@simd.helper
def _forward(plan, line, scratch):
    first, _, n, _ = line
    positions = plan.positions
    if plan.step != REST:
        _scores(plan, line, scratch)
    if plan.step == ROW:
        simd.call(plan.softmaxes, (plan.attention + first * positions * WORD, n, positions))
    if plan.step != COLUMN:
        _gather(plan, line, scratch)


@simd.helper
def _backward(plan, line, scratch):
    first, _, n, _ = line
    step, scale, positions = plan.step, plan.scale, plan.positions
    grad, value, nothing, one = (plan.grad, plan.grad_step), (plan.value, plan.value_step), (0, 0), np.float32(1)
    query, key = ((plan.query, plan.query_step), plan.reduced), ((plan.key, plan.key_step), plan.reduced)
    d_query, d_key = (plan.d_query, plan.d_query_step), (plan.d_key, plan.d_key_step)
    d_value = (plan.d_value, plan.d_value_step)
    if step != REST:
        _energies(plan, line, scratch, plan.pull, grad, value, plan.channels)
        base = nothing if plan.first else d_value
        _weigh(plan, line, scratch, (plan.attention, 1), (grad, plan.channels), d_value, base, scale)
    if step == ROW:
        offset = first * positions * WORD
        dot = plan.dots + first // n * WORD
        simd.call(plan.softmaxes_backward, (plan.attention + offset, plan.pull + offset, n, positions, dot, scale))
    if step != COLUMN:
        q_base, k_base = (d_query, d_key) if step == REST else (nothing, nothing)
        _weigh(plan, line, scratch, (plan.pull, 0), key, d_query, q_base, one)
        _weigh(plan, line, scratch, (plan.pull, 1), query, d_key, k_base, one)


@simd.leaf(types.CPointer(from_dtype(PLAN)))
def lines(plans):
    """One thread's work in a step: take the next line until there is none."""
    plan = carray(plans, 1)[0]
    scratch = plan.scratch + simd.fetch_and_add(plans, THREADS) * plan.scratch_whole
    index = simd.fetch_and_add(plans, NEXT)
    while index < plan.count:
        block, column = index // plan.stride, index % plan.stride
        line = (block * plan.length * plan.stride + column, plan.stride, plan.length, plan.arm)
        if plan.task == _FORWARD:
            _forward(plan, line, scratch)
        elif plan.task == _BACKWARD:
            _backward(plan, line, scratch)
        elif plan.task == _AFFINITY or plan.task == _PRODUCT:
            if plan.step != REST:
                _scores(plan, line, scratch)
        elif plan.step != COLUMN:
            _gather(plan, line, scratch)
        index = simd.fetch_and_add(plans, NEXT)


ADDRESSES = {
    name: leaf.address
    for name, leaf in zip(
        LEAVES, (_product, _pack_tiles, _pack_panels, _pack_transposed, _softmaxes, _softmaxes_backward), strict=True
    )
}
