"""The engine in 8-bit integers, for the CPU: ranges measured on images, then oneDNN's integer convolutions.

Weights have a scale for each output channel, maps one scale and one zero for all (Jacob et al., CVPR 2018). Within the
backbone maps stay integers, and sums over a shortcut too; the first convolution, attention, softmax and classifier, and
what integers would spoil, stay in float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli.errors import EnvironmentFailure, InputError, notice
from ccnet_cli.inference.engine import Convolution, Engine
from ccnet_cli.models.backbones.resnet import Residual
from ccnet_cli.models.layers import FoldedStages

# the name of this precision, which is none of torch's types
INT8 = "int8"
# a map's range leaves out this part of its values at either end, which are few and far
OUTLIERS = 2e-5
# values of a map that are looked at
MAX_VALUES = 1 << 20
# of a convolution whose output's error, as a part of the output, is larger, integers would spoil too much
MAX_ERROR = 0.15
# narrower convolutions gain nothing
MIN_CHANNELS = 16
# values that are quantised at once, so that they stay in the cache
BLOCK = 1 << 18
LEVELS = 255
# sizes of maps whose packed weights a convolution keeps
MAX_PACKED = 4
INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "vnni")


@dataclass(frozen=True)
class Levels:
    """What the integers 0 to 255 of a map stand for: scale (level - zero)."""

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> "Levels":
        """Those of a range, which includes 0 exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-12) / LEVELS
        return cls(scale, round(-low / scale))

    def quantise(self, x: Tensor) -> "Quantised":
        """The map (B, C, H, W), rounded to the nearest levels, channels last."""
        x = x.contiguous(memory_format=torch.channels_last)
        levels = torch.empty_like(x, dtype=torch.uint8)
        values, into = (each.permute(0, 2, 3, 1).reshape(-1) for each in (x, levels))
        for part, out in zip(values.split(BLOCK), into.split(BLOCK), strict=True):
            out.copy_(part.float().mul(1 / self.scale).add_(self.zero).round_().clamp_(0, LEVELS))
        return Quantised(levels, self)


@dataclass(frozen=True)
class Quantised:
    """A map (B, C, H, W) of uint8 and what its integers stand for."""

    data: Tensor
    levels: Levels

    def dequantise(self) -> Tensor:
        """The map in float32."""
        return self.data.float().sub_(self.levels.zero).mul_(self.levels.scale)


Map = Tensor | Quantised


class Int8Convolution(nn.Module):
    """A convolution of the engine in integers; out is what its own output is quantised to, None for float32."""

    def __init__(self, conv: Convolution, ranges: "Ranges") -> None:
        super().__init__()
        weight = torch.cat([part.float() for part in conv.weights], dim=1)
        self.scales = weight.abs().amax(dim=(1, 2, 3)).clamp_(min=1e-12) / 127
        rounded = (weight / self.scales[:, None, None, None]).round_().to(torch.int8)
        self.levels = [Levels.of(*own) for own in ranges.inputs]
        self.bias, self.slope = conv.bias.float(), conv.slope
        self.geometry = (conv.stride, conv.padding, conv.dilation, 1)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.weights = [part.contiguous() for part in rounded.split(conv.widths, dim=1)]
        self.packed: dict[tuple[int, ...], Tensor] = {}
        self.range = ranges.output
        self.out: Levels | None = None

    def forward(self, *inputs: Map, onto: Map | None = None) -> Map:
        """(B, C, H, W) of each input -> (B, outputs, h, w), added to `onto` in place where that is given."""
        last = len(inputs) - 1
        total: Map | None = onto.dequantise() if isinstance(onto, Quantised) and self.out is None else onto
        for index, (x, own) in enumerate(zip(inputs, self.levels, strict=True)):
            x = x if isinstance(x, Quantised) else own.quantise(x)
            act = "relu" if index == last and self.slope == 0 else "none"
            total = self._convolve(x, index, self.bias if index == 0 else None, act, total)
        assert total is not None
        return F.leaky_relu_(total, self.slope) if self.slope and isinstance(total, Tensor) else total

    def _pack(self, x: Tensor, index: int) -> Tensor:
        """The weights as the operator wants them for a map of this size: in any other form they are slow."""
        key = (index, *x.shape)
        if key not in self.packed:
            while len(self.packed) >= MAX_PACKED:
                del self.packed[next(iter(self.packed))]
            own = self.levels[index]
            self.packed[key] = torch.ops.onednn.qconv_prepack(
                self.weights[index], self.scales, own.scale, own.zero, *self.geometry, list(x.shape)
            )
        return self.packed[key]

    def _convolve(self, x: Quantised, index: int, bias: Tensor | None, act: str, onto: Map | None) -> Map:
        own, out = x.levels, self.out
        operands = (x.data, own.scale, own.zero, self._pack(x.data, index), self.scales, self.zeros)
        target = (1.0, 0, torch.float32) if out is None else (out.scale, out.zero, torch.uint8)
        if onto is None:
            result = torch.ops.onednn.qconv2d_pointwise(*operands, bias, *self.geometry, *target, act, [], "")
        else:
            before = onto.levels if isinstance(onto, Quantised) else Levels(1.0, 0)
            data = onto.data if isinstance(onto, Quantised) else onto
            addition: Any = (before.scale, before.zero, "sum", 1.0, act, [], None)
            result = torch.ops.onednn.qconv2d_pointwise.binary(
                *operands, data, bias, *self.geometry, *target, *addition
            )
        return result if out is None else Quantised(result, out)


class Floated(nn.Module):
    """A layer that takes float32, after one that answers integers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Map) -> Map:
        """What the layer answers."""
        result: Map = self.layer(_floats(x))
        return result


class Entrance(nn.Module):
    """A residual block, whose input is quantised once for both its branches."""

    def __init__(self, block: Residual, levels: Levels) -> None:
        super().__init__()
        self.block, self.levels = block, levels

    def forward(self, x: Map) -> Map:
        """(B, inputs, H, W) -> (B, outputs, h, w)."""
        result: Map = self.block(x if isinstance(x, Quantised) else self.levels.quantise(x))
        return result


class FloatMaps(nn.Module):
    """A backbone whose maps are handed out in float32."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps, (B, C, h, w) each."""
        return [_floats(each) for each in self.backbone(x)]


@dataclass
class Ranges:
    """What was measured of a convolution: its inputs' ranges, its output's, and the error that integers make."""

    inputs: list[tuple[float, float]]
    output: tuple[float, float]
    error: float = 0.0


def check_support(device: torch.device) -> None:
    """InputError for a GPU, EnvironmentFailure for a processor without fast products of 8-bit integers."""
    if device.type != "cpu":
        raise InputError("precision int8", f"is for the CPU, not for {device.type}", "use bf16, or --device cpu")
    have: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not any(have.get(name) for name in INSTRUCTIONS) or not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        why = "this processor has no instructions for products of 8-bit integers (VNNI), or this torch no use for them"
        raise EnvironmentFailure("precision int8", why, "use bf16 or fp32")


@torch.no_grad()
def quantise(engine: Engine, images: Sequence[Tensor]) -> Engine:
    """The engine with integer convolutions, their ranges measured on normalised images (1, 3, H, W); says how alike.

    The same images give the same integers. The engine itself is changed, and must be in float32 on the CPU.
    """
    measured: dict[Convolution, list[Ranges]] = {}
    before = [_measure(engine, image, measured, index == 0) for index, image in enumerate(images)]
    means = {conv: _mean(ranges) for conv, ranges in measured.items() if _is_eligible(engine, conv)}
    suited = {conv: own for conv, own in means.items() if own.error <= MAX_ERROR}
    _replace_all(engine.head, suited)
    _replace_backbone(engine, suited)
    after = [engine(image).argmax(dim=1) for image in images]
    same = sum(int((old == new).sum()) for old, new in zip(before, after, strict=True))
    share = 100 * same / sum(old.numel() for old in before)
    number = sum(isinstance(module, Int8Convolution) for module in engine.modules())
    several = "image" if len(images) == 1 else "images"
    notice(
        f"int8: {number} of {len(measured)} convolutions, calibrated on {len(images)} {several}, "
        f"where {share:.2f} % of the cells keep their class"
    )
    return engine


def _floats(x: Map) -> Tensor:
    return x.dequantise() if isinstance(x, Quantised) else x


def _is_eligible(engine: Engine, conv: Convolution) -> bool:
    """Not the first of all, nor those without activation in the head, which make scores, queries and keys."""
    inside = any(conv is module for module in engine.backbone.modules())
    wide = min(conv.widths) >= MIN_CHANNELS and conv.groups == 1
    return wide and (inside or conv.slope is not None)


def _measure(engine: Engine, image: Tensor, measured: dict[Convolution, list[Ranges]], trial: bool) -> Tensor:
    """The classes (1, h, w) that the engine finds, while every convolution's ranges, and its error, are noted."""
    with _hooked(engine, measured, trial):
        classes: Tensor = engine(image).argmax(dim=1)
    return classes


@contextmanager
def _hooked(engine: Engine, measured: dict[Convolution, list[Ranges]], trial: bool) -> Iterator[None]:
    inputs: dict[nn.Module, tuple[Any, Tensor | None]] = {}

    def enter(conv: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        onto = named.get("onto")
        # the sum is written over it
        inputs[conv] = arguments, onto.clone() if trial and onto is not None else None

    def leave(conv: nn.Module, _: Any, out: Tensor) -> None:
        assert isinstance(conv, Convolution)
        arguments, onto = inputs.pop(conv)
        own = Ranges([_range(x) for x in arguments], _range(out))
        if trial and conv.groups == 1:
            other = _floats(Int8Convolution(conv, own)(*arguments, onto=onto))
            own.error = float((other - out).norm() / out.norm().clamp(min=1e-12))
        measured.setdefault(conv, []).append(own)

    hooks = []
    for conv in engine.convolutions:
        hooks += [conv.register_forward_pre_hook(enter, with_kwargs=True), conv.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _range(x: Tensor) -> tuple[float, float]:
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
    return Ranges([mean(column) for column in columns], mean([own.output for own in ranges]), error)


def _replace_all(module: nn.Module, suited: dict[Convolution, Ranges]) -> None:
    for name, child in module.named_children():
        if isinstance(child, Convolution) and child in suited:
            setattr(module, name, Int8Convolution(child, suited[child]))
        else:
            _replace_all(child, suited)


def _replace_backbone(engine: Engine, suited: dict[Convolution, Ranges]) -> None:
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
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        last = layer.block.last if isinstance(layer, Entrance) else layer
        if isinstance(last, Int8Convolution) and not last.slope:
            last.out = _entry_levels(following) if following else Levels.of(*last.range) if takes_integers else None
    converted = iter(layers)
    for row in rows:
        for index in range(len(row)):
            row[index] = next(converted)
    if not takes_integers:
        engine.backbone = FloatMaps(stages)


def _convert(layer: nn.Module, suited: dict[Convolution, Ranges]) -> nn.Module:
    """A layer in integers, if all of it suits."""
    if isinstance(layer, Convolution):
        return Int8Convolution(layer, suited[layer]) if layer in suited else Floated(layer)
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
