"""How the cores of criss-cross and non-local attention, without their projections, grow with the feature map."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ccnet_cli import ops
from ccnet_cli.bench.alternatives import non_local
from ccnet_cli.bench.meter import Meter, open_meter
from ccnet_cli.bench.report import Column, Report, Row, Table, spread_columns
from ccnet_cli.bench.request import Run, Work
from ccnet_cli.errors import InputError, notice
from ccnet_cli.figures import charts
from ccnet_cli.media import images

# B batch, C channels, H height, W width

SIZES = ((33, 33), (49, 49), (65, 65), (97, 97), (129, 129), (129, 257))
CRISS_CROSS, NON_LOCAL = "criss-cross", "non-local"
# milliseconds of a turn: a small map's pass alone would measure how threads wake
TURN = 100.0
# of one pass among many in a row; memory is MiB at the peak above inputs and output; the constants are milliseconds and
# MiB for 10^6 pairs of pixels, H W (H + W) of criss-cross, (H W)^2 of non-local; ratios are to criss-cross at that size
COLUMNS = (
    Column("size", "size"),
    Column("block", "name"),
    *spread_columns("time", ".2f"),
    Column("constant", "constant", ".2f"),
    Column("ratio", "time_ratio", ".1f"),
    Column("MiB", "memory", ".1f"),
    Column("constant", "memory_constant", ".2f"),
    Column("ratio", "memory_ratio", ".1f"),
)


def measure(sizes: Sequence[tuple[int, int]], run: Run, channels: int = 512, implementation: str = "auto") -> Report:
    """Time and memory of one forward pass at each size (H, W), float32, all sizes of both blocks alternating.

    A map on which the non-local block would not fit into memory has the row of criss-cross alone. Raises InputError on
    an unknown implementation or device.
    """
    with open_meter(run) as meter:
        with torch.inference_mode():
            passes = [one for size in sizes for one in _passes(size, channels, implementation, meter)]
            rows = _rows(passes, meter)
        values = {"channels": channels, **meter.values(), "rows": rows}
        title = f"1 x {channels} x H x W, fp32, {meter}, median of {meter.repeats}; ratios to criss-cross"
        return Report(values, [Table(title, COLUMNS, rows)])


@dataclass(frozen=True)
class _Pass:
    """A block's pass over a map: the pairs of pixels that it weighs, in millions, and the bytes of its output."""

    name: str
    size: tuple[int, int]
    pairs: float
    output: int
    call: Callable[[], Tensor]


def _passes(size: tuple[int, int], channels: int, implementation: str, meter: Meter) -> Iterator[_Pass]:
    H, W = size
    query, key, value = (
        torch.randn(1, count, H, W, device=meter.device).contiguous(memory_format=torch.channels_last)
        for count in (max(channels // 8, 1), max(channels // 8, 1), channels)
    )
    attention = partial(ops.criss_cross, query, key, value, implementation, ops.Choices())
    yield _Pass(CRISS_CROSS, size, H * W * (H + W) / 1e6, value.nbytes, attention)
    try:
        meter.check_memory(Work(size), "")
    except InputError as error:
        notice(f"without non-local: {error.why}")
    else:
        yield _Pass(NON_LOCAL, size, (H * W) ** 2 / 1e6, value.nbytes, partial(non_local, query, key, value))


def _rows(passes: Sequence[_Pass], meter: Meter) -> list[Row]:
    # a round goes through criss-cross at all sizes, then through non-local: what slows the machine for a while
    # slows one constant as it does the others
    order = sorted(passes, key=lambda one: one.name != CRISS_CROSS)
    times = meter.alternate({(one.name, one.size): one.call for one in order}, TURN)
    memory = {(one.name, one.size): meter.peak(one.call) - one.output / 2**20 for one in passes}
    rows = []
    for own, one in {(one.name, one.size): one for one in passes}.items():
        base = (CRISS_CROSS, one.size)
        row: Row = {
            "name": one.name,
            "size": one.size,
            "time": times[own],
            "constant": times[own].median / one.pairs,
            "memory": memory[own],
            "memory_constant": memory[own] / one.pairs,
            "time_ratio": times[own].median / times[base].median,
            "memory_ratio": memory[own] / memory[base],
        }
        rows.append(row)
    return rows


def write_plot(report: Report, path: Path) -> None:
    """Write a PNG of time and memory against the number of pixels, both axes logarithmic."""
    values: dict[str, Callable[[Row], float]] = {
        "milliseconds": lambda row: row["time"].median,
        "MiB": lambda row: max(row["memory"], 1e-3),
    }
    panels = []
    for unit, value in values.items():
        lines: dict[str, list[tuple[float, float]]] = {CRISS_CROSS: [], NON_LOCAL: []}
        for row in report.values["rows"]:
            lines[row["name"]].append((math.prod(row["size"]), value(row)))
        panels.append(charts.Panel(unit, lines, "pixels of the feature map", log=True))
    images.write_image(path, charts.line_charts(panels))
