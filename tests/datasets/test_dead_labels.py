"""Labels that no training can learn from: noticed before the first step, each with what to do."""

import shutil

import cv2
import numpy as np
import pytest
from bad_inputs import jpeg, photograph, png, with_exif
from dataset_files import picture, put, settings

from ccnet_cli.datasets import report
from ccnet_cli.datasets.report import check, check_all, warn_of_dead_labels, warn_of_shared_images
from ccnet_cli.datasets.source import open_source
from ccnet_cli.errors import InputError


def label_all(own, values, split="train", **options):
    for name in ("x", "deep/y"):
        put(own / f"labels/{split}/{name}.png", png(np.asarray(values), **options))


def lines(own, capsys, split="train", **keys):
    """The problems of a check, each of which must be a warning before a run too."""
    source = open_source(settings(own, **keys), split)
    problems = check(source).problems
    warn_of_dead_labels(source, split)
    warned = capsys.readouterr().err.splitlines()
    assert warned == [f"ccnet: warning: split {split}: {problem}" for problem in problems]
    return problems


HALVES = np.repeat([[0, 255]], 6, 0).repeat(4, 1)


def test_sound_labels_pass_without_a_word(own, capsys):
    assert lines(own, capsys) == ()


def test_masks_of_0_and_255_are_noticed_and_the_fix_mends_them(own, capsys):
    label_all(own, HALVES)
    (line,) = lines(own, capsys, classes=["ground", "car"])
    assert "only the values 0 and 255 occur, and 255 is ignored: car without a pixel" in line
    assert line.endswith("set data.labels={0: ground, 255: car}")
    source = open_source(settings(own, classes=None, labels={"0": "ground", "255": "car"}), "train")
    assert check(source).pixels == {"ground": 48, "car": 48}
    assert check(source).problems == ()


def test_a_class_without_a_pixel_is_named(own, capsys):
    label_all(own, np.arange(48).reshape(6, 8) % 2)
    (line,) = lines(own, capsys)
    assert line.startswith("c without a pixel (1 of 3 classes); correct the labels")
    assert lines(own, capsys, classes=["a", "b"]) == ()


def test_a_split_that_is_ignored_is_noticed(own, capsys):
    label_all(own, np.full((6, 8), 255))
    (line,) = lines(own, capsys)
    assert line.startswith("no labelled pixel: every one is ignored; ")
    values = np.full((6, 8), 255)
    values[0, :2] = 1, 2
    label_all(own, values)
    first, second = lines(own, capsys)
    assert first.startswith("95.8 % of the pixels are ignored")
    assert second.startswith("a without a pixel")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.arange(48).reshape(6, 8) % 3 + 1, "value 3 is no label of folder"),
        (np.arange(48).reshape(6, 8) % 2 * 2 + 1, "data.labels={1: a, 2: b, 3: c}"),
        (np.arange(48).reshape(6, 8) % 3 * 3 // 2, "data.labels={0: a, 1: b, 2: c, 3: null}"),
        (np.arange(48).reshape(6, 8) % 3 * 50, "data.labels={0: a, 50: b, 100: c}"),
        (np.arange(48).reshape(6, 8) % 3 * 9000, "value 9000, 18000 is no label"),
        (np.arange(48).reshape(6, 8) * 5, "data.labels={0: a, 5: b, 10: c, 15: null, ...}"),
    ],
)
def test_wrong_ids_are_refused_before_the_first_step(own, values, words):
    label_all(own, values, depth=16 if values.max() > 255 else 8)
    source = open_source(settings(own), "train")
    with pytest.raises(InputError, match="so are 2 of the 2 labels of train") as error:
        warn_of_dead_labels(source, "train")
    assert words in str(error.value)
    (problem,) = check(source).problems
    assert problem.startswith("2 times: label ") and "deep/y.png" in problem and "x.png" in problem


def test_swapped_folders_are_called_so(own):
    for name in ("x", "deep/y"):
        (own / f"images/train/{name}.jpg").unlink()
        put(own / f"images/train/{name}.png", picture(np.zeros((16, 16))))
        put(own / f"labels/train/{name}.png", png(np.arange(256).reshape(16, 16) % 3))
    swapped = settings(own, train_images="labels/train", train_labels="images/train")
    with pytest.raises(InputError, match=r"looks like a picture.* exchange data\.train_images and data\.train_labels"):
        warn_of_dead_labels(open_source(swapped, "train"), "train")
    # grey photographs
    label_all(own, np.arange(256).reshape(16, 16))
    for name in ("x", "deep/y"):
        put(own / f"images/train/{name}.png", png(np.arange(256).reshape(16, 16) % 3))
    with pytest.raises(InputError, match="the two are swapped"):
        warn_of_dead_labels(open_source(settings(own), "train"), "train")
    same = settings(own, train_images="labels/train", train_labels="labels/train")
    with pytest.raises(InputError, match=r"is its own label .*; name the folder of the labels"):
        warn_of_dead_labels(open_source(same, "train"), "train")


def test_a_jpeg_mask_is_explained_in_folders(own):
    (own / "labels/train/x.png").unlink()
    put(own / "labels/train/x.jpg", jpeg(photograph(6, 8)))
    with pytest.raises(InputError, match=r"labels/train/x\.jpg: not a PNG: other formats change"):
        warn_of_dead_labels(open_source(settings(own), "train"), "train")


def test_colours_are_led_to_the_key_that_names_them(own):
    label_all(own, np.zeros((6, 8, 3), int), colour=2)
    with pytest.raises(InputError, match=r"data\.labels can name colours"):
        warn_of_dead_labels(open_source(settings(own), "train"), "train")


def test_alike_problems_are_one_line_with_three_examples(own):
    for index in range(5):
        put(own / f"images/train/{index}.jpg", jpeg(photograph(6, 8)))
        put(own / f"labels/train/{index}.png", png(np.full((6, 8), 10 + index)))
    (line,) = check(open_source(settings(own), "train")).problems
    assert line.startswith("5 times: label ") and line.endswith("1.png, " + str(own / "labels/train/2.png") + ", ...)")


def test_values_of_any_number_are_one_kind_of_problem(own):
    for name, values in (("x", [50, 60]), ("deep/y", [70, 80, 90])):
        put(own / f"labels/train/{name}.png", png(np.resize(values, (6, 8))))
    (line,) = check(open_source(settings(own), "train")).problems
    assert line.startswith("2 times: ")


def test_a_large_split_is_sampled_evenly(own, capsys, monkeypatch):
    for index in range(10):
        put(own / f"images/train/{index}.jpg", jpeg(photograph(6, 8)))
        put(own / f"labels/train/{index}.png", png(np.full((6, 8), index // 5)))
    monkeypatch.setattr(report, "MAX_LABELS", 4)
    warn_of_dead_labels(open_source(settings(own), "train"), "train")
    assert "split train in 4 of its 12 labels: c without a pixel" in capsys.readouterr().err
    monkeypatch.undo()
    warn_of_dead_labels(open_source(settings(own), "train"), "train")
    assert capsys.readouterr().err == ""


def test_a_published_set_may_lack_classes_unless_another_split_has_them(tmp_path, capsys):
    for split, count in (("train", 11), ("val", 4)):
        for index in range(16):
            put(tmp_path / f"{split}/{index}.png", picture(np.zeros((2, 6))))
            put(tmp_path / f"{split}annot/{index}.png", png(np.arange(12).reshape(2, 6) % count))
    sources = {split: open_source(settings(tmp_path, "camvid"), split) for split in ("train", "val")}
    assert check(sources["val"]).problems == ()
    reports = check_all(sources)
    assert reports["train"].problems == ()
    (line,) = reports["val"].problems
    assert line.startswith("pavement, tree, sign symbol, fence, car, pedestrian, bicyclist without a pixel, though")
    warn_of_dead_labels(sources["val"], "val")
    assert "warning: split val: pavement, tree" in capsys.readouterr().err


def test_masks_of_two_values_in_the_folders_of_a_published_set_are_noticed(tmp_path, capsys):
    for index in range(16):
        put(tmp_path / f"train/{index}.png", picture(np.zeros((6, 8))))
        put(tmp_path / f"trainannot/{index}.png", png(np.roll(HALVES, index, 1)))
    source = open_source(settings(tmp_path, "camvid"), "train")
    (line,) = check(source).problems
    assert line.startswith("sky alone occurs in 16 labels, as in masks of 0 and 255") and "data.dataset=folder" in line
    warn_of_dead_labels(source, "train")
    assert f"warning: split train: {line}" in capsys.readouterr().err


def numbered(own, split, labels, images):
    """The split, of these labels and images alone."""
    for kind, arrays in (("labels", labels), ("images", images)):
        shutil.rmtree(own / kind / split)
        for index, array in enumerate(arrays):
            put(own / f"{kind}/{split}/{index}.png", png(np.asarray(array, np.uint8), colour=2 * (kind == "images")))


def test_images_of_one_split_that_are_in_the_other_are_named(own):
    random = np.random.default_rng(0)
    label = np.arange(48).reshape(6, 8) % 3
    train, val = (random.integers(0, 255, (5, 6, 8, 3)) for _ in range(2))
    val[2] = train[4]
    numbered(own, "train", [label] * 3 + [label[::-1]] * 2, train)
    numbered(own, "val", [label, label[::-1], label, label, label], val)
    sources = {split: open_source(settings(own), split) for split in ("train", "val")}
    reports = check_all(sources)
    line = "1 of its images are in train too (2 is 4): scores say nothing of new ones; remove them"
    assert reports["val"].warnings == (line,) and reports["train"].warnings == ()
    assert check_all({"val": sources["val"]})["val"].warnings == ()


def test_images_of_both_splits_are_named_before_a_run(own, capsys):
    random = np.random.default_rng(0)
    label, train = np.arange(48).reshape(6, 8) % 3, random.integers(0, 255, (6, 6, 8, 3))
    for other, warned in (((0, 1, 2), False), ((0, 1, 2, 3), True)):
        val = random.integers(0, 255, (6, 6, 8, 3))
        val[list(other)] = train[list(other)]
        numbered(own, "train", [label] * 6, train)
        numbered(own, "val", [label] * 6, val)
        warn_of_shared_images(*(open_source(settings(own), split) for split in ("train", "val")))
        line = (
            "ccnet: warning: 4 of 6 images of val that were looked at are in train too (0): scores say nothing of new"
        )
        assert capsys.readouterr().err == (f"{line} ones; remove them\n" if warned else "")


def test_labels_that_are_all_the_same_and_images_of_one_colour_are_named(own, capsys):
    random = np.random.default_rng(0)
    label, images = np.arange(48).reshape(6, 8) % 3, random.integers(0, 255, (4, 6, 8, 3))
    images[1:3] = 7, 0, 9
    numbered(own, "train", [label] * 4, images)
    source = open_source(settings(own), "train")
    line = "all 4 labels are the same; see that each is its image's"
    assert check(source).warnings == (line, "2 of its 4 images show one colour alone; look at them")
    warn_of_dead_labels(source, "train")
    assert capsys.readouterr().err == f"ccnet: warning: split train: {line}\n"
    numbered(own, "train", [label] * 3 + [label[::-1]], images)
    warn_of_dead_labels(source, "train")
    assert capsys.readouterr().err == ""


def discs(count, size=(48, 64)):
    """Pictures and labels of two discs in places of their own."""
    random = np.random.default_rng(1)
    pairs = []
    for _ in range(count):
        label = np.zeros(size, np.uint8)
        for value in (1, 2):
            y, x = (int(random.integers(10, side - 10)) for side in size)
            label[np.hypot(*np.ogrid[-y : size[0] - y, -x : size[1] - x]) < random.integers(6, 14)] = value
        colours = random.integers(0, 200, (3, 3))
        pairs.append((colours[label] + random.integers(0, 40, (*size, 3)), label))
    return pairs


def recut(label, rows, columns):
    """The middle of a label, without some rows and columns at each side, in the size of the whole."""
    middle = label[rows : label.shape[0] - rows, columns : label.shape[1] - columns]
    return cv2.resize(middle, label.shape[::-1], interpolation=cv2.INTER_NEAREST)


MOVED = {
    "after its own": lambda pairs: [(image, pairs[(i + 1) % len(pairs)][1]) for i, (image, _) in enumerate(pairs)],
    "before its own": lambda pairs: [(image, pairs[i - 1][1]) for i, (image, _) in enumerate(pairs)],
    "mirrored left to right": lambda pairs: [(image, label[:, ::-1]) for image, label in pairs],
    "turned upside down": lambda pairs: [(image, label[::-1]) for image, label in pairs],
    "turned by half a turn": lambda pairs: [(image, label[::-1, ::-1]) for image, label in pairs],
    "rows and columns are exchanged": lambda pairs: [(image[:, :48], label[:, :48].T) for image, label in pairs],
    "moved left by 10.0%": lambda pairs: [(image, np.roll(label, 6, 1)) for image, label in pairs],
    "moved down by 5.0%": lambda pairs: [(image, np.roll(label, -2, 0)) for image, label in pairs],
    "80% as large": lambda pairs: [(image, recut(label, 5, 6)) for image, label in pairs],
    "as large in width": lambda pairs: [(image, recut(label, 0, 8)) for image, label in pairs],
    "turned by a quarter clockwise": lambda pairs: [(image[:, :48], np.rot90(label[:, :48])) for image, label in pairs],
}


@pytest.mark.parametrize("place", MOVED)
def test_labels_that_lie_elsewhere_than_their_images_are_noticed(own, capsys, place):
    images, labels = zip(*MOVED[place](discs(12)), strict=True)
    numbered(own, "train", labels, images)
    source = open_source(settings(own), "train")
    (line,) = check(source).warnings
    assert "do not lie on their images: borders fit the edges better if" in line and place in line
    warn_of_dead_labels(source, "train")
    assert capsys.readouterr().err == f"ccnet: warning: split train: {line}\n"


@pytest.mark.parametrize("size", [(48, 64), (48, 48), (30, 64)])
@pytest.mark.parametrize("count", [2, 12])
def test_labels_in_their_place_are_not_suspected(own, capsys, size, count):
    images, labels = zip(*discs(count, size), strict=True)
    numbered(own, "train", labels, images)
    lines(own, capsys)
    assert check(open_source(settings(own), "train")).warnings == ()


def test_pictures_with_most_of_their_edges_in_the_middle_are_not_suspected(own):
    random = np.random.default_rng(4)
    images, labels = [], []
    for _ in range(12):
        label = np.zeros((48, 64), np.uint8)
        for x, y in ((0, 0), (63, 0), (0, 47), (63, 47)):
            middle = abs(x - int(random.integers(8, 14))), abs(y - int(random.integers(7, 11)))
            cv2.circle(label, middle, int(random.integers(4, 6)), 1, -1)
        # hardly to be seen, around what is all edges
        image = 60 + label[..., None] + random.integers(0, 8, (48, 64, 3))
        image[14:34, 18:46] = random.integers(0, 256, (20, 28, 3))
        images.append(image)
        labels.append(label)
    numbered(own, "train", labels, images)
    assert check(open_source(settings(own), "train")).warnings == ()


@pytest.mark.parametrize("kind", ["shuffled", "of other images"])
def test_labels_that_fit_any_image_alike_are_noticed(own, capsys, kind):
    pairs = discs(24)
    images = [image for image, _ in pairs]
    order = np.random.default_rng(2).permutation(24)
    others = [pairs[index][1] for index in order] if kind == "shuffled" else [label for _, label in discs(48)[24:]]
    numbered(own, "train", others, images)
    source = open_source(settings(own), "train")
    (line,) = check(source).warnings
    assert line.startswith("the labels fit their own images no better than the others")
    warn_of_dead_labels(source, "train")
    assert capsys.readouterr().err == f"ccnet: warning: split train: {line}\n"


def test_a_few_labels_or_labels_that_are_alike_are_not_suspected(own):
    random = np.random.default_rng(2)
    images = random.integers(0, 256, (24, 48, 64, 3))
    numbered(own, "train", [label for _, label in discs(12)], images[:12])
    assert check(open_source(settings(own), "train")).warnings == ()
    # one camera, whose pictures are all but the same
    image, label = discs(1)[0]
    alike = [image + random.integers(0, 12, image.shape) for _ in range(24)]
    numbered(own, "train", [np.roll(label, index % 3, 1) for index in range(24)], alike)
    assert check(open_source(settings(own), "train")).warnings == ()


def test_images_that_exif_data_turn_are_named(own, capsys):
    lines(own, capsys)
    for name, orientation in (("x", 3), ("deep/y", 1)):
        put(own / f"images/train/{name}.jpg", with_exif(jpeg(photograph(6, 8)), orientation))
    (line,) = check(open_source(settings(own), "train")).warnings
    assert line.startswith("1 of its 2 images are turned by their EXIF data, which training does not apply")
    put(own / "images/train/x.jpg", with_exif(jpeg(photograph(8, 6)), 6))
    (problem,) = check(open_source(settings(own), "train")).problems
    assert "8 x 6 pixels, its image" in problem and "6 x 8 before its EXIF data turn it; save the image up" in problem


def test_smoothed_labels_are_noticed_and_clean_ones_are_not(own, capsys):
    random = np.random.default_rng(3)
    labels = [
        cv2.circle(np.full((48, 64), 2, np.uint8), (32, 24), int(random.integers(8, 20)), 9, -1) for _ in range(4)
    ]
    keys = {"classes": [f"class {index}" for index in range(10)]}
    for soft in (False, True):
        own_labels = [cv2.GaussianBlur(label, (0, 0), 1.5) if soft else label for label in labels]
        numbered(own, "train", own_labels, [random.integers(0, 256, (48, 64, 3)) for _ in labels])
        source = open_source(settings(own, **keys), "train")
        warnings = [line for line in check(source).warnings if "smoothed" in line]
        warn_of_dead_labels(source, "train")
        assert [line in capsys.readouterr().err for line in warnings] == [True] * soft
