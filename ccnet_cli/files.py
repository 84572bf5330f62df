"""Files that appear whole or not at all and then stay, whatever interrupts: a kill, a full disk, a power cut."""

import contextlib
import hashlib
import itertools
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

HOST = socket.gethostname().replace("/", "_")
# of other hosts nothing is known here, and those of an earlier version bear no host; in a-12-7-x the host may be a-12
TEMPORARY = re.compile(rf"\.tmp-(?:{re.escape(HOST)}-)?(\d+)-(?!\d+-).*", re.DOTALL)
# for the tests of what a kill leaves behind: NAME or NAME:3, the point's third passage
POINT, _, PASSAGE = os.environ.get("CCNET_FAILPOINT", "").partition(":")
_passages = itertools.count(1)


def failpoint(name: str) -> None:
    """End the process as a kill would if CCNET_FAILPOINT names this point."""
    if POINT and name == POINT and next(_passages) == int(PASSAGE or 1):
        os._exit(137)


class Hashing:
    """A writable file that hashes and counts what passes through, and keeps the error that stopped it."""

    def __init__(self, file: BinaryIO, middle: str) -> None:
        self.file = file
        self.middle = middle
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Pass bytes on."""
        self.sha256.update(data)
        self.bytes += len(data)
        try:
            written = self.file.write(data)
            if POINT and self.middle == POINT:
                self.file.flush()
                failpoint(self.middle)
            return written
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Pass the wish on."""
        self.file.flush()


def write(path: Path, fill: Callable[[Any], object], points: tuple[str, str, str] = ("", "", "")) -> Hashing:
    """Let fill write into a file that appears under its name when it is whole and on the disk; size and sha256.

    points name the failpoints amid the writing, after it, and before the file gets its name. OSError where the disk
    refuses; what was under the name is then untouched.
    """
    temporary = temporary_of(path)
    hashing = None
    try:
        with temporary.open("wb") as file:
            hashing = Hashing(file, points[0])
            fill(hashing)
            file.flush()
            failpoint(points[1])
            os.fsync(file.fileno())
        failpoint(points[2])
        temporary.replace(path)
    except RuntimeError as error:
        # torch's own words for a full disk are about positions in a file
        raise (hashing.error if hashing and hashing.error else error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return hashing


def temporary_of(path: Path) -> Path:
    """A file's name while it is written, beside it: it tells which process of which host writes."""
    return path.with_name(f".tmp-{HOST}-{os.getpid()}-{path.name}")


def sync(folder: Path) -> None:
    """Bring the folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make(folder: Path) -> None:
    """Make a folder that stays."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)


def sweep(folder: Path) -> None:
    """Delete the temporaries that dead processes of this host left in a folder."""
    for path in folder.glob(".tmp-*"):
        owner = TEMPORARY.fullmatch(path.name)
        if owner and birth(int(owner[1])) is None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def birth(process: int) -> str | None:
    """When a process of this host began, in the kernel's count, "" where that is not told; None for one that is dead.

    Number and birth together name a process for good: numbers are given again.
    """
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        # it lives, and is somebody else's
        pass
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    # a zombie only waits for its parent
    return None if fields[0] in "ZX" else fields[19]
