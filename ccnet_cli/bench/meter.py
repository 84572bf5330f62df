"""What a call costs on a device: milliseconds, bytes at the peak, operations; and what the device could do at most."""

import gc
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ccnet_cli.bench.report import Spread
from ccnet_cli.bench.request import Run, Work
from ccnet_cli.errors import InputError
from ccnet_cli.models import network as models
from ccnet_cli.ops import choice

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)

# bytes of the tensors of a copy, beyond any cache, and the side of a product's matrices; without and with a GPU
COPY_BYTES = (64 << 20, 512 << 20)
PRODUCT_SIDE = (512, 8192)
# channels and side of the map of a 3x3 convolution, like those of a ResNet's third layer
CONVOLUTION = (256, 65)
RATE_ROUNDS = 5
# rounds that are not counted: a GPU has clocks to raise
WARM_UP = {"cpu": 1, "cuda": 3}


@dataclass(frozen=True)
class Meter:
    """Measures calls on one device. Times are milliseconds, memory is MiB."""

    device: torch.device
    threads: int = 1
    repeats: int = 1
    settling: float = 1.0

    def values(self) -> dict[str, Any]:
        """What a report says of how it was measured."""
        return {
            "repeats": self.repeats,
            "device": str(self.device),
            "threads": self.threads,
            "torch": torch.__version__,
        }

    def __str__(self) -> str:
        return f"{self.device}, {self.threads} threads, torch {torch.__version__}"

    def time_call(self, call: Call) -> float:
        """Milliseconds of one call: by events on a GPU, by the clock on the CPU."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                return choice.time_on_gpu(call)
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    def alternate(self, calls: Mapping[Key, Call], turn: float = 0.0) -> dict[Key, Spread]:
        """Time every call once per round, after warm-up rounds, so that a busy machine slows them alike.

        With turn, the first call settles before anything else, a call of fewer milliseconds is repeated until it fills
        them (once before that, uncounted, for what the call before it left in the caches), and its time is the mean.
        """
        times: dict[Key, list[float]] = {key: [] for key in calls}
        count = dict.fromkeys(calls, 1)
        if turn:
            self.settle(next(iter(calls.values())))
        for round in range(-WARM_UP[self.device.type], self.repeats):
            gc.collect()
            for key, call in calls.items():
                if count[key] > 1:
                    call()
                milliseconds = self.time_call(partial(_repeat, call, count[key])) / count[key]
                if round >= 0:
                    times[key].append(milliseconds)
                elif milliseconds * count[key] < turn:
                    # the first time of all is the slowest
                    count[key] = math.ceil(turn / self.time_call(call))
        return {key: Spread.of(values) for key, values in times.items()}

    def peak(self, call: Call) -> float:
        """MiB of the most that lived during a call above what lived before it, by torch's own allocator."""
        return peak_bytes(call, self.device) / 2**20

    def settle(self, call: Call) -> None:
        """Repeat a call until the threads have settled; once at least."""
        start = time.perf_counter()
        call()
        while time.perf_counter() - start < self.settling:
            call()

    def rate(self, call: Call, work: float) -> float:
        """Work per second, by a call's median time once it has settled."""
        self.settle(call)
        return 1000 * work / Spread.of(self.time_call(call) for _ in range(RATE_ROUNDS)).median

    def copy_rate(self) -> float:
        """GB/s, read and written, of a copy that no cache holds."""
        source = torch.ones(COPY_BYTES[self._on_gpu] // 4, device=self.device)
        target = torch.empty_like(source)
        return self.rate(lambda: target.copy_(source), 2 * 4 * source.numel()) / 1e9

    def product_rate(self, dtype: torch.dtype) -> float:
        """TFLOP/s of the library's product of two large square matrices."""
        side = PRODUCT_SIDE[self._on_gpu]
        left, right = torch.rand(2, side, side, device=self.device).to(dtype)
        out = torch.empty_like(left)
        return self.rate(lambda: torch.mm(left, right, out=out), 2 * side**3) / 1e12

    def convolution_rate(self, dtype: torch.dtype) -> float:
        """TFLOP/s of the library's 3x3 convolution, channels-last, of a map like a ResNet's third layer's."""
        channels, side = CONVOLUTION
        x_BCHW = torch.rand(1, channels, side, side, device=self.device).to(dtype, memory_format=torch.channels_last)
        weight = torch.rand(channels, channels, 3, 3, device=self.device).to(dtype, memory_format=torch.channels_last)
        return self.rate(lambda: F.conv2d(x_BCHW, weight, padding=1), 2 * 9 * channels**2 * side**2) / 1e12

    def check_memory(self, work: Work, fix: str) -> None:
        """Refuse a map whose non-local attention would end in an out-of-memory kill."""
        H, W = work.size
        # about five matrices over all pairs of pixels live at once in its backward pass
        needed = 5 * 4 * work.batch * (H * W) ** 2
        if self._on_gpu:
            available = torch.cuda.mem_get_info(self.device)[0]
        else:
            available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > available:
            why = f"a non-local block needs about {needed / 2**30:.0f} GiB there"
            raise InputError(f"size {H}x{W}", f"{why}, and this machine has {available / 2**30:.0f}", fix)

    def cache_bytes(self) -> int:
        """Bytes of a GPU's second-level cache; 0 on the CPU, whose inputs do not take turns."""
        return torch.cuda.get_device_properties(self.device).L2_cache_size if self._on_gpu else 0

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"


@contextmanager
def open_meter(run: Run) -> Iterator[Meter]:
    """A meter for these settings, with torch's number of threads set meanwhile; InputError for unknown devices."""
    device, before = models.device(run.device), torch.get_num_threads()
    torch.set_num_threads(run.threads or before)
    try:
        yield Meter(device, torch.get_num_threads(), run.repeats, run.settling)
    finally:
        torch.set_num_threads(before)


def _repeat(call: Call, count: int) -> None:
    for _ in range(count):
        call()


def count_inputs(size: int, cache: int) -> int:
    """How many inputs of a size must take turns so that each has left the cache when it comes again."""
    return 1 + -(-cache // size) if cache else 1


def count_operations(call: Call) -> int:
    """Floating-point operations of a call, 2 per multiply-add, in the operators that torch has formulas for."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most bytes that lived during a call above those before it, by torch's own allocator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # the CPU has no such statistics: replay the allocations and releases that the profiler saw, custom operators' too
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr when it starts and stops
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


def require_equal(name: str, results: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Raise RuntimeError unless all tensors agree to tolerance of the largest entry: a wrong result has no speed."""
    scale = max(float(wanted.abs().max()) for wanted in expected)
    for index, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        difference = float((result - wanted).abs().max()) / max(float(wanted.abs().max()), tolerance * scale)
        # not (<=), so that nan is refused too
        if not difference <= tolerance:
            raise RuntimeError(f"{name} differs from the reference by {difference:.1e} in result {index}: not timed")
