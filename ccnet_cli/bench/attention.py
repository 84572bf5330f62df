"""What criss-cross attention costs here: every implementation beside the alternatives, in one alternating run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from ccnet_cli import ops
from ccnet_cli.bench import measure
from ccnet_cli.bench.alternatives import Floor, NonLocal, Official
from ccnet_cli.bench.measure import Sheet, Timing
from ccnet_cli.errors import InputError
from ccnet_cli.models import network as models
from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross

# B batch, C channels of the map, c those of query and key, H height, W width

OFFICIAL, NON_LOCAL, FLOOR = "official", "non-local", "floor"
TELLS = {
    "reference": "the definition, in einsum",
    "gemm": "batched matrix products on channels-last views, nothing copied",
    "numba": "tiled kernels along rows and columns, no copies of whole maps",
    OFFICIAL: "the authors' formulation: copied rows and columns, concatenation, separate projections",
    NON_LOCAL: "one non-local block: every pixel is a key (always one pass)",
    FLOOR: "only the matrix products of the criss-cross passes",
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# relative to the largest entry: rounding stays below it, no mistake does
TOLERANCES = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1}
TOLERANCE = TOLERANCES["fp32"]


@dataclass(frozen=True)
class Row:
    """One formulation. ratio is its median over the reference's; memory is the peak above what lived before, in MiB.

    gflop (2 per multiply-add, forward) is the formula's, counted what torch counts in the operators that ran. gbytes is
    the formula's too; bandwidth (GB/s) and rate (TFLOP/s) are what the formulas make of the median forward pass.
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
    gbytes: float
    bandwidth: float
    rate: float


@dataclass(frozen=True)
class Report:
    """What was measured, where, and how.

    copy (GB/s) and product (TFLOP/s) are the rates of a large copy and a large matrix product in the same run; inputs
    is how many took turns.
    """

    size: tuple[int, int]
    channels: int
    recurrence: int
    batch: int
    repeats: int
    device: str
    threads: int
    torch: str
    precision: str
    inputs: int
    copy: float
    product: float
    rows: tuple[Row, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON; "forward" and "both" (with backward) are milliseconds, "memory" is MiB."""
        return asdict(self) | {"size": list(self.size), "rows": [asdict(row) for row in self.rows]}

    def sheets(self) -> Iterator[Sheet]:
        """What is printed of it."""
        rows = [
            (
                row.name,
                f"{row.forward.median:.1f}",
                f"{row.forward_ratio:.2f}",
                f"{row.both.median:.1f}",
                f"{row.both_ratio:.2f}",
                f"{row.forward_memory:.0f}",
                f"{row.both_memory:.0f}",
                f"{row.gflop:.2f}",
                f"{row.counted:.2f}",
                f"{row.bandwidth:.1f}",
                f"{row.rate:.3f}",
                row.what,
            )
            for row in self.rows
        ]
        title = f"{self.batch} x {self.channels} x {self.size[0]}x{self.size[1]}, R={self.recurrence}, "
        title += f"{self.precision}, {self.device}, {self.threads} threads, torch {self.torch}, "
        title += f"median of {self.repeats}; ratios to the reference, MiB at the peak, GFLOP forward; "
        title += f"here a copy does {self.copy:.1f} GB/s, a matrix product {self.product:.3f} TFLOP/s"
        columns = (
            "formulation",
            "forward ms",
            "ratio",
            "+ backward ms",
            "ratio",
            "MiB",
            "MiB both",
            "GFLOP",
            "counted",
            "GB/s",
            "TFLOP/s",
            "",
        )
        yield Sheet(title, columns, rows)


@dataclass(frozen=True)
class Contender:
    """One formulation as two calls: forward, and forward with backward."""

    name: str
    forward: Callable[[], Tensor]
    both: Callable[[], Any]
    gflop: float
    gbytes: float


def names(device: str = "cpu", precision: str = "fp32") -> tuple[str, ...]:
    """What can be measured on a device, the reference first; the CPU's kernels are for float32 alone."""
    without = ("numba",) if device == "cpu" and precision != "fp32" else ()
    found = (name for name in ops.implementations(device) if name not in without)
    return (*found, OFFICIAL, NON_LOCAL, FLOOR)


def attention(
    size: tuple[int, int] = (97, 97),
    channels: int = 512,
    recurrence: int = 2,
    batch: int = 1,
    threads: int | None = None,
    repeats: int = 5,
    implementations: Sequence[str] | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> Report:
    """Measure the attention on a map (batch, channels, *size), projections included, training memory too.

    implementations (see names) limits the rows; the reference is always there to compare with. In each round every row
    runs once, so that a busy machine slows them alike. Outputs and gradients of the criss-cross rows are compared with
    the reference first, and nothing is timed if one is wrong. precision is as in training: fp16 and bf16 are the map's
    type and autocast's. A GPU's time is told by its own events, on inputs that no cache holds. On the CPU, memory is
    what torch's allocator handed out; the matrix library's own scratch is not seen. InputError for unknown names or a
    map too large for a non-local block.
    """
    place = models.device(device)
    chosen = _chosen(implementations, place, precision)
    if NON_LOCAL in chosen:
        rest = " ".join(f"--implementation {name}" for name in names(place.type, precision) if name != NON_LOCAL)
        measure.check_memory(size, batch, place, f"use a smaller size, or leave it out with {rest}")
    with measure.threads(threads) as count:
        wide = DTYPES[precision].itemsize
        inputs = measure.rotations(wide * batch * channels * size[0] * size[1], measure.cache(place))
        contenders = _contenders(chosen, size, channels, recurrence, batch, place, precision, inputs)
        calls = [call for one in contenders for call in (one.forward, one.both)]
        times = measure.alternate(calls, repeats, place)
        timings = list(zip(times[::2], times[1::2], strict=True))
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
                gbytes=one.gbytes,
                bandwidth=1000 * one.gbytes / forward.median,
                rate=one.gflop / forward.median,
            )
            for one, (forward, both) in zip(contenders, timings, strict=True)
        )
        return Report(
            size=size,
            channels=channels,
            recurrence=recurrence,
            batch=batch,
            repeats=repeats,
            device=str(place),
            threads=count,
            torch=torch.__version__,
            precision=precision,
            inputs=inputs,
            copy=measure.copy_rate(place),
            product=measure.product_rate(place, DTYPES[precision]),
            rows=rows,
        )


def _chosen(implementations: Sequence[str] | None, device: torch.device, precision: str) -> list[str]:
    known = names(device.type, precision)
    for name in implementations or ():
        if name not in known:
            raise InputError(f"implementation {name}", "unknown", f"choose from {', '.join(known)}")
    return [name for name in known if not implementations or name in implementations or name == "reference"]


def _contenders(
    chosen: Sequence[str],
    size: tuple[int, int],
    channels: int,
    recurrence: int,
    batch: int,
    device: torch.device,
    precision: str,
    inputs: int,
) -> list[Contender]:
    """Everything to measure, with the same weights and input; the criss-cross ones compared with the reference."""
    torch.manual_seed(0)
    dtype = DTYPES[precision]
    shared = CrissCrossAttention(channels, implementation="reference")
    shared.gamma.data.fill_(0.5)  # at 0 every formulation is the identity and a wrong one would not be seen
    x_BCHW, grad_BCHW = torch.randn(2, batch, channels, *size).to(dtype)
    cost = measure.formula(size, channels, recurrence, batch)
    moved = measure.traffic(size, channels, recurrence, batch, dtype.itemsize)
    found: list[Contender] = []
    expected: list[Tensor] = []
    for name in chosen:
        if name == FLOOR:
            floors = [Floor(size, channels, recurrence, batch, device, dtype) for _ in range(inputs)]
            forwards, boths = cycle([x.forward for x in floors]), cycle([x.both for x in floors])
            found.append(Contender(name, _next(forwards), _next(boths), cost, moved))
            continue
        module, layout = _module(name, shared, recurrence)
        contender = _contender(module.to(device), x_BCHW, grad_BCHW, layout, device, inputs)
        if name == NON_LOCAL:
            keys = size[0] * size[1]
            once = (size, channels, 1, batch)
            moved_once = measure.traffic(*once, dtype.itemsize, keys=keys)
            found.append(Contender(name, *contender, measure.formula(*once, keys=keys), moved_once))
            continue
        got = [contender[0](), *contender[1]()]
        expected = expected or got
        compare(name, got, expected, TOLERANCES[precision])
        found.append(Contender(name, *contender, cost, moved))
    return found


def _next(calls: Iterator[Callable[[], Any]]) -> Callable[[], Any]:
    return lambda: next(calls)()


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
    module: nn.Module, x: Tensor, grad: Tensor, layout: torch.memory_format, device: torch.device, inputs: int
) -> tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, ...]]]:
    """Forward, and forward with backward, each on the next of so many equal inputs."""
    grad = grad.to(device).contiguous(memory_format=layout)
    copies = [x.to(device, copy=True).contiguous(memory_format=layout) for _ in range(inputs)]
    module = module.to(memory_format=layout)
    plain, leaves = cycle([copy.detach() for copy in copies]), cycle([copy.requires_grad_() for copy in copies])

    def run(x: Tensor) -> Tensor:
        with torch.autocast(device.type, x.dtype, enabled=x.dtype != torch.float32):
            result: Tensor = module(x)
        return result

    def forward() -> Tensor:
        with torch.no_grad():
            return run(next(plain))

    def both() -> tuple[Tensor, ...]:
        leaf = next(leaves)
        return torch.autograd.grad(run(leaf), [leaf, *module.parameters()], grad)

    return forward, both


def compare(name: str, got: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = TOLERANCE) -> None:
    """Raise RuntimeError unless all tensors agree to tolerance of the largest entry: a wrong result has no speed."""
    scale = max(float(wanted.abs().max()) for wanted in expected)
    for index, (mine, wanted) in enumerate(zip(got, expected, strict=True)):
        difference = float((mine - wanted).abs().max()) / max(float(wanted.abs().max()), tolerance * scale)
        # not (<=), so that nan is refused too
        if not difference <= tolerance:
            raise RuntimeError(f"{name} differs from the reference by {difference:.1e} in result {index}: not timed")
