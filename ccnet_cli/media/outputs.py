"""Segmentations as files: their formats, their names below a folder, and what must not be overwritten."""

import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ccnet_cli import files
from ccnet_cli.errors import InputError
from ccnet_cli.media import images, video
from ccnet_cli.media.classes import Classes

FORMATS = ("color", "overlay", "train-id", "label-id")
# a video's codec changes colours a little, so that ids would not survive
VIDEO_FORMATS = ("color", "overlay")


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats once each, in order; InputError names an unknown one."""
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"format {name}", "unknown", f"choose from {', '.join(FORMATS)}")
    if not formats:
        raise InputError("formats", "none given", f"choose from {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(formats))


def destinations(folder: Path, name: str, formats: Sequence[str], suffix: str = ".png") -> dict[str, Path]:
    """Where each format of the image called name is written below folder; each has a folder of its own if several."""
    return {
        format: inside(folder / format if len(formats) > 1 else folder, name + suffix, folder) for format in formats
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


def whole(path: Path) -> bool:
    """Whether an output is there and can be read to its end: a PNG, an npz or a video."""
    try:
        if path.suffix.lower() == ".png":
            images.size(path)
        elif path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as file:
                return file.testzip() is None
        else:
            video.inspect(path)
    except (InputError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return False
    return True


def write_probabilities(path: Path, probabilities_KHW: np.ndarray, classes: Classes) -> None:
    """Write an npz of probabilities (K, H, W) and classes, the K names."""
    content = io.BytesIO()
    np.savez_compressed(content, probabilities=probabilities_KHW, classes=np.array(classes.names))
    files.write_bytes(path, content.getvalue())


def write(path: Path, format: str, ids: np.ndarray, image_bgr: np.ndarray, classes: Classes) -> None:
    """Write one segmentation, making its folder; ids are train ids (H, W) uint8, every one of them a class.

    color: a palette PNG, so it shows colours and keeps train ids. overlay: the colours over the image, half and half.
    train-id, label-id: grey PNGs of train ids or of the data set's own ids.
    """
    if format == "color":
        images.write_label(path, ids, classes.palette)
    elif format == "overlay":
        images.write_image(path, drawn(format, ids, image_bgr, classes))
    elif format == "train-id":
        images.write_label(path, ids)
    elif format == "label-id":
        images.write_label(path, np.array(classes.label_ids, np.uint8)[ids])
    else:
        raise ValueError(f"unknown format {format}")


def drawn(format: str, ids: np.ndarray, image_bgr: np.ndarray, classes: Classes) -> np.ndarray:
    """The class colours, or as overlay the mean of image and class colours, uint8 BGR (H, W, 3)."""
    colors = images.colorize(ids, classes.palette)
    return colors if format == "color" else ((image_bgr.astype(np.uint16) + colors) // 2).astype(np.uint8)
