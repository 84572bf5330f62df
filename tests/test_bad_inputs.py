"""Bad images, labels, lists and settings through the whole command line: exit code 2, one line, nothing written."""

import re
import zlib
from pathlib import Path

import bad_inputs
import numpy as np
import pytest
import tiny

from ccnet_cli import cli

SMALL = [
    *("-s model.width=8 -s model.channels=8 -s model.query_channels=4 -s model.auxiliary_channels=8".split()),
    *("-s model.backbone=tiny -s data.crop=24,40 -s data.workers=0 -s train.batch=2 -s train.precision=fp32".split()),
    *("-s schedule.steps=1 -s schedule.warmup=0 -s eval.every=0".split()),
]
PNG = bad_inputs.png(np.zeros((8, 8), np.uint8))
LABEL = "data/valannot/000.png"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a checkpoint, a data set of two splits and a good picture."""
    monkeypatch.chdir(tmp_path)
    tiny.save_checkpoint(tmp_path).rename("model.pt")
    Path("step_00000001.json").unlink()
    for split in ("train", "val"):
        tiny.make_camvid(tmp_path / "data", [(32, 48), (40, 40)], split)
    tiny.write(tmp_path / "good.png", tiny.picture(24, 40, 0))
    return tmp_path


def files(place):
    return {str(path.relative_to(place)): path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}


def ran(words, capfd):
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return stopped.value.code, capfd.readouterr()


def write(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def label(values, **options):
    return bad_inputs.png(np.array(values), **options)


PREDICT = "predict bad.png -o out.png --checkpoint model.pt".split()
EVAL = "eval model.pt --data data --json out.json --save out".split()
TRAIN = ["train", "--preset", "camvid", "--data", "data", "-o", "run", *SMALL]
LISTED = [*EVAL, "-s", "data.val_list=val.lst"]
ZEROS = np.zeros((32, 48), np.uint8)

# id: how to spoil the folder, the command, words of the line
CASES = {
    "image missing": (lambda: None, PREDICT, "bad.png: does not exist"),
    "image empty": (lambda: write("bad.png", b""), PREDICT, "bad.png: is empty"),
    "image is text": (lambda: write("bad.png", "no image\n"), PREDICT, "bad.png: not"),
    "image cut": (
        lambda: write("bad.png", bad_inputs.png(bad_inputs.photograph(), colour=2)[:-300]),
        PREDICT,
        "bad.png",
    ),
    "jpeg cut": (
        lambda: write("bad.jpg", bad_inputs.jpeg()[:-400]),
        "predict bad.jpg -o out.png --checkpoint model.pt".split(),
        "bad.jpg",
    ),
    "image huge": (lambda: write("bad.png", bad_inputs.with_size(PNG, 100_000, 100_000)), PREDICT, "bad.png"),
    "image is a device": (lambda: Path("bad.png").symlink_to("/dev/zero"), PREDICT, "not a regular file"),
    "image is a loop": (lambda: Path("bad.png").symlink_to("bad.png"), PREDICT, "bad.png"),
    "empty folder": (
        lambda: Path("none").mkdir(),
        "predict none -o out --checkpoint model.pt".split(),
        "no image in this folder",
    ),
    "two of one name": (
        lambda: [write(f"{folder}/x.png", Path("good.png").read_bytes()) for folder in "ab"],
        "predict a b -o out --checkpoint model.pt".split(),
        "both would be written",
    ),
    "point outside": (
        lambda: None,
        "visualize good.png --point 40,3 -o out.png --checkpoint model.pt".split(),
        "outside the image of 40x24",
    ),
    "label in colour": (lambda: write(LABEL, label(np.zeros((32, 48, 3), np.uint8), colour=2)), EVAL, "000.png"),
    "label is a jpeg": (lambda: write(LABEL, bad_inputs.jpeg(np.zeros((32, 48, 3), np.uint8))), EVAL, "000.png"),
    "label out of range": (lambda: write(LABEL, label(ZEROS + 33)), EVAL, "33"),
    "label of 16 bits": (lambda: write(LABEL, label(np.full((32, 48), 24_000), depth=16)), EVAL, "24000"),
    "label of another size": (lambda: write(LABEL, label(np.zeros((8, 8), np.uint8))), EVAL, "000.png"),
    "label missing": (lambda: Path(LABEL).unlink(), EVAL, "000.png"),
    "label out of range while training": (
        lambda: [path.write_bytes(label(ZEROS + 33)) for path in Path("data/trainannot").iterdir()],
        TRAIN,
        "33",
    ),
    "list empty": (lambda: write("data/val.lst", "\n \n"), LISTED, "val.lst"),
    "list of one column": (lambda: write("data/val.lst", "val/000.png\n"), LISTED, "val.lst line 1"),
    "list in binary": (lambda: write("data/val.lst", zlib.compress(b"x" * 999)), LISTED, "val.lst"),
    "list leads outside": (lambda: write("data/val.lst", "../good.png ../good.png\n"), LISTED, "val.lst line 1"),
    "list twice": (lambda: write("data/val.lst", f"val/000.png {LABEL[5:]}\n" * 2), LISTED, "val.lst line 2"),
    "list names nothing": (lambda: write("data/val.lst", f"val/x.png {LABEL[5:]}\n"), LISTED, "val.lst line 1"),
    "list twice without labels": (
        lambda: write("data/test.lst", "val/000.png\n" * 2),
        [*EVAL, "--split", "test", "--list", "test.lst"],
        "test.lst line 2: names val/000 again",
    ),
    "list leads outside without labels": (
        lambda: write("data/test.lst", "../good.png\n"),
        [*EVAL, "--split", "test", "--list", "test.lst"],
        "lies outside the data root",
    ),
    "list is not there": (lambda: None, [*EVAL, "--list", "none.lst"], "none.lst: does not exist"),
    "list of a split that has none": (
        lambda: write("data/any.lst", "val/000.png\n"),
        [*EVAL, "--split", "any", "--list", "any.lst"],
        "preset key data.any_list: unknown; did you mean data.",
    ),
    "nothing to score or save": (
        lambda: write("data/test.lst", "val/000.png\n"),
        "eval model.pt --data data --json out.json --split test --list test.lst".split(),
        "split test: has no labels",
    ),
    "no labels and output exists": (
        lambda: [write("data/test.lst", "val/000.png\n"), write("out/val/000.png", "mine")],
        [*EVAL, "--split", "test", "--list", "test.lst"],
        "000.png: exists",
    ),
    "data missing": (lambda: None, "eval model.pt --data nowhere".split(), "nowhere"),
    "output exists": (
        lambda: write("out.png", b"mine"),
        "predict good.png -o out.png --checkpoint model.pt".split(),
        "out.png: exists",
    ),
    "learning rate": (lambda: None, [*TRAIN, "-s", "schedule.lr=nan"], "schedule.lr"),
    "a batch of one": (lambda: None, [*TRAIN, "-s", "train.batch=1"], "train.batch"),
    "too many workers": (lambda: None, [*TRAIN, "-s", "data.workers=9999"], "data.workers"),
    "crop of one number": (lambda: None, [*TRAIN, "-s", "data.crop=769"], "data.crop"),
    "unknown key": (lambda: None, [*TRAIN, "-s", "schedule.learing_rate=1"], "schedule.learing_rate: unknown"),
    "no such device": (lambda: None, [*TRAIN, "--device", "cuda:7"], "device cuda:7"),
    "run exists": (lambda: write("run/mine.txt", "x"), TRAIN, "run: is not an empty folder"),
    "out of run": (lambda: write("run", "x"), TRAIN, "run: is not an empty folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_ends_with_2_and_one_line(case, place, capfd):
    spoil, words, told = CASES[case]
    spoil()
    before = files(place)
    code, out = ran(words, capfd)
    lines = [line for line in out.err.splitlines() if "global batch" not in line]
    assert code == 2 and out.out == "", out.err
    assert len(lines) == 1 and lines[0].startswith("ccnet: error: ") and told in lines[0], out.err
    assert re.fullmatch(r"ccnet: error: .+: .+; .+", lines[0])
    assert files(place) == before


def test_the_same_commands_work_without_the_harm(place, capfd):
    """The twin: nothing in the commands themselves is what is refused above."""
    write("bad.png", Path("good.png").read_bytes())
    write("data/val.lst", f"val/000.png {LABEL[5:]}\n")
    for words in (PREDICT, EVAL, [*LISTED[:-4], "-s", "data.val_list=val.lst"], TRAIN):
        assert ran(words, capfd)[0] == 0


@pytest.mark.parametrize("name", ["straße ü.png", "x" * 200 + ".png", "line\nbreak.png"])
def test_any_sound_name_is_segmented(name, place, capfd):
    Path(name).write_bytes(Path("good.png").read_bytes())
    assert ran(["predict", name, "-o", "out", "--checkpoint", "model.pt"], capfd)[0] == 0
    assert (place / "out" / name).is_file()


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1)])
def test_thin_images_are_segmented_at_their_size(shape, place, capfd):
    tiny.write(place / "thin.png", np.full((*shape, 3), 90, np.uint8))
    assert ran("predict thin.png -o out.png --format train-id --checkpoint model.pt".split(), capfd)[0] == 0
    assert bad_inputs.read_png(Path("out.png").read_bytes())[2].shape == shape
