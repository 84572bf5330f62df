"""The version line: the commit is read from git's files as git itself would tell it."""

import importlib.util
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ccnet_cli import __version__, version


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "gc.auto=0"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(["git", *settings, *words], cwd=folder, env=clean, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for message in ("first", "second"):
        git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return folder


def loose(checkout: Path) -> Path:
    return checkout


def nested(checkout: Path) -> Path:
    git(checkout, "switch", "-q", "-c", "feature/deep", "HEAD~1")
    return checkout


def detached(checkout: Path) -> Path:
    git(checkout, "switch", "-q", "--detach", "HEAD~1")
    return checkout


def packed(checkout: Path) -> Path:
    # whose names end alike
    git(checkout, "branch", "a/main", "HEAD~1")
    git(checkout, "tag", "-a", "main", "-m", "a tag", "HEAD~1")
    git(checkout, "pack-refs", "--all")
    return checkout


def moved_after_packing(checkout: Path) -> Path:
    git(checkout, "pack-refs", "--all")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "third")
    return checkout


def worktree(checkout: Path) -> Path:
    git(checkout, "worktree", "add", "-q", "-b", "other", "../other", "HEAD~1")
    return checkout.parent / "other"


@pytest.mark.parametrize("state", [loose, nested, detached, packed, moved_after_packing, worktree])
def test_the_commit_is_the_one_that_git_tells(checkout: Path, state: Callable[[Path], Path]):
    folder = state(checkout)
    assert version.revision(folder) == git(folder, "rev-parse", "--verify", "HEAD^{commit}")[:7]


@pytest.mark.parametrize(
    "harm",
    [
        lambda git: (git / "HEAD").write_bytes(b"\xff\xfe"),
        lambda git: (git / "HEAD").write_text("ref: refs/heads/gone\n"),
        lambda git: (git / "HEAD").unlink(),
        lambda git: (git / "refs" / "heads" / "main").write_text("not a commit\n"),
    ],
)
def test_a_damaged_checkout_is_none(checkout: Path, harm: Callable[[Path], object]):
    harm(checkout / ".git")
    assert version.revision(checkout) is None


def test_a_new_branch_has_no_commit_though_a_packed_one_s_name_begins_so(checkout: Path):
    git(checkout, "pack-refs", "--all")
    (checkout / ".git" / "HEAD").write_text("ref: refs/heads/mai\n")
    assert version.revision(checkout) is None


def test_a_branch_without_a_commit_and_a_plain_folder_are_none(tmp_path: Path):
    assert version.revision(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert version.revision(tmp_path) is None
    assert version.revision(tmp_path / "nowhere") is None


def test_the_folders_above_are_not_asked(checkout: Path):
    (checkout / "site-packages").mkdir()
    assert version.revision(checkout / "site-packages") is None


def test_the_line_names_torch_and_python_as_they_name_themselves(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    rest = f"torch {torch.__version__}, Python {platform.python_version()})"
    monkeypatch.setattr(version, "ROOT", checkout)
    assert version.describe() == f"ccnet {__version__} (git {git(checkout, 'rev-parse', 'HEAD')[:7]}, {rest}"
    monkeypatch.setattr(version, "ROOT", checkout.parent)
    assert version.describe() == f"ccnet {__version__} ({rest}"


def test_a_package_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch):
    assert version.installed_version("no-such-package-of-ours") is None
    monkeypatch.setattr(version, "find_spec", lambda name: None)
    assert "torch missing" in version.describe()


def test_the_build_of_torch_is_read_without_loading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    assert version.torch_version() == torch.__version__
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('loaded')")
    spec = importlib.util.spec_from_file_location("torch", folder / "__init__.py")
    monkeypatch.setattr(version, "find_spec", lambda name: spec)
    (folder / "version.py").write_text("__version__ = '2.20.1+cu126'\ncuda: Optional[str] = '12.6'\nhip = None\n")
    assert version.torch_version() == "2.20.1+cu126"
    (folder / "version.py").unlink()
    assert version.torch_version() == version.installed_version("torch")
