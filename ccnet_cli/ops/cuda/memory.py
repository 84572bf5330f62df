"""Reads and writes of the kernels: one element or four at once, widened to float32 and narrowed again.

A pointer holds float32, float16 or, as uint16, bfloat16; a shared array holds float32. Four elements are one vector
access, whose address must be a multiple of its width. The Numba CUDA simulator runs the plain Python of this file.
"""

import numpy as np
from numba import config, cuda
from numpy import float32, int32

_ONE, _MANY = 1, 4


def inline(function):
    """Mark a function as part of the kernels that call it: each call is its own copy, constants folded."""
    return function if config.ENABLE_CUDASIM else cuda.jit(function, device=True, inline="always")


def _widen(x):
    return (np.uint32(x) << np.uint32(16)).view(np.float32) if isinstance(x, np.uint16) else np.float32(x)


def _narrow(value, dtype):
    if dtype != np.uint16:
        return value
    if np.isnan(value):
        return np.uint16(0x7FC0)
    bits = int(np.float32(value).view(np.uint32))
    return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def read(source, index):
    """Element `index` as float32."""
    return _widen(source[index])


def read4(source, index):
    """Elements `index` to `index` + 3 as float32; the address is a multiple of four elements."""
    return read(source, index), read(source, index + 1), read(source, index + 2), read(source, index + 3)


def write(target, index, value):
    """Round a float32 to the target's type, to nearest and even."""
    target[index] = _narrow(value, target.dtype)


def write4(target, index, first, second, third, fourth):
    """Write four elements from `index` on, rounded; the address is a multiple of four elements."""
    for offset, value in enumerate((first, second, third, fourth)):
        write(target, index + offset, value)


if not config.ENABLE_CUDASIM:
    from llvmlite import ir
    from numba import types
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic
    from numba.cuda.np import arrayobj

    _F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)

    def _address(context, builder, kind, where, index, width):
        """The address of an element, as a pointer to `width` elements in memory, and its alignment in bytes."""
        size, stored = (4, _F32) if kind.dtype == types.float32 else (2, _I16)
        data = arrayobj.make_array(kind)(context, builder, where).data if isinstance(kind, types.Array) else where
        address = builder.gep(builder.bitcast(data, stored.as_pointer()), [builder.sext(index, _I64)])
        unit = stored if width == _ONE else ir.VectorType(stored, width)
        return builder.bitcast(address, unit.as_pointer()), size * width

    def _to_float(builder, kind, x):
        if kind.dtype == types.float32:
            return x
        if kind.dtype == types.float16:
            return builder.fpext(builder.bitcast(x, ir.HalfType()), _F32)
        return builder.bitcast(builder.shl(builder.zext(x, _I32), _I32(16)), _F32)

    def _from_float(builder, kind, x):
        if kind.dtype == types.float32:
            return x
        if kind.dtype == types.float16:
            return builder.bitcast(builder.fptrunc(x, ir.HalfType()), _I16)
        bits = builder.bitcast(x, _I32)
        even = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(even, _I32(0x7FFF))), _I32(16))
        # rounding up the largest payloads would turn nan into -0
        return builder.trunc(builder.select(builder.fcmp_unordered("uno", x, x), _I32(0x7FC0), rounded), _I16)

    def _reader(width):
        result = types.float32 if width == _ONE else types.UniTuple(types.float32, width)

        def intrinsic_body(typingctx, source, index):
            def generate(context, builder, signature, arguments):
                kind = signature.args[0]
                address, alignment = _address(context, builder, kind, *arguments, width)
                if width == _ONE:
                    return _to_float(builder, kind, builder.load(address, align=alignment))
                if kind.dtype == types.float32:
                    vector = builder.load(address, align=alignment)
                    parts = [builder.extract_element(vector, _I32(i)) for i in range(width)]
                else:
                    # as one integer: NVVM reads a vector of four float16 in two halves
                    bits = builder.load(builder.bitcast(address, _I64.as_pointer()), align=alignment)
                    parts = [builder.trunc(builder.lshr(bits, _I64(16 * i)), _I16) for i in range(width)]
                return cgutils.pack_array(builder, [_to_float(builder, kind, x) for x in parts])

            return result(source, types.int32), generate

        return intrinsic(intrinsic_body)

    def _writer(width):
        def generate(context, builder, signature, arguments):
            kind = signature.args[0]
            where, index, *values = arguments
            address, alignment = _address(context, builder, kind, where, index, width)
            stored = [_from_float(builder, kind, value) for value in values]
            if width == _ONE:
                builder.store(stored[0], address, align=alignment)
            else:
                vector = ir.Constant(ir.VectorType(stored[0].type, width), ir.Undefined)
                for i, value in enumerate(stored):
                    vector = builder.insert_element(vector, value, _I32(i))
                builder.store(vector, address, align=alignment)
            return context.get_dummy_value()

        def one(typingctx, target, index, value):
            return types.void(target, types.int32, types.float32), generate

        def many(typingctx, target, index, first, second, third, fourth):
            return types.void(target, types.int32, *[types.float32] * _MANY), generate

        return intrinsic(one if width == _ONE else many)

    read, read4, write, write4 = _reader(_ONE), _reader(_MANY), _writer(_ONE), _writer(_MANY)


@inline
def fetch(source, index, count, aligned):
    """Four elements; those from `count` on are 0, or arbitrary in one aligned access."""
    first = second = third = fourth = float32(0)
    if count > 0:
        if aligned:
            first, second, third, fourth = read4(source, index)
        else:
            first = read(source, index)
            if count > 1:
                second = read(source, int32(index + 1))
            if count > 2:
                third = read(source, int32(index + 2))
            if count > 3:
                fourth = read(source, int32(index + 3))
    return first, second, third, fourth


@inline
def put(target, index, count, values, aligned):
    """Write `count` of four elements or, in one aligned access, all of them."""
    first, second, third, fourth = values
    if aligned:
        write4(target, index, first, second, third, fourth)
    else:
        write(target, index, first)
        if count > 1:
            write(target, int32(index + 1), second)
        if count > 2:
            write(target, int32(index + 2), third)
        if count > 3:
            write(target, int32(index + 3), fourth)
