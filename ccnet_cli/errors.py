"""Errors that a user can cause or meet, with their exit codes, and lines on stderr."""

import os
import sys

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
    """Whether memory ran out: on the device, in torch's CPU allocator, in numpy or in OpenCV."""
    # by the text for torch and OpenCV, which may not be loaded
    texts = ("DefaultCPUAllocator", "Cannot allocate memory", "(-4:Insufficient memory)", "can't start new thread")
    on_device = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or on_device or any(text in str(error) for text in texts)


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
