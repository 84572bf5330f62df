"""Matrix products along the rows, columns and time of an image or a clip, as tiles in shared memory and registers.

Every matrix of a product lies along one line, a row or a column or one through the frames, of pixels with unit channel
stride: pixel p of a tensor starts at p * stride. L is the line's length. Energies E hold an arm per axis and pixel, the
frames' first, the row's last. Three forms cover the operators and their gradients:

    nt  out E (L, L) = left (L, C) right (L, C)^T    energies of query and key, masked; pull of grad and value
    nn  out (L, C)   = left E (L, L) right (L, C)    gathering along the line
    tn  out (L, C)   = left E (L, L)^T right (L, C)  spreading along the line

nn and tn run once for each arm, rows first; the others add to what is there. Sums run in a fixed order.
"""

import math
from collections.abc import Callable

from numba import cuda
from numpy import float32, int32

from ccnet_cli.ops.cuda.memory import fetch, inline, put, read4, write, write4
from ccnet_cli.ops.cuda.steps import DEPTH, SIDE

MASKED = float32(-math.inf)


def _stride(tile: int) -> int:
    """Floats between rows in shared memory: 4 mod 32, so that a warp that transposes vectors uses every bank once."""
    return (tile + 27) // 32 * 32 + 4


@inline
def _position(vector, groups, transposed):
    """Step and index in a tile of a vector of four, which runs along the summed axis if it is to be transposed."""
    if transposed:
        return int32((vector & 1) << 2), int32(vector >> 1)
    step = int32(vector // groups)
    return step, int32((vector - step * groups) << 2)


@inline
def _offset(step, index, hop, stride, transposed):
    """From a line's first pixel to an element of its matrix."""
    if transposed:
        return int32(index * hop * stride + step)
    return int32(step * hop * stride + index)


@inline
def _count(steps, rest, transposed):
    """How many elements there are from a vector's first to the matrix's edge: none if it is outside."""
    if transposed:
        return steps if rest > 0 else int32(0)
    return rest if steps > 0 else int32(0)


@inline
def _store(shared, at, stride, values, inside, transposed):
    """Write a vector to a tile, whose rows are the steps, from `at` on; nothing unless inside."""
    first, second, third, fourth = values
    if inside:
        if transposed:
            write(shared, at, first)
            write(shared, int32(at + stride), second)
            write(shared, int32(at + 2 * stride), third)
            write(shared, int32(at + 3 * stride), fourth)
        else:
            write4(shared, at, first, second, third, fourth)


@inline
def _multiply(total, shared, row, near, far):
    """Add one step to a thread's part of the product: 64 multiply-adds for four vector loads."""
    left = read4(shared, row) + read4(shared, int32(row + 4))
    right = read4(shared, near) + read4(shared, far)
    for i in range(SIDE):
        for j in range(SIDE):
            total[i, j] += left[i] * right[j]


@inline
def _mask(values, own):
    """Four energies, -inf at index `own` if it is one of them."""
    first, second, third, fourth = values
    if own == 0:
        first = MASKED
    if own == 1:
        second = MASKED
    if own == 2:
        third = MASKED
    if own == 3:
        fourth = MASKED
    return first, second, third, fourth


@inline
def add(values, others):
    """The sums of two vectors of four."""
    return values[0] + others[0], values[1] + others[1], values[2] + others[2], values[3] + others[3]


@inline
def store(out, at, count, values, more, aligned):
    """Write four elements of out, at most `count`; more adds them to what is there."""
    if count > 0:
        if more:
            values = add(values, fetch(out, at, count, aligned))
        put(out, at, count, values, aligned)


@inline
def _pick(second, one, other):
    return other if second else one


@inline
def _fetch_row(out, index, columns, rests, inside, aligned):
    """What is there of a thread's two vectors of a row; nothing unless inside."""
    near = fetch(out, int32(index + columns[0]), rests[0] if inside else int32(0), aligned)
    return near, fetch(out, int32(index + columns[1]), rests[1] if inside else int32(0), aligned)


@inline
def locate_line(line, image, arms, pixels):
    """A line's length, the pixels from one to the next, its first pixel, its arm's offset, and the arm's flag.

    arms are the number of the first arm's lines, and of both arms: length, stride, offset and flag.
    """
    lines, L, hop, offset, flag = arms[:5]
    if line >= lines:
        line = int32(line - lines)
        L, hop, offset, flag = arms[5:]
    block = int32(line // hop)
    return L, hop, int32(image * pixels + block * (L - 1) * hop + line), offset, flag


@inline
def locate_tile(tile, columns, height, width):
    """The first row and column of a tile of height x width: tiles are numbered row by row."""
    across = int32(int32(columns + width - 1) // width)
    row = int32(0)
    while tile >= across:
        tile = int32(tile - across)
        row = int32(row + height)
    return row, int32(tile * width)


@inline
def clear(total, rows, columns):
    """Fill a thread's part of the product with zeros."""
    for i in range(rows):
        for j in range(columns):
            total[i, j] = float32(0)


@inline
def _row(total, i):
    """Row i of a thread's part of the product, spelled out: an index that is no constant would put it on the stack."""
    if i == 0:
        row = total[0, 0], total[0, 1], total[0, 2], total[0, 3], total[0, 4], total[0, 5], total[0, 6], total[0, 7]
    elif i == 1:
        row = total[1, 0], total[1, 1], total[1, 2], total[1, 3], total[1, 4], total[1, 5], total[1, 6], total[1, 7]
    elif i == 2:
        row = total[2, 0], total[2, 1], total[2, 2], total[2, 3], total[2, 4], total[2, 5], total[2, 6], total[2, 7]
    elif i == 3:
        row = total[3, 0], total[3, 1], total[3, 2], total[3, 3], total[3, 4], total[3, 5], total[3, 6], total[3, 7]
    elif i == 4:
        row = total[4, 0], total[4, 1], total[4, 2], total[4, 3], total[4, 4], total[4, 5], total[4, 6], total[4, 7]
    elif i == 5:
        row = total[5, 0], total[5, 1], total[5, 2], total[5, 3], total[5, 4], total[5, 5], total[5, 6], total[5, 7]
    elif i == 6:
        row = total[6, 0], total[6, 1], total[6, 2], total[6, 3], total[6, 4], total[6, 5], total[6, 6], total[6, 7]
    else:
        row = total[7, 0], total[7, 1], total[7, 2], total[7, 3], total[7, 4], total[7, 5], total[7, 6], total[7, 7]
    return row


def line_product(form: str, across: int, down: int, aligned: bool) -> Callable[..., None]:
    """A kernel that makes a tile of 8 `down` rows and 8 `across` columns of `out` in a block.

    Thread (y, x), numbered row by row, holds rows 8 y + i and columns 4 x + j of one half of the tile and of the other;
    odd y take the halves in the other order, so that the lanes of a warp read neighbouring vectors across rows too.
    Every thread fetches one vector of each operand ahead. Aligned kernels access global memory in vectors of four:
    channels, strides and offsets of arms are multiples of 4, and addresses of 4 elements. With an arm's flag, nt masks
    the diagonal, and nn and tn add to what is there. Grid: tiles, the lines of one arm or two, images.
    """
    NT, TURN_LEFT, TURN_RIGHT, ALIGNED = form == "nt", form != "tn", form == "nt", aligned
    ACROSS, WORKERS, TILE_M, TILE_N = across, across * down, SIDE * down, SIDE * across
    STRIDE_M, STRIDE_N = _stride(TILE_M), _stride(TILE_N)
    RIGHT, BUFFER = DEPTH * STRIDE_M, DEPTH * (STRIDE_M + STRIDE_N)
    BUFFERS = 2 * BUFFER
    GROUPS_M, GROUPS_N = TILE_M // 4, TILE_N // 4
    VECTORS_M, VECTORS_N = DEPTH * GROUPS_M, DEPTH * GROUPS_N

    def kernel(left, right, out, strides, arms, sizes):
        shared = cuda.shared.array(BUFFERS, float32)
        total = cuda.local.array((SIDE, SIDE), float32)
        t = int32(cuda.threadIdx.x)
        left_stride, right_stride, out_stride = strides
        pixels, C = sizes
        L, hop, first, arm, flag = locate_line(int32(cuda.blockIdx.y), int32(cuda.blockIdx.z), arms, pixels)
        N, K = (L, C) if NT else (C, L)
        m0, n0 = locate_tile(int32(cuda.blockIdx.x), N, TILE_M, TILE_N)
        if m0 >= L:
            return
        k_left, m = _position(t, GROUPS_M, TURN_LEFT)
        k_right, n = _position(t, GROUPS_N, TURN_RIGHT)
        left_rest = int32(L - m0 - m) if t < VECTORS_M else int32(0)
        right_rest = int32(N - n0 - n) if t < VECTORS_N else int32(0)
        left_at = _offset(k_left, int32(m0 + m), hop, left_stride, TURN_LEFT)
        left_at = int32(left_at + first * left_stride + (0 if NT else arm))
        right_at = _offset(k_right, int32(n0 + n), hop, right_stride, TURN_RIGHT)
        right_at = int32(right_at + first * right_stride)
        y = int32(t // ACROSS)
        x = int32(t - y * ACROSS)
        half = int32((y & 1) * ACROSS)
        row, near, far = int32(y * SIDE), int32((x + half) * 4), int32((x + ACROSS - half) * 4)
        clear(total, SIDE, SIDE)
        base = int32(0)
        k0 = int32(-DEPTH)
        while k0 < K:
            # load the next tiles to registers while multiplying these; the first round has none to multiply
            k1 = int32(k0 + DEPTH)
            left_next = fetch(left, left_at, _count(int32(K - k1 - k_left), left_rest, TURN_LEFT), ALIGNED)
            right_next = fetch(right, right_at, _count(int32(K - k1 - k_right), right_rest, TURN_RIGHT), ALIGNED)
            left_at = int32(left_at + (DEPTH if TURN_LEFT else DEPTH * hop * left_stride))
            right_at = int32(right_at + (DEPTH if TURN_RIGHT else DEPTH * hop * right_stride))
            if k0 >= 0 and t < WORKERS:
                depth = min(int32(DEPTH), int32(K - k0))
                p, q = int32(base + row), int32(base + RIGHT)
                # by two, so that the loads of the second step hide behind the first
                while depth > 1:
                    _multiply(total, shared, p, int32(q + near), int32(q + far))
                    p, q = int32(p + STRIDE_M), int32(q + STRIDE_N)
                    _multiply(total, shared, p, int32(q + near), int32(q + far))
                    p, q = int32(p + STRIDE_M), int32(q + STRIDE_N)
                    depth = int32(depth - 2)
                if depth > 0:
                    _multiply(total, shared, p, int32(q + near), int32(q + far))
            base = int32(BUFFER - base)
            if k1 < K:
                p, q = int32(base + k_left * STRIDE_M + m), int32(base + RIGHT + k_right * STRIDE_N + n)
                _store(shared, p, STRIDE_M, left_next, t < VECTORS_M, TURN_LEFT)
                _store(shared, q, STRIDE_N, right_next, t < VECTORS_N, TURN_RIGHT)
                cuda.syncthreads()
            k0 = k1
        if t >= WORKERS:
            return
        corner = int32((first + (m0 + row) * hop) * out_stride + (arm if NT else 0) + n0)
        more, pitch, rests = flag and not NT, int32(hop * out_stride), (int32(N - n0 - near), int32(N - n0 - far))
        before = _fetch_row(out, corner, (near, far), rests, more and m0 + row < L, ALIGNED)
        for i in range(SIDE):
            index = int32(corner + i * pitch)
            # what the next row is added to loads while this one is stored
            inside = more and i + 1 < SIDE and m0 + row + i + 1 < L
            ahead = _fetch_row(out, int32(index + pitch), (near, far), rests, inside, ALIGNED)
            if m0 + row + i < L:
                products = _row(total, i)
                for j in range(0, SIDE, 4):
                    n, others = _pick(j, near, far), _pick(j, before[0], before[1])
                    own = int32(m0 + row + i - n0 - n) if NT and flag else int32(-1)
                    values = _mask(_pick(j, products[:4], products[4:]), own)
                    values = _pick(more, values, add(values, others))
                    store(out, int32(index + n), int32(N - n0 - n), values, False, ALIGNED)
            before = ahead

    return kernel
