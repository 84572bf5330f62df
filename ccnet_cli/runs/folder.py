"""Who trains in a run folder, and how often a checkpoint was resumed from in vain."""

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
def held(run: Path) -> Iterator[None]:
    """Keep other runs out of the folder; InputError where one that lives is in it already."""
    lock = run / "lock"
    while not _taken(lock):
        continue
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _taken(lock: Path) -> bool:
    """Write this process into the lock file; False where the file was deleted meanwhile."""
    with lock.open("a+", encoding="utf-8") as file:
        with suppress(OSError):
            # for this moment only, so that of two one is first; some network file systems know no such lock
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if lock.stat().st_ino != os.fstat(file.fileno()).st_ino:
                return False
        except FileNotFoundError:
            return False
        file.seek(0)
        owner = _mapping(file.read())
        if owner and _lives(owner):
            who = f"process {owner.get('pid')} on {owner.get('host')}"
            fix = f"wait for it, or choose another --run (delete {lock} if that machine is gone)"
            raise InputError(lock.parent, f"in use by {who}", fix)
        file.truncate(0)
        own = {"pid": os.getpid(), "host": files.HOST, "birth": files.process_start(os.getpid())}
        try:
            # past the file's own buffer, which would fail once more when it is closed
            os.write(file.fileno(), json.dumps(own).encode())
        except OSError as error:
            raise EnvironmentFailure(lock, f"not written ({error.strerror})", "free space and start again") from None
    return True


def _lives(owner: dict[str, Any]) -> bool:
    if owner.get("host") != files.HOST or not isinstance(owner.get("pid"), int):
        # of another machine's processes nothing is known here
        return True
    birth = files.process_start(owner["pid"])
    return birth is not None and owner.get("birth", birth) == birth


def attempts(folder: Path) -> dict[str, int]:
    """For checkpoints, by name without suffix: the resumes that ended before they wrote another."""
    path = folder / "attempts.json"
    counts = _mapping(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}
    return {name: count for name, count in counts.items() if isinstance(count, int)}


@contextmanager
def attempt(checkpoint: Path) -> Iterator[None]:
    """Count a resume from a checkpoint, for the case that this is the last that is heard of it.

    A resume that ends well, by a signal, a full disk, or its arguments or data leaves the count as it was.
    """
    folder = checkpoint.parent
    before = attempts(folder)
    _note(folder, before | {checkpoint.stem: before.get(checkpoint.stem, 0) + 1})
    try:
        yield
    except (InputError, EnvironmentFailure, Interrupted):
        _take_back(folder, before)
        raise
    _take_back(folder, before)


def progress(folder: Path) -> None:
    """Forget the attempts: a newer checkpoint is there."""
    (folder / "attempts.json").unlink(missing_ok=True)


def _take_back(folder: Path, before: dict[str, int]) -> None:
    if attempts(folder):
        _note(folder, before)


def _note(folder: Path, counts: dict[str, int]) -> None:
    if counts:
        # a disk that is full must not keep a run from going on
        with suppress(OSError):
            files.write(folder / "attempts.json", lambda file: file.write(json.dumps(counts).encode()))
    else:
        progress(folder)


def _mapping(text: str) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}
