"""Progress on stderr: a bar on a terminal, plain lines otherwise, nothing where ccnet is to be quiet."""

import sys
import time
from typing import Any

from ccnet_cli.errors import quiet


class Progress:
    """Shows how far a count of things is; `unit` names one of them, texts come with each call.

    Where there is no terminal only every `every`-th is told.
    """

    def __init__(self, total: int, done: int = 0, unit: str = "step", every: int = 1) -> None:
        self.total = total
        self.first = done
        self.unit = unit
        self.every = every
        self.started = time.monotonic()
        self.bar: Any = None

    def show(self, done: int, text: str) -> None:
        """Tell that `done` of the total are done, with a text such as the loss."""
        if quiet():
            return
        if not sys.stderr.isatty():
            if done % self.every:
                return
            left = (time.monotonic() - self.started) * (self.total - done) / max(done - self.first, 1)
            print(f"{self.unit} {done}/{self.total}  {text}  eta {_clock(left)}", file=sys.stderr, flush=True)
            return
        if self.bar is None:
            self.bar = _bar(self.unit)
            self.bar.start()
            self.bar.add_task(self.unit, total=self.total, completed=self.first, text="")
        self.bar.update(0, completed=done, text=text)

    def close(self) -> None:
        """Leave the terminal to other lines; the next show brings the bar back."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _bar(unit: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
