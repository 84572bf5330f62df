"""LIP, Look into Person: 20 classes, left and right limbs among them; SPLIT_images and SPLIT_segmentations."""

from pathlib import Path

from ccnet_cli import config
from ccnet_cli.datasets.listing import find_list, folder, folder_name, home, named, pair, read_list, read_names
from ccnet_cli.datasets.source import IGNORED, Classes, Source, coloured, lookup

# by label value: name and RGB
TABLE = """
background 000000, hat 800000, hair ff0000, glove 005500, sunglasses aa0033, upper clothes ff5500, dress 000055,
coat 0077dd, socks 555500, pants 005555, jumpsuits 553300, scarf 345680, skirt 008000, face 0000ff, left arm 33aadd,
right arm 00ffff, left leg 55ffaa, right leg aaff55, left shoe ffff00, right shoe ffaa00
"""
NAMES, PALETTE = coloured(TABLE)
# a mirrored person's left arm is a right one, and so are leg and shoe
MIRRORED = tuple((NAMES.index(f"left {limb}"), NAMES.index(f"right {limb}")) for limb in ("arm", "leg", "shoe"))
CLASSES = Classes(NAMES, PALETTE, tuple(range(len(NAMES))), MIRRORED)
LOOKUP = lookup({value: value for value in CLASSES.label_ids}, [IGNORED])


def open_lip(data: config.Data, root: Path, split: str, labels_required: bool) -> Source:
    """The split of a list file; of SPLIT_id.txt; or of all of SPLIT_images, where there are no lists.

    Images and labels lie in the root or, as they were packed, in TrainVal_images and TrainVal_parsing_annotations.
    """
    if listing := find_list(data, root, split):
        samples = read_list(listing, root, unique=split != "train", labels_required=labels_required)
        return Source(data.dataset, samples, CLASSES, LOOKUP, listing=listing)
    name = folder_name(data, split)
    images = folder(_place(root, "TrainVal_images", f"{name}_images"), f"{name}_images/NAME.jpg")
    labels = _place(root, "TrainVal_parsing_annotations", f"{name}_segmentations")
    if labels_required:
        folder(labels, f"{name}_segmentations/NAME.png")
    ids = _place(root, "TrainVal_images", f"{name}_id.txt")
    if not ids.exists():
        return Source(data.dataset, pair(images, labels), CLASSES, LOOKUP)
    names = read_names(ids, unique=split != "train")
    samples = named(names, images, [labels / f"{name}.png" for name, _ in names])
    return Source(data.dataset, samples, CLASSES, LOOKUP, listing=ids)


def _place(root: Path, packed: str, name: str) -> Path:
    """Where a file or folder is: in the root, or in the folder that it was packed in, which may hold its like."""
    return home(root, name, (packed, f"{packed}/{packed}")) / name
