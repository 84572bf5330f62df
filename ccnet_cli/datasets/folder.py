"""Your own data: any folders of images and label maps, or a list file; class names and colours come from the preset."""

import colorsys

from ccnet_cli.datasets.dataset import DataSet, Split
from ccnet_cli.datasets.listing import Samples, pair
from ccnet_cli.datasets.settings import FolderData
from ccnet_cli.media.classes import Classes


def classes_of(data: FolderData) -> Classes:
    """The preset's class names and colours; the values are 0, 1, 2, ..."""
    assert data.classes is not None, "FolderData requires classes"
    count = len(data.classes)
    return Classes(tuple(data.classes), tuple(data.palette or distinct_colours(count)), tuple(range(count)))


def list_files(split: Split) -> Samples:
    """The folders that the preset names, or images/SPLIT and labels/SPLIT."""
    images, labels = {
        "train": (split.data.train_images, split.data.train_labels),
        "val": (split.data.val_images, split.data.val_labels),
    }.get(split.name, (None, None))
    image_folder = split.images(split.root / (images or f"images/{split.folder}"), "a folder of images")
    expected = "a folder of label maps, PNGs named as the images are"
    return pair(image_folder, split.labels(split.root / (labels or f"labels/{split.folder}"), expected))


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """Up to 255 RGB colours, no two alike: hues a golden angle apart, at three brightnesses in turn."""
    colours = []
    for index in range(count):
        red, green, blue = colorsys.hsv_to_rgb(index * 0.61803398875 % 1, 0.85 - index % 2 * 0.35, 1 - index % 3 * 0.25)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours


DATASET = DataSet(classes_of, list_files, settings=FolderData)
