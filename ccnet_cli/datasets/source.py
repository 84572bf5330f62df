"""Open a split of a data set, and read its images and its labels as train ids."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccnet_cli.datasets import DATASETS, classes_of
from ccnet_cli.datasets.clips import Clips, find_clips, frames_lie_beside
from ccnet_cli.datasets.dataset import LABEL_IDS, OWN_IDS, TRAIN_IDS, Split
from ccnet_cli.datasets.listing import Sample, Samples, holds_train_ids, labelled_ones, read_list, require_files
from ccnet_cli.datasets.parting import part
from ccnet_cli.datasets.settings import IGNORED, Data, FolderData
from ccnet_cli.datasets.tables import MAX_VALUES, Table, colour_reader, refuse_swapped, value_reader
from ccnet_cli.errors import InputError, detail
from ccnet_cli.media import images
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import Pixels, cv2

REFUSED = -1
Values = npt.NDArray[np.integer[Any]]
ReadLabel = Callable[[Path], npt.NDArray[Any]]
# values in the example of a table
MAX_EXAMPLES = 24
SWAP = "exchange data.train_images and data.train_labels (val_images, val_labels), or the columns of the list"


@dataclass(frozen=True, eq=False)
class Source:
    """An open split; lookup (65536,) int16 gives the train id of a label file's value: 255 ignored, -1 refused.

    tolerate_damage reads what is left of damaged images. clips are the frames around each image, where they are wanted.
    """

    dataset: str
    samples: Samples
    classes: Classes
    lookup: npt.NDArray[np.int16]
    label_kind: str = OWN_IDS
    read_label: ReadLabel = images.read_label
    ignore_index: int = IGNORED
    tolerate_damage: bool = False
    clips: Clips | None = None


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
        if data.frames > 1 and labels_required and frames_lie_beside(data, dataset, root, samples):
            samples = labelled_ones(samples)
    if verify:
        samples = require_files(samples, labels_required)
    kind, values, ignored = dataset.label_kind, enumerate(classes.label_ids), dataset.ignored
    train_ids = {value: index for index, value in values} | dict(dataset.values)
    if dataset.converted and holds_train_ids(samples):
        kind, train_ids, ignored = TRAIN_IDS, {index: index for index in range(len(classes))}, ()
    read_label = dataset.read_label or images.read_label
    lookup = label_lookup(train_ids, (*ignored, data.ignore_index))
    if isinstance(data, FolderData):
        samples = _part(data, samples, split)
        if table := data.table:
            lookup, read_label = _apply_table(table, classes, data.ignore_index)
    detail(f"{len(samples)} images of {data.dataset} in {split}, {len(classes)} classes")
    clips = find_clips(data, dataset, root, samples)
    return Source(data.dataset, samples, classes, lookup, kind, read_label, clips=clips)


def _part(data: FolderData, samples: Samples, split: str) -> Samples:
    """The part of the samples that is the split, where data.val_fraction parts them."""
    if data.val_fraction is None or split not in ("train", "val"):
        return samples
    train, val = part(samples, data.val_fraction, data.val_seed or 0, data.val_group)
    return train if split == "train" else val


def _apply_table(table: Table, classes: Classes, ignored: int) -> tuple[npt.NDArray[np.int16], ReadLabel]:
    """The lookup and the reader of labels that the key data.labels describes."""
    if table.colours:
        own = {index: index for index in range(len(classes))}
        return label_lookup(own, (ignored,)), colour_reader(table, classes.names, ignored)
    rest = [IGNORED if name is None else classes.names.index(name) for name in table.rest]
    lookup = np.full(65536, rest[0] if rest else REFUSED, np.int16)
    lookup[ignored] = IGNORED
    for value, name in table.values.items():
        lookup[value] = IGNORED if name is None else classes.names.index(name)
    return lookup, value_reader()


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
    if split == "val" and isinstance(data, FolderData) and data.val_fraction is not None:
        name = data.train_list
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


def load_frames(source: Source, sample: Sample, image: Pixels) -> list[Pixels]:
    """The frames of the clip around an image that is read, or the image alone."""
    return [image] if source.clips is None else source.clips.load(sample, image, source.tolerate_damage)


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
    if sample.label == sample.image:
        fix = "name the folder of the labels in data.train_labels or val_labels, or the labels' column of the list"
        raise InputError(f"image {sample.image}", "is its own label", fix)
    try:
        values = source.read_label(sample.label)
    except InputError:
        refuse_swapped(sample.image, sample.label, SWAP)
        raise
    present = _present(values)
    refused = present[source.lookup[present] == REFUSED]
    if len(refused):
        if len(present) > MAX_VALUES:
            refuse_swapped(sample.image, sample.label, SWAP)
        raise _describe_wrong_values(source, sample.label, present, refused)
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


def _describe_wrong_values(source: Source, label: Path, present: Values, refused: Values) -> InputError:
    listed = ", ".join(str(value) for value in refused[:8]) + (", ..." if len(refused) > 8 else "")
    own_classes = isinstance(DATASETS[source.dataset].classes, Classes)
    fix = f"correct the file, or {'data.dataset' if own_classes else _suggest_table(source, present)}"
    if own_classes and refused.max() >= 1000:
        fix = "these look like instance ids: use the *_labelIds.png files"
    elif source.label_kind == TRAIN_IDS and refused.max() <= 33:
        fix = "these look like labelIds: use files named *_labelIds.png"
    elif source.label_kind == LABEL_IDS:
        fix = "use the *_labelIds.png files of Cityscapes"
    allowed = np.flatnonzero(source.lookup != REFUSED)
    why = f"value {listed} is no label of {source.dataset} ({_ranges(allowed)})"
    return InputError(f"label {label}", why, fix)


def _suggest_table(source: Source, present: Values) -> str:
    """What to do with a label of your own whose values are not the numbers of classes."""
    keys = "data.classes and data.ignore_index"
    if len(present) > MAX_VALUES:
        return f"{keys}: {len(present)} different values look like a picture or a smoothed mask"
    classes, counted = len(source.classes), present[source.lookup[present] != IGNORED]
    pairs: Iterator[tuple[int, str]] = zip(present.tolist(), (*source.classes.names, "null"), strict=False)
    if counted[0] > 0 and counted[-1] == classes:
        # numbers from 1 on, of which this file need not have all
        pairs = zip(range(1, classes + 1), source.classes.names, strict=True)
    elif (counted < classes).sum() > 1:
        # the numbers of classes, beside others
        others = [(value, "null") for value in counted[counted >= classes].tolist()]
        pairs = iter([*enumerate(source.classes.names), *others])
    examples = list(islice(pairs, MAX_EXAMPLES))
    table = ", ".join(f"{value}: {name}" for value, name in examples)
    more = ", ..." if next(pairs, None) or len(present) > len(source.classes) + 1 else ""
    return f"{keys}, or say what each value means, such as data.labels={{{table}{more}}}"


def _ranges(values: Values) -> str:
    """Ascending integers in words: 0 to 18, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _require_same_size(sample: Sample, size: tuple[int, ...], label: Pixels) -> None:
    if size != label.shape:
        why = f"is {label.shape[1]} x {label.shape[0]} pixels, its image {sample.image} {size[1]} x {size[0]}"
        fix = "give image and label of one size"
        if images.upright_size(sample.image) == label.shape:
            why, fix = f"{why} before its EXIF data turn it", "save the image upright, without EXIF data"
        raise InputError(f"label {sample.label}", why, fix)
