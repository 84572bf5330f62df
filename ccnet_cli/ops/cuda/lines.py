"""Matrix products along the rows and columns of an image, as tiles in shared memory and registers.

Every matrix of a product lies along one line, a row or a column, of pixels with unit channel stride: pixel p of a
tensor starts at p * stride. L is the line's length. Energies E hold two arms per pixel, the column's from 0, the row's
from `arm` on. Three forms cover the operators and their gradients:

    nt  out E (L, L) = left (L, C) right (L, C)^T    energies from query and key, with the mask; pull from grad and value
    nn  out (L, C)   = left E (L, L) right (L, C)    gathering along the line
    tn  out (L, C)   = left E (L, L)^T right (L, C)  spreading along the line

nn and tn run twice, rows first; the columns add to what the rows wrote. Sums run in a fixed order.
"""

import math
from collections.abc import Callable

from numba import cuda, float32, int32

from ccnet_cli.ops.cuda.memory import inlined, read, read4, write, write4

DEPTH = 8  # steps of the summed axis in shared memory at once
SIDE = 8  # a thread holds SIDE x SIDE of the product
THREADS = 256  # at most; two such blocks share the registers of a multiprocessor
UNROLL = 2
MASKED = float32(-math.inf)


def _stride(tile: int) -> int:
    """Between rows in shared memory: 4 mod 32, so that a warp that turns vectors over meets every bank once."""
    return (tile + 27) // 32 * 32 + 4


@inlined
def _spot(vector, groups, turned):
    """Step and first place of a vector of four in a tile, which is read along the summed axis if it is turned over."""
    if turned:
        return int32((vector & 1) << 2), int32(vector >> 1)
    step = int32(vector // groups)
    return step, int32(int32(vector - step * groups) << 2)


@inlined
def _offset(step, place, hop, stride, turned):
    """From a line's first pixel to a vector of its matrix."""
    if turned:
        return int32(place * hop * stride + step)
    return int32(step * hop * stride + place)


@inlined
def _count(steps, places, turned):
    """How many elements of a vector there are before the matrix ends along the vector; none beyond its other end."""
    if turned:
        return steps if places > 0 else int32(0)
    return places if steps > 0 else int32(0)


@inlined
def _fetch(source, index, count, aligned):
    """Four elements; those from `count` on are 0 or, in one aligned access, whatever lies there."""
    second = third = fourth = first = float32(0)
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


@inlined
def _put(target, index, count, values, aligned):
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


@inlined
def _lay(shared, start, stride, step, place, values, turned):
    """Four elements into a tile of rows of one step each."""
    first, second, third, fourth = values
    at = int32(start + step * stride + place)
    if turned:
        write(shared, at, first)
        write(shared, int32(at + stride), second)
        write(shared, int32(at + 2 * stride), third)
        write(shared, int32(at + 3 * stride), fourth)
    else:
        write4(shared, at, first, second, third, fourth)


@inlined
def _plus(values, others):
    return values[0] + others[0], values[1] + others[1], values[2] + others[2], values[3] + others[3]


@inlined
def _without(values, own):
    """The pixel's own energy, if it is among these four, masked."""
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


@inlined
def _multiply(total, shared, row, near, far):
    """Add one step of the summed axis to a thread's part of the product."""
    p = read4(shared, row) + read4(shared, int32(row + 4))
    q = read4(shared, near) + read4(shared, far)
    for i in range(SIDE):
        for j in range(SIDE):
            total[i, j] += p[i] * q[j]


def line_product(form: str, across: int, down: int, aligned: bool) -> Callable[..., None]:
    """A kernel for tiles of 8 `down` rows and 8 `across` columns.

    Thread (y, x), numbered row by row, holds rows 8 y + i and, so that neighbours read and write neighbouring vectors,
    columns 4 x + j of each half. Aligned kernels read and write vectors of four: channels, strides and arm are
    multiples of 4, addresses of 4 elements, and energies padded to one. Grid: tiles, lines (rows, then columns), images.
    """
    NT, TURN_LEFT, TURN_RIGHT, ALIGNED = form == "nt", form != "tn", form == "nt", aligned
    ACROSS, TILE_M, TILE_N, WORKERS = across, SIDE * down, SIDE * across, across * down
    STRIDE_M, STRIDE_N = _stride(TILE_M), _stride(TILE_N)
    RIGHT = DEPTH * STRIDE_M
    BUFFER = DEPTH * (STRIDE_M + STRIDE_N)
    BUFFERS = 2 * BUFFER
    GROUPS_M, GROUPS_N = TILE_M // 4, TILE_N // 4
    VECTORS_M, VECTORS_N = DEPTH * GROUPS_M, DEPTH * GROUPS_N

    def kernel(left, right, out, left_stride, right_stride, out_stride, arm, H, W, C, start, mask):
        shared = cuda.shared.array(BUFFERS, float32)
        total = cuda.local.array((SIDE, SIDE), float32)
        t = int32(cuda.threadIdx.x)
        line = int32(cuda.blockIdx.y + start)
        column = line >= H
        L = H if column else W
        hop = W if column else int32(1)
        first = int32(cuda.blockIdx.z * H * W + (line - H if column else line * W))
        arm = int32(0) if column else arm
        N = L if NT else C
        K = C if NT else L
        tiles = int32(int32(N + TILE_N - 1) // TILE_N)
        m0 = int32(0)
        tile = int32(cuda.blockIdx.x)
        while tile >= tiles:
            tile = int32(tile - tiles)
            m0 = int32(m0 + TILE_M)
        n0 = int32(tile * TILE_N)
        if m0 >= L:
            return
        k_left, m = _spot(t, GROUPS_M, TURN_LEFT)
        k_right, n = _spot(t, GROUPS_N, TURN_RIGHT)
        left_places = int32(L - m0 - m) if t < VECTORS_M else int32(0)
        right_places = int32(N - n0 - n) if t < VECTORS_N else int32(0)
        left_at = int32(first * left_stride + (0 if NT else arm) + _offset(k_left, int32(m0 + m), hop, left_stride, TURN_LEFT))
        right_at = int32(first * right_stride + _offset(k_right, int32(n0 + n), hop, right_stride, TURN_RIGHT))
        y = int32(t // ACROSS)
        x = int32(t - y * ACROSS)
        other = int32((y & 1) * ACROSS)
        row = int32(y * SIDE)
        near = int32((x + other) * 4)
        far = int32((x + ACROSS - other) * 4)
        for i in range(SIDE):
            for j in range(SIDE):
                total[i, j] = float32(0)
        base = int32(0)
        k0 = int32(-DEPTH)
        while k0 < K:
            # the next tiles are on their way to registers while these are multiplied
            k1 = int32(k0 + DEPTH)
            left_next = _fetch(left, left_at, _count(int32(K - k1 - k_left), left_places, TURN_LEFT), ALIGNED)
            right_next = _fetch(right, right_at, _count(int32(K - k1 - k_right), right_places, TURN_RIGHT), ALIGNED)
            left_at = int32(left_at + (DEPTH if TURN_LEFT else DEPTH * hop * left_stride))
            right_at = int32(right_at + (DEPTH if TURN_RIGHT else DEPTH * hop * right_stride))
            if k0 >= 0 and t < WORKERS:
                depth = min(int32(DEPTH), int32(K - k0))
                p = int32(base + row)
                q = int32(base + RIGHT)
                while depth >= UNROLL:
                    _multiply(total, shared, p, int32(q + near), int32(q + far))
                    _multiply(total, shared, int32(p + 1 * STRIDE_M), int32(q + near + 1 * STRIDE_N), int32(q + far + 1 * STRIDE_N))
                    p = int32(p + UNROLL * STRIDE_M)
                    q = int32(q + UNROLL * STRIDE_N)
                    depth = int32(depth - UNROLL)
                while depth > 0:
                    _multiply(total, shared, p, int32(q + near), int32(q + far))
                    p = int32(p + STRIDE_M)
                    q = int32(q + STRIDE_N)
                    depth = int32(depth - 1)
            base = int32(BUFFER - base)
            if k1 < K:
                if t < VECTORS_M:
                    _lay(shared, base, STRIDE_M, k_left, m, left_next, TURN_LEFT)
                if t < VECTORS_N:
                    _lay(shared, int32(base + RIGHT), STRIDE_N, k_right, n, right_next, TURN_RIGHT)
                cuda.syncthreads()
            k0 = k1
        if t >= WORKERS:
            return
        for i in range(SIDE):
            m = int32(m0 + row + i)
            if m < L:
                for j in range(0, SIDE, 4):
                    n = int32(n0 + (far if j else near))
                    count = int32(N - n)
                    if count > 0:
                        values = total[i, j], total[i, j + 1], total[i, j + 2], total[i, j + 3]
                        index = int32((first + m * hop) * out_stride + (arm if NT else 0) + n)
                        if NT:
                            values = _without(values, int32(m - n) if column and mask else int32(-1))
                        elif column:
                            values = _plus(values, _fetch(out, index, count, ALIGNED))
                        _put(out, index, count, values, ALIGNED)

    kernel.__name__ = f"{form}_{TILE_M}x{TILE_N}{'' if aligned else '_unaligned'}"
    return kernel
