"""The softmax over a pixel's cross and its backward, in place: each value is read once and written once."""

import math
from collections.abc import Callable

from numba import cuda
from numpy import float32, int32

from ccnet_cli.ops.cuda.memory import inline, read, write


@inline
def _valid(position, arms):
    """Whether an entry of a pixel's energies belongs to its cross, not to the padding behind an arm."""
    first, second = position >= arms[0] and position < arms[1], position >= arms[2] and position < arms[3]
    return first or second or (position >= arms[4] and position < arms[5])


@inline
def _greatest(partial, t, lane, value, group):
    """The greatest value of the threads of a group."""
    write(partial, t, value)
    cuda.syncthreads()
    half = int32(group // 2)
    while half > 0:
        if lane < half:
            write(partial, t, max(read(partial, t), read(partial, int32(t + half))))
        half = int32(half >> 1)
        cuda.syncthreads()
    return read(partial, int32(t - lane))


@inline
def _sum(partial, t, lane, value, group):
    """The sum of the values of the threads of a group, in a fixed order."""
    write(partial, t, value)
    cuda.syncthreads()
    half = int32(group // 2)
    while half > 0:
        if lane < half:
            write(partial, t, read(partial, t) + read(partial, int32(t + half)))
        half = int32(half >> 1)
        cuda.syncthreads()
    return read(partial, int32(t - lane))


def softmax(group: int, keep: int, pixels: int) -> Callable[..., None]:
    """Energies to attention in place. A block takes `pixels` pixels, a group of threads each; a thread holds `keep`.

    Entry lane + i * group is the thread's i-th; group * keep entries at most. arms are the begin and end of three; what
    none has is padding and becomes 0. Grid: pixels.
    """
    THREADS = group * pixels

    def kernel(energy, stride, arms, count):
        most = cuda.shared.array(THREADS, float32)
        whole = cuda.shared.array(THREADS, float32)
        values = cuda.local.array(keep, float32)
        t = int32(cuda.threadIdx.x)
        lane = int32(t % group)
        pixel = int32(cuda.blockIdx.x * pixels + t // group)
        width = stride if pixel < count else int32(0)
        start = int32(pixel * stride)
        greatest = float32(-math.inf)
        for i in range(keep):
            position = int32(lane + i * group)
            values[i] = float32(-math.inf)
            if position < width and _valid(position, arms):
                values[i] = read(energy, int32(start + position))
            greatest = max(greatest, values[i])
        greatest = _greatest(most, t, lane, greatest, group)
        total = float32(0)
        for i in range(keep):
            # a group beyond the last pixel has no entry, and a greatest of -inf
            values[i] = math.exp(values[i] - greatest) if lane + i * group < width else float32(0)
            total += values[i]
        total = _sum(whole, t, lane, total, group)
        for i in range(keep):
            position = int32(lane + i * group)
            if position < width:
                write(energy, int32(start + position), values[i] / total)

    return kernel


def softmax_backward(group: int, keep: int, pixels: int) -> Callable[..., None]:
    """The gradient of the attention to that of the energies in place; threads, padding and grid as for softmax."""
    THREADS = group * pixels

    def kernel(pull, attention, stride, arms, count):
        whole = cuda.shared.array(THREADS, float32)
        pulls = cuda.local.array(keep, float32)
        weights = cuda.local.array(keep, float32)
        t = int32(cuda.threadIdx.x)
        lane = int32(t % group)
        pixel = int32(cuda.blockIdx.x * pixels + t // group)
        width = stride if pixel < count else int32(0)
        start = int32(pixel * stride)
        total = float32(0)
        for i in range(keep):
            position = int32(lane + i * group)
            pulls[i] = float32(0)
            weights[i] = float32(0)
            if position < width and _valid(position, arms):
                pulls[i] = read(pull, int32(start + position))
                weights[i] = read(attention, int32(start + position))
            total += pulls[i] * weights[i]
        total = _sum(whole, t, lane, total, group)
        for i in range(keep):
            position = int32(lane + i * group)
            if position < width:
                write(pull, int32(start + position), weights[i] * (pulls[i] - total))

    return kernel
