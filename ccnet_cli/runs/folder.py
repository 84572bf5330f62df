"""A run folder's lock, and its count of failed resumes."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError, Interrupted


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Keep other runs out of the folder; InputError if a live one is in it."""
    path = run / "lock"
    while not _acquire(path):
        continue
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _acquire(path: Path) -> bool:
    """Write this process into the lock file; False if the file was deleted meanwhile."""
    with path.open("a+", encoding="utf-8") as file:
        with suppress(OSError):
            # held for this check alone, so that one of two comes first; some network file systems do not support it
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                return False
        except FileNotFoundError:
            return False
        file.seek(0)
        owner = _parse_mapping(file.read())
        if owner and _is_alive(owner):
            who = f"process {owner.get('pid')} on {owner.get('host')}"
            fix = f"wait for it, or choose another --run (delete {path} if that machine is gone)"
            raise InputError(path.parent, f"in use by {who}", fix)
        file.truncate(0)
        own = {"pid": os.getpid(), "host": files.HOST, "birth": files.process_start(os.getpid())}
        try:
            # not through the file's own buffer, whose flush on close would fail again
            os.write(file.fileno(), json.dumps(own).encode())
        except OSError as error:
            raise EnvironmentFailure(path, f"not written ({error.strerror})", "free space and start again") from None
    return True


def _is_alive(owner: dict[str, Any]) -> bool:
    if owner.get("host") != files.HOST or not isinstance(owner.get("pid"), int):
        # another host's processes cannot be seen from here
        return True
    start = files.process_start(owner["pid"])
    return start is not None and owner.get("birth", start) == start


@contextmanager
def count_attempt(checkpoint: Path) -> Iterator[None]:
    """Count a resume from a checkpoint up front, in case the process dies.

    The count is restored if the block ends well, by a signal, a full disk, or bad arguments or data.
    """
    folder = checkpoint.parent
    before = read_attempts(folder)
    _write_attempts(folder, before | {checkpoint.stem: before.get(checkpoint.stem, 0) + 1})
    try:
        yield
    except (InputError, EnvironmentFailure, Interrupted):
        _restore_attempts(folder, before)
        raise
    _restore_attempts(folder, before)


def read_attempts(folder: Path) -> dict[str, int]:
    """Checkpoint, by name without suffix -> resumes from it that ended before they wrote another."""
    path = folder / "attempts.json"
    counts = _parse_mapping(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}
    return {name: count for name, count in counts.items() if isinstance(count, int)}


def clear_attempts(folder: Path) -> None:
    """Forget the attempts, once a newer checkpoint exists."""
    (folder / "attempts.json").unlink(missing_ok=True)


def _restore_attempts(folder: Path, before: dict[str, int]) -> None:
    # none are left once a newer checkpoint exists
    if read_attempts(folder):
        _write_attempts(folder, before)


def _write_attempts(folder: Path, counts: dict[str, int]) -> None:
    if not counts:
        clear_attempts(folder)
        return
    # a full disk must not keep a run from continuing
    with suppress(OSError):
        files.write(folder / "attempts.json", lambda file: file.write(json.dumps(counts).encode()))


def _parse_mapping(text: str) -> dict[str, Any]:
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return {}
