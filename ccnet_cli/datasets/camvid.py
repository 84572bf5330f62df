"""CamVid in its 11-class form: SPLIT/NAME.png and SPLITannot/NAME.png, value 11 void."""

from pathlib import Path

from ccnet_cli.datasets.dataset import DataSet, Split
from ccnet_cli.datasets.listing import Samples, pair
from ccnet_cli.datasets.settings import Data
from ccnet_cli.media.classes import Classes

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


def list_files(split: Split) -> Samples:
    """The folders SPLIT and SPLITannot."""
    images = split.images(split.root / split.folder, "SPLIT/NAME.png")
    return pair(images, split.labels(split.root / f"{split.folder}annot", "SPLITannot/NAME.png"))


def recognise(folder: Path) -> bool:
    """Whether a folder SPLIT lies beside a folder SPLITannot."""
    return any(
        path.is_dir() and path.with_name(path.name.removesuffix("annot")).is_dir() for path in folder.glob("*annot")
    )


def find_frame(data: Data, root: Path, image: Path) -> Path:
    """The folder of all frames, extracted from the videos; they are named as the images are, by numbers."""
    return root / ((data.clip and data.clip.folder) or "frames") / image.name


DATASET = DataSet(CLASSES, list_files, ignored=(VOID,), recognise=recognise, frames=find_frame)
