"""The processes of a run as a group: how they join it, share work and combine results; one process is a group too."""

import contextlib
import os
import re
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ccnet_cli import errors, files
from ccnet_cli.devices import Launch, agree_on_attempt, read_launch, refuse_taken, resolve, wait_for_store
from ccnet_cli.errors import CCNetError, EnvironmentFailure, InputError, PeerLost, first_line, out_of_memory

# torch declares its stores without types
STORES: Any = dist

T = TypeVar("T")

CPU = torch.device("cpu")
# seconds in which unsupervised processes find out which of them reports an error
REPORT_SECONDS = 2.0
# the files of torch that call collectives
COLLECTIVE = re.compile(r"/torch/(distributed/|nn/parallel/distributed\.py|autograd/graph\.py)")


@dataclass(frozen=True)
class Limits:
    """Seconds to wait: for all processes to join, for the others in a collective, for a run to end after a signal."""

    join: float = 300
    collective: float = 600
    shutdown: float = 60


@dataclass(frozen=True, eq=False)
class Group:
    """The processes of a run, seen from the one with this rank; by default one process, for which nothing has to meet.

    All ranks must make the same calls in the same order, but for remember, recall and the two about signals. store is
    that of this attempt; memory outlasts it where the launcher keeps one.
    """

    device: torch.device = CPU
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    attempt: int = 0
    store: Any = None
    memory: Any = None

    def shard(self, count: int) -> range:
        """This rank's contiguous share of `count` items; over the ranks the sizes differ by at most 1."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        return number if self.world_size == 1 else int(self.all_reduce_max(torch.tensor(number, device=self.device)))

    def gather(self, value: T) -> list[T]:
        """All ranks' values, in order of rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's value."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    def decide_on_rank0(self, decide: Callable[[], T]) -> T:
        """Rank 0's result of `decide`, which only rank 0 calls; its CCNetError is raised on every rank."""
        answer: Any = self.run_on_all_ranks(lambda: decide() if self.rank == 0 else None)
        return self.broadcast(answer)  # type: ignore[no-any-return]

    def run_on_all_ranks(self, work: Callable[[], T]) -> T:
        """This rank's result of `work`; the CCNetError of the lowest rank that has one is raised on every rank."""
        failure: CCNetError | None = None
        answer: Any = None
        try:
            answer = work()
        except CCNetError as error:
            failure = error
        failures = [each for each in self.gather(failure) if each is not None]
        if failures:
            raise failures[0]
        return answer  # type: ignore[no-any-return]

    def replicate(self, module: nn.Module) -> nn.Module:
        """The module with rank 0's parameters, whose gradients are averaged over the ranks; itself for one process."""
        if self.world_size == 1:
            return module
        # the strides of a 1x1 convolution can be written in two ways, which DDP takes for two layouts
        warnings.filterwarnings("ignore", "Grad strides do not match")
        indices = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=indices)

    def share_buffers(self, module: nn.Module) -> None:
        """Copy rank 0's buffers to every rank: without SyncBN each has running statistics of its own images."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def remember(self, key: str, value: str) -> None:
        """Store a value for the processes of a later attempt."""
        if self.memory is not None:
            self.memory.set(key, value)

    def recall(self, key: str) -> str | None:
        """The value that an earlier attempt stored, or None."""
        if self.memory is not None and self.attempt and self.memory.check([key]):
            return str(self.memory.get(key).decode())
        return None

    def announce_signal(self, number: int) -> None:
        """Let the other ranks know of a signal before the next collective."""
        if self.store is not None:
            self.store.set("signal", str(number))

    def announced_signal(self) -> int:
        """The signal that a rank announced, or 0."""
        return int(self.store.get("signal")) if self.store is not None and self.store.check(["signal"]) else 0


@contextmanager
def join_group(device: torch.device, limits: Limits | None = None, supervised: bool = False) -> Iterator[Group]:
    """Join the processes started with this one, if any; the group's device is this rank's one of the kind.

    Only rank 0 prints. EnvironmentFailure for a process that cannot join the others or loses them. Of an error that
    all ranks raise, one report is enough: a supervisor chooses it; where there is none, rank 0 makes it.
    """
    limits = limits or Limits()
    launch = read_launch()
    if launch is None:
        yield Group(device)
        return
    group = _join(launch, _local_device(launch, device), limits)
    # an error leaves the group open: closing it would make the other ranks fail before this one has reported
    try:
        with contextlib.ExitStack() as silence:
            if group.rank:
                nowhere = silence.enter_context(Path(os.devnull).open("w"))
                for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                    silence.enter_context(redirect(nowhere))
            yield group
    except (RuntimeError, CCNetError) as error:
        known = error if isinstance(error, CCNetError) else _lost_peer(error, group.rank)
        if known is None:
            raise
        raise known if supervised else _report_once(group, launch, known) from error
    dist.destroy_process_group()


@contextmanager
def share_store(device: torch.device, limits: Limits | None = None) -> Iterator[Group]:
    """Join the processes started with this one by their store alone: the group has no collectives but store.add.

    So any process may end, come late or be replaced. The process that keeps the store waits at the end until the
    others have left, which each may take limits.collective seconds for.
    """
    limits = limits or Limits()
    launch = read_launch()
    if launch is None:
        yield Group(device, store=STORES.HashStore())
        return
    store = _meet(launch, limits)
    device = _local_device(launch, device)
    try:
        yield Group(device, launch.rank, launch.world_size, launch.local_rank, launch.attempt, store)
        left, deadline = store.add("left", 1), time.monotonic() + limits.collective
        while launch.opens_store and left < launch.world_size and time.monotonic() < deadline:
            time.sleep(0.1)
            left = store.add("left", 0)
    except RuntimeError as error:
        raise (_lost_peer(error, launch.rank) or error) from error


def _local_device(launch: Launch, device: torch.device) -> torch.device:
    """This process's GPU; or the CPU, whose cores the processes of this machine share."""
    if device.type == "cuda":
        if launch.local_rank >= torch.cuda.device_count():
            why = f"this machine has {torch.cuda.device_count()} GPUs"
            raise InputError(f"process {launch.local_rank} of this machine", why, "start as many processes as GPUs")
        device = torch.device("cuda", launch.local_rank)
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // launch.local_world_size))
    return device


def _meet(launch: Launch, limits: Limits) -> Any:
    """The store of the run's processes, opened here or by another one; EnvironmentFailure where that cannot be."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun's agent would leave it behind, and torch's front end interrupt it, which it may not notice
        files.die_with_parent()
    resolve(launch.address, launch.port)
    if launch.opens_store:
        refuse_taken(launch.port)
    else:
        wait_for_store(launch.address, launch.port, limits.join)
    store = open_store(launch.address, launch.port, launch.opens_store, limits.join)
    return STORES.PrefixStore(f"ccnet-{launch.run_id}", store)


def _join(launch: Launch, device: torch.device, limits: Limits) -> Group:
    """Form the group; only its first steps wait for limits.join, every later collective for limits.collective."""
    rank, size, attempt, who = launch.rank, launch.world_size, launch.attempt, "not all"
    try:
        memory = _meet(launch, limits)
        if "TORCHELASTIC_RUN_ID" in os.environ and launch.local_world_size < size > 1 and not launch.rendezvous:
            attempt = agree_on_attempt(memory, launch, limits.join)
        store = STORES.PrefixStore(f"attempt-{0 if launch.rendezvous else attempt}", memory)
        if store.add(f"here-{rank}", 1) > 1:
            why = "another process has this rank"
            raise InputError(f"process {rank} of {size}", why, "start each once, and each run at a port of its own")
        try:
            store.wait([f"here-{each}" for each in range(size)])
        except dist.DistStoreError:
            who = f"no process {', '.join(str(each) for each in range(size) if not store.check([f'here-{each}']))}"
            raise
        if launch.rendezvous:
            # the machines' agents count restarts each for itself
            host, _, port = launch.rendezvous.rpartition(":")
            memory = STORES.PrefixStore(f"ccnet-{launch.run_id}", open_store(host, int(port), False, limits.join))
            if rank == 0:
                store.set("attempt", str(memory.add("attempts", 1) - 1))
            attempt = int(store.get("attempt"))
        backend, timeout = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=limits.collective)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:
        what = f"meeting of {size} processes at {launch.address}:{launch.port}"
        why = f"{who[:80]} came within {limits.join:.0f} s ({first_line(error)})"
        raise EnvironmentFailure(what, why, "see that all are started and reach that address") from None
    return Group(device, rank, size, launch.local_rank, attempt, store, memory)


def open_store(address: str, port: int, opens: bool, seconds: float) -> Any:
    """The key-value store at address:port, created here if `opens`; port 0 takes a free one, its .port."""
    return STORES.TCPStore(address, port, None, opens, timedelta(seconds=seconds), wait_for_workers=False)


def _report_once(group: Group, launch: Launch, error: CCNetError) -> CCNetError:
    """The error to raise: another rank's, if this one has merely lost it; marked as reported if another prints it."""
    store: Any = group.store
    with contextlib.suppress(RuntimeError):
        if not isinstance(error, PeerLost):
            store.compare_set("cause", "", bytes(ForkingPickler.dumps(error)).hex())
        elif _appears(store, "cause", REPORT_SECONDS / 4):
            error = ForkingPickler.loads(bytes.fromhex(store.get("cause").decode()))
        if group.rank:
            # rank 0 has the first word
            _appears(store, "ranks", REPORT_SECONDS)
        if store.add("ranks", 1) == 1:
            store.set("report", str(error))
        elif _appears(store, "report", REPORT_SECONDS):
            error.reported = isinstance(error, PeerLost) or store.get("report").decode() == str(error)
        deadline = time.monotonic() + REPORT_SECONDS
        # the store ends with this process, so wait until all have read
        while launch.opens_store and store.add("ranks", 0) < group.world_size and time.monotonic() < deadline:
            time.sleep(0.05)
    return error


def _appears(store: Any, key: str, seconds: float) -> bool:
    """Whether a key is in the store within this number of seconds."""
    with contextlib.suppress(dist.DistStoreError):
        store.wait([key], timedelta(seconds=seconds))
    return bool(store.check([key]))


def _lost_peer(error: RuntimeError, rank: int) -> PeerLost | None:
    """The error to raise for one from a collective, whatever its text; None for one from anywhere else."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    known = isinstance(error, dist.DistError) or "/gloo/" in str(error) or "NCCL" in str(error)
    # what DistributedDataParallel reduces in backward passes comes out of autograd's engine
    if not known and (type(error) is not RuntimeError or out_of_memory(error) or not COLLECTIVE.search(frames[-1])):
        return None
    fix = "see what became of them, and resume"
    return PeerLost(f"process {rank}", f"lost the other processes ({first_line(error)})", fix)


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
        """Record SIGNALS instead of dying of them; yields a function: the first one's number, or 0.

        The supervisor learns that this process is ready. A second signal ends it at once.
        """
        echo = errors.ECHO_SECONDS if group.world_size > 1 and not self.is_supervised else 0
        with errors.record_signals(echo) as received:
            if self.pipe is not None:
                self.pipe.send(None)
            yield lambda: next(iter([*received, *self.forwarded]), 0)
