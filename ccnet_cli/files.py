"""Files that appear whole or not at all, whatever interrupts (a kill, a full disk, a power cut); the cache folder.

What an option may name as an output is decided here as well, for every command: see refuse_outputs.
"""

import contextlib
import ctypes
import errno
import hashlib
import itertools
import json
import os
import re
import resource
import secrets
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ccnet_cli.errors import EnvironmentFailure, InputError

HOST = socket.gethostname().replace("/", "_")
# .tmp-HOST-PID-... and, of earlier versions, .tmp-PID-NAME and .ccnet-HOST-PID-...; with another host's processes
# nothing can be compared here: in a-12-7-x the host may be a-12
TEMPORARY = re.compile(
    rf"\.(?:tmp-(?:{re.escape(HOST)}-)?|ccnet-{re.escape(HOST)}-)(?P<process>\d+)-(?!\d+-)(?:s(?P<start>\d+)-)?.*",
    re.DOTALL,
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
    start = process_start(os.getpid())
    name = f".tmp-{HOST}-{os.getpid()}-s{start}-{secrets.token_hex(4)}{path.suffix[:16]}"
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


def write_output(path: Path, fill: Callable[[Any], object]) -> None:
    """Let fill write a file that an option names, whole or not at all, to where its links lead; or through a stream."""
    target = find_target(path)
    if not is_stream(path):
        write(target, fill)
        return
    with _open_stream(path) as file:
        fill(HashingFile(file, ""))


def write_bytes(path: Path, content: bytes) -> None:
    """As write_output, with the folder made and no fsync. InputError; EnvironmentFailure where the machine refuses."""
    try:
        if is_stream(path):
            with _open_stream(path) as file:
                file.write(content)
            return
        target = find_target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(target) as temporary:
            temporary.write_bytes(content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            fix = "make room, or choose another folder, and run again"
            raise EnvironmentFailure(f"output {path}", f"not written ({reason})", fix) from None
        fix = "choose a folder that you can write to"
        raise InputError(f"output {path}", f"cannot be written ({reason})", fix) from None


def is_stream(path: Path) -> bool:
    """Whether an output is written through instead of replaced: a FIFO, a device such as /dev/null, /dev/stdout."""
    status = _read_status(path)
    if status is None:
        return False
    return stat.S_ISCHR(status.st_mode) or stat.S_ISFIFO(status.st_mode) or _own_stream(path, status) is not None


def refuse_outputs(
    outputs: Iterable[Path], inputs: Iterable[Path | None] = (), overwrite: bool = True, new_folders: bool = True
) -> None:
    """InputError, before any work, for an output that names an input or another output, or could not be written.

    Two names are one file where they lead to it by whatever spelling or link. inputs are files that the command reads;
    what it reads anyway is added. An output that exists is refused unless overwrite, one that lies in a folder that
    does not exist unless new_folders.
    """
    outputs = list(outputs)
    written: dict[Hashable, Path] = {}
    for path in outputs:
        key = _identify(path)
        if key in written:
            also = "" if written[key] == path else f", {written[key]}"
            raise InputError(f"output {path}", f"is the name of two outputs{also}", "give each another name")
        if key is not None:
            written[key] = path
    if any(path.exists() for path in outputs):
        extensions = os.environ.get("CCNET_EXTEND", "").split(os.pathsep)
        for source in itertools.chain(inputs, map(Path, filter(None, extensions))):
            if source is not None and source.exists() and (same := written.get(_identify(source))):
                also = "" if source == same else f", as {source}"
                raise InputError(f"output {same}", f"is read by this command{also}", "choose another output")
    for path in outputs:
        _refuse_unwritable(path, overwrite, new_folders)


def _refuse_unwritable(path: Path, overwrite: bool, new_folders: bool) -> None:
    """InputError for an output that exists, or that can never be a file."""
    if is_stream(path):
        return
    if path.is_dir():
        raise InputError(path, "is a folder", "give the name of a file")
    target = find_target(path)
    if not overwrite and os.path.lexists(path):
        raise InputError(path, "exists", "pass --overwrite, or choose another output")
    above = next((folder for folder in target.parents if folder.exists()), Path("/"))
    if not above.is_dir():
        raise InputError(above, "is a file, not a folder", "choose another output")
    if above != target.parent and not new_folders:
        raise InputError(path, "its folder does not exist", f"make {path.parent} first")
    if not os.access(above, os.W_OK | os.X_OK) or not (os.access(target, os.W_OK) or not target.exists()):
        raise InputError(path, "cannot be written", "check its permissions, or choose another output")


def find_target(path: Path) -> Path:
    """The file, perhaps a new one, to which the links of an output lead; InputError for what is no file."""
    status = _read_status(path)
    if status is not None and not stat.S_ISREG(status.st_mode) and not is_stream(path):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "neither a file nor a stream"
        raise InputError(f"output {path}", f"is {kind}", "choose another output")
    if status is not None and _own_stream(path, status, anywhere=True) is not None and not is_stream(path):
        raise InputError(f"output {path}", "is open as a standard stream of this command", "choose another output")
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f"output {path}", "is a link that leads to itself", "choose another output")
    return target


def _identify(path: Path) -> Hashable:
    """What all names of a file have in common; None for a device, such as /dev/null, which many may share."""
    status = _read_status(path)
    if status is not None:
        return None if stat.S_ISCHR(status.st_mode) else (status.st_dev, status.st_ino)
    # a file to be: its folder may have several names
    real = Path(os.path.realpath(path))
    folder = _read_status(real.parent)
    return real if folder is None else (folder.st_dev, folder.st_ino, real.name)


def _own_stream(path: Path, status: os.stat_result, anywhere: bool = False) -> int | None:
    """The descriptor, from 0 to 2, of the standard stream that a path below /dev or /proc, or anywhere, names."""
    if not anywhere and not path.is_relative_to("/dev") and not path.is_relative_to("/proc"):
        return None
    for descriptor in (1, 2, 0):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), status):
                return descriptor
    return None


def _open_stream(path: Path) -> BinaryIO:
    """A stream opened for writing; a standard one goes on where it is."""
    descriptor = _own_stream(path, path.stat())
    if descriptor is None:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_NOCTTY), "wb")
    sys.stdout.flush()
    return os.fdopen(os.dup(descriptor), "wb")


def _read_status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


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
            if owner and not _is_alive(int(owner["process"]), owner["start"]):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def _is_alive(process: int, start: str | None) -> bool:
    """Whether a process lives that started then, if that is known: in containers, ids come again and again."""
    now = process_start(process)
    return now is not None and start in (None, now or start)


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


def reserve_handles(count: int) -> None:
    """Let this process open `count` files more; EnvironmentFailure where the system's limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len([*Path("/dev/fd").iterdir()]) + count
    if resource.RLIM_INFINITY != soft < needed:
        if resource.RLIM_INFINITY != hard < needed:
            fix = f"raise the limit (ulimit -n {needed}), or use fewer processes and workers"
            raise EnvironmentFailure("open files", f"{hard} allowed, {needed} needed", fix)
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def die_with_parent() -> None:
    """Let the system kill this process when the one that started it ends; Linux alone can."""
    with contextlib.suppress(OSError, AttributeError):
        # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
