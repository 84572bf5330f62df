import hashlib
import os
import pickle
import shutil
import time

import pytest
from bad_inputs import jpeg, photograph, png
from dataset_files import STREET, put, settings

from ccnet_cli.datasets import listing
from ccnet_cli.datasets.listing import Samples
from ccnet_cli.datasets.report import check
from ccnet_cli.datasets.source import load_label, load_pair, open_source
from ccnet_cli.errors import InputError


def listed(own, text, name="val.lst"):
    put(own / name, text if isinstance(text, bytes) else text.encode())
    return settings(own, val_list=name, train_list=name)


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


def test_a_list_in_the_root_comes_before_one_in_the_working_folder(own, tmp_path_factory, monkeypatch):
    put(own / "val.lst", b"images/val/x.jpg labels/val/x.png\n")
    elsewhere = tmp_path_factory.mktemp("lists")
    put(elsewhere / "val.lst", b"images/val/deep/y.jpg labels/val/deep/y.png\n")
    monkeypatch.chdir(elsewhere)
    assert [sample.name for sample in open_source(settings(own, val_list="val.lst"), "val").samples] == ["images/val/x"]


def test_every_split_has_a_list_of_its_own(own):
    names = {"train": "x", "val": "deep/y", "test": "x"}
    for split, name in names.items():
        put(own / f"{split}.lst", f"images/val/{name}.jpg labels/val/{name}.png\n".encode())
    data = settings(own, **{f"{split}_list": f"{split}.lst" for split in names})
    for split, name in names.items():
        source = open_source(data, split)
        assert [sample.name for sample in source.samples] == [f"images/val/{name}"]
        assert source.samples.listing == own / f"{split}.lst"
    assert open_source(data.model_copy(update={"val_split": "train", "val_list": None}), "val").samples.listing is None
    put(own / "test.lst", b"images/val/x.jpg labels/val/x.png\n" * 2)
    with pytest.raises(InputError, match=r"test\.lst line 2: names images/val/x again"):
        open_source(data, "test")


def test_a_fingerprint_is_of_names_in_order_wherever_they_lie(own, tmp_path_factory):
    lines = ["images/val/x.jpg labels/val/x.png\n", "images/val/deep/y.jpg labels/val/deep/y.png\n"]

    def fingerprint(*lines):
        return open_source(listed(own, "".join(lines)), "val").samples.fingerprint()

    first = fingerprint(*lines)
    # written by hand: a line for each sample, NAME, a tab, and the label's name
    assert first == hashlib.sha256(b"images/val/x\tx.png\nimages/val/deep/y\ty.png\n").hexdigest()
    assert fingerprint(*reversed(lines)) != first
    moved = tmp_path_factory.mktemp("moved") / "own"
    shutil.copytree(own, moved)
    put(moved / "labels/elsewhere/x.png", (own / "labels/val/x.png").read_bytes())
    data = listed(moved, "".join(lines).replace("labels/val/x", "labels/elsewhere/x"))
    assert open_source(data, "val").samples.fingerprint() == first
    put(own / "labels/val/z.png", (own / "labels/val/x.png").read_bytes())
    assert fingerprint(lines[0].replace("x.png", "z.png"), lines[1]) != first


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
    part = open_source(listed(own, "images/val/x.jpg labels/val/x.png\n"), "val").samples[:1]
    assert isinstance(part, Samples) and part.where(part[0]) == f"{own}/val.lst line 1: "
    again = pickle.loads(pickle.dumps(source))
    assert list(again.samples) == list(source.samples)


def test_check_names_the_line_of_a_list(own):
    data = listed(own, "images/val/x.jpg labels/val/x.png\nimages/val/gone.jpg labels/val/x.png\n")
    report = check(open_source(data, "val", verify=False))
    assert [problem.partition("val.lst")[2].partition("image")[0] for problem in report.problems] == [" line 2: "]


def test_a_test_list_has_one_column(streets):
    put(streets / "test.lst", b"leftImg8bit/val/jena/jena_000000_leftImg8bit.png\n")
    data = settings(streets, "cityscapes", val_list="test.lst")
    source = open_source(data, "val", labels_required=False)
    assert source.samples[0].label is None
    with pytest.raises(InputError, match=r"test\.lst line 1: two columns expected, found 1; write IMAGE LABEL"):
        open_source(data, "val")
    with pytest.raises(InputError, match="no label"):
        load_label(source, source.samples[0])


def test_the_official_lists_give_the_same_as_the_folders(streets):
    by_folder = open_source(settings(streets, "cityscapes"), "train")
    lines = [f"{s.image.relative_to(streets)}\t{s.label.relative_to(streets)}" for s in by_folder.samples]
    put(streets / "train.lst", "\n".join(lines).encode())
    by_list = open_source(settings(streets, "cityscapes", train_list="train.lst"), "train")
    assert [(s.image, s.label) for s in by_list.samples] == [(s.image, s.label) for s in by_folder.samples]


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
