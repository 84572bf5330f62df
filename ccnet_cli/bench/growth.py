"""How the cores of criss-cross and non-local attention, without their projections, grow with the feature map."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ccnet_cli import ops
from ccnet_cli.bench import measure
from ccnet_cli.bench.measure import Sheet
from ccnet_cli.errors import InputError, notice
from ccnet_cli.figures import charts
from ccnet_cli.media import images
from ccnet_cli.models import network as models

# B batch, C channels, H height, W width

SIZES = ((33, 33), (49, 49), (65, 65), (97, 97), (129, 129), (129, 257))
CRISS_CROSS, NON_LOCAL = "criss-cross", "non-local"
# milliseconds of a turn: a small map's pass alone would measure how threads wake
LEAST = 100.0


@dataclass(frozen=True)
class Row:
    """One pass over one map, as one of many in a row; memory is the peak, in MiB, above inputs and output.

    The constants are milliseconds and MiB for 10^6 pairs of pixels: H W (H + W) of criss-cross, (H W)^2 of non-local.
    Ratios are to criss-cross at the same size.
    """

    name: str
    size: tuple[int, int]
    time: measure.Timing
    constant: float
    memory: float
    memory_constant: float
    time_ratio: float
    memory_ratio: float


@dataclass(frozen=True)
class Report:
    """What was measured and where."""

    channels: int
    device: str
    threads: int
    torch: str
    repeats: int
    rows: tuple[Row, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON."""
        return asdict(self)

    def sheets(self) -> Iterator[Sheet]:
        """What is printed of it."""
        rows = [
            (
                f"{row.size[0]}x{row.size[1]}",
                row.name,
                *row.time.cells(2),
                f"{row.constant:.2f}",
                f"{row.time_ratio:.1f}",
                f"{row.memory:.1f}",
                f"{row.memory_constant:.2f}",
                f"{row.memory_ratio:.1f}",
            )
            for row in self.rows
        ]
        title = f"1 x {self.channels} x H x W, fp32, {self.device}, {self.threads} threads, torch {self.torch}, "
        title += f"median of {self.repeats}; ratios to criss-cross"
        columns = ("size", "block", "ms", "least", "greatest", "constant", "ratio", "MiB", "constant", "ratio")
        yield Sheet(title, columns, rows)


def growth(
    sizes: Sequence[tuple[int, int]] = SIZES,
    channels: int = 512,
    threads: int | None = None,
    repeats: int = 5,
    implementation: str = "auto",
    device: str = "auto",
) -> Report:
    """Time and memory of one forward pass at each size (H, W), float32, all sizes of both blocks alternating.

    A map on which the non-local block would not fit into memory has the row of criss-cross alone. Raises InputError on
    an unknown implementation or device.
    """
    place = models.device(device)
    with measure.threads(threads) as count:
        with torch.inference_mode():
            passes = [one for size in sizes for one in _passes(size, channels, implementation, place)]
            rows = _rows(passes, repeats, place)
        return Report(channels, str(place), count, torch.__version__, repeats, tuple(rows))


@dataclass(frozen=True)
class _Pass:
    """A block's pass over a map: the pairs of pixels that it weighs, in millions, and the bytes of its output."""

    name: str
    size: tuple[int, int]
    pairs: float
    output: int
    call: Callable[[], Tensor]


def _passes(size: tuple[int, int], channels: int, implementation: str, device: torch.device) -> Iterator[_Pass]:
    H, W = size
    query, key, value = (
        torch.randn(1, count, H, W, device=device).contiguous(memory_format=torch.channels_last)
        for count in (max(channels // 8, 1), max(channels // 8, 1), channels)
    )
    attention = partial(ops.criss_cross, query, key, value, implementation, ops.Choices())
    yield _Pass(CRISS_CROSS, size, H * W * (H + W) / 1e6, value.nbytes, attention)
    try:
        measure.check_memory(size, 1, device, "")
    except InputError as error:
        notice(f"without non-local: {error.why}")
    else:
        yield _Pass(NON_LOCAL, size, (H * W) ** 2 / 1e6, value.nbytes, partial(non_local, query, key, value))


def _rows(passes: list[_Pass], repeats: int, device: torch.device) -> list[Row]:
    # a round goes through criss-cross at all sizes, then through non-local: what slows the machine for a while
    # slows one constant as it does the others
    order = sorted(passes, key=lambda one: one.name != CRISS_CROSS)
    found = measure.alternate([one.call for one in order], repeats, device, LEAST)
    times = {(one.name, one.size): time for one, time in zip(order, found, strict=True)}
    memory = {(one.name, one.size): (measure.peak(one.call, device) - one.output) / 2**20 for one in passes}
    rows = []
    for one in passes:
        own, base = (one.name, one.size), (CRISS_CROSS, one.size)
        rows.append(
            Row(
                name=one.name,
                size=one.size,
                time=times[own],
                constant=times[own].median / one.pairs,
                memory=memory[own],
                memory_constant=memory[own] / one.pairs,
                time_ratio=times[own].median / times[base].median,
                memory_ratio=memory[own] / memory[base],
            )
        )
    return rows


def non_local(query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """What a non-local block (CVPR 2018, embedded Gaussian) does between its projections: (B, C, H, W)."""
    query, key, value = (x.flatten(2) for x in (query_BCHW, key_BCHW, value_BCHW))
    attention = (query.transpose(1, 2) @ key).softmax(dim=2)
    return (value @ attention.transpose(1, 2)).view_as(value_BCHW)


def plot(report: Report) -> images.Pixels:
    """Time and memory against the number of pixels, both axes logarithmic, as a picture (BGR)."""
    columns = {
        "milliseconds": [(row.name, math.prod(row.size), row.time.median) for row in report.rows],
        "MiB": [(row.name, math.prod(row.size), max(row.memory, 1e-3)) for row in report.rows],
    }
    panels = []
    for unit, points in columns.items():
        lines = {name: [(x, y) for own, x, y in points if own == name] for name in (CRISS_CROSS, NON_LOCAL)}
        panels.append(charts.Panel(unit, lines, "pixels of the feature map", log=True))
    return charts.line_charts(panels)
