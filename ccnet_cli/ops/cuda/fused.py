"""Criss-cross attention whose energies stay on chip: products on tensor cores in bfloat16 or float16, sums in float32.

A block takes up to 128 pixels of a row or a column, 16 in each warp, and all pixels of the line in blocks of 8 `tiles`.
Two launches make a pass. The rows' leaves the logarithm of each pixel's sum of weights and the output for these; the
columns' adds its own sum, knows every weight then, and adds to the output scaled to the whole.

The gradients need these logarithms, and for each pixel `delta`, the sum of the output times its gradient: weights are
computed again, in both directions, and again the columns add to what the rows wrote. Three jobs share a launch, one to a
block: the gradients of value and of query, and that of key.

    value   weights^T grad
    query   pulls key       where pulls = weights (grad value^T - delta)
    key     pulls^T query

What a line longer than a block makes of its pixels is computed for every CUT channels anew, from the same numbers in the
same order. No sum depends on the order in which blocks run.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace

from numba import cuda
from numpy import float32, int32, uint32

from ccnet_cli.ops.cuda import words as tuples
from ccnet_cli.ops.cuda.memory import inline
from ccnet_cli.ops.cuda.plan import CUT, PITCH, STEP, shared_words

INFINITE = float32(math.inf)
# float16 holds numbers up to 65504: the pulls of a warp are scaled below this
LARGE = float32(16384)
ALL = 0xFFFFFFFF


@inline
def _exp(x):
    return float32(math.exp(float32(x)))


@inline
def _greater(x, y):
    return x if x > y else y


@inline
def _quad_max(x):
    """The greatest number of the four threads that hold a row."""
    x = _greater(x, cuda.shfl_xor_sync(ALL, x, 1))
    return _greater(x, cuda.shfl_xor_sync(ALL, x, 2))


@inline
def _quad_sum(x):
    x = float32(x + cuda.shfl_xor_sync(ALL, x, 1))
    return float32(x + cuda.shfl_xor_sync(ALL, x, 2))


@inline
def _finite(x):
    """A row's greatest energy to subtract; 0 where it has none."""
    return x if x > -INFINITE else float32(0)


@inline
def _locate(line, image, column, sizes):
    """A line's length, the pixels from one to the next, and its first pixel."""
    H, W = sizes[0], sizes[1]
    first = int32(image * H * W + (line if column else line * W))
    return H if column else W, W if column else int32(1), first


@inline
def _number(source, at, inside, other):
    return source[at] if inside else other


def _device(function):
    """A function that NVVM makes part of the kernel: numba takes minutes to do that itself with the large ones."""
    return cuda.jit(function, device=True, forceinline=True)


def _energies(tiles, warps, dtype, fetch):
    KEYS, THREADS, ROUNDS = 8 * tiles, 32 * warps, -(-tiles // warps)
    BUFFER = KEYS * STEP
    zeros, dot = tuples.zeros(tiles), tuples.dot(dtype, tiles)

    @_device
    def energies(shared, left, right, strides, depth, line, m, block):
        """The products of a thread's rows, m and m + 8 of left, with the line's pixels of right from `block` on."""
        L, hop, first = line
        t = int32(cuda.threadIdx.x)
        member, key = int32(t & 3), int32(t >> 2)
        far_hop, right_hop = int32(8 * hop * strides[0]), int32(8 * warps * hop * strides[1])
        left_at = int32((first + m * hop) * strides[0] + member * 8)
        right_at = int32((first + (block + key) * hop) * strides[1] + member * 8)
        rest = int32(depth - member * 8)
        near_rest = rest if m < L else int32(0)
        far_rest = rest if m + 8 < L else int32(0)
        one_rest = rest if block + key < L and key < KEYS else int32(0)
        two_rest = rest if block + key + 8 * warps < L and key + 8 * warps < KEYS else int32(0)
        at = int32((t >> 2 & 7) * STEP + member * 4)
        zero = uint32(0)
        near = (zero, zero, zero, zero)
        far = (zero, zero, zero, zero)
        total = zeros()
        base = int32(0)
        k0 = int32(-2 * STEP)
        while k0 < depth:
            # load the next channels while multiplying these; the first round has none to multiply
            k1 = int32(k0 + 2 * STEP)
            next_near = fetch(left, int32(left_at + k1), int32(near_rest - k1))
            next_far = fetch(left, int32(left_at + far_hop + k1), int32(far_rest - k1))
            one = fetch(right, int32(right_at + k1), int32(one_rest - k1))
            if ROUNDS > 1:
                two = fetch(right, int32(right_at + right_hop + k1), int32(two_rest - k1))
            if k0 >= 0:
                total = dot(total, near + far, shared, int32(base + at))
            base = int32(BUFFER - base)
            if k1 < depth:
                if key < KEYS:
                    tuples.write_words(shared, int32(base + t * 4), one)
                if ROUNDS > 1 and key + 8 * warps < KEYS:
                    tuples.write_words(shared, int32(base + (t + THREADS) * 4), two)
            cuda.syncthreads()
            near, far = next_near, next_far
            k0 = k1
        return total

    return energies


def _weights(parts, turned, pulled):
    """A function for a block's words: weights or, pulled, pulls; turned, rows are keys and columns queries."""
    TURNED, PULLED, KEYS, COLUMNS, SCALED = turned, pulled, 8 * parts.tiles, parts.columns, parts.dtype == "float16"
    energies, mask, powers = parts.energies, tuples.mask(parts.tiles), tuples.powers(parts.tiles)
    columns, minus, pull = tuples.columns(parts.tiles), tuples.minus(parts.tiles), tuples.pull(parts.tiles)
    words, largest, times = tuples.words(parts.dtype, parts.tiles), tuples.largest(parts.tiles), tuples.times(parts.tiles)

    @_device
    def weights(shared, arguments, block):
        """The words of rows m and m + 8, and what they are to be multiplied with."""
        sources, strides, sizes, line, column, m, sums = arguments
        left, right, left_pull, right_pull, log, delta = sources
        L, hop, first = line
        t = int32(cuda.threadIdx.x)
        if TURNED and t < KEYS:
            i, inside = int32(first + (block + t) * hop), block + t < L
            tuples.write_float(shared, int32(COLUMNS + t), _number(log, i, inside, INFINITE))
            if PULLED:
                tuples.write_float(shared, int32(COLUMNS + KEYS + t), _number(delta, i, inside, float32(0)))
        member = int32(t & 3)
        at = int32(COLUMNS + 2 * member)
        total = energies(shared, left, right, strides[:2], sizes[2], line, m, block)
        own = int32(m - block - 2 * member)
        near, far = (own, int32(own + 8)) if column else (int32(-1), int32(-1))
        total = mask(total, int32(L - block - 2 * member), near, far)
        if TURNED:
            total = powers(minus(total, columns(shared, at)), float32(0), float32(0))
        else:
            total = powers(total, sums[0], sums[1])
        scale = float32(1)
        if PULLED:
            other = energies(shared, left_pull, right_pull, strides[2:], sizes[3], line, m, block)
            if TURNED:
                other = minus(other, columns(shared, int32(at + KEYS)))
                total = pull(total, other, float32(0), float32(0))
            else:
                total = pull(total, other, sums[2], sums[3])
            if SCALED:
                most = _quad_max(largest(total))
                most = _greater(most, cuda.shfl_xor_sync(ALL, most, 4))
                most = _greater(most, cuda.shfl_xor_sync(ALL, most, 8))
                most = _greater(most, cuda.shfl_xor_sync(ALL, most, 16))
                if most > float32(1e-30) and most < INFINITE:
                    total = times(total, float32(LARGE / most))
                    scale = float32(most / LARGE)
        return words(total), scale

    return weights


def _first(parts, weights):
    """A function for the words of a line's only block; 0 where there are more, which are made one by one."""
    LONG, words, zeros = parts.long, tuples.words(parts.dtype, parts.tiles), tuples.zeros(parts.tiles)

    @_device
    def first(shared, arguments):
        made, scale = words(zeros()), float32(1)
        if not LONG:
            made, scale = weights(shared, arguments, int32(0))
        return made, scale

    return first


def _product(parts, weights):
    """A function that adds a thread's rows of words, by pixels, times the line's pixels to its rows of an output."""
    tiles, warps, LONG, dtype = parts.tiles, parts.warps, parts.long, parts.dtype
    KEYS, PAIRS, ROUNDS, BUFFER = 8 * tiles, 4 * tiles, -(-tiles // warps), 4 * tiles * PITCH
    fetch, put, gather, zeros = parts.fetch, parts.put, tuples.gather(dtype, tiles), tuples.zeros(CUT // 8)
    blend, interleave, plus = tuples.blend(dtype), tuples.interleave, tuples.plus(CUT // 8)
    near_one, far_one, near_two, far_two = (tuples.octet(part, row) for part in (0, 1) for row in (0, 1))
    SCALED = dtype == "float16"

    @_device
    def fetch_pair(source, at, hop, rests, c0):
        return interleave(fetch(source, int32(at + c0), int32(rests[0] - c0)), fetch(source, int32(at + hop + c0), int32(rests[1] - c0)))

    @inline
    def rests(pixel, pixels, rest, L):
        """How many numbers there are of a pixel and of the next, of those in a block."""
        return (
            rest if pixel < L and pixel < pixels else int32(0),
            rest if pixel + 1 < L and pixel + 1 < pixels else int32(0),
        )

    @_device
    def store_pair(shared, at, odd, eight):
        """Write eight words; half of the threads begin with the upper four, so that all use different banks."""
        low, high = eight[:4], eight[4:]
        one, two = (high, low) if odd else (low, high)
        tuples.write_words(shared, int32(at + (4 if odd else 0)), one)
        tuples.write_words(shared, int32(at + (0 if odd else 4)), two)

    @_device
    def product(shared, source, stride, channels, line, m, words, scale, out, weight, more, arguments):
        L, hop, first = line
        t = int32(cuda.threadIdx.x)
        member, pair, vector = int32(t & 3), int32(t >> 3), int32(t & 7)
        odd = vector > 3
        rest = int32(channels - vector * 8)
        hop_in, hop_two = int32(hop * stride), int32(8 * warps * hop * stride)
        to, to_two = int32(pair * PITCH + vector * 8), int32((pair + 4 * warps) * PITCH + vector * 8)
        at = int32(member * PITCH + (t >> 2 & 7) * 4)
        near_out = int32((first + m * hop) * channels + member * 8)
        far_out = int32(near_out + 8 * hop * channels)
        near_rest = int32(channels - member * 8) if m < L else int32(0)
        far_rest = int32(channels - member * 8) if m + 8 < L else int32(0)
        source_at = int32((first + 2 * pair * hop) * stride + vector * 8)
        base = int32(0)
        one_rests = rests(int32(2 * pair), int32(KEYS), rest, L)
        two_rests = rests(int32(2 * pair + 8 * warps), int32(KEYS), rest, L)
        if not LONG:
            one = fetch_pair(source, source_at, hop_in, one_rests, int32(0))
            if pair < PAIRS:
                store_pair(shared, to, odd, one)
            if ROUNDS > 1:
                two = fetch_pair(source, int32(source_at + hop_two), hop_in, two_rests, int32(0))
                if pair + 4 * warps < PAIRS:
                    store_pair(shared, to_two, odd, two)
        c0 = int32(0)
        while c0 < channels:
            c1 = int32(c0 + CUT)
            # what is added, and the next channels, load while these are multiplied
            none = int32(-(1 << 30))
            near, far = int32(near_rest - c0) if more else none, int32(far_rest - c0) if more else none
            before_one = fetch(out, int32(near_out + c0), near)
            before_two = fetch(out, int32(far_out + c0), far)
            before_three = fetch(out, int32(near_out + c0 + 32), int32(near - 32))
            before_four = fetch(out, int32(far_out + c0 + 32), int32(far - 32))
            total = zeros()
            if LONG:
                block = int32(0)
                while block < L:
                    words, scale = weights(shared, arguments, block)
                    at_block = int32(source_at + block * hop * stride)
                    one = fetch_pair(source, at_block, hop_in, rests(int32(2 * pair), int32(KEYS), rest, int32(L - block)), c0)
                    if pair < PAIRS:
                        store_pair(shared, to, odd, one)
                    if ROUNDS > 1:
                        behind = rests(int32(2 * pair + 8 * warps), int32(KEYS), rest, int32(L - block))
                        two = fetch_pair(source, int32(at_block + hop_two), hop_in, behind, c0)
                        if pair + 4 * warps < PAIRS:
                            store_pair(shared, to_two, odd, two)
                    cuda.syncthreads()
                    if SCALED:
                        total = plus(total, gather(zeros(), words, shared, at), scale)
                    else:
                        total = gather(total, words, shared, at)
                    cuda.syncthreads()
                    block = int32(block + KEYS)
                scale = float32(1)
            else:
                cuda.syncthreads()
                one = fetch_pair(source, source_at, hop_in, one_rests, c1)
                if ROUNDS > 1:
                    two = fetch_pair(source, int32(source_at + hop_two), hop_in, two_rests, c1)
                total = gather(total, words, shared, int32(base + at))
            near, far = int32(near_rest - c0), int32(far_rest - c0)
            put(out, int32(near_out + c0), near, blend(near_one(total), scale, before_one, weight[0]))
            put(out, int32(far_out + c0), far, blend(far_one(total), scale, before_two, weight[1]))
            put(out, int32(near_out + c0 + 32), int32(near - 32), blend(near_two(total), scale, before_three, weight[0]))
            put(out, int32(far_out + c0 + 32), int32(far - 32), blend(far_two(total), scale, before_four, weight[1]))
            if not LONG:
                base = int32(BUFFER - base)
                if c1 < channels:
                    if pair < PAIRS:
                        store_pair(shared, int32(base + to), odd, one)
                    if ROUNDS > 1 and pair + 4 * warps < PAIRS:
                        store_pair(shared, int32(base + to_two), odd, two)
            c0 = c1

    return product


def _parts(dtype, tiles, warps, long, aligned):
    """The functions that the kernels share, for one size of tile."""
    fetch = tuples.fetch(aligned)
    energies = _energies(tiles, warps, dtype, fetch)
    columns = shared_words(tiles) - 16 * tiles
    names = {"dtype": dtype, "tiles": tiles, "warps": warps, "long": long, "columns": columns}
    return SimpleNamespace(fetch=fetch, put=tuples.put(aligned), energies=energies, **names)


def attend(dtype: str, tiles: int, warps: int, long: bool, aligned: bool) -> Callable[..., None]:
    """One direction of a pass: grid of tiles of 16 `warps` pixels, lines, and images.

    A column needs `before`, the logarithms that the rows left, and their output in `out`.
    """
    parts = _parts(dtype, tiles, warps, long, aligned)
    SHARED, KEYS, LONG = shared_words(tiles), 8 * tiles, long
    energies, mask, greatest = parts.energies, tuples.mask(tiles), tuples.greatest(tiles)
    powers, row_sums, words_of, zeros = tuples.powers(tiles), tuples.row_sums(tiles), tuples.words(dtype, tiles), tuples.zeros(tiles)
    product = _product(parts, _weights(parts, False, False))

    def kernel(query, key, value, out, before, log, strides, sizes, column):
        shared = cuda.shared.array(SHARED, uint32)
        t = int32(cuda.threadIdx.x)
        member = int32(t & 3)
        line = _locate(int32(cuda.blockIdx.y), int32(cuda.blockIdx.z), column, sizes)
        L, hop, first = line
        m = int32((cuda.blockIdx.x * warps + (t >> 5)) * 16 + (t >> 2 & 7))
        top_near = top_far = -INFINITE
        sum_near = sum_far = float32(0)
        total = zeros()
        block = int32(0)
        while block < L:
            total = energies(shared, query, key, strides[:2], sizes[2], line, m, block)
            own = int32(m - block - 2 * member)
            near, far = (own, int32(own + 8)) if column else (int32(-1), int32(-1))
            total = mask(total, int32(L - block - 2 * member), near, far)
            most = greatest(total)
            new_near, new_far = _greater(_quad_max(most[0]), top_near), _greater(_quad_max(most[1]), top_far)
            safe_near, safe_far = _finite(new_near), _finite(new_far)
            whole = row_sums(powers(total, safe_near, safe_far))
            sum_near = float32(sum_near * _exp(top_near - safe_near) + whole[0])
            sum_far = float32(sum_far * _exp(top_far - safe_far) + whole[1])
            top_near, top_far = new_near, new_far
            block = int32(block + KEYS)
        log_near = float32(top_near + float32(math.log(_quad_sum(sum_near))))
        log_far = float32(top_far + float32(math.log(_quad_sum(sum_far))))
        weight_near = weight_far = float32(0)
        at_near, at_far = int32(first + m * hop), int32(first + (m + 8) * hop)
        if column:
            log_near, weight_near = _merge(log_near, _number(before, at_near, m < L, float32(0)))
            log_far, weight_far = _merge(log_far, _number(before, at_far, m + 8 < L, float32(0)))
        if member == 0 and m < L:
            log[at_near] = log_near
        if member == 0 and m + 8 < L:
            log[at_far] = log_far
        words = words_of(powers(total, log_near, log_far))
        sums = (log_near, log_far, float32(0), float32(0))
        both = (strides[0], strides[1], strides[0], strides[1])
        arguments = ((query, key, query, key, log, log), both, sizes, line, column, m, sums)
        weight = (weight_near, weight_far)
        product(shared, value, strides[2], sizes[3], line, m, words, float32(1), out, weight, column != 0, arguments)

    return kernel


@inline
def _merge(log, before):
    """The logarithm of two sums, from theirs, and the part of the second."""
    top = _finite(_greater(log, before))
    whole = float32(top + float32(math.log(float32(_exp(log - top) + _exp(before - top)))))
    return whole, _exp(before - whole)


def attend_backward(dtype: str, tiles: int, warps: int, long: bool, aligned: bool) -> Callable[..., None]:
    """One direction of the gradients: grid of tiles of pixels, three times, lines, and images."""
    parts = _parts(dtype, tiles, warps, long, aligned)
    SHARED = shared_words(tiles)
    to_value, to_query, to_key = (_weights(parts, *how) for how in ((True, False), (False, True), (True, True)))
    value_product, query_product, key_product = (_product(parts, x) for x in (to_value, to_query, to_key))
    first_to_value, first_to_query, first_to_key = (_first(parts, x) for x in (to_value, to_query, to_key))

    def kernel(query, key, value, grad, d_query, d_key, d_value, log, delta, strides, sizes, column):
        shared = cuda.shared.array(SHARED, uint32)
        t = int32(cuda.threadIdx.x)
        line = _locate(int32(cuda.blockIdx.y), int32(cuda.blockIdx.z), column, sizes)
        L, hop, first = line
        job = int32(cuda.blockIdx.x % 3)
        m = int32((cuda.blockIdx.x // 3 * warps + (t >> 5)) * 16 + (t >> 2 & 7))
        at_near, at_far = int32(first + m * hop), int32(first + (m + 8) * hop)
        zero, more = float32(0), column != 0
        weight = (float32(1), float32(1))
        q, k, v, g = strides
        if job == 0:
            sums = (zero, zero, zero, zero)
            sources = (key, query, value, grad, log, delta)
            arguments = (sources, (k, q, v, g), sizes, line, column, m, sums)
            words, scale = first_to_value(shared, arguments)
            value_product(shared, grad, g, sizes[3], line, m, words, scale, d_value, weight, more, arguments)
        elif job == 1:
            near, far = m < L, m + 8 < L
            logs = (_number(log, at_near, near, INFINITE), _number(log, at_far, far, INFINITE))
            deltas = (_number(delta, at_near, near, zero), _number(delta, at_far, far, zero))
            sources = (query, key, grad, value, log, delta)
            arguments = (sources, (q, k, g, v), sizes, line, column, m, logs + deltas)
            words, scale = first_to_query(shared, arguments)
            query_product(shared, key, k, sizes[2], line, m, words, scale, d_query, weight, more, arguments)
        else:
            sums = (zero, zero, zero, zero)
            sources = (key, query, value, grad, log, delta)
            arguments = (sources, (k, q, v, g), sizes, line, column, m, sums)
            words, scale = first_to_key(shared, arguments)
            key_product(shared, query, q, sizes[2], line, m, words, scale, d_key, weight, more, arguments)

    return kernel


def inner_products(dtype: str, warps: int, aligned: bool) -> Callable[..., None]:
    """Delta: the sum over channels of two tensors' products for each pixel, a warp to a pixel."""
    fetch, multiply = tuples.fetch(aligned), tuples.product_of_words(dtype)

    def kernel(first, second, delta, strides, channels, pixels):
        t = int32(cuda.threadIdx.x)
        pixel, lane = int32(cuda.blockIdx.x * warps + (t >> 5)), int32(t & 31)
        if pixel >= pixels:
            return
        whole = float32(0)
        c = int32(8 * lane)
        while c < channels:
            one = fetch(first, int32(pixel * strides[0] + c), int32(channels - c))
            other = fetch(second, int32(pixel * strides[1] + c), int32(channels - c))
            whole = float32(whole + multiply(one, other))
            c = int32(c + 256)
        whole = _quad_sum(whole)
        whole = float32(whole + cuda.shfl_xor_sync(ALL, whole, 4))
        whole = float32(whole + cuda.shfl_xor_sync(ALL, whole, 8))
        whole = float32(whole + cuda.shfl_xor_sync(ALL, whole, 16))
        if lane == 0:
            delta[pixel] = whole

    return kernel
