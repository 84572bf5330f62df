"""Check a data set: read every pair, collect every problem, count every pixel; say what no training can learn from."""

import filecmp
import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ccnet_cli.datasets import DATASETS, alignment, smoothing
from ccnet_cli.datasets.dataset import LABEL_IDS
from ccnet_cli.datasets.listing import Sample
from ccnet_cli.datasets.settings import IGNORED
from ccnet_cli.datasets.source import Source, load_image, load_label, load_pair
from ccnet_cli.errors import InputError, notice
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import read_size, upright_size

# what is read of a split before a run: at most this number of labels, and fewer if they are large
MAX_LABELS, MAX_PIXELS, MIN_LABELS = 256, 1 << 26, 16
# a split of which less is labelled is hardly meant so
MIN_LABELLED = 0.05
# labels of which it is no accident that all are the same
MIN_SAME = 4
# problems of one kind are one line, with this number of examples
EXAMPLES = 3
SEE = "see that the labels are those of the data set"

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Report:
    """A check's result: pixels by class name, ignored ones apart; images by WIDTHxHEIGHT.

    problems has a line for each kind of problem, warnings what may be meant so.
    """

    dataset: str
    images: int
    labels: int
    sizes: dict[str, int]
    pixels: dict[str, int]
    ignored: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def count_pixels(source: Source) -> npt.NDArray[np.int64]:
    """How many pixels of each class the labels of a source have, (K,); InputError for a label that cannot be read."""
    notice(f"counting the pixels of each class in {len(source.samples)} labels")
    counts = sum(np.bincount(load_label(source, sample).ravel(), minlength=256) for sample in source.samples)
    return np.asarray(counts, np.int64)[: len(source.classes)]


def check_all(sources: dict[str, Source]) -> dict[str, Report]:
    """The check of each split; a class that one of them lacks and another has is a problem of the one."""
    names: dict[str, dict[bytes, str]] = {split: {} for split in sources}
    reports = {split: check(source, names[split]) for split, source in sources.items()}
    large = {name: report for name, report in reports.items() if report.labels >= MIN_LABELS}
    present = {name for report in large.values() for name, count in report.pixels.items() if count}
    for split, report in large.items():
        lacking = [name for name, count in report.pixels.items() if name in present and not count]
        if lacking and _has_own_classes(sources[split]):
            line = f"{join_names(lacking)} without a pixel, though another split has some; {SEE}"
            reports[split] = replace(report, problems=(*report.problems, line), warnings=())
    for split in names.keys() - {"train"} if "train" in names else ():
        if both := sorted(names["train"].keys() & names[split].keys(), key=names[split].__getitem__):
            first = f"{names[split][both[0]]} is {names['train'][both[0]]}"
            line = f"{len(both)} of its images are in train too ({first}): scores say nothing of new ones; remove them"
            reports[split] = replace(reports[split], warnings=(*reports[split].warnings, line))
    return reports


def check(source: Source, names: dict[bytes, str] | None = None) -> Report:
    """Read every image and label of a source; a problem with one does not stop the check of others.

    names gets the name of each image by a digest of its pixels.
    """
    names = {} if names is None else names
    counts = np.zeros(256, np.int64)
    maps, blank, turned, aligned, smoothed = set[bytes](), 0, 0, alignment.Alignment(), smoothing.Smoothing()
    sizes: Counter[str] = Counter()
    errors: list[tuple[str, InputError]] = []
    labels = 0
    for sample in source.samples:
        try:
            if sample.label is None:
                image, label = load_image(source, sample), None
                errors.append((source.samples.where(sample), InputError(f"image {sample.image}", "has no label", "")))
            else:
                image, label = load_pair(source, sample)
        except InputError as error:
            errors.append((source.samples.where(sample), error))
            continue
        sizes[f"{image.shape[1]}x{image.shape[0]}"] += 1
        names.setdefault(_digest(image), sample.name)
        blank += bool((image == image[0, 0]).all())
        turned += upright_size(sample.image) is not None
        if label is not None:
            labels += 1
            aligned.add(image, label)
            smoothed.add(label)
            maps.add(_digest(label))
            counts += np.bincount(label.ravel(), minlength=256)
    classes = source.classes.names
    pixels = {name: int(count) for name, count in zip(classes, counts[: len(classes)], strict=True)}
    problems, warnings = _judge(source, counts, labels) if labels else ([], [])
    problems = [*merge_alike(errors), *problems]
    warnings += [*_find_same_labels(labels, maps), *smoothed.judge(), *aligned.judge()]
    ignored, count = int(counts[IGNORED]), len(source.samples)
    warnings += [f"{blank} of its {count} images show one colour alone; look at them"] if blank else []
    unseen = f"{turned} of its {count} images are turned by their EXIF data, which training does not apply"
    warnings += [f"{unseen}; see that the labels lie on them as stored, or save them upright"] if turned else []
    return Report(source.dataset, count, labels, dict(sizes), pixels, ignored, tuple(problems), tuple(warnings))


def _digest(picture: npt.NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(picture).data, digest_size=16).digest() + str(picture.shape).encode()


def _find_same_labels(labels: int, maps: set[bytes]) -> list[str]:
    """A warning where a number of labels are one map, by the digests of all."""
    same = labels >= MIN_SAME and len(maps) == 1
    return [f"all {labels} labels are the same; see that each is its image's"] if same else []


def warn_of_dead_labels(source: Source, split: str) -> None:
    """Look at some labels of a split, and warn of what no training can learn from; InputError for a wrong label."""
    counts, read, maps, smoothed = np.zeros(256, np.int64), 0, set[bytes](), smoothing.Smoothing()
    errors: list[InputError] = []
    for sample in _choose(source):
        read += 1
        try:
            label = load_label(source, sample)
            maps.add(_digest(label))
            smoothed.add(label)
            counts += np.bincount(label.ravel(), minlength=256)
        except InputError as error:
            errors.append(error)
    if errors:
        first = errors[0]
        why = f"{first.why} (so are {len(errors)} of the {read} labels of {split} that were looked at)"
        raise InputError(first.what, first.why if len(errors) == 1 else why, first.fix)
    part = "" if read == len(source.samples) else f" in {read} of its {len(source.samples)} labels"
    problems, warnings = _judge(source, counts, read) if read else ([], [])
    warnings = [] if part and _has_own_classes(source) else warnings
    others = [*_find_same_labels(read, maps), *smoothed.judge(), *alignment.probe(source)]
    for line in [*problems, *warnings, *others]:
        notice(f"warning: split {split}{part}: {line}")


def warn_of_shared_images(train: Source, val: Source) -> None:
    """Warn where several images to validate on have the name and the content of one to train on."""
    names = {posixpath.basename(row[0]): index for index, row in enumerate(train.samples.rows)}
    chosen = [(sample, names.get(sample.image.name)) for sample in _choose(val)]
    pairs = [(sample, train.samples[index]) for sample, index in chosen if index is not None]
    shared = [sample for sample, other in pairs if filecmp.cmp(sample.image, other.image, shallow=False)]
    if len(shared) >= MIN_SAME:
        part = f"{len(shared)} of {len(chosen)} images of val that were looked at are in train too"
        notice(f"warning: {part} ({shared[0].name}): scores say nothing of new ones; remove them")


def _choose(source: Source) -> Iterable[Sample]:
    """Labelled samples, evenly spread: all, or as many as can be read in a second or so."""
    labelled = [index for index, row in enumerate(source.samples.rows) if row[1] is not None]
    if not labelled:
        return
    first = source.samples[labelled[0]]
    height, width = read_size(first.image, source.tolerate_damage)
    limit = min(max(MAX_PIXELS // (height * width), MIN_LABELS), MAX_LABELS, len(labelled))
    for index in range(limit):
        yield source.samples[labelled[index * len(labelled) // limit]]


def _has_own_classes(source: Source) -> bool:
    """Whether the data set's classes are its own, so that a part of it may lack some of them."""
    return isinstance(DATASETS[source.dataset].classes, Classes)


def _judge(source: Source, counts: Counts, labels: int) -> tuple[list[str], list[str]]:
    """Problems and warnings of a number of labels with these pixels by train id (256,), a line for each."""
    own, names = _has_own_classes(source), source.classes.names
    pixels, ignored = counts[: len(names)], int(counts[IGNORED])
    missing = [name for name, count in zip(names, pixels, strict=True) if not count]
    meaning = SEE if own else "say what their values mean in data.labels"
    if not pixels.any():
        return [f"no labelled pixel: every one is ignored; {meaning}"], []
    problems: list[str] = []
    if pixels.sum() < MIN_LABELLED * counts.sum():
        part = 100 * ignored / int(counts.sum())
        problems.append(f"{part:.1f} % of the pixels are ignored, hardly anything is left to learn from; {meaning}")
    if not own and len(names) > 1 and missing == list(names[1:]) and ignored:
        value = int(np.flatnonzero(source.lookup == IGNORED)[-1])
        table = f"{{0: {names[0]}, {value}: {names[1]}}}"
        why = f"only the values 0 and {value} occur, and {value} is ignored: {join_names(missing)} without a pixel"
        return [*problems, f"{why}; if {value} means {names[1]}, set data.labels={table}"], []
    if own and labels >= MIN_LABELS and len(missing) == len(names) - 1 > 0:
        (name,) = set(names) - set(missing)
        why = f"{name} alone occurs in {labels} labels, as in masks of 0 and 255 or of other classes"
        fix = "for classes of your own, describe them in a preset: data.dataset=folder and data.labels"
        return [*problems, f"{why}; {fix}"], []
    if source.label_kind == LABEL_IDS and not any(counts[6:IGNORED]):
        problems.append("only labelIds below 19 occur, road to pole: these may be train ids under the name of labelIds")
    absent = f"{join_names(missing)} without a pixel ({len(missing)} of {len(names)} classes)"
    if missing and not own:
        fix = "correct the labels, or data.classes and data.labels, or leave the class out"
        return [*problems, f"{absent}; {fix}"], []
    # a few images of a published set need not show every class, and drawn ones never do
    usual = labels < MIN_LABELS or DATASETS[source.dataset].root is not None
    return problems, [f"{absent}; {meaning}"] if missing and not usual else []


def join_names(names: Sequence[str]) -> str:
    """Up to eight names of classes."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def merge_alike(errors: Iterable[tuple[str, InputError]]) -> list[str]:
    """A line for each kind of error, with a count and examples where several differ in names and numbers alone."""
    kinds: dict[str, list[tuple[str, InputError]]] = {}
    for where, error in errors:
        kind = re.sub(r"\S*[/\d]\S*", "#", f"{str(error.what).partition(' ')[0]}: {error.why}")
        # lists of values, however long
        kinds.setdefault(re.sub(r"#( #)*( \.\.\.)?", "#", kind), []).append((where, error))
    lines = []
    for alike in kinds.values():
        where, error = alike[0]
        line = f"{where}{error}".removesuffix("; ")
        if len(alike) > 1:
            others = [str(error.what).partition(" ")[2] for _, error in alike[1:EXAMPLES]]
            more = ", ..." if len(alike) > EXAMPLES else ""
            line = f"{len(alike)} times: {line} (also {', '.join(others)}{more})"
        lines.append(line)
    return lines
