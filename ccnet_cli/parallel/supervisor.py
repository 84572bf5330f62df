"""Start the processes of a command on this machine, watch them, and restart or replace them."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from ccnet_cli import children, errors, files, parts
from ccnet_cli.children import Child
from ccnet_cli.errors import EnvironmentFailure, Interrupted, PeerLost, notice
from ccnet_cli.parallel import group as groups
from ccnet_cli.parallel.group import Limits, Worker

# after the first failure the other workers have this many seconds to report theirs, which may be the cause
GRACE_SECONDS = 3.0


class Outcome(NamedTuple):
    """The last message of a worker: what its work returned or raised, and when."""

    time: float
    answer: Any = None
    failure: Exception | None = None


@dataclass(eq=False)
class _Process:
    """A worker as the supervisor sees it; ready once it has sent a message."""

    rank: int
    pipe: Connection
    process: BaseProcess
    ready: bool = False
    outcome: Outcome | None = None
    error: Exception | None = None

    def receive(self) -> None:
        """Read the messages that have arrived."""
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                message = self.pipe.recv()
                self.ready = True
                if isinstance(message, Outcome):
                    self.outcome, self.error = message, message.failure

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
    forked: list[Child] | None = None,
) -> Any:
    """Run `work(worker, *arguments)` in N processes; rank 0's answer. Signals are forwarded; see Worker.signals.

    The first failure is raised: the CCNetError of a worker, EnvironmentFailure for one that was killed or does not
    answer, RuntimeError with the traceback for any other error. Up to `restarts` times an EnvironmentFailure restarts
    all workers instead; or, of independent workers, which share the store alone (see share_store), replaces the one
    that failed, and the answers of all are returned, by rank. Workers that were forked are taken before others start.
    """
    limits = limits or Limits()
    files.reserve_handles(48 + 8 * processes)
    payload = bytes(ForkingPickler.dumps((work, arguments)))
    with errors.record_signals() as received:
        store = groups.open_store("127.0.0.1", 0, True, limits.join)
        start = partial(_start, payload, processes, store.port, [] if forked is None else forked)
        try:
            restarts, replacements = (0, restarts) if independent else (restarts, 0)
            for left in range(restarts, -1, -1):
                workers = [start(rank, restarts - left) for rank in range(processes)]
                cause = _watch(workers, received, limits, start, replacements)
                if cause is None:
                    answers = [worker.outcome.answer for worker in workers if worker.outcome]
                    return answers if independent else answers[0]
                if received or not left or not isinstance(cause, EnvironmentFailure):
                    raise cause
                notice(f"warning: {cause.what}: {cause.why}; starting anew, {left} restarts left")
        finally:
            # the traceback of an error would keep the store's thread, which must not run when this process forks
            del store


def fork(processes: int) -> AbstractContextManager[list[Child]]:
    """Workers for `run` that need not import anything, where the system has them; see children.fork."""
    return children.fork(processes, _run_worker)


def _start(payload: bytes, processes: int, port: int, forked: list[Child], rank: int, attempt: int) -> _Process:
    """Give work to a worker, which unpickles work and arguments once it has imported the extensions."""
    # torchrun's variables, which `read_launch` reads
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), rank) | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), processes)
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    store |= {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
    child = forked.pop(0) if forked else children.launch("spawn", _run_worker)
    child.send((ranks | store | {"TORCHELASTIC_RESTART_COUNT": attempt}, payload))
    return _Process(rank, child.pipe, child.process)


def _replace(workers: list[_Process], start: Callable[[int, int], _Process], left: int, limits: Limits) -> int:
    """Start anew the workers that a failure of the machine has ended; the number of replacements left."""
    for index, worker in enumerate(workers):
        worker.receive()
        # one that never became ready would fail again
        if left and worker.ready and worker.has_failed and not worker.alive:
            cause = _cause([worker], [], [], limits)
            if isinstance(cause, EnvironmentFailure):
                notice(f"warning: {cause.what}: {cause.why}; replaced, the other processes go on")
                workers[index], left = start(worker.rank, 1), left - 1
    return left


def _watch(
    workers: list[_Process], received: list[int], limits: Limits, start: Callable[[int, int], _Process], left: int
) -> Exception | None:
    """Wait until all workers have ended, and kill those that miss the deadline; None for success, or the cause."""
    deadline, idle_end, forwarded, independent = float("inf"), float("inf"), False, left > 0
    while True:
        if not received and not any(worker.alive for worker in workers):
            # all died since the last look
            left, deadline = _replace(workers, start, left, limits), float("inf")
        if not any(worker.alive for worker in workers) or time.monotonic() > deadline:
            break
        connection.wait([worker.process.sentinel for worker in workers if worker.alive], timeout=0.2)
        for worker in workers:
            worker.receive()
        if not received:
            before, left = left, _replace(workers, start, left, limits)
            # the time of those that are replaced is not that of one that fails meanwhile
            deadline = deadline if left == before else float("inf")
        if received and not forwarded:
            forwarded = True
            # until all are ready there is nothing to save
            deadline = min(deadline, time.monotonic() + (limits.shutdown if all(w.ready for w in workers) else 0))
            for worker in workers:
                with suppress(OSError):
                    worker.pipe.send(received[0])
        if any(worker.has_failed for worker in workers):
            stopping = any(isinstance(worker.error, Interrupted) for worker in workers)
            # of a process that is gone without a word no other knows more
            gone = any(worker.outcome is None and not worker.alive for worker in workers)
            grace = limits.shutdown if stopping else GRACE_SECONDS / 3 if gone else GRACE_SECONDS
            deadline = min(deadline, time.monotonic() + grace)
        elif not received:
            # whoever failed has been replaced; where those that came are done, one that did not is waited for no longer
            idle = independent and any(w.is_done for w in workers) and not any(w.ready and w.alive for w in workers)
            deadline = idle_end = min(idle_end, time.monotonic() + limits.shutdown) if idle else float("inf")
    silent = [worker for worker in workers if worker.alive]
    for worker in silent:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.receive()
    return None if all(worker.is_done for worker in workers) else _cause(workers, silent, received, limits)


def _cause(workers: list[_Process], silent: list[_Process], received: list[int], limits: Limits) -> Exception:
    """The error to raise for failed workers: the first one; that a peer was lost is only a consequence."""
    failed = [(w.outcome.time, w.rank, w.error) for w in workers if w.outcome and w.error]
    failures = [error for *_, error in sorted(failed)]
    if stops := [error for error in failures if isinstance(error, Interrupted)]:
        return stops[0]
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
    if causes := [error for error in failures if not isinstance(error, PeerLost)]:
        return causes[0]
    timed_out = any("time" in error.why.lower() for error in failures if isinstance(error, PeerLost))
    for worker in workers:
        if worker.outcome is None and (timed_out or worker not in silent):
            why = "does not answer" if worker in silent else "ended without a word"
            return EnvironmentFailure(f"process {worker.rank} of this run", why, "see what held it up, and resume")
    fix = "see what held it up"
    return (
        failures[0] if failures else EnvironmentFailure(f"process {silent[0].rank} of this run", "did not start", fix)
    )


def _run_worker(pipe: Connection, task: tuple[dict[str, object], bytes]) -> None:
    """Entry of a worker: run the work and report its outcome."""
    environment, payload = task
    os.environ.update({name: str(value) for name, value in environment.items()})
    errors.mend_streams()
    worker = Worker(pipe)
    try:
        parts.extend_from_environment()
        work, arguments = ForkingPickler.loads(payload)
        outcome = Outcome(0.0, work(worker, *arguments))
    except Exception as error:
        outcome = Outcome(0.0, failure=errors.transportable(error))
    # a supervisor that was killed wants no answer
    with suppress(OSError):
        pipe.send(outcome._replace(time=time.time()))
    errors.exit_at_once(1 if outcome.failure else 0)
