"""Criss-cross attention whose energies stay on chip: products on tensor cores, sums in float32.

Numbers of 16 bits are multiplied as they are. A float32 is two TF32, but for the value, and the output's gradient where
weights multiply it, which are rounded to one; along short lines they are two as well. A block takes up to 128 pixels of
a row or a column, 16 in each warp, and all of the line's in blocks of 8 `tiles`. Two launches make a pass. The rows'
leaves the logarithm of each pixel's sum of weights, and the output for these; the columns' adds its own sum, knows
every weight then, and adds to the output scaled to the whole. In bfloat16 the rows leave 10 bits of each number instead
of 8.

The gradients need these logarithms, and for each pixel `delta`, the sum of the output times its gradient: weights are
computed again, and again the columns add to what the rows wrote:

    value   weights^T grad
    query   pulls key       where pulls = weights (grad value^T - delta)
    key     pulls^T query

A line of one block makes weights^T and pulls^T once for all three, and exchanges rows and columns of the pulls in
shared memory. Of a longer line three blocks make one each, and what a block makes of its pixels is computed anew for
every cut of channels, from the same numbers in the same order. Pulls of 16 bits are two numbers each, the second what
rounding left of the first, and so are weights of short lines. No sum depends on the order in which blocks run.

What a block multiplies with comes to shared memory through registers or, in kernels whose copies are `async`, by
cp.async, and the next while these are multiplied; the products are the same, and added in the same order.

- Energies: keys come in 16 bytes each. A thread reads four words in one access, which serve two products, as many
  bytes in as many turns as ldmatrix would, and has its own rows' words from memory in the same order of channels; with
  that of ldmatrix they would go through shared memory too. So it is not used here.
- Values of 16 bits: as they lie in memory, pixel by pixel, and ldmatrix exchanges their rows and columns, where pairs
  of pixels were made of registers before. They come in words of four bytes, which puts them in another order on the
  way: a thread's columns of four products are then 16 bytes of the output.
- Values of float32 go through registers still, as does the value in the products of pulls of long lines: they are
  rounded to TF32, once, which no copy does and each warp would do again (not along short lines, where little is to be
  gained), and ldmatrix exchanges rows and columns of 16 bits alone. Of energies, what is two TF32 each is split when it
  is read, so that it is copied.

A total begins with what is there already, times its weight, and products add to it: inner loops are of products alone.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace

from numba import cuda
from numpy import float32, int32, uint32

from ccnet_cli.ops.cuda import words as tuples
from ccnet_cli.ops.cuda.memory import inline
from ccnet_cli.ops.cuda.plan import (
    COPIED_PITCH,
    CUT,
    STEP,
    cut_channels,
    numbers_per_word,
    shared_words,
    turned_words,
)
from ccnet_cli.ops.cuda.steps import Kernel

INFINITE = float32(math.inf)
# float16 holds numbers up to 65504: pulls are scaled below this
LARGE = float32(16384)
ALL = 0xFFFFFFFF
# tiles of a short line, all of whose numbers are two: what rounding makes of few does not average out
FEW = 4


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


def _keys(tiles, warps, fetch, copied):
    """Functions that load STEP words of a block's pixels, two of a thread's at most, and have them in shared memory."""
    KEYS, THREADS, ROUNDS, copy = 8 * tiles, 32 * warps, -(-tiles // warps), tuples.copy_words

    @_device
    def load(shared, to, source, at, hop, rests, inside):
        one = fetch(source, at, rests[0])
        two = one
        if ROUNDS > 1:
            two = fetch(source, int32(at + hop), rests[1])
        return one, two

    @_device
    def save(shared, to, both, inside):
        t = int32(cuda.threadIdx.x)
        if inside:
            if t < 4 * KEYS:
                tuples.write_words(shared, int32(to + t * 4), both[0])
            if ROUNDS > 1 and t + THREADS < 4 * KEYS:
                tuples.write_words(shared, int32(to + (t + THREADS) * 4), both[1])

    @_device
    def begin(shared, to, source, at, hop, rests, inside):
        t = int32(cuda.threadIdx.x)
        if inside:
            if t < 4 * KEYS:
                copy(shared, int32(to + t * 4), source, at, rests[0] > 0)
            if ROUNDS > 1 and t + THREADS < 4 * KEYS:
                copy(shared, int32(to + (t + THREADS) * 4), source, int32(at + hop), rests[1] > 0)
            tuples.commit()
        return int32(0)

    @_device
    def wait(shared, to, both, inside):
        tuples.wait()

    return (begin, wait) if copied else (load, save)


def _energies(tiles, warps, dtype, aligned, splits=(True, True), copied=False):
    """A function for products of a line's pixels.

    splits: whether a float32 of left, and of right, is two TF32; what is rounded at once is not copied.
    """
    fetch_left, fetch_right = (tuples.fetch(dtype, aligned, rounded=not split) for split in splits)
    load, save = _keys(tiles, warps, fetch_right, copied and (splits[1] or dtype != "float32"))
    KEYS, PER = 8 * tiles, numbers_per_word(dtype)
    BUFFER, VECTOR, CHANNELS = KEYS * STEP, 4 * PER, PER * STEP
    zeros, dot = tuples.zeros(tiles), tuples.dot(dtype, tiles, splits if dtype == "float32" else (False, False))

    @_device
    def energies(shared, sources, strides, depth, line, m, block):
        """The products of a thread's rows, m and m + 8 of left, with the line's pixels of right from `block` on."""
        (left, right), (L, hop, first) = sources, line
        t = int32(cuda.threadIdx.x)
        member, key = int32(t & 3), int32(t >> 2)
        far_hop, right_hop = int32(8 * hop * strides[0]), int32(8 * warps * hop * strides[1])
        left_at = int32((first + m * hop) * strides[0] + member * VECTOR)
        right_at = int32((first + (block + key) * hop) * strides[1] + member * VECTOR)
        rest = int32(depth - member * VECTOR)
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
        k0 = int32(-CHANNELS)
        while k0 < depth:
            # load the next channels while multiplying these; the first round has none to multiply
            k1 = int32(k0 + CHANNELS)
            next_near = fetch_left(left, int32(left_at + k1), int32(near_rest - k1))
            next_far = fetch_left(left, int32(left_at + far_hop + k1), int32(far_rest - k1))
            other, rests = int32(BUFFER - base), (int32(one_rest - k1), int32(two_rest - k1))
            ahead = load(shared, other, right, int32(right_at + k1), right_hop, rests, k1 < depth)
            if k0 >= 0:
                total = dot(total, near + far, shared, int32(base + at))
            base = other
            save(shared, base, ahead, k1 < depth)
            cuda.syncthreads()
            near, far = next_near, next_far
            k0 = k1
        return total

    return energies


def _load_numbers(parts):
    """A function that copies numbers of a block's pixels to shared memory, from word COLUMNS on."""
    KEYS = 8 * parts.tiles

    @_device
    def load(shared, at, source, line, block, other):
        L, hop, first = line
        t = int32(cuda.threadIdx.x)
        if t < KEYS:
            i, inside = int32(first + (block + t) * hop), block + t < L
            tuples.write_float(shared, int32(at + t), _number(source, i, inside, other))

    return load


def _weights(parts, turned, pulled):
    """A function for a block's words: weights or, pulled, pulls; turned, rows are keys and columns queries."""
    TURNED, PULLED, KEYS, COLUMNS = turned, pulled, 8 * parts.tiles, parts.columns
    SCALED = parts.dtype == "float16"
    energies, mask, powers = parts.energies, tuples.mask(parts.tiles), tuples.powers(parts.tiles)
    pull_energies = parts.pulls[TURNED]
    columns, minus, pull = tuples.columns(parts.tiles), tuples.minus(parts.tiles), tuples.pull(parts.tiles)
    largest, times, load = tuples.largest(parts.tiles), tuples.times(parts.tiles), _load_numbers(parts)
    split = parts.split if pulled else parts.whole

    @_device
    def weights(shared, arguments, block):
        """The words of rows m and m + 8, and what they are to be multiplied with."""
        sources, strides, sizes, line, column, m, sums = arguments
        left, right, left_pull, right_pull, log, delta = sources
        L = line[0]
        t = int32(cuda.threadIdx.x)
        if TURNED:
            load(shared, int32(COLUMNS), log, line, block, INFINITE)
            if PULLED:
                load(shared, int32(COLUMNS + KEYS), delta, line, block, float32(0))
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
            other = pull_energies(shared, (left_pull, right_pull), strides[2:], sizes[3], line, m, block)
            if TURNED:
                other = minus(other, columns(shared, int32(at + KEYS)))
                total = pull(total, other, float32(0), float32(0))
            else:
                total = pull(total, other, sums[2], sums[3])
            if SCALED:
                most = _warp_max(largest(total))
                if most > float32(1e-30) and most < INFINITE:
                    total = times(total, float32(LARGE / most))
                    scale = float32(most / LARGE)
        return split(total), scale

    return weights


@inline
def _warp_max(x):
    x = _quad_max(x)
    x = _greater(x, cuda.shfl_xor_sync(ALL, x, 4))
    x = _greater(x, cuda.shfl_xor_sync(ALL, x, 8))
    return _greater(x, cuda.shfl_xor_sync(ALL, x, 16))


def _turn(parts):
    """A function for a block's words with its rows and columns exchanged, through shared memory."""
    TILES, WARPS, WORDS = parts.tiles, parts.warps, turned_words(parts.dtype, parts.warps)
    # between rows, in numbers
    PITCH = WORDS * numbers_per_word(parts.dtype)
    # the rows of as many warps at once as fit
    HALF = WARPS if parts.dtype != "float32" else -(-WARPS // 2)
    FIRST = min(2 * HALF, TILES)
    TWICE, SECOND, WIDE = FIRST < TILES, TILES - FIRST, parts.dtype == "float32"
    write_first = tuples.write_turned(parts.dtype, WARPS, TILES, 0, FIRST)
    write_second = tuples.write_turned(parts.dtype, WARPS, TILES, FIRST, SECOND)
    read, none = tuples.read_turned(parts.dtype, TILES), tuples.no_words(parts.dtype, TILES)

    @_device
    def turn(shared, words):
        t = int32(cuda.threadIdx.x)
        warp, group, member = int32(t >> 5), int32(t >> 2 & 7), int32(t & 3)
        # in TF32 even rows, then odd ones, as a thread has its columns
        at = int32(2 * member * PITCH + 16 * warp + (4 * (group & 1) + (group >> 1) if WIDE else group))
        # the last warp's rows may be more than the line has
        row = int32(16 * (warp if warp < HALF else warp - HALF) + group)
        last = int32(8 * (FIRST if warp < HALF else SECOND) - 1)
        near = int32(min(row, last) * WORDS + member)
        far = int32(min(int32(row + 8), last) * WORDS + member)
        write_first(shared, at, words)
        cuda.syncthreads()
        turned = none()
        if not TWICE or warp < HALF:
            turned = read(shared, near, far)
        cuda.syncthreads()
        if TWICE:
            write_second(shared, at, words)
            cuda.syncthreads()
            if warp >= HALF:
                turned = read(shared, near, far)
            cuda.syncthreads()
        return turned

    return turn


def _stages(parts, narrow):
    """Functions that load channels of a block's pixels, in pairs, and write them to shared memory."""
    WARPS, ROUNDS, KEYS, PAIRS = parts.warps, -(-parts.tiles // parts.warps), 8 * parts.tiles, 4 * parts.tiles
    PER, PITCH, WIDE = numbers_per_word(parts.dtype), cut_channels(parts.dtype)[1], parts.dtype == "float32"
    fetch = parts.exact if narrow else parts.fetch
    interleave, VECTOR = tuples.interleave(parts.dtype), 4 * PER

    @_device
    def pair(source, at, hop, rest, pixels):
        near = fetch(source, at, rest if pixels > 0 else int32(0))
        return interleave(near, fetch(source, int32(at + hop), rest if pixels > 1 else int32(0)))

    @_device
    def load(source, channels, line, block, c0):
        """A thread's channels of one pair of pixels, and of a second if the block has more than its threads."""
        (pointer, stride), (L, hop, first) = source, line
        t = int32(cuda.threadIdx.x)
        pixel, vector, hop = int32(t >> 3 << 1), int32(t & 7), int32(hop * stride)
        rest, pixels = int32(channels - c0 - vector * VECTOR), int32(min(L - block, KEYS) - pixel)
        at = int32(first * stride + (block + pixel) * hop + vector * VECTOR + c0)
        one = pair(pointer, at, hop, rest, pixels)
        two = one
        if ROUNDS > 1:
            two = pair(pointer, int32(at + 8 * WARPS * hop), hop, rest, int32(pixels - 8 * WARPS))
        return one, two

    @_device
    def write(shared, base, row, vector, eight):
        """Write eight words, so that all threads use different banks: in 16 bits half begin with the upper four."""
        low, high = eight[:4], eight[4:]
        if WIDE:
            at = int32(base + (8 * (row >> 2) + (row & 3)) * PITCH + vector * 4)
            tuples.write_words(shared, at, low)
            tuples.write_words(shared, int32(at + 4 * PITCH), high)
        else:
            at = int32(base + row * PITCH + vector * 8)
            one, two = (high, low) if vector > 3 else (low, high)
            tuples.write_words(shared, int32(at + (4 if vector > 3 else 0)), one)
            tuples.write_words(shared, int32(at + (0 if vector > 3 else 4)), two)

    @_device
    def save(shared, base, both):
        t = int32(cuda.threadIdx.x)
        row, vector = int32(t >> 3), int32(t & 7)
        if row < PAIRS:
            write(shared, base, row, vector, both[0])
        if ROUNDS > 1 and row + 4 * WARPS < PAIRS:
            write(shared, base, int32(row + 4 * WARPS), vector, both[1])

    return load, save


def _copies(parts):
    """A function that begins to copy CUT channels of a block's pixels, one by a warp at once, to shared memory.

    Of 16 words the fourth and those after come behind the first, so that what a thread holds of products with their
    columns lies side by side in memory.
    """
    WARPS, KEYS, copy = parts.warps, 8 * parts.tiles, tuples.copy_pixels(parts.tiles, parts.warps)

    @_device
    def begin(shared, base, source, channels, line, block, c0):
        (pointer, stride), (L, hop, first) = source, line
        t = int32(cuda.threadIdx.x)
        warp, lane = int32(t >> 5), int32(t & 31)
        to = int32(base + warp * COPIED_PITCH + (lane & 16) + 4 * (lane & 3) + (lane >> 2 & 3))
        at = int32((first + (block + warp) * hop) * stride + c0 + 2 * lane)
        pixels = int32(min(L - block, KEYS) - warp) if 2 * lane < channels - c0 else int32(0)
        copy(shared, to, pointer, at, int32(WARPS * hop * stride), pixels)
        tuples.commit()

    return begin


def _pieces(parts, added):
    """Functions between `count` numbers of memory, as words, and a piece: times a weight, and to be written.

    In bfloat16 the rows leave what is rounded but once.
    """
    HALF, PARTIAL, pack, leave = parts.dtype == "bfloat16", not parts.aligned, tuples.pack(parts.dtype), tuples.leave
    weigh, weigh_left = (tuples.weigh(parts.dtype, left, added) for left in (False, HALF))

    if added:

        @_device
        def begin(words, weight, more, count):
            # those at the end of a pixel may be fewer than it takes to leave them
            return weigh(words, weight, more) if PARTIAL and count < 8 else weigh_left(words, weight, more)

    else:

        @_device
        def begin(words, weight, more, count):
            return weigh(words, weight) if PARTIAL and count < 8 else weigh_left(words, weight)

    if HALF and not added:

        @_device
        def finish(values, count, column):
            return pack(values) if column or (PARTIAL and count < 8) else leave(values)

    else:

        @_device
        def finish(values, count, column):
            return pack(values)

    return begin, finish


def _outputs(parts, added=False):
    """Functions for a thread's channels of each of its two rows: what is there, a total with it, and what is written.

    A total begins with what the rows left, times each row's weight, so that products add to it and nothing else does.
    added: a target has another tensor, with its stride, and totals begin with that, too.
    """
    fetch, put, zeros, ADDED = parts.exact, parts.put, tuples.zeros(cut_channels(parts.dtype)[0] // 8), added
    (begin, finish), join = _pieces(parts, added), tuples.join(parts.dtype, parts.copied)
    near_one, far_one, near_two, far_two = parts.pieces
    VECTOR = 4 * numbers_per_word(parts.dtype)
    PART = 4 * VECTOR

    @_device
    def locate(place, c0, stride):
        """Where a thread's channels from c0 on lie, how far its other row's, and how many there are of each."""
        (L, hop, first), m, channels, _ = place
        c0 = int32(c0 + (cuda.threadIdx.x & 3) * VECTOR)
        at, rest = int32((first + m * hop) * stride + c0), int32(channels - c0)
        return at, int32(8 * hop * stride), rest if m < L else int32(0), rest if m + 8 < L else int32(0)

    @_device
    def fetch_rows(source, at, hop, near, far):
        first, third = fetch(source, at, near), fetch(source, int32(at + PART), int32(near - PART))
        at = int32(at + hop)
        return first, fetch(source, at, far), third, fetch(source, int32(at + PART), int32(far - PART))

    @_device
    def read(target, place, c0):
        at, hop, near, far = locate(place, c0, place[2])
        if ADDED:
            before = fetch_rows(target[0], at, hop, near, far)
            at, hop, near, far = locate(place, c0, target[3])
            return before, fetch_rows(target[2], at, hop, near, far)
        if not place[3]:
            near = far = int32(0)
        before = fetch_rows(target[0], at, hop, near, far)
        return before, before

    @_device
    def start(target, place, c0, both):
        total = zeros()
        if ADDED or place[3]:
            (before, more), (weight_near, weight_far) = both, target[1]
            _, _, near, far = locate(place, c0, place[2])
            first, second = begin(before[0], weight_near, more[0], near), begin(before[1], weight_far, more[1], far)
            near, far = int32(near - PART), int32(far - PART)
            third, fourth = begin(before[2], weight_near, more[2], near), begin(before[3], weight_far, more[3], far)
            total = join(first, second, third, fourth)
        return total

    @_device
    def write(target, place, c0, total, scale):
        """Write a total, whose scale is 1 here."""
        out, column = target[0], place[3]
        at, hop, near, far = locate(place, c0, place[2])
        put(out, at, near, finish(near_one(total), near, column))
        put(out, int32(at + hop), far, finish(far_one(total), far, column))
        at, near, far = int32(at + PART), int32(near - PART), int32(far - PART)
        put(out, at, near, finish(near_two(total), near, column))
        put(out, int32(at + hop), far, finish(far_two(total), far, column))

    return read, start, write


def _narrow_outputs(parts):
    """The same for the gradients of query and key in 16 bits: the rows leave float32, which the columns add to.

    They read it when they write, since registers are short.
    """
    fetch, put, put_floats, add = tuples.fetch_floats, parts.put, tuples.put_floats, tuples.add_floats(parts.dtype)
    zeros, times, SCALED = tuples.zeros(CUT // 8), tuples.times(CUT // 8), parts.dtype == "float16"
    near_one, far_one, near_two, far_two = parts.pieces

    @_device
    def read(target, place, c0):
        return int32(0)

    @_device
    def start(target, place, c0, before):
        return zeros()

    @_device
    def write(target, place, c0, total, scale):
        """Write a total times a scale, and what was there."""
        out, rows = target
        if SCALED:
            total = times(total, scale)
        (L, hop, first), m, channels, column = place
        member, width = int32(cuda.threadIdx.x & 3), int32(channels + CUT - 1 & -CUT)
        pixel, near, far = int32(first + m * hop), m < L, m + 8 < L
        # what the rows leave has pixels of its own width, in whose order of channels four threads fill sectors
        row, jump = int32(pixel * width + c0 + 4 * member), int32(8 * hop * width)
        if column:
            at, skip = int32(pixel * channels + c0 + 8 * member), int32(8 * hop * channels)
            rest = int32(channels - c0 - 8 * member)
            near_rest, far_rest = rest if near else int32(0), rest if far else int32(0)
            put(out, at, near_rest, add(near_one(total), fetch(rows, row, near)))
            put(out, int32(at + skip), far_rest, add(far_one(total), fetch(rows, int32(row + jump), far)))
            at, row, near_rest, far_rest = int32(at + 32), int32(row + 32), int32(near_rest - 32), int32(far_rest - 32)
            put(out, at, near_rest, add(near_two(total), fetch(rows, row, near)))
            put(out, int32(at + skip), far_rest, add(far_two(total), fetch(rows, int32(row + jump), far)))
        else:
            put_floats(rows, row, near, near_one(total))
            put_floats(rows, int32(row + jump), far, far_one(total))
            put_floats(rows, int32(row + 32), near, near_two(total))
            put_floats(rows, int32(row + jump + 32), far, far_two(total))

    return read, start, write


def _products(parts, narrow=False, added=False):
    """A function that adds a thread's rows of words, by pixels, times the line's pixels to its rows of an output.

    narrow: of few channels, the next of which load after these are multiplied, since registers are short there; where
    numbers are read one by one, so does what is added to. Before it comes a function that begins to copy the first
    channels, to where energies are not made.
    """
    if parts.copied:
        return _copied_products(parts, narrow, added)
    LATE, EARLY, gather = narrow, parts.aligned, parts.gather_split if narrow else parts.gather
    (CUT_CHANNELS, PITCH), BUFFER = cut_channels(parts.dtype), 4 * parts.tiles * (CUT + 8)
    (load, save), (read, start, write) = _stages(parts, narrow), _outputs_of(parts, narrow, added)
    find = _reader(parts.dtype, PITCH)

    @_device
    def product(shared, place, source, made, target):
        line, _, channels, _ = place
        at, base, c0 = find(), int32(0), int32(0)
        before = read(target, place, c0)
        save(shared, base, load(source, channels, line, int32(0), c0))
        while c0 < channels:
            # the next channels, and what is added to, load while these are multiplied
            total, c1 = start(target, place, c0, before), int32(c0 + CUT_CHANNELS)
            if EARLY:
                before = read(target, place, c1)
            cuda.syncthreads()
            if not LATE:
                ahead = load(source, channels, line, int32(0), c1)
            total = gather(total, made[0], shared, int32(base + at))
            write(target, place, c0, total, made[1])
            if not EARLY:
                before = read(target, place, c1)
            if LATE:
                ahead = load(source, channels, line, int32(0), c1)
            base, c0 = int32(BUFFER - base), c1
            if c0 < channels:
                save(shared, base, ahead)

    @_device
    def begin(shared, place, source):
        pass

    return begin, product


def _copied_products(parts, narrow, added):
    """The same by copies, of which the next are made while these are multiplied."""
    BUFFER, copy, gather = 4 * parts.tiles * (CUT + 8), _copies(parts), parts.gather_split if narrow else parts.gather
    read, start, write = _outputs_of(parts, narrow, added)

    @_device
    def begin(shared, place, source):
        copy(shared, int32(BUFFER), source, place[2], place[0], int32(0), int32(0))

    @_device
    def product(shared, place, source, made, target):
        line, _, channels, _ = place
        base, c0 = int32(BUFFER), int32(0)
        before = read(target, place, c0)
        while c0 < channels:
            total, c1 = start(target, place, c0, before), int32(c0 + CUT)
            before = read(target, place, c1)
            tuples.wait()
            # all have these now, and have multiplied what the next replace
            cuda.syncthreads()
            if c1 < channels:
                copy(shared, int32(BUFFER - base), source, channels, line, int32(0), c1)
            write(target, place, c0, gather(total, made[0], shared, base), made[1])
            base, c0 = int32(BUFFER - base), c1

    return begin, product


def _long_products(parts, weights, narrow=False, added=False):
    """The same from words that are made for one block of pixels after another, which are copied meanwhile."""
    (CUT_CHANNELS, PITCH), KEYS, ADDED = cut_channels(parts.dtype), 8 * parts.tiles, added
    zeros, plus = tuples.zeros(CUT_CHANNELS // 8), tuples.plus(CUT_CHANNELS // 8)
    (load, save), (read, start, write) = _stages(parts, narrow), _outputs_of(parts, narrow, added)
    gather = parts.gather_split if narrow else parts.gather
    COPIED, copy, BUFFER = parts.copied, _copies(parts), 4 * parts.tiles * (CUT + 8)
    find = _reader(parts.dtype, PITCH)

    @_device
    def product(shared, place, source, arguments, target):
        line, _, channels, _ = place
        at, c0 = int32(BUFFER) if COPIED else find(), int32(0)
        while c0 < channels:
            total = start(target, place, c0, read(target, place, c0))
            block = int32(0)
            while block < line[0]:
                if COPIED:
                    copy(shared, at, source, channels, line, block, c0)
                words, scale = weights(shared, arguments, block)
                if ADDED:
                    scale = target[4]
                if COPIED:
                    tuples.wait()
                else:
                    save(shared, int32(0), load(source, channels, line, block, c0))
                cuda.syncthreads()
                total = plus(total, gather(zeros(), words, shared, at), scale)
                cuda.syncthreads()
                block = int32(block + KEYS)
            write(target, place, c0, total, float32(1))
            c0 = int32(c0 + CUT_CHANNELS)

    return product


def _reader(dtype, PITCH):
    """A function for the word from which a thread reads pixels; in TF32 two channels of a quad lie 16 apart."""
    WIDE = dtype == "float32"

    @_device
    def find():
        t = int32(cuda.threadIdx.x)
        group = int32(t >> 2 & 7)
        if WIDE:
            group = int32((group >> 1) + 4 * (group & 1))
        return int32((t & 3) * PITCH + group * 4)

    return find


def _splits(dtype, tiles, copied, anew):
    """How words of a block are made and multiplied with wide pixels, and as two numbers each, which pulls are.

    What is float32 becomes two TF32 in products: the words, and of narrow pixels, and along short lines, those too.
    """
    words, remainders = tuples.words(dtype, tiles), tuples.remainders(dtype, tiles)

    @_device
    def whole(total):
        return (words(total),)

    def gather_by(gather):
        @_device
        def gather_whole(total, made, shared, at):
            return gather(total, made[0], shared, at)

        return gather_whole

    if dtype == "float32":
        wide, narrow = (gather_by(tuples.gather(dtype, tiles, (True, x), anew)) for x in (tiles <= FEW, True))
        return whole, wide, whole, narrow

    make = tuples.gather_copied if copied else tuples.gather
    both = make(dtype, tiles, two=True)

    @_device
    def split(total):
        made = words(total)
        return made, remainders(total, made)

    @_device
    def gather_split(total, made, shared, at):
        return both(total, made[0], made[1], shared, at)

    return whole, gather_by(make(dtype, tiles)), split, gather_split


def _parts(which):
    """The functions that the kernels share, for one size of tile."""
    dtype, (tiles, warps, long), aligned = which.dtype, which.sizes, which.aligned
    asynchronous = which.copies == "async"
    # a copy cannot round to TF32 on its way, nor can ldmatrix exchange rows and columns of 32 bits
    copied = asynchronous and dtype != "float32"
    few = tiles <= FEW
    fetch, exact = tuples.fetch(dtype, aligned, rounded=not few), tuples.fetch(dtype, aligned)
    energies = _energies(tiles, warps, dtype, aligned, copied=asynchronous)
    # grad left or right; value is rounded as the output was made of it, so that a pull is 0 where it should be
    splits = [(left or few, few or not left) for left in (True, False)]
    pulls = [_energies(tiles, warps, dtype, aligned, pair, asynchronous) for pair in splits]
    columns = shared_words(tiles) - 16 * tiles
    whole, gather, split, gather_split = _splits(dtype, tiles, copied, which.form == "fused_backward")
    if few:
        whole, gather = split, gather_split
    names = {"dtype": dtype, "tiles": tiles, "warps": warps, "long": long, "columns": columns, "aligned": aligned}
    names |= {"copied": copied}
    names |= {"whole": whole, "gather": gather, "split": split, "gather_split": gather_split}
    names |= {"put": tuples.put(dtype, aligned), "fetch": fetch, "exact": exact, "energies": energies, "pulls": pulls}
    # near one, far one, near two, far two
    pieces = [tuples.piece(dtype, part, row, copied) for part in (0, 1) for row in (0, 1)]
    return SimpleNamespace(pieces=pieces, **names)


def _outputs_of(parts, narrow, added):
    """The outputs of wide or narrow gradients: a narrow one of float32 needs none of its own."""
    return _narrow_outputs(parts) if narrow and parts.dtype != "float32" else _outputs(parts, added)


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


def attend(which: Kernel) -> Callable[..., None]:
    """One direction of a pass: grid of tiles of 16 `warps` pixels, lines, and images.

    Halves are query, key, value and out; logs those that the rows left, which a column adds to, and those it writes.
    Of fused_residual, which are columns, there is another half, to which what they would write is added, times the
    number in a third log.
    """
    parts, added = _parts(which), which.form == "fused_residual"
    SHARED, sum_weights, warps = shared_words(parts.tiles), _sums(parts), parts.warps
    LONG, ADDED, powers, times = parts.long, added, tuples.powers(parts.tiles), tuples.times(parts.tiles)
    if LONG:
        product = _long_products(parts, _weights(parts, False, False), added=added)
    else:
        begin, product = _products(parts, added=added)
    words = parts.whole

    def kernel(halves, logs, strides, sizes, column):
        query, key, value, out = halves[:4]
        before, log = logs[:2]
        shared = cuda.shared.array(SHARED, uint32, alignment=16)
        t = int32(cuda.threadIdx.x)
        line = _locate(int32(cuda.blockIdx.y), int32(cuda.blockIdx.z), column, sizes)
        L, hop, first = line
        m = int32((cuda.blockIdx.x * warps + (t >> 5)) * 16 + (t >> 2 & 7))
        if not LONG:
            begin(shared, (line, m, sizes[3], column != 0), (value, strides[2]))
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
        place = (line, m, sizes[3], column != 0)
        if ADDED:
            gamma = logs[2][0]
            target = (out, (weight_near * gamma, weight_far * gamma), halves[4], strides[3], gamma)
        else:
            target = (out, (weight_near, weight_far))
        if LONG:
            sums = (log_near, log_far, float32(0), float32(0))
            both = (strides[0], strides[1], strides[0], strides[1])
            arguments = ((query, key, query, key, log, log), both, sizes, line, column, m, sums)
            product(shared, place, (value, strides[2]), arguments, target)
        else:
            total = powers(total, log_near, log_far)
            made = words(times(total, gamma) if ADDED else total), float32(1)
            product(shared, place, (value, strides[2]), made, target)

    return kernel


@inline
def _merge(log, before):
    """The logarithm of two sums, from theirs, and the part of the second."""
    top = _finite(_greater(log, before))
    whole = float32(top + float32(math.log(float32(_exp(log - top) + _exp(before - top)))))
    return whole, _exp(before - whole)


def attend_backward(which: Kernel) -> Callable[..., None]:
    """One direction of the gradients: grid of lines of one block; or of tiles of pixels, three times; and images."""
    parts = _parts(which)
    make: Callable[[SimpleNamespace], Callable[..., None]] = _long_gradients if parts.long else _gradients
    return make(parts)


def _gradients(parts):
    SHARED, COLUMNS, KEYS, WARPS = shared_words(parts.tiles), parts.columns, 8 * parts.tiles, parts.warps
    SCALED, SPLIT = parts.dtype == "float16", parts.dtype != "float32"
    energies, pull_energies, mask, load, turn = (
        parts.energies,
        parts.pulls[True],
        tuples.mask(parts.tiles),
        _load_numbers(parts),
        _turn(parts),
    )
    powers, columns, minus = tuples.powers(parts.tiles), tuples.columns(parts.tiles), tuples.minus(parts.tiles)
    pull, keep, largest = tuples.pull(parts.tiles), tuples.keep_rows(parts.tiles), tuples.largest(parts.tiles)
    times, whole, split = tuples.times(parts.tiles), parts.whole, parts.split
    begin_wide, value_product = _products(parts)
    begin, narrow_product = _products(parts, narrow=True)
    narrow_targets = _narrow_targets(parts)

    @_device
    def turn_all(shared, made):
        return (turn(shared, made[0]), turn(shared, made[1])) if SPLIT else (turn(shared, made[0]),)

    @_device
    def scale_block(shared, total):
        """The block's numbers as large as float16 can hold, and what they are to be multiplied with."""
        t = int32(cuda.threadIdx.x)
        scale = float32(1)
        if SCALED:
            most = _warp_max(largest(total))
            if t & 31 == 0:
                tuples.write_float(shared, int32(COLUMNS + (t >> 5)), most)
            cuda.syncthreads()
            most = _warp_max(tuples.read_float(shared, int32(COLUMNS + min(int32(t & 7), int32(WARPS - 1)))))
            if most > float32(1e-30) and most < INFINITE:
                total = times(total, float32(LARGE / most))
                scale = float32(most / LARGE)
        return total, scale

    def kernel(inputs, outputs, logs, strides, sizes, column):
        query, key, value, grad = inputs
        log, delta, query_rows, key_rows = logs
        q, k, v, g = strides
        shared = cuda.shared.array(SHARED, uint32, alignment=16)
        t, zero, one = int32(cuda.threadIdx.x), float32(0), float32(1)
        line = _locate(int32(cuda.blockIdx.y), int32(cuda.blockIdx.z), column, sizes)
        L = line[0]
        m, member = int32((t >> 5) * 16 + (t >> 2 & 7)), int32(t & 3)
        # rows are keys and columns are queries
        load(shared, int32(COLUMNS), log, line, int32(0), INFINITE)
        load(shared, int32(COLUMNS + KEYS), delta, line, int32(0), zero)
        wide, narrow = (line, m, sizes[3], column != 0), (line, m, sizes[2], column != 0)
        begin_wide(shared, wide, (grad, g))
        at = int32(COLUMNS + 2 * member)
        total = energies(shared, (key, query), (k, q), sizes[2], line, m, int32(0))
        own = int32(m - 2 * member)
        near, far = (own, int32(own + 8)) if column else (int32(-1), int32(-1))
        total = mask(total, int32(L - 2 * member), near, far)
        total = powers(minus(total, columns(shared, at)), zero, zero)
        # as soon as there are weights: fewer registers are used at once
        value_product(shared, wide, (grad, g), (whole(total), one), (outputs[2], (one, one)))
        cuda.syncthreads()
        begin(shared, narrow, (query, q))
        other = pull_energies(shared, (value, grad), (v, g), sizes[3], line, m, int32(0))
        total = pull(total, minus(other, columns(shared, int32(at + KEYS))), zero, zero)
        # what is beyond the line has no pixels to be multiplied with, and may be infinite
        total, scale = scale_block(shared, keep(total, m < L, m + 8 < L))
        pulls = split(total)
        query_target, key_target = narrow_targets(outputs, query_rows, key_rows)
        narrow_product(shared, narrow, (query, q), (pulls, scale), key_target)
        cuda.syncthreads()
        turned = turn_all(shared, pulls)
        begin(shared, narrow, (key, k))
        narrow_product(shared, narrow, (key, k), (turned, scale), query_target)

    return kernel


def _long_gradients(parts):
    SHARED, WARPS = shared_words(parts.tiles), parts.warps
    to_value, to_query, to_key = (_weights(parts, *how) for how in ((True, False), (False, True), (True, True)))
    value_product = _long_products(parts, to_value)
    query_product, key_product = (_long_products(parts, x, narrow=True) for x in (to_query, to_key))
    narrow_targets = _narrow_targets(parts)

    def kernel(inputs, outputs, logs, strides, sizes, column):
        query, key, value, grad = inputs
        log, delta, query_rows, key_rows = logs
        q, k, v, g = strides
        shared = cuda.shared.array(SHARED, uint32, alignment=16)
        t, zero, one = int32(cuda.threadIdx.x), float32(0), float32(1)
        line = _locate(int32(cuda.blockIdx.y), int32(cuda.blockIdx.z), column, sizes)
        L, hop, first = line
        job = int32(cuda.blockIdx.x % 3)
        m = int32((cuda.blockIdx.x // 3 * WARPS + (t >> 5)) * 16 + (t >> 2 & 7))
        sums = (zero, zero, zero, zero)
        wide, narrow = (line, m, sizes[3], column != 0), (line, m, sizes[2], column != 0)
        query_target, key_target = narrow_targets(outputs, query_rows, key_rows)
        if job == 1:
            at_near, at_far, near, far = int32(first + m * hop), int32(first + (m + 8) * hop), m < L, m + 8 < L
            log_near, log_far = _number(log, at_near, near, INFINITE), _number(log, at_far, far, INFINITE)
            sums = (log_near, log_far, _number(delta, at_near, near, zero), _number(delta, at_far, far, zero))
            sources = (query, key, grad, value, log, delta)
            arguments = (sources, (q, k, g, v), sizes, line, column, m, sums)
            query_product(shared, narrow, (key, k), arguments, query_target)
        else:
            sources = (key, query, value, grad, log, delta)
            arguments = (sources, (k, q, v, g), sizes, line, column, m, sums)
            if job == 0:
                value_product(shared, wide, (grad, g), arguments, (outputs[2], (one, one)))
            else:
                key_product(shared, narrow, (query, q), arguments, key_target)

    return kernel


def _narrow_targets(parts):
    """A function for where the gradients of query and key go: in 16 bits by what the rows leave in float32."""
    if parts.dtype == "float32":

        @_device
        def targets(outputs, query_rows, key_rows):
            weights = (float32(1), float32(1))
            return (outputs[0], weights), (outputs[1], weights)

    else:

        @_device
        def targets(outputs, query_rows, key_rows):
            return (outputs[0], query_rows), (outputs[1], key_rows)

    return targets


def inner_products(dtype: str, warps: int, aligned: bool) -> Callable[..., None]:
    """Delta: the sum over channels of two tensors' products for each pixel, a warp to a pixel."""
    fetch, multiply, VECTOR = tuples.fetch(dtype, aligned), tuples.product_of_words(dtype), 4 * numbers_per_word(dtype)

    def kernel(first, second, delta, strides, channels, pixels):
        t = int32(cuda.threadIdx.x)
        pixel, lane = int32(cuda.blockIdx.x * warps + (t >> 5)), int32(t & 31)
        if pixel >= pixels:
            return
        whole = float32(0)
        c = int32(VECTOR * lane)
        while c < channels:
            one = fetch(first, int32(pixel * strides[0] + c), int32(channels - c))
            other = fetch(second, int32(pixel * strides[1] + c), int32(channels - c))
            whole = float32(whole + multiply(one, other))
            c = int32(c + 32 * VECTOR)
        whole = _quad_sum(whole)
        whole = float32(whole + cuda.shfl_xor_sync(ALL, whole, 4))
        whole = float32(whole + cuda.shfl_xor_sync(ALL, whole, 8))
        whole = float32(whole + cuda.shfl_xor_sync(ALL, whole, 16))
        if lane == 0:
            delta[pixel] = whole

    return kernel
