"""Which file is used when none is named."""

import os
from pathlib import Path

import peers
import pytest
import torch

from ccnet_cli.errors import InputError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.weights import catalogue, find
from ccnet_cli.weights.download import get


def test_the_checkpoint_is_found_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCNET_CHECKPOINT", raising=False)
    demo = tmp_path / "demo"
    demo.mkdir()
    (demo / "demo.pt").write_bytes(b"demo")
    monkeypatch.setattr(find, "DEMO", demo)
    assert find.find_artifact() == demo / "demo.pt"
    err = capsys.readouterr().err
    assert "toyscapes" in err and f"run ccnet weights get {find.FOR_PHOTOGRAPHS}" in err and err.count("\n") == 1
    assert catalogue.find(find.FOR_PHOTOGRAPHS).unusable is None
    for age, (run, alias) in enumerate([("b", "last.pt"), ("a", "best.pt"), ("a", "last.pt")]):
        (tmp_path / "runs" / run).mkdir(parents=True, exist_ok=True)
        path = tmp_path / "runs" / run / alias
        path.write_bytes(b"")
        os.utime(path, (1000 + age, 1000 + age))
    assert find.find_artifact() == Path("runs/a/best.pt")
    monkeypatch.setenv("CCNET_CHECKPOINT", "other.pt")
    assert find.find_artifact() == Path("other.pt")
    assert find.find_artifact(Path("mine.pt")) == Path("mine.pt")
    assert find.find_artifact(tmp_path / "runs" / "b") == tmp_path / "runs" / "b" / "last.pt"
    with pytest.raises(InputError, match="without best"):
        find.find_artifact(tmp_path)


def test_without_any_checkpoint_the_way_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCNET_CHECKPOINT", raising=False)
    monkeypatch.setattr(find, "DEMO", tmp_path)
    with pytest.raises(InputError, match="none given"):
        find.find_artifact()


def test_a_name_of_the_catalogue_is_its_file_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "cache"))
    name = "ccnet-authors-r1"
    with pytest.raises(InputError, match=f"weights {name}: not in the cache; run ccnet weights get {name}"):
        find.find_artifact(Path(name))
    with pytest.raises(InputError, match="did you mean ccnet-authors-r1"):
        find.find_artifact(Path("ccnet-author-r1"))
    with pytest.raises(InputError, match="ccnet cannot load it, no head of DRANet's"):
        find.find_artifact(Path("dranet-r101-cityscapes"))
    torch.save(peers.authors(width=8, channels=16, depth=50), tmp_path / "a.pth")
    path = get(catalogue.find(name), str(tmp_path / "a.pth"))
    assert find.find_artifact(Path(name)) == path
    monkeypatch.setenv("CCNET_CHECKPOINT", name)
    assert find.find_artifact() == path
    # a file of that name comes first
    (tmp_path / name).write_bytes(b"")
    assert find.find_artifact(Path(name)) == Path(name)


def test_a_name_of_two_files_is_both(tmp_path, monkeypatch, ccnet):
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "cache"))
    name, shelf = "csail-ade20k-resnet18dilated-ppm-deepsup", tmp_path / "shelf"
    shelf.mkdir()
    entries = [catalogue.find(each) for each in catalogue.expand(name)]
    for entry in entries:
        torch.save({entry.name: torch.ones(1)}, shelf / entry.file_name)
    with pytest.raises(InputError, match=f"run ccnet weights get {name}-encoder"):
        find.find_artifact(Path(name))
    got = ccnet("weights", "get", name, "--from", shelf, CCNET_CACHE=str(tmp_path / "cache"))
    paths = got.stdout.splitlines()
    assert len(paths) == 2 and find.find_artifact(Path(name)) == Path(",".join(paths))
    assert find.find_artifact(Path(f"{name}-decoder")) == Path(paths[1])


def test_what_the_catalogue_knows_of_a_file_counts_where_the_file_is_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "cache"))
    torch.save(peers.authors(width=8, channels=16, depth=50), tmp_path / "a.pth")
    torch.save({"state_dict": peers.mmseg(depth=50, width=8, channels=16, classes=3)}, tmp_path / "b.pth")
    told = {"config": "decode_head=dict(align_corners=False)"}
    torch.save(torch.load(tmp_path / "b.pth", weights_only=True) | {"meta": told}, tmp_path / "c.pth")
    names = ("ccnet-authors-r1", "bdd100k-drivable-ccnet-r50-769-40k", "bdd100k-fcn-r50-769-40k")
    for name, file in zip(names, "abc", strict=True):
        get(catalogue.find(name), str(tmp_path / f"{file}.pth"))
    capsys.readouterr()
    assert load_model(Path(names[0])).network.recurrence == 1
    assert load_model(Path(names[1])).network.align_corners is True
    assert "taken as 2" not in (err := capsys.readouterr().err) and "taken as false" not in err
    assert load_model(Path(names[2])).network.align_corners is False
