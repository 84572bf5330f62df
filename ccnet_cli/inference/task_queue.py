"""The tasks that a dispatcher hands to this process, and the messages between the two."""

import json
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection
from typing import Any

from ccnet_cli import errors, files
from ccnet_cli.errors import CCNetError, PeerLost

# a message, in JSON: that of a task has its "index", "retried" if a process that is gone had it before, and "again" if
# that may have died of it
Message = dict[str, Any]

# between two signs of life
BEAT_SECONDS = 5.0


class TaskQueue:
    """The tasks that a dispatcher hands to this process, which has a name for its messages."""

    def __init__(self, address: Any, key: bytes, name: str) -> None:
        self.pipe = tune(Client(tuple(address) if isinstance(address, list) else address, authkey=key))
        self.lock = threading.Lock()
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.stopped = self.lost = False
        self.left = threading.Event()
        self.send({"name": name, "process": this_process()})
        for work in (self._receive, self._beat):
            threading.Thread(target=work, daemon=True).start()

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
            why = "is gone, which hands out the work, or took this one for dead"
            raise PeerLost("process 0 of this run", why, "see what became of it, and run the same with --continue")
        self.stopped = True
        self.send({"left": True})

    def send(self, message: Message) -> None:
        """Send a result, or an error as {"failed": encode_error(...)}; from any thread."""
        if "left" in message:
            self.left.set()
        with self.lock, suppress(OSError):
            send(self.pipe, message)

    @contextmanager
    def working(self, index: int) -> Iterator[None]:
        """Let the dispatcher know that this process works on a task, which it may have to blame for a death."""
        self.send({"begin": index})
        yield
        self.send({"end": index})

    def _run(self, first: Message) -> Iterator[Message]:
        task = first
        while "index" in task:
            yield task
            task = self.messages.get()

    def _beat(self) -> None:
        while not self.lost and not self.left.wait(BEAT_SECONDS):
            self.send({})

    def _receive(self) -> None:
        try:
            while True:
                message = json.loads(self.pipe.recv_bytes())
                self.stopped = self.stopped or "stop" in message
                self.messages.put(message)
        except (EOFError, OSError):
            self.lost, self.stopped = not self.stopped, True
            self.messages.put({})


def encode_error(error: CCNetError) -> list[str]:
    """An error as its class and its parts."""
    return [type(error).__name__, str(error.what), error.why, error.fix]


def decode_error(parts: list[str]) -> CCNetError:
    """The error of encode_error, or its nearest kind."""
    kind = getattr(errors, parts[0], errors.InputError)
    error: CCNetError = kind(*parts[1:])
    return error


def name_process(rank: int) -> str:
    """How messages name this process."""
    return f"process {rank} of this run ({os.getpid()} on {socket.gethostname()})"


def this_process() -> list[Any]:
    """Host, process id and start of this process, which together are unique."""
    return [files.HOST, os.getpid(), files.process_start(os.getpid())]


def send(pipe: Connection, message: Message) -> None:
    """Send a message; names that are no UTF-8 are escaped."""
    pipe.send_bytes(json.dumps(message).encode())


def tune(pipe: Connection) -> Connection:
    """Over a network, send at once, and notice a machine that is gone within two minutes."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as own:
        if own.family == socket.AF_INET:
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
                own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return pipe


def limit_reading(pipe: Connection, seconds: int) -> None:
    """Let a pipe that has begun to bring a message raise OSError where the rest does not come; 0 waits for ever."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))
