"""What a training step costs here: the authors' eager step and ours, in one alternating run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ccnet_cli import config
from ccnet_cli.bench import alternatives, measure
from ccnet_cli.bench.alternatives import Official
from ccnet_cli.bench.attention import DTYPES, compare
from ccnet_cli.bench.loss import IGNORED, official_objective, own_objective
from ccnet_cli.bench.measure import Sheet, Timing
from ccnet_cli.models import network as models
from ccnet_cli.training import trainer

# B batch, H height, W width of the images

OFFICIAL = "official"
# the row, its precision, and whether activations are computed again
OURS = {
    "fp32": ("fp32", False),
    "bf16": ("bf16", False),
    "fp32 recomputed": ("fp32", True),
    "bf16 recomputed": ("bf16", True),
}
TELLS = {
    OFFICIAL: "the authors' way, eager: channels first, lines copied, scores enlarged whole, mining through numpy",
    "fp32": "ours: channels last, Winograd's convolutions, loss in bands, fused optimiser",
    "bf16": "the same under autocast",
    "fp32 recomputed": "ours, the backbone's activations computed again in backward",
    "bf16 recomputed": "the same under autocast",
}
# relative, of the loss and the classifier's gradient after a hundred float32 layers
TOLERANCE = 1e-2


@dataclass(frozen=True)
class Row:
    """One way to take a step: forward with the auxiliary head, loss, backward, optimiser.

    ratio is its median over the authors'; memory is the peak above weights and optimiser state, gradients included, in
    MiB; rate (TFLOP/s) is of the operations that torch counts in it, and floor the fraction of what a convolution
    reaches in the same run and precision.
    """

    size: tuple[int, int]
    name: str
    what: str
    step: Timing
    ratio: float
    memory: float
    tflop: float
    rate: float
    floor: float


@dataclass(frozen=True)
class Report:
    """What was measured, where, and how; convolution (TFLOP/s, by precision) is the rate of a large one alone."""

    preset: str
    batch: int
    repeats: int
    device: str
    threads: int
    torch: str
    convolution: dict[str, float]
    rows: tuple[Row, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON; "step" is milliseconds, "memory" MiB."""
        rows = [asdict(row) | {"size": list(row.size)} for row in self.rows]
        return asdict(self) | {"rows": rows}

    def sheets(self) -> Iterator[Sheet]:
        """What is printed of it."""
        rows = [
            (
                f"{row.size[0]}x{row.size[1]}",
                row.name,
                *row.step.cells(0),
                f"{row.ratio:.2f}",
                f"{row.memory:.0f}",
                f"{row.tflop:.2f}",
                f"{row.rate:.3f}",
                f"{row.floor:.0%}",
                row.what,
            )
            for row in self.rows
        ]
        rates = ", ".join(f"{name} {rate:.3f}" for name, rate in self.convolution.items())
        title = f"{self.preset}, {self.batch} images, {self.device}, {self.threads} threads, torch "
        title += (
            f"{self.torch}, median, least and greatest of {self.repeats}; ratio to official, MiB at the peak above "
        )
        title += f"weights and optimiser; floor: a 3x3 convolution alone, TFLOP/s here: {rates}"
        columns = ("size", "step", "ms", "least", "greatest", "ratio", "MiB", "TFLOP", "TFLOP/s", "of floor", "")
        yield Sheet(title, columns, rows)


def step(
    preset: config.Preset,
    sizes: Sequence[tuple[int, int]] = ((385, 385),),
    batch: int = 2,
    classes: int = 19,
    threads: int | None = None,
    repeats: int = 3,
    device: str = "auto",
) -> Report:
    """Measure whole steps of the preset's model, loss and optimiser on made-up images, at every size of these.

    In each round every row runs once, at learning rate 0: all rounds compute the same. The float32 loss and the
    classifier's gradient are compared with the authors' first, and nothing is timed if they are wrong.
    """
    place = models.device(device)
    with measure.threads(threads) as count:
        torch.manual_seed(0)
        official, ours = (_Step(preset, classes, place, way) for way in (True, False))
        ours.model.load_state_dict(official.model.state_dict())
        convolution = {name: measure.convolution_rate(place, DTYPES[name]) for name in ("fp32", "bf16")}
        rows = tuple(
            row for size in sizes for row in _rows(official, ours, size, batch, classes, repeats, place, convolution)
        )
        return Report(preset.name, batch, repeats, str(place), count, torch.__version__, convolution, rows)


def _scores(model: models.CCNet, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
    outputs = model.outputs(x_BCHW)
    return outputs.main, outputs.auxiliary.get("auxiliary")


class _Step:
    """A model with its optimiser, the authors' way or ours, and how it takes a step; the learning rate is 0."""

    def __init__(self, preset: config.Preset, classes: int, device: torch.device, official: bool) -> None:
        model = models.build(preset.model, classes).to(device)
        rcca = model.head.rcca
        if rcca is not None:
            # at 0 the attention would be the identity, and a wrong one not be seen
            rcca.attention.gamma.data.fill_(0.5)
        self.objective: Callable[..., Tensor] = own_objective(model.auxiliary is not None)
        self.layout = torch.channels_last
        if official:
            self.objective, self.layout = official_objective, torch.contiguous_format
            alternatives.plain(model)
            if rcca is not None:
                model.head.rcca = Official(rcca.attention, rcca.recurrence)
        self.model = model.to(memory_format=self.layout)
        train = preset.train
        self.optimizer = (
            torch.optim.SGD(model.parameters(), 0.0, train.momentum, weight_decay=train.weight_decay)
            if official
            else trainer.make_optimizer(model, preset)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0

    def take(self, x_BCHW: Tensor, label_BHW: Tensor, precision: str = "fp32", recompute: bool = False) -> Tensor:
        """The loss, once the optimiser has moved."""
        self.model.backbone.recompute = recompute
        self.optimizer.zero_grad(set_to_none=True)
        x_BCHW = x_BCHW.contiguous(memory_format=self.layout)
        with torch.autocast(x_BCHW.device.type, DTYPES[precision], enabled=precision != "fp32"):
            loss = self.objective(*_scores(self.model, x_BCHW), label_BHW)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def gradient(self) -> Tensor:
        """That of the last convolution's weights."""
        gradient = self.model.head.bottleneck[-1].weight.grad
        assert gradient is not None
        return gradient


def _rows(
    official: _Step,
    ours: _Step,
    size: tuple[int, int],
    batch: int,
    classes: int,
    repeats: int,
    device: torch.device,
    convolution: dict[str, float],
) -> list[Row]:
    x_BCHW = 60 * torch.randn(batch, 3, *size, device=device)
    label_BHW = torch.randint(0, classes, (batch, *size), device=device)
    label_BHW[torch.rand(label_BHW.shape, device=device) < 0.1] = IGNORED
    calls: dict[str, Callable[[], Tensor]] = {OFFICIAL: lambda: official.take(x_BCHW, label_BHW)}
    for name, (precision, recompute) in OURS.items():
        calls[name] = partial(ours.take, x_BCHW, label_BHW, precision, recompute)
    found = []
    for name, taken in ((OFFICIAL, official), ("fp32", ours)):
        # dropout alike
        torch.manual_seed(1)
        found.append([calls[name](), taken.gradient().clone()])
    compare("fp32", found[1], found[0], TOLERANCE)
    timings = dict(zip(calls, measure.alternate(list(calls.values()), repeats, device), strict=True))
    rows = []
    for name, timing in timings.items():
        tflop = measure.counted(calls[name]) / 1e12
        rate = 1000 * tflop / timing.median
        # the gradients of the round before would count as there already
        (official if name == OFFICIAL else ours).optimizer.zero_grad(set_to_none=True)
        rows.append(
            Row(
                size=size,
                name=name,
                what=TELLS[name],
                step=timing,
                ratio=timing.median / timings[OFFICIAL].median,
                memory=measure.peak(calls[name], device) / 2**20,
                tflop=tflop,
                rate=rate,
                floor=rate / convolution[OURS.get(name, ("fp32", False))[0]],
            )
        )
    return rows
