"""CamVid in its 11-class form: SPLIT/NAME.png and SPLITannot/NAME.png, value 11 void."""

from pathlib import Path

from ccnet_cli import config
from ccnet_cli.datasets.listing import beside, find_list, folder, folder_name, pair, read_list
from ccnet_cli.datasets.source import IGNORED, Classes, Source, lookup

VOID = 11
# by label value: name, RGB
TABLE = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (0, 0, 192)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
CLASSES = Classes(*zip(*((name, colour, value) for value, (name, colour) in enumerate(TABLE)), strict=True))
LOOKUP = lookup({value: value for value in range(len(TABLE))}, [VOID, IGNORED])


def open_camvid(data: config.Data, root: Path, split: str, labels_required: bool) -> Source:
    """The split of a list file, or of the folders SPLIT and SPLITannot where none is given."""
    if listing := find_list(data, root, split):
        samples = read_list(listing, root, unique=split != "train", labels_required=labels_required)
        return Source(data.dataset, samples, CLASSES, LOOKUP, listing=listing)
    name = folder_name(data, split)
    images = folder(root / name, "SPLIT/NAME.png")
    labels = root / f"{name}annot"
    if labels_required:
        folder(labels, "SPLITannot/NAME.png")
    return Source(data.dataset, pair(images, labels, beside), CLASSES, LOOKUP)
