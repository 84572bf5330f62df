"""Several processes: where each stands, how they meet, share work and combine their results."""

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

Value = TypeVar("Value")

# where the processes leave word of a signal that only some of them got
ASKED = "asked"
# the variable that tells a process that `launch` started it
SUPERVISED = "CCNET_SUPERVISED"
# seconds that processes which torchrun or SLURM started take to hear who tells an error
HEARING = 2.0


@dataclass(frozen=True)
class Limits:
    """Seconds to wait: for all processes to come, for the others' part in a collective, for a run to end if asked."""

    join: float = 300
    collective: float = 600
    shutdown: float = 60


@dataclass(frozen=True)
class Place:
    """One process among all: its number, that on its machine, and where they meet.

    hosts tells whether this process opens the meeting point itself; attempt counts how often the run was started anew.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    address: str
    port: int
    hosts: bool
    attempt: int = 0


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """What torchrun's or SLURM's variables tell of this process; None where it was started alone, or has joined."""
    if dist.is_initialized():
        return None
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & environment.keys():
        numbers = {name: _number(environment, name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
        address = _variable(environment, "MASTER_ADDR")
        local_rank = int(environment.get("LOCAL_RANK", numbers["RANK"]))
        local_world = int(environment.get("LOCAL_WORLD_SIZE", 1))
    elif "SLURM_PROCID" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        numbers = {"RANK": _number(environment, "SLURM_PROCID"), "WORLD_SIZE": _number(environment, "SLURM_NTASKS")}
        # a port of its own for every job, where several share a machine
        job = int(environment.get("SLURM_JOB_ID", 0))
        numbers["MASTER_PORT"] = int(environment.get("MASTER_PORT", 20000 + job % 20000))
        nodes = environment.get("SLURM_STEP_NODELIST") or _variable(environment, "SLURM_NODELIST", "SLURM_JOB_NODELIST")
        address = environment.get("MASTER_ADDR") or first_node(nodes)
        local_rank = _number(environment, "SLURM_LOCALID")
        local_world = int(environment.get("SLURM_NTASKS_PER_NODE", 1))
    else:
        return None
    rank, world, port = numbers["RANK"], numbers["WORLD_SIZE"], numbers["MASTER_PORT"]
    if rank >= world:
        raise InputError(f"process {rank}", f"there are {world}, counted from 0", "correct RANK or WORLD_SIZE")
    if not 0 < port < 65536:
        raise InputError(f"variable MASTER_PORT {port}", "not a port", "use a number from 1024 to 65535")
    # torchrun opens the meeting point itself, and keeps it when it starts the processes anew
    hosts = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = int(environment.get("TORCHELASTIC_RESTART_COUNT", 0))
    return Place(rank, world, local_rank, local_world, address, port, hosts, attempt)


def _variable(environment: Mapping[str, str], *names: str) -> str:
    for name in names:
        if environment.get(name):
            return environment[name]
    fix = "start through torchrun or srun, or unset RANK, WORLD_SIZE and LOCAL_RANK"
    raise InputError(f"variable {names[0]}", "missing beside the others of several processes", fix)


def _number(environment: Mapping[str, str], name: str) -> int:
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


def rank() -> int:
    """This process's number among all, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard(count: int) -> range:
    """This process's contiguous part of `count` items: every item in exactly one part, sizes differ by at most 1."""
    return part(count, rank(), world())


def part(count: int, number: int, parts: int) -> range:
    """Part `number` of `count` items cut into `parts`."""
    return range(count * number // parts, count * (number + 1) // parts)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The largest over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def largest(number: int, device: torch.device) -> int:
    """The largest of all processes' numbers, the same answer everywhere."""
    if not dist.is_initialized():
        return number
    return int(all_reduce_max(torch.tensor(number, device=device)))


def gather(value: object) -> list[Any]:
    """Every process's value, in order of rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Rank 0's value, everywhere."""
    if dist.is_initialized():
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
    return value


def share_buffers(module: nn.Module) -> None:
    """Give every process rank 0's buffers: without SyncBN each has running statistics of its own images."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """Gradients averaged over the processes, parameters equal from the start; the module itself where there is one."""
    if world() == 1:
        return module
    # a 1x1 convolution's strides have two spellings, which DDP takes for two layouts
    warnings.filterwarnings("ignore", "Grad strides do not match")
    return nn.parallel.DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


@contextmanager
def joined(device: torch.device, limits: Limits | None = None) -> Iterator[torch.device]:
    """Meet the processes started with this one, and give its device of that kind; alone, the device itself.

    A process that cannot meet the others, or loses touch with them, raises EnvironmentFailure.
    """
    limits = limits or Limits()
    own = place()
    if own is None:
        yield device
        return
    if device.type == "cuda":
        if own.local_rank >= torch.cuda.device_count():
            why = f"this machine has {torch.cuda.device_count()} GPUs"
            raise InputError(f"process {own.local_rank} of this machine", why, "start as many processes as GPUs")
        device = torch.device("cuda", own.local_rank)
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // own.local_world))
    try:
        _meet(own, "nccl" if device.type == "cuda" else "gloo", limits)
    except RuntimeError as error:
        what = f"meeting of {own.world} processes at {own.address}:{own.port}"
        why = f"not all came within {limits.join:.0f} s ({_first_line(error)})"
        raise EnvironmentFailure(what, why, "see that all are started and reach that address") from None
    # after an error the group stays: closing it would make the other processes fail before this one has told why
    try:
        with contextlib.nullcontext() if own.rank == 0 else _silence():
            yield device
    except RuntimeError as error:
        if not _about_peers(error):
            raise
        fix = "see what became of them, and resume"
        lost = PeerLost(f"process {own.rank}", f"lost the other processes ({_first_line(error)})", fix)
        _speak_once(own, lost)
        raise lost from error
    except CCNetError as error:
        _speak_once(own, error)
        raise
    dist.destroy_process_group()


def _meet(own: Place, backend: str, limits: Limits) -> None:
    """Form the group; only its first steps wait for limits.join, every later collective for limits.collective."""
    global _memory, _board, _attempt
    if own.hosts:
        refuse_taken(own.port)
    else:
        reach(own.address, own.port, limits.join)
    _memory = dist.PrefixStore("ccnet", store(own.address, own.port, own.hosts, limits.join))
    _board, _attempt = dist.PrefixStore(f"attempt-{own.attempt}", _memory), own.attempt
    _board.set(f"here-{own.rank}", "")
    _board.wait([f"here-{rank}" for rank in range(own.world)])
    collective = timedelta(seconds=limits.collective)
    dist.init_process_group(backend, store=_board, rank=own.rank, world_size=own.world, timeout=collective)


# what outlasts an attempt where the meeting point does, and what belongs to this attempt alone
_memory: dist.Store | None = None
_board: dist.Store | None = None
_attempt = 0


def attempt() -> int:
    """How often the processes of this run were started anew."""
    return _attempt if dist.is_initialized() else 0


def remember(key: str, value: str) -> None:
    """Leave word for the processes that are started when these have failed."""
    if _memory is not None and dist.is_initialized():
        _memory.set(key, value)


def recall(key: str) -> str | None:
    """The word that an earlier attempt left, if there was one."""
    if _memory is not None and attempt() and _memory.check([key]):
        return str(_memory.get(key).decode())
    return None


def store(address: str, port: int, hosts: bool, patience: float) -> Any:
    """The key-value store at address:port, opened here where hosts; port 0 takes a free one, its .port."""
    return dist.TCPStore(address, port, None, hosts, timedelta(seconds=patience), wait_for_workers=False)


def refuse_taken(port: int) -> None:
    """EnvironmentFailure where another process listens on the port: torch would tell it in many lines."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise EnvironmentFailure(f"port {port}", os.strerror(error.errno or 0), "use another port") from None


def reach(address: str, port: int, patience: float, given_up: Callable[[], bool] = lambda: False) -> None:
    """Wait until somebody listens at address:port; EnvironmentFailure after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((address, port), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline or given_up():
                what, why = f"meeting point {address}:{port}", f"nobody answers ({error.strerror or error})"
                raise EnvironmentFailure(what, why, "start the first process, and check the address") from None
        time.sleep(0.2)


@contextmanager
def _silence() -> Iterator[None]:
    """One process speaks for all; what another has to tell it raises."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _speak_once(own: Place, error: CCNetError) -> None:
    """Mark what rank 0 tells as well; one that `launch` started reports to it and needs no mark."""
    if SUPERVISED in os.environ or _board is None:
        return
    end = time.monotonic() + HEARING
    with contextlib.suppress(RuntimeError):
        if own.rank == 0:
            _board.set("told", str(error))
            # where it keeps the board it stays until all have read
            while own.hosts and _board.add("heard", 0) < own.world - 1 and time.monotonic() < end:
                time.sleep(0.05)
            return
        while not _board.check(["told"]) and time.monotonic() < end:
            time.sleep(0.05)
        said = _board.get("told").decode() if _board.check(["told"]) else ""
        error.told = said == str(error) or (bool(said) and isinstance(error, PeerLost))
        _board.add("heard", 1)


def _about_peers(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "/gloo/" in str(error) or "NCCL" in str(error)


def _first_line(error: Exception) -> str:
    # torch opens with the place in its source: [/pytorch/third_party/gloo/...:123]
    return re.sub(r"^(\[[^\]]*\]\s*)+", "", str(error).strip()).partition("\n")[0][:160]


def agreed(decide: Callable[[], Value]) -> Value:
    """What `decide` returns on rank 0, everywhere; the CCNetError that it raises there is raised everywhere."""
    answer: Any = None
    if rank() == 0:
        try:
            answer = decide()
        except CCNetError as error:
            answer = error
    answer = broadcast(answer)
    if isinstance(answer, CCNetError):
        raise answer
    return answer


def together(work: Callable[[], Value]) -> Value:
    """What `work` returns on each process; where it raises a CCNetError on any, the first of them is raised on all."""
    answer: Any = None
    try:
        answer = work()
    except CCNetError as error:
        answer = error
    failed = gather(answer if isinstance(answer, CCNetError) else None)
    for error in failed:
        if error is not None:
            raise error
    return answer


def pass_on(number: int) -> None:
    """Let the other processes know of a signal before they next meet in a collective."""
    if _board is not None and dist.is_initialized():
        _board.set(ASKED, str(number))


def passed_on() -> int:
    """The signal that some process passed on, or 0."""
    if _board is not None and dist.is_initialized() and _board.check([ASKED]):
        return int(_board.get(ASKED))
    return 0
