"""Errors that a user can cause or meet, with their exit codes, and lines on stderr."""

import io
import os
import sys
from contextlib import suppress
from typing import Any

# an environment variable, so that the processes of a command share it
VERBOSITY = "CCNET_VERBOSITY"


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


def detail(text: str) -> None:
    """Print one line on stderr with --verbose: what was chosen, or how long it took."""
    if os.environ.get(VERBOSITY) == "verbose":
        announce(text)


def is_quiet() -> bool:
    """Whether only errors are printed."""
    return os.environ.get(VERBOSITY) == "quiet"
