"""What a training step costs here: the authors' eager step and ours, in one alternating run."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ccnet_cli import config
from ccnet_cli.bench import alternatives
from ccnet_cli.bench.alternatives import Official
from ccnet_cli.bench.loss import IGNORED, official_objective, own_objective
from ccnet_cli.bench.meter import Meter, count_operations, open_meter, require_equal
from ccnet_cli.bench.report import Column, Report, Row, Table, spread_columns
from ccnet_cli.bench.request import Run
from ccnet_cli.models import network as models
from ccnet_cli.models.network import PRECISIONS
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
        official, ours = (_Step(preset, classes, meter.device, way) for way in (True, False))
        ours.model.load_state_dict(official.model.state_dict())
        convolution = {name: meter.convolution_rate(PRECISIONS[name]) for name in ("fp32", "bf16")}
        rows = []
        for size in sizes:
            x_BCHW = 60 * torch.randn(batch, 3, *size, device=meter.device)
            label_BHW = torch.randint(0, classes, (batch, *size), device=meter.device)
            label_BHW[torch.rand(label_BHW.shape, device=meter.device) < 0.1] = IGNORED
            rows += _rows(official, ours, (x_BCHW, label_BHW), meter, convolution)
        rates = ", ".join(f"{name} {rate:.3f}" for name, rate in convolution.items())
        title = f"{preset.name}, {batch} images, {meter}, median, least and greatest of {meter.repeats}; ratio to "
        title += "official, MiB at the peak above weights and optimiser; floor: a 3x3 convolution alone, TFLOP/s here: "
        values = {"preset": preset.name, "batch": batch, **meter.values(), "convolution": convolution, "rows": rows}
        return Report(values, [Table(title + rates, COLUMNS, rows)])


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
        with torch.autocast(x_BCHW.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
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
    official: _Step, ours: _Step, batch: tuple[Tensor, Tensor], meter: Meter, convolution: dict[str, float]
) -> list[Row]:
    calls: dict[str, Callable[[], Tensor]] = {OFFICIAL: partial(official.take, *batch)}
    for name, (precision, recompute) in OURS.items():
        calls[name] = partial(ours.take, *batch, precision, recompute)
    results = []
    for name, way in ((OFFICIAL, official), ("fp32", ours)):
        # dropout alike
        torch.manual_seed(1)
        results.append([calls[name](), way.gradient().clone()])
    require_equal("fp32", results[1], results[0], TOLERANCE)
    times = meter.alternate(calls)
    rows = []
    for name, time in times.items():
        tflop = count_operations(calls[name]) / 1e12
        rate = 1000 * tflop / time.median
        # the gradients of the round before would count as there already
        (official if name == OFFICIAL else ours).optimizer.zero_grad(set_to_none=True)
        rows.append(
            {
                "size": tuple(batch[0].shape[2:]),
                "name": name,
                "what": DESCRIPTIONS[name],
                "step": time,
                "ratio": time.median / times[OFFICIAL].median,
                "memory": meter.peak(calls[name]),
                "tflop": tflop,
                "rate": rate,
                "floor": rate / convolution[OURS.get(name, ("fp32", False))[0]],
            }
        )
    return rows
