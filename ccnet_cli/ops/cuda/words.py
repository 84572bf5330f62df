"""What the threads of a warp hold of a product on tensor cores, as tuples, and the steps that a loop over them takes.

A word of 32 bits is two numbers of 16, the first in the lower half, or a float32 rounded to TF32. With group =
lane // 4 and member = lane % 4, a thread holds of a matrix of 16 rows, a row being `group` or `group + 8`:

    total   of each 8 columns j four float32: columns 8 j + 2 member and the next, of its row, then of the other
    words   the same as two words, one of each row; in TF32 four, the first column of both rows before the next

Every function here is made for a number of columns and writes out its loop, so that nothing is indexed at run time:
what is indexed so lies in memory, not in registers. The Numba CUDA simulator cannot run them.
"""

import functools
from functools import lru_cache
from itertools import product

from llvmlite import ir
from numba import types
from numba.cuda import cgutils, nvvmutils
from numba.cuda.extending import intrinsic
from numba.cuda.np import arrayobj

from ccnet_cli.ops.cuda.plan import COPIED_PITCH, CUT, STEP, cut_channels, numbers_per_word, turned_words

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_WIDE = ir.VectorType(_I32, 4)
_LOG2_E = ir.Constant(_F32, 1.4426950408889634)
_KINDS = {"bfloat16": "bf16", "float16": "f16", "float32": "tf32"}
FOUR, EIGHT = types.UniTuple(types.uint32, 4), types.UniTuple(types.uint32, 8)
OCTET = types.UniTuple(types.float32, 8)


def _totals(tiles):
    return types.UniTuple(types.float32, 4 * tiles)


def _sums(dtype):
    """The kind of a total of as many channels as are made at once."""
    return _totals(cut_channels(dtype)[0] // 8)


def _words(dtype, tiles):
    return types.UniTuple(types.uint32, 4 * tiles // numbers_per_word(dtype))


def _piece(dtype):
    """The kind of as many float32 as 16 bytes hold numbers of a type."""
    return types.UniTuple(types.float32, 4 * numbers_per_word(dtype))


def _assemble(builder, result, text, constraints, arguments, volatile=False):
    kind = ir.FunctionType(result, [x.type for x in arguments])
    return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=volatile), arguments)


def _address(context, builder, kind, where, index):
    """A pointer to the words of an array, or of a pointer to numbers, from an index on."""
    if isinstance(kind, types.Array):
        data = arrayobj.make_array(kind)(context, builder, where).data
        return builder.gep(builder.bitcast(data, _I32.as_pointer()), [builder.sext(index, _I64)])
    stored = _F32 if kind.dtype == types.float32 else _I16
    address = builder.gep(builder.bitcast(where, stored.as_pointer()), [builder.sext(index, _I64)])
    return builder.bitcast(address, _I32.as_pointer())


def _read4(builder, address, offset=0):
    address = builder.bitcast(builder.gep(address, [_I64(offset)]), _WIDE.as_pointer())
    vector = builder.load(address, align=16)
    return [builder.extract_element(vector, _I32(i)) for i in range(4)]


def _multiply(builder, dtype, left, right, total):
    """Total and product of a warp's left (16, 16) or (16, 8) and right (16, 8) or (8, 8); half as deep in TF32."""
    kind, a, b = _KINDS[dtype], len(left), len(right)
    names = [f"${i}" for i in range(8 + a + b)]
    groups = names[:4], names[4 : 4 + a], names[4 + a : 4 + a + b], names[4 + a + b :]
    text = f"mma.sync.aligned.m16n8k{2 * a * numbers_per_word(dtype)}.row.col.f32.{kind}.{kind}.f32 "
    text += ", ".join("{" + ", ".join(group) + "}" for group in groups) + ";"
    constraints = ",".join(["=f"] * 4 + ["r"] * (a + b) + ["f"] * 4)
    result = ir.LiteralStructType([_F32] * 4)
    # volatile: all threads of the warp must execute the same one
    values = _assemble(builder, result, text, constraints, [*left, *right, *total], volatile=True)
    return [builder.extract_value(values, i) for i in range(4)]


def _power(builder, x):
    """e to the x."""
    return _assemble(builder, _F32, "ex2.approx.ftz.f32 $0, $1;", "=f,f", [builder.fmul(x, _LOG2_E)])


def _times(builder, x, y):
    """A product that is rounded by itself, whatever is added to it."""
    return _assemble(builder, _F32, "mul.rn.f32 $0, $1, $2;", "=f,f,f", [x, y])


def _larger(builder, x, y):
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _halves(builder, dtype, word):
    """The numbers of a word as float32."""
    if dtype == "float32":
        return [builder.bitcast(word, _F32)]
    if dtype == "bfloat16":
        low, high = builder.shl(word, _I32(16)), builder.and_(word, _I32(0xFFFF0000))
        return [builder.bitcast(x, _F32) for x in (low, high)]
    parts = [builder.trunc(x, _I16) for x in (word, builder.lshr(word, _I32(16)))]
    return [_assemble(builder, _F32, "cvt.f32.f16 $0, $1;", "=f,h", [x]) for x in parts]


def _pack(builder, dtype, values):
    """Words of float32, each rounded to nearest and even; the instruction takes the upper half first."""
    if dtype == "float32":
        return [builder.bitcast(x, _I32) for x in values]
    text = f"cvt.rn.{_KINDS[dtype]}x2.f32 $0, $2, $1;"
    pairs = zip(values[::2], values[1::2], strict=True)
    return [_assemble(builder, _I32, text, "=r,f,f", [first, second]) for first, second in pairs]


def _tf32(builder, x):
    """The word of a float32 in TF32, rounded to nearest, ties away from zero."""
    return _assemble(builder, _I32, "cvt.rna.tf32.f32 $0, $1;", "=r,f", [x])


def _made(result, *kinds):
    """An intrinsic of a function of (context, builder, types, arguments), whose tuples come and go as lists.

    None among the kinds of the arguments is the argument's own.
    """

    def decorate(function):
        def generate(context, builder, signature, arguments):
            pairs = zip(signature.args, arguments, strict=True)
            lists = [cgutils.unpack_tuple(builder, x) if isinstance(kind, types.UniTuple) else x for kind, x in pairs]
            values = function(context, builder, signature.args, *lists)
            return cgutils.pack_array(builder, values) if isinstance(values, list) else values

        def typed(*own):
            return result(*(x if kind is None else kind for kind, x in zip(kinds, own, strict=True))), generate

        # numba counts the parameters
        bodies = (
            lambda typingctx: typed(),
            lambda typingctx, a: typed(a),
            lambda typingctx, a, b: typed(a, b),
            lambda typingctx, a, b, c: typed(a, b, c),
            lambda typingctx, a, b, c, d: typed(a, b, c, d),
            lambda typingctx, a, b, c, d, e: typed(a, b, c, d, e),
            lambda typingctx, a, b, c, d, e, f: typed(a, b, c, d, e, f),
        )
        return intrinsic(bodies[len(kinds)])

    return decorate


def _guard(builder, condition, read, other):
    """What a function reads where a condition holds, and another value elsewhere."""
    outside = builder.block
    with builder.if_then(condition):
        value, inside = read(), builder.block
    merged = builder.phi(other.type)
    merged.add_incoming(value, inside)
    merged.add_incoming(other, outside)
    return merged


@lru_cache
def fetch(dtype, aligned, rounded=False):
    """Numbers of 16 bytes from a pointer's `index` on as words, those from `count` on 0. Aligned: all of them or none.

    rounded: as products take them.
    """
    unit, per = (_I32, 1) if dtype == "float32" else (_I16, 2)

    def read(context, builder, kinds, source, index, count):
        address = _address(context, builder, kinds[0], source, index)
        if aligned:
            pointer, inside = builder.bitcast(address, _WIDE.as_pointer()), builder.icmp_signed(">", count, _I32(0))
            vector = _guard(builder, inside, lambda: builder.load(pointer, align=16), ir.Constant(_WIDE, [0] * 4))
            words = [builder.extract_element(vector, _I32(i)) for i in range(4)]
        else:
            pointer, numbers = builder.bitcast(address, unit.as_pointer()), []
            for i in range(4 * per):
                inside, one = builder.icmp_signed(">", count, _I32(i)), builder.gep(pointer, [_I64(i)])
                numbers.append(_guard(builder, inside, functools.partial(builder.load, one, align=4 // per), unit(0)))
            words = numbers if per == 1 else [_join(builder, *numbers[i : i + 2]) for i in range(0, 8, 2)]
        if rounded and dtype == "float32":
            return [_tf32(builder, builder.bitcast(word, _F32)) for word in words]
        return words

    return _made(FOUR, None, types.int32, types.int32)(read)


def _join(builder, low, high):
    return builder.or_(builder.zext(low, _I32), builder.shl(builder.zext(high, _I32), _I32(16)))


@lru_cache
def put(dtype, aligned):
    """Write words to a pointer from number `index` on, at most `count`. Aligned: all of them or none."""
    unit, per = (_I32, 1) if dtype == "float32" else (_I16, 2)

    def write(context, builder, kinds, target, index, count, words):
        if aligned:
            with builder.if_then(builder.icmp_signed(">", count, _I32(0))):
                _write_words(context, builder, kinds, target, index, words)
        else:
            address = _address(context, builder, kinds[0], target, index)
            pointer = builder.bitcast(address, unit.as_pointer())
            for i in range(4 * per):
                with builder.if_then(builder.icmp_signed(">", count, _I32(i))):
                    number = words[i // per]
                    if per == 2:
                        number = builder.trunc(builder.lshr(number, _I32(i % 2 * 16)), _I16)
                    builder.store(number, builder.gep(pointer, [_I64(i)]), align=4 // per)
        return context.get_dummy_value()

    return _made(types.void, None, types.int32, types.int32, FOUR)(write)


def _write_words(context, builder, kinds, target, index, words):
    vector = ir.Constant(_WIDE, ir.Undefined)
    for i, word in enumerate(words):
        vector = builder.insert_element(vector, word, _I32(i))
    address = _address(context, builder, kinds[0], target, index)
    builder.store(vector, builder.bitcast(address, _WIDE.as_pointer()), align=16)
    return context.get_dummy_value()


# write four words to an array from word `index` on, a multiple of four
write_words = _made(types.void, None, types.int32, FOUR)(_write_words)


def _address_in(builder, space, address):
    """A pointer as a number of the memory that an instruction is for: 1 is global, 3 is shared."""
    return builder.ptrtoint(builder.addrspacecast(address, ir.PointerType(_I32, space)), _I64)


def _copy(builder, width, offset, to, where, inside):
    """Begin to copy `width` bytes between addresses, `offset` further, whole multiples of it; zeros if not inside."""
    text = f"cp.async.{'cg' if width == 16 else 'ca'}.shared.global [$0+{offset}], [$1], {width}, $2;"
    count = builder.select(inside, _I32(width), _I32(0))
    _assemble(builder, ir.VoidType(), text, "l,l,r,~{memory}", [to, where, count], volatile=True)


def _places(context, builder, kinds, target, at, source, index):
    to, where = _address(context, builder, kinds[0], target, at), _address(context, builder, kinds[2], source, index)
    return _address_in(builder, 3, to), _address_in(builder, 1, where)


@_made(types.void, None, types.int32, None, types.int32, types.boolean)
def copy_words(context, builder, kinds, target, at, source, index, inside):
    """Begin to copy four words from a pointer to an array; zeros where they are not inside."""
    _copy(builder, 16, 0, *_places(context, builder, kinds, target, at, source, index), inside)
    return context.get_dummy_value()


@lru_cache
def copy_pixels(tiles, warps):
    """Begin to copy a word of every pixel of a warp's, of 8 `tiles`, to rows of an array; zeros from a count on.

    step: numbers between a warp's pixels.
    """
    rows = 8 * tiles

    def begin(context, builder, kinds, *arguments):
        *places, step, count = arguments
        to, where = _places(context, builder, kinds, *places)
        step = builder.mul(builder.sext(step, _I64), _I64(2))
        warp = builder.lshr(nvvmutils.call_sreg(builder, "tid.x"), _I32(5))
        for row in range(0, rows, warps):
            inside = builder.icmp_signed("<", _I32(row), count)
            place = 4 * row * COPIED_PITCH, to, where, inside
            if row + warps <= rows:
                _copy(builder, 4, *place)
            else:
                with builder.if_then(builder.icmp_signed("<", warp, _I32(rows - row))):
                    _copy(builder, 4, *place)
            where = builder.add(where, step)
        return context.get_dummy_value()

    return _made(types.void, None, types.int32, None, *[types.int32] * 3)(begin)


def _order(text):
    def instruct(context, builder, kinds):
        _assemble(builder, ir.VoidType(), text, "~{memory}", [], volatile=True)
        return context.get_dummy_value()

    return _made(types.void)(instruct)


# a thread's copies since the last commit are a group; then it waits until they have been made, all of them
commit, wait = _order("cp.async.commit_group;"), _order("cp.async.wait_group 0;")


def _read_turned(builder, address, offset):
    """Four words, one of each of four 8x8 matrices of 16 bits, whose rows and columns ldmatrix exchanges.

    Thread `lane` has the address of row lane % 8 of matrix lane // 8, and gets column `group` of rows 2 member and the
    next.
    """
    text = f"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{$0, $1, $2, $3}}, [$4+{offset}];"
    kind = ir.LiteralStructType([_I32] * 4)
    values = _assemble(builder, kind, text, "=r,=r,=r,=r,l,~{memory}", [address], volatile=True)
    return [builder.extract_value(values, i) for i in range(4)]


def _vectors(builder, where, index):
    """Pointers to the two vectors of four float32 in which a thread's eight lie, so that four threads fill sectors."""
    kind, address = ir.VectorType(_F32, 4).as_pointer(), builder.bitcast(where, _F32.as_pointer())
    indices = [builder.add(builder.sext(index, _I64), _I64(offset)) for offset in (0, 16)]
    return [builder.bitcast(builder.gep(address, [i]), kind) for i in indices]


@_made(OCTET, None, types.int32, types.boolean)
def fetch_floats(context, builder, kinds, source, index, inside):
    """Eight float32, in two vectors, or 0."""
    zero, values = ir.Constant(ir.VectorType(_F32, 4), [0.0] * 4), []
    for address in _vectors(builder, source, index):
        four = _guard(builder, inside, functools.partial(builder.load, address, align=16), zero)
        values += [builder.extract_element(four, _I32(j)) for j in range(4)]
    return values


@_made(types.void, None, types.int32, types.boolean, OCTET)
def put_floats(context, builder, kinds, target, index, inside, values):
    """Write eight float32, in two vectors."""
    with builder.if_then(inside):
        for i, address in enumerate(_vectors(builder, target, index)):
            vector = ir.Constant(address.type.pointee, ir.Undefined)
            for j in range(4):
                vector = builder.insert_element(vector, values[4 * i + j], _I32(j))
            builder.store(vector, address, align=16)
    return context.get_dummy_value()


@lru_cache
def add_floats(dtype):
    """Eight numbers and eight others, as words."""

    def change(context, builder, kinds, values, before):
        return _pack(builder, dtype, [builder.fadd(x, y) for x, y in zip(values, before, strict=True)])

    return _made(FOUR, OCTET, OCTET)(change)


@_made(types.void, None, types.int32, types.float32)
def write_float(context, builder, kinds, target, index, value):
    """Write a float32 as a word of an array."""
    builder.store(builder.bitcast(value, _I32), _address(context, builder, kinds[0], target, index), align=4)
    return context.get_dummy_value()


@_made(types.float32, None, types.int32)
def read_float(context, builder, kinds, source, index):
    """The float32 of a word of an array."""
    return builder.bitcast(builder.load(_address(context, builder, kinds[0], source, index), align=4), _F32)


@lru_cache
def interleave(dtype):
    """Numbers of one pixel and of the next as words that hold one of each; in TF32 as one after the other."""

    def change(context, builder, kinds, first, second):
        if dtype == "float32":
            return [*first, *second]
        words = []
        for near, far in zip(first, second, strict=True):
            words.append(builder.or_(builder.and_(near, _I32(0xFFFF)), builder.shl(far, _I32(16))))
            words.append(builder.or_(builder.lshr(near, _I32(16)), builder.and_(far, _I32(0xFFFF0000))))
        return words

    return _made(EIGHT, FOUR, FOUR)(change)


@lru_cache
def zeros(tiles):
    """A total of zeros."""
    return _made(_totals(tiles))(lambda *_: [_F32(0)] * 4 * tiles)


def _split(builder, words, anew=False):
    """Float32 as two TF32 each: itself, whose last 13 bits tensor cores leave out, and what these are.

    anew: where they are used, each time; twice as many words, which stay as they are, take a loop's registers.
    """
    text = "and.b32 $0, $1, -8192; sub.rn.f32 $0, $1, $0;"
    return words, [_assemble(builder, _I32, text, "=&r,r", [word], volatile=anew) for word in words]


def _pairs(lefts, rights):
    """What to multiply of numbers that are one or two each, the smallest first; of two remainders it is nothing."""
    return [(x, y) for a, x in reversed([*enumerate(lefts)]) for b, y in reversed([*enumerate(rights)]) if not a & b]


@lru_cache
def dot(dtype, tiles, splits=(False, False)):
    """Add to a total the products of STEP words: 16 rows' own, near and far, by those of 8 `tiles` rows of an array.

    splits: whether the words of the rows, and of the array, are float32, to be multiplied as two TF32 each.
    """
    split_left, split_right = splits

    def multiply(context, builder, kinds, total, words, shared, at):
        address, sums = _address(context, builder, kinds[2], shared, at), []
        lefts = _split(builder, words) if split_left else (words,)
        for j in range(tiles):
            part, right = total[4 * j : 4 * j + 4], _read4(builder, address, 8 * STEP * j)
            rights = _split(builder, right) if split_right else (right,)
            for (a, b), k in product(_pairs(lefts, rights), (0, 2)):
                part = _multiply(builder, dtype, [a[i] for i in (k, k + 4, k + 1, k + 5)], b[k : k + 2], part)
            sums += part
        return sums

    return _made(_totals(tiles), _totals(tiles), EIGHT, None, types.int32)(multiply)


@lru_cache
def gather(dtype, tiles, splits=(False, False), anew=False, two=False):
    """Add to a total of channels the words' product with 8 `tiles` pixels of an array.

    splits: whether the words, and the pixels, are float32, to be multiplied as two TF32 each; anew: the words in every
    turn of a loop, where registers are short. two: words and others, each pixel by both before the next is read.
    """
    split_left, split_right = splits
    (cut, pitch), deep = cut_channels(dtype), numbers_per_word(dtype)

    def multiply(context, builder, kinds, total, *arguments):
        *words, shared, at = arguments
        address, sums = _address(context, builder, kinds[-2], shared, at), list(total)
        # a product takes 8 pixels in TF32, and 16 of 16 bits, whose pairs are rows
        for j in range(0, tiles, deep):
            lefts = [x[4 * j // deep : 4 * j // deep + 4] for x in words]
            rows = range(8 * j // deep, 8 * j // deep + 2 * len(lefts[0]), 4)
            if split_left:
                lefts = _split(builder, *lefts, anew)
            for channels in range(0, cut, 32):
                right = [_read4(builder, address, row * pitch + channels) for row in rows]
                for n in range(4):
                    i = 4 * (channels // 8 + n)
                    part = [row[n] for row in right]
                    rights = _split(builder, part) if split_right else (part,)
                    for a, b in _pairs(lefts, rights):
                        sums[i : i + 4] = _multiply(builder, dtype, a, b, sums[i : i + 4])
        return sums

    return _made(_sums(dtype), _sums(dtype), *[_words(dtype, tiles)] * (1 + two), None, types.int32)(multiply)


@lru_cache
def gather_copied(dtype, tiles, two=False):
    """The same, in 16 bits, with pixels that were copied: a row is a pixel, and four words are eight columns."""
    pitch = COPIED_PITCH

    def multiply(context, builder, kinds, total, *arguments):
        *words, shared, at = arguments
        start = _address_in(builder, 3, _address(context, builder, kinds[-2], shared, at))
        lane, sums = builder.and_(nvvmutils.call_sreg(builder, "tid.x"), _I32(31)), list(total)

        def place(rows):
            """The address of a thread's row, of `rows` in each eight columns."""
            row, column = builder.and_(lane, _I32(rows - 1)), builder.udiv(lane, _I32(rows))
            word = builder.add(builder.mul(row, _I32(pitch)), builder.mul(column, _I32(4)))
            return builder.add(start, builder.zext(builder.mul(word, _I32(4)), _I64))

        places = {rows: place(rows) for rows in (16, 8)}
        for j in range(0, tiles, 2):
            lefts = [x[2 * j : 2 * j + 4] for x in words]
            deep = len(lefts[0]) // 2
            for n in range(0, CUT // 8, 4 // deep):
                right = _read_turned(builder, places[8 * deep], 4 * (8 * j * pitch + 4 * n))
                for i in range(4 // deep):
                    four, part = slice(4 * (n + i), 4 * (n + i + 1)), right[deep * i : deep * (i + 1)]
                    for left in reversed(lefts):
                        sums[four] = _multiply(builder, dtype, left, part, sums[four])
        return sums

    return _made(_sums(dtype), _sums(dtype), *[_words(dtype, tiles)] * (1 + two), None, types.int32)(multiply)


@lru_cache
def mask(tiles):
    """A total with -inf from column `limit` on and in the rows' own; columns count from the thread's first."""

    def change(context, builder, kinds, total, limit, near, far):
        out = []
        for i, value in enumerate(total):
            column, own = _I32(i // 4 * 8 + i % 2), far if i % 4 > 1 else near
            hidden = builder.or_(builder.icmp_signed("==", own, column), builder.icmp_signed("<=", limit, column))
            out.append(builder.select(hidden, _F32(float("-inf")), value))
        return out

    return _made(_totals(tiles), _totals(tiles), *[types.int32] * 3)(change)


@lru_cache
def greatest(tiles):
    """The greatest entry of each of the two rows in a thread."""

    def reduce(context, builder, kinds, total):
        rows = []
        for half in (0, 2):
            values = [total[i + half + e] for i in range(0, 4 * tiles, 4) for e in (0, 1)]
            most = values[0]
            for value in values[1:]:
                most = _larger(builder, value, most)
            rows.append(most)
        return rows

    return _made(types.UniTuple(types.float32, 2), _totals(tiles))(reduce)


@lru_cache
def row_sums(tiles):
    """The sum of each of the two rows in a thread."""

    def reduce(context, builder, kinds, total):
        rows = []
        for half in (0, 2):
            values = [total[i + half + e] for i in range(0, 4 * tiles, 4) for e in (0, 1)]
            whole = values[0]
            for value in values[1:]:
                whole = builder.fadd(whole, value)
            rows.append(whole)
        return rows

    return _made(types.UniTuple(types.float32, 2), _totals(tiles))(reduce)


@lru_cache
def powers(tiles):
    """E to the power of a total, less a number of each row."""

    def change(context, builder, kinds, total, near, far):
        return [_power(builder, builder.fsub(x, far if i % 4 > 1 else near)) for i, x in enumerate(total)]

    return _made(_totals(tiles), _totals(tiles), types.float32, types.float32)(change)


@lru_cache
def pull(tiles):
    """Weights times a total less a number of each row."""

    def change(context, builder, kinds, weights, total, near, far):
        pairs = enumerate(zip(weights, total, strict=True))
        return [builder.fmul(w, builder.fsub(x, far if i % 4 > 1 else near)) for i, (w, x) in pairs]

    return _made(_totals(tiles), _totals(tiles), _totals(tiles), types.float32, types.float32)(change)


@lru_cache
def columns(tiles):
    """The two numbers of each of a thread's columns, from an array of float32 by columns, for both rows: a total."""

    def read(context, builder, kinds, shared, at):
        address, out = _address(context, builder, kinds[0], shared, at), []
        pair = ir.VectorType(_I32, 2)
        for j in range(tiles):
            part = builder.load(builder.bitcast(builder.gep(address, [_I64(8 * j)]), pair.as_pointer()), align=8)
            out += [builder.bitcast(builder.extract_element(part, _I32(i)), _F32) for i in (0, 1)] * 2
        return out

    return _made(_totals(tiles), None, types.int32)(read)


@lru_cache
def minus(tiles):
    """A total less another."""

    def change(context, builder, kinds, total, other):
        return [builder.fsub(x, y) for x, y in zip(total, other, strict=True)]

    return _made(_totals(tiles), _totals(tiles), _totals(tiles))(change)


@lru_cache
def plus(tiles):
    """A total and another times a number."""

    def change(context, builder, kinds, total, other, scale):
        return [builder.fadd(x, builder.fmul(y, scale)) for x, y in zip(total, other, strict=True)]

    return _made(_totals(tiles), _totals(tiles), _totals(tiles), types.float32)(change)


@lru_cache
def times(tiles):
    """A total times a number, rounded before anything is added."""

    def change(context, builder, kinds, total, scale):
        return [_times(builder, x, scale) for x in total]

    return _made(_totals(tiles), _totals(tiles), types.float32)(change)


@lru_cache
def largest(tiles):
    """The greatest absolute value of a total."""

    def reduce(context, builder, kinds, total):
        most = _F32(0)
        for value in total:
            negative = builder.fcmp_ordered("<", value, _F32(0))
            most = _larger(builder, builder.select(negative, builder.fsub(_F32(-0.0), value), value), most)
        return most

    return _made(types.float32, _totals(tiles))(reduce)


@lru_cache
def words(dtype, tiles):
    """A total as words, rounded as products take them; float32 as it is."""

    def change(context, builder, kinds, total):
        if dtype != "float32":
            return _pack(builder, dtype, total)
        total = [total[i + k] for i in range(0, len(total), 4) for k in (0, 2, 1, 3)]
        return [builder.bitcast(x, _I32) for x in total]

    return _made(_words(dtype, tiles), _totals(tiles))(change)


@lru_cache
def remainders(dtype, tiles):
    """What rounding to words left of a total of 16 bits, as words."""

    def change(context, builder, kinds, total, words):
        rounded = [x for word in words for x in _halves(builder, dtype, word)]
        return _pack(builder, dtype, [builder.fsub(x, y) for x, y in zip(total, rounded, strict=True)])

    return _made(_words(dtype, tiles), _totals(tiles), _words(dtype, tiles))(change)


@lru_cache
def no_words(dtype, tiles):
    """Words of zeros."""
    kind = _words(dtype, tiles)
    return _made(kind)(lambda *_: [_I32(0)] * kind.count)


@lru_cache
def keep_rows(tiles):
    """A total whose rows are 0 where a condition of each does not hold."""

    def change(context, builder, kinds, total, near, far):
        return [builder.select(far if i % 4 > 1 else near, x, _F32(0)) for i, x in enumerate(total)]

    return _made(_totals(tiles), _totals(tiles), types.boolean, types.boolean)(change)


@lru_cache
def write_turned(dtype, warps, tiles, tile, rest):
    """Write the numbers of `rest` tiles of words from `tile` on to an array from number `at`; its rows are columns."""
    per = numbers_per_word(dtype)
    unit, pitch = ir.IntType(32 // per), turned_words(dtype, warps) * per

    def write(context, builder, kinds, target, at, words):
        start = builder.bitcast(_address(context, builder, kinds[0], target, _I32(0)), unit.as_pointer())
        start = builder.gep(start, [builder.sext(at, _I64)])
        for j, e, r in product(range(rest), (0, 1), (0, 1)):
            if per == 1:
                number = words[4 * (tile + j) + 2 * e + r]
            else:
                number = builder.trunc(builder.lshr(words[2 * (tile + j) + r], _I32(16 * e)), unit)
            builder.store(number, builder.gep(start, [_I64((8 * j + e) * pitch + 8 * r)]), align=4 // per)
        return context.get_dummy_value()

    return _made(types.void, None, types.int32, _words(dtype, tiles))(write)


@lru_cache
def read_turned(dtype, tiles):
    """Words of two rows of an array, each from an index on."""
    parts = range(2 // numbers_per_word(dtype))

    def read(context, builder, kinds, source, near, far):
        rows = [_address(context, builder, kinds[0], source, at) for at in (near, far)]
        places = [(row, 4 * (len(parts) * j + e)) for j in range(tiles) for e in parts for row in rows]
        return [builder.load(builder.gep(row, [_I64(offset)]), align=4) for row, offset in places]

    return _made(_words(dtype, tiles), None, types.int32, types.int32)(read)


def _indices(dtype, part, row, copied):
    """Where in a total a thread's channels of its first or second part are, those of its first or second row.

    Of a part of 32 channels a thread has 8 neighbours in 16 bits; of one of 16, 4 in float32. copied: of a total of
    pixels that were copied.
    """
    if dtype == "float32":
        return [4 * n + 2 * row + part for n in range(4)]
    if copied:
        return [16 * part + 4 * n + 2 * row + e for n in range(4) for e in (0, 1)]
    return [16 * part + 4 * n + 2 * row + e for e in (0, 1) for n in range(4)]


@lru_cache
def piece(dtype, part, row, copied=False):
    """A thread's channels of one part and row, as many as 16 bytes hold."""
    places = _indices(dtype, part, row, copied)
    return _made(_piece(dtype), _sums(dtype))(lambda context, builder, kinds, total: [total[i] for i in places])


@lru_cache
def join(dtype, copied=False):
    """The total of the pieces of both parts: of each first that of the first row."""
    places = [i for part, row in product((0, 1), (0, 1)) for i in _indices(dtype, part, row, copied)]

    def put_together(context, builder, kinds, *pieces):
        values = dict(zip(places, (x for each in pieces for x in each), strict=True))
        return [values[i] for i in range(len(values))]

    return _made(_sums(dtype), *[_piece(dtype)] * 4)(put_together)


@lru_cache
def pack(dtype):
    """A piece as words."""
    return _made(FOUR, _piece(dtype))(lambda context, builder, kinds, values: _pack(builder, dtype, values))


# Eight numbers of 10 bits in 16 bytes: float16 without their last bits, times a power of two whose exponent these are.
_LAST = 0x00010001


@_made(FOUR, OCTET)
def leave(context, builder, kinds, values):
    """Eight numbers in four words, more precise than in bfloat16."""
    most = _F32(0)
    for value in values:
        negative = builder.fcmp_ordered("<", value, _F32(0))
        size = builder.select(negative, builder.fsub(_F32(-0.0), value), value)
        # one that is infinite or nan stays so, and the others what they are
        finite = builder.fcmp_ordered("<", size, _F32(float("inf")))
        most = builder.select(builder.and_(finite, builder.fcmp_ordered(">", size, most)), size, most)
    exponent = builder.lshr(builder.bitcast(most, _I32), _I32(23))
    exponent = builder.select(builder.icmp_signed(">", exponent, _I32(15)), exponent, _I32(15))
    # the greatest becomes 2^14 to 2^15
    power = builder.bitcast(builder.shl(builder.sub(_I32(268), exponent), _I32(23)), _F32)
    words = _pack(builder, "float16", [builder.fmul(x, power) for x in values])
    bits = builder.or_(exponent, builder.shl(exponent, _I32(15)))
    return [
        builder.or_(builder.and_(word, _I32(~_LAST)), builder.and_(builder.lshr(bits, _I32(2 * i)), _I32(_LAST)))
        for i, word in enumerate(words)
    ]


def _read_left(builder, words):
    """What `leave` made words of: float32, and what they are to be multiplied with."""
    bits, others = _I32(0), []
    for i, word in enumerate(words):
        bits = builder.or_(bits, builder.shl(builder.and_(word, _I32(_LAST)), _I32(2 * i)))
        others += _halves(builder, "float16", builder.and_(word, _I32(~_LAST)))
    exponent = builder.and_(builder.or_(bits, builder.lshr(bits, _I32(15))), _I32(255))
    return others, builder.bitcast(builder.shl(builder.sub(exponent, _I32(14)), _I32(23)), _F32)


@lru_cache
def weigh(dtype, left=False, added=False):
    """The numbers of four words times one: a piece of a total.

    left: words that `leave` made. added: and the numbers of four others.
    """

    def change(context, builder, kinds, words, weight, more=()):
        if left:
            numbers, power = _read_left(builder, words)
            weight = builder.fmul(weight, power)
        else:
            numbers = [x for word in words for x in _halves(builder, dtype, word)]
        if not added:
            return [builder.fmul(x, weight) for x in numbers]
        others = [x for word in more for x in _halves(builder, dtype, word)]
        return [builder.fadd(_times(builder, x, weight), y) for x, y in zip(numbers, others, strict=True)]

    return _made(_piece(dtype), FOUR, types.float32, *[FOUR] * added)(change)


@lru_cache
def product_of_words(dtype):
    """The sum of products of four words with four others."""

    def change(context, builder, kinds, first, second):
        whole = _F32(0)
        for one, other in zip(first, second, strict=True):
            for x, y in zip(_halves(builder, dtype, one), _halves(builder, dtype, other), strict=True):
                whole = builder.fadd(whole, builder.fmul(x, y))
        return whole

    return _made(types.float32, FOUR, FOUR)(change)
