"""What criss-cross attention costs here: every implementation beside the alternatives, in one alternating run."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ccnet_cli import measure, ops
from ccnet_cli import model as models
from ccnet_cli.alternatives import Floor, NonLocal, Official
from ccnet_cli.attention import CrissCrossAttention, RecurrentCrissCross
from ccnet_cli.errors import InputError

# B batch, C channels of the map, c those of query and key, H height, W width

OFFICIAL, NON_LOCAL, FLOOR = "official", "non-local", "floor"
TELLS = {
    "reference": "the definition, in einsum",
    "gemm": "batched matrix products on channels-last views, nothing copied",
    "numba": "tiled kernels along rows and columns, nothing copied",
    OFFICIAL: "the authors' formulation: copied rows and columns, concatenation, separate projections",
    NON_LOCAL: "one non-local block: every pixel is a key (always one pass)",
    FLOOR: "only the matrix products of the criss-cross passes",
}
# relative to the largest entry: float32 rounding stays below it, no mistake does
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Timing:
    """Median, least and greatest of the rounds, in milliseconds."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True)
class Row:
    """One formulation. ratio is its median over the reference's; memory is the peak above what lived before, in MiB.

    gflop (2 per multiply-add, forward) is the formula's, counted what torch counts in the operators that ran.
    """

    name: str
    what: str
    forward: Timing
    both: Timing
    forward_ratio: float
    both_ratio: float
    forward_memory: float
    both_memory: float
    gflop: float
    counted: float


@dataclass(frozen=True)
class Report:
    """What was measured, where, and how."""

    size: tuple[int, int]
    channels: int
    recurrence: int
    batch: int
    repeats: int
    device: str
    threads: int
    torch: str
    rows: tuple[Row, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON; "forward" and "both" (with backward) are milliseconds, "memory" is MiB."""
        return asdict(self) | {"size": list(self.size), "rows": [asdict(row) for row in self.rows]}


@dataclass(frozen=True)
class Contender:
    """One formulation as two calls: forward, and forward with backward."""

    name: str
    forward: Callable[[], Tensor]
    both: Callable[[], Any]
    gflop: float


def names(device: str = "cpu") -> tuple[str, ...]:
    """What can be measured on a device, the reference first."""
    return (*ops.implementations(device), OFFICIAL, NON_LOCAL, FLOOR)


def attention(
    size: tuple[int, int] = (97, 97),
    channels: int = 512,
    recurrence: int = 2,
    batch: int = 1,
    threads: int | None = None,
    repeats: int = 5,
    implementations: Sequence[str] | None = None,
    device: str = "auto",
) -> Report:
    """Measure the attention on a float32 map (batch, channels, *size), projections included, training memory too.

    implementations (see names) limits the rows; the reference is always there to compare with. In each round every row
    runs once, so that a busy machine slows them alike. Outputs and gradients of the criss-cross rows are compared with
    the reference first, and nothing is timed if one is wrong. On the CPU, memory is what torch's allocator handed out;
    the matrix library's own scratch is not seen. InputError for unknown names or a map too large for a non-local block.
    """
    place = models.device(device)
    chosen = _chosen(implementations, place)
    if NON_LOCAL in chosen:
        rest = " ".join(f"--implementation {name}" for name in names(place.type) if name != NON_LOCAL)
        measure.check_memory(size, batch, place, f"use a smaller size, or leave it out with {rest}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        contenders = _contenders(chosen, size, channels, recurrence, batch, place)
        timings = _alternate(contenders, repeats, place)
        reference = [timing.median for timing in timings[0]]
        rows = tuple(
            Row(
                name=one.name,
                what=TELLS.get(one.name, "this project's implementation"),
                forward=forward,
                both=both,
                forward_ratio=forward.median / reference[0],
                both_ratio=both.median / reference[1],
                forward_memory=measure.peak(one.forward, place) / 2**20,
                both_memory=measure.peak(one.both, place) / 2**20,
                gflop=one.gflop,
                counted=measure.counted(one.forward) / 1e9,
            )
            for one, (forward, both) in zip(contenders, timings, strict=True)
        )
        return Report(
            size, channels, recurrence, batch, repeats, str(place), torch.get_num_threads(), torch.__version__, rows
        )
    finally:
        torch.set_num_threads(before)


def _chosen(implementations: Sequence[str] | None, device: torch.device) -> list[str]:
    known = names(device.type)
    for name in implementations or ():
        if name not in known:
            raise InputError(f"implementation {name}", "unknown", f"choose from {', '.join(known)}")
    return [name for name in known if not implementations or name in implementations or name == "reference"]


def _contenders(
    chosen: Sequence[str], size: tuple[int, int], channels: int, recurrence: int, batch: int, device: torch.device
) -> list[Contender]:
    """Everything to measure, with the same weights and input; the criss-cross ones compared with the reference."""
    torch.manual_seed(0)
    shared = CrissCrossAttention(channels, implementation="reference")
    shared.gamma.data.fill_(0.5)  # at 0 every formulation is the identity and a wrong one would not be seen
    x_BCHW, grad_BCHW = torch.randn(2, batch, channels, *size)
    cost = measure.formula(size, channels, recurrence, batch)
    found: list[Contender] = []
    expected: list[Tensor] = []
    for name in chosen:
        if name == FLOOR:
            floor = Floor(size, channels, recurrence, batch, device)
            found.append(Contender(name, floor.forward, floor.both, cost))
            continue
        module, layout = _module(name, shared, recurrence)
        contender = _contender(name, module.to(device), x_BCHW, grad_BCHW, layout, device)
        if name == NON_LOCAL:
            found.append(Contender(name, *contender, measure.formula(size, channels, 1, batch, keys=size[0] * size[1])))
            continue
        got = [contender[0](), *contender[1]()]
        expected = expected or got
        compare(name, got, expected)
        found.append(Contender(name, *contender, cost))
    return found


def _module(name: str, shared: CrissCrossAttention, recurrence: int) -> tuple[nn.Module, torch.memory_format]:
    """The formulation with its own copy of the shared weights, and the layout in which it is at its best."""
    reduced = shared.query_conv.out_channels
    implementation = "reference" if name in (OFFICIAL, NON_LOCAL) else name
    attention = CrissCrossAttention(shared.value_conv.out_channels, reduced, implementation)
    attention.load_state_dict(shared.state_dict())
    if name == OFFICIAL:
        return Official(attention, recurrence), torch.contiguous_format
    if name == NON_LOCAL:
        return NonLocal(attention), torch.contiguous_format
    return RecurrentCrissCross(attention, recurrence), torch.channels_last


def _contender(
    name: str, module: nn.Module, x: Tensor, grad: Tensor, layout: torch.memory_format, device: torch.device
) -> tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, ...]]]:
    x, grad = (tensor.to(device).contiguous(memory_format=layout) for tensor in (x, grad))
    module = module.to(memory_format=layout)
    plain, leaves = x.detach(), [x.requires_grad_(), *module.parameters()]

    def forward() -> Tensor:
        with torch.no_grad():
            result: Tensor = module(plain)
        return result

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x), leaves, grad)

    return forward, both


def compare(name: str, got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise RuntimeError unless all tensors agree to TOLERANCE of the largest entry: a wrong result has no speed."""
    scale = max(float(wanted.abs().max()) for wanted in expected)
    for index, (mine, wanted) in enumerate(zip(got, expected, strict=True)):
        difference = float((mine - wanted).abs().max()) / max(float(wanted.abs().max()), TOLERANCE * scale)
        # not (<=), so that nan is refused too
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{name} differs from the reference by {difference:.1e} in result {index}: not timed")


def _alternate(contenders: Sequence[Contender], repeats: int, device: torch.device) -> list[tuple[Timing, Timing]]:
    """Time every call once per round, after one round that warms up."""
    calls = [call for one in contenders for call in (one.forward, one.both)]
    milliseconds: list[list[float]] = [[] for _ in calls]
    for round in range(repeats + 1):
        gc.collect()
        for call, taken in zip(calls, milliseconds, strict=True):
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if round:
                taken.append(1000 * (time.perf_counter() - start))
    timings = [Timing(statistics.median(taken), min(taken), max(taken)) for taken in milliseconds]
    return list(zip(timings[::2], timings[1::2], strict=True))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
