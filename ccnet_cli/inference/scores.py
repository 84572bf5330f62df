"""The scores of a picture, (K, H, W), as the sum of its tiles' shares, and what is read from them band by band.

No such array exists unless it is asked for: a tile's logits have an eighth of its height and width, and each pixel is a
weighted sum of the few that lie around it.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.errors import NonFiniteError, detail
from ccnet_cli.inference.metrics import Confusion

# K classes, H and W the picture, h and w the logits of a tile, T how many of them make a pixel along one axis

# rows of a band, on the CPU (whose cache holds them) and on a GPU
BAND = (16, 256)
# rows that a thread labels before it looks for others
RUN = 8
IMPLEMENTATIONS = ("numba", "torch")
# scores that torch's way takes about as long for as the compiled one takes to load: four images of Cityscapes' size
PATIENCE = 4 * 19 * 1024 * 2048


@dataclass(frozen=True)
class Taps:
    """One axis of a share: pixels from `start` on, each the weighted sum of T neighbouring logits.

    first: (pixels,) int32, the lowest of a pixel's logits, rising along the axis or falling; weights: (T, pixels).
    """

    start: int
    first: Tensor
    weights: Tensor

    @classmethod
    def of(cls, matrix: Tensor, start: int = 0) -> "Taps":
        """Those of a banded matrix (pixels, logits) whose first row makes the pixel `start`."""
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

    def weighted(self, weight: float) -> "Taps":
        """The same with every weight multiplied."""
        return Taps(self.start, self.first, self.weights * weight)

    def mirrored(self, length: int) -> "Taps":
        """Those of the mirrored axis, which has `length` pixels."""
        return Taps(length - self.start - len(self), self.first.flip(0), self.weights.flip(1))


@dataclass(frozen=True)
class Share:
    """A tile's logits (K, h, w) float32, and how they make the pixels below it."""

    logits: Tensor
    rows: Taps
    columns: Taps


@dataclass(frozen=True)
class Scores:
    """The scores of a picture of size (H, W): the sum of its tiles' shares, all on one device."""

    size: tuple[int, int]
    shares: Sequence[Share]

    def bands(self) -> Iterator[tuple[int, Tensor]]:
        """The first row of each band, and its scores (K, rows, W) float32."""
        height, width = self.size
        classes, device = len(self.shares[0].logits), self.shares[0].logits.device
        step = BAND[device.type != "cpu"]
        shares = [(share, _indices(share.rows, device), _indices(share.columns, device)) for share in self.shares]
        for top in range(0, height, step):
            bottom = min(top + step, height)
            scores = torch.zeros(classes, bottom - top, width, device=device)
            for share, (first, weights), columns in shares:
                start = share.rows.start
                above, below = max(top, start), min(bottom, start + len(share.rows))
                if above < below and len(share.columns):
                    near = slice(above - start, below - start)
                    part = _along(1, share.logits, first[near], weights[:, near])
                    left = share.columns.start
                    reached = scores[:, above - top : below - top, left : left + len(share.columns)]
                    reached += _along(2, part, *columns)
            yield top, scores

    def dense(self) -> Tensor:
        """All scores, (K, H, W) float32, on the device of the logits."""
        found = self.shares[0].logits.new_empty(len(self.shares[0].logits), *self.size)
        for top, band in self.bands():
            found[:, top : top + band.shape[1]] = band
        return found

    def probabilities(self) -> np.ndarray:
        """The softmax of the scores over the classes, float16 (K, H, W)."""
        found = np.empty((len(self.shares[0].logits), *self.size), np.float16)
        for top, band in self.bands():
            found[:, top : top + band.shape[1]] = band.softmax(dim=0).half().cpu().numpy()
        return found

    def labels(self, implementation: str | None = None) -> np.ndarray:
        """The best class of each pixel, the lowest of several, uint8 (H, W); NonFiniteError unless logits are finite.

        Left to itself, the implementation is torch until loading the compiled one pays, and on a GPU; both agree to
        the last bit.
        """
        return self._found(None, 0, implementation)[0]

    def compared(
        self, label: np.ndarray, ignore_index: int = 255, implementation: str | None = None
    ) -> tuple[np.ndarray, Confusion]:
        """The labels, and their confusion with a label map (H, W) uint8."""
        if label.shape != self.size:
            raise ValueError(f"a label of {label.shape} for scores of {self.size}")
        return self._found(label, ignore_index, implementation)

    def _found(
        self, label: np.ndarray | None, ignored: int, implementation: str | None
    ) -> tuple[np.ndarray, Confusion]:
        logits = self.shares[0].logits
        # an infinite logit need not reach a best score
        if not torch.stack([share.logits.isfinite().all() for share in self.shares]).all():
            raise _not_finite()
        if implementation is None:
            implementation = "numba" if logits.device.type == "cpu" and _pays(len(logits), self.size) else "torch"
        if implementation == "numba":
            return _compiled(self, label, ignored)
        if implementation != "torch":
            raise ValueError(f"implementation {implementation} is none of {IMPLEMENTATIONS}")
        ids = _argmax(self.bands(), self.size, logits.device)
        confusion = Confusion(len(logits), logits.device)
        if label is not None:
            confusion.update(ids, torch.from_numpy(label), ignored)
        return ids.cpu().numpy(), confusion


def _argmax(bands: Iterable[tuple[int, Tensor]], size: tuple[int, ...], device: torch.device) -> Tensor:
    labels = torch.empty(size, dtype=torch.uint8, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for top, band in bands:
        best, index = band.max(dim=0)
        labels[top : top + len(best)] = index
        finite &= best.isfinite().all()
    if not finite:
        raise _not_finite()
    return labels


def _not_finite() -> NonFiniteError:
    return NonFiniteError("class scores", "not finite", "use precision fp32, or a checkpoint whose weights are sound")


def _indices(taps: Taps, device: torch.device) -> tuple[Tensor, Tensor]:
    return taps.first.long().to(device), taps.weights.to(device)


def _along(axis: int, values: Tensor, first: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums along the axis 1 or 2 of (K, h, w), each product and each sum rounded on its own."""
    shape, grown = [1, 1, 1], list(values.shape)
    shape[axis], grown[axis] = -1, len(first)
    total = None
    for tap, weight in enumerate(weights):
        # gather is several times as fast as index_select, whose rows here are short
        product = values.gather(axis, (first + tap).view(shape).expand(grown)).mul_(weight.view(shape))
        total = product if total is None else total.add_(product)
    return total


_waited = 0
_refused = False


def _pays(classes: int, size: tuple[int, int]) -> bool:
    """Whether the compiled implementation is there, or so many scores came already that loading it pays."""
    global _waited, _refused
    if _waited < PATIENCE or _refused:
        _waited += classes * size[0] * size[1]
        return False
    try:
        from ccnet_cli.ops import labels

        labels.compiled()
    except Exception as error:  # a compiler that fails is no reason to: torch's way gives the same
        detail(f"labels are found by torch, the compiled way cannot be loaded ({error})")
        _refused = True
    return not _refused


def _compiled(scores: Scores, label: np.ndarray | None, ignored: int) -> tuple[np.ndarray, Confusion]:
    """Labels and confusion by the kernel, its rows shared out between as many threads as torch would use."""
    from ccnet_cli.ops import labels

    fill, table = labels.compiled(), _table(scores.shares)
    classes, (height, width) = len(scores.shares[0].logits), scores.size
    ids = np.empty((height, width), np.uint8)
    truth = np.empty((0, 0), np.uint8) if label is None else np.ascontiguousarray(label, np.uint8)
    begins, lock = iter(range(0, height, RUN)), threading.Lock()

    def work(counts: np.ndarray) -> int:
        wrong = 0
        while True:
            with lock:
                begin = next(begins, None)
            if begin is None:
                return wrong
            wrong |= fill(*table, classes, begin, min(begin + RUN, height), ids, truth, ignored, counts)

    count = max(1, min(torch.get_num_threads(), -(-height // RUN)))
    counts = np.zeros((count, classes, classes), np.int64)
    with ThreadPoolExecutor(count) as pool:
        wrong = np.bitwise_or.reduce([work(counts[0])] if count == 1 else list(pool.map(work, counts)))
    if wrong & labels.INFINITE:
        raise _not_finite()
    if wrong & labels.OUTSIDE:
        raise ValueError(f"label outside 0..{classes - 1}")
    confusion = Confusion(classes)
    confusion.matrix += torch.from_numpy(counts.sum(0))
    return ids, confusion


def _table(shares: Sequence[Share]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The kernel's arrays: every logit, a line for each share, first logits and weights of all axes."""
    lines, first, weights = [], [], []
    logits = ends = weighed = 0
    for share in shares:
        line = [logits, *share.logits.shape[1:]]
        for axis in (share.rows, share.columns):
            line += [axis.start, len(axis), ends, weighed, len(axis.weights)]
            first.append(axis.first)
            weights.append(axis.weights.flatten())
            ends, weighed = ends + len(axis), weighed + axis.weights.numel()
        logits += share.logits.numel()
        lines.append(line)
    joined = torch.cat([share.logits.flatten() for share in shares])
    return joined.numpy(), np.array(lines), torch.cat(first).numpy(), torch.cat(weights).numpy()
