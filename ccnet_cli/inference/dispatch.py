"""Hand out tasks to processes that may be slow, come late or die; each takes the next as soon as it has done one."""

import json
import os
import queue
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import AuthenticationError, connection
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from ccnet_cli import errors
from ccnet_cli.devices import Launch, read_launch
from ccnet_cli.errors import CCNetError, EnvironmentFailure, InputError, PeerLost, notice

# a message, in JSON: that of a task has its "index", and "again" if a process may have died of it
Message = dict[str, Any]

# tasks in the hands of a process: one is read, one is computed, the result of one is written
DEPTH = 3
# processes that may die, one after the other, without a task being done in between
MAX_DEATHS = 8
# seconds in which processes must end once there is nothing more to do, or something has failed
END_SECONDS = 60.0


class _Peer:
    """A process that takes tasks, as the dispatcher sees it."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.name = "process"
        self.tasks: dict[int, Message] = {}
        self.alone = self.flushed = self.left = False

    def send(self, message: Message) -> None:
        with suppress(OSError):
            _send(self.pipe, message)


class Dispatcher:
    """Serves tasks to all processes that connect to its address, on a thread; key lets them in.

    tasks yields the messages of tasks, or None where there is none at present. on_result gets a task and its result, or
    None where two processes died of it, the second time with this task alone.
    """

    def __init__(
        self,
        tasks: Iterator[Message | None],
        on_result: Callable[[Message, Message | None], None],
        remote: bool = False,
    ) -> None:
        self.key = secrets.token_bytes(16)
        address, family = (("", 0), "AF_INET") if remote else (None, "AF_UNIX")
        self.listener = Listener(address, family, backlog=64, authkey=self.key)
        self.tasks: Iterator[Message | None] = tasks
        self.on_result = on_result
        self.peers: list[_Peer] = []
        self.again: deque[Message] = deque()
        self.ended = False
        self.deaths = 0
        self.stopping: float | None = None
        self.closing = self.looking = False
        self.error: BaseException | None = None
        self.arrivals: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._serve, self._accept)]

    @property
    def address(self) -> Any:
        """Where processes connect: the path of a socket, or a host and a port."""
        return self.listener.address

    def start(self) -> None:
        """Serve."""
        # the second ends with the first
        for thread in self.threads:
            thread.start()

    def stop(self, error: BaseException | None = None) -> None:
        """Let every process finish what it computes, and hand out no more; because of an error, if any."""
        if self.error is None:
            self.error = error
        if self.stopping is None:
            self.stopping = time.monotonic()
            for peer in self.peers:
                peer.send({"stop": True})

    def close(self) -> None:
        """Wait until the processes that are here have left."""
        self.closing = True
        self.threads[0].join()
        with suppress(OSError, EOFError, AuthenticationError):
            # wakes the other thread
            Client(self.address, authkey=self.key).close()
        self.listener.close()

    def _accept(self) -> None:
        while self.threads[0].is_alive():
            try:
                pipe = self.listener.accept()
            except (OSError, EOFError, AuthenticationError):
                # closed, or a stranger
                continue
            self.arrivals.put(pipe)

    def _serve(self) -> None:
        # a process that comes late, even after an error, is stopped too
        while self.peers or not self.closing:
            try:
                self._take_turn()
            except BaseException as error:
                self.stop(error)
            if self.closing and self.stopping is not None and time.monotonic() - self.stopping > END_SECONDS:
                return

    def _take_turn(self) -> None:
        self._admit()
        pipes = [peer.pipe for peer in self.peers]
        if not pipes:
            time.sleep(0.02)
        # where tasks are still looked for, that takes its own time
        ready = connection.wait(pipes, 0 if self.looking and self.stopping is None else 0.05)
        for peer in [peer for peer in self.peers if peer.pipe in ready]:
            self._receive(peer)
        if self.stopping is None:
            self._feed()
            if self._is_done():
                self.stop()

    def _is_done(self) -> bool:
        return self.ended and not self.again and not any(peer.tasks for peer in self.peers)

    def _admit(self) -> None:
        while not self.arrivals.empty():
            peer = _Peer(_tune(self.arrivals.get()))
            self.peers.append(peer)
            if self.stopping is not None:
                peer.send({"stop": True})

    def _receive(self, peer: _Peer) -> None:
        try:
            while peer.pipe.poll():
                message = json.loads(peer.pipe.recv_bytes())
                if "index" in message:
                    self.deaths, peer.alone = 0, False
                    self.on_result(peer.tasks.pop(message["index"]), message)
                elif "failed" in message:
                    self.stop(decode_error(message["failed"]))
                peer.name = message.get("name", peer.name)
                if "left" in message:
                    peer.left = True
                    raise EOFError
        except (EOFError, OSError):
            self.peers.remove(peer)
            peer.pipe.close()
            self._bury(peer)

    def _bury(self, peer: _Peer) -> None:
        """Give back the tasks of a process that is gone."""
        tasks = list(peer.tasks.values())
        if self.stopping is not None or peer.left:
            self.again += tasks
            return
        self.deaths += 1
        if self.deaths > MAX_DEATHS:
            why = f"{self.deaths} died one after the other, and nothing was done in between"
            self.stop(EnvironmentFailure("processes", why, "see if memory ran out, and run the same with --continue"))
            return
        lost = [task for task in tasks if task.get("again")]
        if len(lost) < len(tasks):
            notice(f"warning: {peer.name} died; {len(tasks) - len(lost)} of its sources are tried again, one at a time")
        self.again += [task | {"again": True} for task in tasks if not task.get("again")]
        for task in lost:
            self.on_result(task, None)

    def _feed(self) -> None:
        """Give every process what it has room for, in turn."""
        self.looking = False
        while True:
            peers = [peer for peer in self.peers if not (peer.left or peer.alone)]
            if not peers:
                return
            quiet = min(peers, key=lambda peer: len(peer.tasks))
            # who gets a task that may be deadly has no other
            if self.again and not quiet.tasks:
                task = self.again.popleft()
                quiet.alone, quiet.flushed = bool(task.get("again")), True
                self._hand(quiet, task)
                quiet.send({"flush": True})
                continue
            room = [peer for peer in peers if len(peer.tasks) < DEPTH and not (self.again and peer is quiet)]
            self.looking = bool(room) and not self.ended
            following = self._next() if self.looking else None
            if following is None:
                break
            peer = min(room, key=lambda peer: len(peer.tasks))
            peer.flushed = False
            self._hand(peer, following)
        # who waits for more must not hold back what it has
        for peer in peers:
            if 0 < len(peer.tasks) < DEPTH and not peer.flushed:
                peer.flushed = True
                peer.send({"flush": True})

    def _hand(self, peer: _Peer, task: Message) -> None:
        peer.tasks[task["index"]] = task
        peer.send(task)

    def _next(self) -> Message | None:
        try:
            return next(self.tasks)
        except StopIteration:
            self.ended, self.looking = True, False
            return None


class TaskQueue:
    """The tasks that a dispatcher hands to this process, which has a name for its messages."""

    def __init__(self, address: Any, key: bytes, name: str) -> None:
        self.pipe = _tune(Client(tuple(address) if isinstance(address, list) else address, authkey=key))
        self.lock = threading.Lock()
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.stopped = self.lost = False
        self.send({"name": name})
        threading.Thread(target=self._receive, daemon=True).start()

    def runs(self, stop_signal: Callable[[], int]) -> Iterator[Iterator[Message]]:
        """Runs of tasks: each must be done to its end before the next one is asked for; none after a signal."""
        while not self.stopped and not stop_signal():
            try:
                first = self.messages.get(timeout=0.2)
            except queue.Empty:
                continue
            if "index" in first:
                yield self._run(first)
        if self.lost:
            why = "is gone, which hands out the work"
            raise PeerLost("process 0 of this run", why, "see what became of it, and run the same with --continue")
        self.stopped = True
        self.send({"left": True})

    def send(self, message: Message) -> None:
        """Send a result, or an error as {"failed": encode_error(...)}; from any thread."""
        with self.lock, suppress(OSError):
            _send(self.pipe, message)

    def _run(self, first: Message) -> Iterator[Message]:
        task = first
        while "index" in task:
            yield task
            task = self.messages.get()

    def _receive(self) -> None:
        try:
            while True:
                message = json.loads(self.pipe.recv_bytes())
                self.stopped = self.stopped or "stop" in message
                self.messages.put(message)
        except (EOFError, OSError):
            self.lost, self.stopped = not self.stopped, True
            self.messages.put({})


def read_launch_alone(gpus: int | None, processes: int) -> Launch | None:
    """The launch of this process, see read_launch; InputError where options ask for more processes than it has."""
    launch = read_launch()
    if launch is not None and (gpus or processes > 1):
        why = f"{launch.world_size} processes are started already, by torchrun or SLURM"
        raise InputError("option --gpus" if gpus else "option --processes", why, "leave it to them")
    return launch


def encode_error(error: CCNetError) -> list[str]:
    """An error as its class and its parts."""
    return [type(error).__name__, str(error.what), error.why, error.fix]


def decode_error(parts: list[str]) -> CCNetError:
    """The error of encode_error, or its nearest kind."""
    kind = getattr(errors, parts[0], errors.InputError)
    error: CCNetError = kind(*parts[1:])
    return error


def this_process(rank: int) -> str:
    """How messages name this process."""
    return f"process {rank} of this run ({os.getpid()} on {socket.gethostname()})"


def _send(pipe: Connection, message: Message) -> None:
    # names that are no UTF-8 are escaped
    pipe.send_bytes(json.dumps(message).encode())


def _tune(pipe: Connection) -> Connection:
    """Over a network, send at once, and notice a machine that is gone within two minutes."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as own:
        if own.family == socket.AF_INET:
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
                own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return pipe
