"""Segmentations as files: formats, and names below a folder."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from ccnet_cli import files
from ccnet_cli.errors import InputError
from ccnet_cli.media import images, rasters, video
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import Pixels

FORMATS = ("color", "overlay", "train-id", "label-id", "overlay-legend")
# a video's codec changes values a little, so it cannot hold ids
VIDEO_FORMATS = ("color", "overlay")


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats without repeats, in order; InputError for an unknown one."""
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"format {name}", "unknown", f"choose from {', '.join(FORMATS)}")
    if not formats:
        raise InputError("formats", "none given", f"choose from {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(formats))


def destinations(folder: Path, name: str, formats: Sequence[str], suffix: str = ".png") -> dict[str, Path]:
    """The file of each format of the image called name; of several formats, each has its own folder below folder."""
    return {
        format: path_inside(folder / format if len(formats) > 1 else folder, name + suffix, folder)
        for format in formats
    }


def path_inside(folder: Path, name: str, root: Path | None = None) -> Path:
    """folder / name; InputError unless it stays below root (the folder itself if None), following links."""
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


def is_complete(path: Path) -> bool:
    """Whether an output, a PNG, an npz or a video, exists and can be read to its end."""
    try:
        if path.suffix.lower() == ".png":
            images.read_size(path)
        elif rasters.is_raster(path):
            return rasters.is_whole(path)
        elif path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as file:
                return file.testzip() is None
        elif path.suffix.lower() in video.ANIMATIONS:
            return video.is_whole_animation(path)
        elif video.is_cut(path):
            return False
        else:
            video.inspect(path)
    except (InputError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return False
    return True


def write_probabilities(path: Path, probabilities_KHW: npt.NDArray[np.float32], classes: Classes) -> None:
    """Write an npz with probabilities (K, H, W) and classes, the K names."""
    content = io.BytesIO()
    np.savez_compressed(content, probabilities=probabilities_KHW, classes=np.array(classes.names))
    files.write_bytes(path, content.getvalue())


def values_of(format: str, ids: Pixels, image_bgr: Pixels, classes: Classes) -> Pixels:
    """What a file of that format holds: (H, W) values or, of an overlay, BGR (H, W, 3)."""
    if format == "overlay":
        return draw(format, ids, image_bgr, classes)
    return np.array(classes.label_ids, np.uint8)[ids] if format == "label-id" else ids.copy()


def gap_value(format: str, classes: Classes) -> int:
    """The value, of no class, of pixels that do not count: 255 or, where it is a label id, the first that is none."""
    used = classes.label_ids if format == "label-id" else tuple(range(len(classes)))
    return 255 if 255 not in used else min({*range(256)} - {*used})


def write(path: Path, format: str, ids: Pixels, image_bgr: Pixels, classes: Classes) -> None:
    """Write one segmentation and make its folder; ids are train ids (H, W) uint8, all of them classes.

    color: a palette PNG, which shows colours and holds train ids. overlay: the mean of the colours and the image.
    overlay-legend: the overlay beside the names of the classes in it, those of most pixels first.
    train-id, label-id: grey PNGs of train ids or of the data set's own ids.
    """
    if format == "color":
        images.write_label(path, ids, classes.palette)
    elif format == "overlay":
        images.write_image(path, draw(format, ids, image_bgr, classes))
    elif format == "overlay-legend":
        images.write_image(path, draw_with_legend(ids, image_bgr, classes))
    elif format == "train-id":
        images.write_label(path, ids)
    elif format == "label-id":
        images.write_label(path, np.array(classes.label_ids, np.uint8)[ids])
    else:
        raise ValueError(f"unknown format {format}")


def draw(format: str, ids: Pixels, image_bgr: Pixels, classes: Classes) -> Pixels:
    """The class colours, or with format overlay their mean with the image, BGR (H, W, 3)."""
    colors = images.colorize(ids, classes.palette)
    # the mean, rounded down, without wider numbers
    return colors if format == "color" else (image_bgr & colors) + ((image_bgr ^ colors) >> 1)


def draw_with_legend(ids: Pixels, image_bgr: Pixels, classes: Classes) -> Pixels:
    """The overlay, and right of it the colours and names of the classes in it, BGR on white."""
    counts = np.bincount(ids.ravel(), minlength=len(classes))[: len(classes)]
    present = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index]]
    picture = draw("overlay", ids, image_bgr, classes)
    # letters as large as a page of this height would have, and the list no higher than the picture
    zoom = max(1.0, min(len(picture) / 480, len(picture) / (28 * len(present) + 12)))
    names, palette = [classes.names[index] for index in present], [classes.palette[index] for index in present]
    legend = images.draw_legend(names, palette, zoom)
    height = max(len(picture), len(legend))
    parts = (np.pad(each, ((0, height - len(each)), (0, 0), (0, 0)), constant_values=255) for each in (picture, legend))
    return np.concatenate([*parts], axis=1)
