"""Hand out tasks to processes that may be slow, come late or die; each takes the next as soon as it has done one."""

import json
import os
import queue
import secrets
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import AuthenticationError, connection
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

from ccnet_cli import files
from ccnet_cli.devices import Launch, read_launch
from ccnet_cli.errors import EnvironmentFailure, InputError, announce, exit_at_once, notice
from ccnet_cli.inference.task_queue import Message, decode_error, limit_reading, send, this_process, tune

# tasks in the hands of a process: one is read, one is computed, the result of one is written
DEPTH = 3
# processes that may die, one after the other, without a task being done in between
MAX_DEATHS = 8
# seconds in which processes must end once there is nothing more to do, or something has failed
END_SECONDS = 60.0
# without a sign of life from a process, after which it counts as frozen; at a task, after which it counts as hung
SILENCE_SECONDS, TASK_SECONDS = 30.0, 600.0
# in which a process that connects must show the key, and one that sends a message must have sent the rest
HANDSHAKE_SECONDS = 10


class _Peer:
    """A process that takes tasks, as the dispatcher sees it."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.name = "process"
        self.process: list[Any] = []
        self.tasks: dict[int, Message] = {}
        # those of the tasks that it works on; the others are only held
        self.busy: Counter[int] = Counter()
        self.alone = self.flushed = self.left = self.begun = False
        # of the last sign of life, and of the last progress with what it works on
        self.heard = self.moved = time.monotonic()

    def send(self, message: Message) -> None:
        with suppress(OSError):
            send(self.pipe, message)

    def note(self, message: Message) -> None:
        """Note what a message says of this process."""
        self.heard = time.monotonic()
        if message:
            self.moved = self.heard
        self.begun = self.begun or "begin" in message
        self.name, self.process = message.get("name", self.name), message.get("process", self.process)
        for key, change in (("begin", 1), ("end", -1)):
            if key in message:
                self.busy[message[key]] += change

    def find_fault(self, task_seconds: float) -> str | None:
        """Why this process counts as frozen or hung, if it does."""
        now = time.monotonic()
        # while it loads the network, other threads may wait long for their turn
        silence = SILENCE_SECONDS * (1 if self.begun else 4)
        if now - self.heard > silence:
            return f"gave no sign of life for {silence:.0f} s"
        long = [task for index, task in self.tasks.items() if self.busy[index] > 0 and not task.get("unlimited")]
        if long and now - self.moved > task_seconds:
            return f"has been at {long[0].get('source')} for {task_seconds:.0f} s"
        return None


class Dispatcher:
    """Serves tasks to all processes that connect to its address, on a thread; key lets them in.

    tasks yields the messages of tasks, or None where there is none at present. on_result gets a task and its result, or
    None where two processes died of it, the second time with this task alone. A process that sends no sign of life, or
    makes no progress with a task for task_seconds, unless it is unlimited, is killed where it is on this machine, and
    counts as dead.
    """

    def __init__(
        self,
        tasks: Iterator[Message | None],
        on_result: Callable[[Message, Message | None], None],
        remote: bool = False,
        task_seconds: float = TASK_SECONDS,
    ) -> None:
        self.key = secrets.token_bytes(16)
        address, family = (("", 0), "AF_INET") if remote else (None, "AF_UNIX")
        # without the key: a stranger that is slow to show it must not keep others waiting
        self.listener = Listener(address, family, backlog=64)
        self.task_seconds = task_seconds
        self.turn = time.monotonic()
        self.tasks: Iterator[Message | None] = tasks
        self.on_result = on_result
        self.peers: list[_Peer] = []
        # tasks of processes that are gone: those that may be deadly, and those that were only held
        self.again: deque[Message] = deque()
        self.returned: deque[Message] = deque()
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
        with suppress(OSError):
            # wakes the other thread
            Client(self.address).close()
        self.listener.close()

    def _accept(self) -> None:
        while self.threads[0].is_alive():
            with suppress(OSError):
                pipe = self.listener.accept()
                threading.Thread(target=self._authenticate, args=(pipe,), daemon=True).start()

    def _authenticate(self, pipe: Connection) -> None:
        try:
            limit_reading(pipe, HANDSHAKE_SECONDS)
            deliver_challenge(pipe, self.key)
            answer_challenge(pipe, self.key)
        except (OSError, EOFError, AuthenticationError):
            # a stranger
            pipe.close()
        else:
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
        self._give_up_silent()
        if self.stopping is None:
            self._feed()
            if self._is_done():
                self.stop()

    def _is_done(self) -> bool:
        return self.ended and not self.again and not self.returned and not any(peer.tasks for peer in self.peers)

    def _admit(self) -> None:
        while not self.arrivals.empty():
            peer = _Peer(tune(self.arrivals.get()))
            self.peers.append(peer)
            if self.stopping is not None:
                peer.send({"stop": True})

    def _receive(self, peer: _Peer) -> None:
        try:
            while peer.pipe.poll():
                message = json.loads(peer.pipe.recv_bytes())
                peer.note(message)
                if "index" in message:
                    self.deaths, peer.alone = 0, False
                    peer.busy.pop(message["index"], None)
                    self.on_result(peer.tasks.pop(message["index"]), message)
                elif "failed" in message:
                    self.stop(decode_error(message["failed"]))
                if "left" in message:
                    peer.left = True
                    raise EOFError
        except (EOFError, OSError):
            self._bury(peer, "died")

    def _give_up_silent(self) -> None:
        """Bury processes that are frozen or hung; time in which this thread did not run does not count."""
        now = time.monotonic()
        gap, self.turn = max(now - self.turn - 1, 0), now
        for peer in list(self.peers):
            peer.heard += gap
            peer.moved += gap
            fault = peer.find_fault(self.task_seconds)
            if fault is None:
                continue
            if peer.process == this_process():
                # the thread that would end the command is the one that hangs
                announce(f"error: {peer.name}: {fault}; run the same with --continue, or a longer --timeout")
                exit_at_once(EnvironmentFailure.exit_code)
            host, process, start = peer.process or (None, 0, None)
            if host == files.HOST and start is not None and files.process_start(process) == start:
                with suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            self._bury(peer, fault)

    def _bury(self, peer: _Peer, fault: str) -> None:
        """Give back the tasks of a process that is gone."""
        self.peers.remove(peer)
        peer.pipe.close()
        tasks = list(peer.tasks.values())
        if self.stopping is not None or peer.left:
            self._give_back(tasks)
            if fault != "died":
                notice(f"warning: {peer.name} {fault}")
            return
        self.deaths += 1
        if self.deaths > MAX_DEATHS:
            why = f"{self.deaths} died or hung one after the other, and nothing was done in between"
            self.stop(EnvironmentFailure("processes", why, "see if memory ran out, and run the same with --continue"))
            return
        blamed = [task for index, task in peer.tasks.items() if peer.busy[index] > 0]
        lost = [task for task in blamed if task.get("again")]
        suspects = [task | {"again": True} for task in blamed if task not in lost]
        count = len(suspects)
        then = f"{count} of its sources are tried again, one at a time" if count else "it worked on no source"
        notice(f"warning: {peer.name} {fault}; {then}")
        self._give_back([*suspects, *(task for task in tasks if task not in blamed)])
        for task in lost:
            self.on_result(task, None)

    def _give_back(self, tasks: list[Message]) -> None:
        for task in tasks:
            # its files may be there
            (self.again if task.get("again") else self.returned).append(task | {"retried": True})

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
                quiet.alone = quiet.flushed = True
                self._hand(quiet, task)
                quiet.send({"flush": True})
                continue
            room = [peer for peer in peers if len(peer.tasks) < DEPTH and not (self.again and peer is quiet)]
            self.looking = bool(room) and not self.ended
            following = self._next() if self.looking or (room and self.returned) else None
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
        if self.returned:
            return self.returned.popleft()
        try:
            return next(self.tasks)
        except StopIteration:
            self.ended, self.looking = True, False
            return None


def read_launch_alone(gpus: int | None, processes: int) -> Launch | None:
    """The launch of this process, see read_launch; InputError where options ask for more processes than it has."""
    launch = read_launch()
    if launch is not None and (gpus or processes > 1):
        why = f"{launch.world_size} processes are started already, by torchrun or SLURM"
        raise InputError("option --gpus" if gpus else "option --processes", why, "leave it to them")
    return launch
