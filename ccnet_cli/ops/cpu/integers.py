"""The CPU kernels of 3x3 convolutions of 8-bit integers by minimal filtering: 16 products for 4 pixels in place of 36.

As in `winograd`, on tiles of 2 x 2 output pixels, whose matrices hold no other factor than 1: the transformed inputs
are whole numbers, of up to 11 bits. Each of their channels and points has a factor that makes 8 bits of what it holds,
and that the filters are divided by. Products are summed in 32 bits, four channels at a time (AVX-512 VNNI), and leave
integers behind in float32, where the outputs are made.

Maps are pixels of unit channel stride in uint8, outputs in float32 or uint8. Channels come in multiples of PANEL.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from ccnet_cli.ops.cpu import simd
from ccnet_cli.ops.cpu.simd import FLOAT, I32, I64, INT, LANES, NUMBERS, PANEL, VECTOR, WORD

# output and input pixels of a tile's side, and products of a tile
OUT = 2
IN = OUT + 2
POINTS = IN * IN
# the one point whose factors do not sum to 0
SUM = 5
# rows of a tile of products, whose sums stay in registers
ROWS = 14
# channels of a row of the left operand, and the bytes from one to the next: equal distances of a power of two would
# share few lines of the first cache
DEPTH, ROW = 1024, 1088
# bits that a whole number is moved up by before its factor, of 16 bits behind the point, takes 10 of them away
SHIFT = 5
MIDDLE = 128

WIDE = 2 * LANES
SHORTS, BYTES, FEW = (ir.VectorType(ir.IntType(bits), lanes) for bits, lanes in ((16, WIDE), (8, WIDE), (8, LANES)))

LEAVES = ("multiply", "gather", "scatter")
# addresses of an input: its first pixel, the bytes from one to the next, its channels, what lies outside, and what the
# point SUM has too much
SOURCE = 5

PLAN = np.dtype(
    [
        *((name, np.int64) for name in ("height", "width", "inputs", "outputs", "dilation", "sources", "number")),
        *((name, np.int64) for name in ("out", "out_step", "filters", "factors", "starts", "scales", "bias", "add")),
        # output tiles: the rows and columns of them in an image, and the first pixel of each
        *((name, np.int64) for name in ("down", "across", "rows", "columns")),
        *((name, np.int64) for name in ("last", "group", "scratch", "scratch_whole")),
        *((name, np.int64) for name in LEAVES),
        # counters of all threads: the next task, and the threads that have started
        *((name, np.int64) for name in ("count", "next", "threads")),
        ("factor", np.float32),
        ("low", np.float32),
    ],
    align=True,
)
PLANS = types.CPointer(from_dtype(PLAN))
# floats to be quantised: how many, how many a task takes, and what each becomes before it is cut: factor x + zero
ROUNDING = np.dtype(
    [
        *((name, np.int64) for name in ("source", "target", "count", "block", "next")),
        *((name, np.float32) for name in ("factor", "zero")),
    ],
    align=True,
)
NEXT, THREADS = (simd.offset(PLAN, name) for name in ("next", "threads"))
AT = simd.offset(ROUNDING, "next")


def scratch_size(tiles: int, inputs: int, outputs: int) -> int:
    """Bytes of scratch memory for this many tiles at once."""
    rows = -(-tiles // ROWS) * ROWS
    sums = outputs if inputs > DEPTH else PANEL
    return POINTS * (8 + rows * (ROW + sums * WORD)) + outputs * WORD


def _integer(value: int) -> Any:
    return ir.Constant(SHORTS, [ir.IntType(16)(value)] * WIDE)


def _read(builder: Any, address: Any, kind: Any = VECTOR) -> Any:
    return builder.load(simd.pointer(builder, address, kind), align=1)


def _write(builder: Any, vector: Any, address: Any) -> None:
    builder.store(vector, simd.pointer(builder, address, vector.type), align=1)


def _to_bytes(builder: Any, vector: Any, least: Any) -> Any:
    """The integers at or below a vector's floats, from that of `least`, which is not negative, to 255."""
    smaller = simd.function(builder, f"llvm.minnum.v{LANES}f32", *[VECTOR] * 3)
    within = builder.call(smaller, [simd.maximum(builder)(vector, least), simd.constant(255.0)])
    return builder.trunc(builder.fptosi(within, NUMBERS), FEW)


def _transform_inputs(builder: Any, square: Sequence[Any]) -> list[Any]:
    """B^T d B of 4 x 4 vectors of whole numbers."""

    def line(a: Any, b: Any, c: Any, d: Any) -> list[Any]:
        return [builder.sub(a, c), builder.add(b, c), builder.sub(c, b), builder.sub(b, d)]

    columns = [line(*square[column::IN]) for column in range(IN)]
    return [result for row in range(IN) for result in line(*(column[row] for column in columns))]


def _transform_outputs(builder: Any, square: Sequence[Any]) -> list[Any]:
    """A^T m A of 4 x 4 vectors of float32: 2 x 2 of them."""

    def line(a: Any, b: Any, c: Any, d: Any) -> list[Any]:
        return [builder.fadd(a, builder.fadd(b, c)), builder.fsub(builder.fsub(b, c), d)]

    columns = [line(*square[column::IN]) for column in range(IN)]
    return [result for row in range(OUT) for result in line(*(column[row] for column in columns))]


@intrinsic
def _gather(typingctx, table, offset, extra, factors, vectors, target, step):
    """Inputs of a tile, whose pixels' addresses a table holds, transformed to bytes; points are `step` bytes apart.

    offset is the first channel, extra what the point SUM has too much; factors are the address of those of the first
    point, and the bytes to the next point's.
    """

    def generate(context, builder, signature, arguments):
        table, offset, extra, factors, vectors, target, step = arguments
        factors, factor_step = cgutils.unpack_tuple(builder, factors)
        extra = builder.trunc(extra, ir.IntType(16))
        first = builder.insert_element(ir.Constant(SHORTS, ir.Undefined), extra, I32(0))
        order = ir.Constant(ir.VectorType(I32, WIDE), [I32(0)] * WIDE)
        extra = builder.shuffle_vector(first, first, order)
        scale = simd.function(builder, "llvm.x86.avx512.pmul.hr.sw.512", *[SHORTS] * 3)
        larger, smaller = (simd.function(builder, f"llvm.s{name}.v{WIDE}i16", *[SHORTS] * 3) for name in ("max", "min"))
        with cgutils.for_range(builder, vectors) as loop:
            shift = builder.mul(loop.index, I64(WIDE))
            channel = builder.add(offset, shift)
            pixels = [builder.add(simd.entry(builder, table, index), channel) for index in range(POINTS)]
            square = [builder.zext(_read(builder, pixel, BYTES), SHORTS) for pixel in pixels]
            results = _transform_inputs(builder, square)
            results[SUM] = builder.sub(results[SUM], extra)
            factor, address = builder.add(factors, builder.mul(shift, I64(2))), builder.add(target, shift)
            for result in results:
                result = builder.shl(result, _integer(SHIFT))
                result = builder.call(scale, [result, _read(builder, factor, SHORTS)])
                result = builder.add(result, _integer(MIDDLE))
                result = builder.call(smaller, [builder.call(larger, [result, _integer(0)]), _integer(255)])
                _write(builder, builder.trunc(result, BYTES), address)
                factor, address = builder.add(factor, factor_step), builder.add(address, step)
        return context.get_dummy_value()

    return types.void(INT, INT, INT, types.UniTuple(INT, 2), INT, INT, INT), generate


def _products(builder: Any, depth: Any, left: Any, right: Any, ahead: Any) -> list[list[Any]]:
    """A tile of ROWS rows and two vectors of sums of four products each; what lies `ahead` of right is prefetched."""
    dot = simd.function(builder, "llvm.x86.avx512.vpdpbusd.512", *[NUMBERS] * 4)
    before, loop = builder.block, builder.append_basic_block("depth")
    builder.branch(loop)
    builder.position_at_end(loop)
    index, left_at, right_at = (builder.phi(I64) for _ in range(3))
    for phi, value in ((index, I64(0)), (left_at, left), (right_at, right)):
        phi.add_incoming(value, before)
    sums = [[builder.phi(NUMBERS) for _ in range(2)] for _ in range(ROWS)]
    words, panel = simd.pointer(builder, left_at, I32), simd.pointer(builder, right_at, NUMBERS)
    vectors = [builder.load(builder.gep(panel, [I32(half)]), align=WORD) for half in range(2)]
    for half in range(2):
        simd.prefetch(builder, builder.add(builder.add(right_at, ahead), I64(half * LANES * WORD)))
    products = []
    for row, phis in enumerate(sums):
        word = simd.splat(builder, builder.load(builder.gep(words, [I32(row * ROW // WORD)]), align=WORD))
        products.append([builder.call(dot, [phi, word, vector]) for vector, phi in zip(vectors, phis, strict=True)])
        for phi, value in zip(phis, products[-1], strict=True):
            phi.add_incoming(simd.integer(0), before)
            phi.add_incoming(value, loop)
    following = builder.add(index, I64(1))
    index.add_incoming(following, loop)
    left_at.add_incoming(builder.add(left_at, I64(WORD)), loop)
    right_at.add_incoming(builder.add(right_at, I64(WORD * PANEL)), loop)
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
    builder.position_at_end(done)
    return products


@intrinsic
def _tile(typingctx, depth, left, right, ahead, out, start, start_step):
    """out = left @ right, plus the rows that begin at start; see _products for ahead."""

    def generate(context, builder, signature, arguments):
        depth, left, right, ahead, out, start, start_step = arguments
        for row, sums in enumerate(_products(builder, depth, left, right, ahead)):
            for half, total in enumerate(sums):
                before = _read(builder, simd.tile_address(builder, start, start_step, row, half), NUMBERS)
                address = simd.tile_address(builder, out, I64(PANEL * WORD), row, half)
                _write(builder, builder.add(total, before), address)
        return context.get_dummy_value()

    return types.void(*[INT] * 7), generate


def _scattering(small: bool) -> Any:
    @intrinsic
    def scattering(typingctx, source, step, table, values, factor, low):
        """A^T m A of sums m, a panel's, times their scales, plus bias, added to pixels or not, `step` bytes apart.

        values are the addresses of scales and bias, the panel's first channel, and whether to add. To bytes: factor is
        that of the pixels before, and low the least result. To floats: negative results are multiplied by factor.
        """

        def generate(context, builder, signature, arguments):
            source, step, table, values, factor, low = arguments
            scales, bias, channel, add = cgutils.unpack_tuple(builder, values)
            more = simd.mask(builder, builder.mul(add, I64(LANES)))
            factor, low = simd.splat(builder, factor), simd.splat(builder, low)
            zero = simd.constant(0.0)
            for half in range(2):
                lanes = I64(half * LANES * WORD)
                address, scale = builder.add(source, lanes), builder.add(scales, lanes)
                square = []
                for _ in range(POINTS):
                    sums = builder.sitofp(_read(builder, address, NUMBERS), VECTOR)
                    square.append(builder.fmul(sums, _read(builder, scale)))
                    address, scale = builder.add(address, step), builder.add(scale, I64(PANEL * WORD))
                constant = _read(builder, builder.add(bias, lanes))
                for index, result in enumerate(_transform_outputs(builder, square)):
                    result = builder.fadd(result, constant)
                    size = 1 if small else WORD
                    offset = builder.add(builder.mul(channel, I64(size)), I64(half * LANES * size))
                    pixel = builder.add(simd.entry(builder, table, index), offset)
                    if small:
                        before = builder.uitofp(_read(builder, pixel, FEW), VECTOR)
                        before = builder.fmul(before, factor)
                        result = builder.fadd(result, builder.select(more, before, zero))
                        _write(builder, _to_bytes(builder, result, low), pixel)
                    else:
                        result = builder.fadd(result, builder.select(more, _read(builder, pixel), zero))
                        negative = builder.fcmp_ordered("<", result, zero)
                        _write(builder, builder.select(negative, builder.fmul(result, factor), result), pixel)
            return context.get_dummy_value()

        return types.void(INT, INT, INT, types.UniTuple(INT, 4), FLOAT, FLOAT), generate

    return scattering


_scatter_floats, _scatter_bytes = _scattering(False), _scattering(True)


@simd.leaf(*[INT] * 8)
def _multiply(rows, depth, left, right, ahead, out, start, start_step):
    """out = left @ right, plus rows that are start_step bytes apart."""
    for row in range(0, rows, ROWS):
        first = start + row * start_step
        _tile(depth, left + row * ROW, right, ahead, out + row * PANEL * WORD, first, start_step)


@simd.leaf(PLANS, *[INT] * 7)
def _gather_leaf(plans, table, offset, extra, channel, vectors, target, step):
    plan = carray(plans, 1)[0]
    _gather(table, offset, extra, (plan.factors + channel * 2, plan.inputs * 2), vectors, target, step)


@simd.helper
def _values(plan, channel):
    return plan.scales + channel * POINTS * WORD, plan.bias + channel * WORD, channel, plan.add


@simd.leaf(PLANS, *[INT] * 4)
def _scatter_floats_leaf(plans, source, step, table, channel):
    plan = carray(plans, 1)[0]
    _scatter_floats(source, step, table, _values(plan, channel), plan.factor, plan.low)


@simd.leaf(PLANS, *[INT] * 4)
def _scatter_bytes_leaf(plans, source, step, table, channel):
    plan = carray(plans, 1)[0]
    _scatter_bytes(source, step, table, _values(plan, channel), plan.factor, plan.low)


@simd.helper
def _collect(plans, first, tiles, block, table, target, step):
    """The transformed inputs of some tiles: for each point a row of bytes for each tile, a block of channels."""
    plan, start = carray(plans, 1)[0], 0
    for source in range(plan.number):
        line = plan.sources + source * SOURCE * 8
        channels, extra = simd.peek(line + 16), simd.peek(line + 32)
        begin, end = max(start, block), min(start + channels, block + DEPTH)
        if begin < end:
            for tile in range(tiles):
                x, x_step, outside = simd.peek(line), simd.peek(line + 8), simd.peek(line + 24)
                simd.pixel_table(plan, first + tile, x, x_step, IN, 1, outside, table)
                into, count = target + tile * ROW + begin - block, (end - begin) // WIDE
                simd.call(plan.gather, (plans, table, begin - start, extra, begin, count, into, step))
        start += channels


@simd.helper
def _convolve(plans, task, scratch):
    """The output pixels of a group of tiles."""
    plan = carray(plans, 1)[0]
    first = task * plan.group
    tiles = min(plan.group, plan.last - first)
    rows = (tiles + ROWS - 1) // ROWS * ROWS
    table, waste = scratch, scratch + POINTS * 8
    gathered, step, point_step = waste + plan.outputs * WORD, rows * ROW, rows * PANEL * WORD
    product = gathered + POINTS * step
    # the sums of one block need no place beside those of other panels
    panel_step = POINTS * point_step if plan.inputs > DEPTH else 0
    for block in range(0, plan.inputs, DEPTH):
        _collect(plans, first, tiles, block, table, gathered, step)
        depth = min(DEPTH, plan.inputs - block)
        for panel in range(plan.outputs // PANEL):
            sums = product + panel * panel_step
            for point in range(POINTS):
                place, out = panel * POINTS + point, sums + point * point_step
                right, ahead = plan.filters + (place * plan.inputs + block) * PANEL, plan.inputs * PANEL
                start = out if block else plan.starts + place * PANEL * WORD
                start_step, left = PANEL * WORD if block else 0, gathered + point * step
                simd.call(plan.multiply, (rows, depth // WORD, left, right, ahead, out, start, start_step))
            if block + DEPTH >= plan.inputs:
                for tile in range(tiles):
                    simd.pixel_table(plan, first + tile, plan.out, plan.out_step, OUT, 0, waste, table)
                    source = sums + tile * PANEL * WORD
                    simd.call(plan.scatter, (plans, source, point_step, table, panel * PANEL))


@simd.leaf(PLANS)
def work(plans):
    """One thread's work: take the next task until there is none."""
    plan = carray(plans, 1)[0]
    scratch = plan.scratch + simd.fetch_and_add(plans, THREADS) * plan.scratch_whole
    task = simd.fetch_and_add(plans, NEXT)
    while task < plan.count:
        _convolve(plans, task, scratch)
        task = simd.fetch_and_add(plans, NEXT)


@intrinsic
def _round(typingctx, source, target, vectors, factor, zero):
    """Vectors of floats, times factor plus zero, to bytes; what is behind the point is left out."""

    def generate(context, builder, signature, arguments):
        source, target, vectors, factor, zero = arguments
        factor, zero = simd.splat(builder, factor), simd.splat(builder, zero)
        with cgutils.for_range(builder, vectors) as loop:
            shift = builder.mul(loop.index, I64(LANES))
            value = _read(builder, builder.add(source, builder.mul(shift, I64(WORD))))
            value = _to_bytes(builder, simd.fma(builder, value, factor, zero), simd.constant(0.0))
            _write(builder, value, builder.add(target, shift))
        return context.get_dummy_value()

    return types.void(INT, INT, INT, FLOAT, FLOAT), generate


@simd.leaf(types.CPointer(from_dtype(ROUNDING)))
def round_floats(plans):
    """One thread's work: take the next block of floats until there is none."""
    plan = carray(plans, 1)[0]
    start = simd.fetch_and_add(plans, AT) * plan.block
    while start < plan.count:
        vectors = min(plan.block, plan.count - start) // LANES
        _round(plan.source + start * WORD, plan.target + start, vectors, plan.factor, plan.zero)
        start = simd.fetch_and_add(plans, AT) * plan.block


def addresses(small: bool) -> dict[str, int]:
    """The leaves' addresses, for outputs in bytes or in floats."""
    scatter = _scatter_bytes_leaf if small else _scatter_floats_leaf
    return {"multiply": _multiply.address, "gather": _gather_leaf.address, "scatter": scatter.address}
