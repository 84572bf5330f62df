"""The scores of a picture, (K, H, W), as a sum over its tiles, and what is read from them band by band.

The array itself exists only on demand: a tile's logits have an eighth of its height and width, and each pixel is a
weighted sum of the few around it.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.errors import NonFiniteError, detail
from ccnet_cli.inference.metrics import Confusion

# K classes, H and W the picture, h and w the logits of a tile, T how many of them make a pixel along one axis

# rows of a band, on the CPU (whose cache holds them) and on a GPU
BAND_ROWS = (16, 256)
# rows that a thread takes at a time
THREAD_ROWS = 8
IMPLEMENTATIONS = ("numba", "torch")
# scores that torch takes about as long for as the compiled kernel takes to load: four images of Cityscapes' size
MIN_SCORES_TO_COMPILE = 4 * 19 * 1024 * 2048


@dataclass(frozen=True)
class Taps:
    """One axis of a tile: pixels from `start` on, each the weighted sum of T neighbouring logits.

    first: (pixels,) int32, the lowest of a pixel's logits, rising along the axis or falling; weights: (T, pixels).
    """

    start: int
    first: Tensor
    weights: Tensor

    @classmethod
    def of(cls, matrix: Tensor, start: int = 0) -> "Taps":
        """The taps of a banded matrix (pixels, logits) whose first row makes the pixel `start`."""
        pixels, logits = matrix.shape
        used = (matrix != 0).int()
        first, last = used.argmax(1), logits - 1 - used.flip(1).argmax(1)
        # all weights of a pixel may round to nothing
        empty = used.sum(1) == 0
        first = first.masked_fill(empty, -1).cummax(0)[0].clamp(min=0) if pixels else first
        last = torch.where(empty, first, last)
        taps = int((last - first).max()) + 1 if pixels else 1
        first = first.clamp(max=logits - taps)
        weights = matrix.gather(1, first[:, None] + torch.arange(taps)).T.contiguous()
        return cls(start, first.int(), weights)

    def __len__(self) -> int:
        return len(self.first)

    def cut(self, begin: int, end: int) -> "Taps":
        """The taps of the axis from pixel `begin` to `end` alone."""
        low = max(self.start, begin)
        part = slice(low - self.start, max(low, min(self.start + len(self), end)) - self.start)
        return Taps(low - begin, self.first[part], self.weights[:, part])

    def scale(self, weight: float) -> "Taps":
        """The same with every weight multiplied."""
        return Taps(self.start, self.first, self.weights * weight)

    def mirror(self, length: int) -> "Taps":
        """The taps of the mirrored axis, which has `length` pixels."""
        return Taps(length - self.start - len(self), self.first.flip(0), self.weights.flip(1))


@dataclass(frozen=True)
class Tile:
    """A tile's logits (K, h, w) float32, and how they make the pixels below it."""

    logits: Tensor
    rows: Taps
    columns: Taps


@dataclass(frozen=True)
class Scores:
    """The scores of a picture of size (H, W): the sum over its tiles, whose logits are on one device."""

    size: tuple[int, int]
    tiles: Sequence[Tile]

    @property
    def classes(self) -> int:
        """K."""
        return len(self.tiles[0].logits)

    @property
    def device(self) -> torch.device:
        """Where the logits are."""
        return self.tiles[0].logits.device

    def bands(self) -> Iterator[tuple[int, Tensor]]:
        """The first row of each band, and its scores (K, rows, W) float32."""
        height, width = self.size
        step = BAND_ROWS[self.device.type != "cpu"]
        tiles = [(tile, _on(self.device, tile.rows), _on(self.device, tile.columns)) for tile in self.tiles]
        for top in range(0, height, step):
            bottom = min(top + step, height)
            scores = torch.zeros(self.classes, bottom - top, width, device=self.device)
            for tile, (first, weights), columns in tiles:
                start = tile.rows.start
                above, below = max(top, start), min(bottom, start + len(tile.rows))
                if above < below and len(tile.columns):
                    rows = slice(above - start, below - start)
                    part = _weighted_sum(1, tile.logits, first[rows], weights[:, rows])
                    left = tile.columns.start
                    target = scores[:, above - top : below - top, left : left + len(tile.columns)]
                    target += _weighted_sum(2, part, *columns)
            yield top, scores

    def dense(self) -> Tensor:
        """All scores, (K, H, W) float32, on the device of the logits."""
        scores = self.tiles[0].logits.new_empty(self.classes, *self.size)
        for top, band in self.bands():
            scores[:, top : top + band.shape[1]] = band
        return scores

    def probabilities(self) -> np.ndarray:
        """The softmax of the scores over the classes, float16 (K, H, W)."""
        probabilities = np.empty((self.classes, *self.size), np.float16)
        for top, band in self.bands():
            probabilities[:, top : top + band.shape[1]] = band.softmax(dim=0).half().cpu().numpy()
        return probabilities

    def predict(self, implementation: str = "torch") -> np.ndarray:
        """The class of each pixel, uint8 (H, W): the best score's, the lowest of equal ones.

        NonFiniteError unless all logits and best scores are finite. Both implementations agree to the last bit.
        """
        return self._predict(None, 0, implementation)[0]

    def compare(
        self, label: np.ndarray, ignore_index: int = 255, implementation: str = "torch"
    ) -> tuple[np.ndarray, Confusion]:
        """The prediction, and its confusion with a label map (H, W) uint8."""
        if label.shape != self.size:
            raise ValueError(f"a label of {label.shape} for scores of {self.size}")
        return self._predict(label, ignore_index, implementation)

    def _predict(
        self, label: np.ndarray | None, ignore_index: int, implementation: str
    ) -> tuple[np.ndarray, Confusion]:
        # an infinite logit need not reach a best score
        if not torch.stack([tile.logits.isfinite().all() for tile in self.tiles]).all():
            raise _not_finite()
        if implementation == "numba":
            return _predict_compiled(self, label, ignore_index)
        if implementation != "torch":
            raise ValueError(f"implementation {implementation} is none of {IMPLEMENTATIONS}")
        prediction = _argmax(self)
        confusion = Confusion(self.classes, self.device)
        if label is not None:
            confusion.update(prediction, torch.from_numpy(label), ignore_index)
        return prediction.cpu().numpy(), confusion


class Predictor:
    """Predicts with torch until loading the compiled kernel pays, then, on the CPU, with that kernel."""

    def __init__(self) -> None:
        self._scores = 0
        self._loads = True

    def predict(self, scores: Scores) -> np.ndarray:
        """Scores.predict."""
        return scores.predict(self._implementation(scores))

    def compare(self, scores: Scores, label: np.ndarray, ignore_index: int) -> tuple[np.ndarray, Confusion]:
        """Scores.compare."""
        return scores.compare(label, ignore_index, self._implementation(scores))

    def _implementation(self, scores: Scores) -> str:
        if scores.device.type != "cpu" or not self._loads:
            return "torch"
        # with those of this image, which may be large
        self._scores += scores.classes * scores.size[0] * scores.size[1]
        if self._scores <= MIN_SCORES_TO_COMPILE:
            return "torch"
        try:
            from ccnet_cli.ops.cpu import prediction

            prediction.compile_kernel()
        except Exception as error:  # a compiler may fail in any way, and torch gives the same prediction
            detail(f"torch predicts the classes: the compiled kernel cannot be loaded ({error})")
            self._loads = False
        return "numba" if self._loads else "torch"


def _argmax(scores: Scores) -> Tensor:
    prediction = torch.empty(scores.size, dtype=torch.uint8, device=scores.device)
    finite = torch.ones((), dtype=torch.bool, device=scores.device)
    for top, band in scores.bands():
        best, index = band.max(dim=0)
        prediction[top : top + len(best)] = index
        finite &= best.isfinite().all()
    if not finite:
        raise _not_finite()
    return prediction


def _not_finite() -> NonFiniteError:
    return NonFiniteError("class scores", "not finite", "use precision fp32, or a checkpoint whose weights are sound")


def _on(device: torch.device, taps: Taps) -> tuple[Tensor, Tensor]:
    return taps.first.long().to(device), taps.weights.to(device)


def _weighted_sum(axis: int, values: Tensor, first: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums along the axis 1 or 2 of (K, h, w), each product and each sum rounded on its own."""
    shape, grown = [1, 1, 1], list(values.shape)
    shape[axis], grown[axis] = -1, len(first)
    total = None
    for tap, weight in enumerate(weights):
        # gather is several times as fast as index_select, whose rows here are short
        product = values.gather(axis, (first + tap).view(shape).expand(grown)).mul_(weight.view(shape))
        total = product if total is None else total.add_(product)
    assert total is not None
    return total


def _predict_compiled(scores: Scores, label: np.ndarray | None, ignore_index: int) -> tuple[np.ndarray, Confusion]:
    """Prediction and confusion by the kernel; as many threads as torch would use take rows in turn."""
    from ccnet_cli.ops.cpu import prediction as kernel

    fill, (numbers, tiles) = kernel.compile_kernel(), _kernel_arrays(scores.tiles)
    classes, (height, width) = scores.classes, scores.size
    prediction = np.empty((height, width), np.uint8)
    truth = np.empty((0, 0), np.uint8) if label is None else np.ascontiguousarray(label, np.uint8)
    begins, lock = iter(range(0, height, THREAD_ROWS)), threading.Lock()

    def work(counts: np.ndarray) -> int:
        wrong = 0
        while True:
            with lock:
                begin = next(begins, None)
            if begin is None:
                return wrong
            end = min(begin + THREAD_ROWS, height)
            wrong |= fill(numbers, tiles, begin, end, prediction, truth, ignore_index, counts)

    count = max(1, min(torch.get_num_threads(), -(-height // THREAD_ROWS)))
    counts = np.zeros((count, classes, classes), np.int64)
    with ThreadPoolExecutor(count) as pool:
        wrong = np.bitwise_or.reduce([work(counts[0])] if count == 1 else list(pool.map(work, counts)))
    if wrong & kernel.NOT_FINITE:
        raise _not_finite()
    if wrong & kernel.LABEL_OUTSIDE:
        raise ValueError(f"label outside 0..{classes - 1}")
    confusion = Confusion(classes)
    confusion.matrix += torch.from_numpy(counts.sum(0))
    return prediction, confusion


def _kernel_arrays(tiles: Sequence[Tile]) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Every logit with the first logits and weights of all axes, and a line of offsets and sizes for each tile."""
    lines, first, weights = [], [], []
    logits = ends = weighed = 0
    for tile in tiles:
        line = [logits, *tile.logits.shape[1:]]
        for axis in (tile.rows, tile.columns):
            line += [axis.start, len(axis), ends, weighed, len(axis.weights)]
            first.append(axis.first)
            weights.append(axis.weights.flatten())
            ends, weighed = ends + len(axis), weighed + axis.weights.numel()
        logits += tile.logits.numel()
        lines.append(line)
    joined = torch.cat([tile.logits.flatten() for tile in tiles])
    return (joined.numpy(), torch.cat(first).numpy(), torch.cat(weights).numpy()), np.array(lines)
