"""Building blocks of all CPU kernels: LLVM code for vectors of float32, and functions that Numba compiles.

Everything is addressed in bytes. A product runs over tiles of up to TILE rows and 2 vectors of columns, whose sums stay
in registers.
"""

from collections.abc import Callable
from hashlib import blake2s
from pathlib import Path
from typing import Any

from llvmlite import binding, ir
from numba import cfunc, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = (config.CPU_FEATURES or binding.get_host_cpu_features().flatten()).split(",")
# floats in a vector register, and rows of a tile that leave registers for its operands
LANES, TILE = next(
    (sizes for feature, sizes in (("+avx512f", (16, 14)), ("+avx", (8, 6))) if feature in _FEATURES), (4, 4)
)
WORD = 4
PANEL = 2 * LANES

F32, I1, I32, I64 = ir.FloatType(), ir.IntType(1), ir.IntType(32), ir.IntType(64)
VECTOR, NUMBERS, MASK = (ir.VectorType(kind, LANES) for kind in (F32, I32, I1))
INT, FLOAT = types.int64, types.float32

# a function that Numba compiles anew into each of its callers
helper = njit(error_model="numpy")


def function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """LLVM's function of that name."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c."""
    return builder.call(function(builder, f"llvm.fmuladd.v{LANES}f32", *[VECTOR] * 4), [a, b, c])


def constant(value: float) -> Any:
    """A number in every lane."""
    return ir.Constant(VECTOR, [F32(value)] * LANES)


def integer(value: int) -> Any:
    """An integer in every lane."""
    return ir.Constant(NUMBERS, [I32(value)] * LANES)


def splat(builder: Any, scalar: Any) -> Any:
    """A scalar in every lane."""
    kind = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(NUMBERS, [I32(0)] * LANES))


def pointer(builder: Any, address: Any, kind: Any = VECTOR) -> Any:
    """An address as a pointer to a vector, or to something else."""
    return builder.inttoptr(address, kind.as_pointer())


def mask(builder: Any, count: Any) -> Any:
    """The first `count` lanes; all for a larger count, none for a negative one."""
    lanes = ir.Constant(NUMBERS, [I32(lane) for lane in range(LANES)])
    return builder.icmp_signed("<", lanes, splat(builder, builder.trunc(count, I32)))


def load(builder: Any, address: Any, mask: Any, other: Any) -> Any:
    """A vector: lanes in the mask are read, the rest are those of `other`."""
    arguments = (VECTOR.as_pointer(), I32, MASK, VECTOR)
    masked = function(builder, f"llvm.masked.load.v{LANES}f32.p0", VECTOR, *arguments)
    return builder.call(masked, [pointer(builder, address), I32(WORD), mask, other])


def store(builder: Any, vector: Any, address: Any, mask: Any) -> None:
    """Write the lanes in the mask."""
    arguments = (VECTOR, VECTOR.as_pointer(), I32, MASK)
    masked = function(builder, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), *arguments)
    builder.call(masked, [vector, pointer(builder, address), I32(WORD), mask])


def prefetch(builder: Any, address: Any, write: bool = False) -> None:
    """Prefetch a cache line; the address may be invalid."""
    instruction = function(builder, "llvm.prefetch.p0", ir.VoidType(), I64.as_pointer(), I32, I32, I32)
    builder.call(instruction, [pointer(builder, address, I64), I32(int(write)), I32(3), I32(1)])


def advance(builder: Any, address: Any, step: Any, count: int) -> Any:
    """An address moved by `count` steps."""
    return builder.add(address, builder.mul(step, I64(count)))


def entry(builder: Any, table: Any, index: int) -> Any:
    """The integer of that index in a table."""
    return builder.load(builder.gep(pointer(builder, table, I64), [I32(index)]))


def tile_address(builder: Any, start: Any, step: Any, row: int, half: int) -> Any:
    """The address of a vector in a tile whose rows are `step` bytes apart."""
    return builder.add(advance(builder, start, step, row), I64(WORD * LANES * half))


def reduce(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """All lanes combined, in every lane."""
    half = LANES // 2
    while half:
        order = ir.Constant(NUMBERS, [I32(lane ^ half) for lane in range(LANES)])
        vector = combine(vector, builder.shuffle_vector(vector, vector, order))
        half //= 2
    return vector


def maximum(builder: Any) -> Callable[[Any, Any], Any]:
    """A function of two vectors: the larger number of each lane."""
    larger = function(builder, f"llvm.maxnum.v{LANES}f32", *[VECTOR] * 3)
    return lambda a, b: builder.call(larger, [a, b])


def product(
    builder: Any, rows: int, halves: int, depth: Any, left: Any, left_step: Any, right: Any, row_step: int = 1
) -> list[list[Any]]:
    """A tile of left @ right of `rows` rows and `halves` vectors, with all sums in registers.

    In left, neighbouring rows are row_step floats apart, and depths left_step bytes; right is a panel.
    """
    before, loop = builder.block, builder.append_basic_block("depth")
    builder.branch(loop)
    builder.position_at_end(loop)
    index, left_at, right_at = (builder.phi(I64) for _ in range(3))
    for phi, value in ((index, I64(0)), (left_at, left), (right_at, right)):
        phi.add_incoming(value, before)
    sums = [[builder.phi(VECTOR) for _ in range(halves)] for _ in range(rows)]
    panel, scalars = pointer(builder, right_at), pointer(builder, left_at, F32)
    vectors = [builder.load(builder.gep(panel, [I32(half)]), align=WORD) for half in range(halves)]
    products = []
    for row, phis in enumerate(sums):
        scalar = splat(builder, builder.load(builder.gep(scalars, [I32(row * row_step)]), align=WORD))
        products.append([fma(builder, scalar, vector, phi) for vector, phi in zip(vectors, phis, strict=True)])
        for phi, value in zip(phis, products[-1], strict=True):
            phi.add_incoming(constant(0.0), before)
            phi.add_incoming(value, loop)
    following = builder.add(index, I64(1))
    index.add_incoming(following, loop)
    left_at.add_incoming(builder.add(left_at, left_step), loop)
    right_at.add_incoming(builder.add(right_at, I64(WORD * PANEL)), loop)
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
    builder.position_at_end(done)
    return products


@intrinsic
def fetch_and_add(typingctx, counters, field):
    """Atomic fetch-and-add of 1 to a counter of the plan; returns the old value."""

    def generate(context, builder, signature, arguments):
        address = builder.add(builder.ptrtoint(arguments[0], I64), arguments[1])
        return builder.atomic_rmw("add", pointer(builder, address, I64), I64(1), "monotonic")

    return INT(counters, INT), generate


@intrinsic
def transpose(typingctx, target, target_step, source, source_step, rows, count):
    """Write up to LANES rows of `count` floats as columns, a vector each, with zeros for missing rows.

    Writes whole squares, up to LANES - 1 vectors too many.
    """

    def generate(context, builder, signature, arguments):
        target, target_step, source, source_step, rows, count = arguments
        blocks = builder.sdiv(builder.add(count, I64(LANES - 1)), I64(LANES))
        nothing, zero = ir.Constant(MASK, None), constant(0.0)
        with cgutils.for_range(builder, blocks) as loop:
            first = builder.mul(loop.index, I64(LANES))
            inside = mask(builder, builder.sub(count, first))
            address = builder.add(source, builder.mul(first, I64(WORD)))
            vectors = []
            for row in range(LANES):
                there = builder.icmp_signed("<", I64(row), rows)
                # even a load without lanes is slow where no memory is mapped
                start = builder.select(there, advance(builder, address, source_step, row), address)
                vectors.append(load(builder, start, builder.select(there, inside, nothing), zero))
            half = 1
            while half < LANES:
                # swap the blocks off the diagonal
                lanes = range(LANES)
                upper = [lane if not lane & half else LANES + lane - half for lane in lanes]
                lower = [lane + half if not lane & half else LANES + lane for lane in lanes]
                for row in (row for row in lanes if not row & half):
                    pair = vectors[row], vectors[row + half]
                    for at, order in ((row, upper), (row + half, lower)):
                        order = ir.Constant(NUMBERS, [I32(lane) for lane in order])
                        vectors[at] = builder.shuffle_vector(*pair, order)
                half *= 2
            address = builder.add(target, builder.mul(first, target_step))
            for column, vector in enumerate(vectors):
                builder.store(vector, pointer(builder, advance(builder, address, target_step, column)), align=WORD)
        return context.get_dummy_value()

    return types.void(*[INT] * 6), generate


@intrinsic
def peek(typingctx, address):
    """The integer at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(pointer(builder, arguments[0], I64))

    return INT(INT), generate


@intrinsic
def poke(typingctx, address, value):
    """Write an integer."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[1], pointer(builder, arguments[0], I64))
        return context.get_dummy_value()

    return types.void(INT, INT), generate


@helper
def pixel_table(plan, tile, base, step, side, before, outside, table):
    """The addresses of a square of pixels that starts `before` pixels before the tile; `outside` beyond the image."""
    image, index = tile // (plan.down * plan.across), tile % (plan.down * plan.across)
    top = peek(plan.rows + index // plan.across * 8) - before * plan.dilation
    left = peek(plan.columns + index % plan.across * 8) - before * plan.dilation
    for i in range(side):
        y = top + i * plan.dilation
        for j in range(side):
            x = left + j * plan.dilation
            inside = y >= 0 and y < plan.height and x >= 0 and x < plan.width
            pixel = (image * plan.height + y) * plan.width + x
            poke(table + (i * side + j) * 8, base + pixel * step if inside else outside)


@intrinsic
def call(typingctx, address, arguments):
    """Call a leaf, which returns nothing. An argument may be a tuple of integers, whose types here may be literal."""

    def generate(context, builder, signature, values):
        address, arguments = values
        parts = [
            cgutils.pack_array(builder, cgutils.unpack_tuple(builder, part))
            if isinstance(kind, types.BaseTuple)
            else part
            for kind, part in zip(signature.args[1], cgutils.unpack_tuple(builder, arguments), strict=True)
        ]
        kind = ir.FunctionType(ir.VoidType(), [part.type for part in parts])
        builder.call(pointer(builder, address, kind), parts)
        return context.get_dummy_value()

    return types.void(INT, arguments), generate


def compile_cached(compile: Callable[..., Any], signature: Any, function: Callable[..., Any], **options: Any) -> Any:
    """The function compiled for a signature, or read from Numba's cache beside its file or in the user's folder."""
    try:
        return compile(signature, cache=True, **options)(function)
    except Exception:  # a folder or a cached file may be broken in any way; an error of the function itself comes again
        return compile(signature, **options)(function)


def offset(plan: Any, name: str) -> int:
    """The offset of a field in bytes."""
    return int(plan.fields[name][1])


_STAMP = blake2s(Path(__file__).read_bytes(), digest_size=4).hexdigest()


def leaf(*arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile to a C function, to be called by its `address`: Numba would compile an ordinary one into each caller."""

    def compile_leaf(function: Callable[..., Any]) -> Any:
        # Numba looks for changes in the function's own file, but code of this one is in it too
        function.__qualname__ += f"_{_STAMP}"
        return compile_cached(cfunc, types.void(*arguments), function, error_model="numpy")

    return compile_leaf
