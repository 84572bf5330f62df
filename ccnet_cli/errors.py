"""The errors a user can cause or meet, with their exit codes, and the one-line form they are told in."""

import sys


class CCNetError(Exception):
    """A failure told in one line, `WHAT: WHY; FIX`, without a traceback; told where another process says it."""

    exit_code = 1
    told = False

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


class PeerLost(EnvironmentFailure):
    """Another process of the run is gone or silent (exit code 3); the cause, if known, is another error."""


class NonFiniteError(CCNetError):
    """Loss or gradient is not finite; raised before the optimiser step (exit code 4)."""

    exit_code = 4


class Interrupted(CCNetError):
    """A signal asked to stop; what was done is saved (exit code 128 + signal number)."""

    def __init__(self, what: object, why: str, fix: str, number: int) -> None:
        super().__init__(what, why, fix)
        self.args = (what, why, fix, number)
        self.number = number
        self.exit_code = 128 + number


def one_line(text: str) -> str:
    """The text with every control character and line separator written as its escape, so that it stays one line."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode("ascii") for c in text)


def notice(text: str) -> None:
    """Tell the user something on stderr, in one line; results never go this way."""
    print(f"ccnet: {one_line(text)}", file=sys.stderr, flush=True)
