"""Versions of ccnet, torch and other packages, read from files: no import, no other process."""

import platform
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ccnet_cli import __version__

ROOT = Path(__file__).parent.parent


def describe() -> str:
    """One line: ccnet's version and, in a checkout, its commit; torch's and Python's."""
    commit = revision(ROOT)
    parts = [f"git {commit}"] if commit else []
    parts += [f"torch {torch_version() or 'missing'}", f"Python {platform.python_version()}"]
    return f"ccnet {__version__} ({', '.join(parts)})"


def torch_version() -> str | None:
    """Version of torch with its build, which pip may not know, without the seconds that importing it takes."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("version.py")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(r"^__version__ = ['\"]([^'\"]+)['\"]$", text, re.M)
    return found[1] if found else installed_version("torch")


def installed_version(package: str) -> str | None:
    """Version of a package, not imported; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def revision(root: Path) -> str | None:
    """First seven digits of the commit checked out at root; None if root is no checkout."""
    try:
        git = root / ".git"
        # in a worktree, a file that names the folder
        if git.is_file():
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        commit = (git / "HEAD").read_text(encoding="utf-8").strip()
        if commit.startswith("ref: "):
            commit = _commit(git, commit.removeprefix("ref: "))
    except (OSError, ValueError):
        return None
    return commit[:7] if re.fullmatch(r"[0-9a-f]{40,64}", commit) else None


def _commit(git: Path, reference: str) -> str:
    """The commit of a branch, from its own file or from packed-refs."""
    common = git / "commondir"
    shared = git / common.read_text(encoding="utf-8").strip() if common.is_file() else git
    if (shared / reference).is_file():
        return (shared / reference).read_text(encoding="utf-8").strip()
    lines = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.partition(" ")[0] for line in lines if line.endswith(f" {reference}")), "")
