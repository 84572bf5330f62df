"""Progress: lines where there is no terminal, a bar where there is one."""

import io
import sys

import pytest

from ccnet_cli import errors, progress
from ccnet_cli.progress import Progress


def test_a_line_for_each_call_on_stderr(capsys: pytest.CaptureFixture[str]):
    Progress(10).show(3, "loss 0.5")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("step 3/10  loss 0.5  eta ")


def test_nothing_where_ccnet_is_to_be_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv(errors.VERBOSITY, "quiet")
    progress = Progress(10)
    progress.show(3, "loss 0.5")
    progress.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("total", "first", "done", "seconds", "eta"),
    [
        # a third of the work took a minute
        (30, 0, 10, 60, "2:00"),
        # after a resume at 100, ten steps took 20 seconds, and ninety are to come
        (200, 100, 110, 20, "3:00"),
        (200, 100, 100, 20, "33:20"),
        (4, 0, 4, 90, "0:00"),
        (2, 0, 1, 7325.4, "2:02:05"),
        (2, 0, 1, 59.6, "1:00"),
    ],
)
def test_the_time_to_come_follows_the_rate_since_the_start(total, first, done, seconds, eta, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress(total, first, "image")
    now[0] += seconds
    shown.show(done, "x")
    assert capsys.readouterr().err == f"image {done}/{total}  x  eta {eta}\n"


def test_only_every_so_many_have_a_line(capsys):
    shown = Progress(9, 1, every=4)
    for done in range(2, 10):
        shown.show(done, "x")
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["4/9", "8/9"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_that_begins_where_the_work_does(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    shown = Progress(20, 5, "image")
    shown.show(5, "first")
    assert shown.bar.tasks[0].completed == 5 and shown.bar.tasks[0].total == 20
    shown.show(12, "later")
    assert shown.bar.tasks[0].completed == 12
    shown.close()
    assert shown.bar is None and "12/20" in terminal.getvalue() and "later" in terminal.getvalue()
