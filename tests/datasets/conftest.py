"""Small data sets in the layouts of the published ones."""

import numpy as np
import pytest
from bad_inputs import jpeg, photograph, png
from dataset_files import STREET, picture, put


@pytest.fixture
def streets(tmp_path):
    """Three training and two validation images in Cityscapes' folders."""
    for split, city, number in [
        ("train", "ulm", 0),
        ("train", "ulm", 1),
        ("train", "bonn", 0),
        ("val", "jena", 0),
        ("val", "jena", 1),
    ]:
        name = f"{split}/{city}/{city}_{number:06}"
        put(tmp_path / f"leftImg8bit/{name}_leftImg8bit.png", picture(STREET))
        put(tmp_path / f"gtFine/{name}_gtFine_labelIds.png", png(STREET))
        put(tmp_path / f"gtFine/{name}_gtFine_instanceIds.png", png(STREET.astype(int) * 1000, 16))
    return tmp_path


@pytest.fixture
def own(tmp_path):
    """Two images with labels in images/SPLIT and labels/SPLIT."""
    for split in ("train", "val"):
        for name in ("x", "deep/y"):
            put(tmp_path / f"images/{split}/{name}.jpg", jpeg(photograph(6, 8)))
            put(tmp_path / f"labels/{split}/{name}.png", png(np.arange(48).reshape(6, 8) % 3))
    return tmp_path


@pytest.fixture
def drives(tmp_path):
    """A CamVid of one image and twelve values."""
    put(tmp_path / "val/a.png", picture(np.zeros((2, 6))))
    put(tmp_path / "valannot/a.png", png(np.arange(12).reshape(2, 6)))
    return tmp_path


@pytest.fixture
def scenes(tmp_path):
    """An ADE20K of one training and one validation image with every value; the first one's photograph is grey."""
    top = tmp_path / "ADEChallengeData2016"
    values = np.arange(154).reshape(7, 22) % 151
    for number, split in enumerate(("training", "validation")):
        image = photograph(7, 22)
        put(top / f"images/{split}/ADE_{number:08}.jpg", jpeg(image if number else image[..., 0]))
        put(top / f"annotations/{split}/ADE_{number:08}.png", png(values))
    put(top / "objectInfo150.txt", b"")
    return tmp_path


@pytest.fixture
def objects(tmp_path):
    """A VOC 2012 of five photographs: a and b to train on, c to score, d and e from the augmented set."""
    top = tmp_path / "VOCdevkit/VOC2012"
    colours = [(value, 0, 0) for value in range(256)]
    for index, name in enumerate("abcde"):
        put(top / f"JPEGImages/{name}.jpg", jpeg(photograph(4, 6)))
        values = np.where(np.arange(24).reshape(4, 6) < 3, 255, index)
        if name in "abc":
            put(top / f"SegmentationClass/{name}.png", png(values, colour=3, palette=colours))
        # the augmented labels of a and b differ: those of the challenge are to be used
        put(top / f"SegmentationClassAug/{name}.png", png(values if name in "de" else np.full((4, 6), 20)))
    for name, entries in {"train": "ab", "val": "c", "aug": "ed", "trainaug": "aebd", "test": "f"}.items():
        put(top / f"ImageSets/Segmentation/{name}.txt", "".join(f"{entry}\n" for entry in entries).encode())
    return tmp_path


@pytest.fixture
def persons(tmp_path):
    """A LIP of two training images and one to score, every class in each."""
    for split, names in {"train": ("77_1", "77_2"), "val": ("100_1",)}.items():
        for name in names:
            put(tmp_path / f"{split}_images/{name}.jpg", jpeg(photograph(4, 5)))
            put(tmp_path / f"{split}_segmentations/{name}.png", png(np.arange(20).reshape(4, 5)))
        put(tmp_path / f"{split}_id.txt", "\r\n".join(reversed(names)).encode())
    return tmp_path


@pytest.fixture
def stuff(tmp_path):
    """A COCO-Stuff of an image in each split, every value of the published maps in each."""
    used = [value for value in range(182) if value not in (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)]
    for split in ("train2017", "val2017"):
        put(tmp_path / f"images/{split}/000000000009.jpg", jpeg(photograph(4, 43)))
        put(tmp_path / f"annotations/{split}/000000000009.png", png(np.array([*used, 255]).reshape(4, 43)))
    put(tmp_path / "annotations/instances_val2017.json", b"{}")
    return tmp_path
