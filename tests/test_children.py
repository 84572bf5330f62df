"""Child processes that wait for their task."""

import os
import signal
import time
from pathlib import Path

import pytest
from runs import ended, forked

from ccnet_cli import children


def _answer(pipe, task):
    pipe.send((os.getpid(), task))
    os._exit(0)


def _state(process):
    """The letter that the system has for it, or nothing where it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_a_child_gets_its_task_and_the_others_end_with_the_block():
    with children.fork(3, _answer) as waiting:
        first, second = waiting.pop(0), waiting.pop(0)
        for number, child in enumerate((first, second)):
            child.send(number)
        assert [child.pipe.recv() for child in (first, second)] == [(first.process.pid, 0), (second.process.pid, 1)]
        (third,) = waiting
        assert third.process.is_alive()
    assert third.process.exitcode == -signal.SIGKILL
    for child in (first, second):
        child.process.join()
        assert child.process.exitcode == 0


def test_a_task_for_a_child_that_is_gone_is_no_error():
    with children.fork(1, _answer) as waiting:
        (child,) = waiting
        child.process.kill()
        child.process.join()
        child.send("x" * 1_000_000)


@pytest.mark.parametrize("count", [1, 3])
def test_children_that_wait_end_with_a_parent_that_was_killed(tmp_path, count):
    def work():
        with children.fork(count, _answer) as waiting:
            (tmp_path / "new").write_text(" ".join(str(child.process.pid) for child in waiting))
            (tmp_path / "new").rename(tmp_path / "numbers")
            time.sleep(300)

    parent = forked(work)
    while not (tmp_path / "numbers").exists():
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    assert ended(parent) == -signal.SIGKILL
    deadline = time.monotonic() + 30
    for number in map(int, (tmp_path / "numbers").read_text().split()):
        while _state(number) not in ("", "Z") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _state(number) in ("", "Z"), "a child waits on"
