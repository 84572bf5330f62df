"""Part a folder of images into lists, and show a data set as a picture."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccnet_cli import config, files
from ccnet_cli.datasets.report import count_pixels
from ccnet_cli.datasets.settings import FolderData
from ccnet_cli.datasets.source import load_label, load_pair, open_source
from ccnet_cli.errors import InputError
from ccnet_cli.figures import contact
from ccnet_cli.media.images import write_image


@dataclass(frozen=True)
class SplitRequest:
    """A folder to part; images and labels are folders in it, found by their names if None."""

    root: Path
    images: str | None = None
    labels: str | None = None
    suffix: str | None = None
    fraction: float = 0.2
    seed: int = 0
    group: str | None = None
    overwrite: bool = False


def split(request: SplitRequest) -> dict[Path, int]:
    """Write train.lst and val.lst into the folder; the number of images in each."""
    data = FolderData(
        dataset="folder",
        root=str(request.root),
        classes=["any"],
        crop=(1, 1),
        train_images=request.images,
        train_labels=request.labels,
        label_suffix=request.suffix,
        val_fraction=request.fraction,
        val_seed=request.seed,
        val_group=request.group,
    )
    lists = {request.root / f"{split}.lst": open_source(data, split).samples for split in ("train", "val")}
    files.refuse_outputs(lists, overwrite=request.overwrite)
    texts = {path: _write_rows(samples.rows, request.root) for path, samples in lists.items()}
    for path, text in texts.items():
        files.write_bytes(path, text.encode("utf-8", "surrogateescape"))
    return {path: len(samples) for path, samples in lists.items()}


def _write_rows(rows: Sequence[tuple[str, str | None, str, int]], root: Path) -> str:
    """Lines IMAGE LABEL, relative to the root."""
    top = os.fspath(root.absolute()).rstrip("/") + "/"
    lines = []
    for image, label, *_ in rows:
        names = [os.path.normpath(path).removeprefix(os.path.normpath(top) + "/") for path in (image, label or "")]
        if bad := [name for name in names if set(name) & set("\t\n\r") or name.startswith("/")]:
            raise InputError(f"file {bad[0]!r}", "cannot stand in a list", "rename it, or move it into the folder")
        lines.append("\t".join(names) + "\n")
    return "".join(lines)


@dataclass(frozen=True)
class ShowRequest:
    """The split of a preset's data to draw, at most this number of its images."""

    preset: config.Preset
    split: str
    output: Path
    count: int = 12


def show(request: ShowRequest) -> Path:
    """Draw a contact sheet of images with their labels over them, and the pixels of each class below."""
    source = open_source(request.preset.data, request.split)
    total = len(source.samples)
    count = min(request.count, total)
    chosen = [source.samples[index * total // count] for index in range(count)]
    sheet = contact.draw_sheet([(sample.name, *load_pair(source, sample)) for sample in chosen], source.classes)
    pixels = count_pixels(source)
    ignored = sum(int(np.count_nonzero(load_label(source, sample) == source.ignore_index)) for sample in source.samples)
    named = dict(zip(source.classes.names, pixels.tolist(), strict=True))
    histogram = contact.draw_histogram(named, ignored, source.classes)
    write_image(request.output, contact.stack([sheet, histogram]))
    return request.output
