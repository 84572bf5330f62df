"""Cityscapes: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY, or the official two-column lists."""

from pathlib import Path

from ccnet_cli.datasets.dataset import LABEL_IDS, DataSet, Split, holds
from ccnet_cli.datasets.listing import Samples, label_suffix, pair
from ccnet_cli.datasets.settings import Data
from ccnet_cli.media.classes import Classes

# train id, in order: name, labelId, RGB
TABLE = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES = Classes(*zip(*((name, colour, label_id) for name, label_id, colour in TABLE), strict=True))
LAST_LABEL_ID = 33


def list_files(split: Split) -> Samples:
    """The official folders; labelIds, or labelTrainIds where only these lie there."""
    images = split.images(split.root / "leftImg8bit" / split.folder, "leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png")
    labels = split.labels(split.root / "gtFine" / split.folder, "gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png")
    suffix = label_suffix(labels, "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png")
    return pair(images, labels, lambda stem: stem.removesuffix("_leftImg8bit") + suffix)


def find_frame(data: Data, root: Path, image: Path) -> Path:
    """leftImg8bit_sequence beside leftImg8bit: 30 frames around each labelled one, which is the 20th."""
    parts = ["leftImg8bit_sequence" if part == "leftImg8bit" else part for part in image.parts]
    folder = data.clip and data.clip.folder
    return root / folder / image.parent.name / image.name if folder else Path(*parts)


DATASET = DataSet(
    CLASSES,
    list_files,
    # 255, which data.ignore_index adds, is the licence plate, -1, in eight bits
    ignored=tuple(range(LAST_LABEL_ID + 1)),
    label_kind=LABEL_IDS,
    converted=True,
    recognise=holds(("leftImg8bit",)),
    frames=find_frame,
)
