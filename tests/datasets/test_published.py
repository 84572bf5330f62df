import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import png
from dataset_files import LABEL_TO_TRAIN, STREET, picture, put, settings

from ccnet_cli.datasets import cityscapes, known_classes, lip, recognise
from ccnet_cli.datasets.report import check
from ccnet_cli.datasets.source import load_label, load_pair, looks_like_train_ids, open_source
from ccnet_cli.errors import InputError
from ccnet_cli.media.classes import Classes

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"


def test_cityscapes_folders_are_read_in_order(streets):
    source = open_source(settings(streets, "cityscapes"), "train")
    assert [sample.name for sample in source.samples] == [
        "bonn/bonn_000000_leftImg8bit",
        "ulm/ulm_000000_leftImg8bit",
        "ulm/ulm_000001_leftImg8bit",
    ]
    assert source.samples[1].label == streets / "gtFine/train/ulm/ulm_000000_gtFine_labelIds.png"
    assert len(open_source(settings(streets, "cityscapes"), "val").samples) == 2
    assert len(source.classes) == 19
    image, label = load_pair(source, source.samples[0])
    assert image.shape == (*label.shape, 3)


def test_cityscapes_label_ids_become_train_ids(streets):
    every = np.arange(34, dtype=np.uint8).reshape(2, 17)
    put(streets / "leftImg8bit/one/ulm/a_leftImg8bit.png", picture(every))
    put(streets / "gtFine/one/ulm/a_gtFine_labelIds.png", png(every))
    source = open_source(settings(streets, "cityscapes", val_split="one"), "val")
    label = load_label(source, source.samples[0])
    assert label.dtype == np.uint8
    assert label.ravel().tolist() == [LABEL_TO_TRAIN.get(value, 255) for value in range(34)]
    assert dict(zip(source.classes.label_ids, range(19), strict=True)) == LABEL_TO_TRAIN


def test_a_split_without_labels_can_be_opened_for_prediction(streets):
    put(streets / "leftImg8bit/test/rom/a_leftImg8bit.png", picture(STREET))
    source = open_source(settings(streets, "cityscapes"), "test", labels_required=False)
    assert [sample.label for sample in source.samples] == [None]
    with pytest.raises(InputError, match="gtFine/test"):
        open_source(settings(streets, "cityscapes"), "test")


def train_ids(streets):
    """The street's labels as train ids, under the name that says so, beside the label ids."""
    path = streets / "gtFine/val/jena/jena_000000_gtFine_labelTrainIds.png"
    values = np.vectorize(lambda value: LABEL_TO_TRAIN.get(value, 255))(STREET)
    put(path, png(values))
    return path, values


def test_files_named_train_ids_are_taken_as_they_are(streets):
    path, values = train_ids(streets)
    put(
        streets / "val.lst",
        b"leftImg8bit/val/jena/jena_000000_leftImg8bit.png " + os.fsencode(path.relative_to(streets)),
    )
    source = open_source(settings(streets, "cityscapes", val_list="val.lst"), "val")
    np.testing.assert_array_equal(load_label(source, source.samples[0]), values)
    for label in (streets / "gtFine").rglob("*_labelIds.png"):
        label.unlink()
    source = open_source(settings(streets, "cityscapes"), "val", labels_required=False)
    np.testing.assert_array_equal(load_label(source, source.samples[0]), values)


def test_one_list_does_not_mix_label_ids_and_train_ids(streets):
    train_ids(streets)
    image = "leftImg8bit/val/jena/jena_00000{0}_leftImg8bit.png gtFine/val/jena/jena_00000{0}_gtFine_label{1}.png\n"
    put(streets / "val.lst", (image.format(0, "TrainIds") + image.format(1, "Ids")).encode())
    with pytest.raises(InputError, match="labelTrainIds"):
        open_source(settings(streets, "cityscapes", val_list="val.lst"), "val")


def test_train_ids_under_the_name_of_label_ids_are_noticed(streets):
    path, _ = train_ids(streets)
    path.rename(path.with_name("jena_000000_gtFine_labelIds.png"))
    source = open_source(settings(streets, "cityscapes"), "val")
    with pytest.raises(InputError, match="look like train ids"):
        load_label(source, source.samples[0])


@pytest.mark.parametrize(
    ("present", "train_ids"),
    [
        ([6, 255], True),
        ([0, 18, 255], True),
        ([0, 34, 255], True),
        ([7, 18, 255], False),
        ([0, 1, 6], False),
        ([0, 19, 255], False),
        ([6, 33, 255], False),
    ],
)
def test_train_ids_are_255_beside_0_to_6_without_19_to_33(present, train_ids):
    assert looks_like_train_ids(np.array(present)) == train_ids


def test_train_ids_without_a_void_pixel_are_noticed_over_the_whole_set(streets):
    for label in (streets / "gtFine/val").rglob("*_labelIds.png"):
        label.write_bytes(png(STREET % 19))
    report = check(open_source(settings(streets, "cityscapes"), "val"))
    assert ["train ids" in problem for problem in report.problems] == [True]
    # a traffic light, 19, is the first label id that is no train id
    label.write_bytes(png(np.minimum(STREET, 19)))
    assert check(open_source(settings(streets, "cityscapes"), "val")).problems == ()


def test_label_ids_under_the_name_of_train_ids_are_refused(streets):
    path, _ = train_ids(streets)
    path.write_bytes(png(STREET))
    put(
        streets / "val.lst",
        b"leftImg8bit/val/jena/jena_000000_leftImg8bit.png " + os.fsencode(path.relative_to(streets)),
    )
    source = open_source(settings(streets, "cityscapes", val_list="val.lst"), "val")
    with pytest.raises(InputError, match=r"value 23, 24, 26, 29, 31, 33 .*look like labelIds"):
        load_label(source, source.samples[0])


def test_instance_ids_and_strange_values_are_refused(streets):
    source = open_source(settings(streets, "cityscapes"), "val")
    label = source.samples[0].label
    label.write_bytes(png(STREET.astype(int) * 1000, 16))
    with pytest.raises(InputError, match="instance ids"):
        load_label(source, source.samples[0])
    label.write_bytes(png(STREET + 1))
    with pytest.raises(InputError, match="value 34 is no label"):
        load_label(source, source.samples[0])
    # void and licence plate beside things that are no train ids: label ids for sure
    label.write_bytes(png(np.array([[0, 255, 26, 7], [3, 255, 26, 7], [3, 255, 26, 7]])))
    assert load_label(source, source.samples[0])[0].tolist() == [255, 255, 13, 0]
    label.write_bytes(png(np.full_like(STREET, 255)))
    assert (load_label(source, source.samples[0]) == 255).all()


def test_toyscapes_uses_the_reader_and_classes_of_cityscapes(streets):
    source = open_source(settings(streets, "toyscapes"), "val")
    assert (source.dataset, source.classes) == ("toyscapes", cityscapes.CLASSES)


def test_camvid_ignores_value_eleven(drives):
    source = open_source(settings(drives, "camvid"), "val")
    label = load_label(source, source.samples[0])
    assert label.ravel().tolist() == [*range(11), 255]
    assert source.classes.names[2:5] == ("pole", "road", "pavement")
    put(drives / "valannot/a.png", png(np.full((2, 6), 12)))
    with pytest.raises(InputError, match="value 12 "):
        load_label(source, source.samples[0])


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the CamVid photographs are not here")
def test_the_camvid_photographs_are_read():
    for split, count in (("train", 160), ("val", 60)):
        source = open_source(settings(CAMVID, "camvid"), split)
        assert len(source.samples) == count
        report = check(dataclasses.replace(source, samples=source.samples[:12]))
        assert report.problems == ()
        assert report.sizes == {"480x360": 12}
        # a street: mostly road, building and sky
        assert sum(report.pixels[name] for name in ("road", "building", "sky")) > 0.4 * 12 * 480 * 360


# facts of the published sets, written down a second time: their number of classes, and some of them by train id
PUBLISHED = {
    "cityscapes": (19, {0: ("road", (128, 64, 128)), 13: ("car", (0, 0, 142)), 18: ("bicycle", (119, 11, 32))}),
    "camvid": (11, {0: ("sky", (128, 128, 128)), 8: ("car", (64, 0, 128)), 10: ("bicyclist", (0, 128, 192))}),
    "ade20k": (150, {0: ("wall", (120, 120, 120)), 12: ("person", (150, 5, 61)), 149: ("flag", (92, 0, 255))}),
    "voc": (21, {0: ("background", (0, 0, 0)), 15: ("person", (192, 128, 128)), 20: ("tvmonitor", (0, 64, 128))}),
    "lip": (20, {0: ("background", (0, 0, 0)), 14: ("left arm", (51, 170, 221)), 19: ("right shoe", (255, 170, 0))}),
    "cocostuff": (171, {0: ("person", (0, 192, 64)), 80: ("banner", (0, 192, 0)), 170: ("wood", (64, 64, 0))}),
}


# sha256 of all names, colours, label ids and pairs, once compared with what was published
DIGESTS = {
    "cityscapes": "b528dce984c73245",
    "camvid": "086b1551ecc538ae",
    "ade20k": "63dbc72f06665bca",
    "voc": "6dfc5ae4a18dd1cc",
    "lip": "4b371792c9885dbc",
    "cocostuff": "365ce313af47c4e7",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_classes_are_the_published_ones(name):
    classes = known_classes()[name]
    content = json.dumps(classes.to_mapping(), sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest()[:16] == DIGESTS[name]
    count, some = PUBLISHED[name]
    assert len(classes) == len(set(classes.names)) == count
    for train_id, (word, colour) in some.items():
        assert (classes.names[train_id], classes.palette[train_id]) == (word, colour)
    assert all(word == word.strip() and word for word in classes.names)


@pytest.mark.parametrize(("made", "name"), [("scenes", "ade20k"), ("objects", "voc"), ("persons", "lip")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_published_set_is_sound_as_it_is_unpacked(made, name, split, request):
    root = request.getfixturevalue(made)
    report = check(open_source(settings(root, name), split))
    assert report.problems == ()
    assert report.labels == report.images > 0


def test_ade20k_ignores_value_zero_and_numbers_its_classes_from_one(scenes):
    source = open_source(settings(scenes, "ade20k"), "val")
    assert [sample.name for sample in source.samples] == ["ADE_00000001"]
    label = load_label(source, source.samples[0])
    assert label.ravel().tolist() == [255, *range(150), 255, 0, 1]
    assert source.classes.label_ids == tuple(range(1, 151))
    inside = open_source(settings(scenes / "ADEChallengeData2016", "ade20k"), "val")
    assert list(inside.samples) == list(source.samples)
    put(source.samples[0].label, png(np.full((7, 22), 151)))
    with pytest.raises(
        InputError, match=r"value 151 is no label of ade20k \(0 to 150, 255\); correct the file, or data\.dataset"
    ):
        load_label(source, source.samples[0])


def test_voc_trains_on_the_augmented_set_where_it_lies(objects):
    data = settings(objects, "voc")
    source = open_source(data, "train")
    assert [(sample.name, sample.label.parent.name) for sample in source.samples] == [
        ("a", "SegmentationClass"),
        ("e", "SegmentationClassAug"),
        ("b", "SegmentationClass"),
        ("d", "SegmentationClassAug"),
    ]
    assert [int(load_label(source, sample)[-1, -1]) for sample in source.samples] == [0, 4, 1, 3]
    assert (load_label(source, source.samples[0])[0, :3] == 255).all()
    sets = objects / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (sets / "trainaug.txt").unlink()
    source = open_source(data, "train")
    assert [sample.name for sample in source.samples] == ["a", "b", "e", "d"]
    (sets / "aug.txt").unlink()
    with pytest.raises(InputError, match=r"aug\.txt: does not exist"):
        open_source(data, "train")
    (objects / "VOCdevkit/VOC2012/SegmentationClassAug").rename(objects / "elsewhere")
    assert [sample.name for sample in open_source(data, "train").samples] == ["a", "b"]


def test_voc_reads_its_own_lists_from_any_of_its_folders(objects):
    for root in (objects, objects / "VOCdevkit", objects / "VOCdevkit/VOC2012"):
        source = open_source(settings(root, "voc"), "val")
        assert [(sample.name, sample.line) for sample in source.samples] == [("c", 1)]
        assert open_source(settings(root, "voc", train_split="aug"), "train").samples[0].name == "e"
    with pytest.raises(InputError, match=r"test\.txt line 1: image .*f\.jpg: does not exist"):
        open_source(settings(objects, "voc"), "test", labels_required=False)


def test_lip_follows_its_lists_or_takes_all(persons):
    data = settings(persons, "lip")
    assert [sample.name for sample in open_source(data, "train").samples] == ["77_2", "77_1"]
    put(persons / "val_id.txt", b"100_1\n100_1\n")
    with pytest.raises(InputError, match=r"val_id\.txt line 2: names 100_1 again"):
        open_source(data, "val")
    put(persons / "train_id.txt", b"77_1\n")
    assert [sample.name for sample in open_source(data, "train").samples] == ["77_1"]
    (persons / "train_id.txt").unlink()
    source = open_source(data, "train")
    assert [sample.name for sample in source.samples] == ["77_1", "77_2"]
    assert load_label(source, source.samples[0]).ravel().tolist() == list(range(20))


def test_lip_is_read_as_it_was_packed(persons):
    source = open_source(settings(persons, "lip"), "val")
    before = load_label(source, source.samples[0])
    packed = persons / "packed"
    for inner in ("TrainVal_images", "TrainVal_parsing_annotations/TrainVal_parsing_annotations"):
        (packed / inner).mkdir(parents=True)
    for path in list(persons.iterdir()):
        if path != packed:
            inner = "TrainVal_parsing_annotations/" * 2 if "segmentations" in path.name else "TrainVal_images"
            path.rename(packed / inner / path.name)
    source = open_source(settings(packed, "lip"), "val")
    np.testing.assert_array_equal(load_label(source, source.samples[0]), before)
    assert recognise(packed) == "lip"


def test_lip_pairs_left_and_right():
    classes = lip.CLASSES
    assert classes.mirrored == ((14, 15), (16, 17), (18, 19))
    assert [(classes.names[one], classes.names[other]) for one, other in classes.mirrored] == [
        (f"left {limb}", f"right {limb}") for limb in ("arm", "leg", "shoe")
    ]
    mapping = classes.to_mapping()
    assert mapping["mirrored"] == [[14, 15], [16, 17], [18, 19]]
    assert Classes.from_mapping(mapping) == classes
    # a checkpoint of classes that know no left and right is what it always was
    assert "mirrored" not in cityscapes.CLASSES.to_mapping()
    for bad in ([[14, 20]], [[14, 14]], [[14, 15], [15, 16]], [[-1, 3]], [[1, 2, 3]], 4):
        with pytest.raises((ValueError, TypeError)):
            Classes.from_mapping({**mapping, "mirrored": bad})


def test_coco_stuff_leaves_out_the_eleven_values_that_nothing_has(stuff):
    source = open_source(settings(stuff, "cocostuff"), "val")
    assert check(source).problems == ()
    assert load_label(source, source.samples[0]).ravel().tolist() == [*range(171), 255]
    assert (source.classes.label_ids[11], source.classes.label_ids[170]) == (12, 181)
    for value in (11, 90, 182):
        put(source.samples[0].label, png(np.full((4, 43), value)))
        with pytest.raises(InputError, match=f"value {value} "):
            load_label(source, source.samples[0])


def test_coco_stuff_takes_maps_that_are_converted_as_they_are(stuff):
    raw = stuff / "annotations/val2017/000000000009.png"
    converted = raw.with_name("000000000009_labelTrainIds.png")
    put(converted, png(np.array([*range(171), 255]).reshape(4, 43)))
    data = settings(stuff, "cocostuff", val_list="val.lst")
    for label in (raw, converted):
        put(stuff / "val.lst", f"images/val2017/000000000009.jpg {label}\n".encode())
        source = open_source(data, "val")
        assert load_label(source, source.samples[0]).ravel().tolist() == [*range(171), 255]
    mixed = zip(("val", "train"), (raw, converted), strict=True)
    put(stuff / "val.lst", "".join(f"images/{s}2017/000000000009.jpg {label}\n" for s, label in mixed).encode())
    with pytest.raises(InputError, match="labelTrainIds"):
        open_source(data, "val")
    # beside the published maps the converted ones are not used
    assert open_source(settings(stuff, "cocostuff"), "val").samples[0].label == raw
    raw.unlink()
    source = open_source(settings(stuff, "cocostuff"), "val")
    assert source.samples[0].label == converted
    assert load_label(source, source.samples[0]).ravel().tolist() == [*range(171), 255]


@pytest.mark.parametrize("name", ["ade20k", "voc", "lip", "cocostuff"])
def test_a_published_set_that_is_not_there_is_told_with_what_was_expected(name, tmp_path):
    with pytest.raises(InputError, match=r"does not exist; expected .*NAME|does not exist; expected images/"):
        open_source(settings(tmp_path, name), "val")
    (tmp_path / "images/validation").mkdir(parents=True)
    (tmp_path / "images/val2017").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "val_images").mkdir()
    with pytest.raises(InputError, match=r"(annotations|SegmentationClass|segmentations).*: does not exist; expected "):
        open_source(settings(tmp_path, name), "val")
