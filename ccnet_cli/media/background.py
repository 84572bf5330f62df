"""Read ahead and write behind on threads, while the network runs."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Submit = Callable[..., Future[Any]]

# results that wait to be written
MAX_PENDING = 2


def prefetch(
    load: Callable[[Item], Loaded], items: Iterable[Item | None], count: int = 2
) -> Generator[Loaded, None, None]:
    """Yield load(item) of each item in order, from a thread that reads up to `count` items ahead.

    None among the items is no item: the next may take a while, so all that come before it are yielded first.
    """
    pending: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for item in items:
                if item is not None:
                    pending.append(pool.submit(load, item))
                while len(pending) > (0 if item is None else count):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # the executor's end waits for the one that is running
            for future in pending:
                future.cancel()


@contextmanager
def background_writer(count: int = MAX_PENDING) -> Iterator[Submit]:
    """Yield `submit`: calls run in order on one thread, at most `count` pending; the block ends when all have run.

    After a call that raised no other runs. Its error is raised by the next submit or by the block's end, there in
    place of an error of the block, which comes later in the order. Anything but an Exception in the block, such as
    KeyboardInterrupt, cancels the pending calls.
    """
    pending: deque[Future[Any]] = deque()
    failed = threading.Event()

    def run(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if failed.is_set():
            return None
        try:
            return call(*arguments)
        except BaseException:
            failed.set()
            raise

    def submit(call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        while pending and (len(pending) >= count or pending[0].done()):
            pending.popleft().result()
        pending.append(pool.submit(run, call, arguments))
        return pending[-1]

    def finish() -> None:
        while pending:
            pending.popleft().result()

    with ThreadPoolExecutor(1) as pool:
        try:
            try:
                yield submit
            except Exception:
                finish()
                raise
            finish()
        finally:
            for future in pending:
                future.cancel()
