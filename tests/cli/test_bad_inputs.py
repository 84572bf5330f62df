"""The 84 bad inputs by number, through the whole command line: what is refused leaves one line and no file.

CASES are refused, the tests named row_NN have a defined result; ELSEWHERE says who tests the rest.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import bad_inputs
import cv2
import hostile
import numpy as np
import peers
import pytest
import tiny
import torch

from ccnet_cli import cli
from ccnet_cli.media import images, outputs
from ccnet_cli.runs import checkpoint
from ccnet_cli.training import plan

ROOT = Path(__file__).parents[2]
SMALL = [
    *("-s model.width=8 -s model.channels=8 -s model.query_channels=4 -s model.auxiliary_channels=8".split()),
    *("-s model.backbone=tiny -s data.crop=24,40 -s data.workers=0 -s train.batch=2 -s train.precision=fp32".split()),
    *("-s schedule.steps=1 -s schedule.warmup=0 -s eval.every=0".split()),
]
PNG = bad_inputs.png(np.zeros((8, 8), np.uint8))
LABEL = "data/valannot/000.png"
PREDICT = "predict bad.png -o out.png --checkpoint model.pt".split()
EVAL = "eval model.pt --data data --json out.json --save out".split()
TRAIN = ["train", "--preset", "camvid", "--data", "data", "-o", "run", *SMALL]
LISTED = [*EVAL, "-s", "data.val_list=val.lst"]
STREET = "eval street.pt --data streets --json out.json".split()
STREET_LABEL = "streets/gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png"
TRAIN_IDS = "val/ulm/ulm_000000_000019"
ZEROS = np.zeros((32, 48), np.uint8)
NOBODY = 65534


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a checkpoint, a data set of two splits, a good picture and the like of Cityscapes."""
    folder = tmp_path_factory.mktemp("made")
    tiny.save_checkpoint(folder).rename(folder / "model.pt")
    tiny.save_cityscapes_checkpoint(folder / "street").rename(folder / "street.pt")
    shutil.rmtree(folder / "street")
    (folder / "step_00000001.json").unlink()
    for split in ("train", "val"):
        tiny.make_camvid(folder / "data", [(32, 48), (40, 40)], split)
    tiny.make_cityscapes(folder / "streets", [(32, 48), (40, 40)], "val", folder / "streets")
    tiny.write(folder / "good.png", tiny.picture(24, 40, 0))
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """A run of two steps with a checkpoint of each."""
    run = tmp_path_factory.mktemp("trained") / "run"
    words = [*TRAIN, "-s", "schedule.steps=2", "-s", "checkpoint.every=1", "--data", str(made / "data"), "-o", str(run)]
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0
    return run


@pytest.fixture
def run(trained, place):
    shutil.copytree(trained, place / "run")
    return place / "run"


RESUME = [*TRAIN, "-s", "schedule.steps=3", "-s", "checkpoint.every=1"]
NEWEST = Path("run/checkpoints/step_00000002.pt")


def files(place):
    return {str(path.relative_to(place)): path.lstat().st_mtime_ns for path in place.rglob("*")}


def ran(words, capfd):
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return stopped.value.code, capfd.readouterr()


def told(out):
    """The lines on stderr but for those that a sound run shows too."""
    sound = r"ccnet: (run: global batch|beginning with|preset key model\.auxiliary_channels: has no effect)"
    return [line for line in out.err.splitlines() if not re.match(sound, line)]


def write(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    return path


def label(values, **options):
    return bad_inputs.png(np.array(values), **options)


def poisoned(state, key):
    state[key][:1] = float("nan")
    return state


def ours_poisoned():
    content = torch.load("model.pt", weights_only=True)
    poisoned(content["model"], "head.conva.0.weight")
    torch.save(content, "bad.pth")


def foreign(**change):
    return peers.authors(depth=50, width=8, channels=16, **change)


def listed(text):
    return lambda: write("data/val.lst", text)


def predicted(name, content):
    return lambda: write(name, content), ["predict", name, *PREDICT[2:]]


COMMANDS = {
    "eval": ["eval", "bad.pth", "--data", "data", "--save", "out"],
    "weights": [*TRAIN, "--weights", "bad.pth"],
    "resume": [*TRAIN[:5], *SMALL, "--resume", "bad.pth"],
}
# by row, which of the hostile files it is
KINDS = {
    1: ["missing"],
    2: ["folder"],
    3: ["empty"],
    4: ["one byte"],
    5: ["half", "half, legacy"],
    6: ["a byte short", "a byte short, legacy"],
    7: ["flipped"],
    8: ["zeros"],
    9: ["html"],
    10: ["pointer"],
    11: ["gzip"],
    12: ["zip"],
    13: ["tar"],
    14: ["script"],
    15: ["module", "module, legacy"],
    16: [f"{name}, {layout}" for name in hostile.GADGETS for layout in ("zip", "legacy")],
    17: ["pickle"],
    18: ["array"],
    19: ["deflated bomb"],
    20: ["stride 0", "stride 0, legacy"],
}
Case = tuple[Callable[[], object], list[str], str]
# row and name: how to spoil the folder, the command, words of the line
CASES: dict[str, Case] = {
    f"{row:02} {kind}, {command}": (lambda kind=kind: hostile.FILES[kind][0](Path("bad.pth")), words, "bad.pth: ")
    for row, kinds in KINDS.items()
    for kind in kinds
    for command, words in COMMANDS.items()
}


def _case(row, name, spoil, words, *expected):
    CASES[f"{row:02} {name}"] = (spoil, words, *expected)


nothing = lambda: None  # noqa: E731
for command, words in COMMANDS.items():
    psp = {"decode_head.psp_modules.0.1.conv.weight": torch.ones(2)}
    _case(21, f"PSPNet, {command}", lambda psp=psp: torch.save(psp, "bad.pth"), words, "bad.pth: ")
    future = {"format": 99, "model": {}, "preset": {}, "classes": {}, "step": 0, "metrics": {}}
    _case(26, f"newer, {command}", lambda it=future: torch.save(it, "bad.pth"), words, "update ccnet-cli")
for command in ("eval", "weights"):
    words = COMMANDS[command]
    resnet = {"eval": "a backbone without a head", "weights": "weights do not fit"}[command]
    _case(
        21,
        f"ResNet-50, {command}",
        lambda: torch.save(peers.backbone("torchvision", width=8), "bad.pth"),
        words,
        resnet,
    )
    poison = lambda: torch.save(poisoned(foreign(), "layer1.0.bn1.bias"), "bad.pth")  # noqa: E731
    fits = [*"-s model.backbone=resnet50 -s model.channels=16 -s model.query_channels=2".split()]
    fits += ["-s", "model.auxiliary_channels=16", "--preset", "cityscapes-r2"]
    _case(
        24,
        f"not finite, {command}",
        poison,
        words if command == "eval" else [*words, *fits],
        "layer1.0.bn1.bias is not",
    )
    _case(24, f"ours not finite, {command}", ours_poisoned, words, "head.conva.0.weight is not finite")
_case(
    22,
    "other classes",
    lambda: torch.save(foreign(classes=21), "bad.pth"),
    [*COMMANDS["eval"], "--preset", "camvid"],
    "has 21 classes, preset camvid 11; choose a --preset",
)
_case(
    22,
    "other classes to begin with",
    nothing,
    ["train", "--preset", "quickstart", "-o", "run", *SMALL, "--weights", "model.pt"],
    "--allow-partial",
)
_case(25, "weights alone", nothing, [*TRAIN[:5], *SMALL, "--resume", "model.pt"], "use --weights")
_case(
    25,
    "other people's weights",
    lambda: torch.save(foreign(), "bad.pth"),
    COMMANDS["resume"],
    "not a checkpoint of ccnet",
)

ROWS_OF_IMAGES = {
    34: ("missing", None, "does not exist"),
    35: ("empty", b"", "is empty"),
    36: ("text", b"no image\n", "not a PNG"),
    38: ("cut", bad_inputs.png(bad_inputs.photograph(), colour=2)[:-300], "truncated"),
    39: ("checksum", bad_inputs.broken_images()["checksum.png"][0], "checksum"),
    41: ("huge", bad_inputs.with_size(PNG, 100_000, 100_000), "limit"),
}
for row, (name, content, expected) in ROWS_OF_IMAGES.items():
    spoil = nothing if content is None else lambda content=content: write("bad.png", content)
    _case(row, name, spoil, PREDICT, f"bad.png: {expected}" if row < 37 else expected)
    if content is not None:
        _case(row, f"{name}, eval", lambda content=content: write("data/val/000.png", content), EVAL, expected)
_case(34, "missing in a list", listed(f"val/x.png {LABEL[5:]}\n"), LISTED, "val.lst line 1")
_case(37, "cut jpeg", *predicted("bad.jpg", bad_inputs.jpeg()[:-400]), "truncated")
_case(37, "half jpeg", *predicted("bad.jpg", bad_inputs.broken_images()["truncated.jpg"][0]), "truncated")
_case(42, "bomb", *predicted("bad.jpg", bad_inputs.with_size(bad_inputs.jpeg(), 20_000, 10_000)), "limit")
_case(45, "gif", *predicted("bad.png", bad_inputs.broken_images()["picture.gif"][0]), "GIF")
_case(45, "tiff", *predicted("bad.png", bad_inputs.broken_images()["picture.tiff"][0]), "TIFF")
_case(49, "newline in a list", listed(f"val/0\n00.png {LABEL[5:]}\n"), LISTED, "val.lst line 1: two columns")
_case(49, "NUL in a list", listed(f"val/000.png\0 {LABEL[5:]}\n"), LISTED, "val.lst line 1")
_case(49, "NUL in an argument", nothing, ["predict", "a\0.png", *PREDICT[2:]], "NUL")
_case(50, "pipe", lambda: os.mkfifo("bad.png"), PREDICT, "not a regular file")
_case(50, "device", lambda: Path("bad.png").symlink_to("/dev/zero"), PREDICT, "not a regular file")
_case(51, "loop", lambda: Path("bad.png").symlink_to("bad.png"), PREDICT, "bad.png")
_case(52, "empty folder", lambda: Path("none").mkdir(), ["predict", "none", *PREDICT[2:]], "no image in this folder")

_case(54, "colour", lambda: write(LABEL, label(np.zeros((32, 48, 3), np.uint8), colour=2)), EVAL, "colour or alpha")
_case(55, "jpeg", lambda: write(LABEL, bad_inputs.jpeg(np.zeros((32, 48, 3), np.uint8))), EVAL, "not a PNG")
_case(56, "16 bits", lambda: write(LABEL, label(np.full((32, 48), 300), depth=16)), EVAL, "value 300")
_case(57, "value 33", lambda: write(LABEL, label(ZEROS + 33)), EVAL, f"{LABEL}: value 33 is no label")
_case(
    57,
    "value 33 in training",
    lambda: [p.write_bytes(label(ZEROS + 33)) for p in Path("data/trainannot").iterdir()],
    TRAIN,
    "value 33 is no label",
)
_case(57, "value 34 of Cityscapes", lambda: write(STREET_LABEL, label(ZEROS + 34)), STREET, "value 34")
_case(
    58,
    "train ids as label ids",
    lambda: write(STREET_LABEL, label(np.where(np.arange(48) < 9, 255, np.arange(48) % 7)[None].repeat(32, 0))),
    STREET,
    "look like train ids",
)
_case(
    58,
    "label ids as train ids",
    lambda: [
        write(f"streets/gtFine/{TRAIN_IDS}_gtFine_labelTrainIds.png", Path(STREET_LABEL).read_bytes()),
        write(
            "streets/val.lst", f"leftImg8bit/{TRAIN_IDS}_leftImg8bit.png gtFine/{TRAIN_IDS}_gtFine_labelTrainIds.png\n"
        ),
    ],
    [*STREET, "--list", "val.lst"],
    "look like labelIds",
)
_case(60, "another size", lambda: write(LABEL, label(np.zeros((8, 8), np.uint8))), EVAL, "its image")
_case(61, "missing", lambda: Path(LABEL).unlink(), EVAL, "has no label")
_case(
    62,
    "ignored class",
    nothing,
    [*TRAIN, "-s", "data.dataset=folder", "-s", "data.classes=[a, b, c, d]", "-s", "data.ignore_index=3"],
    "ignore_index 3 is also class d",
)
_case(63, "instance ids", lambda: write(LABEL, label(np.full((32, 48), 24_000), depth=16)), EVAL, "instance ids")

_case(64, "empty", listed(""), LISTED, "val.lst")
_case(64, "blank", listed("\n \n"), LISTED, "names no image")
_case(65, "one column", listed("val/000.png\n"), LISTED, "val.lst line 1: two columns")
_case(67, "UTF-16", lambda: write("data/val.lst", "val/000.png x.png\n".encode("utf-16")), LISTED, "UTF-16")
_case(67, "binary", lambda: write("data/val.lst", zlib.compress(b"x" * 999)), LISTED, "val.lst")
_case(68, "outside", listed("../good.png ../good.png\n"), LISTED, "lies outside the data root")
_case(68, "absolute", listed("/etc/hostname /etc/hostname\n"), LISTED, "lies outside the data root")
_case(
    68,
    "outside without labels",
    lambda: write("data/test.lst", "../good.png\n"),
    [*EVAL, "--split", "test", "--list", "test.lst"],
    "lies outside the data root",
)
_case(
    69,
    "two of one name",
    lambda: [write(f"{folder}/x.png", Path("good.png").read_bytes()) for folder in "ab"],
    "predict a b -o out --checkpoint model.pt".split(),
    "both would be written",
)
_case(
    69,
    "two kinds of one name",
    lambda: shutil.copy("data/val/000.png", "data/val/000.jpg"),
    EVAL,
    "has the same name as",
)
_case(70, "twice", listed(f"val/000.png {LABEL[5:]}\n" * 2), LISTED, "val.lst line 2: names val/000 again")
_case(
    70,
    "twice without labels",
    lambda: write("data/test.lst", "val/000.png\n" * 2),
    [*EVAL, "--split", "test", "--list", "test.lst"],
    "test.lst line 2: names val/000 again",
)

for value in ("-1", "nan", "inf", "fast"):
    _case(73, f"lr {value}", nothing, [*TRAIN, "-s", f"schedule.lr={value}"], "schedule.lr")
_case(74, "unknown key", nothing, [*TRAIN, "-s", "schedule.learing_rate=1"], "unknown; did you mean schedule.lr?")
_case(
    74,
    "unknown key in a file",
    lambda: write("bad.yaml", "learing_rate: 1\n"),
    ["train", "--preset", "bad.yaml"],
    "did you mean",
)
YAML = {
    (75, "twice"): ("name: x\nname: y\n", "bad.yaml:2:1: key name is written twice"),
    (76, "tab"): ("name: x\n\tseed: 1\n", "bad.yaml:2:1"),
    (76, "indent"): ("name: x\n  seed: 1\n", "bad.yaml:2:7"),
    (76, "two documents"): ("name: x\n---\nname: y\n", "bad.yaml:2:1"),
    (76, "empty"): ("", "bad.yaml:1:1"),
    (76, "list"): ("- x\n", "bad.yaml:1:1"),
    (77, "tag"): (f"x: !!python/object/apply:os.system ['touch {hostile.MARK}']\n", "bad.yaml:1:4: tag"),
    (78, "deep"): ("name: " + "[" * 5000, "nested too deep"),
    (78, "deep mappings"): ("{a: " * 5000, "nested too deep"),
}
for (row, name), (text, expected) in YAML.items():
    _case(
        row, name, lambda text=text: write("bad.yaml", text), ["train", "--preset", "bad.yaml", "-o", "run"], expected
    )
for crop in ("769", "0,0", "-1,5", "768,768,3"):
    _case(79, f"crop {crop}", nothing, [*TRAIN, "-s", f"data.crop={crop}"], "data.crop")
for setting in ("train.batch=0", "train.batch=1", "data.workers=-1", "data.workers=9999"):
    _case(80, setting, nothing, [*TRAIN, "-s", setting], setting.partition("=")[0])
_case(80, "indivisible batch", nothing, [*TRAIN, "-s", "train.batch=3", "--processes", "2"], "does not divide among 2")
for device in ("cuda", "cuda:7", "tpu"):
    if device == "tpu" or not torch.cuda.is_available():
        _case(81, device, nothing, [*TRAIN, "--device", device], f"device {device}")
for words in (EVAL, "predict good.png -o mask.png --checkpoint model.pt".split()):
    _case(81, f"compile for {words[0]}", nothing, [*words, "--compile", "on", "--device", "cpu"], "option --compile on")
_case(81, "fp16 on the CPU", nothing, [*TRAIN, "-s", "train.precision=fp16", "--device", "cpu"], "needs a GPU")

_case(82, "run is a file", lambda: write("run", "x"), TRAIN, "run: is not a folder")
_case(82, "folder is a file", lambda: write("out", "x"), EVAL, "out: is a file")
_case(
    82,
    "folder of masks is a file",
    lambda: write("out", "x"),
    "predict data/val -o out --checkpoint model.pt".split(),
    "out: is a file",
)
_case(
    82,
    "below a file",
    lambda: write("out", "x"),
    "predict good.png -o out/x.png --checkpoint model.pt".split(),
    "out: is a file",
)
_case(
    82,
    "no folder for the result",
    nothing,
    "eval model.pt --data data --json no/out.json".split(),
    "its folder does not exist",
)

# what the list does not name
_case(
    0,
    "point outside",
    nothing,
    "visualize good.png --point 40,3 -o out.png --checkpoint model.pt".split(),
    "outside the image of 40x24",
)
_case(0, "list is not there", nothing, [*EVAL, "--list", "none.lst"], "none.lst: does not exist")
_case(
    0,
    "list of a split that has none",
    lambda: write("data/any.lst", "val/000.png\n"),
    [*EVAL, "--split", "any", "--list", "any.lst"],
    "preset key data.any_list: unknown; did you mean data.",
)
_case(
    0,
    "nothing to score or save",
    lambda: write("data/test.lst", "val/000.png\n"),
    "eval model.pt --data data --json out.json --split test --list test.lst".split(),
    "split test: has no labels",
)
_case(
    0,
    "no labels and output exists",
    lambda: [write("data/test.lst", "val/000.png\n"), write("out/val/000.png", "mine")],
    [*EVAL, "--split", "test", "--list", "test.lst"],
    "000.png: exists",
)
_case(0, "data missing", nothing, "eval model.pt --data nowhere".split(), "nowhere")
_case(
    0,
    "output exists",
    lambda: write("out.png", b"mine"),
    "predict good.png -o out.png --checkpoint model.pt".split(),
    "out.png: exists",
)
_case(0, "run exists", lambda: write("run/mine.txt", "x"), TRAIN, "run: is not an empty folder")

# strict resume is tested with resuming, distributed environments with starting processes
ELSEWHERE = {32, 83}


def test_every_row_of_the_list_is_here():
    results = re.findall(r"^def test_row_(\d+)(?:_and_(\d+))?", Path(__file__).read_text(), re.M)
    found = {int(number) for numbers in results for number in numbers if number}
    found |= {int(name[:2]) for name in CASES} - {0}
    assert found | ELSEWHERE == set(range(1, 85))


def refused(words, out, place, before):
    lines = told(out)
    assert out.out == ""
    assert len(lines) == 1 and lines[0].startswith("ccnet: error: "), out.err
    assert re.fullmatch(r"ccnet: error: .+: .+; .+", lines[0])
    assert files(place) == before
    return lines[0]


@pytest.mark.parametrize("case", CASES)
def test_it_ends_with_2_and_one_line(case, place, capfd):
    spoil, words, expected = CASES[case]
    spoil()
    before = files(place)
    code, out = ran(words, capfd)
    assert expected in refused(words, out, place, before), out.err
    assert code == 2
    assert not Path(hostile.MARK).exists()


# a few of each kind in processes of their own; those that load torch take seconds
LIGHT = ["73 lr nan", "74 unknown key in a file", "75 twice", "76 list", "77 tag", "78 deep"]
REAL = [
    *("05 half, eval", "07 flipped, resume", "08 zeros, weights", "15 module, eval", "16 os.system, zip, eval"),
    *("16 os.system, legacy, weights", "19 deflated bomb, eval", "20 stride 0, eval", "24 ours not finite, eval"),
    *("36 text", "37 cut jpeg", "39 checksum, eval", "42 bomb", "50 pipe", "51 loop", "55 jpeg", "57 value 33"),
    *("65 one column", "81 tpu", "82 run is a file"),
]


@pytest.mark.parametrize("case", [*LIGHT, *(pytest.param(case, marks=pytest.mark.slow) for case in REAL)])
def test_a_process_of_its_own_ends_the_same_way(case, place, ccnet):
    spoil, words, expected = CASES[case]
    spoil()
    before = files(place)
    done = ccnet(*words, timeout=60)
    assert done.returncode == 2
    lines = told(type("Printed", (), {"err": done.stderr}))
    assert done.stdout == "" and len(lines) == 1 and expected in lines[0], done.stderr
    assert files(place) == before


def test_the_same_commands_work_without_the_harm(place, capfd):
    """The twin: nothing in the commands themselves is what is refused above."""
    write("bad.png", Path("good.png").read_bytes())
    write("data/val.lst", f"val/000.png {LABEL[5:]}\n")
    for words in (PREDICT, EVAL, [*LISTED, "--overwrite"], STREET, TRAIN):
        assert ran(words, capfd)[0] == 0
    shutil.rmtree("run")
    shutil.copy("model.pt", "bad.pth")
    shutil.rmtree("out")
    assert ran(COMMANDS["eval"], capfd)[0] == ran(COMMANDS["weights"], capfd)[0] == 0


def scores(words, capfd):
    code, out = ran(["eval", "model.pt", "--data", "data", "--json", "-", *words], capfd)
    assert code == 0, out.err
    return {key: json.loads(out.out)[key] for key in ("miou", "classes", "pixels")}


def test_row_05_falls_back_to_the_checkpoint_before(run, capfd):
    os.truncate(NEWEST, NEWEST.stat().st_size // 2)
    code, out = ran([*RESUME, "--resume"], capfd)
    assert code == 0 and "step_00000002.pt" in out.err
    assert Path("run/checkpoints/step_00000003.pt").is_file()


@pytest.mark.parametrize("generation", [1, 2])
def test_row_18_scalars_of_numpy_are_numbers(generation, place, capfd):
    torch.save({"state_dict": foreign(), "best_miou": np.float64(0.79), "epoch": np.int64(3)}, "bad.pth")
    if generation == 1:
        with zipfile.ZipFile("bad.pth") as archive:
            members = {member.filename: archive.read(member) for member in archive.infolist()}
        with zipfile.ZipFile("bad.pth", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert ran("export bad.pth -o new.pt".split(), capfd)[0] == 0


def test_row_23_a_prefix_is_taken_off(place, capfd):
    torch.save(foreign(), "plain.pth")
    torch.save({f"module.{key}": tensor for key, tensor in foreign().items()}, "prefixed.pth")
    for name in ("plain", "prefixed"):
        assert ran(["export", f"{name}.pth", "-o", f"{name}.pt"], capfd)[0] == 0
    plain, prefixed = (checkpoint.read(Path(f"{name}.pt"))["model"] for name in ("plain", "prefixed"))
    assert all(torch.equal(plain[key], prefixed[key]) for key in plain)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Somebody whom file permissions bind: root is nobody here."""
    root = os.geteuid() == 0
    if root:
        # the saved identity stays root's, to return to
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


@pytest.fixture
def public(made, monkeypatch, capfd):
    """The working folder where anybody may write, everything imported that a command needs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(made, folder, dirs_exist_ok=True)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o777)
        monkeypatch.chdir(folder)
        assert ran("predict good.png -o warm.png --checkpoint model.pt".split(), capfd)[0] == 0
        Path("warm.png").unlink()
        yield folder


def test_row_27_a_file_that_may_not_be_read(public, capfd):
    shutil.copy("model.pt", "bad.pth")
    Path("bad.pth").chmod(0)
    before = files(public)
    for words in COMMANDS.values():
        with unprivileged():
            code, out = ran(words, capfd)
        assert code == 2 and re.search("Permission denied|not readable", refused(words, out, public, before))


def test_row_28_a_manifest_without_its_file_is_passed_over(run, capfd):
    NEWEST.unlink()
    code, out = ran([*RESUME, "--resume"], capfd)
    assert code == 0 and "step_00000002.pt" in out.err and "Traceback" not in out.err


@pytest.mark.parametrize("gone", [".json", ".pt"])
def test_row_28_half_of_a_checkpoint_is_refused_where_it_is_named(gone, run, capfd):
    NEWEST.with_suffix(gone).unlink()
    before = files(run)
    words = [*RESUME, "--resume", NEWEST]
    code, out = ran(words, capfd)
    assert code == 2 and re.search("no manifest|not found|does not exist|No such", refused(words, out, run, before))


def test_row_29_a_file_that_its_manifest_does_not_know(run, capfd):
    data = bytearray(NEWEST.read_bytes())
    data[len(data) // 2] ^= 1
    NEWEST.write_bytes(data)
    before = files(run)
    code, out = ran([*RESUME, "--resume", NEWEST], capfd)
    assert code == 2 and len(told(out)) == 1 and files(run) == before
    assert ran([*RESUME, "--resume"], capfd)[0] == 0


def test_row_30_without_a_sound_checkpoint_nothing_begins_anew(run, capfd):
    for path in Path("run/checkpoints").glob("*.pt"):
        os.truncate(path, 100)
    before = files(run)
    code, out = ran([*RESUME, "--resume"], capfd)
    assert code == 2 and told(out)[-1].startswith("ccnet: error: ") and "Traceback" not in out.err
    # each resume is counted before its checkpoint is read, and taken back: the folder alone shows that
    assert files(run) | {"checkpoints": 0} == before | {"checkpoints": 0}


def test_row_31_an_empty_folder_is_a_fresh_start_and_told(place, capfd):
    Path("run").mkdir()
    code, out = ran([*TRAIN, "--resume"], capfd)
    assert code == 0 and "nothing to resume" in out.err


def test_row_33_past_the_end_there_is_nothing_to_do(run, capfd):
    code, out = ran([*RESUME, "-s", "schedule.steps=2", "--resume"], capfd)
    assert code == 0 and "nothing to do" in out.err


def test_row_40_the_content_tells_the_format(place, capfd):
    write("bad.jpg", Path("good.png").read_bytes())
    assert ran(["predict", "bad.jpg", *PREDICT[2:]], capfd)[0] == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1)])
def test_row_43_and_44_thin_images_keep_their_size(shape, place, capfd):
    tiny.write(place / "thin.png", np.full((*shape, 3), 90, np.uint8))
    assert ran("predict thin.png -o out.png --format train-id --checkpoint model.pt".split(), capfd)[0] == 0
    assert bad_inputs.read_png(Path("out.png").read_bytes())[2].shape == shape
    for number in range(2):
        tiny.write(place / f"data/train/{number:03}.png", np.full((*shape, 3), 90, np.uint8))
        tiny.write(place / f"data/trainannot/{number:03}.png", np.zeros(shape, np.uint8))
    assert ran(TRAIN, capfd)[0] == 0


def test_row_45_every_kind_of_image_has_a_defined_result(place, capfd):
    picture = bad_inputs.photograph(16, 16)
    grey = np.dstack([picture[:, :, 0]] * 3)
    kinds = {
        "grey.png": (bad_inputs.png(picture[:, :, 0]), bad_inputs.png(grey, colour=2)),
        "rgba.png": (
            bad_inputs.png(np.dstack([picture, picture[:, :, :1]]), colour=6),
            bad_inputs.png(picture, colour=2),
        ),
        "sixteen.png": (bad_inputs.png(picture.astype(int) * 257, 16, 2), bad_inputs.png(picture, colour=2)),
        "lossless.webp": (
            cv2.imencode(".webp", picture[:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes(),
            bad_inputs.png(picture, colour=2),
        ),
    }
    for name, (content, same) in kinds.items():
        write(name, content)
        write("same.png", same)
        for source, output in ((name, f"{name}.out.png"), ("same.png", f"{name}.same.png")):
            assert ran(["predict", source, "-o", output, "--checkpoint", "model.pt"], capfd)[0] == 0, name
        assert Path(f"{name}.out.png").read_bytes() == Path(f"{name}.same.png").read_bytes(), name
    # the conversion of inks may differ in the last bit
    write("cmyk.jpg", bad_inputs.flat_cmyk_jpeg((200, 100, 50, 255)))
    assert ran(["predict", "cmyk.jpg", *PREDICT[2:]], capfd)[0] == 0


def test_row_46_a_turned_image_stays_on_its_label(place, capfd):
    photo = bad_inputs.jpeg(tiny.picture(32, 48, 0))
    Path("data/val/000.png").unlink()
    plain = write("data/val/000.jpg", photo)
    upright = scores([], capfd)
    plain.write_bytes(bad_inputs.with_exif(photo, 6))
    assert scores([], capfd) == upright
    write("turned.jpg", bad_inputs.with_exif(photo, 6))
    assert ran("predict turned.jpg -o out.png --format train-id --checkpoint model.pt".split(), capfd)[0] == 0
    assert bad_inputs.read_png(Path("out.png").read_bytes())[2].shape == (48, 32)


NAMES = ["straße ü.png", "two words.png", "x" * 250 + ".webp", "line\nbreak.png", os.fsdecode(b"caf\xe9.png")]


@pytest.mark.parametrize("name", NAMES)
def test_row_47_and_48_any_sound_name_is_segmented(name, place, capfd):
    Path(name).write_bytes(Path("good.png").read_bytes())
    assert ran(["predict", name, "-o", "out", "--checkpoint", "model.pt"], capfd)[0] == 0
    assert (place / "out" / name).with_suffix(".png").is_file()


def test_row_53_and_56_palettes_and_16_bits_hold_the_same_values(place, capfd):
    plain = scores([], capfd)
    values = images.read_label(Path(LABEL))
    palette = [(index * 37 % 256, index * 91 % 256, 255 - index) for index in range(256)]
    write(LABEL, label(values, colour=3, palette=palette))
    assert scores([], capfd) == plain
    write(LABEL, label(values, depth=16))
    assert scores([], capfd) == plain
    write(LABEL, label(np.minimum(values + 1, 10)))
    assert scores([], capfd) != plain


def test_row_59_labels_without_a_class_train_with_loss_0(place, capfd):
    for path in Path("data/trainannot").iterdir():
        path.write_bytes(label(images.read_label(path) * 0 + 255))
    assert ran(TRAIN, capfd)[0] == 0
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == 0


@pytest.mark.parametrize("style", ["\r\n", "\ufeff", "  \n", "\t"])
def test_row_66_lists_of_every_style_are_read(style, place, capfd):
    text = f"val/000.png {LABEL[5:]}\nval/001.png {LABEL[5:].replace('000', '001')}\n"
    plain = scores([], capfd)
    styled = {"\ufeff": style + text, "\t": text.replace(" ", "\t")}.get(style, text.replace("\n", style))
    write("data/val.lst", styled)
    assert scores(["--list", "val.lst"], capfd) == plain


@pytest.mark.parametrize("lines", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_row_71_a_long_list_begins(lines, place, capfd):
    pairs = [f"train/{number:03}.png trainannot/{number:03}.png\n" for number in range(2)]
    write("data/train.lst", "".join(pairs) * (lines // 2))
    started = time.process_time()
    assert ran([*TRAIN, "-s", "data.train_list=train.lst"], capfd)[0] == 0
    print(f"{lines} lines: {time.process_time() - started:.1f} s")


def test_row_72_an_exponent_is_a_number(place, capfd):
    write("mine.yaml", ran(["presets", "show", "camvid"], capfd)[1].out.replace("lr: ", "lr: 1e-2 #"))
    code, out = ran("presets show mine.yaml --json -".split(), capfd)
    assert code == 0 and json.loads(out.out)["schedule"]["lr"] == 0.01


WRITING = {
    "masks": "predict good.png -o out --checkpoint model.pt",
    "saved maps": "eval model.pt --data data --save out",
    "json": "eval model.pt --data data --json out",
    "csv": "eval model.pt --data data --csv out",
    "figure": "visualize good.png --point 3,4 -o out.png --checkpoint model.pt",
    "weights": "export model.pt -o out",
    "preset": "presets copy camvid out",
    "sample": "data sample out",
    "toys": "data make toyscapes out --train 1 --val 1",
}


@pytest.mark.parametrize("kind", WRITING)
def test_row_82_a_folder_that_may_not_be_written_is_refused(kind, public, capfd):
    words = WRITING[kind].split()
    public.chmod(0o555)
    before = files(public)
    with unprivileged():
        code, out = ran(words, capfd)
    lines = [line for line in out.err.splitlines() if line.startswith("ccnet: error: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in out.err
    assert files(public) == before
    public.chmod(0o777)
    assert ran(words, capfd)[0] == 0


def test_row_82_a_right_that_is_lost_meanwhile_is_the_machine_s_failure(public, capfd, monkeypatch):
    written = []

    def write_once(path, *rest, before=outputs.write):
        if written:
            path.parent.chmod(0o555)
        written.append(path)
        before(path, *rest)

    monkeypatch.setattr(outputs, "write", write_once)
    with unprivileged():
        code, out = ran("predict data/val -o out --checkpoint model.pt".split(), capfd)
    Path("out").chmod(0o777)
    assert code == 3 and "out/001.png: not written (Permission denied)" in told(out)[0] and len(told(out)) == 1
    assert [path.name for path in Path("out").iterdir()] == ["000.png"]


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def in_full(kind, target):
    return [word.replace("out", str(target), 1) if word.startswith("out") else word for word in WRITING[kind].split()]


@pytest.mark.parametrize("kind", WRITING)
def test_row_82_a_full_disk_is_named_and_keeps_what_was_there(kind, place, small_disk, capfd):
    (small_disk / "mine").write_bytes(b"x" * 4000)
    code, out = ran(in_full(kind, small_disk / "out"), capfd)
    lines = [line for line in out.err.splitlines() if line.startswith("ccnet: error: ")]
    fits = code == 0
    assert fits or (code == 3 and len(lines) == 1 and str(small_disk) in lines[0]), out.err
    assert "Traceback" not in out.err
    if not fits:
        # whole files alone: the first of two maps may have found room
        assert {path.name for path in small_disk.rglob("*") if path.is_file()} <= {"mine", "000.png"}
    assert (small_disk / "mine").read_bytes() == b"x" * 4000
    # a page is enough for these
    assert not fits or kind in ("masks", "json", "csv", "preset")


@pytest.mark.parametrize("kind", WRITING)
def test_row_82_a_limit_of_file_sizes_is_a_full_disk(kind, place, capfd):
    write("mine", "x")
    before = set(files(place))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capfd.readouterr()
    # captured output is a file too: it must stay below the limit itself
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(SystemExit) as stopped, _piped() as said:
            cli.main(WRITING[kind].split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = [line for line in said() if line.startswith("ccnet: error: ")]
    assert stopped.value.code == 3 and len(lines) == 1 and "out" in lines[0] and "File too large" in lines[0]
    assert {name for name in files(place) if Path(name).is_file()} <= before


@contextlib.contextmanager
def _piped() -> Iterator[Callable[[], list[str]]]:
    """stderr as a pipe, which no limit of file sizes reaches; what was said is read afterwards."""
    reading, writing = os.pipe()
    said = bytearray()
    old = sys.stderr
    sys.stderr = os.fdopen(writing, "w")
    try:
        yield lambda: bytes(said).decode().splitlines()
    finally:
        sys.stderr.close()
        sys.stderr = old
        while block := os.read(reading, 65536):
            said += block
        os.close(reading)


def started(words, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-m", "ccnet_cli.cli", *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize(
    "shell",
    [
        "{} eval model.pt --data data | head -1; exit ${{PIPESTATUS[0]}}",
        pytest.param("{} eval model.pt --data data <&- >&- 2>&-", marks=pytest.mark.slow),
        pytest.param("{} predict good.png -o closed.png --checkpoint model.pt <&- >&- 2>&-", marks=pytest.mark.slow),
        pytest.param("env -u HOME LANG=C LC_ALL=C {} eval model.pt --data data", marks=pytest.mark.slow),
        pytest.param("{} eval model.pt --data data --json - > /dev/full", marks=pytest.mark.slow),
    ],
    ids=["head", "closed", "closed for predict", "no home", "full"],
)
def test_row_84_streams_and_surroundings_leave_no_traceback(shell, place):
    command = shell.format(f"{sys.executable} -m ccnet_cli.cli")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.returncode in ((3,) if "full" in shell else (0, 141) if "head" in shell else (0,))
    if "closed.png" in shell:
        images.read_label(Path("closed.png"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "eval"])
def test_row_84_an_interrupt_and_another_leave_no_traceback(command, place):
    words = {
        "train": [*TRAIN, "-s", "schedule.steps=100000", "-s", "log.every=1"],
        "eval": "eval model.pt --data data --scales 1,1,1,1,1,1,1,1 -s eval.tile=8,8 --mode sliding".split(),
    }[command]
    # long enough to be interrupted in the middle
    tiny.make_camvid(place / "data", [(200, 300)] * 2)
    for delay in (0.0, 0.01, 0.1):
        process = started(words)
        # in the middle of the work: a run logs, an evaluation has loaded its checkpoint
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said and "Exception ignored" not in said, said
        assert process.returncode in (130, -signal.SIGINT)
        shutil.rmtree("run", ignore_errors=True)


def test_row_84_workers_without_shared_memory_are_told_at_the_start(place, capfd, monkeypatch):
    needed = (2 * 2 + 2) * 2 * 24 * 40 * 20
    space = os.statvfs("/")

    class Space:
        f_frsize = 1
        f_bavail = needed - 1

    monkeypatch.setattr(plan, "SHARED_MEMORY", place)
    monkeypatch.setattr(plan.os, "statvfs", lambda path: Space if path == place else space)
    before = files(place)
    code, out = ran([*TRAIN, "-s", "data.workers=2"], capfd)
    assert code == 3 and "set data.workers=0" in refused(TRAIN, out, place, before)
    Space.f_bavail = needed
    assert ran([*TRAIN, "-s", "data.workers=2"], capfd)[0] == 0
