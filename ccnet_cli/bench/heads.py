"""What context heads cost: parameters, operations, memory and time on the maps of one backbone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccnet_cli.bench import alternatives
from ccnet_cli.bench.meter import Meter, count_operations, open_meter
from ccnet_cli.bench.report import Column, Report, Row, Table
from ccnet_cli.bench.request import Run
from ccnet_cli.config.rows import NONE
from ccnet_cli.figures import charts
from ccnet_cli.media import images
from ccnet_cli.models import network as models
from ccnet_cli.models.network import CCNet
from ccnet_cli.models.settings import Model

# height and width
Size = tuple[int, int]
# parameters of the network with its auxiliary head, of the head, and of what gathers context in it; GFLOP is 2 per
# multiply-add of a forward pass; MiB is the peak above maps and weights, without gradients and with the backward pass
COLUMNS = (
    Column("head", "head"),
    Column("parameters M", "parameters", ".3f", 1e6),
    Column("head M", "head_parameters", ".3f", 1e6),
    Column("block M", "block_parameters", ".3f", 1e6),
    Column("head GFLOP", "head_gflop", ".2f"),
    Column("block GFLOP", "block_gflop", ".2f"),
    Column("MiB infer", "inference_mib", ".1f"),
    Column("MiB train", "training_mib", ".1f"),
    Column("ms forward", "forward_ms", ".1f"),
    Column("ms both", "both_ms", ".1f"),
)
# TPAMI, cost of context modules over the baseline for one image of 769x769: GFLOP, and memory in MB as it prints them
PUBLISHED_SIZE = (97, 97)
PUBLISHED = {"nonlocal": (108, 1411), "rcca": (16.5, 127)}
INCREMENTS = (
    Column("head", "head"),
    Column("GFLOP", "gflop", "+.2f"),
    Column("MiB infer", "inference_mib", "+.1f"),
    Column("MiB train", "training_mib", "+.1f"),
    Column("ms forward", "forward_ms", "+.1f"),
    Column("paper GFLOP", "published_gflop", "+g"),
    Column("paper MB", "published_mb", "+g"),
)


def measure(rows: Mapping[str, Model], size: Size, run: Run, classes: int = 19, batch: int = 1) -> Report:
    """Measure the head of every row on random maps of its backbone, the deepest of size (H, W), in float32.

    The batch norms take their running statistics in training too, as in a network whose norms are frozen: some heads
    pool a map to one position, which a batch of one image has no statistics of. Memory is what torch's allocator had
    handed out at the peak above maps and weights; on the CPU the scratch of a library is not seen.
    """
    with open_meter(run) as meter:
        counts = {name: count(model, size, classes, batch) for name, model in rows.items()}
        passes = {name: _make_pass(model, counts[name].shapes, classes, meter) for name, model in rows.items()}
        calls = {(name, way): getattr(one, way) for name, one in passes.items() for way in ("infer", "step")}
        if meter.device.type == "cuda":
            # the first call measures which implementation to take, and that is no part of what a call costs
            for call in calls.values():
                call()
        memory = {key: meter.peak(call) for key, call in calls.items()}
        times = meter.alternate(calls)
        heads: list[Row] = [
            {
                "head": name,
                **counts[name].values,
                "inference_mib": memory[name, "infer"],
                "training_mib": memory[name, "step"],
                "forward_ms": times[name, "infer"].median,
                "both_ms": times[name, "step"].median,
            }
            for name in rows
        ]
        settings: Any = next(iter(rows.values()))
        values = {"size": size, "batch": batch, "classes": classes, "backbone": settings.backbone.kind}
        title = f"{settings.backbone.kind}, maps of {batch} x {size[0]}x{size[1]}, {classes} classes, {meter}, "
        title += f"medians of {meter.repeats}"
        increments = _increments(heads, size == PUBLISHED_SIZE and batch == 1)
        tables = [Table(title, COLUMNS, heads)]
        if increments:
            tables.append(Table(f"the same above {NONE}, and what the paper printed", INCREMENTS, increments))
        return Report({**values, **meter.values(), "heads": heads, "increments": increments}, tables)


@dataclass(frozen=True)
class Counts:
    """What needs no computing: a row's parameters and GFLOP, and the shapes of the maps that its head takes."""

    values: Row
    shapes: list[tuple[int, ...]]


@torch.no_grad()
def count(model: Model, size: Size, classes: int = 19, batch: int = 1) -> Counts:
    """Parameters and GFLOP of a network of these settings on maps of a size; nothing is allocated or computed.

    The block's are None for a head that names none; biases and norms are no products, and not counted.
    """
    with torch.device("meta"):
        network = models.build(model, classes).eval()
        image = torch.empty(batch, 3, *((side - 1) * network.backbone.stride + 1 for side in size))
    maps = network.backbone(image)
    calls: list[Callable[[], object]] = []

    def record(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls.append(partial(module.forward, *args, **options))

    modules = _blocks(network.head)
    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules or ()]
    head = count_operations(lambda: network.head(maps))
    for hook in hooks:
        hook.remove()
    values: Row = {
        "parameters": _parameters(network),
        "head_parameters": _parameters(network.head),
        "block_parameters": None if modules is None else _parameters(*modules),
        "head_gflop": head / 1e9,
        "block_gflop": None if modules is None else sum(count_operations(call) for call in calls) / 1e9,
    }
    return Counts(values, [tuple(x.shape) for x in maps])


def _parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for parameter in nn.ModuleList(modules).parameters())


def _blocks(head: nn.Module) -> list[nn.Module] | None:
    """The modules of a head that gather context, none where it was built without; None where it does not say."""
    names: Sequence[str] | None = getattr(head, "blocks", None)
    if names is None:
        # a head of convolutions alone gathers nothing
        return [] if isinstance(head, nn.Sequential) else None
    found: list[nn.Module] = []
    for name in names:
        parent, _, last = name.rpartition(".")
        # one that is None is no submodule, but an attribute
        module = getattr(head.get_submodule(parent), last)
        found += [] if module is None else module if isinstance(module, nn.ModuleList) else [module]
    return found


@dataclass(frozen=True)
class _Pass:
    """A head on its maps: without gradients, and forward and backward."""

    network: CCNet
    maps: list[Tensor]

    def infer(self) -> None:
        with torch.no_grad():
            self.network.head([x.detach() for x in self.maps])

    def step(self) -> None:
        own = getattr(self.network.head, "outputs", None)
        scores = [self.network.head(self.maps)]
        if own is not None:
            main, others, _ = own(self.maps)
            scores = [main, *others.values()]
        leaves = [x for x in (*self.maps, *self.network.head.parameters()) if x.requires_grad]
        torch.autograd.grad([x.float().sum() for x in scores], leaves, allow_unused=True)


def _make_pass(model: Model, shapes: Sequence[tuple[int, ...]], classes: int, meter: Meter) -> _Pass:
    torch.manual_seed(0)
    network = models.build(model, classes).eval()
    alternatives.open_gates(network)
    network.backbone = nn.Identity()
    network.auxiliary = None
    network = network.to(meter.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    taken = getattr(network.head, "levels", len(shapes))
    maps = [
        torch.randn(shape, device=meter.device).to(memory_format=torch.channels_last).requires_grad_()
        for shape in shapes[-taken:]
    ]
    return _Pass(network, maps)


def _increments(heads: Sequence[Row], as_published: bool) -> list[Row]:
    """What each row has above the row without attention; nothing where that is not among them."""
    base = next((row for row in heads if row["head"] == NONE), None)
    keys = {"gflop": "head_gflop"} | {key: key for key in ("inference_mib", "training_mib", "forward_ms", "both_ms")}
    rows = []
    for row in heads if base else ():
        gflop, mb = PUBLISHED.get(row["head"], (None, None)) if as_published else (None, None)
        above = {key: row[source] - base[source] for key, source in keys.items()} if base else {}
        rows.append({"head": row["head"], **above, "published_gflop": gflop, "published_mb": mb})
    return rows


def write_plot(report: Report, path: Path) -> None:
    """Write a PNG of time and memory against the operations, a point for each head."""
    panels = [
        charts.Scatter(title, {row["head"]: (row["head_gflop"], [row[key]]) for row in report.values["heads"]}, "GFLOP")
        for title, key in (("ms, forward and backward", "both_ms"), ("MiB, training", "training_mib"))
    ]
    images.write_image(path, charts.scatter_charts(panels))


def measure_on_crop(models_by_row: Mapping[str, Model], crop: Size, classes: int, device: str) -> dict[str, Any]:
    """The values of a report on the maps that one crop of an image (H, W) gives."""
    with torch.device("meta"), torch.no_grad():
        network = models.build(next(iter(models_by_row.values())), classes).eval()
        height, width = network.backbone(torch.empty(1, 3, *crop))[-1].shape[2:]
    return measure(models_by_row, (height, width), Run(device, repeats=3), classes).to_mapping()
