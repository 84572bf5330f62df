"""Your own data: any folders of images and label maps, or a list file; class names and colours come from the preset."""

import colorsys
from pathlib import Path

from ccnet_cli import files
from ccnet_cli.datasets.dataset import DataSet, Split
from ccnet_cli.datasets.listing import Samples, pair_by_suffix, scan
from ccnet_cli.datasets.settings import FolderData
from ccnet_cli.media.classes import Classes


def classes_of(data: FolderData) -> Classes:
    """The preset's class names and colours; the values are 0, 1, 2, ..."""
    names, table = data.names, data.table
    own = table.colours_of(names) if table else None
    return Classes(tuple(names), tuple(data.palette or own or distinct_colours(len(names))), tuple(range(len(names))))


def list_files(split: Split) -> Samples:
    """The folders that the preset names, or images/SPLIT and labels/SPLIT, or with a label_suffix SPLIT alone."""
    data, parted = split.data, split.data.val_fraction is not None and split.name == "val"
    images, labels = {
        "train": (data.train_images, data.train_labels),
        "val": (data.train_images, data.train_labels) if parted else (data.val_images, data.val_labels),
    }.get(split.name, (None, None))
    folder = data.train_split if parted else split.folder
    shared = ["images", folder, "."] if data.val_fraction is not None else [folder, "."] if data.label_suffix else []
    found = images or _first(split.root, [f"images/{folder}", *shared])
    if labels is None:
        labels = "labels" if found == "images" and not images else f"labels/{folder}"
        if data.label_suffix and not (split.root / labels).is_dir():
            labels = found
    image_folder = split.images(split.root / found, "a folder of images")
    label_folder = split.labels(split.root / labels, "a folder of label maps, PNGs named as the images are")
    suffix = data.label_suffix or ".png"
    suffix = suffix if "." in suffix else f"{suffix}.png"
    if data.clip is not None:
        # it loads OpenCV
        from ccnet_cli.datasets.films import find_films, list_films

        if films := find_films(image_folder, label_folder, suffix):
            samples = list_films(image_folder, films, data.clip)
            if not scan(image_folder):
                return samples
            return Samples(samples.root, [*samples.rows, *pair_by_suffix(image_folder, label_folder, suffix).rows])
    return pair_by_suffix(image_folder, label_folder, suffix)


def _first(root: Path, names: list[str]) -> str:
    """The first of these folders that exists; the first of all if none does."""
    return next((name for name in names if (root / name).is_dir()), names[0])


def find_frame(data: FolderData, root: Path, image: Path) -> Path:
    """The folder data.clip.folder, or beside the image, as the frames of videos are."""
    apart = data.clip and data.clip.folder
    return root / apart / image.name if apart and files.cache_folder().absolute() not in image.parents else image


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """Up to 255 RGB colours, no two alike: hues a golden angle apart, at three brightnesses in turn."""
    colours = []
    for index in range(count):
        red, green, blue = colorsys.hsv_to_rgb(index * 0.61803398875 % 1, 0.85 - index % 2 * 0.35, 1 - index % 3 * 0.25)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours


DATASET = DataSet(classes_of, list_files, settings=FolderData, frames=find_frame)
