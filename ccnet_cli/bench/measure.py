"""What one call costs: operations and bytes by formula, operations as torch counts them, bytes at the peak, and time.

Beside it, what the device could do at most: the rates of a copy and of a matrix product.
"""

import gc
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ccnet_cli.bench.alternatives import reduced_channels
from ccnet_cli.errors import InputError
from ccnet_cli.ops import choice

# of the tensors of a copy, beyond any cache, and the side of a product's matrices; without and with a GPU
COPIED = (64 << 20, 512 << 20)
SIDE = (512, 8192)
# channels and side of the map of a 3x3 convolution
CONVOLVED = (256, 65)
ROUNDS = 5
SETTLING = 1.0
# rounds that are not counted: a GPU has clocks to raise
WARM_UP = {"cpu": 1, "cuda": 3}


@dataclass(frozen=True)
class Timing:
    """Median, least and greatest of the rounds, in milliseconds."""

    median: float
    least: float
    greatest: float

    def cells(self, digits: int) -> tuple[str, str, str]:
        """The three with so many digits after the point."""
        return f"{self.median:.{digits}f}", f"{self.least:.{digits}f}", f"{self.greatest:.{digits}f}"


class Sheet(NamedTuple):
    """A table as it is printed: what stands above it, the columns' names, and the cells."""

    title: str | None
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def formula(size: tuple[int, int], channels: int, recurrence: int, batch: int, keys: int | None = None) -> float:
    """GFLOP of the projections with bias and the two products over a pixel's keys (H + W - 1 unless told).

    It gives the paper's table (TPAMI, cost of context modules): 8.27 per pass and 108.2 for non-local at 97x97, 512.
    """
    H, W = size
    reduced = reduced_channels(channels)
    projections = 2 * H * W * (channels + 1) * (2 * reduced + channels)
    products = 2 * H * W * (H + W - 1 if keys is None else keys) * (reduced + channels)
    return batch * recurrence * (projections + products) / 1e9


def traffic(
    size: tuple[int, int], channels: int, recurrence: int, batch: int, wide: int = 4, keys: int | None = None
) -> float:
    """Gigabytes of a forward pass that reads and writes each tensor once per step that needs it.

    The map is read by the projections and the residual, query, key, value and float32 weights over the keys (H + W
    unless told) are written and read, the result is written. wide is bytes per entry of the map.
    """
    H, W = size
    reduced = reduced_channels(channels)
    features = wide * (2 * channels + 2 * (2 * reduced + channels) + channels)
    weights = 2 * 4 * (H + W if keys is None else keys)
    return batch * recurrence * H * W * (features + weights) / 1e9


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """So many CPU threads while the block runs, as many as there were for None; gives how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def rotations(size: int, cache: int) -> int:
    """How many inputs of a size must take turns so that none is in the cache any more when it comes again."""
    return 1 + -(-cache // size) if cache else 1


def cache(device: torch.device) -> int:
    """Bytes of a GPU's second-level cache; 0 on the CPU, whose inputs do not take turns."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def elapsed(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of a call: by events on a GPU, by the clock on the CPU."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return choice.elapsed(call)
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def copy_rate(device: torch.device) -> float:
    """GB/s, read and written, of a copy that no cache holds."""
    source = torch.ones(COPIED[device.type == "cuda"] // 4, device=device)
    target = torch.empty_like(source)
    return rate(lambda: target.copy_(source), 2 * 4 * source.numel(), device) / 1e9


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of the library's product of two large square matrices."""
    side = SIDE[device.type == "cuda"]
    left, right = torch.rand(2, side, side, device=device).to(dtype)
    out = torch.empty_like(left)
    return rate(lambda: torch.mm(left, right, out=out), 2 * side**3, device) / 1e12


def settle(call: Callable[[], object]) -> None:
    """Make a call for a second, once at least: new threads may share a core that long."""
    start = time.perf_counter()
    call()
    while time.perf_counter() - start < SETTLING:
        call()


def rate(call: Callable[[], object], work: float, device: torch.device) -> float:
    """What a call does in a second, by its median of a few rounds once it has warmed up."""
    settle(call)
    return 1000 * work / statistics.median(elapsed(call, device) for _ in range(ROUNDS))


def convolution_rate(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of the library's 3x3 convolution, channels-last, of a map that is like a ResNet's third layer."""
    channels, side = CONVOLVED
    x_BCHW = torch.rand(1, channels, side, side, device=device).to(dtype, memory_format=torch.channels_last)
    weight = torch.rand(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    return rate(lambda: F.conv2d(x_BCHW, weight, padding=1), 2 * 9 * channels**2 * side**2, device) / 1e12


def alternate(
    calls: Sequence[Callable[[], object]], repeats: int, device: torch.device, least: float = 0.0
) -> list[Timing]:
    """Time every call once per round, after rounds that warm up, so that a busy machine slows them alike.

    With least, a call that takes fewer milliseconds is made as often as fills them, once before that for what the call
    before it left behind, and the time is one call's share; and the first call settles before anything else.
    """
    milliseconds: list[list[float]] = [[] for _ in calls]
    often = [1] * len(calls)
    if least:
        settle(calls[0])
    for round in range(-WARM_UP[device.type], repeats):
        gc.collect()
        for index, (call, taken) in enumerate(zip(calls, milliseconds, strict=True)):
            if often[index] > 1:
                call()
            took = elapsed(partial(_each, call, often[index]), device) / often[index]
            if round >= 0:
                taken.append(took)
            elif took * often[index] < least:
                # the first time of all is the slowest
                often[index] = math.ceil(least / elapsed(call, device))
    return [Timing(statistics.median(taken), min(taken), max(taken)) for taken in milliseconds]


def _each(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def check_memory(size: tuple[int, int], batch: int, device: torch.device, fix: str) -> None:
    """Refuse a map whose non-local attention would end in an out-of-memory kill."""
    # about five matrices over all pairs of pixels live at once in its backward pass
    needed = 5 * 4 * batch * (size[0] * size[1]) ** 2
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[0]
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        why = f"a non-local block needs about {needed / 2**30:.0f} GiB there, and this machine has {there / 2**30:.0f}"
        raise InputError(f"size {size[0]}x{size[1]}", why, fix)


def counted(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call, 2 per multiply-add, in the operators that torch has formulas for."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that lived during a call above those before it, by torch's own allocator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # the CPU has no such statistics: replay the allocations and releases that the profiler saw, custom operators' too
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler tells on stderr when it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return most
