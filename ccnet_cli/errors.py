"""Errors that a user can cause or meet, with their exit codes; lines on stderr; signals that end a command in order."""

import io
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

# an environment variable, so that the processes of a command share it
VERBOSITY = "CCNET_VERBOSITY"
# the signals that a run answers with a checkpoint
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# a launcher that signals a process group forwards the signal as well: signals closer together than this count as one
ECHO_SECONDS = 0.5


class CCNetError(Exception):
    """A failure printed as one line, `WHAT: WHY; FIX`, without a traceback; each note of it is another line.

    reported is true if another process prints this error.
    """

    exit_code = 1
    reported = False

    def __init__(self, what: object, why: str, fix: str) -> None:
        super().__init__(what, why, fix)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        return one_line(f"{self.what}: {self.why}; {self.fix}")


class InputError(CCNetError):
    """The arguments, the configuration, a checkpoint or the data are at fault (exit code 2)."""

    exit_code = 2


class EnvironmentFailure(CCNetError):
    """The machine failed: disk full, out of memory, a worker died, a port is taken (exit code 3)."""

    exit_code = 3


class TakenOver(CCNetError):
    """Another run has taken this one's folder (exit code 3); never restarted, as the other goes on."""

    exit_code = 3


class PeerLost(EnvironmentFailure):
    """Another process of the run is gone or silent (exit code 3); the cause, if known, is another error."""


class NonFiniteError(CCNetError):
    """Loss or gradient is not finite; raised before the optimiser step (exit code 4)."""

    exit_code = 4


class Interrupted(CCNetError):
    """A signal stopped the command, after saving its work (exit code 128 + signal number)."""

    def __init__(self, what: object, why: str, fix: str, number: int) -> None:
        super().__init__(what, why, fix)
        self.args = (what, why, fix, number)
        self.number = number
        self.exit_code = 128 + number


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the device, in torch's CPU allocator, in numpy or OpenCV, or while a library loads."""
    # by the text for torch and OpenCV, which may not be loaded
    texts: tuple[str, ...] = (
        *("DefaultCPUAllocator", "Cannot allocate memory", "std::bad_alloc"),
        *("(-4:Insufficient memory)", "can't start new thread"),
    )
    if isinstance(error, ImportError):
        texts = (*texts, "failed to map segment", "cannot map zero-fill pages")
    on_device = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or on_device or any(text in str(error) for text in texts)


def describe_briefly(error: BaseException) -> str:
    """What an error says first, or that memory ran out."""
    return "out of memory" if out_of_memory(error) else str(error).partition("\n")[0]


class _Unfailing(io.RawIOBase):
    """Writes to a descriptor; what it refuses is lost, as no work may end for want of a terminal."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self.descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self.descriptor)

    def write(self, data: Any) -> int:
        """Write bytes, or lose them."""
        with suppress(OSError):
            return os.write(self.descriptor, data)
        return len(data)


def mend_streams() -> None:
    """Let results be printed in any locale, to nowhere where a stream is closed; stderr never ends the work."""
    # otherwise a file opened under a closed stream's number would get what libraries print there
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # not one that a test or a program around has put in its place
    if sys.stderr is sys.__stderr__:
        encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
        raw = io.BufferedWriter(_Unfailing(2))
        sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)
    elif isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def one_line(text: object) -> str:
    """A text or path for people, in one line of valid Unicode.

    Control characters, line separators, marks that turn the direction of writing, and the bytes of a name that are not
    UTF-8 become escapes such as \\n, \\u202e and \\udcff.
    """
    text = str(text)
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode("ascii") for c in text)


def announce(text: str) -> None:
    """Print one line on stderr, even with --quiet; never for results."""
    print(f"ccnet: {one_line(text)}", file=sys.stderr, flush=True)


def notice(text: str) -> None:
    """Print one line on stderr, unless --quiet."""
    if not is_quiet():
        announce(text)


def warn(text: str) -> None:
    """As notice, of every process of a run: in each of them, other data are at fault."""
    if getattr(sys.stderr, "name", "") == os.devnull and not is_quiet():
        # only the first process prints otherwise
        with suppress(OSError):
            os.write(2, f"ccnet: {one_line(text)}\n".encode())
    else:
        notice(text)


def detail(text: str) -> None:
    """Print one line on stderr with --verbose: what was chosen, or how long it took."""
    if os.environ.get(VERBOSITY) == "verbose":
        announce(text)


@contextmanager
def hush(quiet: bool = True) -> Iterator[None]:
    """Print only errors within the block, if quiet."""
    before = os.environ.get(VERBOSITY, "")
    if quiet:
        os.environ[VERBOSITY] = "quiet"
    try:
        yield
    finally:
        os.environ[VERBOSITY] = before


def is_quiet() -> bool:
    """Whether only errors are printed."""
    return os.environ.get(VERBOSITY) == "quiet"


@contextmanager
def record_signals(echo_seconds: float = 0) -> Iterator[list[int]]:
    """Yield a list that gets the first signal's number; a second one, unless it is an echo, ends the process.

    Python handles signals in the main thread; in any other the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    first = 0.0

    def record(number: int, _: object) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            received.append(number)
        elif time.monotonic() - first > echo_seconds:
            exit_at_once(128 + number)

    # nohup lets a run outlive its terminal
    handled = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, record) for number in handled}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def exit_at_once(code: int) -> NoReturn:
    """End this process and its children: a loader's workers ignore SIGTERM, and an orderly exit would wait for them."""
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def transportable(error: Exception) -> Exception:
    """An error that another process can read: a CCNetError is itself, any other one its traceback."""
    return error if isinstance(error, CCNetError) else RuntimeError("".join(traceback.format_exception(error)))


def first_line(error: Exception) -> str:
    """The first line of torch's message."""
    # torch begins with its source's line: [/pytorch/third_party/gloo/...:123]
    return re.sub(r"^(\[[^\]]*\]\s*)+", "", str(error).strip()).partition("\n")[0][:160]
