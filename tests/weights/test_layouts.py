"""Layouts from outside: asked first, inferred from, written; what they get and what their errors become."""

from pathlib import Path

import pytest
import tiny
import torch

from ccnet_cli import cli, config
from ccnet_cli.commands.export import export
from ccnet_cli.errors import InputError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.runs import checkpoint, torchfile
from ccnet_cli.weights import load
from ccnet_cli.weights.layouts import LAYOUTS, Foreign, Layout, Misfit
from ccnet_cli.weights.recognise import recognise

TABLE = (("trunk.", "backbone."), ("decoder.", "head."), ("second.", "auxiliary."))
MODEL = {
    "backbone": {"kind": "tiny", "width": 8},
    "head": {"kind": "rcca", "recurrence": 1, "channels": 8, "query_channels": 4},
    "auxiliary": {"kind": "fcn", "channels": 8},
    "channel_order": "rgb",
    "mean": [127.5, 127.5, 127.5],
    "std": [64.0, 64.0, 64.0],
}
EXTENSION = """
from ccnet_cli.weights.layouts import LAYOUTS, Foreign, Layout, Misfit, rename

TABLE = {table!r}

def recognise(state, meta):
    if meta.get("author") != "somebody":
        return None
    return Foreign("somebody's network", {model!r}, rename(state, TABLE), TABLE, classes=meta["classes"])

def export(state, model):
    if model.backbone.kind != "tiny":
        raise Misfit(f"somebody has no {{model.backbone.kind}}")
    theirs = rename(state, [(ours, name) for name, ours in TABLE])
    return {{"weights": theirs, "author": "somebody", "classes": len(state["head.bottleneck.4.bias"])}}

LAYOUTS["somebody"] = Layout(recognise, export)
"""


@pytest.fixture
def somebody():
    """The layout of the extension, in this process."""
    exec(compile(EXTENSION.format(table=TABLE, model=MODEL), "somebody.py", "exec"), {})
    yield LAYOUTS["somebody"]
    del LAYOUTS["somebody"]


def test_a_layout_from_outside_is_written_read_and_started_from(somebody, tmp_path, capsys):
    saved = tiny.save_checkpoint(tmp_path / "run", "model.recurrence=1", stirred=True)
    theirs = export(saved, tmp_path / "theirs.pth", "somebody")
    content = torchfile.read(theirs)
    assert content["author"] == "somebody" and "trunk.stem.0.weight" in content["weights"]
    artifact = load_model(theirs)
    assert "somebody's network" in capsys.readouterr().err
    own = checkpoint.read(saved)["model"]
    assert all(torch.equal(tensor, own[key]) for key, tensor in artifact.network.state_dict().items())
    settings = artifact.preset.model
    assert (settings.backbone.kind, settings.head.recurrence, settings.channel_order) == ("tiny", 1, "rgb")
    # what the file does not fix is the recipe's
    assert settings.head.dropout == config.load("camvid").model.head.dropout
    assert artifact.preset.data.dataset == "camvid"
    start = load.read_start(theirs)
    assert start.foreign.classes == 11 and not start.partial
    del content["weights"]["trunk.stem.0.weight"]
    torch.save(content, theirs)
    with pytest.raises(InputError, match=r"theirs.pth: 1 weights do not fit: trunk.stem.0.weight is missing"):
        load_model(theirs)


def test_the_command_line_takes_layouts_from_outside(ccnet, tmp_path):
    (tmp_path / "somebody.py").write_text(EXTENSION.format(table=TABLE, model=MODEL))
    saved = tiny.save_checkpoint(tmp_path / "run", "model.recurrence=1")
    extend = ("--extend", tmp_path / "somebody.py")
    done = ccnet(*extend, "export", saved, "--format", "somebody", "-o", "theirs.pth")
    assert done.returncode == 0, done.stderr
    done = ccnet(*extend, "export", "theirs.pth", "-o", "back.pt")
    assert done.returncode == 0 and "somebody's network" in done.stderr
    refused = ccnet("export", saved, "--format", "somebody", "-o", "no.pth")
    layouts = (
        "'csail', 'openseg', 'ocnet', 'torchvision', 'semseg', 'danet', 'encoding', 'toolbox', 'mmseg', 'official'"
    )
    names = f"'weights', {layouts}, 'onnx', 'openvino', 'torch-export'"
    assert refused.returncode == 2
    assert f"option --format: 'somebody' is not one of {names}; see ccnet export --help" in refused.stderr


def test_the_last_layout_is_asked_first_and_none_sees_what_another_did(monkeypatch):
    asked = []

    def layout(name, answer=None):
        def recognise(state, meta):
            asked.append((name, sorted(state), meta.get("note")))
            state.clear()
            meta.clear()
            return answer

        return Layout(recognise)

    own = Foreign("the first", {}, {})
    monkeypatch.setitem(LAYOUTS, "first", layout("first", own))
    monkeypatch.setitem(LAYOUTS, "second", layout("second"))
    content = {"state_dict": {"module.head.conva.0.weight": torch.ones(1)}, "note": 7, "meta": {"other": 8}}
    assert recognise(content, Path("file.pth")) is own
    assert asked == [("second", ["head.conva.0.weight"], 7), ("first", ["head.conva.0.weight"], 7)]


def test_a_damaged_file_of_a_layout_is_refused_with_its_path(monkeypatch, tmp_path):
    def recognise_(state, meta):
        raise Misfit("half of it is missing")

    monkeypatch.setitem(LAYOUTS, "strict", Layout(recognise_))
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a.pth: half of it is missing; known are the authors' CCNet.*, strict$"):
        load_model(tmp_path / "a.pth")


def test_a_network_that_a_layout_cannot_hold_is_refused_with_its_path(somebody, tmp_path):
    saved = tiny.save_checkpoint(tmp_path, "model.backbone=resnet18")
    with pytest.raises(InputError, match=r"step_00000001.pt: somebody has no resnet18; use --format weights"):
        export(saved, tmp_path / "a.pth", "somebody")
    assert not (tmp_path / "a.pth").exists()


def test_counts_of_batches_are_written_where_the_layout_has_them(somebody, tmp_path):
    saved = tiny.save_checkpoint(tmp_path)
    assert any(key.endswith("num_batches_tracked") for key in _exported(saved, tmp_path))
    LAYOUTS["somebody"] = Layout(somebody.recognise, somebody.export, counts=False)
    assert not any(key.endswith("num_batches_tracked") for key in _exported(saved, tmp_path))


def _exported(saved, folder):
    return torchfile.read(export(saved, folder / "theirs.pth", "somebody"))["weights"]


def test_a_layout_that_is_read_alone_is_no_format(ccnet, tmp_path):
    done = ccnet("export", "a.pt", "--format", "port", "-o", "b.pth")
    assert done.returncode == 2 and "'port' is not one of" in done.stderr


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("backbone", "backbone swin"),
        ("head", "head swin"),
        ("auxiliary", "head swin"),
        ("loss", "loss swin"),
        ("data", "data set swin"),
        ("implementation", "implementation swin"),
    ],
)
def test_a_checkpoint_that_needs_a_part_from_outside_says_so(tmp_path, capsys, key, part):
    saved = tiny.save_checkpoint(tmp_path / "run")
    content = torchfile.read(saved)
    if key == "loss":
        content["preset"]["loss"]["extra"] = {"kind": "swin"}
    elif key == "data":
        content["preset"]["data"]["dataset"] = "swin"
    elif key == "implementation":
        content["preset"]["model"]["head"][key] = "swin"
    else:
        content["preset"]["model"][key] = {"kind": "swin"}
    torch.save(content, tmp_path / "a.pt")
    for words in (["eval", tmp_path / "a.pt"], ["export", tmp_path / "a.pt", "--format", "onnx", "-o", "a.onnx"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(word) for word in words])
        assert stopped.value.code == 2
        fix = "give the file that defines it with --extend FILE"
        needs = f"a.pt: needs {part}, which is not known here; {fix}\n"
        assert capsys.readouterr().err.endswith(needs)
