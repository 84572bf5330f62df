import dataclasses
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import jpeg, photograph, png

from ccnet_cli import datasets
from ccnet_cli.datasets import cityscapes, folder, listing, recognise, settings_of
from ccnet_cli.datasets.listing import Samples
from ccnet_cli.datasets.report import check
from ccnet_cli.datasets.source import load_label, load_pair, open_source
from ccnet_cli.errors import InputError
from ccnet_cli.media import images
from ccnet_cli.media.classes import Classes

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"

# FACTS of the data set, written down a second time
LABEL_TO_TRAIN = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
LABEL_TO_TRAIN |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
STREET = np.array([[7, 8, 11, 23], [26, 33, 0, 4], [24, 31, 29, 3]], np.uint8)


def settings(root, dataset="folder", **keys):
    if dataset == "folder":
        keys.setdefault("classes", ["a", "b", "c"])
    return settings_of(dataset)(dataset=dataset, root=None if root is None else str(root), crop=(4, 4), **keys)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def picture(values):
    return png(photograph(*np.shape(values)), colour=2)


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


def listed(own, text, name="val.lst"):
    put(own / name, text if isinstance(text, bytes) else text.encode())
    return settings(own, val_list=name, train_list=name)


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


def test_the_official_lists_give_the_same_as_the_folders(streets):
    by_folder = open_source(settings(streets, "cityscapes"), "train")
    lines = [f"{s.image.relative_to(streets)}\t{s.label.relative_to(streets)}" for s in by_folder.samples]
    put(streets / "train.lst", "\n".join(lines).encode())
    by_list = open_source(settings(streets, "cityscapes", train_list="train.lst"), "train")
    assert [(s.image, s.label) for s in by_list.samples] == [(s.image, s.label) for s in by_folder.samples]


def test_a_test_list_has_one_column(streets):
    put(streets / "test.lst", b"leftImg8bit/val/jena/jena_000000_leftImg8bit.png\n")
    data = settings(streets, "cityscapes", val_list="test.lst")
    source = open_source(data, "val", labels_required=False)
    assert source.samples[0].label is None
    with pytest.raises(InputError, match=r"test\.lst line 1: two columns expected, found 1; write IMAGE LABEL"):
        open_source(data, "val")
    with pytest.raises(InputError, match="no label"):
        load_label(source, source.samples[0])


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


def test_train_ids_without_a_void_pixel_are_noticed_over_the_whole_set(streets):
    for label in (streets / "gtFine/val").rglob("*_labelIds.png"):
        label.write_bytes(png(STREET % 19))
    report = check(open_source(settings(streets, "cityscapes"), "val"))
    assert ["train ids" in problem for problem in report.problems] == [True]


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


@pytest.fixture
def drives(tmp_path):
    """A CamVid of one image and twelve values."""
    put(tmp_path / "val/a.png", picture(np.zeros((2, 6))))
    put(tmp_path / "valannot/a.png", png(np.arange(12).reshape(2, 6)))
    return tmp_path


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


def test_own_folders_are_read_at_any_depth(own):
    source = open_source(settings(own), "val")
    assert [sample.name for sample in source.samples] == ["deep/y", "x"]
    assert source.samples[0].label == own / "labels/val/deep/y.png"
    assert source.classes.names == ("a", "b", "c")
    assert len(set(source.classes.palette)) == 3
    assert load_label(source, source.samples[0]).ravel().tolist() == [value % 3 for value in range(48)]


def test_own_folders_may_have_any_name(own):
    (own / "images/val").rename(own / "photos")
    (own / "labels/val").rename(own / "masks")
    source = open_source(settings(own, val_images="photos", val_labels=str(own / "masks")), "val")
    assert source.samples[1].label == own / "masks/x.png"
    (own / "images/train").rename(own / "images/day")
    (own / "labels/train").rename(own / "labels/day")
    assert len(open_source(settings(own, train_split="day"), "train").samples) == 2


def test_the_ignored_value_of_own_data_becomes_255(own):
    path = put(own / "labels/val/x.png", png(np.where(np.arange(48).reshape(6, 8) < 9, 7, 2)))
    source = open_source(settings(own, ignore_index=7), "val")
    assert np.bincount(load_label(source, source.samples[1]).ravel()).tolist() == [0, 0, 39, *[0] * 252, 9]
    path.write_bytes(png(np.full((6, 8), 255)))
    with pytest.raises(InputError, match=r"value 255 is no label of folder \(0 to 2, 7\); .*data\.ignore_index"):
        load_label(source, source.samples[1])
    for value in (256 + 1, 65_535):
        path.write_bytes(png(np.full((6, 8), value), 16))
        with pytest.raises(InputError, match=f"{path}.*value {value} "):
            load_label(source, source.samples[1])
    path.write_bytes(png(np.full((6, 8), 2), 16))
    assert (load_label(source, source.samples[1]) == 2).all()


def test_image_and_label_of_different_sizes_are_refused(own):
    path = put(own / "labels/val/x.png", png(np.zeros((8, 6), int)))
    source = open_source(settings(own), "val")
    for load in (load_label, load_pair):
        with pytest.raises(InputError, match=f"{path}: is 6 x 8 pixels, its image .*x.jpg 8 x 6"):
            load(source, source.samples[1])


def test_a_missing_label_is_refused_before_anything_is_read(own, monkeypatch):
    (own / "labels/val/x.png").unlink()
    monkeypatch.setattr(images, "read_image", None)
    with pytest.raises(InputError, match=r"x\.jpg: has no label .*labels/val/x\.png"):
        open_source(settings(own), "val")
    source = open_source(settings(own), "val", labels_required=False)
    assert [sample.label is None for sample in source.samples] == [False, True]


def test_what_is_not_there_is_named(own, tmp_path):
    with pytest.raises(InputError, match=r"data\.root: missing"):
        open_source(settings(None), "val")
    with pytest.raises(InputError, match="nowhere: does not exist"):
        open_source(settings(own / "nowhere"), "val")
    with pytest.raises(InputError, match="is not a folder"):
        open_source(settings(own / "images/val/x.jpg"), "val")
    with pytest.raises(InputError, match="images/holdout: does not exist"):
        open_source(settings(own), "holdout")
    (own / "images/none").mkdir()
    (own / "labels/none").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        open_source(settings(own), "none")
    for dataset in ("cityscapes", "camvid"):
        with pytest.raises(InputError, match="does not exist"):
            open_source(settings(own, dataset), "val")


def test_two_images_of_one_name_are_refused(own):
    put(own / "images/val/x.png", picture(np.zeros((6, 8))))
    with pytest.raises(InputError, match="same name"):
        open_source(settings(own), "val")


def test_hidden_files_and_links_that_lead_back_are_left_out(own):
    put(own / "images/val/.x.jpg", b"")
    put(own / "images/val/.cache/z.jpg", b"")
    put(own / "images/val/notes.txt", b"")
    (own / "images/val/again").symlink_to(own / "images/val")
    assert len(open_source(settings(own), "val").samples) == 2


@pytest.mark.parametrize(
    "text",
    [
        "images/val/x.jpg labels/val/x.png\nimages/val/deep/y.jpg labels/val/deep/y.png\n",
        "images/val/x.jpg\tlabels/val/x.png\r\nimages/val/deep/y.jpg\tlabels/val/deep/y.png\r\n",
        "\ufeffimages/val/x.jpg  labels/val/x.png  \n\n \t \n  images/val/deep/y.jpg labels/val/deep/y.png",
        "images//val/x.jpg labels/val//x.png\nimages/val/deep/y.jpg labels/val/deep/y.png\n",
        "./images//val/x.jpg labels/train/../val/x.png\nimages/val/deep/y.jpg\t labels/val/deep/y.png\t",
    ],
)
def test_list_files_of_every_style_are_read(own, text):
    source = open_source(listed(own, text), "val")
    assert [sample.name for sample in source.samples] == ["images/val/x", "images/val/deep/y"]
    assert [sample.label for sample in source.samples] == [own / "labels/val/x.png", own / "labels/val/deep/y.png"]


def test_absolute_names_inside_the_root_and_names_with_blanks_work(own):
    name = os.fsdecode(b"images/val/two words caf\xe9.jpg")
    put(own / name, jpeg(photograph(6, 8)))
    text = os.fsencode(f"{name}\tlabels/val/x.png\n{own}/images/val/x.jpg {own}/labels/val/x.png\n")
    source = open_source(listed(own, text), "val")
    assert [sample.name for sample in source.samples] == [name.removesuffix(".jpg"), "images/val/x"]
    for sample in source.samples:
        load_pair(source, sample)


def test_the_root_may_be_written_in_any_way(own, monkeypatch):
    put(own / "val.lst", f"./images/val/x.jpg {own}/labels/val/x.png\n".encode())
    monkeypatch.chdir(own / "images")
    for root in ("..", f"{own}/images/../", "../labels/val/../.."):
        source = open_source(settings(root, val_list="val.lst"), "val")
        assert source.samples[0].name == "images/val/x"
        load_pair(source, source.samples[0])


BAD_LISTS = {
    "empty": (b"", r"list .*val\.lst: is empty"),
    "blank": (b" \n\t\r\n", r"list .*val\.lst: names no image"),
    "one column": (b"\nimages/val/x.jpg\n", r"val\.lst line 2: two columns expected, found 1"),
    "three columns": (b"a b c\n", r"val\.lst line 1: two columns expected, found 3"),
    "UTF-16": ("a.png b.png\n".encode("utf-16"), "UTF-16"),
    "UTF-16 without mark": ("a.png b.png\n".encode("utf-16-le"), r"val\.lst line 1: holds the character"),
    "binary": (png(STREET), "holds the character"),
    "NUL": (b"images/val/x.jpg labels/val/x.png\na\0.png b.png\n", r"val\.lst line 2: holds the character"),
    "return inside": (b"a.png b\r.png\n", r"val\.lst line 1: holds the character"),
    "escape": (b"a.png b\x1b[31m.png\n", r"val\.lst line 1: holds the character"),
    "up": (b"../../etc/x.png labels/val/x.png\n", r"val\.lst line 1: \.\./\.\./etc/x\.png lies outside"),
    "up in the middle": (b"images/../../x.png labels/val/x.png\n", "lies outside"),
    "sibling": (b"../%(root)s-2/x.png labels/val/x.png\n", "lies outside"),
    "parent as label": (b"images/val/x.jpg ..", "lies outside"),
    "the root itself": (b"images/.. labels/val/x.png\n", "lies outside"),
    "absolute image": (b"/etc/x.png labels/val/x.png\n", r"/etc/x\.png lies outside"),
    "absolute after a tab": (b"images/val/x.jpg\t/etc/x.png\n", r"/etc/x\.png lies outside"),
    "absolute": (b"images/val/x.jpg /etc/passwd\n", r"val\.lst line 1: /etc/passwd lies outside"),
    "missing image": (
        b"images/val/x.jpg labels/val/x.png\na.png b.png",
        r"val\.lst line 2: image .*a\.png: does not ex",
    ),
    "missing label": (b"\nimages/val/x.jpg b.png", r"val\.lst line 2: image .*x\.jpg: has no label .*b\.png"),
    "repeated": (b"images/val/x.jpg labels/val/x.png\n" * 2, r"val\.lst line 2: names images/val/x again \(line 1\)"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_bad_list_is_refused_at_its_line(own, case):
    text, message = BAD_LISTS[case]
    with pytest.raises(InputError, match=message) as error:
        open_source(listed(own, text.replace(b"%(root)s", os.fsencode(own.name))), "val")
    assert str(error.value).isprintable()


def test_training_may_repeat_an_image(own):
    data = listed(own, "images/val/x.jpg labels/val/x.png\n" * 2)
    assert len(open_source(data, "train").samples) == 2


def test_lists_that_are_not_there_or_not_files_are_refused(own):
    os.mkfifo(own / "pipe.lst")
    for name in ("none.lst", "pipe.lst", "images"):
        with pytest.raises(InputError, match=f"list .*{name}"):
            open_source(settings(own, val_list=name), "val")


def test_a_list_may_lie_outside_the_root(own, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("lists")
    put(elsewhere / "mine.lst", b"images/val/x.jpg labels/val/x.png\n")
    monkeypatch.chdir(elsewhere)
    for name in ("mine.lst", str(elsewhere / "mine.lst")):
        assert len(open_source(settings(own, val_list=name), "val").samples) == 1


def test_a_million_lines_start_quickly(own):
    line = "images/val/{0}.jpg labels/val/{0}.png\n"
    put(own / "long.lst", "".join(line.format(number) for number in range(100_000)).encode())
    begin = time.process_time()
    samples = listing.read_list(own / "long.lst", own, unique=True, labels_required=True)
    with pytest.raises(InputError, match=r"images/val/0\.jpg"):
        listing.require_files(samples, True)
    assert sum(listing.existing(f"{own}/images/val/{number}" for number in range(100_000))) == 0
    assert time.process_time() - begin < 1.0  # a tenth of the lines: five seconds for a million, and room
    assert samples[99_999].line == 100_000


def test_samples_are_a_sequence_and_travel_to_workers(own):
    source = open_source(settings(own), "val")
    assert [sample.name for sample in source.samples[1:]] == ["x"]
    assert isinstance(source.samples[:1], Samples)
    again = pickle.loads(pickle.dumps(source))
    assert list(again.samples) == list(source.samples)


def test_check_counts_every_pixel(own):
    report = check(open_source(settings(own), "val"))
    assert report.problems == ()
    assert (report.images, report.labels, report.sizes) == (2, 2, {"8x6": 2})
    assert report.pixels == {"a": 32, "b": 32, "c": 32}
    assert report.to_mapping()["pixels"] == report.pixels


def test_check_collects_every_problem(own):
    put(own / "images/val/broken.jpg", jpeg()[:300])
    put(own / "labels/val/broken.png", png(np.zeros((6, 8), int)))
    put(own / "images/val/lonely.jpg", jpeg(photograph(6, 8)))
    put(own / "images/val/wide.jpg", jpeg(photograph(6, 9)))
    put(own / "labels/val/wide.png", png(np.zeros((6, 8), int)))
    put(own / "images/val/value.jpg", jpeg(photograph(6, 8)))
    put(own / "labels/val/value.png", png(np.full((6, 8), 33)))
    report = check(open_source(settings(own), "val", verify=False))
    problems = "\n".join(report.problems)
    assert len(report.problems) == 4
    for words in ("broken.jpg: truncated", "lonely.png: does not exist", "wide.png: is 8 x 6", "value 33"):
        assert words in problems
    assert (report.images, report.labels, report.pixels["a"]) == (6, 2, 32)


def test_check_names_the_line_of_a_list(own):
    data = listed(own, "images/val/x.jpg labels/val/x.png\nimages/val/gone.jpg labels/val/x.png\n")
    report = check(open_source(data, "val", verify=False))
    assert [problem.partition("val.lst")[2].partition("image")[0] for problem in report.problems] == [" line 2: "]


def test_check_of_images_without_labels_says_so(own):
    (own / "labels/val/x.png").unlink()
    report = check(open_source(settings(own), "val", labels_required=False))
    assert [problem.endswith("has no label") for problem in report.problems] == [True]
    for label in (own / "labels/val").rglob("*.png"):
        label.write_bytes(png(np.full((6, 8), 255)))
    report = check(open_source(settings(own), "val", labels_required=False))
    assert (report.ignored, len(report.problems)) == (48, 2)


def test_generated_colours_differ():
    colours = folder.distinct_colours(255)
    assert len(set(colours)) == 255
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    nearest = [np.abs(np.subtract(a, b)).max() for i, a in enumerate(colours[:20]) for b in colours[:i]]
    assert min(nearest) > 20


def test_a_preset_s_palette_replaces_the_data_set_s_own(drives):
    colours = [(index, 2, 3) for index in range(11)]
    source = open_source(settings(drives, "camvid", palette=colours), "val")
    assert source.classes.palette == tuple(colours)
    with pytest.raises(InputError, match="3 colours for 11"):
        open_source(settings(drives, "camvid", palette=colours[:3]), "val")
    with pytest.raises(InputError, match="classes of its own"):
        open_source(settings(drives, "camvid", classes=["a"]), "val")


def test_classes_survive_a_checkpoint():
    classes = cityscapes.CLASSES
    mapping = classes.to_mapping()
    assert Classes.from_mapping(mapping) == classes
    assert type(mapping["palette"][0]) is list
    for key, value in (("names", ["a"]), ("palette", [[1, 2]] * 19), ("label_ids", [256] * 19), ("palette", None)):
        with pytest.raises((ValueError, TypeError)):
            Classes.from_mapping({**mapping, key: value})


def test_checking_data_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, ccnet_cli.datasets; assert not {'torch', 'numba', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        ("streets", "cityscapes"),
        ("drives", "camvid"),
        ("scenes", "ade20k"),
        ("objects", "voc"),
        ("persons", "lip"),
        ("stuff", "cocostuff"),
    ],
)
def test_a_data_set_is_told_by_its_folders(made, name, request):
    assert recognise(request.getfixturevalue(made)) == name


def test_folders_of_no_known_data_set_are_not_guessed(own, tmp_path):
    for place, words in ((own, "known by its folders"), (tmp_path / "missing", "not a folder")):
        with pytest.raises(InputError, match=words):
            recognise(place)


# facts of the published sets, written down a second time: their number of classes, and some of them by train id
PUBLISHED = {
    "ade20k": (150, {0: ("wall", (120, 120, 120)), 12: ("person", (150, 5, 61)), 149: ("flag", (92, 0, 255))}),
    "voc": (21, {0: ("background", (0, 0, 0)), 15: ("person", (192, 128, 128)), 20: ("tvmonitor", (0, 64, 128))}),
    "lip": (20, {0: ("background", (0, 0, 0)), 14: ("left arm", (51, 170, 221)), 19: ("right shoe", (255, 170, 0))}),
    "cocostuff": (171, {0: ("person", (0, 192, 64)), 80: ("banner", (0, 192, 0)), 170: ("wood", (64, 64, 0))}),
}


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


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_classes_are_the_published_ones(name):
    classes = getattr(datasets, name).CLASSES
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "names no image"),
        (b"c\n../c\n", r"val\.txt line 2: a name expected, found \.\./c"),
        (b"..\n", r"val\.txt line 1: a name expected"),
        (b"c\n\nc\n", r"val\.txt line 3: names c again \(line 1\)"),
        (b"c\x00\n", "holds the character"),
        (b"a\nz\n", r"val\.txt line 2: image .*z\.jpg: does not exist"),
        (b"a\nd\n", None),
    ],
)
def test_a_bad_list_of_names_is_refused_at_its_line(objects, text, message):
    put(objects / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", text)
    if message is None:
        assert len(open_source(settings(objects, "voc"), "val").samples) == 2
        return
    with pytest.raises(InputError, match=message):
        open_source(settings(objects, "voc"), "val")


def test_lip_follows_its_lists_or_takes_all(persons):
    data = settings(persons, "lip")
    assert [sample.name for sample in open_source(data, "train").samples] == ["77_2", "77_1"]
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
    classes = datasets.lip.CLASSES
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


@pytest.mark.parametrize(
    ("name", "made", "image", "label"),
    [
        ("ade20k", "scenes", "images/training/ADE_00000000.jpg", "annotations/training/ADE_00000000.png"),
        ("voc", "objects", "JPEGImages/d.jpg", "SegmentationClassAug/d.png"),
        ("lip", "persons", "train_images/77_1.jpg", "train_segmentations/77_1.png"),
        ("cocostuff", "stuff", "images/train2017/000000000009.jpg", "annotations/train2017/000000000009.png"),
    ],
)
def test_list_files_name_the_pairs_of_every_set(name, made, image, label, request):
    top = next(request.getfixturevalue(made).rglob(image)).parents[image.count("/")]
    put(top / "mine.lst", f"{image} {label}\n".encode() * 2)
    data = settings(top, name, train_list="mine.lst", val_list="mine.lst")
    source = open_source(data, "train")
    assert [(sample.image, sample.label) for sample in source.samples] == [(top / image, top / label)] * 2
    load_pair(source, source.samples[0])
    with pytest.raises(InputError, match=r"mine\.lst line 2: names .* again"):
        open_source(data, "val")


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
