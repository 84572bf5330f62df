"""Criss-cross attention whose energies stay on chip: products on tensor cores in bfloat16 or float16, sums in float32.

A block takes up to 128 pixels of a row or a column, 16 in each warp, and all of the line's in blocks of 8 `tiles`. Two
launches make a pass. The rows' leaves the logarithm of each pixel's sum of weights, and the output for these; the
columns' adds its own sum, knows every weight then, and adds to the output scaled to the whole.

The gradients need these logarithms, and for each pixel `delta`, the sum of the output times its gradient: weights are
computed again, and again the columns add to what the rows wrote. Three jobs share a launch, one to a block:

    value   weights^T grad
    query   pulls key       where pulls = weights (grad value^T - delta)
    key     pulls^T query

What a line longer than a block makes of its pixels is computed anew for every CUT channels, from the same numbers in
the same order. No sum depends on the order in which blocks run.
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
def _rescale(whole, top, new):
    """A sum of powers less a greatest energy, less another."""
    return float32(whole * _exp(top - new))


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
    def energies(shared, sources, strides, depth, line, m, block):
        """The products of a thread's rows, m and m + 8 of left, with the line's pixels of right from `block` on."""
        (left, right), (L, hop, first) = sources, line
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
    words, largest, times = (
        tuples.words(parts.dtype, parts.tiles),
        tuples.largest(parts.tiles),
        tuples.times(parts.tiles),
    )

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
        total = energies(shared, (left, right), strides[:2], sizes[2], line, m, block)
        own = int32(m - block - 2 * member)
        near, far = (own, int32(own + 8)) if column else (int32(-1), int32(-1))
        total = mask(total, int32(L - block - 2 * member), near, far)
        if TURNED:
            total = powers(minus(total, columns(shared, at)), float32(0), float32(0))
        else:
            total = powers(total, sums[0], sums[1])
        scale = float32(1)
        if PULLED:
            other = energies(shared, (left_pull, right_pull), strides[2:], sizes[3], line, m, block)
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


def _stages(parts):
    """Functions that load 64 channels of a block's pixels, in pairs, and write them to shared memory."""
    WARPS, ROUNDS, KEYS, PAIRS = parts.warps, -(-parts.tiles // parts.warps), 8 * parts.tiles, 4 * parts.tiles
    fetch, interleave = parts.fetch, tuples.interleave

    @_device
    def pair(source, at, hop, rest, pixels):
        near = fetch(source, at, rest if pixels > 0 else int32(0))
        return interleave(near, fetch(source, int32(at + hop), rest if pixels > 1 else int32(0)))

    @_device
    def load(source, channels, line, block, c0):
        """A thread's eight channels of one pair of pixels, and of a second if the block has more than its threads."""
        (pointer, stride), (L, hop, first) = source, line
        t = int32(cuda.threadIdx.x)
        pixel, vector, hop = int32(t >> 3 << 1), int32(t & 7), int32(hop * stride)
        rest, pixels = int32(channels - c0 - vector * 8), int32(min(L - block, KEYS) - pixel)
        at = int32(first * stride + (block + pixel) * hop + vector * 8 + c0)
        one = pair(pointer, at, hop, rest, pixels)
        two = one
        if ROUNDS > 1:
            two = pair(pointer, int32(at + 8 * WARPS * hop), hop, rest, int32(pixels - 8 * WARPS))
        return one, two

    @_device
    def write(shared, at, odd, eight):
        """Write eight words; half of the threads begin with the upper four, so that all use different banks."""
        low, high = eight[:4], eight[4:]
        one, two = (high, low) if odd else (low, high)
        tuples.write_words(shared, int32(at + (4 if odd else 0)), one)
        tuples.write_words(shared, int32(at + (0 if odd else 4)), two)

    @_device
    def save(shared, base, both):
        t = int32(cuda.threadIdx.x)
        row, vector = int32(t >> 3), int32(t & 7)
        at = int32(base + row * PITCH + vector * 8)
        if row < PAIRS:
            write(shared, at, vector > 3, both[0])
        if ROUNDS > 1 and row + 4 * WARPS < PAIRS:
            write(shared, int32(at + 4 * WARPS * PITCH), vector > 3, both[1])

    return load, save


@inline
def _locate_outputs(place, c0):
    """Where a thread's channels from c0 on lie, how far its other row's, and how many there are of each."""
    (L, hop, first), m, channels, _ = place
    c0 = int32(c0 + (cuda.threadIdx.x & 3) * 8)
    at, rest = int32((first + m * hop) * channels + c0), int32(channels - c0)
    return at, int32(8 * hop * channels), rest if m < L else int32(0), rest if m + 8 < L else int32(0)


def _outputs(parts):
    """Functions for a thread's 16 channels of each of its two rows: what is there, and what is written."""
    fetch, put, blend = parts.fetch, parts.put, tuples.blend(parts.dtype)
    near_one, far_one, near_two, far_two = (tuples.octet(part, row) for part in (0, 1) for row in (0, 1))

    @_device
    def read(target, place, c0):
        out = target[0]
        at, hop, near, far = _locate_outputs(place, c0)
        if not place[3]:
            near = far = int32(0)
        first, third = fetch(out, at, near), fetch(out, int32(at + 32), int32(near - 32))
        return first, fetch(out, int32(at + hop), far), third, fetch(out, int32(at + hop + 32), int32(far - 32))

    @_device
    def write(target, place, c0, total, scale, before):
        """Write a total times a scale, and what was there times each row's weight."""
        out, weight = target
        at, hop, near, far = _locate_outputs(place, c0)
        put(out, at, near, blend(near_one(total), scale, before[0], weight[0]))
        put(out, int32(at + hop), far, blend(far_one(total), scale, before[1], weight[1]))
        put(out, int32(at + 32), int32(near - 32), blend(near_two(total), scale, before[2], weight[0]))
        put(out, int32(at + hop + 32), int32(far - 32), blend(far_two(total), scale, before[3], weight[1]))

    return read, write


def _narrow_outputs(parts):
    """The same for the gradients of query and key: the rows leave float32, which the columns add to and round."""
    fetch, put, put_floats = tuples.fetch_floats(parts.aligned), parts.put, tuples.put_floats(parts.aligned)
    add, octets = tuples.add_floats(parts.dtype), [tuples.octet(part, row) for part in (0, 1) for row in (0, 1)]
    near_one, far_one, near_two, far_two = octets

    @_device
    def read(target, place, c0):
        rows = target[1]
        at, hop, near, far = _locate_outputs(place, c0)
        if not place[3]:
            near = far = int32(0)
        first, third = fetch(rows, at, near), fetch(rows, int32(at + 32), int32(near - 32))
        return first, fetch(rows, int32(at + hop), far), third, fetch(rows, int32(at + hop + 32), int32(far - 32))

    @_device
    def write(target, place, c0, total, scale, before):
        out, rows = target
        at, hop, near, far = _locate_outputs(place, c0)
        if place[3]:
            put(out, at, near, add(near_one(total), scale, before[0]))
            put(out, int32(at + hop), far, add(far_one(total), scale, before[1]))
            put(out, int32(at + 32), int32(near - 32), add(near_two(total), scale, before[2]))
            put(out, int32(at + hop + 32), int32(far - 32), add(far_two(total), scale, before[3]))
        else:
            put_floats(rows, at, near, near_one(total), scale)
            put_floats(rows, int32(at + hop), far, far_one(total), scale)
            put_floats(rows, int32(at + 32), int32(near - 32), near_two(total), scale)
            put_floats(rows, int32(at + hop + 32), int32(far - 32), far_two(total), scale)

    return read, write


def _product(parts, weights, outputs=_outputs):
    """A function that adds a thread's rows of words, by pixels, times the line's pixels to its rows of an output."""
    return (_long_product if parts.long else _short_product)(parts, weights, *outputs(parts))


def _short_product(parts, weights, read, write):
    gather, zeros = tuples.gather(parts.dtype, parts.tiles), tuples.zeros(CUT // 8)
    (load, save), BUFFER = _stages(parts), 4 * parts.tiles * PITCH

    @_device
    def product(shared, place, source, made, target, arguments):
        line, _, channels, _ = place
        t = int32(cuda.threadIdx.x)
        at = int32((t & 3) * PITCH + (t >> 2 & 7) * 4)
        base, c0 = int32(0), int32(0)
        save(shared, base, load(source, channels, line, int32(0), c0))
        while c0 < channels:
            # what is added, and the next channels, load while these are multiplied
            before = read(target, place, c0)
            cuda.syncthreads()
            ahead = load(source, channels, line, int32(0), int32(c0 + CUT))
            total = gather(zeros(), made[0], shared, int32(base + at))
            write(target, place, c0, total, made[1], before)
            base = int32(BUFFER - base)
            c0 = int32(c0 + CUT)
            if c0 < channels:
                save(shared, base, ahead)

    return product


def _long_product(parts, weights, read, write):
    gather, zeros, plus = tuples.gather(parts.dtype, parts.tiles), tuples.zeros(CUT // 8), tuples.plus(CUT // 8)
    (load, save), KEYS = _stages(parts), 8 * parts.tiles

    @_device
    def product(shared, place, source, made, target, arguments):
        line, _, channels, _ = place
        t = int32(cuda.threadIdx.x)
        at = int32((t & 3) * PITCH + (t >> 2 & 7) * 4)
        c0 = int32(0)
        while c0 < channels:
            before = read(target, place, c0)
            total = zeros()
            block = int32(0)
            while block < line[0]:
                words, scale = weights(shared, arguments, block)
                save(shared, int32(0), load(source, channels, line, block, c0))
                cuda.syncthreads()
                total = plus(total, gather(zeros(), words, shared, at), scale)
                cuda.syncthreads()
                block = int32(block + KEYS)
            write(target, place, c0, total, float32(1), before)
            c0 = int32(c0 + CUT)

    return product


def _parts(dtype, tiles, warps, long, aligned):
    """The functions that the kernels share, for one size of tile."""
    fetch = tuples.fetch(aligned)
    energies = _energies(tiles, warps, dtype, fetch)
    columns = shared_words(tiles) - 16 * tiles
    names = {"dtype": dtype, "tiles": tiles, "warps": warps, "long": long, "columns": columns, "aligned": aligned}
    return SimpleNamespace(fetch=fetch, put=tuples.put(aligned), energies=energies, **names)


def _sums(parts):
    """A function for a line's last block of energies and the logarithms of the sums of weights of a thread's rows."""
    KEYS, energies, mask = 8 * parts.tiles, parts.energies, tuples.mask(parts.tiles)
    zeros, greatest = tuples.zeros(parts.tiles), tuples.greatest(parts.tiles)
    powers, row_sums = tuples.powers(parts.tiles), tuples.row_sums(parts.tiles)

    @_device
    def sum_weights(shared, sources, strides, sizes, line, column, m):
        member = int32(cuda.threadIdx.x & 3)
        top_near = top_far = -INFINITE
        sum_near = sum_far = float32(0)
        total = zeros()
        block = int32(0)
        while block < line[0]:
            total = energies(shared, sources, strides, sizes[2], line, m, block)
            own = int32(m - block - 2 * member)
            near, far = (own, int32(own + 8)) if column else (int32(-1), int32(-1))
            total = mask(total, int32(line[0] - block - 2 * member), near, far)
            most = greatest(total)
            new_near, new_far = _greater(_quad_max(most[0]), top_near), _greater(_quad_max(most[1]), top_far)
            safe_near, safe_far = _finite(new_near), _finite(new_far)
            whole = row_sums(powers(total, safe_near, safe_far))
            sum_near = _rescale(sum_near, top_near, safe_near) + whole[0]
            sum_far = _rescale(sum_far, top_far, safe_far) + whole[1]
            top_near, top_far = new_near, new_far
            block = int32(block + KEYS)
        log_near = float32(top_near + float32(math.log(_quad_sum(sum_near))))
        log_far = float32(top_far + float32(math.log(_quad_sum(sum_far))))
        return total, log_near, log_far

    return sum_weights


def attend(dtype: str, tiles: int, warps: int, long: bool, aligned: bool) -> Callable[..., None]:
    """One direction of a pass: grid of tiles of 16 `warps` pixels, lines, and images.

    Halves are query, key, value and out; logs those that the rows left, which a column adds to, and those it writes.
    """
    parts = _parts(dtype, tiles, warps, long, aligned)
    SHARED, sum_weights = shared_words(tiles), _sums(parts)
    powers, words = tuples.powers(tiles), tuples.words(dtype, tiles)
    product = _product(parts, _weights(parts, False, False))

    def kernel(halves, logs, strides, sizes, column):
        query, key, value, out = halves
        before, log = logs
        shared = cuda.shared.array(SHARED, uint32)
        t = int32(cuda.threadIdx.x)
        line = _locate(int32(cuda.blockIdx.y), int32(cuda.blockIdx.z), column, sizes)
        L, hop, first = line
        m = int32((cuda.blockIdx.x * warps + (t >> 5)) * 16 + (t >> 2 & 7))
        total, log_near, log_far = sum_weights(shared, (query, key), strides[:2], sizes, line, column, m)
        near_inside, far_inside = m < L, m + 8 < L
        at_near, at_far = int32(first + m * hop), int32(first + (m + 8) * hop)
        weight_near = weight_far = float32(0)
        if column:
            log_near, weight_near = _merge(log_near, _number(before, at_near, near_inside, float32(0)))
            log_far, weight_far = _merge(log_far, _number(before, at_far, far_inside, float32(0)))
        if t & 3 == 0:
            if near_inside:
                log[at_near] = log_near
            if far_inside:
                log[at_far] = log_far
        made = words(powers(total, log_near, log_far)), float32(1)
        sums = (log_near, log_far, float32(0), float32(0))
        both = (strides[0], strides[1], strides[0], strides[1])
        arguments = ((query, key, query, key, log, log), both, sizes, line, column, m, sums)
        place, target = (line, m, sizes[3], column != 0), (out, (weight_near, weight_far))
        product(shared, place, (value, strides[2]), made, target, arguments)

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
    value_product = _product(parts, to_value)
    query_product, key_product = (_product(parts, x, _narrow_outputs) for x in (to_query, to_key))
    first_to_value, first_to_query, first_to_key = (_first(parts, x) for x in (to_value, to_query, to_key))

    def kernel(inputs, outputs, logs, strides, sizes, column):
        query, key, value, grad = inputs
        log, delta, query_rows, key_rows = logs
        q, k, v, g = strides
        shared = cuda.shared.array(SHARED, uint32)
        t, zero, one = int32(cuda.threadIdx.x), float32(0), float32(1)
        line = _locate(int32(cuda.blockIdx.y), int32(cuda.blockIdx.z), column, sizes)
        L, hop, first = line
        job = int32(cuda.blockIdx.x % 3)
        m = int32((cuda.blockIdx.x // 3 * warps + (t >> 5)) * 16 + (t >> 2 & 7))
        weight, sums = (one, one), (zero, zero, zero, zero)
        wide, narrow = (line, m, sizes[3], column != 0), (line, m, sizes[2], column != 0)
        if job == 1:
            at_near, at_far, near, far = int32(first + m * hop), int32(first + (m + 8) * hop), m < L, m + 8 < L
            log_near, log_far = _number(log, at_near, near, INFINITE), _number(log, at_far, far, INFINITE)
            sums = (log_near, log_far, _number(delta, at_near, near, zero), _number(delta, at_far, far, zero))
            sources = (query, key, grad, value, log, delta)
            arguments = (sources, (q, k, g, v), sizes, line, column, m, sums)
            made = first_to_query(shared, arguments)
            query_product(shared, narrow, (key, k), made, (outputs[0], query_rows), arguments)
        else:
            sources = (key, query, value, grad, log, delta)
            arguments = (sources, (k, q, v, g), sizes, line, column, m, sums)
            if job == 0:
                made = first_to_value(shared, arguments)
                value_product(shared, wide, (grad, g), made, (outputs[2], weight), arguments)
            else:
                made = first_to_key(shared, arguments)
                key_product(shared, narrow, (query, q), made, (outputs[1], key_rows), arguments)

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
