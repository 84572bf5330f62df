"""The errors a user can cause or meet, with their exit codes, and the one-line form they are told in."""

import os
import sys

# read in the processes that a command starts too
VERBOSITY = "CCNET_VERBOSITY"


class CCNetError(Exception):
    """A failure told in one line, `WHAT: WHY; FIX`, without a traceback; a note added to it takes another line."""

    exit_code = 1

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


class NonFiniteError(CCNetError):
    """Loss or gradient is not finite; raised before the optimiser step (exit code 4)."""

    exit_code = 4


class Interrupted(CCNetError):
    """A signal asked to stop; what was done is saved (exit code 128 + signal number)."""

    def __init__(self, what: object, why: str, fix: str, number: int) -> None:
        super().__init__(what, why, fix)
        self.args = (what, why, fix, number)
        self.exit_code = 128 + number


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: on the device, in torch's CPU allocator, in numpy or in OpenCV."""
    # torch and OpenCV, which may not be loaded yet, are told by their words
    words = ("DefaultCPUAllocator", "Cannot allocate memory", "(-4:Insufficient memory)", "can't start new thread")
    named = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or named or any(word in str(error) for word in words)


def one_line(text: str) -> str:
    """The text with every control character and line separator written as its escape, so that it stays one line."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode("ascii") for c in text)


def tell(text: str) -> None:
    """Print one line on stderr, however quiet ccnet is to be; results never go this way."""
    print(f"ccnet: {one_line(text)}", file=sys.stderr, flush=True)


def notice(text: str) -> None:
    """Tell the user something in one line, unless --quiet."""
    if not quiet():
        tell(text)


def detail(text: str) -> None:
    """Tell in one line, with --verbose alone, what was found or how long it took."""
    if os.environ.get(VERBOSITY) == "verbose":
        tell(text)


def quiet() -> bool:
    """Whether errors alone are to be told."""
    return os.environ.get(VERBOSITY) == "quiet"
