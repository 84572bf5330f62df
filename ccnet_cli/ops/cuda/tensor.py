"""The form nn of lines.py on tensor cores: gathering along rows and columns in TF32 or bfloat16, summed in float32.

Off by default: no GPU has run it yet. Both operands are rounded when they are written to shared memory, as words (see
fragments.py). A warp's left operand is the value, channels by summed pixels, its right one the energies,
summed pixels by pixels, so that a thread ends with four neighbouring channels of a pixel. A product does not mind the
order of what it sums, and this one is chosen so that a thread finds its words of two steps side by side: it reads
vectors only, and a warp meets every bank of shared memory once.
"""

from collections.abc import Callable

from numba import cuda
from numpy import float32, int32

from ccnet_cli.ops.cuda.fragments import bf16, multiply_bf16, multiply_tf32, tf32
from ccnet_cli.ops.cuda.lines import clear, locate_line, locate_tile, store
from ccnet_cli.ops.cuda.memory import fetch, inline, read4, write4
from ccnet_cli.ops.cuda.steps import CHANNELS, PARTS, SIDE, WORDS


@inline
def _cut(values, count):
    """Four elements, 0 from `count` on, whatever they were: nan times 0 is nan."""
    first, second, third, fourth = values
    if count < 2:
        second = float32(0)
    if count < 3:
        third = float32(0)
    if count < 4:
        fourth = float32(0)
    return first, second, third, fourth


@inline
def _pair(word):
    """The first of the two summed pixels in a word of bfloat16: a thread's vectors of a line are 16 pixels apart."""
    return int32((word >> 2 << 2) + ((word & 1) << 1) + ((word & 2) << 3))


@inline
def _swizzle(word, vector):
    """The offset of a vector in a row of the value's words: rows that a warp reads at once use different banks."""
    return int32((vector ^ (word >> 2 << 1)) << 2)


@inline
def _product(left, right, total, paired):
    return multiply_bf16(left, right, total) if paired else multiply_tf32(left, right, total)


@inline
def _multiply(total, part, energies, one, two, three, four, paired):
    """Add two steps to a warp's 8 pixels and 32 channels: four products for one vector of energies."""
    near, far = energies[:2], energies[2:]
    sums = total[part, 0], total[part, 1], total[part, 2], total[part, 3]
    sums = _product((one[0], one[1], two[0], two[1]), near, sums, paired)
    sums = _product((three[0], three[1], four[0], four[1]), far, sums, paired)
    total[part, 0], total[part, 1], total[part, 2], total[part, 3] = sums
    sums = total[part, 4], total[part, 5], total[part, 6], total[part, 7]
    sums = _product((one[2], one[3], two[2], two[3]), near, sums, paired)
    sums = _product((three[2], three[3], four[2], four[3]), far, sums, paired)
    total[part, 4], total[part, 5], total[part, 6], total[part, 7] = sums


@inline
def _store_words(shared, at, near, far, side, paired):
    """Write eight numbers to shared memory as four words of bfloat16, side by side or across; or `near` in TF32."""
    one, two, three, four = near
    five, six, seven, eight = far
    if not paired:
        write4(shared, at, tf32(one), tf32(two), tf32(three), tf32(four))
    elif side:
        write4(shared, at, bf16(one, two), bf16(three, four), bf16(five, six), bf16(seven, eight))
    else:
        write4(shared, at, bf16(one, five), bf16(two, six), bf16(three, seven), bf16(four, eight))


@inline
def _split(total, i):
    """A thread's four channels of a pixel and of the next."""
    near = total[i, 0], total[i, 2], total[i, 4], total[i, 6]
    far = total[i, 1], total[i, 3], total[i, 5], total[i, 7]
    return near, far


@inline
def _part(total, i):
    """Eight of a warp's pixels, spelled out as the rows of a line product are."""
    if i == 0:
        part = _split(total, 0)
    elif i == 1:
        part = _split(total, 1)
    elif i == 2:
        part = _split(total, 2)
    elif i == 3:
        part = _split(total, 3)
    elif i == 4:
        part = _split(total, 4)
    elif i == 5:
        part = _split(total, 5)
    else:
        part = _split(total, 6)
    return part


@inline
def _fetch_energies(left, at, count, paired, aligned):
    """Four energies and, for bfloat16, four of the second half of the steps, cut at `count`."""
    near = far = _cut(fetch(left, at, count, aligned), count)
    if paired:
        count = int32(count - 16)
        far = _cut(fetch(left, int32(at + 16), count, aligned), count)
    return near, far


@inline
def _fetch_values(right, at, hop, counts, paired, aligned):
    """Four channels of a summed pixel and, for bfloat16, of the next."""
    near = far = fetch(right, at, counts[0], aligned)
    if paired:
        far = fetch(right, int32(at + hop), counts[1], aligned)
    return near, far


def tensor_product(across: int, down: int, parts: int, dtype: str, aligned: bool) -> Callable[..., None]:
    """A kernel that makes a tile of 8 `parts` `down` pixels and 32 `across` channels of `out` in a block.

    A warp holds 8 `parts` pixels and 32 channels. Arguments, `aligned` and the grid are those of a line product.
    """
    ACROSS, PARTED, PAIRED, ALIGNED = across, parts, dtype == "bfloat16", aligned
    WORKERS, TILE_M, TILE_N = 32 * across * down, SIDE * parts * down, CHANNELS * across
    DEPTH = 2 * WORDS if PAIRED else WORDS
    GROUPS = TILE_N // 4
    RIGHT, BUFFER = TILE_M * WORDS, (TILE_M + TILE_N) * WORDS
    BUFFERS = 2 * BUFFER
    LINES = WORKERS // 4
    FETCHED_M, FETCHED_N = -(-TILE_M // LINES), WORDS * GROUPS // WORKERS

    def kernel(left, right, out, strides, arms, sizes):
        shared = cuda.shared.array(BUFFERS, float32)
        total = cuda.local.array((PARTS, 8), float32)
        t = int32(cuda.threadIdx.x)
        left_stride, right_stride, out_stride = strides
        pixels, C = sizes
        L, hop, first, arm, flag = locate_line(int32(cuda.blockIdx.y), int32(cuda.blockIdx.z), arms, pixels)
        m0, n0 = locate_tile(int32(cuda.blockIdx.x), C, TILE_M, TILE_N)
        if m0 >= L:
            return
        warp, group, member = int32(t >> 5), int32(t >> 2 & 7), int32(t & 3)
        band = int32(warp // ACROSS)
        pixel = int32(band * PARTED * SIDE)
        channel = int32((warp - band * ACROSS) * CHANNELS)
        line_at = int32((pixel + group) * WORDS + member * 4)
        value_at = int32(RIGHT + member * 4 * TILE_N + channel + _swizzle(int32(member * 4), group))
        clear(total, PARTS, 8)
        m, k_left = int32(t >> 2), int32((t & 3) << 2)
        word = int32(t // GROUPS)
        n, k_right = int32((t - word * GROUPS) << 2), _pair(word) if PAIRED else word
        left_rest = min(int32(L - m0), int32(TILE_M))
        right_rest = int32(C - n0 - n)
        left_at = int32((first + (m0 + m) * hop) * left_stride + arm + k_left)
        right_at = int32((first + k_right * hop) * right_stride + n0 + n)
        right_to = int32(RIGHT + word * TILE_N + _swizzle(word, int32(n >> 2)))
        base = int32(0)
        k0 = int32(-DEPTH)
        while k0 < L:
            # write the next tiles beside those that are multiplied; the first round has none to multiply
            base = int32(BUFFER - base)
            k1 = int32(k0 + DEPTH)
            if k1 < L:
                count = int32(L - k1 - k_left)
                for i in range(FETCHED_M):
                    if m + i * LINES < TILE_M:
                        elements = count if m + i * LINES < left_rest else int32(0)
                        at = int32(left_at + i * LINES * hop * left_stride)
                        near, far = _fetch_energies(left, at, elements, PAIRED, ALIGNED)
                        _store_words(shared, int32(base + t * 4 + i * WORKERS * 4), near, far, True, PAIRED)
                count = int32(L - k1 - k_right)
                for i in range(FETCHED_N):
                    at = int32(right_at + i * 8 * hop * right_stride)
                    elements = right_rest if count > i * 8 else int32(0)
                    following = right_rest if count > i * 8 + 1 else int32(0)
                    near, far = _fetch_values(right, at, hop * right_stride, (elements, following), PAIRED, ALIGNED)
                    _store_words(shared, int32(base + right_to + i * 8 * TILE_N ^ i * 16), near, far, False, PAIRED)
            if k0 >= 0:
                p, q = int32(BUFFER - base + line_at), int32(BUFFER - base + value_at)
                one, two = read4(shared, q), read4(shared, int32(q + TILE_N))
                three, four = read4(shared, int32(q + 2 * TILE_N)), read4(shared, int32(q + 3 * TILE_N))
                for i in range(PARTED):
                    _multiply(total, i, read4(shared, int32(p + i * 8 * WORDS)), one, two, three, four, PAIRED)
            left_at = int32(left_at + DEPTH)
            right_at = int32(right_at + DEPTH * hop * right_stride)
            cuda.syncthreads()
            k0 = k1
        n = int32(n0 + channel + group * 4)
        count = int32(C - n)
        m = int32(m0 + pixel + member * 2)
        for i in range(PARTED):
            near, far = _part(total, i)
            at = int32((first + m * hop) * out_stride + n)
            store(out, at, count if m < L else int32(0), near, flag, ALIGNED)
            at = int32((first + (m + 1) * hop) * out_stride + n)
            store(out, at, count if m + 1 < L else int32(0), far, flag, ALIGNED)
            m = int32(m + 8)

    return kernel
