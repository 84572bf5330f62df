"""From the engine in floats to the engine in integers: ranges measured on images, and the layers that integers spoil.

Within the backbone maps stay integers, and sums over a shortcut too. The first convolution, queries and keys, softmax
and classifier stay in float32, and so do layers without which the classes are those of before.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccnet_cli.errors import notice
from ccnet_cli.inference.engine import Convolution, Engine
from ccnet_cli.inference.int8 import Entrance, Floated, FloatMaps, Int8Convolution, Levels, Pool, Ranges, floats
from ccnet_cli.inference.metrics import Confusion
from ccnet_cli.inference.views import upsample
from ccnet_cli.models.attention import FoldedPasses, SplitProjection
from ccnet_cli.models.backbones.resnet import Residual
from ccnet_cli.models.layers import FoldedStages
from ccnet_cli.ops.cpu import integer_convolution as kernels

# a map's range leaves out this part of its values at either end, which are few and far
OUTLIERS = 2e-5
# values of a map that are looked at
MAX_VALUES = 1 << 20
# of a convolution whose output's error, as a part of the output, is larger, integers would spoil too much
MAX_ERROR = 0.15
# narrower convolutions gain nothing
MIN_CHANNELS = 16
# what integers may cost: of the mean IoU where there are labels, and of cells that keep their class where there are not
MAX_IOU_LOSS, MAX_CHANGED = 0.003, 0.01
# pixels of a side of the picture on which layers are tried one by one
TRIAL_SIDE = 257


@dataclass(frozen=True)
class Example:
    """The network's input (1, 3, H, W) and, where there is one, the label (H, W) uint8, 255 ignored."""

    input: Tensor
    label: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """The classes of the cells of each example, and the mean IoU over those with labels."""

    classes: list[Tensor]
    miou: float | None

    @classmethod
    def of(cls, engine: nn.Module, examples: Sequence[Example]) -> "Answer":
        """The engine's."""
        classes, confusion = [], None
        for example in examples:
            scores = engine(example.input)
            classes.append(scores.argmax(dim=1))
            if example.label is not None:
                confusion = confusion or Confusion(scores.shape[1])
                height, width = example.label.shape
                whole = upsample(scores[0], (height, width), bool(engine.align_corners))
                confusion.merge(whole.compare(example.label)[1])
        return cls(classes, confusion.miou() if confusion and confusion.matrix.any() else None)

    def changed(self, other: "Answer") -> float:
        """The fraction of cells whose class is another one."""
        pairs = zip(self.classes, other.classes, strict=True)
        return sum(int((a != b).sum()) for a, b in pairs) / sum(each.numel() for each in self.classes)

    def allows(self, other: "Answer") -> bool:
        """Whether the other one is as good as this, which is in floats."""
        if self.miou is None or other.miou is None:
            return self.changed(other) <= MAX_CHANGED
        return self.miou - other.miou <= MAX_IOU_LOSS


@torch.no_grad()
def quantise(engine: Engine, examples: Sequence[Example], search: bool = True) -> Engine:
    """The engine with integer convolutions, their ranges measured on examples; says what they cost and what is left.

    The engine must be in float32 on the CPU. Where integers cost too much (see Answer.allows), the layers that cost
    most stay in float32, as few as are needed; without search, they do not. The same examples give the same integers.
    """
    _split_projections(engine)
    measured: dict[Convolution, list[Ranges]] = {}
    for index, example in enumerate(examples):
        for conv, own in _measure(engine, example.input, trial=index == 0).items():
            measured.setdefault(conv, []).append(own)
    exact = Answer.of(engine, examples)
    means = {conv: _mean(ranges) for conv, ranges in measured.items() if _is_eligible(engine, conv)}
    suited = {conv: own for conv, own in means.items() if own.error <= MAX_ERROR}
    plan = _Plan(engine, suited)
    result, kept = plan.build([]), list[str]()
    answer = Answer.of(result, examples)
    if search and not exact.allows(answer):
        result, answer, kept = _keep_worst(plan, examples, exact)
    number = sum(isinstance(module, Int8Convolution) for module in result.modules())
    several = "image" if len(examples) == 1 else "images"
    text = f"int8: {number} of {len(measured)} convolutions, calibrated on {len(examples)} {several}, "
    text += f"where {100 * (1 - exact.changed(answer)):.2f} % of the cells keep their class"
    if exact.miou is not None and answer.miou is not None:
        text += f"; mIoU {100 * answer.miou:.2f} there, {100 * exact.miou:.2f} in fp32"
    notice(f"{text}; in fp32 stay {', '.join(kept)}" if kept else text)
    return result


class _Plan:
    """An engine in floats, which layers suit integers, by unit (a residual block, or one convolution), and its builds.

    Builds share all weights.
    """

    def __init__(self, engine: Engine, suited: dict[Convolution, Ranges]) -> None:
        self.engine, self.suited = engine, suited
        self.units: dict[str, list[Convolution]] = {}
        blocks = [name for name, module in engine.named_modules() if isinstance(module, Residual)]
        for name, module in engine.named_modules():
            if isinstance(module, Convolution) and module in suited:
                own = next((block for block in blocks if name.startswith(f"{block}.")), name)
                self.units.setdefault(own, []).append(module)
        self.integers = {conv: Int8Convolution(conv, own) for conv, own in suited.items()}

    def build(self, kept: Sequence[str]) -> Engine:
        """The engine in integers, but for these units."""
        self.engine.__dict__.pop("convolutions", None)
        memo: dict[int, Any] = {id(each): each for each in self.engine.parameters()}
        built = copy.deepcopy(self.engine, memo)
        floating = {conv for unit in kept for conv in self.units[unit]}
        rest = {memo[id(conv)]: copy.copy(own) for conv, own in self.integers.items() if conv not in floating}
        _replace_all(built.head, rest)
        _replace_backbone(built, rest)
        built.__dict__.pop("convolutions", None)
        return built

    def harm(self, x: Tensor) -> dict[str, float]:
        """How far each unit's integers alone move the scores of a picture, (1, 3, H, W)."""
        exact = self.engine(x)
        return {name: float((self._answer(x, convs) - exact).norm()) for name, convs in self.units.items()}

    def _answer(self, x: Tensor, convs: Sequence[Convolution]) -> Tensor:
        for conv in convs:
            conv.__dict__["forward"] = self._in_integers(conv)
        try:
            scores: Tensor = self.engine(x)
        finally:
            for conv in convs:
                del conv.__dict__["forward"]
        return scores

    def _in_integers(self, conv: Convolution) -> Callable[..., Tensor]:
        own = copy.copy(self.integers[conv])
        return lambda *inputs, onto=None: floats(own(*inputs, onto=onto))


def _keep_worst(plan: _Plan, examples: Sequence[Example], exact: Answer) -> tuple[Engine, Answer, list[str]]:
    """As few units in floats as make the answers good enough, those that do most harm first."""
    harm = plan.harm(_middle(examples[0].input))
    ranked = sorted(harm, key=lambda name: -harm[name])
    fewest, most = 1, len(ranked)
    while fewest < most:
        count = (fewest + most) // 2
        if exact.allows(Answer.of(plan.build(ranked[:count]), examples)):
            most = count
        else:
            fewest = count + 1
    kept = ranked[:most]
    result = plan.build(kept)
    return result, Answer.of(result, examples), kept


def _middle(x: Tensor) -> Tensor:
    top, left = (max(0, (side - TRIAL_SIDE) // 2) for side in x.shape[2:])
    return x[:, :, top : top + TRIAL_SIDE, left : left + TRIAL_SIDE]


def _split_projections(engine: Engine) -> None:
    for module in engine.modules():
        if isinstance(module, FoldedPasses) and isinstance(module.project, Convolution):
            joined, (query, key, value) = module.project, module.widths
            module.project = SplitProjection(joined.narrow(0, query + key), joined.narrow(query + key, value))
    engine.__dict__.pop("convolutions", None)


def _is_eligible(engine: Engine, conv: Convolution) -> bool:
    """Not the first of all, nor those without activation in the head, but for values: the rest are scores and such."""
    inside = any(conv is module for module in engine.backbone.modules())
    values = any(isinstance(module, SplitProjection) and conv is module.values for module in engine.head.modules())
    wide = min(conv.widths) >= MIN_CHANNELS and conv.groups == 1
    return wide and (inside or values or conv.slope is not None)


def _measure(engine: Engine, image: Tensor, trial: bool) -> dict[Convolution, Ranges]:
    """Every convolution's ranges in one image and, in a trial, the error that integers make."""
    measured: dict[Convolution, Ranges] = {}
    with _hooked(engine, measured, trial):
        engine(image)
    return measured


@contextmanager
def _hooked(engine: Engine, measured: dict[Convolution, Ranges], trial: bool) -> Iterator[None]:
    inputs: dict[nn.Module, tuple[Any, Tensor | None]] = {}

    def enter(conv: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        onto = named.get("onto")
        # the sum is written over it
        inputs[conv] = arguments, onto.clone() if trial and onto is not None else None

    def leave(conv: nn.Module, _: Any, out: Tensor) -> None:
        assert isinstance(conv, Convolution)
        arguments, onto = inputs.pop(conv)
        own = Ranges([measure_range(x) for x in arguments], measure_range(out))
        own.quick = conv.quick and kernels.is_faster(conv.widths, len(conv.bias))
        if trial and conv.groups == 1:
            other = floats(Int8Convolution(conv, own)(*arguments, onto=onto))
            own.error = float((other - out).norm() / out.norm().clamp(min=1e-12))
        # of one that runs several times, all that it saw
        measured[conv] = own.join(measured[conv]) if conv in measured else own

    hooks = []
    for conv in engine.convolutions:
        hooks += [conv.register_forward_pre_hook(enter, with_kwargs=True), conv.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def measure_range(x: Tensor) -> tuple[float, float]:
    """Low and high of a map, without the few values far out."""
    flat = x.permute(0, 2, 3, 1).reshape(-1)
    # an odd step goes through all channels
    values = flat[:: flat.numel() // MAX_VALUES | 1].float()
    out = int(OUTLIERS * values.numel())
    least = values.topk(out + 1, largest=False).values[-1]
    return float(least), float(values.topk(out + 1).values[-1])


def _mean(ranges: Sequence[Ranges]) -> Ranges:
    """The mean of what several images gave."""
    columns = zip(*(own.inputs for own in ranges), strict=True)

    def mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
        low, high = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
        return low, high

    error = max(own.error for own in ranges)
    quick = all(own.quick for own in ranges)
    return Ranges([mean(column) for column in columns], mean([own.output for own in ranges]), error, quick)


def _replace_all(module: nn.Module, suited: Mapping[Convolution, Int8Convolution]) -> None:
    for name, child in module.named_children():
        if isinstance(child, Convolution) and child in suited:
            setattr(module, name, suited[child])
        else:
            _replace_all(child, suited)


def _replace_backbone(engine: Engine, suited: Mapping[Convolution, Int8Convolution]) -> None:
    """Replace a backbone of stages, whose layers hand integers to each other, or any other one layer by layer."""
    stages = engine.backbone
    if not isinstance(stages, FoldedStages):
        _replace_all(stages, suited)
        return
    rows: list[Any] = [stages.trunk, *stages.rest]
    layers = [_convert(layer, suited) for row in rows for layer in row]
    # parts of the head that alone read the maps, where it says so
    readers = [getattr(engine.head, name) for name in getattr(engine.head, "readers", ())]
    takes_integers = bool(readers) and all(isinstance(reader, Int8Convolution) for reader in readers)
    wanted: Levels | None = None
    for layer in reversed(layers):
        last = layer.block.last if isinstance(layer, Entrance) else layer
        if isinstance(last, Int8Convolution) and not last.slope:
            last.out = Levels.of(*last.range) if layer is layers[-1] and takes_integers else wanted
        # pooled integers are those of before
        wanted = wanted if isinstance(layer, Pool) else _entry_levels(layer)
    converted = iter(layers)
    for row in rows:
        for index in range(len(row)):
            row[index] = next(converted)
    if not takes_integers:
        engine.backbone = FloatMaps(stages)


def _convert(layer: nn.Module, suited: Mapping[Convolution, Int8Convolution]) -> nn.Module:
    """A layer in integers, if all of it suits."""
    if Pool.takes(layer):
        return Pool(layer)  # type: ignore[arg-type]
    if isinstance(layer, Convolution):
        return suited[layer] if layer in suited else Floated(layer)
    if not isinstance(layer, Residual) or not all(
        part in suited for part in layer.modules() if isinstance(part, Convolution)
    ):
        return Floated(layer)
    _replace_all(layer, suited)
    convs: list[Any] = [*layer.first, layer.last]
    for conv, following in pairwise(convs):
        conv.out = following.levels[0]
    if isinstance(layer.shortcut, Int8Convolution):
        layer.shortcut.out = Levels.of(*layer.shortcut.range)
    return Entrance(layer, convs[0].levels[0])


def _entry_levels(layer: nn.Module) -> Levels | None:
    """What a layer takes its input in; None for float32."""
    if isinstance(layer, Entrance):
        return layer.levels
    return layer.levels[0] if isinstance(layer, Int8Convolution) else None
