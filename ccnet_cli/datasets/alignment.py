"""Whether labels lie on their images: borders between classes follow the edges of their own picture, not of another."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ccnet_cli.datasets.source import Source, load_pair
from ccnet_cli.errors import InputError, hush
from ccnet_cli.media.images import Pixels, cv2, read_size

# sides are compared at this size at most, smaller ones not at all; a label has this number of pixels on borders
SIDE, MIN_SIDE, MIN_BORDER = 128, 32, 20
# another place of the labels is better if it is for so large a part of the pairs, by so much, and by standard errors
MIN_PAIRS, MIN_WINS, MIN_GAIN, MIN_ERRORS = 5, 0.65, 0.01, 4.0
# read before a run: neighbours, as labels may be shifted by one name, and fewer where pictures are large
MAX_PROBES, MIN_PROBES, NEIGHBOURS, MAX_PIXELS = 24, 8, 4, 1 << 25
# to compare with all others: pictures of one size, and how far their labels must differ in what they fit; of CamVid
# and drawn scenes, labels fit their own by 8 to 70 standard errors, shuffled ones by 2 at most
MIN_COMPARED, MAX_COMPARED, MIN_SPREAD, MIN_OWN_ERRORS = 16, 256, 0.01, 2.5
# how far labels are moved, as parts of their sides
SHIFTS = (0.025, 0.05, 0.1)
# how far labels are enlarged or shrunk from the middle, as where label and image are of different crops
ZOOMS = (0.7, 0.75, 0.8, 0.85, 0.9, 1.1, 1.2, 1.3, 1.4)
FIX = "look at them with ccnet data show, and correct the labels' files or names"

Edges = npt.NDArray[np.float32]
Borders = npt.NDArray[np.bool_]


class Alignment:
    """Compares the labels of pictures, in the order of their names, with the same labels in other places."""

    def __init__(self) -> None:
        self.gains: dict[str, list[float]] = {}
        self.before: tuple[Edges, Borders] | None = None
        self.compared: list[tuple[Edges, Borders]] = []

    def add(self, image: Pixels, label: Pixels) -> None:
        """Compare one label (H, W) of an image (H, W, 3), and both with those before."""
        square, previous, self.before = label.shape[0] == label.shape[1], self.before, None
        if min(label.shape) < MIN_SIDE:
            return
        edges, borders = rank_edges(image), find_borders(label)
        if borders.sum() < MIN_BORDER:
            return
        self.before = edges, borders
        if len(self.compared) < MAX_COMPARED and (not self.compared or self.compared[0][0].shape == edges.shape):
            self.compared.append(self.before)
        moved = {
            "if they are mirrored left to right": borders[:, ::-1],
            "if they are turned upside down": borders[::-1],
        }
        moved["if they are turned by half a turn"] = borders[::-1, ::-1]
        if square:
            turned = {"clockwise": np.rot90(borders, -1), "counterclockwise": np.rot90(borders)}
            moved |= {f"if they are turned by a quarter {way}": each for way, each in turned.items()}
            moved["if their rows and columns are exchanged"] = borders.T
        own = _agree(edges, borders)
        for place, other in moved.items():
            self._note(place, _agree(edges, other) - own)
        for place, fit in _shift(edges, borders):
            self._note(place, fit - own)
        if previous is not None and previous[0].shape == edges.shape:
            # edges are denser in the middle of most pictures, of another one too
            there = _agree(previous[0], borders)
            for (place, fit), (_, elsewhere) in zip(_zoom(edges, borders), _zoom(previous[0], borders), strict=True):
                self._note(place, fit - own - max(elsewhere - there, 0.0))
            self._note("if each belongs to the image after its own", _agree(edges, previous[1]) - own)
            self._note("if each belongs to the image before its own", _agree(previous[0], borders) - _agree(*previous))

    def _note(self, place: str, gain: float) -> None:
        self.gains.setdefault(place, []).append(gain)

    def judge(self) -> list[str]:
        """A warning where the labels would lie better in another place, with strong evidence alone."""
        better = {place: gain for place, gains in self.gains.items() if (gain := _evidence(np.array(gains)))}
        if not better:
            why = "the labels fit their own images no better than the others: borders follow no edges of their own"
            return [f"{why}; {FIX}"] if _are_unrelated(self.compared) else []
        place = max(better, key=better.__getitem__)
        return [f"the labels do not lie on their images: borders fit the edges better {place}; {FIX}"]


def probe(source: Source) -> list[str]:
    """The warning of some pictures of a source, evenly spread; those that cannot be read are passed over."""
    alignment, count = Alignment(), len(source.samples)
    labelled = [index for index in range(count) if source.samples.rows[index][1] is not None]
    if not labelled or source.clips is not None:
        return []
    height, width = read_size(source.samples[labelled[0]].image, source.tolerate_damage)
    limit = min(max(MAX_PIXELS // (height * width), MIN_PROBES), MAX_PROBES, len(labelled))
    blocks = max(limit // NEIGHBOURS, 1)
    for block in range(blocks):
        start = block * (len(labelled) - limit // blocks) // max(blocks - 1, 1)
        alignment.before = None
        for index in labelled[start : start + limit // blocks]:
            try:
                # what is damaged is said when it is used
                with hush():
                    pair = load_pair(source, source.samples[index])
                alignment.add(*pair)
            except InputError:
                alignment.before = None
    return alignment.judge()


def rank_edges(image: Pixels) -> Edges:
    """The largest difference between neighbours around each pixel of the shrunk picture, as its rank from 0 to 1."""
    small = cv2.resize(image, _shrink(image), interpolation=cv2.INTER_AREA).astype(np.float32)
    steps = np.zeros(small.shape[:2], np.float32)
    for one, other, difference in _neighbours(steps, small):
        np.maximum(one, difference.max(-1), out=one)
        np.maximum(other, difference.max(-1), out=other)
    steps = np.asarray(cv2.dilate(steps, np.ones((3, 3), np.uint8)))
    return (np.searchsorted(np.sort(steps, None), steps.ravel()) / steps.size).reshape(steps.shape).astype(np.float32)


def find_borders(label: Pixels) -> Borders:
    """The pixels of the shrunk label that have a neighbour of another value."""
    small = cv2.resize(label, _shrink(label), interpolation=cv2.INTER_NEAREST).astype(np.float32)
    borders = np.zeros(small.shape, np.bool_)
    for one, other, difference in _neighbours(borders, small):
        one |= difference > 0
        other |= difference > 0
    return borders


def _shrink(picture: Pixels) -> tuple[int, int]:
    return min(SIDE, picture.shape[1]), min(SIDE, picture.shape[0])


def _neighbours(into: Any, picture: Edges) -> Iterator[tuple[Any, Any, Edges]]:
    """Both sides of each pair of neighbours in an array (H, W), and the difference of their values in a picture.

    Both, so that a mirrored label has no advantage.
    """
    yield into[:, 1:], into[:, :-1], np.abs(np.diff(picture, axis=1))
    yield into[1:], into[:-1], np.abs(np.diff(picture, axis=0))


def _agree(edges: Edges, borders: Borders) -> float:
    return float(edges[borders].mean())


def _are_unrelated(pairs: list[tuple[Edges, Borders]]) -> bool:
    """Whether labels of many pictures fit these no better than other labels would, though the labels differ."""
    count = len(pairs)
    if count < MIN_COMPARED:
        return False
    edges, borders = (
        np.stack([each.ravel() for each in column]).astype(np.float32) for column in zip(*pairs, strict=True)
    )
    fit = edges @ borders.T / borders.sum(1)
    # what is left is the label's and the image's together: some fit anything
    fit += fit.mean() - fit.mean(0) - fit.mean(1, keepdims=True)
    own, error = float(fit.diagonal().mean()), float(((fit**2).sum() / (count - 1)) ** 0.5 / count)
    return float(fit.std()) >= MIN_SPREAD and own < MIN_OWN_ERRORS * error


def _shift(edges: Edges, borders: Borders) -> Iterator[tuple[str, float]]:
    """How well a label fits that is moved by a part of its side; what leaves the picture does not count."""
    for axis, (less, more) in enumerate((("up", "down"), ("left", "right"))):
        for part in SHIFTS:
            step, ahead, behind = round(part * borders.shape[axis]), [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            for way, there, here in ((more, ahead, behind), (less, behind, ahead)):
                if (inside := borders[tuple(here)]).sum() >= MIN_BORDER:
                    yield f"if they are moved {way} by {part:.1%}", _agree(edges[tuple(there)], inside)


def _zoom(edges: Edges, borders: Borders) -> Iterator[tuple[str, float]]:
    """How well a label fits that is enlarged or shrunk about its middle, in one direction or both."""
    size = np.array(borders.shape)[:, None]
    points = np.argwhere(borders).T - (size - 1) / 2
    for zoom in ZOOMS:
        for way, factors in (("", (zoom, zoom)), (" in width", (1, zoom)), (" in height", (zoom, 1))):
            moved = np.rint(points * np.array(factors)[:, None] + (size - 1) / 2).astype(int)
            inside = moved[:, ((moved >= 0) & (moved < size)).all(0)]
            if inside.shape[1] >= MIN_BORDER:
                yield f"if they are {zoom:.0%} as large{way}", float(edges[inside[0], inside[1]].mean())


def _evidence(gains: npt.NDArray[np.float64]) -> float:
    """The mean gain where it is no accident, else 0."""
    if len(gains) < MIN_PAIRS or (gains > 0).mean() < MIN_WINS:
        return 0.0
    mean, error = float(gains.mean()), float(gains.std(ddof=1)) / len(gains) ** 0.5
    return mean if mean >= MIN_GAIN and mean >= MIN_ERRORS * error else 0.0
