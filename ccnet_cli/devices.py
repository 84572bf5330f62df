"""What a process runs on: devices and precisions, and its place among the processes of a run."""

import ctypes
import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch

from ccnet_cli.errors import EnvironmentFailure, InputError, notice

# glibc's M_TRIM_THRESHOLD and M_MMAP_MAX, and their defaults
TRIM_THRESHOLD, MMAP_MAX = (-1, 128 << 10), (-4, 1 << 16)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def local_device(gpus: int | None, processes: int, name: str) -> torch.device:
    """Device of each local process; with CUDA, one GPU each. InputError where the options contradict each other."""
    if gpus and processes > 1:
        raise InputError("option --processes", "--gpus is given too", "give one of them")
    if gpus and gpus > torch.cuda.device_count():
        raise InputError(
            f"option --gpus {gpus}", f"this machine has {torch.cuda.device_count()}", "use fewer, or --processes"
        )
    return device("cuda" if gpus else "cpu" if processes > 1 else name)


def device(name: str = "auto") -> torch.device:
    """The device of a name: auto (CUDA or the CPU), cpu, cuda, cuda:N or mps; InputError where it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdecimal())):
        raise InputError(f"device {name}", "unknown", "use auto, cpu, cuda, cuda:N or mps")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {name}", "torch finds no GPU of Apple's here", "use --device cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {name}", "torch sees no GPU here", "use --device cpu, or install a CUDA build of torch"
        )
    if index and int(index) >= torch.cuda.device_count():
        raise InputError(f"device {name}", f"this machine has {torch.cuda.device_count()}", "count from cuda:0")
    return torch.device(name)


def precision(name: str, device: torch.device, announce: Callable[[str], None] = notice) -> str:
    """The name of one of PRECISIONS; auto is bf16 where the device computes in it, else fp32, and is announced."""
    if name != "auto":
        if name not in PRECISIONS:
            raise InputError(f"precision {name}", "unknown", f"use one of auto, {', '.join(PRECISIONS)}")
        return name
    native = computes_bf16(device)
    where = "processor" if device.type == "cpu" else "GPU"
    chosen = "bf16" if native else "fp32"
    announce(f"precision {chosen}: this {where} {'has' if native else 'has no'} instructions for bfloat16")
    return chosen


def use_tf32(device: torch.device, wanted: bool) -> bool:
    """Let products and convolutions of float32 round their inputs to TF32, or not; whether they do on this device."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    torch.backends.cudnn.allow_tf32 = wanted
    return wanted


def free_memory(device: torch.device) -> int:
    """The bytes that a process may still take on the device, as far as the system says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        free = min(free, int(available[1]) * 1024) if available else free
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(free, 0)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is emulated, and slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


# the variable with the address of the store where machines meet, which outlasts their restarts
RENDEZVOUS = "CCNET_RENDEZVOUS"


@dataclass(frozen=True)
class Launch:
    """How this process was started among others, and the address of the store where they meet.

    opens_store is false where the launcher keeps the store; attempt counts the restarts of the run. run_id tells it
    from other runs that meet at the same address; rendezvous is the address of the machines' store, if there is one.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    opens_store: bool
    attempt: int = 0
    run_id: str = ""
    rendezvous: str = ""


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The launch that torchrun's, SLURM's or our supervisor's variables describe; None for a process on its own."""
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & environment.keys():
        rank, world_size, port = (_number(environment, name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        address = _variable(environment, "MASTER_ADDR")
        local_rank = _number(environment, "LOCAL_RANK", rank)
        local_world_size = _number(environment, "LOCAL_WORLD_SIZE", 1)
        attempt, run_id = _number(environment, "TORCHELASTIC_RESTART_COUNT", 0), environment.get("TORCHELASTIC_RUN_ID")
    elif "SLURM_PROCID" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        rank, world_size = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS")
        # jobs that share a machine need different ports
        port = _number(environment, "MASTER_PORT", 20000 + _number(environment, "SLURM_JOB_ID", 0) % 20000)
        nodes = environment.get("SLURM_STEP_NODELIST") or _variable(environment, "SLURM_NODELIST", "SLURM_JOB_NODELIST")
        address = environment.get("MASTER_ADDR") or first_node(nodes)
        local_rank = _number(environment, "SLURM_LOCALID")
        local_world_size = _number(environment, "SLURM_NTASKS_PER_NODE", 1)
        attempt, run_id = _number(environment, "SLURM_RESTART_COUNT", 0), environment.get("SLURM_JOB_ID")
    else:
        return None
    if rank >= world_size:
        raise InputError(f"process {rank}", f"there are {world_size}, counted from 0", "correct RANK or WORLD_SIZE")
    if not 0 < port < 65536:
        raise InputError(f"variable MASTER_PORT {port}", "not a port", "use a number from 1024 to 65535")
    # torchrun and our supervisor keep one store for all attempts
    opens_store = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, places = address.removeprefix("[").removesuffix("]"), (local_rank, max(local_world_size, 1))
    rendezvous = environment.get(RENDEZVOUS, "")
    return Launch(rank, world_size, *places, address, port, opens_store, attempt, run_id or "", rendezvous)


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
    if not (text.isdecimal() and len(text) < 10):
        raise InputError(f"variable {name}: {text}", "not a number from 0", "start through torchrun or srun")
    return int(text)


def first_node(nodes: str) -> str:
    """The first name of a SLURM node list, such as gpu[03-05,9],cpu1."""
    first = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^\[,]*)", nodes)
    if first is None:
        raise InputError(f"variable SLURM_NODELIST: {nodes}", "not a list of nodes", "set MASTER_ADDR")
    return first[1] + (first[2] or "") + first[3]


def resolve(host: str, port: int) -> tuple[Any, ...]:
    """The socket's family, kind and address for a host; EnvironmentFailure for a name that no host has."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        why = f"no such host ({getattr(error, 'strerror', None) or error})"
        raise EnvironmentFailure(f"meeting point {host}:{port}", why, "correct the address") from None


def refuse_taken(port: int) -> None:
    """EnvironmentFailure if another process listens on the port: torch would report it in many lines."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise EnvironmentFailure(f"port {port}", os.strerror(error.errno or 0), "use another port") from None


def wait_for_store(address: str, port: int, seconds: float) -> None:
    """Wait until a process listens at address:port; EnvironmentFailure after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                what, why = f"meeting point {address}:{port}", f"nobody answers ({error.strerror or error})"
                raise EnvironmentFailure(what, why, "start the first process, and check the address") from None
        time.sleep(0.2)


def agree_on_attempt(store: Any, launch: Launch, seconds: float) -> int:
    """The attempt of processes whose agents count restarts each for itself: the first process answers all others.

    store may still hold what processes of earlier attempts asked.
    """
    token, timeout = f"{launch.attempt}-{secrets.token_hex(8)}", timedelta(seconds=seconds)
    store.set(f"ask-{launch.rank}", token)
    if launch.rank:
        store.wait([f"answer-{token}"], timeout)
        attempt = int(store.get(f"answer-{token}"))
        store.set(f"met-{attempt}-{launch.rank}", "")
        return attempt
    asks = [f"ask-{rank}" for rank in range(launch.world_size)]
    store.wait(asks, timeout)
    counts = [int(store.get(ask).partition(b"-")[0]) for ask in asks]
    attempt, answered = max(*counts, int(store.add("attempts", 1)) - 1), set[str]()
    met = [f"met-{attempt}-{rank}" for rank in range(1, launch.world_size)]
    deadline = time.monotonic() + seconds
    while not store.check(met) and time.monotonic() < deadline:
        for token in {store.get(ask).decode() for ask in asks} - answered:
            answered.add(token)
            store.set(f"answer-{token}", str(attempt))
        time.sleep(0.02)
    return attempt


def network_variables(address: str) -> dict[str, str]:
    """Variables that make torch's libraries use the network interface with this address."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            # SIOCGIFADDR: the interface's address, from byte 20 on
            with suppress(OSError):
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    variables = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
                    return {variable: os.environ.get(variable, name) for variable in variables}
    return {}


class FreedMemory:
    """What becomes, inside this context, of memory that is freed: it goes back to the system, or stays for the next.

    Linux clears what it gives out, which takes a twentieth of a large network's time. Large blocks of many sizes leave
    gaps between them where they stay. Without glibc, nothing changes.
    """

    stays = False

    def stay(self, wanted: bool) -> None:
        """Keep what is freed from now on, or give it back with all that was kept."""
        if wanted != self.stays:
            self.stays = wanted
            _malloc("mallopt", MMAP_MAX[0], 0 if wanted else MMAP_MAX[1])
            if not wanted:
                _malloc("malloc_trim", 0)

    def __enter__(self) -> Self:
        # what was freed before would lie between blocks that stay
        _malloc("malloc_trim", 0)
        _malloc("mallopt", TRIM_THRESHOLD[0], (1 << 31) - 1)
        return self

    def __exit__(self, *_: object) -> None:
        self.stay(False)
        _malloc("mallopt", *TRIM_THRESHOLD)


def _malloc(name: str, *arguments: int) -> None:
    """Call a function of glibc's, where there is one."""
    with suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*arguments)
