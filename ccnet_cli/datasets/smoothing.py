"""Labels that were resized with interpolation, drawn with soft edges, or compressed: seen by their values alone."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ccnet_cli.media.images import Pixels

# a band between two regions is at most this wide, as a part of the label's side
MAX_BAND = 1 / 100
# values further apart than this have others between them that are not always the same
MIN_STEP = 3
# this part of the borders between such values have bands of others (of CamVid 0.05, halved linearly 0.55), and at least
# this number of borders is counted
MIN_RAMPED, MIN_BORDERS = 0.2, 100
# or this part of those of a single label, and this number of such labels
MIN_OWN_RAMPED, MIN_SMOOTH = 0.4, 2
# a class that lies around others is always the same one
MAX_SAME = 0.9
# this part of the pixels' neighbours to the right and below differ: of real labels, hardly a tenth do
MIN_NOISE, MIN_PAIRS = 0.5, 100_000
FIX = "export them again with nearest-neighbour scaling, hard edges and lossless files"


@dataclass
class Smoothing:
    """Counts borders of label maps: all, those with bands of values between the two, and which values these are."""

    labels: int = 0
    smooth: int = 0
    borders: int = 0
    ramped: int = 0
    pairs: int = 0
    different: int = 0
    between: Counter[tuple[int, int, int]] = field(default_factory=Counter)

    def add(self, label: Pixels) -> None:
        """Count the borders of one label (H, W) along its rows and columns."""
        borders, ramped = self.borders, self.ramped
        for lines in (label, label.T):
            self._add_lines(np.ascontiguousarray(lines))
        borders, ramped = self.borders - borders, self.ramped - ramped
        self.labels += 1
        self.smooth += borders >= MIN_BORDERS and ramped >= MIN_OWN_RAMPED * borders

    def _add_lines(self, label: Pixels) -> None:
        height, width = label.shape
        flat = label.ravel()
        changes = flat[1:] != flat[:-1]
        self.pairs += height * (width - 1)
        ends = np.arange(width - 1, height * width - 1, width)
        changes[ends] = False
        self.different += int(changes.sum())
        changes[ends] = True
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        lengths = np.diff(np.append(starts, flat.size))
        values = flat[starts].astype(np.int32)
        # joined are the neighbours of one line
        joined = starts[1:] % width != 0
        left, own, right = values[:-2], values[1:-1], values[2:]
        inner = joined[:-1] & joined[1:] & (lengths[1:-1] <= max(1, round(width * MAX_BAND)))
        thin = np.zeros(len(values), np.bool_)
        thin[1:-1] = inner & ((left < own) & (own < right) | (left > own) & (own > right))
        first, last = np.flatnonzero(joined & ~thin[:-1]), np.flatnonzero(joined & ~thin[1:]) + 1
        wide = np.abs(values[first] - values[last]) >= MIN_STEP
        first, last = first[wide], last[wide]
        ramped = last - first > 1
        self.borders += len(first)
        self.ramped += int(ramped.sum())
        low, high = (end(values[first[ramped]], values[last[ramped]]) for end in (np.minimum, np.maximum))
        self.between.update(zip(low.tolist(), values[first[ramped] + 1].tolist(), high.tolist(), strict=True))

    def judge(self) -> list[str]:
        """A warning where the labels are smoothed, or noise."""
        if self.different >= MIN_NOISE * self.pairs:
            part = f"{self.different / max(self.pairs, 1):.0%} of the labels' neighbouring pixels"
            return [f"{part} differ, as in noise or a picture; {FIX}"] if self.pairs >= MIN_PAIRS else []
        all_smooth = self.borders >= MIN_BORDERS and self.ramped >= MIN_RAMPED * self.borders
        if self._is_one_class() or not (all_smooth or self.smooth >= MIN_SMOOTH):
            return []
        which = "the labels" if all_smooth else f"{self.smooth} of {self.labels} labels"
        (low, _, high), _ = self.between.most_common(1)[0]
        part = f"{self.ramped / self.borders:.0%} of the borders"
        why = f"{part} have thin bands of the values between, such as those of {low} and {high}"
        return [f"{which} look smoothed: {why}; {FIX}"]

    def _is_one_class(self) -> bool:
        """Whether the value between two others is always the same, as of a class that is an outline."""
        best: Counter[tuple[int, int]] = Counter()
        for (low, _, high), count in self.between.items():
            best[low, high] = max(best[low, high], count)
        return best.total() > MAX_SAME * self.between.total()
