"""PASCAL VOC 2012, 21 classes, with the augmented training set where it lies beside; value 255 ignored."""

from pathlib import Path

from ccnet_cli import config
from ccnet_cli.datasets.listing import existing, find_list, folder, folder_name, home, named, read_list, read_names
from ccnet_cli.datasets.source import IGNORED, Classes, Source, coloured, lookup

# by label value: name and RGB
TABLE = """
background 000000, aeroplane 800000, bicycle 008000, bird 808000, boat 000080, bottle 800080, bus 008080, car 808080,
cat 400000, chair c00000, cow 408000, diningtable c08000, dog 400080, horse c00080, motorbike 408080, person c08080,
pottedplant 004000, sheep 804000, sofa 00c000, train 80c000, tvmonitor 004080
"""
NAMES, PALETTE = coloured(TABLE)
CLASSES = Classes(NAMES, PALETTE, tuple(range(len(NAMES))))
LOOKUP = lookup({value: value for value in CLASSES.label_ids}, [IGNORED])


def open_voc(data: config.Data, root: Path, split: str, labels_required: bool) -> Source:
    """The split of a list file, or of ImageSets/Segmentation/SPLIT.txt; the root is VOC2012, VOCdevkit or above it.

    Where SegmentationClassAug lies, train is the augmented set, trainaug.txt or train.txt and aug.txt; a label is taken
    from there if SegmentationClass has none.
    """
    if listing := find_list(data, root, split):
        samples = read_list(listing, root, unique=split != "train", labels_required=labels_required)
        return Source(data.dataset, samples, CLASSES, LOOKUP, listing=listing)
    top = home(root, "JPEGImages", ("VOC2012", "VOCdevkit/VOC2012"))
    images = folder(top / "JPEGImages", "JPEGImages/NAME.jpg")
    own, augmented = top / "SegmentationClass", top / "SegmentationClassAug"
    if labels_required:
        folder(own, "SegmentationClass/NAME.png")
    name = folder_name(data, split)
    sets = folder(top / "ImageSets/Segmentation", "the lists train.txt and val.txt")
    lists = [sets / f"{name}.txt"]
    if name == "train" and augmented.is_dir():
        whole = sets / "trainaug.txt"
        lists = [whole] if whole.exists() else [*lists, sets / "aug.txt"]
    names = [entry for path in lists for entry in read_names(path, unique=split != "train")]
    files = [f"{entry}.png" for entry, _ in names]
    there = existing(f"{own}/{file}" for file in files)
    labels = [(own if has_own else augmented) / file for file, has_own in zip(files, there, strict=True)]
    samples = named(names, images, labels)
    return Source(data.dataset, samples, CLASSES, LOOKUP, listing=lists[0] if len(lists) == 1 else None)
