"""Start the processes of a run on this machine, watch over them, and start them anew, together with other machines."""

import json
import multiprocessing
import os
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any

from ccnet_cli import errors
from ccnet_cli.errors import CCNetError, EnvironmentFailure, InputError, Interrupted, PeerLost, notice
from ccnet_cli.parallel import group as distributed
from ccnet_cli.parallel.group import Limits

ANSWERED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# after the first failure the other processes have so many seconds to tell theirs, which may be the cause
GRACE = 3.0
# a launcher that signals a whole group passes the signal on as well: within so many seconds two are one
ECHO = 0.5


@dataclass(frozen=True)
class Machines:
    """The machines of a run: how many, which of them this is, and where they meet."""

    count: int = 1
    number: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def machines(count: int | None, number: int | None, rendezvous: str | None) -> Machines:
    """The machines that the options --nodes, --node-rank and --rendezvous describe."""
    if count is None or count == 1:
        if number or rendezvous:
            raise InputError("option --nodes", "missing", "give the number of machines, such as --nodes 2")
        return Machines()
    if number is None or rendezvous is None:
        missing = "--node-rank" if number is None else "--rendezvous"
        raise InputError(f"option {missing}", "missing", "give --node-rank K and --rendezvous HOST:PORT too")
    if number >= count:
        raise InputError(f"option --node-rank {number}", f"there are {count}, counted from 0", "correct it or --nodes")
    host, _, port = rendezvous.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise InputError(f"option --rendezvous {rendezvous}", "not HOST:PORT", "write for example 10.0.0.1:29500")
    return Machines(count, number, host, int(port))


class _Member:
    """One process of this machine; told is its last word, (kind, content, time), or None."""

    def __init__(self, rank: int, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.rank = rank
        self.begun = False
        self.told: tuple[str, Any, float] | None = None
        context = multiprocessing.get_context("spawn")
        self.wire, far = context.Pipe()
        self.process = context.Process(target=target, args=(far, *arguments))
        self.process.start()
        far.close()

    def listen(self) -> None:
        """Take in what the process has said."""
        with suppress(EOFError, OSError):
            while self.wire.poll():
                word = self.wire.recv()
                self.begun = True
                if word is not None:
                    self.told = word

    @property
    def done(self) -> bool:
        return self.told is not None and self.told[0] == "done"

    @property
    def failed(self) -> bool:
        return not self.done and (self.told is not None or self.process.exitcode is not None)


def run(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    processes: int,
    team: Machines | None = None,
    restarts: int = 0,
    limits: Limits | None = None,
) -> Any:
    """Run `work(*arguments)` in so many processes of each machine; rank 0's answer, None on other machines.

    What went wrong first is raised here: a process's own CCNetError, EnvironmentFailure for one that was killed or is
    silent, RuntimeError with its traceback for any other. Up to `restarts` times an EnvironmentFailure starts all
    processes of all machines anew instead. A signal is passed on to the processes, which `signals` tells of it.
    """
    team, limits = team or Machines(), limits or Limits()
    with _supervising() as asked:
        board = _Board(team, limits, asked)
        try:
            while True:
                members = _start(work, arguments, processes, team, board)
                cause = _watch(members, board, asked, limits)
                if cause is None:
                    return members[0].told[1] if members[0].told and team.number == 0 else None
                if asked or restarts == 0 or not isinstance(cause, EnvironmentFailure):
                    raise cause
                notice(f"warning: {cause.what}: {cause.why}; starting anew, {restarts} restarts left")
                restarts -= 1
                board.next_attempt()
        finally:
            board.leave()


class _Board:
    """Where the machines of a run leave word for each other; the first machine keeps it."""

    def __init__(self, team: Machines, limits: Limits, asked: list[int]) -> None:
        self.team = team
        host = team.number == 0
        if host and team.port:
            distributed.refuse_taken(team.port)
        elif not host:
            distributed.reach(team.address, team.port, limits.join, lambda: bool(asked))
        self.store = distributed.store(team.address, team.port, host, limits.join)
        self.attempt = self.store.add("attempt", 0)
        if self.store.add(f"attempt-{self.attempt}/machine-{team.number}", 1) > 1:
            self.fail(EnvironmentFailure(f"machine {team.number}", "was started again", "resume"))
            self.next_attempt()

    def next_attempt(self) -> None:
        """Let the processes of the next attempt meet apart from those of this one."""
        self.attempt += 1
        self.store.set("attempt", str(self.attempt))
        self.store.add(f"attempt-{self.attempt}/machine-{self.team.number}", 1)

    def fail(self, error: Exception) -> Exception:
        """Tell the other machines why this attempt ends here; what was told first is the answer."""
        if self.team.count == 1:
            return error
        if isinstance(error, PeerLost):
            # the machine of the process that was lost knows more
            end = time.monotonic() + GRACE
            while time.monotonic() < end and self.failure() is None:
                time.sleep(0.1)
        parts = [part if isinstance(part, int) else str(part) for part in error.args]
        name = type(error).__name__ if isinstance(error, CCNetError) else ""
        with suppress(RuntimeError):
            self.store.compare_set(f"attempt-{self.attempt}/failure", "", json.dumps([name, parts]))
        return self.failure() or error

    def failure(self) -> Exception | None:
        """Why another machine ended this attempt, or None."""
        if self.team.count == 1:
            return None
        key = f"attempt-{self.attempt}/failure"
        try:
            if not self.store.check([key]):
                return None
            name, parts = json.loads(self.store.get(key))
        except RuntimeError:
            where = f"machine 0 at {self.team.address}:{self.team.port}"
            return EnvironmentFailure(where, "does not answer", "start all machines again with --resume")
        return _revived(name, parts)

    def leave(self) -> None:
        """The first machine stays until the others have read what they need, or for a few seconds."""
        if self.team.count > 1:
            with suppress(RuntimeError):
                gone = self.store.add("left", 1)
                end = time.monotonic() + 2 * GRACE
                while self.team.number == 0 and gone < self.team.count and time.monotonic() < end:
                    time.sleep(0.1)
                    gone = self.store.add("left", 0)
        # an error's traceback would keep its thread, which must not be there when this process forks
        del self.store


def _revived(name: str, parts: list[Any]) -> Exception:
    error: Exception = getattr(errors, name)(*parts) if name else RuntimeError(*parts)
    return error


def _start(
    work: Callable[..., Any], arguments: tuple[Any, ...], processes: int, team: Machines, board: _Board
) -> list[_Member]:
    resource_tracker.ensure_running()
    # a process is born with these blocked, and hears of one that came too early when it is ready for it
    signal.pthread_sigmask(signal.SIG_BLOCK, ANSWERED)
    try:
        members = []
        for local in range(processes):
            rank = team.number * processes + local
            environment = {
                "RANK": rank,
                "WORLD_SIZE": processes * team.count,
                "LOCAL_RANK": local,
                "LOCAL_WORLD_SIZE": processes,
                "MASTER_ADDR": team.address,
                "MASTER_PORT": board.store.port,
                "TORCHELASTIC_USE_AGENT_STORE": True,
                "TORCHELASTIC_RESTART_COUNT": board.attempt,
                "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
                distributed.SUPERVISED: 1,
            }
            words = {name: str(value) for name, value in environment.items()}
            if team.count > 1 and (interface := _interface(team.address, board.store.port)):
                words |= {
                    name: os.environ.get(name, interface) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
                }
            members.append(_Member(rank, _live, (words, work, arguments)))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ANSWERED)
    return members


def _interface(address: str, port: int) -> str | None:
    """The network interface through which this machine reaches the meeting point."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            # SIOCGIFADDR: the interface's address, from the 20th byte on
            with suppress(OSError):
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return None


def _watch(members: list[_Member], board: _Board, asked: list[int], limits: Limits) -> Exception | None:
    """Wait for the processes to end; None where all did their work, else why not."""
    deadline, passed, elsewhere = float("inf"), False, None
    while True:
        alive = [member for member in members if member.process.exitcode is None]
        connection.wait([member.process.sentinel for member in alive], timeout=0.2)
        for member in members:
            member.listen()
        if not alive:
            break
        now = time.monotonic()
        if asked and not passed:
            passed = True
            # before all have begun there is nothing that could be saved
            deadline = min(deadline, now + (limits.shutdown if all(member.begun for member in members) else 0))
            for member in members:
                with suppress(OSError):
                    member.wire.send(asked[0])
        elsewhere = elsewhere or board.failure()
        failures = [member for member in members if member.failed]
        if failures or elsewhere:
            stopping = any(member.told and member.told[0] == Interrupted.__name__ for member in failures)
            stopping = stopping or isinstance(elsewhere, Interrupted)
            deadline = min(deadline, now + (limits.shutdown if stopping else GRACE))
        if now > deadline:
            break
    silent = [member for member in members if member.process.exitcode is None]
    for member in silent:
        member.process.kill()
    for member in members:
        member.process.join()
        member.listen()
    if all(member.done for member in members):
        return None
    if elsewhere is not None:
        return elsewhere
    return board.fail(_cause(members, silent, asked, limits))


def _cause(members: list[_Member], silent: list[_Member], asked: list[int], limits: Limits) -> Exception:
    """What to raise for processes that failed: the first of them is the cause, the others lost their partner."""
    told = [member.told for member in sorted(members, key=lambda m: m.told[2] if m.told else 0) if member.told]
    failures = [(name, parts) for name, parts, _ in told if name != "done"]
    for name, parts in failures:
        if name == Interrupted.__name__:
            return _revived(name, parts)
    if asked:
        name = signal.Signals(asked[0]).name
        if all(member.begun for member in members) and silent and not failures:
            why = f"did not end within {limits.shutdown:.0f} s of {name}"
            return EnvironmentFailure("this run", why, "give it more time with --shutdown-timeout")
        if not failures:
            return Interrupted("this run", f"stopped by {name} before its first step", "start it again", asked[0])
    for member in members:
        code = member.process.exitcode or 0
        if code < 0 and member not in silent:
            why = f"killed by {signal.Signals(-code).name}"
            return EnvironmentFailure(f"process {member.rank} of this run", why, "see if memory ran out, and resume")
    for name, parts in failures:
        if name != PeerLost.__name__:
            return _revived(name, parts)
    for member in members:
        if member.told is None and (member not in silent or any("time" in parts[1].lower() for _, parts in failures)):
            why = "does not answer" if member in silent else "ended without a word"
            return EnvironmentFailure(f"process {member.rank} of this run", why, "see what held it up, and resume")
    return _revived(*failures[0])


def _live(wire: Any, environment: Mapping[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """A process's whole life: do the work and tell how it ended."""
    global _wire
    os.environ.update(environment)
    _wire = wire
    threading.Thread(target=_listen, args=(wire,), daemon=True).start()
    try:
        answer = work(*arguments)
    except Exception as error:
        kind, parts = "", [traceback.format_exc()]
        if isinstance(error, CCNetError):
            kind, parts = type(error).__name__, [p if isinstance(p, int) else str(p) for p in error.args]
        _end(wire, (kind, parts, time.time()), 1)
    _end(wire, ("done", answer, time.time()), 0)


def _end(wire: Any, word: tuple[str, Any, float], code: int) -> None:
    wire.send(word)
    # a loader's workers ignore SIGTERM, and an orderly exit would wait for them
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


_wire: Any = None
_passed: list[int] = []


def _listen(wire: Any) -> None:
    try:
        while True:
            _passed.append(wire.recv())
    except (EOFError, OSError):
        # nobody is left to answer to
        os._exit(1)


def begun() -> None:
    """Tell the process that started this one that from now on a signal is answered with a checkpoint."""
    if _wire is not None:
        _wire.send(None)


@contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """Note SIGINT, SIGTERM and SIGUSR1 instead of dying of them; inside, a call tells the number of the first, or 0.

    A second signal ends the process at once.
    """
    with _noted(ECHO if distributed.world() > 1 and _wire is None else 0) as asked:
        begun()
        yield lambda: next(iter([*asked, *_passed]), 0)


@contextmanager
def _supervising() -> Iterator[list[int]]:
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    with _noted(0) as asked:
        yield asked


@contextmanager
def _noted(echo: float) -> Iterator[list[int]]:
    asked: list[int] = []
    first = 0.0

    def note(number: int, _: object) -> None:
        nonlocal first
        if not asked:
            first = time.monotonic()
            asked.append(number)
        elif time.monotonic() - first > echo:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + number)

    before = {number: signal.signal(number, note) for number in ANSWERED}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ANSWERED)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
