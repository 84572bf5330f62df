"""What one call costs: operations by formula and as torch counts them, and bytes at the peak."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ccnet_cli.alternatives import reduced_channels
from ccnet_cli.errors import InputError


def formula(size: tuple[int, int], channels: int, recurrence: int, batch: int, keys: int | None = None) -> float:
    """GFLOP of the projections with bias and the two products over a pixel's keys (H + W - 1 unless told).

    It gives the paper's table (TPAMI, cost of context modules): 8.27 per pass and 108.2 for non-local at 97x97, 512.
    """
    H, W = size
    reduced = reduced_channels(channels)
    projections = 2 * H * W * (channels + 1) * (2 * reduced + channels)
    products = 2 * H * W * (H + W - 1 if keys is None else keys) * (reduced + channels)
    return batch * recurrence * (projections + products) / 1e9


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
