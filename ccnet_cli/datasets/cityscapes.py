"""Cityscapes: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY, or the official two-column lists."""

from pathlib import Path

from ccnet_cli import config
from ccnet_cli.datasets.listing import find_list, folder, folder_name, lists_train_ids, pair, read_list, scan
from ccnet_cli.datasets.source import IGNORED, LABEL_IDS, TRAIN_IDS, Classes, Source, lookup

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
LOOKUPS = {
    # 255 is the licence plate, -1, in eight bits
    LABEL_IDS: lookup(
        {label_id: train_id for train_id, (_, label_id, _) in enumerate(TABLE)}, [*range(LAST_LABEL_ID + 1), 255]
    ),
    TRAIN_IDS: lookup({train_id: train_id for train_id in range(len(TABLE))}, [IGNORED]),
}


def open_cityscapes(data: config.Data, root: Path, split: str, labels_required: bool) -> Source:
    """The split of a list file, or of the official folders where none is given; labelIds, or train ids if so named."""
    if listing := find_list(data, root, split):
        samples = read_list(listing, root, unique=split != "train", labels_required=labels_required)
        kind = TRAIN_IDS if lists_train_ids(listing, samples) else LABEL_IDS
        return Source(data.dataset, samples, CLASSES, LOOKUPS[kind], label_kind=kind, listing=listing)
    name = folder_name(data, split)
    images = folder(root / "leftImg8bit" / name, "leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png")
    labels = root / "gtFine" / name
    if labels_required:
        folder(labels, "gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png")
    found = scan(labels, ("_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"))
    only_train_ids = bool(found) and not any(path.endswith("_labelIds.png") for path in found)
    kind = TRAIN_IDS if only_train_ids else LABEL_IDS
    suffix = "_gtFine_labelTrainIds.png" if only_train_ids else "_gtFine_labelIds.png"
    samples = pair(images, labels, lambda image: image.rpartition(".")[0].removesuffix("_leftImg8bit") + suffix)
    return Source(data.dataset, samples, CLASSES, LOOKUPS[kind], label_kind=kind)
