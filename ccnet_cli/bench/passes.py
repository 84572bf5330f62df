"""One pass of criss-cross attention by each formulation alone: its times with and without the host, its kernels."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ccnet_cli import ops
from ccnet_cli.bench.meter import Meter
from ccnet_cli.bench.report import Column, Row, Spread
from ccnet_cli.errors import CCNetError, describe_briefly
from ccnet_cli.ops import gemm
from ccnet_cli.ops.cuda import attention

# images, and how products of float32 are made
BATCHES = (2, 1, 8)
PRECISIONS = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
UNPADDED = "gemm, arms unpadded"
ASYNC = "numba, asynchronous copies"
FORMULATIONS = ("gemm", UNPADDED, "flash", "numba", ASYNC)

COLUMNS = (
    Column("size", "size"),
    Column("precision", "precision"),
    Column("formulation", "name"),
    Column("forward ms", "forward", ".3f"),
    Column("replayed", lambda row: row.get("replayed"), ".3f"),
    Column("+ backward ms", "both", ".3f"),
    Column("MiB", "memory", ".1f"),
    Column("error", "error", ".1e"),
    Column("kernels", lambda row: len(row["kernels"])),
)
# query, key and value
Inputs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Pass:
    """A formulation as two calls: the output, and the output with the gradients of query, key and value."""

    forward: Callable[[], Tensor]
    both: Callable[[], Sequence[Tensor]]


@contextmanager
def rounding(precision: str) -> Iterator[None]:
    """Products and convolutions of float32 in TF32 or in full, whatever they were before."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def cases(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, tuple[int, int], str, str]]:
    """Batch, size, precision and formulation of each row, those that most depends on first.

    Kernels in full float32 copy in one way alone.
    """
    every = product(BATCHES, sizes, PRECISIONS, FORMULATIONS)
    return [case for case in every if case[2:] != ("fp32", ASYNC)]


def measure(
    inputs: Callable[..., Inputs], case: tuple[int, tuple[int, int], str, str], meter: Meter, channels: int = 512
) -> Row:
    """A row, or `failed` with the reason; inputs makes query, key and value of a shape, type and device."""
    batch, (H, W), precision, name = case
    row: Row = {"size": (batch, channels, H, W), "precision": precision, "name": name}
    shape = (batch, max(channels // 8, 1), channels, H, W)
    try:
        with rounding(precision), attention.copying("async" if name == ASYNC else "plain"):
            tensors = inputs(shape, PRECISIONS[precision], meter.device)
            one = make_pass(name, tensors)
            row["error"] = difference(one.forward(), tensors)
            times = meter.alternate({"forward": one.forward, "both": one.both})
            row |= {**times, "memory": meter.peak(one.both), "kernels": list_kernels(one.both, meter.device)}
            if meter.device.type == "cuda":
                row["replayed"] = time_replay(one.forward, meter)
    except (CCNetError, ImportError, RuntimeError) as error:
        return {**row, "failed": describe_briefly(error)}
    return row


def make_pass(name: str, tensors: Inputs) -> Pass:
    """A formulation of these inputs."""
    name = "numba" if name == ASYNC else name
    query, key, value = leaves = [x.detach().requires_grad_() for x in tensors]
    grad = torch.ones_like(value)
    if name == UNPADDED:
        q, k, v = query.detach().float(), key.detach().float(), value.detach()

        def by_hand() -> Sequence[Tensor]:
            out, attention = gemm.criss_cross(q, k, v)
            return out, *gemm.criss_cross_backward(grad, q, k, v, attention)

        return Pass(lambda: gemm.criss_cross(q, k, v)[0], torch.no_grad()(by_hand))

    def both() -> Sequence[Tensor]:
        out = ops.criss_cross(query, key, value, name)
        return out, *torch.autograd.grad(out, leaves, grad)

    q, k, v = tensors
    return Pass(torch.no_grad()(lambda: ops.criss_cross(q, k, v, name)), both)


def difference(out: Tensor, tensors: Inputs) -> float:
    """From the definition in float64, of the first image, relative to its largest entry."""
    query, key, value = (x[:1].double().cpu() for x in tensors)
    exact = ops.criss_cross(query, key, value, "reference")
    return float((out[:1].double().cpu() - exact).abs().max() / exact.abs().max())


def list_kernels(call: Callable[[], object], device: torch.device) -> list[tuple[str, float]]:
    """Name and microseconds of each kernel of a call, in order; none on the CPU."""
    if device.type != "cuda":
        return []
    call()
    torch.cuda.synchronize(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr when it starts and stops
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize(device)
    events: Any = profile.events()
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    return [(event.name[:80], event.device_time) for event in sorted(kernels, key=lambda event: event.time_range.start)]


def time_replay(call: Callable[[], object], meter: Meter) -> Spread:
    """Milliseconds of a call as a replayed graph, which the host only starts."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(meter.device):
        call()
        with torch.cuda.graph(graph):
            call()
    return meter.alternate({"replay": graph.replay})["replay"]
