"""The best class of each pixel from its tiles' logits, compiled for the CPU: sums, argmax and counts row by row.

Every product and every sum is rounded on its own and in a fixed order, so that torch's operators, called in that order,
give the same to the last bit.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

# pixels of a row whose scores of all classes are worked on together: they stay in the nearest cache
BLOCK = 256
# what is wrong with a row of pixels
INFINITE, OUTSIDE = 1, 2
# logits, shares, first, weights, classes, begin, end, labels, truth, ignored, counts
SIGNATURE = (
    "int64(float32[::1], int64[:, ::1], int32[::1], float32[::1],"
    " int64, int64, int64, uint8[:, ::1], uint8[:, ::1], int64, int64[:, ::1])"
)


@lru_cache(maxsize=1)
def compiled() -> Callable[..., int]:
    """The kernel `fill` as machine code, kept in a folder beside this file or of the user's where one can be written.

    Compiled anew it takes two seconds, from the folder a fifth of one.
    """
    try:
        return njit(SIGNATURE, nogil=True, cache=True)(fill)
    except Exception:  # whatever is wrong with the folder or what lies there; what is wrong with the kernel comes again
        return njit(SIGNATURE, nogil=True)(fill)


def fill(
    logits: Any,
    shares: Any,
    first: Any,
    weights: Any,
    classes: int,
    begin: int,
    end: int,
    labels_HW: Any,
    truth_HW: Any,
    ignored: int,
    counts_KK: Any,
) -> int:
    """Write the labels of rows begin..end and, unless truth is empty, count them by the truth's; 0, or what is wrong.

    Each line of shares tells of a tile: where its logits (K, h, w) begin, h, w; then of its rows, and of its columns,
    the first pixel, how many, where their first logits and their weights (T, pixels) begin, and T.
    """
    width = labels_HW.shape[1]
    scores = np.empty((classes, BLOCK), np.float32)
    part = np.empty((classes, shares[:, 2].max()), np.float32)
    total = np.empty(BLOCK, np.float32)
    best = np.empty(BLOCK, np.float32)
    index = np.empty(BLOCK, np.int32)
    wrong = 0
    for y in range(begin, end):
        for left in range(0, width, BLOCK):
            right = min(left + BLOCK, width)
            scores[:, : right - left] = 0
            for share in shares:
                row = y - share[3]
                a, b = max(left, share[8]), min(right, share[8] + share[9])
                if 0 <= row < share[4] and a < b:
                    _add(logits, share, first, weights, row, a, b, scores[:, a - left : b - left], part)
            if not _best(scores[:, : right - left], total, best, index):
                wrong |= INFINITE
            for x in range(left, right):
                labels_HW[y, x] = index[x - left]
            if truth_HW.size:
                for x in range(left, right):
                    true = truth_HW[y, x]
                    if true != ignored:
                        if true < classes:
                            counts_KK[true, index[x - left]] += 1
                        else:
                            wrong |= OUTSIDE
    return wrong


@njit(nogil=True)
def _add(logits, share, first, weights, row, a, b, scores, part):  # type: ignore[no-untyped-def]
    """Add a tile's share of the pixels a..b of a row to their scores (K, b - a); part (K, w) is room to work in."""
    begin, h, w, _, rows, row_first, row_weights, row_taps, start, columns, column_first, column_weights, taps = share
    # the first logits rise, or fall in a mirrored view
    place = first[column_first + a - start : column_first + b - start]
    low, high = min(place[0], place[-1]), max(place[0], place[-1]) + taps
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
        one, other = weights[left : left + len(place)], weights[left + columns : left + columns + len(place)]
        for k in range(len(scores)):
            line, out = part[k], scores[k]
            for x in range(len(place)):
                out[x] += line[place[x]] * one[x] + line[place[x] + 1] * other[x]
        return
    for k in range(len(scores)):
        line, out = part[k], scores[k]
        for x in range(len(place)):
            value = line[place[x]] * weights[left + x]
            for tap in range(1, taps):
                value += line[place[x] + tap] * weights[left + tap * columns + x]
            out[x] += value


@njit(nogil=True)
def _best(scores, total, best, index):  # type: ignore[no-untyped-def]
    """Find the lowest class with the best score of each pixel; False where one is not finite, or any score is nan."""
    pixels = scores.shape[1]
    for x in range(pixels):
        total[x] = best[x] = scores[0, x]
        index[x] = 0
    for k in range(1, len(scores)):
        line = scores[k]
        for x in range(pixels):
            # nan is never greater, but no sum gets rid of it
            total[x] += line[x]
            greater = line[x] > best[x]
            index[x] = k if greater else index[x]
            best[x] = line[x] if greater else best[x]
    sound = True
    for x in range(pixels):
        sound &= np.isfinite(best[x]) and not np.isnan(total[x])
    return sound
