"""Files that appear whole or not at all, whatever interrupts (a kill, a full disk, a power cut); the cache folder."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ccnet_cli.errors import EnvironmentFailure, InputError

HOST = socket.gethostname().replace("/", "_")
# .tmp-HOST-PID-... and, of earlier versions, .tmp-PID-NAME and .ccnet-HOST-PID-...; with another host's processes
# nothing can be compared here: in a-12-7-x the host may be a-12
TEMPORARY = re.compile(
    rf"\.(?:tmp-(?:{re.escape(HOST)}-)?|ccnet-{re.escape(HOST)}-)(?P<process>\d+)-(?!\d+-).*", re.DOTALL
)
# outputs are checked before the work begins, so the machine is at fault where these refuse them later
MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS}
# for tests that kill: NAME, or NAME:3 for the third time that the point is reached
POINT, _, PASSAGE = os.environ.get("CCNET_FAILPOINT", "").partition(":")
# of JSON in ASCII: an escaped backslash, a character of two surrogates, or one that stands alone
ESCAPES = re.compile(r"\\\\|\\ud[89ab]..\\ud[c-f]..|(?P<lone>\\ud[89a-f]..)")
_passages = itertools.count(1)


def cache_folder() -> Path:
    """$CCNET_CACHE, $XDG_CACHE_HOME/ccnet, ~/.cache/ccnet, or a folder for temporary files without a home."""
    if own := os.environ.get("CCNET_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG rule: ignore a relative path
    if Path(shared).is_absolute():
        return Path(shared) / "ccnet"
    if home := os.environ.get("HOME"):
        return Path(home) / ".cache" / "ccnet"
    return Path(tempfile.gettempdir()) / "ccnet"


def failpoint(name: str) -> None:
    """End the process as a kill would if CCNET_FAILPOINT names this point."""
    if POINT and name == POINT and next(_passages) == int(PASSAGE or 1):
        os._exit(137)


class HashingFile:
    """A writable file that hashes and counts the bytes written, and keeps the error that stopped it."""

    def __init__(self, file: BinaryIO, point: str) -> None:
        self.file = file
        self.point = point
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, then pass the failpoint."""
        self.sha256.update(data)
        self.bytes += len(data)
        try:
            count = self.file.write(data)
            if POINT and self.point == POINT:
                self.file.flush()
                failpoint(self.point)
            return count
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary's name: it takes the place of path when the block ends, and is deleted if the block raises."""
    # not made from the file's name, which may be as long as a name can be; codecs look at the suffix
    name = f".tmp-{HOST}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix[:16]}"
    temporary = path.parent / name
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)


def write(path: Path, fill: Callable[[Any], object], points: tuple[str, str, str] = ("", "", "")) -> HashingFile:
    """Let fill write into a file that appears under its name once it is whole and on the disk; its size and sha256.

    points name the failpoints during the writing, after it, and before the file gets its name. OSError if the disk
    refuses; the file of that name is then untouched.
    """
    file = None
    try:
        with replace_file(path) as temporary:
            with temporary.open("wb") as opened:
                file = HashingFile(opened, points[0])
                fill(file)
                opened.flush()
                failpoint(points[1])
                os.fsync(opened.fileno())
            failpoint(points[2])
    except RuntimeError as error:
        # torch's message for a full disk names positions in a file
        raise (file.error if file and file.error else error) from None
    return file


def to_json(value: object, indent: int | None = None) -> str:
    """JSON in ASCII whose texts are valid Unicode; ValueError for nan and infinities, which JSON does not have.

    Bytes of a name that are not UTF-8 become the escape that one_line has.
    """
    text = json.dumps(value, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")
    return ESCAPES.sub(lambda found: f"\\{found[0]}" if found["lone"] else found[0], text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all and make its folder; no fsync. InputError; EnvironmentFailure by the machine."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary:
            temporary.write_bytes(content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            fix = "make room, or choose another folder, and run again"
            raise EnvironmentFailure(f"output {path}", f"not written ({reason})", fix) from None
        fix = "choose a folder that you can write to"
        raise InputError(f"output {path}", f"cannot be written ({reason})", fix) from None


def sync_folder(folder: Path) -> None:
    """Bring the folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder that survives a power cut."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)


def is_temporary(name: str) -> bool:
    """Whether a file's name is that of a temporary written on this host."""
    return TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Delete the temporaries that dead processes of this host left in a folder."""
    for pattern in (".tmp-*", ".ccnet-*"):
        for path in folder.glob(pattern):
            owner = TEMPORARY.fullmatch(path.name)
            if owner and process_start(int(owner["process"])) is None:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def process_start(process: int) -> str | None:
    """Start time of a process of this host in the kernel's ticks, "" if unknown; None for a dead one.

    Process ids are reused; id and start time together are unique.
    """
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        # alive, and another user's
        pass
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    # a zombie only waits for its parent
    return None if fields[0] in "ZX" else fields[19]
