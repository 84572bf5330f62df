"""data.labels, label_suffix and val_fraction: labels as people have them."""

import numpy as np
import pytest
from bad_inputs import jpeg, photograph, png
from dataset_files import put, settings
from pydantic import ValidationError

from ccnet_cli import config
from ccnet_cli.datasets.source import load_label, load_pair, open_source
from ccnet_cli.errors import InputError

TRUTH = np.arange(48).reshape(6, 8) % 3
COLOURS = [(128, 64, 128), (0, 0, 1), (255, 0, 0)]
NAMED = {"#804080": "road", "0,0,1": "sky", "#FF0000": "car"}


def masked(folder, content, **keys):
    """The train ids of one labelled image in a folder."""
    put(folder / "images/train/x.jpg", jpeg(photograph(6, 8)))
    put(folder / "labels/train/x.png", content)
    source = open_source(settings(folder, classes=None, **keys), "train")
    return load_label(source, source.samples[0])


@pytest.mark.parametrize(
    ("labels", "content"),
    [
        ({"0": "a", "50": "b", "100": "c"}, png(TRUTH * 50)),
        ({"0": "a", "255": "b", "128": "c"}, png(np.array([0, 255, 128])[TRUTH])),
        ({"0-9": "a", "1000-1999": "b", "65535": "c"}, png(np.array([9, 1500, 65535])[TRUTH], 16)),
        ({"3": "a", "1": "b", "2": "c"}, png(np.array([3, 1, 2])[TRUTH], colour=3, palette=COLOURS * 2)),
        ({"0": "a", "200": "b", "90": "c"}, png(np.array([0, 200, 90])[TRUTH][..., None].repeat(3, 2), colour=2)),
        ({"0": "a", "1": "b", "rest": "c"}, png(np.array([0, 1, 77])[TRUTH])),
        (NAMED, png(np.array(COLOURS)[TRUTH], colour=2)),
        (NAMED, png(np.concatenate([np.array(COLOURS)[TRUTH], np.full((6, 8, 1), 9)], 2), colour=6)),
        (NAMED, png(TRUTH, colour=3, palette=COLOURS)),
        ({"#804080": "a", "#000001": "b", "rest": "c"}, png(np.array(COLOURS)[TRUTH], colour=2)),
    ],
)
def test_values_and_colours_become_classes(tmp_path, labels, content):
    np.testing.assert_array_equal(masked(tmp_path, content, labels=labels), TRUTH)


def test_what_is_not_named_is_refused_or_ignored(tmp_path):
    labels = {"0": "a", "1": "b"}
    with pytest.raises(InputError, match=r"value 2 is no label of folder \(0 to 1, 255\); .*data\.labels=\{0: a, 1: b"):
        masked(tmp_path, png(TRUTH), labels=labels)
    expected = np.where(TRUTH == 2, 255, TRUTH)
    np.testing.assert_array_equal(masked(tmp_path, png(TRUTH), labels=labels | {"rest": None}), expected)
    np.testing.assert_array_equal(masked(tmp_path, png(TRUTH), labels=labels | {"2": None}), expected)
    colours = png(np.array(COLOURS)[TRUTH], colour=2)
    named = {"#804080": "a", "#000001": "b"}
    with pytest.raises(InputError, match=r"colour #ff0000 is not in data\.labels; add them .* rest: null"):
        masked(tmp_path, colours, labels=named)
    np.testing.assert_array_equal(masked(tmp_path, colours, labels=named | {"rest": None}), expected)
    with pytest.raises(InputError, match=r"has colours \(#\w{6}, .* where values are expected"):
        masked(tmp_path, colours, labels=labels)
    smooth = png(np.arange(144).reshape(6, 8, 3), colour=2)
    with pytest.raises(InputError, match=r"48 colours are not in data\.labels .*without smoothed edges"):
        masked(tmp_path, smooth, labels=named)


def test_255_is_ignored_unless_the_table_names_it(tmp_path):
    values = np.where(TRUTH == 2, 255, TRUTH)
    np.testing.assert_array_equal(masked(tmp_path, png(values), labels={"0": "a", "1": "b"}), values)
    assert set(masked(tmp_path, png(values), labels={"0": "a", "1": "b", "255": "c"}).flat) == {0, 1, 2}


def test_a_jpeg_of_colours_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a PNG: other formats change"):
        masked(tmp_path, jpeg(photograph(6, 8)), labels=NAMED)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"0": "a", "#000000": "b"}, "values and colours are mixed"),
        ({"0-5": "a", "3": "b"}, "3 belongs to two classes, a and b"),
        ({"7-3": "a"}, "7-3 is no value"),
        ({"65536": "a"}, "65536 is no value"),
        ({"#12345": "a"}, "is no colour"),
        ({"1,2,256": "a"}, "is no colour"),
        ({"rest": "a"}, "names no value and no colour"),
        ({"0": None}, "needs data.classes"),
        ({}, "at least 1 item"),
    ],
)
def test_a_table_that_says_nothing_or_two_things_is_refused(labels, words):
    with pytest.raises(ValidationError, match=words):
        settings(".", classes=None, labels=labels)


def test_classes_and_table_must_agree():
    with pytest.raises(ValidationError, match="labels has no value for class c"):
        settings(".", labels={"0": "a", "1": "b"})
    with pytest.raises(ValidationError, match="labels names d, which is not in classes"):
        settings(".", labels={"0": "a", "1": "b", "2": "c", "3": "d"})
    source_order = settings(".", classes=["c", "a"], labels={"0": "a", "1": "c", "2": "a"})
    assert source_order.names == ["c", "a"]


def test_the_colours_of_the_table_are_those_of_the_classes(tmp_path):
    put(tmp_path / "images/train/x.jpg", jpeg(photograph(6, 8)))
    put(tmp_path / "labels/train/x.png", png(TRUTH))
    classes = open_source(settings(tmp_path, classes=None, labels=NAMED), "train").classes
    assert (classes.names, classes.palette) == (("road", "sky", "car"), tuple(COLOURS))


def test_a_preset_says_it_in_yaml_and_is_written_so_that_it_reads_back(tmp_path):
    text = "{dataset: folder, crop: [64, 64], labels: {0: background, 255: car, rest: null}}"
    preset = config.load("camvid", [f"data={text}"])
    assert preset.data.labels == {"0": "background", "255": "car", "rest": None}
    (tmp_path / "mine.yaml").write_text(config.dump(preset), encoding="utf-8")
    assert config.load(str(tmp_path / "mine.yaml")) == preset
    assert config.load("camvid", [f"data={text}", "data.labels={1: a, 2: b}"]).data.labels == {"1": "a", "2": "b"}


@pytest.mark.parametrize("layout", ["beside", "root", "split", "apart", "inside"])
def test_labels_may_lie_beside_their_images(tmp_path, layout):
    images, labels, keys = {
        "beside": ("images/train", "images/train", {}),
        "root": (".", ".", {"val_fraction": 0.5}),
        "split": ("train", "train", {}),
        "apart": ("images/train", "labels/train", {}),
        "inside": ("train", "train/masks", {"train_images": "train", "train_labels": "train/masks"}),
    }[layout]
    for name in ("a", "deep/b"):
        put(tmp_path / images / f"{name}.png", png(np.zeros((6, 8, 3), int), colour=2))
        put(tmp_path / labels / f"{name}_L.png", png(TRUTH))
    for suffix in ("_L.png", "_L"):
        data = settings(tmp_path, label_suffix=suffix, **keys)
        names = [open_source(data, split).samples for split in ("train", "val")[: 2 if keys.get("val_fraction") else 1]]
        assert sorted(sample.name for samples in names for sample in samples) == ["a", "deep/b"]
        source = open_source(data, "train")
        np.testing.assert_array_equal(load_pair(source, source.samples[0])[1], TRUTH)


def test_a_label_may_differ_from_its_photograph_in_the_ending_alone(tmp_path):
    put(tmp_path / "photos/a.jpg", jpeg(np.zeros((6, 8, 3), np.uint8)))
    put(tmp_path / "photos/a.png", png(TRUTH))
    source = open_source(settings(tmp_path, train_images="photos", train_labels="photos"), "train")
    assert [sample.name for sample in source.samples] == ["a"]
    np.testing.assert_array_equal(load_pair(source, source.samples[0])[1], TRUTH)


def drives(folder, count=40):
    for index in range(count):
        put(folder / f"images/drive{index // 8}_{index:03}.jpg", b"x")
        put(folder / f"labels/drive{index // 8}_{index:03}.png", b"x")


def test_a_fraction_is_set_apart_by_the_seed_alone(tmp_path):
    drives(tmp_path)

    def split(**keys):
        data = settings(tmp_path, val_fraction=0.2, **keys)
        return [{sample.name for sample in open_source(data, name).samples} for name in ("train", "val")]

    train, val = split()
    assert (len(train), len(val), train & val) == (32, 8, set())
    assert split() == [train, val] and split(val_seed=0) == [train, val]
    assert split(val_seed=1)[1] != val
    train, val = split(val_group=r"^(drive\d+)_")
    assert (len(train), len(val)) == (32, 8)
    assert len({name.partition("_")[0] for name in val}) == 1
    with pytest.raises(InputError, match="one group alone cannot be parted"):
        split(val_group="^drive")
    with pytest.raises(ValidationError, match="no regular expression"):
        settings(tmp_path, val_fraction=0.2, val_group="(")
    with pytest.raises(ValidationError, match="beside the validation images"):
        settings(tmp_path, val_fraction=0.2, val_images="x")


def test_a_new_image_leaves_the_others_of_a_fraction_nearly_where_they_are(tmp_path):
    drives(tmp_path)
    data = settings(tmp_path, val_fraction=0.25)
    before = {sample.name for sample in open_source(data, "val").samples}
    put(tmp_path / "images/new.jpg", b"x")
    put(tmp_path / "labels/new.png", b"x")
    assert len(before - {sample.name for sample in open_source(data, "val").samples}) <= 1


def test_a_list_is_parted_as_folders_are(tmp_path):
    drives(tmp_path)
    names = [f"drive{index // 8}_{index:03}" for index in range(40)]
    text = "".join(f"images/{name}.jpg labels/{name}.png\n" for name in names)
    (tmp_path / "all.lst").write_text(text, encoding="utf-8")
    data = settings(tmp_path, train_list="all.lst", val_fraction=0.1)
    assert [len(open_source(data, name).samples) for name in ("train", "val")] == [36, 4]
