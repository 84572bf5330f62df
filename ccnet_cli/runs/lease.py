"""The lease of a run folder: it is one run's, on whatever host, and outlives no run.

The file `lock` names the holder and has a beat, which the holder changes every few seconds. Clocks of two hosts are
never compared: whoever wants the folder looks whether the beat changes. Where the file system has locks of the kernel,
the holder keeps one on the file as well, so that its death is known at once on the same machine.
"""

import fcntl
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError, TakenOver, notice

NAME = "lock"
BEAT_SECONDS = 5.0
# a holder on another machine counts as dead when its beat has not changed for as long, as seen from here
SILENCE_SECONDS = 30.0
# the children of a dead process keep its lock for a moment
ORPHAN_SECONDS = 2.0
POLL_SECONDS = 0.5
# the file keeps its size, so that a beat needs no space on the disk
FILE_BYTES = 512


@dataclass(frozen=True)
class Lease:
    """A run's right to write into its folder, good in all processes of the run."""

    run: Path
    token: str

    def is_lost(self) -> bool:
        """Whether the folder is another run's by now; a disk that does not answer, or half a beat, is no proof."""
        path = self.run / NAME
        return _read(path).get("token", self.token) != self.token or not os.path.lexists(path)

    def confirm(self) -> None:
        """TakenOver if the folder is another run's by now."""
        if self.is_lost():
            raise self.loss()

    def loss(self) -> TakenOver:
        """The error of a run that has lost its folder."""
        owner = _read(self.run / NAME)
        by = f"taken over by {_describe(owner)}" if owner else "its lock was deleted"
        return TakenOver(self.run, f"{by}; this run has stopped without writing", "leave it to the other run")


@contextmanager
def hold(run: Path, take_over: bool = False, known: str | None = None) -> Iterator[Lease]:
    """Keep other runs out of a folder; InputError while a live one is in it, unless it is taken over.

    known is the token of an earlier attempt of this run, which is over.
    """
    lease = Lease(run, secrets.token_hex(8))
    descriptor = _acquire(lease, take_over, known)
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(descriptor, lease, stop), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join()
        if not lease.is_lost():
            (run / NAME).unlink(missing_ok=True)
        os.close(descriptor)


def _beat(descriptor: int, lease: Lease, stop: threading.Event) -> None:
    count = 0
    while not stop.wait(BEAT_SECONDS):
        count += 1
        # a full or slow disk does not end the run
        with suppress(OSError):
            os.pwrite(descriptor, _content(lease, count), 0)
            os.fsync(descriptor)


def _acquire(lease: Lease, take_over: bool, known: str | None) -> int:
    """Put this process into the lock file, once its holder is known to be gone; the descriptor that keeps the lock."""
    path = lease.run / NAME
    first: dict[str, Any] | None = None
    since = time.monotonic()
    while True:
        descriptor = _open(path)
        try:
            free = _try_lock(descriptor)
            owner = _parse(os.pread(descriptor, FILE_BYTES, 0))
            if not _is_current(descriptor, path):
                continue
            patience = _patience(owner, free, lease.run)
            if take_over or (known is not None and owner.get("token") == known):
                patience = 0.0
            if first is None:
                first = owner
                if 0 < patience < float("inf") and owner:
                    who, wait = _describe(owner), f"waiting {patience:.0f} s for a sign of life"
                    notice(f"{lease.run}: in use by {who}, {wait}; --take-over does not wait")
            if owner != first or patience == float("inf"):
                fix = "wait for it, choose another --run, or add --take-over"
                raise InputError(lease.run, f"in use by {_describe(owner)}", fix)
            if time.monotonic() - since >= patience:
                return _install(lease)
        finally:
            os.close(descriptor)
        time.sleep(min(POLL_SECONDS, patience))


def _patience(owner: dict[str, Any], free: bool | None, run: Path) -> float:
    """How long the beat must stand still until a holder counts as dead; inf for a live one.

    free tells whether the lock of the kernel was free, None where there are none.
    """
    if not isinstance(owner.get("pid"), int):
        # between the making of the file and its content, the lock is held
        return ORPHAN_SECONDS if free is False else 0.0
    host, boot = owner.get("host"), owner.get("boot")
    if boot is None:
        # as version 0.1.0 wrote it, without a beat
        alive = host != files.HOST or _is_alive(owner)
        return float("inf") if alive else 0.0
    if boot != _boot():
        return SILENCE_SECONDS
    if owner.get("folder") != run.stat().st_ino:
        # that of the folder which this one is a copy of
        return 0.0
    if owner.get("space") != _process_space():
        return {True: 0.0, False: float("inf"), None: SILENCE_SECONDS}[free]
    if free is not True and _is_alive(owner):
        return float("inf")
    return ORPHAN_SECONDS if free is False else 0.0


def _is_alive(owner: dict[str, Any]) -> bool:
    process = owner.get("pid")
    start = files.process_start(process) if isinstance(process, int) and process > 0 else None
    return start is not None and owner.get("birth", start) == start


def _install(lease: Lease) -> int:
    """Replace the lock file by one of this process: a copy of the folder may share the old one by hard links."""
    temporary = lease.run / f".tmp-{files.HOST}-{os.getpid()}-{lease.token}"
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            _try_lock(descriptor)
            os.write(descriptor, _content(lease, 0))
            os.fsync(descriptor)
            temporary.replace(lease.run / NAME)
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        why, fix = f"not written ({error.strerror})", "free space and start again"
        raise EnvironmentFailure(lease.run / NAME, why, fix) from None
    return descriptor


def _content(lease: Lease, beat: int) -> bytes:
    own = os.getpid()
    content = {
        "pid": own,
        "host": files.HOST[:64],
        "birth": files.process_start(own),
        "boot": _boot(),
        "space": _process_space(),
        "folder": lease.run.stat().st_ino,
        "token": lease.token,
        "beat": f"{beat:012d}",
    }
    return json.dumps(content).encode().ljust(FILE_BYTES)


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in files.MACHINE_ERRORS:
            why, fix = f"not written ({error.strerror})", "free space and start again"
            raise EnvironmentFailure(path, why, fix) from None
        raise InputError(path, f"cannot be opened ({error.strerror})", "delete it, or choose another --run") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(path, "is not a file", "delete it, or choose another --run")
    return descriptor


def _try_lock(descriptor: int) -> bool | None:
    """Take the lock of the kernel; False if another has it, None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> dict[str, Any]:
    # opened anew each time: only then a network file system asks the server
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return {}
    try:
        return _parse(os.read(descriptor, FILE_BYTES))
    except OSError:
        return {}
    finally:
        os.close(descriptor)


def _parse(content: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(content.decode(errors="replace"))
        if isinstance(value, dict):
            return value
    return {}


def _describe(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"


def _boot() -> str:
    """What tells this start of this machine from all others; shared by its containers, whatever their host names."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return files.HOST


def _process_space() -> int:
    """The name space in which process ids count."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0
