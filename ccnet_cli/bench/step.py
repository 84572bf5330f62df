"""What a training step costs: the authors' eager step and ours, in one alternating run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ccnet_cli import config
from ccnet_cli.bench import alternatives
from ccnet_cli.bench.loss import IGNORED, Loss, official_objective
from ccnet_cli.bench.meter import Meter, count_operations, open_meter, require_equal
from ccnet_cli.bench.report import Column, Report, Row, Table, spread_columns
from ccnet_cli.bench.request import Run
from ccnet_cli.devices import PRECISIONS
from ccnet_cli.losses import objective as objectives
from ccnet_cli.models import network as models
from ccnet_cli.models.network import CCNet
from ccnet_cli.parts import Outputs
from ccnet_cli.training.optimizer import make_optimizer
from ccnet_cli.training.trainer import LossNetwork

# B batch, H height, W width of the images

OFFICIAL = "official"
# row: its precision, and whether activations are computed again
OURS = {f"{name} recomputed" if again else name: (name, again) for again in (False, True) for name in ("fp32", "bf16")}
DESCRIPTIONS = {
    OFFICIAL: "the authors' way, eager: channels first, lines copied, scores enlarged whole, mining through numpy",
    "fp32": "ours: channels last, Winograd's convolutions, loss in bands, fused optimiser",
    "bf16": "the same under autocast",
    "fp32 recomputed": "ours, the backbone's activations computed again in backward",
    "bf16 recomputed": "the same under autocast",
}
# relative, of the loss and the classifier's gradient after a hundred float32 layers
TOLERANCE = 1e-2
# ratio is to the authors' median; memory is MiB at the peak above weights and optimiser state, gradients included; rate
# is of the operations that torch counts in a step, floor its fraction of what a convolution reaches in the same run and
# precision
COLUMNS = (
    Column("size", "size"),
    Column("step", "name"),
    *spread_columns("step", ".0f"),
    Column("ratio", "ratio", ".2f"),
    Column("MiB", "memory", ".0f"),
    Column("TFLOP", "tflop", ".2f"),
    Column("TFLOP/s", "rate", ".3f"),
    Column("of floor", "floor", ".0%"),
    Column("", "what"),
)


def measure(
    preset: config.Preset, sizes: Sequence[tuple[int, int]], run: Run, batch: int = 2, classes: int = 19
) -> Report:
    """Measure whole steps of the preset's model, loss and optimiser on made-up images, at every size of these.

    A step is forward with the auxiliary head, loss, backward, optimiser. In each round every row runs once, at learning
    rate 0: all rounds compute the same. The float32 loss and the classifier's gradient are compared with the authors'
    first, and nothing is timed if they are wrong.
    """
    with open_meter(run) as meter:
        torch.manual_seed(0)
        ways = make_ways(preset, classes, meter.device)
        convolution = {name: meter.convolution_rate(PRECISIONS[name]) for name in ("fp32", "bf16")}
        rows = []
        for size in sizes:
            x_BCHW = 60 * torch.randn(batch, 3, *size, device=meter.device)
            label_BHW = torch.randint(0, classes, (batch, *size), device=meter.device)
            label_BHW[torch.rand(label_BHW.shape, device=meter.device) < 0.1] = IGNORED
            rows += _rows(ways, (x_BCHW, label_BHW), meter, convolution)
        rates = ", ".join(f"{name} {rate:.3f}" for name, rate in convolution.items())
        title = f"{preset.name}, {batch} images, {meter}, median, least and greatest of {meter.repeats}; ratio to "
        title += f"{next(iter(ways))}, MiB at the peak above weights and optimiser; floor: a 3x3 convolution alone, "
        title += f"TFLOP/s here: {rates}"
        values = {"preset": preset.name, "batch": batch, **meter.values(), "convolution": convolution, "rows": rows}
        return Report(values, [Table(title, COLUMNS, rows)])


@dataclass(frozen=True)
class Way:
    """A way to take a training step: the network, its loss, its optimiser, and what it computes in.

    The learning rate is 0, so that every step computes the same.
    """

    network: CCNet
    loss: Loss
    optimizer: torch.optim.Optimizer
    layout: torch.memory_format
    precision: str = "fp32"
    recompute: bool = False

    def step(self, x_BCHW: Tensor, label_BHW: Tensor) -> Tensor:
        """The loss, once the optimiser has moved."""
        if hasattr(self.network.backbone, "recompute"):
            self.network.backbone.recompute = self.recompute
        self.optimizer.zero_grad(set_to_none=True)
        x_BCHW = x_BCHW.contiguous(memory_format=self.layout)
        with torch.autocast(x_BCHW.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            loss = self.loss(self.network.outputs(x_BCHW), label_BHW)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def gradient(self) -> Tensor:
        """That of the head's last weights."""
        gradients = [p.grad for p in self.network.head.parameters() if p.dim() > 1 and p.grad is not None]
        last: Tensor = gradients[-1]
        return last.clone()


def make_ways(preset: config.Preset, classes: int, device: torch.device) -> dict[str, Way]:
    """The authors' way, where they have one for this network and loss, and ours, by the names of their rows."""
    network = models.build(preset.model, classes).to(device)
    alternatives.open_gates(network)
    objective = objectives.build(preset.loss, IGNORED, network.align_corners)
    objective.check(network.output_names)
    objective.prepare(classes, network.feature_channels)
    objective = objective.to(device)

    def own_loss(outputs: Outputs, label_BHW: Tensor) -> Tensor:
        total: Tensor = objective(outputs, label_BHW)[0]
        return total

    ways = {}
    official_loss = official_objective(preset.loss, network.align_corners)
    head: Any = preset.model.head
    if official_loss and (official := alternatives.official_network(network, head.kind)):
        train = preset.train
        sgd = torch.optim.SGD(official.parameters(), 0.0, train.momentum, weight_decay=train.weight_decay)
        ways[OFFICIAL] = Way(official, official_loss, sgd, torch.contiguous_format)
    alternatives.use_layout(network, torch.channels_last)
    optimizer = make_optimizer(LossNetwork(network, objective), preset)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for name, (precision, recompute) in OURS.items():
        if hasattr(network.backbone, "recompute") or not recompute:
            ways[name] = Way(network, own_loss, optimizer, torch.channels_last, precision, recompute)
    return ways


def _rows(ways: dict[str, Way], batch: tuple[Tensor, Tensor], meter: Meter, convolution: dict[str, float]) -> list[Row]:
    calls = {name: partial(way.step, *batch) for name, way in ways.items()}
    results = []
    for name in [name for name in (OFFICIAL, "fp32") if name in ways]:
        # dropout alike
        torch.manual_seed(1)
        results.append([calls[name](), ways[name].gradient()])
    require_equal("fp32", results[-1], results[0], TOLERANCE)
    times = meter.alternate(calls)
    base = next(iter(times.values()))
    rows = []
    for name, time in times.items():
        tflop = count_operations(calls[name]) / 1e12
        rate = 1000 * tflop / time.median
        # the gradients of the round before would count as there already
        ways[name].optimizer.zero_grad(set_to_none=True)
        row: Row = {
            "size": tuple(batch[0].shape[2:]),
            "name": name,
            "what": DESCRIPTIONS[name],
            "step": time,
            "ratio": time.median / base.median,
            "memory": meter.peak(calls[name]),
            "tflop": tflop,
            "rate": rate,
            "floor": rate / convolution[ways[name].precision],
        }
        rows.append(row)
    return rows
