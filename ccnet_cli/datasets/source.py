"""Open a split of a data set, and read its images and its labels as train ids."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccnet_cli.datasets import DATASETS, classes_of
from ccnet_cli.datasets.dataset import LABEL_IDS, OWN_IDS, TRAIN_IDS, Split
from ccnet_cli.datasets.listing import Sample, Samples, holds_train_ids, read_list, require_files
from ccnet_cli.datasets.settings import IGNORED, Data
from ccnet_cli.errors import InputError, detail
from ccnet_cli.media import images
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import Pixels, cv2

REFUSED = -1
Values = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Source:
    """An open split; lookup (65536,) int16 gives the train id of a label file's value: 255 ignored, -1 refused.

    tolerate_damage reads what is left of damaged images.
    """

    dataset: str
    samples: Samples
    classes: Classes
    lookup: npt.NDArray[np.int16]
    label_kind: str = OWN_IDS
    read_label: Callable[[Path], images.Labels] = images.read_label
    ignore_index: int = IGNORED
    tolerate_damage: bool = False


def open_source(data: Data, split: str, labels_required: bool = True, verify: bool = True) -> Source:
    """The images of a split, train, val or another folder's name, each with its label unless labels are not required.

    InputError names the first file that does not exist; verify=False leaves those for check to report.
    """
    dataset = DATASETS[data.dataset]
    root = _find_root(data)
    classes = classes_of(data)
    if listing := _find_list(data, root, split):
        samples = read_list(listing, root, unique=split != "train", labels_required=labels_required)
    else:
        name = {"train": data.train_split, "val": data.val_split}.get(split, split)
        folder = dataset.folders.get(name, name)
        samples = dataset.files(Split(data, root, split, folder, labels_required))
    if verify:
        samples = require_files(samples, labels_required)
    kind, values, ignored = dataset.label_kind, enumerate(classes.label_ids), dataset.ignored
    train_ids = {value: index for index, value in values} | dict(dataset.values)
    if dataset.converted and holds_train_ids(samples):
        kind, train_ids, ignored = TRAIN_IDS, {index: index for index in range(len(classes))}, ()
    detail(f"{len(samples)} images of {data.dataset} in {split}, {len(classes)} classes")
    lookup = label_lookup(train_ids, (*ignored, data.ignore_index))
    return Source(data.dataset, samples, classes, lookup, kind, dataset.read_label or images.read_label)


def _find_root(data: Data) -> Path:
    if data.root is None and (built_in := DATASETS[data.dataset].root):
        return built_in(data)
    fix = f"give the folder of {data.dataset} with --data DIR"
    if data.root is None:
        raise InputError("preset key data.root", "missing", fix)
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise InputError(f"folder {root}", "is not a folder" if root.exists() else "does not exist", fix)
    return root


def _find_list(data: Data, root: Path, split: str) -> Path | None:
    """The split's list file, if one is set: relative to the data root or, if it is not there, the working folder."""
    name = {"train": data.train_list, "val": data.val_list, "test": data.test_list}.get(split)
    if name is None:
        return None
    inside = root / name
    return inside if inside.exists() or not Path(name).exists() else Path(name)


def label_lookup(train_ids: Mapping[int, int], ignored: Iterable[int]) -> npt.NDArray[np.int16]:
    """The table (65536,) of file value -> train id; ignored values give 255, all others -1."""
    table = np.full(65536, REFUSED, np.int16)
    table[list(ignored)] = IGNORED
    for value, train_id in train_ids.items():
        table[value] = train_id
    return table


def load_image(source: Source, sample: Sample) -> Pixels:
    """The image as uint8 BGR (H, W, 3), not rotated by EXIF, as its label is not either."""
    return images.read_image(sample.image, tolerate=source.tolerate_damage)


def load_label(source: Source, sample: Sample) -> Pixels:
    """Train ids (H, W) uint8, 255 ignored; InputError names values that are no class, or sizes that differ."""
    label = _read_label(source, sample)
    _require_same_size(sample, images.read_size(sample.image, source.tolerate_damage), label)
    return label


def load_pair(source: Source, sample: Sample) -> tuple[Pixels, Pixels]:
    """The image of load_image and the label of load_label."""
    image = load_image(source, sample)
    label = _read_label(source, sample)
    _require_same_size(sample, image.shape[:2], label)
    return image, label


def _read_label(source: Source, sample: Sample) -> Pixels:
    if sample.label is None:
        raise InputError(f"image {sample.image}", "has no label", "give a label for every image")
    values = source.read_label(sample.label)
    present = _present(values)
    refused = present[source.lookup[present] == REFUSED]
    if len(refused):
        raise _describe_wrong_values(source, sample.label, refused)
    if source.label_kind == LABEL_IDS and looks_like_train_ids(present):
        why = "its values look like train ids (255 beside 0 to 6, nothing from 19 to 33) where labelIds are expected"
        raise InputError(f"label {sample.label}", why, "use *_labelIds.png, or list files named *_labelTrainIds.png")
    if values.dtype == np.uint8:
        # 255 for the values that are refused: they do not occur here
        return np.asarray(cv2.LUT(values, source.lookup[:256].astype(np.uint8)))
    return source.lookup[values].astype(np.uint8)


def _present(values: Values) -> Values:
    """The distinct values of a label map, ascending."""
    if values.dtype == np.uint8:
        # an order of magnitude faster than unique or bincount; its float counts only lose exactness, not presence
        return np.flatnonzero(cv2.calcHist([values], [0], None, [256], [0, 256]))
    return np.unique(values)


def looks_like_train_ids(present: Values) -> bool:
    """Whether file values taken for Cityscapes labelIds are train ids: void beside 255, and no common class."""
    # labelIds call void 0 to 6 and hardly ever 255; sky, vegetation, cars and people are 19 to 33
    common = ((present >= 19) & (present <= 33)).any()
    return bool((present == 255).any() and (present <= 6).any() and not common)


def _describe_wrong_values(source: Source, label: Path, refused: Values) -> InputError:
    listed = ", ".join(str(value) for value in refused[:8]) + (", ..." if len(refused) > 8 else "")
    own_classes = isinstance(DATASETS[source.dataset].classes, Classes)
    fix = f"correct the file, or {'data.dataset' if own_classes else 'data.classes and data.ignore_index'}"
    if refused.max() >= 1000:
        fix = "these look like instance ids: use the *_labelIds.png files"
    elif source.label_kind == TRAIN_IDS and refused.max() <= 33:
        fix = "these look like labelIds: use files named *_labelIds.png"
    elif source.label_kind == LABEL_IDS:
        fix = "use the *_labelIds.png files of Cityscapes"
    allowed = np.flatnonzero(source.lookup != REFUSED)
    why = f"value {listed} is no label of {source.dataset} ({_ranges(allowed)})"
    return InputError(f"label {label}", why, fix)


def _ranges(values: Values) -> str:
    """Ascending integers in words: 0 to 18, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _require_same_size(sample: Sample, size: tuple[int, ...], label: Pixels) -> None:
    if size != label.shape:
        why = f"is {label.shape[1]} x {label.shape[0]} pixels, its image {sample.image} {size[1]} x {size[0]}"
        raise InputError(f"label {sample.label}", why, "give image and label of one size")
