"""Which file is used when none is named."""

import os
from pathlib import Path

import pytest

from ccnet_cli.errors import InputError
from ccnet_cli.weights import find


def test_the_checkpoint_is_found_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCNET_CHECKPOINT", raising=False)
    demo = tmp_path / "demo"
    demo.mkdir()
    (demo / "demo.pt").write_bytes(b"demo")
    monkeypatch.setattr(find, "DEMO", demo)
    assert find.find_artifact() == demo / "demo.pt"
    assert "toyscapes" in capsys.readouterr().err
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
