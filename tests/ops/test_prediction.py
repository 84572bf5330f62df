"""The compiled prediction against sums written out pixel by pixel: overlapping tiles, mirrored ones, error flags."""

from itertools import pairwise

import numpy as np
import pytest

from ccnet_cli.ops.cpu import prediction

CLASSES, WIDTH = 3, prediction.BLOCK + 40


class Tiles:
    """Tiles of an image as the kernel reads them, with random indices and weights in place of a resampling's."""

    def __init__(self) -> None:
        self.logits, self.lines, self.first, self.weights = [], [], [], []
        self.random = np.random.default_rng(0)

    def add(self, rows: tuple[int, int], columns: tuple[int, int], taps: int = 2, mirrored: bool = False) -> None:
        """A tile on rows and columns, each a first pixel and a number of pixels."""
        h, w = 5, 7
        line = [sum(x.size for x in self.logits), h, w]
        self.logits.append(self.random.standard_normal((CLASSES, h, w)).astype(np.float32))
        for (start, count), length in ((rows, h), (columns, w)):
            first = np.sort(self.random.integers(0, length - taps + 1, count)).astype(np.int32)
            line += [start, count, sum(map(len, self.first)), sum(x.size for x in self.weights), taps]
            self.first.append(first[::-1] if mirrored and length == w else first)
            self.weights.append(self.random.random((taps, count)).astype(np.float32))
        self.lines.append(line)

    def arrays(self) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        flat = [np.concatenate([x.reshape(-1) for x in group]) for group in (self.logits, self.first, self.weights)]
        return tuple(flat), np.array(self.lines, np.int64)

    def scores(self, height: int) -> np.ndarray:
        """(K, H, W) in float64, from the definition."""
        total = np.zeros((CLASSES, height, WIDTH))
        for number, (line, logits) in enumerate(zip(self.lines, self.logits, strict=True)):
            (top, rows, *_), (left, columns, *_) = line[3:8], line[8:]
            (row, column), (down, across) = ([x[2 * number], x[2 * number + 1]] for x in (self.first, self.weights))
            for y in range(rows):
                for x in range(columns):
                    for i in range(len(down)):
                        for j in range(len(across)):
                            logit = logits[:, row[y] + i, column[x] + j]
                            total[:, top + y, left + x] += logit * float(down[i, y]) * float(across[j, x])
        return total


def predict(tiles: Tiles, height: int, label: np.ndarray | None = None, parts: int = 1) -> tuple[np.ndarray, ...]:
    """Flags, prediction and counts of rows taken in several parts, the last one first."""
    classes, counts = np.full((height, WIDTH), 99, np.uint8), np.zeros((CLASSES, CLASSES), np.int64)
    label = np.empty((0, 0), np.uint8) if label is None else label
    edges = [height * part // parts for part in range(parts + 1)]
    kernel, flags = prediction.compile_kernel(), []
    for begin, end in reversed(list(pairwise(edges))):
        flags.append(kernel(*tiles.arrays(), begin, end, classes, label, 255, counts))
    return flags, classes, counts


def plain(height: int = 3) -> Tiles:
    tiles = Tiles()
    tiles.add((0, height), (0, WIDTH))
    return tiles


@pytest.mark.parametrize("parts", [1, 3])
def test_the_prediction_is_the_best_sum_and_the_counts_are_its_pairs_with_the_labels(parts):
    tiles = Tiles()
    tiles.add((0, 6), (0, WIDTH), taps=2)
    tiles.add((2, 4), (30, 250), taps=3, mirrored=True)
    tiles.add((1, 5), (200, 96), taps=1)
    scores = tiles.scores(6)
    label = tiles.random.integers(0, CLASSES + 1, (6, WIDTH)).astype(np.uint8)
    label[label == CLASSES] = 255
    flags, classes, counts = predict(tiles, 6, label, parts)
    # no tie is so close that float32 decides it
    best = np.sort(scores, axis=0)
    clear = best[-1] - best[-2] > 1e-5
    assert flags == [0] * parts and clear.mean() > 0.99
    assert np.array_equal(classes[clear], scores.argmax(0)[clear])
    expected = [
        [int(((label == true) & (classes == found)).sum()) for found in range(CLASSES)] for true in range(CLASSES)
    ]
    assert np.array_equal(counts, expected) and counts.sum() == (label != 255).sum()


def test_of_equal_scores_the_first_class_is_predicted():
    tiles = plain()
    tiles.logits[0][2] = tiles.logits[0][1] = tiles.logits[0][0]
    assert (predict(tiles, 3)[1] == 0).all()
    tiles.logits[0][0] -= 1
    assert (predict(tiles, 3)[1] == 1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", range(CLASSES))
@pytest.mark.parametrize(("y", "x"), [(0, 0), (1, 100), (2, WIDTH - 1)])
def test_a_score_that_is_not_finite_is_flagged_in_any_class_and_pixel(bad, kind, y, x):
    tiles = Tiles()
    tiles.add((0, 3), (0, WIDTH), taps=1)
    # column 3 of the logits is of one column of pixels alone
    tiles.first[0][:], tiles.first[1][:x], tiles.first[1][x], tiles.first[1][x + 1 :] = [0, 1, 2], 0, 3, 6
    assert predict(tiles, 3)[0] == [0]
    tiles.logits[0][kind, y, 3] = bad
    if bad == float("-inf"):
        # it would not be the best one
        tiles.logits[0][:, y, 3] = bad
    assert predict(tiles, 3)[0] == [prediction.NOT_FINITE]


def test_flags_of_one_row_outlast_the_rows_and_blocks_after_it():
    tiles = plain()
    label = np.zeros((3, WIDTH), np.uint8)
    assert predict(tiles, 3, label)[0] == [0]
    for y, x in ((0, 0), (0, WIDTH - 1), (1, 5), (2, WIDTH - 1)):
        outside = label.copy()
        outside[y, x] = CLASSES
        assert predict(tiles, 3, outside)[0] == [prediction.LABEL_OUTSIDE]
        assert predict(tiles, 3, outside)[2].sum() == 3 * WIDTH - 1
    # rows 1 and 2 do not see the first row of logits
    tiles.first[0][:], tiles.weights[0][1] = [0, 1, 1], 0
    tiles.logits[0][0, 0, :] = np.nan
    outside = label.copy()
    outside[2, 7] = CLASSES
    assert predict(tiles, 3)[0] == [prediction.NOT_FINITE]
    assert predict(tiles, 3, outside)[0] == [prediction.NOT_FINITE | prediction.LABEL_OUTSIDE]
    # the other way around
    tiles.first[0][:] = [1, 1, 0]
    outside = label.copy()
    outside[0, 7] = CLASSES
    assert predict(tiles, 3, outside)[0] == [prediction.NOT_FINITE | prediction.LABEL_OUTSIDE]
