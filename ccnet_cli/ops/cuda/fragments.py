"""Products of a warp's 32 threads on tensor cores, from words of 32 bits: mma.sync of sm_80 and newer.

A word is one number in TF32 or two in bfloat16, the first in the lower half; it travels as the float32 of its bits.
Thread `lane` of a warp holds, with group = lane // 4 and member = lane % 4, the words

    left (16, 8)   rows group, group + 8 at member, then the same rows at member + 4
    right (8, 8)   member, member + 4 of column group
    total (16, 8)  of row group columns 2 member, 2 member + 1, then the same of row group + 8, in float32

The Numba CUDA simulator has no warps: in the plain Python of this file its threads exchange their words.
"""

import threading

import numpy as np
from numba import config

# the simulator's threads: what each passes to the others of its warp
_EXCHANGE: dict[int, tuple[tuple[np.float32, ...], ...]] = {}


def tf32(value):
    """The word of a float32, rounded to 10 bits after the point, ties away from zero."""
    if not np.isfinite(value):
        return value
    return np.uint32((int(np.float32(value).view(np.uint32)) + 0x1000) & 0xFFFFE000).view(np.float32)


def bf16(first, second):
    """The word of two float32, each rounded to nearest and even."""
    return np.uint32(_upper(first) | _upper(second) << 16).view(np.float32)


def multiply_tf32(left, right, total):
    """Total and the product of the warp's left and right."""
    return _multiply(left, right, total, lambda word: [float(word)])


def multiply_bf16(left, right, total):
    """Total and the product of the warp's left and right, 16 deep."""
    return _multiply(left, right, total, _halves)


def _upper(value):
    if np.isnan(value):
        return 0x7FC0
    bits = int(np.float32(value).view(np.uint32))
    return bits + 0x7FFF + (bits >> 16 & 1) >> 16


def _halves(word):
    bits = int(np.float32(word).view(np.uint32))
    return [float(np.uint32(half << 16 & 0xFFFFFFFF).view(np.float32)) for half in (bits, bits >> 16)]


def _multiply(left, right, total, numbers):
    thread = threading.current_thread()
    _EXCHANGE[thread.thread_id] = left, right
    thread.syncthreads()
    warp, lane = thread.thread_id // 32 * 32, thread.thread_id % 32
    group, member = lane // 4, lane % 4
    sums = []
    for i in range(4):
        column = 2 * member + i % 2
        value = float(total[i])
        for k in range(4):
            row = _EXCHANGE[warp + 4 * group + k][0][i // 2 :: 2]
            words = zip(row, _EXCHANGE[warp + 4 * column + k][1], strict=True)
            value += sum(a * b for x, y in words for a, b in zip(numbers(x), numbers(y), strict=True))
        sums.append(np.float32(value))
    # all threads read these words before one writes the next
    thread.syncthreads()
    return tuple(sums)


if not config.ENABLE_CUDASIM:
    from llvmlite import ir
    from numba import types
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    _F32, _I32 = ir.FloatType(), ir.IntType(32)
    _FOUR, _TWO = types.UniTuple(types.float32, 4), types.UniTuple(types.float32, 2)

    def _assembly(builder, result, text, constraints, arguments, volatile=False):
        kind = ir.FunctionType(result, [x.type for x in arguments])
        return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=volatile), arguments)

    @intrinsic
    def tf32(typingctx, value):  # noqa: D103
        def generate(context, builder, signature, arguments):
            word = _assembly(builder, _I32, "cvt.rna.tf32.f32 $0, $1;", "=r,f", arguments)
            return builder.bitcast(word, _F32)

        return types.float32(types.float32), generate

    @intrinsic
    def bf16(typingctx, first, second):  # noqa: D103
        def generate(context, builder, signature, arguments):
            # the instruction takes the upper half first
            word = _assembly(builder, _I32, "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", arguments)
            return builder.bitcast(word, _F32)

        return types.float32(types.float32, types.float32), generate

    def _multiplier(depth, kind):
        text = f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 "
        text += "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

        def generate(context, builder, signature, arguments):
            left, right, total = (cgutils.unpack_tuple(builder, x) for x in arguments)
            words = [builder.bitcast(x, _I32) for x in (*left, *right)]
            result = ir.LiteralStructType([_F32] * 4)
            # volatile: all threads of the warp must execute the same one
            values = _assembly(builder, result, text, constraints, [*words, *total], volatile=True)
            return cgutils.pack_array(builder, [builder.extract_value(values, i) for i in range(4)])

        def intrinsic_body(typingctx, left, right, total):
            return _FOUR(_FOUR, _TWO, _FOUR), generate

        return intrinsic(intrinsic_body)

    multiply_tf32, multiply_bf16 = _multiplier(8, "tf32"), _multiplier(16, "bf16")
