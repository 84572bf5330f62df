"""A preset for data that come without one: their layout, classes and sizes decide, and the memory at hand."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccnet_cli import datasets, devices, files
from ccnet_cli.config.text import dump
from ccnet_cli.datasets import annotations
from ccnet_cli.datasets.annotations.masks import discover_table, read_table
from ccnet_cli.datasets.annotations.tree import Tree
from ccnet_cli.datasets.listing import Samples
from ccnet_cli.datasets.source import open_source
from ccnet_cli.errors import InputError, notice
from ccnet_cli.media.images import read_size

GIB = 1 << 30
BATCH = 8
# images of which the sizes are read
MAX_SIZES = 200
VAL_FRACTION = 0.2
EVALUATIONS, PATIENCE = 10, 4
MAX_NAMES = 100


@dataclass(frozen=True)
class Recipe:
    """What a proposal begins with: a preset, the longest side of a crop, and its steps.

    bytes is the memory that training takes for each pixel of a batch, about.
    """

    base: str
    side: int
    bytes: int
    per_image: int
    least: int
    most: int

    def steps(self, images: int) -> int:
        """The steps for a number of images."""
        return min(max(self.per_image * images, self.least), self.most)


# from scratch on a CPU in minutes, and a pretrained network on a GPU
SMALL = Recipe("camvid", 384, 2000, 6, 150, 800)
LARGE = Recipe("finetune", 512, 12000, 12, 1000, 40000)
# data sets that have a recipe of their own for a CPU, and the longest side that its images have
KNOWN = {"camvid": ("camvid-strong", 480)}


@dataclass(frozen=True)
class Proposal:
    """A preset's keys, and one line that says what they were made of."""

    name: str
    mapping: dict[str, Any]
    line: str


def propose(folder: Path, device: torch.device, processes: int = 1) -> Proposal:
    """A preset for a folder of data; InputError, which names the next step, where its layout is not known."""
    data, count, sizes = _describe(folder)
    height, width = (int(np.median(side)) for side in zip(*sizes, strict=True))
    name = folder.resolve().name or "data"
    classes = len(datasets.classes_of(_open_settings(data, folder)))
    own: dict[str, Any] = {
        "name": name,
        "description": f"{count} images of {classes} classes",
        "source": f"ccnet train --data {folder}",
    }
    what = f"{folder}: {count} images of about {width}x{height}, {classes} classes"
    if device.type != "cuda" and data["dataset"] in KNOWN:
        base, side = KNOWN[data["dataset"]]
        fit = {key: each for key, each in frame((height, width), side).items() if key == "fit"}
        own |= {"base": base, "train": {"batch": processes * -(-BATCH // processes)}, "eval": fit}
        own["data"] = {"root": str(folder.resolve()), "dataset": data["dataset"], **fit}
        return Proposal(name, own, f"{what}: a preset based on {base}")
    recipe = LARGE if device.type == "cuda" else SMALL
    memory = devices.free_memory(device)
    framing = frame((height, width), recipe.side)
    batch = fit_batch(framing["crop"], recipe, memory // (1 if device.type == "cuda" else processes), processes)
    steps = recipe.steps(count)
    every = max(1, steps // EVALUATIONS)
    mapping = {
        **own,
        "base": recipe.base,
        "data": {"root": str(folder.resolve()), **data, **framing},
        "train": {"batch": batch, "early_stop": {"patience": PATIENCE}},
        "schedule": {"steps": steps, "warmup": min(50, steps // 10)},
        "loss": {"cross_entropy": {"class_weights": "auto"}},
        "eval": {"every": every, **({"fit": [*framing["fit"]]} if "fit" in framing else {})},
        "checkpoint": {"every": every},
    }
    line = (
        f"{what}, {memory / GIB:.1f} GiB of memory: "
        f"a preset based on {recipe.base}, {batch} crops of {framing['crop'][1]}x{framing['crop'][0]}, {steps} steps"
    )
    return Proposal(name, mapping, line)


def write(proposal: Proposal, folder: Path) -> Path:
    """Write a proposal as NAME.yaml, or NAME-2.yaml and so on where that is another file already; its path."""
    content = dump(proposal.mapping).encode()
    for number in range(1, MAX_NAMES):
        path = folder / f"{proposal.name}{f'-{number}' * (number > 1)}.yaml"
        if not path.exists():
            files.write_bytes(path, content)
        elif not path.is_file() or path.read_bytes() != content:
            continue
        notice(f"{proposal.line}; see {path}")
        return path
    raise InputError(f"file {path}", f"exists, and so do {MAX_NAMES - 2} before it", "name one of them with --preset")


def frame(size: tuple[int, int], side: int) -> dict[str, Any]:
    """The crop for images of this size (H, W), and what they are shrunk to where they are larger than a side."""
    scale = min(1, side / max(size))
    crop = [max(8 * round(each * scale / 8), 8) for each in size]
    return {"crop": crop, **({"fit": [max(crop), min(crop)]} if scale < 1 else {})}


def fit_batch(crop: Sequence[int], recipe: Recipe, memory: int, processes: int = 1) -> int:
    """As many crops as half the memory of a process holds, 8 over all processes if it may be, 2 for each at least."""
    most = memory // 2 // (crop[0] * crop[1] * recipe.bytes)
    wanted = -(-BATCH // processes)
    return processes * max(2, min(wanted, int(most)))


def _describe(folder: Path) -> tuple[dict[str, Any], int, list[tuple[int, int]]]:
    """The keys of data for a folder, the number of its training images, and the sizes of some."""
    tree = Tree(folder)
    try:
        data: dict[str, Any] = {"dataset": datasets.recognise(folder), "classes": None, "labels": None}
    except InputError:
        data = _describe_own(tree)
    source = open_source(_open_settings(data, folder), "train")
    count = len(source.samples)
    chosen = sorted({index * count // MAX_SIZES for index in range(MAX_SIZES)}) if count > MAX_SIZES else range(count)
    return data, count, [read_size(source.samples[index].image) for index in chosen]


def _describe_own(tree: Tree) -> dict[str, Any]:
    """The keys of data for lists, or for folders of images and of labels."""
    top = tree.top
    lists = {f"{split}_list": f"{split}.lst" for split in ("train", "val") if (top / f"{split}.lst").is_file()}
    folders = {name.partition("/")[0] for name in tree.files if "/" in name}
    if "train_list" not in lists and not {"images", "labels"} <= folders:
        raise _unknown_layout(tree)
    data: dict[str, Any] = {"dataset": "folder", **lists}
    has_val = "val_list" in lists or any(name.startswith("images/val/") for name in tree.images)
    if not has_val:
        data |= {"val_fraction": VAL_FRACTION, "val_seed": 0}
    table = tree.labels or read_table(tree)[0] or discover_table(_labels(data, top))
    classes = list(dict.fromkeys(name for name in table.values() if name is not None))
    return {**data, "classes": classes, "labels": table}


def _open_settings(data: Mapping[str, Any], folder: Path) -> datasets.Data:
    """The section data of a preset with these keys."""
    return datasets.settings_of(data["dataset"]).model_validate({"root": str(folder), "crop": [8, 8], **data})


def _labels(data: Mapping[str, Any], top: Path) -> list[Path]:
    """The label files of the training images, and of those to validate on."""
    settings = _open_settings({**data, "classes": ["any"]}, top)
    splits: list[Samples] = [open_source(settings, split).samples for split in ("train", "val")]
    return [sample.label for samples in splits for sample in samples if sample.label]


def _unknown_layout(tree: Tree) -> InputError:
    what, new = f"folder {tree.top}", f"{posixpath.basename(str(tree.top.resolve()))}-labels"
    try:
        title = annotations.FORMATS[annotations.recognise(tree)].title
    except InputError:
        why = "holds no data set known by its folders, and no images/ with labels/"
        return InputError(what, why, "describe your data in a preset (--preset FILE); see ccnet guide data")
    fix = f"run ccnet data convert {tree.top} {new}, then ccnet train --data {new}"
    return InputError(what, f"holds {title}, which have to be drawn as labels first", fix)
