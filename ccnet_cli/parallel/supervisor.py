"""Start the processes of a command on this machine, watch them, and restart or replace them."""

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, NoReturn

from ccnet_cli import parts
from ccnet_cli.errors import EnvironmentFailure, Interrupted, PeerLost, notice
from ccnet_cli.parallel import group as groups
from ccnet_cli.parallel.group import Group, Limits, decode_error, encode_error

# the signals that a run answers with a checkpoint
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# after the first failure the other workers have this many seconds to report theirs, which may be the cause
GRACE_SECONDS = 3.0
# a launcher that signals a process group forwards the signal as well: signals closer together than this count as one
ECHO_SECONDS = 0.5


class Outcome(NamedTuple):
    """The last message of a worker: what its work returned or raised, and when."""

    time: float
    answer: Any = None
    # see encode_error
    failure: tuple[str, list[Any]] | None = None


class _Process:
    """A worker as the supervisor sees it; ready once it has sent a message."""

    def __init__(self, rank: int, pipe: Connection, process: BaseProcess) -> None:
        self.rank = rank
        self.pipe = pipe
        self.process = process
        self.ready = False
        self.outcome: Outcome | None = None
        self.error: Exception | None = None

    def receive(self) -> None:
        """Read the messages that have arrived."""
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                message = self.pipe.recv()
                self.ready = True
                if isinstance(message, Outcome):
                    self.outcome = message
                    self.error = decode_error(message.failure) if message.failure else None

    @property
    def alive(self) -> bool:
        return self.process.exitcode is None

    @property
    def is_done(self) -> bool:
        return self.outcome is not None and self.error is None

    @property
    def has_failed(self) -> bool:
        return not self.is_done and (self.outcome is not None or not self.alive)


def run(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    processes: int,
    restarts: int = 0,
    limits: Limits | None = None,
    independent: bool = False,
) -> Any:
    """Run `work(worker, *arguments)` in N processes; rank 0's answer.

    The first failure is raised: the CCNetError of a worker, EnvironmentFailure for one that was killed or does not
    answer, RuntimeError with the traceback for any other error. Up to `restarts` times an EnvironmentFailure restarts
    all workers instead. Signals are forwarded to the workers; see Worker.signals.

    Independent workers share the store alone (see share_store): one that a failure of the machine ends is replaced, up
    to `restarts` times in all, while the others go on, and the answers of all are returned, by rank.
    """
    limits = limits or Limits()
    payload = bytes(ForkingPickler.dumps((work, arguments)))
    with _record_signals() as received:
        store = groups.open_store("127.0.0.1", 0, True, limits.join)
        try:
            for attempt in itertools.count():
                start = partial(_start, payload, processes, store.port)
                workers = [start(rank, attempt) for rank in range(processes)]
                cause = _watch(workers, received, limits, _Replacements(start, restarts if independent else 0))
                answers = [worker.outcome.answer if worker.outcome else None for worker in workers]
                if cause is None:
                    return answers if independent else answers[0]
                if received or independent or attempt == restarts or not isinstance(cause, EnvironmentFailure):
                    raise cause
                notice(f"warning: {cause.what}: {cause.why}; starting anew, {restarts - attempt} restarts left")
        finally:
            # the traceback of an error would keep the store's thread, which must not run when this process forks
            del store


def _start(payload: bytes, processes: int, port: int, rank: int, attempt: int) -> _Process:
    """Start a worker, which unpickles work and arguments once it has imported the extensions."""
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()
    # torchrun's variables, which `read_launch` reads
    environment = {
        "RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCHELASTIC_RESTART_COUNT": attempt,
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }
    # children inherit the mask, so early signals stay pending
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pipe, far_end = context.Pipe()
        process = context.Process(target=_run_worker, args=(far_end, environment, payload))
        process.start()
        far_end.close()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return _Process(rank, pipe, process)


class _Replacements:
    """Replaces independent workers that failures of the machine have ended."""

    def __init__(self, start: Callable[[int, int], _Process], left: int) -> None:
        self.start = start
        self.left = left
        self.count = 0

    def replace(self, workers: list[_Process], limits: Limits) -> None:
        """Replace in the list what has failed; a worker that never became ready would fail again."""
        for index, worker in enumerate(workers):
            if not self.left or worker.alive or not worker.has_failed or not worker.ready:
                continue
            cause = _cause([worker], [], [], limits)
            if isinstance(cause, EnvironmentFailure):
                self.left -= 1
                self.count += 1
                notice(f"warning: {cause.what}: {cause.why}; replaced, the other processes go on")
                workers[index] = self.start(worker.rank, self.count)


def _watch(
    workers: list[_Process], received: list[int], limits: Limits, replacements: _Replacements
) -> Exception | None:
    """Wait until all workers have ended, and kill those that miss the deadline; None for success, or the cause."""
    deadline, forwarded = float("inf"), False
    while any(worker.alive for worker in workers) and time.monotonic() <= deadline:
        connection.wait([worker.process.sentinel for worker in workers if worker.alive], timeout=0.2)
        for worker in workers:
            worker.receive()
        if not received:
            replacements.replace(workers, limits)
        if received and not forwarded:
            forwarded = True
            # until all are ready there is nothing to save
            seconds = limits.shutdown if all(worker.ready for worker in workers) else 0
            deadline = min(deadline, time.monotonic() + seconds)
            for worker in workers:
                with suppress(OSError):
                    worker.pipe.send(received[0])
        if any(worker.has_failed for worker in workers):
            stopping = any(isinstance(worker.error, Interrupted) for worker in workers)
            deadline = min(deadline, time.monotonic() + (limits.shutdown if stopping else GRACE_SECONDS))
    silent = [worker for worker in workers if worker.alive]
    for worker in silent:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.receive()
    return None if all(worker.is_done for worker in workers) else _cause(workers, silent, received, limits)


def _cause(workers: list[_Process], silent: list[_Process], received: list[int], limits: Limits) -> Exception:
    """The error to raise for failed workers: the first one; that a peer was lost is only a consequence."""
    reported = sorted((w.outcome.time, w.rank, w.error) for w in workers if w.outcome and w.error)
    failures = [error for _, _, error in reported]
    for error in failures:
        if isinstance(error, Interrupted):
            return error
    if received and not failures:
        name = signal.Signals(received[0]).name
        if silent and all(worker.ready for worker in workers):
            why = f"did not end within {limits.shutdown:.0f} s of {name}"
            return EnvironmentFailure("this run", why, "give it more time with --shutdown-timeout")
        return Interrupted("this run", f"stopped by {name} before its first step", "start it again", received[0])
    for worker in workers:
        code = worker.process.exitcode or 0
        if code < 0 and worker not in silent:
            why = f"killed by {signal.Signals(-code).name}"
            return EnvironmentFailure(f"process {worker.rank} of this run", why, "see if memory ran out, and resume")
    for error in failures:
        if not isinstance(error, PeerLost):
            return error
    timed_out = any("time" in error.why.lower() for error in failures if isinstance(error, PeerLost))
    for worker in workers:
        if worker.outcome is None and (timed_out or worker not in silent):
            why = "does not answer" if worker in silent else "ended without a word"
            return EnvironmentFailure(f"process {worker.rank} of this run", why, "see what held it up, and resume")
    return failures[0]


class Worker:
    """This process as its supervisor's worker; without a pipe it has no supervisor, and tells nobody."""

    def __init__(self, pipe: Connection | None = None) -> None:
        self.pipe = pipe
        self.forwarded: list[int] = []
        if pipe is not None:
            threading.Thread(target=self._receive, args=(pipe,), daemon=True).start()

    def _receive(self, pipe: Connection) -> None:
        try:
            while True:
                self.forwarded.append(pipe.recv())
        except (EOFError, OSError):
            # the supervisor is gone
            os._exit(1)

    @property
    def is_supervised(self) -> bool:
        """Whether a supervisor waits for this process."""
        return self.pipe is not None

    @contextmanager
    def signals(self, group: Group) -> Iterator[Callable[[], int]]:
        """Record SIGINT, SIGTERM and SIGUSR1 instead of dying of them; yields a function: the first one's number, or 0.

        The supervisor learns that this process is ready. A second signal ends it at once.
        """
        with _record_signals(ECHO_SECONDS if group.world_size > 1 and not self.is_supervised else 0) as received:
            if self.pipe is not None:
                self.pipe.send(None)
            yield lambda: next(iter([*received, *self.forwarded]), 0)


def _run_worker(pipe: Connection, environment: Mapping[str, object], payload: bytes) -> None:
    """Entry of a worker: run the work and report its outcome."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    worker = Worker(pipe)
    try:
        parts.extend_from_environment()
        work, arguments = ForkingPickler.loads(payload)
        outcome = Outcome(0.0, work(worker, *arguments))
    except Exception as error:
        outcome = Outcome(0.0, failure=encode_error(error))
    pipe.send(outcome._replace(time=time.time()))
    exit_at_once(1 if outcome.failure else 0)


def exit_at_once(code: int) -> NoReturn:
    """End this process and its children: a loader's workers ignore SIGTERM, and an orderly exit would wait for them."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


@contextmanager
def _record_signals(echo_seconds: float = 0) -> Iterator[list[int]]:
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

    handlers = {number: signal.signal(number, record) for number in SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
