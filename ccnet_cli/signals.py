"""The signals that a command answers with an orderly end."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

# the signals that a run answers with a checkpoint
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# a launcher that signals a process group forwards the signal as well: signals closer together than this count as one
ECHO_SECONDS = 0.5


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
    heard = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, record) for number in heard}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def exit_at_once(code: int) -> NoReturn:
    """End this process and its children: a loader's workers ignore SIGTERM, and an orderly exit would wait for them."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
