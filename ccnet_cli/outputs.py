"""Segmentations as files: their formats, their names below a folder, and what must not be overwritten."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ccnet_cli import images
from ccnet_cli.datasets import Classes
from ccnet_cli.errors import InputError

FORMATS = ("color", "overlay", "train-id", "label-id")


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats once each, in order; InputError names an unknown one."""
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"format {name}", "unknown", f"choose from {', '.join(FORMATS)}")
    if not formats:
        raise InputError("formats", "none given", f"choose from {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(formats))


def destinations(folder: Path, name: str, formats: Sequence[str]) -> dict[str, Path]:
    """Where each format of the image called name is written below folder; each has a folder of its own if several."""
    return {
        format: inside(folder / format if len(formats) > 1 else folder, f"{name}.png", folder) for format in formats
    }


def inside(folder: Path, name: str, root: Path | None = None) -> Path:
    """folder / name; InputError unless it stays below root (the folder itself if None), links followed."""
    root = folder if root is None else root
    path = folder / name
    parts = PurePosixPath(name.replace("\\", "/")).parts
    try:
        # resolve raises RuntimeError on a loop of links before Python 3.13
        contained = ".." not in parts and "\0" not in name and path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        contained = False
    if not contained:
        raise InputError(f"image name {name}", f"would be written outside {root}", "rename the image or its list entry")
    return path


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """InputError for the first path that is there already, unless overwrite, or that can never be a file."""
    for path in paths:
        if path.is_dir():
            raise InputError(path, "is a folder", "choose another name for the output")
        if not overwrite and os.path.lexists(path):
            raise InputError(path, "exists", "pass --overwrite, or choose another output")
        above = next((folder for folder in path.parents if folder.exists()), None)
        if above is not None and not above.is_dir():
            raise InputError(above, "is a file, not a folder", "choose another output")
        if above is not None and not os.access(above, os.W_OK):
            raise InputError(above, "cannot be written", "check its permissions, or choose another output")


def refuse_inputs(inputs: Iterable[Path], paths: Iterable[Path]) -> None:
    """InputError for the first path that is one of the inputs, links followed."""
    originals = {os.path.realpath(path) for path in inputs}
    for path in paths:
        if os.path.realpath(path) in originals:
            raise InputError(path, "is one of the images to segment, or its label", "choose another output")


def write(path: Path, format: str, ids: np.ndarray, image_bgr: np.ndarray, classes: Classes) -> None:
    """Write one segmentation, making its folder; ids are train ids (H, W) uint8, every one of them a class.

    color: a palette PNG, so it shows colours and keeps train ids. overlay: the colours over the image, half and half.
    train-id, label-id: grey PNGs of train ids or of the data set's own ids.
    """
    if format == "color":
        images.write_label(path, ids, classes.palette)
    elif format == "overlay":
        images.write_image(path, overlay(image_bgr, ids, classes))
    elif format == "train-id":
        images.write_label(path, ids)
    elif format == "label-id":
        images.write_label(path, np.array(classes.label_ids, np.uint8)[ids])
    else:
        raise ValueError(f"unknown format {format}")


def overlay(image_bgr: np.ndarray, ids: np.ndarray, classes: Classes) -> np.ndarray:
    """The mean of image and class colours, uint8 BGR (H, W, 3)."""
    colors = images.colorize(ids, classes.palette)
    return ((image_bgr.astype(np.uint16) + colors) // 2).astype(np.uint8)
