"""Check a data set: read every pair, collect every problem, count every pixel."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ccnet_cli.datasets.dataset import LABEL_IDS
from ccnet_cli.datasets.settings import IGNORED
from ccnet_cli.datasets.source import Source, load_image, load_label, load_pair
from ccnet_cli.errors import InputError, notice


@dataclass(frozen=True)
class Report:
    """A check's result: pixels by class name, ignored ones apart; images by WIDTHxHEIGHT; a line for each problem."""

    dataset: str
    images: int
    labels: int
    sizes: dict[str, int]
    pixels: dict[str, int]
    ignored: int
    problems: tuple[str, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def count_pixels(source: Source) -> npt.NDArray[np.int64]:
    """How many pixels of each class the labels of a source have, (K,); InputError for a label that cannot be read."""
    notice(f"counting the pixels of each class in {len(source.samples)} labels")
    counts = sum(np.bincount(load_label(source, sample).ravel(), minlength=256) for sample in source.samples)
    return np.asarray(counts, np.int64)[: len(source.classes)]


def check(source: Source) -> Report:
    """Read every image and label of a source; a problem with one does not stop the check of others."""
    counts = np.zeros(256, np.int64)
    sizes: Counter[str] = Counter()
    problems: list[str] = []
    labels = 0
    for sample in source.samples:
        try:
            if sample.label is None:
                image, label = load_image(source, sample), None
                problems.append(f"{source.samples.where(sample)}image {sample.image}: has no label")
            else:
                image, label = load_pair(source, sample)
        except InputError as error:
            problems.append(f"{source.samples.where(sample)}{error}")
            continue
        sizes[f"{image.shape[1]}x{image.shape[0]}"] += 1
        if label is not None:
            labels += 1
            counts += np.bincount(label.ravel(), minlength=256)
    names = source.classes.names
    pixels = {name: int(count) for name, count in zip(names, counts[: len(names)], strict=True)}
    if labels and not any(pixels.values()):
        problems.append("no labelled pixel: every one is ignored")
    elif source.label_kind == LABEL_IDS and labels and not any(counts[6:IGNORED]):
        problems.append("only labelIds below 19 occur, road to pole: these may be train ids under the name of labelIds")
    ignored = int(counts[IGNORED])
    return Report(source.dataset, len(source.samples), labels, dict(sizes), pixels, ignored, tuple(problems))
