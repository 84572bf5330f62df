"""Child processes that wait, at the end of a pipe, for what they are to do."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NamedTuple

from ccnet_cli.errors import SIGNALS

# gets its end of the pipe and its task
Entry = Callable[[Connection, Any], None]


class Child(NamedTuple):
    """A process, and this one's end of the pipe to it."""

    pipe: Connection
    process: BaseProcess

    def send(self, task: object) -> None:
        """Let the entry run; that a process has died is seen elsewhere."""
        with suppress(OSError):
            self.pipe.send(task)


def launch(method: Literal["fork", "spawn"], entry: Entry, older: tuple[Child, ...] = ()) -> Child:
    """Start a process that runs `entry` once it has got its task, or ends if this process ends before.

    older are those that a fork would be a copy with, ends of their pipes included.
    """
    context: Any = multiprocessing.get_context(method)
    resource_tracker.ensure_running()
    near, far = context.Pipe()
    copied = [near, *(child.pipe for child in older)] if method == "fork" else []
    process = context.Process(target=_wait, args=(far, copied, entry))
    # children inherit the mask, so early signals stay pending
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        far.close()
    return Child(near, process)


@contextmanager
def fork(count: int, entry: Entry) -> Iterator[list[Child]]:
    """Copies of this process, imports and all; to be made before it computes or has threads of its own.

    Whoever takes one from the list watches it; the others end with the block. None are made on systems whose
    libraries may not be forked.
    """
    children: list[Child] = []
    try:
        for _ in range(count if sys.platform == "linux" else 0):
            children.append(launch("fork", entry, tuple(children)))
        yield children
    finally:
        for child in children:
            child.process.kill()
            child.process.join()


def _wait(pipe: Connection, copied: list[Connection], entry: Entry) -> None:
    for end in copied:
        end.close()
    try:
        task = pipe.recv()
    except (EOFError, OSError):
        os._exit(1)
    entry(pipe, task)
