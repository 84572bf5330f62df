"""The processes of a run as a group: how they join it, share work and combine results; one process is a group too."""

import contextlib
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ccnet_cli.errors import CCNetError, EnvironmentFailure, InputError, PeerLost

# torch declares its stores without types
STORES: Any = dist

T = TypeVar("T")

CPU = torch.device("cpu")
# seconds in which unsupervised processes find out which of them reports an error
REPORT_SECONDS = 2.0


@dataclass(frozen=True)
class Limits:
    """Seconds to wait: for all processes to join, for the others in a collective, for a run to end after a signal."""

    join: float = 300
    collective: float = 600
    shutdown: float = 60


@dataclass(frozen=True)
class Launch:
    """How this process was started among others, and the address of the store where they meet.

    opens_store is false where the launcher keeps the store; attempt counts the restarts of the run.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    opens_store: bool
    attempt: int = 0


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The launch that torchrun's, SLURM's or our supervisor's variables describe; None for a process on its own."""
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & environment.keys():
        rank, world_size, port = (_number(environment, name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        address = _variable(environment, "MASTER_ADDR")
        local_rank = _number(environment, "LOCAL_RANK", rank)
        local_world_size = _number(environment, "LOCAL_WORLD_SIZE", 1)
    elif "SLURM_PROCID" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        rank, world_size = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS")
        # jobs that share a machine need different ports
        port = _number(environment, "MASTER_PORT", 20000 + _number(environment, "SLURM_JOB_ID", 0) % 20000)
        nodes = environment.get("SLURM_STEP_NODELIST") or _variable(environment, "SLURM_NODELIST", "SLURM_JOB_NODELIST")
        address = environment.get("MASTER_ADDR") or first_node(nodes)
        local_rank = _number(environment, "SLURM_LOCALID")
        local_world_size = _number(environment, "SLURM_NTASKS_PER_NODE", 1)
    else:
        return None
    if rank >= world_size:
        raise InputError(f"process {rank}", f"there are {world_size}, counted from 0", "correct RANK or WORLD_SIZE")
    if not 0 < port < 65536:
        raise InputError(f"variable MASTER_PORT {port}", "not a port", "use a number from 1024 to 65535")
    # torchrun and our supervisor keep one store for all attempts
    opens_store = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)
    return Launch(rank, world_size, local_rank, local_world_size, address, port, opens_store, attempt)


def _variable(environment: Mapping[str, str], *names: str) -> str:
    for name in names:
        if environment.get(name):
            return environment[name]
    fix = "start through torchrun or srun, or unset RANK, WORLD_SIZE and LOCAL_RANK"
    raise InputError(f"variable {names[0]}", "missing beside the others of several processes", fix)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and name not in environment:
        return default
    text = _variable(environment, name)
    if not text.isdecimal():
        raise InputError(f"variable {name}: {text}", "not a number from 0", "start through torchrun or srun")
    return int(text)


def first_node(nodes: str) -> str:
    """The first name of a SLURM node list, such as gpu[03-05,9],cpu1."""
    first = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^\[,]*)", nodes)
    if first is None:
        raise InputError(f"variable SLURM_NODELIST: {nodes}", "not a list of nodes", "set MASTER_ADDR")
    return first[1] + (first[2] or "") + first[3]


@dataclass(frozen=True, eq=False)
class Group:
    """The processes of a run, seen from the one with this rank; by default one process, for which nothing has to meet.

    All ranks must make the same calls in the same order, but for remember, recall and the two about signals.
    store outlasts a restart where the launcher keeps it.
    """

    device: torch.device = CPU
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    attempt: int = 0
    store: Any = None

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
        answer: Any = None
        if self.rank == 0:
            try:
                answer = decide()
            except CCNetError as error:
                answer = error
        answer = self.broadcast(answer)
        if isinstance(answer, CCNetError):
            raise answer
        return answer  # type: ignore[no-any-return]

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
        if self.store is not None:
            self.store.set(key, value)

    def recall(self, key: str) -> str | None:
        """The value that an earlier attempt stored, or None."""
        if self.store is not None and self.attempt and self.store.check([key]):
            return str(self.store.get(key).decode())
        return None

    def announce_signal(self, number: int) -> None:
        """Let the other ranks know of a signal before the next collective."""
        if self.store is not None:
            attempt_store(self.store, self.attempt).set("signal", str(number))

    def announced_signal(self) -> int:
        """The signal that a rank announced, or 0."""
        if self.store is None:
            return 0
        store = attempt_store(self.store, self.attempt)
        return int(store.get("signal")) if store.check(["signal"]) else 0


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
    device = _local_device(launch, device)
    try:
        store = _join(launch, "nccl" if device.type == "cuda" else "gloo", limits)
    except RuntimeError as error:
        what = f"meeting of {launch.world_size} processes at {launch.address}:{launch.port}"
        why = f"not all came within {limits.join:.0f} s ({_first_line(error)})"
        raise EnvironmentFailure(what, why, "see that all are started and reach that address") from None
    group = Group(device, launch.rank, launch.world_size, launch.local_rank, launch.attempt, store)
    # an error leaves the group open: closing it would make the other ranks fail before this one has reported
    try:
        with contextlib.nullcontext() if group.rank == 0 else _silence():
            yield group
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        fix = "see what became of them, and resume"
        lost = PeerLost(f"process {group.rank}", f"lost the other processes ({_first_line(error)})", fix)
        if not supervised:
            _report_once(group, launch, lost)
        raise lost from error
    except CCNetError as error:
        if not supervised:
            _report_once(group, launch, error)
        raise
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
    device = _local_device(launch, device)
    if launch.opens_store:
        refuse_taken(launch.port)
    else:
        wait_for_store(launch.address, launch.port, limits.join)
    store = STORES.PrefixStore("ccnet", open_store(launch.address, launch.port, launch.opens_store, limits.join))
    yield Group(device, launch.rank, launch.world_size, launch.local_rank, launch.attempt, store)
    left, deadline = store.add("left", 1), time.monotonic() + limits.collective
    while launch.opens_store and left < launch.world_size and time.monotonic() < deadline:
        time.sleep(0.1)
        left = store.add("left", 0)


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


def _join(launch: Launch, backend: str, limits: Limits) -> Any:
    """Form the group; only its first steps wait for limits.join, every later collective for limits.collective."""
    if launch.opens_store:
        refuse_taken(launch.port)
    else:
        wait_for_store(launch.address, launch.port, limits.join)
    store = STORES.PrefixStore("ccnet", open_store(launch.address, launch.port, launch.opens_store, limits.join))
    own = attempt_store(store, launch.attempt)
    own.set(f"here-{launch.rank}", "")
    own.wait([f"here-{rank}" for rank in range(launch.world_size)])
    collective = timedelta(seconds=limits.collective)
    dist.init_process_group(backend, store=own, rank=launch.rank, world_size=launch.world_size, timeout=collective)
    return store


def attempt_store(store: Any, attempt: int) -> Any:
    """The part of a store that one attempt alone uses."""
    return STORES.PrefixStore(f"attempt-{attempt}", store)


def open_store(address: str, port: int, opens: bool, seconds: float) -> Any:
    """The key-value store at address:port, created here if `opens`; port 0 takes a free one, its .port."""
    return STORES.TCPStore(address, port, None, opens, timedelta(seconds=seconds), wait_for_workers=False)


def refuse_taken(port: int) -> None:
    """EnvironmentFailure if another process listens on the port: torch would report it in many lines."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise EnvironmentFailure(f"port {port}", os.strerror(error.errno or 0), "use another port") from None


def wait_for_store(address: str, port: int, seconds: float, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Wait until a process listens at address:port; EnvironmentFailure after `seconds`, or once cancelled."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline or cancelled():
                what, why = f"meeting point {address}:{port}", f"nobody answers ({error.strerror or error})"
                raise EnvironmentFailure(what, why, "start the first process, and check the address") from None
        time.sleep(0.2)


@contextmanager
def _silence() -> Iterator[None]:
    """Discard what this process prints; its errors are raised."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _report_once(group: Group, launch: Launch, error: CCNetError) -> None:
    """Mark an error as reported if rank 0 prints the same one, or if this rank has merely lost the others."""
    assert group.store is not None
    store = attempt_store(group.store, group.attempt)
    deadline = time.monotonic() + REPORT_SECONDS
    with contextlib.suppress(RuntimeError):
        if group.rank == 0:
            store.set("report", str(error))
            # the store ends with this process, so wait until all have read
            while launch.opens_store and store.add("readers", 0) < group.world_size - 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            return
        while not store.check(["report"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        report = store.get("report").decode() if store.check(["report"]) else ""
        error.reported = report == str(error) or (bool(report) and isinstance(error, PeerLost))
        store.add("readers", 1)


def _is_lost_peer(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "/gloo/" in str(error) or "NCCL" in str(error)


def _first_line(error: Exception) -> str:
    # torch begins with its source's line: [/pytorch/third_party/gloo/...:123]
    return re.sub(r"^(\[[^\]]*\]\s*)+", "", str(error).strip()).partition("\n")[0][:160]
