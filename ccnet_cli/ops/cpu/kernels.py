"""The CPU kernels: products of one line's matrices in vector registers, and the softmax of one pixel's cross.

A line is a row or a column of the map. Everything is float32 and addressed in bytes: an address and a step from one
pixel, row or vector to the next. A product runs over tiles of TILE rows and 2 vectors of columns, whose sums stay in
registers; both operands are first packed so that the tile's loop reads them in order. The order of every sum is fixed
by the sizes alone, so that results do not depend on the number of threads.

Numba keeps compiled functions by the file that defines them, so that all that they are made of is in this one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import carray, cfunc, config, from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = (config.CPU_FEATURES or binding.get_host_cpu_features().flatten()).split(",")
# floats in a vector register, and rows of a tile that leave registers for its operands
LANES, TILE = next(
    (sizes for feature, sizes in (("+avx512f", (16, 14)), ("+avx", (8, 6))) if feature in _FEATURES), (4, 4)
)
WORD = 4
PANEL = 2 * LANES
TASKS = {
    name: number for number, name in enumerate(("forward", "backward", "affinity", "product", "aggregate", "scatter"))
}
_FORWARD, _BACKWARD, _AFFINITY, _PRODUCT, _, _SCATTER = TASKS.values()
# of a pass: the columns' own part, the rows', and what the columns need the rows for
COLUMN, ROW, REST = range(3)
# functions that are called by their address, which is another in each process and no constant of what Numba keeps
LEAVES = ("product", "pack_tiles", "pack_panels", "pack_transposed", "softmaxes", "softmaxes_backward")

_F32, _I1, _I32, _I64 = ir.FloatType(), ir.IntType(1), ir.IntType(32), ir.IntType(64)
_VECTOR, _NUMBERS, _MASK = (ir.VectorType(kind, LANES) for kind in (_F32, _I32, _I1))
_INT, _FLOAT = types.int64, types.float32


# what a pass works on: sizes; where tensors lie, an address and the bytes from pixel to pixel, or 0 where there is
# none; attention and its gradient, pull, have height + width floats a pixel, dots has one for each row of an image
TENSORS = ("query", "key", "value", "base", "out", "grad", "d_query", "d_key", "d_value")
PLAN = np.dtype(
    [
        *((name, np.int64) for name in ("task", "step", "height", "width", "reduced", "channels")),
        *((f"{name}{suffix}", np.int64) for name in TENSORS for suffix in ("", "_step")),
        *((name, np.int64) for name in ("attention", "pull", "dots", "scratch", "scratch_left", "scratch_whole")),
        *((name, np.int64) for name in LEAVES),
        # what its threads count together: lines still to do, and threads that have come
        *((name, np.int64) for name in ("count", "next", "threads")),
        ("scale", np.float32),
    ],
    align=True,
)
NEXT, THREADS = (PLAN.fields[name][1] for name in ("next", "threads"))


def scratch(height: int, width: int, reduced: int, channels: int) -> tuple[int, int]:
    """Bytes of a thread's packed left operand, and of both; whole squares are written, even where they are not full."""
    line = max(height, width)
    deep = max(line, reduced, channels)
    left = -(-line // TILE) * deep + LANES
    # a transposed operand has a panel for some pixels, the others have one for some channels
    right = max(-(-line // PANEL) * deep, -(-deep // PANEL) * line) + LANES
    return WORD * LANES * left, WORD * (LANES * left + PANEL * right)


# what LLVM is told directly


def _function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.call(_function(builder, f"llvm.fmuladd.v{LANES}f32", *[_VECTOR] * 4), [a, b, c])


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [_F32(value)] * LANES)


def _whole(value: int) -> Any:
    return ir.Constant(_NUMBERS, [_I32(value)] * LANES)


def _splat(builder: Any, scalar: Any) -> Any:
    kind = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_NUMBERS, [_I32(0)] * LANES))


def _pointer(builder: Any, address: Any, kind: Any = _VECTOR) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _mask(builder: Any, count: Any) -> Any:
    """The first `count` lanes, all or none where it is beyond them."""
    lanes = ir.Constant(_NUMBERS, [_I32(lane) for lane in range(LANES)])
    return builder.icmp_signed("<", lanes, _splat(builder, builder.trunc(count, _I32)))


def _load(builder: Any, address: Any, mask: Any, other: Any) -> Any:
    arguments = (_VECTOR.as_pointer(), _I32, _MASK, _VECTOR)
    call = _function(builder, f"llvm.masked.load.v{LANES}f32.p0", _VECTOR, *arguments)
    return builder.call(call, [_pointer(builder, address), _I32(WORD), mask, other])


def _store(builder: Any, vector: Any, address: Any, mask: Any) -> None:
    arguments = (_VECTOR, _VECTOR.as_pointer(), _I32, _MASK)
    call = _function(builder, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), *arguments)
    builder.call(call, [vector, _pointer(builder, address), _I32(WORD), mask])


def _plus(builder: Any, address: Any, step: Any, count: int) -> Any:
    return builder.add(address, builder.mul(step, _I64(count)))


def _reduced(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """All lanes combined, in every lane."""
    half = LANES // 2
    while half:
        order = ir.Constant(_NUMBERS, [_I32(lane ^ half) for lane in range(LANES)])
        vector = combine(vector, builder.shuffle_vector(vector, vector, order))
        half //= 2
    return vector


def _maximum(builder: Any) -> Callable[[Any, Any], Any]:
    function = _function(builder, f"llvm.maxnum.v{LANES}f32", *[_VECTOR] * 3)
    return lambda a, b: builder.call(function, [a, b])


def _exponential(builder: Any, x: Any) -> Any:
    """e to the power of numbers up to 0, to float32's rounding; 0 where that is no normal number."""
    low = _constant(-87.0)
    # nan stays in x, and becomes nothing that no integer can be
    clipped = _maximum(builder)(x, low)
    rounded = builder.call(
        _function(builder, f"llvm.rint.v{LANES}f32", _VECTOR, _VECTOR),
        [builder.fmul(clipped, _constant(1.44269504088896341))],
    )
    # log(2) in two parts, of which the first has few bits
    rest = _fma(builder, rounded, _constant(-0.693359375), x)
    rest = _fma(builder, rounded, _constant(2.12194440054690583e-4), rest)
    result = _constant(1 / 5040)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        result = _fma(builder, result, rest, _constant(factor))
    exponent = builder.shl(builder.add(builder.fptosi(rounded, _NUMBERS), _whole(127)), _whole(23))
    result = builder.fmul(result, builder.bitcast(exponent, _VECTOR))
    return builder.select(builder.fcmp_ordered("<", x, low), _constant(0.0), result)


class _Vectors:
    """A loop over a pixel's floats, a vector at a time, in which sums are carried."""

    def __init__(self, builder: Any, count: Any, *sums: Any) -> None:
        self.builder, self.count = builder, count
        self.cells = [cgutils.alloca_once_value(builder, value) for value in sums]

    def each(self, body: Callable[..., Any]) -> list[Any]:
        """Call body(byte offset, mask, *sums), which gives the new sums; the last ones."""
        builder = self.builder
        blocks = builder.sdiv(builder.add(self.count, _I64(LANES - 1)), _I64(LANES))
        with cgutils.for_range(builder, blocks) as loop:
            first = builder.mul(loop.index, _I64(LANES))
            mask = _mask(builder, builder.sub(self.count, first))
            new = body(builder.mul(first, _I64(WORD)), mask, *(builder.load(cell) for cell in self.cells))
            for cell, value in zip(self.cells, new, strict=True):
                builder.store(value, cell)
        return [builder.load(cell) for cell in self.cells]


@intrinsic
def _softmax(typingctx, address, count):
    """Softmax over so many floats, in place."""

    def generate(context, builder, signature, arguments):
        address, count = arguments
        lowest = _constant(float("-inf"))
        zero = _constant(0.0)

        def largest(offset, mask, most):
            return [_maximum(builder)(most, _load(builder, builder.add(address, offset), mask, lowest))]

        (most,) = _Vectors(builder, count, lowest).each(largest)
        most = _reduced(builder, most, _maximum(builder))

        def powers(offset, mask, total):
            place = builder.add(address, offset)
            found = _exponential(builder, builder.fsub(_load(builder, place, mask, lowest), most))
            _store(builder, found, place, mask)
            return [builder.fadd(total, builder.select(mask, found, zero))]

        (total,) = _Vectors(builder, count, zero).each(powers)
        factor = builder.fdiv(_constant(1.0), _reduced(builder, total, builder.fadd))

        def scaled(offset, mask):
            place = builder.add(address, offset)
            _store(builder, builder.fmul(_load(builder, place, mask, zero), factor), place, mask)
            return []

        _Vectors(builder, count).each(scaled)
        return context.get_dummy_value()

    return types.void(_INT, _INT), generate


@intrinsic
def _softmax_backward(typingctx, weights, pull, count, scale):
    """weights * (pull - sum of weights * pull) * scale over so many floats, in pull's place; gives that sum."""

    def generate(context, builder, signature, arguments):
        weights, pull, count, scale = arguments
        zero = _constant(0.0)

        def both(offset, mask):
            return [_load(builder, builder.add(address, offset), mask, zero) for address in (weights, pull)]

        def products(offset, mask, total):
            return [_fma(builder, *both(offset, mask), total)]

        (total,) = _Vectors(builder, count, zero).each(products)
        total = _reduced(builder, total, builder.fadd)
        factor = _splat(builder, scale)

        def gradient(offset, mask):
            weight, pulled = both(offset, mask)
            found = builder.fmul(builder.fmul(weight, builder.fsub(pulled, total)), factor)
            _store(builder, found, builder.add(pull, offset), mask)
            return []

        _Vectors(builder, count).each(gradient)
        return builder.extract_element(total, _I32(0))

    return _FLOAT(_INT, _INT, _INT, _FLOAT), generate


@intrinsic
def _put(typingctx, address, value):
    """Write a float."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[1], _pointer(builder, arguments[0], _F32), align=WORD)
        return context.get_dummy_value()

    return types.void(_INT, _FLOAT), generate


@intrinsic
def _taken(typingctx, counters, field):
    """A counter of the plan before one is added to it, which no other thread gets."""

    def generate(context, builder, signature, arguments):
        address = builder.add(builder.ptrtoint(arguments[0], _I64), arguments[1])
        return builder.atomic_rmw("add", _pointer(builder, address, _I64), _I64(1), "monotonic")

    return _INT(counters, _INT), generate


@intrinsic
def _copy(typingctx, target, source, count):
    """So many floats, at most a panel's row of them, and zeros after them."""

    def generate(context, builder, signature, arguments):
        target, source, count = arguments
        for first in (0, LANES):
            offset = _I64(WORD * first)
            mask = _mask(builder, builder.sub(count, _I64(first)))
            vector = _load(builder, builder.add(source, offset), mask, _constant(0.0))
            builder.store(vector, _pointer(builder, builder.add(target, offset)), align=WORD)
        return context.get_dummy_value()

    return types.void(_INT, _INT, _INT), generate


@intrinsic
def _transpose(typingctx, target, target_step, source, source_step, rows, count):
    """Up to a vector of rows, of which each has so many floats: as columns, a vector each, zeros for missing rows.

    Writes whole squares, up to LANES - 1 vectors too many.
    """

    def generate(context, builder, signature, arguments):
        target, target_step, source, source_step, rows, count = arguments
        blocks = builder.sdiv(builder.add(count, _I64(LANES - 1)), _I64(LANES))
        nothing, zero = ir.Constant(_MASK, None), _constant(0.0)
        with cgutils.for_range(builder, blocks) as loop:
            first = builder.mul(loop.index, _I64(LANES))
            mask = _mask(builder, builder.sub(count, first))
            place = builder.add(source, builder.mul(first, _I64(WORD)))
            vectors = []
            for row in range(LANES):
                there = builder.icmp_signed("<", _I64(row), rows)
                # a masked load of nothing is slow where there is no memory
                start = builder.select(there, _plus(builder, place, source_step, row), place)
                vectors.append(_load(builder, start, builder.select(there, mask, nothing), zero))
            half = 1
            while half < LANES:
                # blocks off the diagonal change places
                lanes = range(LANES)
                upper = [lane if not lane & half else LANES + lane - half for lane in lanes]
                lower = [lane + half if not lane & half else LANES + lane for lane in lanes]
                for row in (row for row in lanes if not row & half):
                    pair = vectors[row], vectors[row + half]
                    for at, order in ((row, upper), (row + half, lower)):
                        order = ir.Constant(_NUMBERS, [_I32(lane) for lane in order])
                        vectors[at] = builder.shuffle_vector(*pair, order)
                half *= 2
            place = builder.add(target, builder.mul(first, target_step))
            for column, vector in enumerate(vectors):
                builder.store(vector, _pointer(builder, _plus(builder, place, target_step, column)), align=WORD)
        return context.get_dummy_value()

    return types.void(*[_INT] * 6), generate


def _sums(builder: Any, rows: int, halves: int, arguments: Any) -> None:
    """One tile of so many rows and vectors, whose sums are all in registers; see _tile."""
    depth, left, left_step, right, out, out_step, base, base_step, scale, columns = arguments
    before, loop = builder.block, builder.append_basic_block("depth")
    builder.branch(loop)
    builder.position_at_end(loop)
    index, left_at, right_at = (builder.phi(_I64) for _ in range(3))
    for phi, value in ((index, _I64(0)), (left_at, left), (right_at, right)):
        phi.add_incoming(value, before)
    sums = [[builder.phi(_VECTOR) for _ in range(halves)] for _ in range(rows)]
    panel, scalars = _pointer(builder, right_at), _pointer(builder, left_at, _F32)
    vectors = [builder.load(builder.gep(panel, [_I32(half)]), align=WORD) for half in range(halves)]
    found = []
    for row, phis in enumerate(sums):
        scalar = _splat(builder, builder.load(builder.gep(scalars, [_I32(row)]), align=WORD))
        found.append([_fma(builder, scalar, vector, phi) for vector, phi in zip(vectors, phis, strict=True)])
        for phi, value in zip(phis, found[-1], strict=True):
            phi.add_incoming(_constant(0.0), before)
            phi.add_incoming(value, loop)
    following = builder.add(index, _I64(1))
    index.add_incoming(following, loop)
    left_at.add_incoming(builder.add(left_at, left_step), loop)
    right_at.add_incoming(builder.add(right_at, _I64(WORD * PANEL)), loop)
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
    builder.position_at_end(done)
    factor, based = _splat(builder, scale), builder.icmp_signed("!=", base, _I64(0))
    for half in range(halves):
        offset = _I64(WORD * LANES * half)
        mask = _mask(builder, builder.sub(columns, _I64(LANES * half)))
        there = builder.select(based, mask, ir.Constant(_MASK, None))
        for row in range(rows):
            place = builder.add(_plus(builder, out, out_step, row), offset)
            start = builder.add(_plus(builder, base, base_step, row), offset)
            # a masked load of nothing is slow where there is no memory
            start = _load(builder, builder.select(based, start, place), there, _constant(0.0))
            _store(builder, _fma(builder, factor, found[row][half], start), place, mask)


@intrinsic
def _tile(typingctx, rows, depth, left, left_step, right, out, out_step, base, base_step, scale, columns):
    """out = base + scale * left @ right: up to TILE rows, up to a panel's columns; no base where its address is 0."""

    def generate(context, builder, signature, arguments):
        rows, *others = arguments
        wide = builder.zext(builder.icmp_signed(">", others[-1], _I64(LANES)), _I64)
        done = builder.append_basic_block("end")
        switch = builder.switch(builder.add(builder.mul(rows, _I64(2)), wide), done)
        for count in range(1, TILE + 1):
            for halves in (1, 2):
                block = builder.append_basic_block("tile")
                switch.add_case(_I64(2 * count + halves - 1), block)
                builder.position_at_end(block)
                _sums(builder, count, halves, others)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[_INT] * 9, _FLOAT, _INT), generate


@intrinsic
def _call(typingctx, address, arguments):
    """Call a C function that gives nothing."""

    def generate(context, builder, signature, values):
        address, arguments = values
        parts = cgutils.unpack_tuple(builder, arguments)
        kind = ir.FunctionType(ir.VoidType(), [part.type for part in parts])
        builder.call(_pointer(builder, address, kind), parts)
        return context.get_dummy_value()

    return types.void(_INT, arguments), generate


def _cached(compile: Callable[..., Any], function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The function compiled for such arguments, or taken from Numba's cache where it has a folder for that."""
    try:
        return compile(types.void(*arguments), cache=True, **options)(function)
    except RuntimeError:
        return compile(types.void(*arguments), **options)(function)


# compiled functions live as long as something holds them
_KEPT = []


def _leaf(*arguments: Any) -> Callable[[Callable[..., Any]], int]:
    """Compile to a C function and give its address: Numba would compile an ordinary one anew into all its callers."""

    def compiled(function: Callable[..., Any]) -> int:
        _KEPT.append(_cached(cfunc, function, *arguments, error_model="numpy"))
        address: int = _KEPT[-1].address
        return address

    return compiled


@_leaf(*[_INT] * 11, _FLOAT)
def _product(rows, columns, depth, left, left_step, packed, right, out, out_step, base, base_step, scale):
    """out = base + scale * left @ right, right in panels; left in tiles where packed, else transposed in memory."""
    tiles = (rows + TILE - 1) // TILE
    for panel in range((columns + PANEL - 1) // PANEL):
        across = panel * PANEL * WORD
        for tile in range(tiles):
            first, last = rows * tile // tiles, rows * (tile + 1) // tiles
            _tile(
                last - first,
                depth,
                left + tile * depth * LANES * WORD if packed else left + first * WORD,
                left_step,
                right + across * depth,
                out + first * out_step + across,
                out_step,
                base + first * base_step + across if base else 0,
                base_step,
                scale,
                columns - panel * PANEL,
            )


@_leaf(*[_INT] * 5)
def _pack_tiles(target, source, step, rows, depth):
    """So many rows into tiles: at each depth, a vector of the rows' floats there."""
    tiles = (rows + TILE - 1) // TILE
    for tile in range(tiles):
        first, last = rows * tile // tiles, rows * (tile + 1) // tiles
        there = target + tile * depth * LANES * WORD
        _transpose(there, LANES * WORD, source + first * step, step, last - first, depth)


@_leaf(*[_INT] * 5)
def _pack_panels(target, source, step, depth, columns):
    """So many rows into panels, as they are."""
    for panel in range((columns + PANEL - 1) // PANEL):
        first = panel * PANEL
        there = target + first * depth * WORD
        for row in range(depth):
            _copy(there + row * PANEL * WORD, source + row * step + first * WORD, columns - first)


@_leaf(*[_INT] * 5)
def _pack_transposed(target, source, step, columns, depth):
    """So many rows into panels, each as a column."""
    for first in range(0, columns, LANES):
        there = target + (first // PANEL * PANEL * depth + first % PANEL) * WORD
        _transpose(there, PANEL * WORD, source + first * step, step, columns - first, depth)


@_leaf(*[_INT] * 3)
def _softmaxes(attention, pixels, positions):
    for pixel in range(pixels):
        _softmax(attention + pixel * positions * WORD, positions)


@_leaf(*[_INT] * 5, _FLOAT)
def _softmaxes_backward(attention, pull, pixels, positions, dot, scale):
    """Also the sum over all pixels of attention * pull, into dot."""
    total = np.float32(0)
    for pixel in range(pixels):
        offset = pixel * positions * WORD
        total += _softmax_backward(attention + offset, pull + offset, positions, scale)
    _put(dot, total)


# a line is its first pixel, the pixels from one to the next, how many, and where its arm begins in the attention
_helper = njit(error_model="numpy")


@_helper
def _energies(plan, line, scratch, out, left, left_step, right, right_step, depth):
    """A line's left @ right^T into its arm of out."""
    first, stride, n, arm = line
    positions, panels = plan.height + plan.width, scratch + plan.scratch_left
    _call(plan.pack_tiles, (scratch, left + first * left_step, stride * left_step, n, depth))
    _call(plan.pack_transposed, (panels, right + first * right_step, stride * right_step, n, depth))
    place, step = out + (first * positions + arm) * WORD, stride * positions * WORD
    operands = scratch, LANES * WORD, 1, panels
    _call(plan.product, (n, n, depth, *operands, place, step, 0, 0, np.float32(1)))


@_helper
def _weighted(plan, line, scratch, weights, spread, right, right_step, columns, out, out_step, base, base_step, scale):
    """A line's base + scale * weights @ right, or weights^T if they are to spread."""
    first, stride, n, arm = line
    positions, panels = plan.height + plan.width, scratch + plan.scratch_left
    left, step = weights + (first * positions + arm) * WORD, stride * positions * WORD
    if not spread:
        _call(plan.pack_tiles, (scratch, left, step, n, n))
        left, step = scratch, LANES * WORD
    _call(plan.pack_panels, (panels, right + first * right_step, stride * right_step, n, columns))
    operands = left, step, 1 - spread, panels
    out, base = out + first * out_step, base + first * base_step if base else 0
    _call(plan.product, (n, columns, n, *operands, out, stride * out_step, base, stride * base_step, scale))


@_helper
def _scores(plan, line, scratch):
    """The energies of query and key, in the columns without the pixel itself unless they are but products."""
    first, stride, n, arm = line
    positions = plan.height + plan.width
    query, key = (plan.query, plan.query_step), (plan.key, plan.key_step)
    _energies(plan, line, scratch, plan.attention, *query, *key, plan.reduced)
    if not arm and plan.task != _PRODUCT:
        for i in range(n):
            # the pixel lies on both arms: count it once, in the row
            _put(plan.attention + ((first + i * stride) * positions + i) * WORD, np.float32(-np.inf))


@_helper
def _gathered(plan, line, scratch):
    """Base and scale times what the rows' arms hold, to which the columns' arms are added."""
    value, out, base = (plan.value, plan.value_step), (plan.out, plan.out_step), (plan.base, plan.base_step)
    spread = 1 if plan.task == _SCATTER else 0
    start = base if plan.step == ROW else out
    _weighted(plan, line, scratch, plan.attention, spread, *value, plan.channels, *out, *start, plan.scale)


@_helper
def _forward(plan, line, scratch):
    first, _, n, _ = line
    positions = plan.height + plan.width
    if plan.step != REST:
        _scores(plan, line, scratch)
    if plan.step == ROW:
        _call(plan.softmaxes, (plan.attention + first * positions * WORD, n, positions))
    if plan.step != COLUMN:
        _gathered(plan, line, scratch)


@_helper
def _backward(plan, line, scratch):
    first, _, n, _ = line
    step, scale, positions = plan.step, plan.scale, plan.height + plan.width
    grad, value, nothing, one = (plan.grad, plan.grad_step), (plan.value, plan.value_step), (0, 0), np.float32(1)
    query, key = (plan.query, plan.query_step), (plan.key, plan.key_step)
    d_query, d_key = (plan.d_query, plan.d_query_step), (plan.d_key, plan.d_key_step)
    d_value = (plan.d_value, plan.d_value_step)
    if step != REST:
        _energies(plan, line, scratch, plan.pull, *grad, *value, plan.channels)
        d_base = d_value if step == ROW else nothing
        _weighted(plan, line, scratch, plan.attention, 1, *grad, plan.channels, *d_value, *d_base, scale)
    if step == ROW:
        offset = first * positions * WORD
        dot = plan.dots + first // n * WORD
        _call(plan.softmaxes_backward, (plan.attention + offset, plan.pull + offset, n, positions, dot, scale))
    if step != COLUMN:
        q_base, k_base = (d_query, d_key) if step == REST else (nothing, nothing)
        _weighted(plan, line, scratch, plan.pull, 0, *key, plan.reduced, *d_query, *q_base, one)
        _weighted(plan, line, scratch, plan.pull, 1, *query, plan.reduced, *d_key, *k_base, one)


@_leaf(types.CPointer(from_dtype(PLAN)))
def lines(plans):
    """One thread's part of a step: the next line that no other has taken, until there is none."""
    plan = carray(plans, 1)[0]
    scratch = plan.scratch + _taken(plans, THREADS) * plan.scratch_whole
    index = _taken(plans, NEXT)
    while index < plan.count:
        if plan.step == ROW:
            line = (index * plan.width, 1, plan.width, plan.height)
        else:
            image, column = index // plan.width, index % plan.width
            line = (image * plan.height * plan.width + column, plan.width, plan.height, 0)
        if plan.task == _FORWARD:
            _forward(plan, line, scratch)
        elif plan.task == _BACKWARD:
            _backward(plan, line, scratch)
        elif plan.task == _AFFINITY or plan.task == _PRODUCT:
            if plan.step != REST:
                _scores(plan, line, scratch)
        elif plan.step != COLUMN:
            _gathered(plan, line, scratch)
        index = _taken(plans, NEXT)


ADDRESSES = dict(
    zip(LEAVES, (_product, _pack_tiles, _pack_panels, _pack_transposed, _softmaxes, _softmaxes_backward), strict=True)
)
