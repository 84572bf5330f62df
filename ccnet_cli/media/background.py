"""Work before and behind other work: what comes next is read, and what is done is written, while the network runs."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

# results that wait to be written
WAITING = 2


def ahead(load: Callable[[Any], Any], items: Iterable[Any], count: int = 2) -> Iterator[Any]:
    """load(item) of each item in order, by a thread that is up to `count` items further than the caller."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # one that is under way is waited for
            for future in waiting:
                future.cancel()


@contextmanager
def behind(count: int = WAITING) -> Iterator[Callable[..., Future[Any]]]:
    """What hands a call to a thread that makes them in order; the block ends when all are made.

    With `count` of them waiting it waits for the first. No call is made after one that raised, and what that raised is
    raised by the next to be handed over, or at the block's end, also where the block itself raises an error later in
    the order. Where something else than an error ends the block, such as a second signal, those that wait are given up.
    """
    waiting: deque[Future[Any]] = deque()
    failed = threading.Event()

    def made(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if failed.is_set():
            return None
        try:
            return call(*arguments)
        except BaseException:
            failed.set()
            raise

    def hand(call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        while waiting and (len(waiting) >= count or waiting[0].done()):
            waiting.popleft().result()
        waiting.append(pool.submit(made, call, arguments))
        return waiting[-1]

    def finish() -> None:
        while waiting:
            waiting.popleft().result()

    with ThreadPoolExecutor(1) as pool:
        try:
            try:
                yield hand
            except Exception:
                finish()
                raise
            finish()
        finally:
            for future in waiting:
                future.cancel()
