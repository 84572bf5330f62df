import subprocess
import sys

import numpy as np
import pytest
from bad_inputs import jpeg, photograph, png, with_exif
from dataset_files import picture, put, settings

from ccnet_cli.datasets import cityscapes, folder, listing, recognise
from ccnet_cli.datasets.report import check
from ccnet_cli.datasets.source import load_label, load_pair, open_source
from ccnet_cli.errors import InputError
from ccnet_cli.media import images
from ccnet_cli.media.classes import Classes


def test_own_folders_are_read_at_any_depth(own):
    source = open_source(settings(own), "val")
    assert [sample.name for sample in source.samples] == ["deep/y", "x"]
    assert source.samples[0].label == own / "labels/val/deep/y.png"
    assert source.classes.names == ("a", "b", "c")
    assert len(set(source.classes.palette)) == 3
    assert load_label(source, source.samples[0]).ravel().tolist() == [value % 3 for value in range(48)]


def test_own_classes_have_the_names_order_and_colours_of_the_preset(own):
    colours = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    source = open_source(settings(own, classes=["wheat", "barley", "rye"], palette=colours), "val")
    assert source.classes.names == ("wheat", "barley", "rye")
    assert source.classes.palette == tuple(colours)
    assert source.classes.label_ids == (0, 1, 2)


def test_own_folders_may_have_any_name(own):
    (own / "images/val").rename(own / "photos")
    (own / "labels/val").rename(own / "masks")
    source = open_source(settings(own, val_images="photos", val_labels=str(own / "masks")), "val")
    assert source.samples[1].label == own / "masks/x.png"
    (own / "images/train").rename(own / "images/day")
    (own / "labels/train").rename(own / "labels/day")
    named = settings(own, train_images="images/day", train_labels="labels/day", val_images="photos", val_labels="masks")
    assert open_source(named, "train").samples[1].label == own / "labels/day/x.png"
    assert open_source(named, "val").samples[1].image == own / "photos/x.jpg"
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


def test_suffixes_may_be_written_in_capitals(tmp_path):
    for name in ("b.JPG", "a.Png", "deep/c.jpeg", "d.txt", "png", ".e.png", ".hidden/f.png"):
        put(tmp_path / name, b"")
    assert listing.scan(tmp_path) == ["a.Png", "b.JPG", "deep/c.jpeg"]


def test_links_to_other_folders_are_followed(own, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for kind in ("images", "labels"):
        (own / f"{kind}/val/deep").rename(elsewhere / kind)
        (own / f"{kind}/val/deep").symlink_to(elsewhere / kind)
    assert [sample.name for sample in open_source(settings(own), "val").samples] == ["deep/y", "x"]


def test_the_root_may_begin_with_a_tilde(own, monkeypatch):
    monkeypatch.setenv("HOME", str(own.parent))
    assert len(open_source(settings(f"~/{own.name}"), "val").samples) == 2


def test_a_rotation_in_an_image_s_exif_is_not_applied(own):
    """A label map is stored as the sensor's pixels are."""
    source = open_source(settings(own), "val")
    plain = load_pair(source, source.samples[1])
    put(own / "images/val/x.jpg", with_exif(source.samples[1].image.read_bytes(), 6))
    for array, before in zip(load_pair(source, source.samples[1]), plain, strict=True):
        np.testing.assert_array_equal(array, before)
    assert load_label(source, source.samples[1]).shape == (6, 8)


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


def test_generated_colours_stay_what_they_were():
    """RGB, a golden angle of hue apart: red, blue and green first."""
    assert folder.distinct_colours(3) == [(255, 38, 38), (96, 124, 191), (82, 128, 19)]


def test_a_preset_s_palette_replaces_the_data_set_s_own(drives):
    colours = [(index, 2, 3) for index in range(11)]
    source = open_source(settings(drives, "camvid", palette=colours), "val")
    assert source.classes.palette == tuple(colours)
    with pytest.raises(InputError, match="3 colours for 11"):
        open_source(settings(drives, "camvid", palette=colours[:3]), "val")
    with pytest.raises(InputError, match="classes of its own"):
        open_source(settings(drives, "camvid", classes=["a"]), "val")
    names = list(source.classes.names)
    assert open_source(settings(drives, "camvid", classes=names), "val").classes.names == tuple(names)
    with pytest.raises(InputError, match="classes of its own"):
        open_source(settings(drives, "camvid", classes=names[::-1]), "val")


def test_classes_survive_a_checkpoint():
    classes = cityscapes.CLASSES
    mapping = classes.to_mapping()
    assert Classes.from_mapping(mapping) == classes
    assert type(mapping["palette"][0]) is list
    for key, value in (("names", ["a"]), ("palette", [[1, 2]] * 19), ("label_ids", [256] * 19), ("palette", None)):
        with pytest.raises((ValueError, TypeError)):
            Classes.from_mapping({**mapping, key: value})


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [("datasets", "numpy cv2 torch numba scipy yaml"), ("datasets.report, ccnet_cli.cli.data", "torch numba scipy")],
)
def test_data_sets_are_known_without_numpy_and_checked_without_torch(modules, unwanted):
    code = f"import sys, ccnet_cli.{modules}; assert not set({unwanted.split()}) & sys.modules.keys()"
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
    # half of ADE20K's, VOC's and CamVid's
    for name in ("images/training", "JPEGImages", "valannot"):
        (own / name).mkdir()
    for place, words in ((own, "known by its folders"), (tmp_path / "missing", "not a folder")):
        with pytest.raises(InputError, match=words):
            recognise(place)
