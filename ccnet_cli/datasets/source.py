"""What a data set is once opened: its samples, its classes, and how its files' values become train ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from ccnet_cli.errors import InputError
from ccnet_cli.media import images
from ccnet_cli.media.classes import Classes as Classes
from ccnet_cli.media.images import cv2

IGNORED = 255
REFUSED = -1
# what a data set's label files may hold; it decides which mix-up can be told from the values
LABEL_IDS, TRAIN_IDS, OWN_IDS = "labelIds", "trainIds", "ids"


@dataclass(frozen=True)
class Sample:
    """An image and its label map; name is relative, without suffix and unique; line is that in a list file, or 0."""

    image: Path
    label: Path | None
    name: str
    line: int = 0


class Samples(Sequence[Sample]):
    """Rows (IMAGE, LABEL or None, NAME, LINE) below a root, made into a Sample when asked: lists can be long."""

    def __init__(self, root: Path, rows: Sequence[tuple[str, str | None, str, int]]) -> None:
        self.root = root
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return Samples(self.root, self.rows[index])
        image, label, name, line = self.rows[index]
        return Sample(self.root / image, None if label is None else self.root / label, name, line)


@dataclass(frozen=True, eq=False)
class Source:
    """A split, opened; lookup (65536,) int16 gives the train id of a file's value: 255 ignored, -1 not allowed."""

    dataset: str
    samples: Sequence[Sample]
    classes: Classes
    lookup: np.ndarray
    ignore_index: int = IGNORED
    label_kind: str = OWN_IDS
    listing: Path | None = None

    def where(self, sample: Sample) -> str:
        """ "LIST line N: " for a sample that a list file named, else nothing."""
        return f"{self.listing} line {sample.line}: " if self.listing and sample.line else ""


def coloured(table: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """The names and RGB colours of a table "NAME RRGGBB, NAME RRGGBB, ..."."""
    entries = [entry.strip().rpartition(" ") for entry in table.split(",")]
    colours = [bytes.fromhex(colour) for _, _, colour in entries]
    return tuple(name for name, _, _ in entries), tuple((red, green, blue) for red, green, blue in colours)


def lookup(train_ids: Mapping[int, int], ignored: Sequence[int]) -> np.ndarray:
    """The table (65536,) int16 of file value -> train id; ignored values give 255, all others -1."""
    table = np.full(65536, REFUSED, np.int16)
    table[list(ignored)] = IGNORED
    for value, train_id in train_ids.items():
        table[value] = train_id
    return table


def load_image(sample: Sample) -> np.ndarray:
    """The image as uint8 BGR (H, W, 3), not rotated by EXIF: its label is not either."""
    return images.read_image(sample.image)


def load_label(source: Source, sample: Sample) -> np.ndarray:
    """Train ids (H, W) uint8, 255 ignored; InputError names the file and the values that are no class, or the sizes."""
    label = _read_label(source, sample)
    _same_size(sample, images.size(sample.image), label)
    return label


def load_pair(source: Source, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Image and label as load_image and load_label give them, the image read once."""
    image = load_image(sample)
    label = _read_label(source, sample)
    _same_size(sample, image.shape[:2], label)
    return image, label


def _read_label(source: Source, sample: Sample) -> np.ndarray:
    if sample.label is None:
        raise InputError(f"image {sample.image}", "has no label", "give a label for every image")
    values = images.read_label(sample.label)
    present = _present(values)
    refused = present[source.lookup[present] == REFUSED]
    if len(refused):
        raise _wrong_values(source, sample.label, refused)
    if source.label_kind == LABEL_IDS and looks_like_train_ids(present):
        why = "its values look like train ids (255 beside 0 to 6, nothing from 19 to 33) where labelIds are expected"
        raise InputError(f"label {sample.label}", why, "use *_labelIds.png, or list files named *_labelTrainIds.png")
    if values.dtype == np.uint8:
        # 255 for the values that are refused: they do not occur here
        return np.asarray(cv2.LUT(values, source.lookup[:256].astype(np.uint8)))
    return source.lookup[values].astype(np.uint8)


def _present(values: np.ndarray) -> np.ndarray:
    """The distinct values of a label map, ascending."""
    if values.dtype == np.uint8:
        # an order of magnitude faster than unique or bincount; its float counts only lose exactness, not presence
        return np.flatnonzero(cv2.calcHist([values], [0], None, [256], [0, 256]))
    return np.unique(values)


def looks_like_train_ids(present: np.ndarray) -> bool:
    """Whether file values taken for Cityscapes labelIds are train ids: void beside 255, and no common class."""
    # labelIds call void 0 to 6 and hardly ever 255; sky, vegetation, cars and people are 19 to 33
    common = ((present >= 19) & (present <= 33)).any()
    return bool((present == 255).any() and (present <= 6).any() and not common)


def _wrong_values(source: Source, label: Path, refused: np.ndarray) -> InputError:
    listed = ", ".join(str(value) for value in refused[:8]) + (", ..." if len(refused) > 8 else "")
    fix = "correct the file, or " + (
        "data.classes and data.ignore_index" if source.dataset == "folder" else "data.dataset"
    )
    if refused.max() >= 1000:
        fix = "these look like instance ids: use the *_labelIds.png files"
    elif source.label_kind == TRAIN_IDS and refused.max() <= 33:
        fix = "these look like labelIds: use files named *_labelIds.png"
    elif source.label_kind == LABEL_IDS:
        fix = "use the *_labelIds.png files of Cityscapes"
    allowed = np.flatnonzero(source.lookup != REFUSED)
    why = f"value {listed} is no label of {source.dataset} ({_ranges(allowed)})"
    return InputError(f"label {label}", why, fix)


def _ranges(values: np.ndarray) -> str:
    """Ascending integers in words: 0 to 18, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _same_size(sample: Sample, size: tuple[int, ...], label: np.ndarray) -> None:
    if size != label.shape:
        why = f"is {label.shape[1]} x {label.shape[0]} pixels, its image {sample.image} {size[1]} x {size[0]}"
        raise InputError(f"label {sample.label}", why, "give image and label of one size")
