"""What criss-cross attention costs: every implementation beside the alternatives, in one alternating run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from ccnet_cli import ops
from ccnet_cli.bench.alternatives import Floor, NonLocal, Official, use_layout
from ccnet_cli.bench.meter import Meter, count_inputs, count_operations, open_meter, require_equal
from ccnet_cli.bench.report import Column, Report, Row, Spread, Table
from ccnet_cli.bench.request import Run, Work
from ccnet_cli.errors import InputError
from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross
from ccnet_cli.models.network import PRECISIONS

# B batch, C channels of the map, H height, W width

OFFICIAL, NON_LOCAL, FLOOR = "official", "non-local", "floor"
DESCRIPTIONS = {
    "reference": "the definition, in einsum",
    "gemm": "batched matrix products on channels-last views, nothing copied",
    "flash": "torch's own attention along rows and columns, merged; nothing saved",
    "numba": "tiled kernels along rows and columns, no copies of whole maps",
    OFFICIAL: "the authors' formulation: copied rows and columns, concatenation, separate projections",
    NON_LOCAL: "one non-local block: every pixel is a key (always one pass)",
    FLOOR: "only the matrix products of the criss-cross passes",
}
# relative to the largest entry: rounding stays below it, no mistake does
TOLERANCES = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 3e-2, "bf16": 1e-1}
# "both" is forward with backward; ratios are to the reference's median; memory is MiB at the peak above what lived
# before; gflop, gbytes and what they make of the median forward pass are by formula, counted is by torch
COLUMNS = (
    Column("formulation", "name"),
    Column("forward ms", "forward", ".1f"),
    Column("ratio", "forward_ratio", ".2f"),
    Column("+ backward ms", "both", ".1f"),
    Column("ratio", "both_ratio", ".2f"),
    Column("MiB", "forward_memory", ".0f"),
    Column("MiB both", "both_memory", ".0f"),
    Column("GFLOP", "gflop", ".2f"),
    Column("counted", "counted", ".2f"),
    Column("GB/s", "bandwidth", ".1f"),
    Column("TFLOP/s", "rate", ".3f"),
    Column("", "what"),
)


@dataclass(frozen=True)
class Contender:
    """One formulation as two calls, forward and forward with backward, and what it computes by formula."""

    name: str
    work: Work
    forward: Callable[[], Tensor]
    both: Callable[[], Any]


def names(device: str = "cpu", precision: str = "fp32") -> tuple[str, ...]:
    """What can be measured on a device, the reference first; the CPU's kernels are for float32 alone."""
    without = ("numba",) if device == "cpu" and _dtype(precision) != torch.float32 else ()
    ours = (name for name in ops.implementations(device) if name not in without)
    return (*ours, OFFICIAL, NON_LOCAL, FLOOR)


def measure(
    work: Work,
    run: Run,
    implementations: Sequence[str] | None = None,
    precision: str = "fp32",
    drop: Callable[[str, RuntimeError], object] | None = None,
) -> Report:
    """Measure the attention on a map, projections included, training memory too.

    implementations (see names) limits the rows; the reference is always there to compare with. In each round every row
    runs once, so that a busy machine slows them alike. Outputs and gradients of the criss-cross rows are compared with
    the reference first, and nothing is timed if one is wrong or fails; with drop, which is called with its name and the
    error, the others are. precision is as in training: fp16 and bf16 are the map's
    type and autocast's. On a GPU, as many equal inputs take turns as its cache cannot hold. On the CPU, memory is what
    torch's allocator handed out, without the matrix library's own scratch. InputError for unknown names or a map too
    large for a non-local block.
    """
    with open_meter(run) as meter:
        chosen = _choose(implementations, meter.device, precision)
        if NON_LOCAL in chosen:
            others = (name for name in names(meter.device.type, precision) if name != NON_LOCAL)
            options = " ".join(f"--implementation {name}" for name in others)
            meter.check_memory(work, f"use a smaller size, or leave it out with {options}")
        dtype = _dtype(precision)
        size = dtype.itemsize * work.batch * work.channels * work.size[0] * work.size[1]
        inputs = count_inputs(size, meter.cache_bytes())
        contenders = _contenders(chosen, work, precision, meter.device, inputs, drop)
        calls = {(one.name, both): one.both if both else one.forward for one in contenders for both in (False, True)}
        times = meter.alternate(calls)
        values: dict[str, Any] = {
            "size": work.size,
            "channels": work.channels,
            "recurrence": work.recurrence,
            "batch": work.batch,
            **meter.values(),
            "precision": precision,
            "inputs": inputs,
            "copy": meter.copy_rate(),
            "product": meter.product_rate(dtype),
            "rows": [_row(one, times, meter, dtype) for one in contenders],
        }
        title = f"{work}, R={work.recurrence}, {precision}, {meter}, median of {meter.repeats}; "
        title += "ratios to the reference, MiB at the peak, GFLOP forward; "
        title += f"here a copy does {values['copy']:.1f} GB/s, a matrix product {values['product']:.3f} TFLOP/s"
        return Report(values, [Table(title, COLUMNS, values["rows"])])


def _dtype(precision: str) -> torch.dtype:
    """tf32 is how products of float32 are made, for the caller to set."""
    return PRECISIONS.get(precision, torch.float32)


def _choose(implementations: Sequence[str] | None, device: torch.device, precision: str) -> list[str]:
    known = names(device.type, precision)
    for name in implementations or ():
        if name not in known:
            raise InputError(f"implementation {name}", "unknown", f"choose from {', '.join(known)}")
    return [name for name in known if not implementations or name in implementations or name == "reference"]


def _row(one: Contender, times: dict[tuple[str, bool], Spread], meter: Meter, dtype: torch.dtype) -> Row:
    forward, both = (times[one.name, backward] for backward in (False, True))
    gbytes = one.work.gbytes(dtype.itemsize)
    return {
        "name": one.name,
        "what": DESCRIPTIONS.get(one.name, "this project's implementation"),
        "forward": forward,
        "both": both,
        "forward_ratio": forward.median / times["reference", False].median,
        "both_ratio": both.median / times["reference", True].median,
        "forward_memory": meter.peak(one.forward),
        "both_memory": meter.peak(one.both),
        "gflop": one.work.gflop,
        "counted": count_operations(one.forward) / 1e9,
        "gbytes": gbytes,
        "bandwidth": 1000 * gbytes / forward.median,
        "rate": one.work.gflop / forward.median,
    }


def _contenders(
    chosen: Sequence[str],
    work: Work,
    precision: str,
    device: torch.device,
    inputs: int,
    drop: Callable[[str, RuntimeError], object] | None,
) -> list[Contender]:
    """Everything to measure, with the same weights and input; the criss-cross ones compared with the reference."""
    torch.manual_seed(0)
    dtype = _dtype(precision)
    shared = CrissCrossAttention(work.channels, implementation="reference")
    shared.gamma.data.fill_(0.5)  # at 0 every formulation is the identity and a wrong one would not be seen
    x_BCHW, grad_BCHW = torch.randn(2, work.batch, work.channels, *work.size).to(dtype)
    contenders: list[Contender] = []
    expected: list[Tensor] = []
    for name in chosen:
        if name == FLOOR:
            floors = [Floor(work, device, dtype) for _ in range(inputs)]
            forwards, boths = cycle([x.forward for x in floors]), cycle([x.both for x in floors])
            contenders.append(Contender(name, work, _next(forwards), _next(boths)))
            continue
        module, layout = _module(name, shared, work.recurrence)
        try:
            forward, both = _calls(use_layout(module.to(device), layout), x_BCHW, grad_BCHW, layout, inputs)
            if name != NON_LOCAL:
                results = [forward(), *both()]
                require_equal(name, results, expected or results, TOLERANCES[precision])
                expected = expected or results
        except RuntimeError as error:
            # there are no ratios without the reference
            if drop is None or name == "reference":
                raise
            drop(name, error)
            continue
        contenders.append(Contender(name, work.non_local() if name == NON_LOCAL else work, forward, both))
    return contenders


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


def _calls(
    module: nn.Module, x: Tensor, grad: Tensor, layout: torch.memory_format, inputs: int
) -> tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, ...]]]:
    """Forward, and forward with backward, each on the next of several equal inputs."""
    device = next(module.parameters()).device
    grad = grad.to(device).contiguous(memory_format=layout)
    copies = [x.to(device, copy=True).contiguous(memory_format=layout) for _ in range(inputs)]
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
