"""PASCAL VOC 2012, 21 classes, with the augmented training set where it lies beside; value 255 ignored."""

from ccnet_cli.datasets.dataset import DataSet, Split, holds
from ccnet_cli.datasets.listing import Samples, existing, find_home, name_pairs, read_names, require_folder
from ccnet_cli.media.classes import Classes, parse_colours

# by label value: name and RGB
TABLE = """
background 000000, aeroplane 800000, bicycle 008000, bird 808000, boat 000080, bottle 800080, bus 008080, car 808080,
cat 400000, chair c00000, cow 408000, diningtable c08000, dog 400080, horse c00080, motorbike 408080, person c08080,
pottedplant 004000, sheep 804000, sofa 00c000, train 80c000, tvmonitor 004080
"""
NAMES, PALETTE = parse_colours(TABLE)
CLASSES = Classes(NAMES, PALETTE, tuple(range(len(NAMES))))


def list_files(split: Split) -> Samples:
    """The names in ImageSets/Segmentation/SPLIT.txt; the root is VOC2012, VOCdevkit or above it.

    Where SegmentationClassAug lies, train is the augmented set, trainaug.txt or train.txt and aug.txt; a label is taken
    from there if SegmentationClass has none.
    """
    top = find_home(split.root, "JPEGImages", ("VOC2012", "VOCdevkit/VOC2012"))
    images = split.images(top / "JPEGImages", "JPEGImages/NAME.jpg")
    own = split.labels(top / "SegmentationClass", "SegmentationClass/NAME.png")
    augmented = top / "SegmentationClassAug"
    sets = require_folder(top / "ImageSets/Segmentation", "the lists train.txt and val.txt")
    lists = [sets / f"{split.folder}.txt"]
    if split.folder == "train" and augmented.is_dir():
        whole = sets / "trainaug.txt"
        lists = [whole] if whole.exists() else [*lists, sets / "aug.txt"]
    names = [entry for path in lists for entry in read_names(path, unique=split.unique)]
    files = [f"{entry}.png" for entry, _ in names]
    in_own = existing(f"{own}/{file}" for file in files)
    labels = [(own if exists else augmented) / file for file, exists in zip(files, in_own, strict=True)]
    return name_pairs(names, images, labels, lists[0] if len(lists) == 1 else None)


DATASET = DataSet(
    CLASSES,
    list_files,
    recognise=holds(("VOCdevkit/VOC2012",), ("VOC2012",), ("JPEGImages", "ImageSets/Segmentation")),
)
