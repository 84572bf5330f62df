"""Every option that writes, against every kind of thing that it may name: nothing is replaced that should stay."""

import os
import shutil
import socket
import stat
import threading
from pathlib import Path

import cv2
import pytest
import tiny

from ccnet_cli import cli, errors

IMAGES = [(24, 40), (16, 24)]
EVAL = ("eval", "ckpt.pt", "--data", "data")
PREDICT = ("predict", "photo.png", "--checkpoint", "ckpt.pt")
DRAW = ("visualize", "photo.png", "--checkpoint", "ckpt.pt", "--point", "3,4")
SHOW = ("presets", "show", "mine.yaml")
# the words of a command, {} its output; the suffix that this has; what the command reads; whether it takes --overwrite
OPTIONS = {
    "predict -o": ((*PREDICT, "-o", "{}"), ".png", "photo.png ckpt.pt ckpt.json", True),
    "predict --legend": ((*PREDICT, "-o", "new.png", "--legend", "{}"), ".png", "photo.png ckpt.pt", True),
    "predict --json": ((*PREDICT, "-o", "new.png", "--json", "{}"), "", "photo.png ckpt.pt ckpt.json", False),
    "eval --json": ((*EVAL, "--json", "{}"), "", "image.png label.png ckpt.pt ckpt.json", False),
    "eval --csv": ((*EVAL, "--csv", "{}"), "", "image.png label.png ckpt.pt ckpt.json", False),
    "eval --confusion": ((*EVAL, "--confusion", "{}"), ".png", "image.png label.png ckpt.pt", False),
    "visualize -o": ((*DRAW, "-o", "{}"), ".png", "photo.png ckpt.pt", True),
    "visualize --maps": ((*DRAW, "-o", "new.png", "--maps", "{}"), ".npz", "photo.png ckpt.pt", True),
    "visualize --json": ((*DRAW, "-o", "new.png", "--json", "{}"), "", "photo.png ckpt.pt ckpt.json", False),
    "visualize --html": (("visualize", "photo.png", "--checkpoint", "ckpt.pt", "--html", "{}"), ".html", "", True),
    "export -o": (("export", "ckpt.pt", "-o", "{}"), ".pt", "ckpt.pt ckpt.json", True),
    "presets copy": (("presets", "copy", "mine.yaml", "{}"), "", "mine.yaml", True),
    "presets list --json": (("presets", "list", "--json", "{}"), "", "", False),
    "presets show --json": ((*SHOW, "--json", "{}"), "", "mine.yaml", False),
    "presets diff --json": (("presets", "diff", "quickstart", "mine.yaml", "--json", "{}"), "", "mine.yaml", False),
    "data sample": (("data", "sample", "{}"), ".png", "", True),
    "data check --json": (("data", "check", "data", "--json", "{}"), "", "image.png label.png", False),
    "bench cost --json": (("bench", "cost", "--size", "3x3", "--channels", "8", "--json", "{}"), "", "", False),
    "bench growth --plot": (("bench", "growth", "--size", "3x3", "--repeats", "1", "--plot", "{}"), ".png", "", False),
    "bench gpu -o": (("bench", "gpu", "-o", "{}"), "", "", True),
    "bench model --json": (("bench", "model", "--preset", "./mine.yaml", "--json", "{}"), "", "mine.yaml", False),
    "doctor --json": (("doctor", "--json", "{}"), "", "", False),
}
# what takes seconds, or needs a GPU, is refused as fast as the rest, but not run
NOT_RUN = {"bench gpu -o", "bench growth --plot", "bench model --json", "doctor --json", "visualize --html"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, model):
    """Everything that the commands read; image.png and label.png are names of a file of the data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(errors.VERBOSITY, "")
    for suffix in (".pt", ".json"):
        shutil.copy(model.with_suffix(suffix), f"ckpt{suffix}")
    for split in ("train", "val"):
        tiny.make_camvid(Path("data"), IMAGES, split)
    Path("image.png").symlink_to(next(Path("data/val").iterdir()))
    Path("label.png").symlink_to(next(Path("data/valannot").iterdir()))
    cv2.imwrite("photo.png", tiny.picture(24, 40, 5))
    assert call("presets", "copy", "quickstart", "mine.yaml") == 0
    return tmp_path


def call(*words):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    return stopped.value.code


def command(option, output):
    words, _, _, overwrite = OPTIONS[option]
    return [word.replace("{}", str(output)) for word in words] + ["--overwrite"] * overwrite


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, folder, option, output):
    """The one line of a refusal, which leaves every file as it was and makes no new one."""
    before, names = files_below(folder), sorted(folder.rglob("*"))
    capsys.readouterr()
    assert call(*command(option, output)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert files_below(folder) == before and sorted(folder.rglob("*")) == names
    return line


@pytest.mark.parametrize("option", [option for option, each in OPTIONS.items() if each[2]])
def test_an_input_is_never_replaced(folder, capsys, option):
    _, suffix, inputs, _ = OPTIONS[option]
    for index, name in enumerate(inputs.split()):
        link, hard = Path(f"link-{index}{suffix}"), Path(f"hard-{index}{suffix}")
        link.symlink_to(name)
        os.link(Path(name).resolve(), hard)
        names = [link, hard, *([name] if name.endswith(suffix) and not Path(name).is_symlink() else [])]
        for output in names:
            assert "is read by this command" in refused(capsys, folder, option, output)


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_no_file_is_refused(folder, capsys, option):
    suffix = OPTIONS[option][1]
    Path(f"loop{suffix}").symlink_to(f"loop{suffix}")
    Path("plain").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"socket{suffix}")
        for name in (f"socket{suffix}", f"loop{suffix}", f"plain/below{suffix}"):
            refused(capsys, folder, option, name)
    # of some commands an output may be a folder
    if option not in ("predict -o", "visualize --html", "presets copy"):
        Path(f"below{suffix}").mkdir()
        refused(capsys, folder, option, f"below{suffix}")


PAIRS = {
    "predict": (*PREDICT, "--overwrite", "-o", "{}", "--legend", "{}"),
    "predict, JSON": (*PREDICT, "--overwrite", "-o", "{}", "--json", "{}"),
    "predict, JSON and legend": (*PREDICT, "-o", "new.png", "--legend", "{}", "--json", "{}"),
    "eval": (*EVAL, "--json", "{}", "--csv", "{}"),
    "eval, drawn": (*EVAL, "--csv", "{}", "--confusion", "{}"),
    "eval, saved": (*EVAL, "--save", ".", "--json", "000.png", "--confusion", "new.png"),
    "visualize": (*DRAW, "--overwrite", "-o", "{}", "--json", "{}"),
    "bench": ("bench", "growth", "--json", "{}", "--plot", "{}"),
}


@pytest.mark.parametrize("words", PAIRS.values(), ids=PAIRS)
def test_two_outputs_of_one_name_are_refused(folder, capsys, words):
    Path("below").mkdir()
    Path("alias.png").symlink_to("new-one.png")
    spellings = iter(["new-one.png", "alias.png"])
    words = [next(spellings) if word == "{}" else word for word in words]
    names = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert call(*words) == 2
    assert "is the name of two outputs" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == names


@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in NOT_RUN])
def test_links_are_followed_and_streams_written_through(folder, capsys, option):
    suffix = OPTIONS[option][1]
    target, link = Path("target"), Path(f"link{suffix}")
    target.write_bytes(b"old")
    link.symlink_to(target)
    assert call(*command(option, link)) == 0
    assert link.readlink() == target and target.read_bytes() not in (b"", b"old")
    os.mkfifo("fifo")
    content = []
    reader = threading.Thread(target=lambda: content.append(Path("fifo").read_bytes()), daemon=True)
    reader.start()
    # again, now with the file new.png that some commands write beside
    Path("new.png").unlink(missing_ok=True)
    assert call(*command(option, "fifo")) == 0
    reader.join(30)
    assert content[0][:16] == target.read_bytes()[:16] and stat.S_ISFIFO(Path("fifo").stat().st_mode)
    assert not list(folder.rglob(".tmp-*"))
