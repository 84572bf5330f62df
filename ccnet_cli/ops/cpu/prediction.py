"""Predict each pixel's class from the logits of its tiles, compiled for the CPU: sums, argmax and counts row by row.

Every product and every sum is rounded on its own and in a fixed order, so that torch's operators in that order give the
same bits.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from ccnet_cli.ops.cpu import simd

# pixels of a row whose scores of all classes are summed together: they stay in the first cache
BLOCK = 256
# error flags of a row
NOT_FINITE, LABEL_OUTSIDE = 1, 2
# numbers, tiles, begin, end, prediction, label, ignore_index, counts
SIGNATURE = (
    "int64(Tuple((float32[::1], int32[::1], float32[::1])), int64[:, ::1],"
    " int64, int64, uint8[:, ::1], uint8[:, ::1], int64, int64[:, ::1])"
)


@lru_cache(maxsize=1)
def compile_kernel() -> Callable[..., int]:
    """The kernel `fill` as machine code: in two seconds, or in a fifth of one from Numba's cache."""
    kernel: Callable[..., int] = simd.compile_cached(njit, SIGNATURE, fill, nogil=True)
    return kernel


def fill(
    numbers: Any, tiles: Any, begin: int, end: int, prediction_HW: Any, label_HW: Any, ignore_index: int, counts_KK: Any
) -> int:
    """Predict rows begin to end and, unless label is empty, count the pairs of label and prediction; the error flags.

    numbers are the logits, and the first logits and the weights of all pixels. A line of tiles is: the offset of the
    tile's logits (K, h, w), h, w; then for its rows, and for its columns, the first pixel, the number of pixels, the
    offsets of their first logits and of their weights (T, pixels), and T.
    """
    classes = len(counts_KK)
    width = prediction_HW.shape[1]
    scores = np.empty((classes, BLOCK), np.float32)
    part = np.empty((classes, tiles[:, 2].max()), np.float32)
    total = np.empty(BLOCK, np.float32)
    best = np.empty(BLOCK, np.float32)
    index = np.empty(BLOCK, np.int32)
    errors = 0
    for y in range(begin, end):
        for left in range(0, width, BLOCK):
            right = min(left + BLOCK, width)
            scores[:, : right - left] = 0
            for tile in tiles:
                row = y - tile[3]
                a, b = max(left, tile[8]), min(right, tile[8] + tile[9])
                if 0 <= row < tile[4] and a < b:
                    _add(numbers, tile, row, a, b, scores[:, a - left : b - left], part)
            if not _best(scores[:, : right - left], total, best, index):
                errors |= NOT_FINITE
            for x in range(left, right):
                prediction_HW[y, x] = index[x - left]
            if label_HW.size:
                for x in range(left, right):
                    label = label_HW[y, x]
                    if label != ignore_index:
                        if label < classes:
                            counts_KK[label, index[x - left]] += 1
                        else:
                            errors |= LABEL_OUTSIDE
    return errors


@njit(nogil=True)
def _add(numbers, tile, row, a, b, scores, part):
    """Add a tile's part of the pixels a to b of a row to their scores (K, b - a); part (K, w) is scratch memory."""
    logits, first, weights = numbers
    begin, h, w, _, rows, row_first, row_weights, row_taps, start, columns, column_first, column_weights, taps = tile
    # indices of first logits rise, or fall in a mirrored view
    at = first[column_first + a - start : column_first + b - start]
    low, high = min(at[0], at[-1]), max(at[0], at[-1]) + taps
    begin += first[row_first + row] * w
    for k in range(len(scores)):
        line = part[k]
        weight = weights[row_weights + row]
        for j in range(low, high):
            line[j] = logits[begin + k * h * w + j] * weight
        for tap in range(1, row_taps):
            weight = weights[row_weights + tap * rows + row]
            for j in range(low, high):
                line[j] += logits[begin + (k * h + tap) * w + j] * weight
    left = column_weights + a - start
    if taps == 2:
        # nearly always, and twice as fast as the loop below
        one, other = weights[left : left + len(at)], weights[left + columns : left + columns + len(at)]
        for k in range(len(scores)):
            line, out = part[k], scores[k]
            for x in range(len(at)):
                out[x] += line[at[x]] * one[x] + line[at[x] + 1] * other[x]
        return
    for k in range(len(scores)):
        line, out = part[k], scores[k]
        for x in range(len(at)):
            value = line[at[x]] * weights[left + x]
            for tap in range(1, taps):
                value += line[at[x] + tap] * weights[left + tap * columns + x]
            out[x] += value


@njit(nogil=True)
def _best(scores, total, best, index):
    """Find each pixel's first class with the best score; False if a best score is not finite or any score is nan."""
    pixels = scores.shape[1]
    for x in range(pixels):
        total[x] = best[x] = scores[0, x]
        index[x] = 0
    for k in range(1, len(scores)):
        line = scores[k]
        for x in range(pixels):
            # a comparison misses nan, but a sum keeps it
            total[x] += line[x]
            greater = line[x] > best[x]
            index[x] = k if greater else index[x]
            best[x] = line[x] if greater else best[x]
    finite = True
    for x in range(pixels):
        finite &= np.isfinite(best[x]) and not np.isnan(total[x])
    return finite
