"""Your own data: any folders of images and label maps, or a list file; class names and colours come from the preset."""

import colorsys
from pathlib import Path

from ccnet_cli import config
from ccnet_cli.datasets.listing import find_list, folder, folder_name, pair, read_list
from ccnet_cli.datasets.source import Classes, Source, lookup
from ccnet_cli.errors import InputError


def classes_of(data: config.Data) -> Classes:
    """The preset's class names and colours; InputError where they do not go together."""
    if data.classes is None:
        raise InputError("preset key data.classes", "missing", "list the class names, label value 0 first")
    count = len(data.classes)
    colours = data.palette or distinct(count)
    if data.ignore_index < count or len(colours) != count:
        why = f"{count} classes do not go with ignore_index {data.ignore_index} and {len(colours)} colours"
        raise InputError("preset key data.classes", why, "name every class once, and ignore a value above them")
    return Classes(tuple(data.classes), tuple(colours), tuple(range(count)))


def open_folder(data: config.Data, root: Path, split: str, labels_required: bool) -> Source:
    """The split of a list file, of the folders that the preset names, or of images/SPLIT and labels/SPLIT."""
    classes = classes_of(data)
    count = len(classes)
    table = lookup({value: value for value in range(count)}, [data.ignore_index])
    if listing := find_list(data, root, split):
        samples = read_list(listing, root, unique=split != "train", labels_required=labels_required)
        return Source(data.dataset, samples, classes, table, listing=listing)
    name = folder_name(data, split)
    images, labels = {
        "train": (data.train_images, data.train_labels),
        "val": (data.val_images, data.val_labels),
    }.get(split, (None, None))
    image_folder = folder(root / (images or f"images/{name}"), "a folder of images")
    label_folder = root / (labels or f"labels/{name}")
    if labels_required:
        folder(label_folder, "a folder of label maps, PNGs named as the images are")
    return Source(data.dataset, pair(image_folder, label_folder), classes, table)


def distinct(count: int) -> list[tuple[int, int, int]]:
    """Up to 255 RGB colours, no two alike: hues a golden angle apart, at three brightnesses in turn."""
    colours = []
    for index in range(count):
        red, green, blue = colorsys.hsv_to_rgb(index * 0.61803398875 % 1, 0.85 - index % 2 * 0.35, 1 - index % 3 * 0.25)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours
