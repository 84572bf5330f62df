"""LIP, Look into Person: 20 classes, left and right limbs among them; SPLIT_images and SPLIT_segmentations."""

from pathlib import Path

from ccnet_cli.datasets.dataset import DataSet, Split, holds
from ccnet_cli.datasets.listing import Samples, find_home, name_pairs, pair, read_names
from ccnet_cli.media.classes import Classes, parse_colours

# by label value: name and RGB
TABLE = """
background 000000, hat 800000, hair ff0000, glove 005500, sunglasses aa0033, upper clothes ff5500, dress 000055,
coat 0077dd, socks 555500, pants 005555, jumpsuits 553300, scarf 345680, skirt 008000, face 0000ff, left arm 33aadd,
right arm 00ffff, left leg 55ffaa, right leg aaff55, left shoe ffff00, right shoe ffaa00
"""
NAMES, PALETTE = parse_colours(TABLE)
# a mirrored person's left arm is a right one, and so are leg and shoe
MIRRORED = tuple((NAMES.index(f"left {limb}"), NAMES.index(f"right {limb}")) for limb in ("arm", "leg", "shoe"))
CLASSES = Classes(NAMES, PALETTE, tuple(range(len(NAMES))), MIRRORED)


def list_files(split: Split) -> Samples:
    """The names in SPLIT_id.txt or, where it is missing, all of SPLIT_images.

    Images and labels lie in the root or, as they were packed, in TrainVal_images and TrainVal_parsing_annotations.
    """
    name = split.folder
    images = split.images(_locate(split.root, "TrainVal_images", f"{name}_images"), f"{name}_images/NAME.jpg")
    labels = _locate(split.root, "TrainVal_parsing_annotations", f"{name}_segmentations")
    split.labels(labels, f"{name}_segmentations/NAME.png")
    listing = _locate(split.root, "TrainVal_images", f"{name}_id.txt")
    if not listing.exists():
        return pair(images, labels)
    names = read_names(listing, unique=split.unique)
    return name_pairs(names, images, [labels / f"{name}.png" for name, _ in names], listing)


def _locate(root: Path, packed: str, name: str) -> Path:
    """The file or folder in the root, or in the folder that it was packed in, which may hold another of its name."""
    return find_home(root, name, (packed, f"{packed}/{packed}")) / name


DATASET = DataSet(
    CLASSES,
    list_files,
    recognise=holds(("TrainVal_images",), ("train_images", "train_segmentations"), ("val_images", "val_segmentations")),
)
