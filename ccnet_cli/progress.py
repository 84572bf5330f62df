"""Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing with --quiet."""

import sys
import time
from typing import Any

from ccnet_cli.errors import is_quiet


class Progress:
    """Progress of `total` units of work, None if unknown; without a terminal only every `every`-th has a line."""

    def __init__(self, total: int | None, done: int = 0, unit: str = "step", every: int = 1) -> None:
        self.total = total
        self.first = done
        self.unit = unit
        self.every = every
        self.started = time.monotonic()
        self.bar: Any = None

    def show(self, done: int, text: str) -> None:
        """Show that `done` units are done, with a text such as the loss."""
        if is_quiet():
            return
        if not sys.stderr.isatty():
            if done % self.every:
                return
            print(f"{self.unit} {self._describe(done, text)}", file=sys.stderr, flush=True)
            return
        if self.bar is None:
            self.bar = _bar(self.unit)
            self.bar.start()
            self.bar.add_task(self.unit, total=self.total, completed=self.first, text="")
        self.bar.update(0, completed=done, text=text)

    def _describe(self, done: int, text: str) -> str:
        seconds, new = time.monotonic() - self.started, max(done - self.first, 1)
        if self.total is None:
            return f"{done}  {text}  {new / max(seconds, 1e-9):.1f}/s"
        return f"{done}/{self.total}  {text}  eta {_clock(seconds * (self.total - done) / new)}"

    def close(self) -> None:
        """Remove the bar, so that other lines can be printed; the next show brings it back."""
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
