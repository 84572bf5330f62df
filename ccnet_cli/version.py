"""Which ccnet this is, and on what it runs: told from files alone, in no time and without a process."""

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
    parts += [f"torch {torch() or 'missing'}", f"Python {platform.python_version()}"]
    return f"ccnet {__version__} ({', '.join(parts)})"


def torch() -> str | None:
    """The version of torch with its build, which pip may not tell; torch, which takes seconds to load, is not."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("version.py")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    told = re.search(r"^__version__ = ['\"]([^'\"]+)['\"]$", text, re.M)
    return told[1] if told else installed("torch")


def installed(package: str) -> str | None:
    """The version of an installed package, which is not imported; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def revision(root: Path) -> str | None:
    """Seven digits of the commit whose checkout begins at root; None where none begins there."""
    try:
        git = root / ".git"
        # in a worktree a file that names the folder
        if git.is_file():
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        commit = (git / "HEAD").read_text(encoding="utf-8").strip()
        if commit.startswith("ref: "):
            commit = _commit(git, commit.removeprefix("ref: "))
    except (OSError, ValueError):
        return None
    return commit[:7] if re.fullmatch(r"[0-9a-f]{40,64}", commit) else None


def _commit(git: Path, reference: str) -> str:
    """What a branch points to: in a file of its own, or in a line of the file that many are packed into."""
    common = git / "commondir"
    shared = git / common.read_text(encoding="utf-8").strip() if common.is_file() else git
    if (shared / reference).is_file():
        return (shared / reference).read_text(encoding="utf-8").strip()
    lines = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.partition(" ")[0] for line in lines if line.endswith(f" {reference}")), "")
