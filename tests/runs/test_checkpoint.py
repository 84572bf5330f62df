"""Checkpoints: durable when written, verified when read."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from ccnet_cli import config
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.media.classes import Classes
from ccnet_cli.models.network import build
from ccnet_cli.runs import checkpoint

CLASSES = Classes(("sky", "road"), ((70, 130, 180), (128, 64, 128)), (23, 7))


def content(step=1, **model):
    preset = config.load("quickstart", ["model.width=8", "model.channels=16", "model.auxiliary_channels=8"])
    torch.manual_seed(step)
    return {
        "format": checkpoint.FORMAT,
        "model": build(preset.model, 2).state_dict(),
        "preset": config.to_mapping(preset),
        "classes": CLASSES.to_mapping(),
        "step": step,
        "metrics": {"miou": 0.5},
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return checkpoint.save(tmp_path_factory.mktemp("run"), 1, content(), keep=2)


def copy(saved, folder, change=lambda data: data, manifest=False):
    path = folder / saved.name
    path.write_bytes(change(saved.read_bytes()))
    if manifest:
        path.with_suffix(".json").write_bytes(saved.with_suffix(".json").read_bytes())
    return path


def test_restore_gives_the_model_back(saved):
    restored = load_model(saved)
    assert not restored.network.training
    assert restored.classes == CLASSES and restored.step == 1 and restored.metrics == {"miou": 0.5}
    wanted = content()["model"]
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in restored.network.state_dict().items())


def test_the_manifest_records_the_file(saved):
    manifest = json.loads(saved.with_suffix(".json").read_text())
    told = subprocess.run(["sha256sum", saved], capture_output=True, text=True, check=True).stdout.split()[0]
    assert manifest["sha256"] == told and manifest["bytes"] == saved.stat().st_size and manifest["step"] == 1


def test_data_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor):
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(("fsync", "folder" if target == tmp_path else target.suffix))
        fsync(descriptor)

    def note_replace(self, target):
        events.append(("replace", target.suffix))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    checkpoint.save(tmp_path, 1, content(), keep=2)
    assert events == [
        ("fsync", ".pt"),
        ("replace", ".pt"),
        ("fsync", ".json"),
        ("replace", ".json"),
        ("fsync", "folder"),
    ]


def test_a_second_name_reaches_the_disk_with_its_folder(tmp_path, monkeypatch):
    """Both names first, the data's before the manifest's; what is renamed is synced with the folder alone."""
    path = checkpoint.save(tmp_path / "checkpoints", 1, content(), keep=2)
    events, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append(to.name), replace(self, to))[1])
    monkeypatch.setattr(checkpoint.files, "sync_folder", lambda folder: events.append(folder.name))
    checkpoint.add_name(path, tmp_path / "best.pt")
    assert events == ["best.pt", "best.json", tmp_path.name]


@pytest.mark.parametrize("keep", [2, 3])
def test_only_the_newest_are_kept_and_names_outlive_them(tmp_path, keep):
    for step in range(1, 6):
        path = checkpoint.save(tmp_path / "checkpoints", step, content(step), keep)
        if step == 1:
            checkpoint.add_name(path, tmp_path / "best.pt")
    steps = [f"step_{step:08d}" for step in range(5, 5 - keep, -1)]
    assert [path.stem for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")] == steps
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2 * keep
    assert load_model(tmp_path / "best.pt").step == 1


def test_the_newest_is_that_of_the_last_step_whatever_the_clock_says(tmp_path):
    paths = [checkpoint.save(tmp_path, step, content(step), keep=3) for step in (2, 10, 9)]
    # the later step belongs to an attempt that was replaced
    assert checkpoint.list_checkpoints(tmp_path) == [paths[2], paths[0]]
    for age, path in enumerate(paths[::2]):
        for file in (path, path.with_suffix(".json")):
            os.utime(file, (2000 - age, 2000 - age))
    assert checkpoint.list_checkpoints(tmp_path) == [paths[2], paths[0]]
    newest = checkpoint.read_newest(tmp_path)
    assert newest is not None and newest[0] == paths[2] and newest[1]["step"] == 9


def test_leftovers_of_dead_processes_are_swept(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    dead, own = tmp_path / f".tmp-{process.pid}-step_00000009.pt", tmp_path / f".tmp-{os.getpid()}-other"
    dead.write_bytes(b"half")
    own.write_bytes(b"half")
    checkpoint.save(tmp_path, 1, content(), keep=2)
    assert not dead.exists() and own.exists()


def test_a_full_disk_is_told_and_leaves_the_earlier_ones(tmp_path):
    checkpoint.save(tmp_path, 1, content(), keep=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoint import content
from ccnet_cli.runs import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
checkpoint.save(Path({str(tmp_path)!r}), 2, content(2), keep=2)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "EnvironmentFailure" in ran.stderr and "step_00000002.pt" in ran.stderr and "not written" in ran.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_truncation_and_flip_is_noticed_by_the_manifest(saved, tmp_path):
    size = saved.stat().st_size

    def flipped(at):
        return lambda data: data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]

    changes = [lambda data, n=n: data[:n] for n in range(0, size, size // 20)]
    changes += [flipped(at) for at in range(7, size, size // 40)]
    for change in changes:
        with pytest.raises(InputError):
            checkpoint.read(copy(saved, tmp_path, change, manifest=True))
    assert checkpoint.read(copy(saved, tmp_path, manifest=True))["step"] == 1


def test_a_json_file_of_the_same_name_need_not_be_a_manifest(saved, tmp_path):
    (tmp_path / "best.pt").write_bytes(saved.read_bytes())
    (tmp_path / "best.json").write_text('{"miou": 0.5}')
    assert checkpoint.read(tmp_path / "best.pt")["step"] == 1
    (tmp_path / saved.name).write_bytes(saved.read_bytes())
    (tmp_path / saved.name).with_suffix(".json").write_text('{"miou": 0.5}')
    with pytest.raises(InputError, match="damaged manifest"):
        checkpoint.read(tmp_path / saved.name)


def test_a_flip_in_a_weight_is_noticed_without_a_manifest_too(saved, tmp_path):
    with zipfile.ZipFile(saved) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    at = largest.header_offset + 200
    path = copy(saved, tmp_path, lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(InputError, match="damaged"):
        checkpoint.read(path)


def _deflated(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 1_000_000)


class _Gadget:
    def __reduce__(self):
        return os.system, ("touch executed",)


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "one byte": (lambda path: path.write_bytes(b"x"), "not a file that torch.save wrote"),
    "zeros": (lambda path: path.write_bytes(bytes(1_000_000)), "not a file that torch.save wrote"),
    "html": (lambda path: path.write_text("<html>404</html>"), "web page"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "bomb": (_deflated, "compressed"),
    "gadget": (lambda path: torch.save({"model": _Gadget()}, path), "never run"),
    "weights alone": (lambda path: torch.save({"a.weight": torch.zeros(2)}, path), "no network known here"),
    "future": (lambda path: torch.save(content() | {"format": 99}, path), "update ccnet-cli"),
    "folder": (lambda path: path.mkdir(), "a folder without best.pt or last.pt"),
    "missing": (lambda path: None, "does not exist"),
    "a weight short": (
        lambda path: torch.save(content() | {"model": dict(list(content()["model"].items())[1:])}, path),
        "is missing",
    ),
    "no preset": (lambda path: torch.save(content() | {"preset": {"name": "x"}}, path), "model"),
    "no classes": (
        lambda path: torch.save(content() | {"classes": {"names": ["a"]}}, path),
        "configuration is damaged",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, words = BAD[kind]
    make(tmp_path / "bad.pt")
    with pytest.raises(InputError, match=words) as refused:
        load_model(tmp_path / "bad.pt")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "executed").exists()


def test_saving_where_it_cannot_be_saved(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentFailure, match="not written"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, content(), keep=2)
