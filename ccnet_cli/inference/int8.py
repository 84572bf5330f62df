"""Layers of the engine in 8-bit integers, for the CPU: oneDNN's integer convolutions, and what lies between them.

Where there is much to do, minimal filtering takes the place of the 3x3 convolutions, as it does in floats.
Weights have a scale for each output channel, maps one scale and one zero for all (Jacob et al., CVPR 2018). What the
ranges are, and which layers stay in float32, is for calibration.py to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.inference.engine import Convolution
from ccnet_cli.models.backbones.resnet import Residual
from ccnet_cli.ops.cpu import integer_convolution as kernels

# the name of this precision, which is none of torch's types
INT8 = "int8"
# values that a thread quantises at once, so that they stay in the cache
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
        """The map (B, C, H, W), rounded to the nearest level, channels last."""
        x = x.contiguous(memory_format=torch.channels_last)
        quick = kernels.quantise(x, 1 / self.scale, self.zero + 0.5)
        if quick is not None:
            return Quantised(quick, self)
        levels = torch.empty_like(x, dtype=torch.uint8)
        values, into = (each.permute(0, 2, 3, 1).reshape(-1) for each in (x, levels))
        # integers leave out what is behind the point
        zero, block = torch.tensor(self.zero + 0.5), BLOCK * torch.get_num_threads()
        for part, out in zip(values.split(block), into.split(block), strict=True):
            out.copy_(torch.add(zero, part.float(), alpha=1 / self.scale).clamp_(0, LEVELS))
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
        scales, zeros = [own.scale for own in self.levels], [own.zero for own in self.levels]
        self.filters = kernels.transform_filters(weight, conv.widths, scales, zeros) if ranges.quick else None

    def forward(self, *inputs: Map, onto: Map | None = None) -> Map:
        """(B, C, H, W) of each input -> (B, outputs, h, w), added to `onto` in place where that is given."""
        last = len(inputs) - 1
        total: Map | None = onto.dequantise() if isinstance(onto, Quantised) and self.out is None else onto
        pairs = zip(inputs, self.levels, strict=True)
        integers = [x if isinstance(x, Quantised) else own.quantise(x) for x, own in pairs]
        # filters are for these levels alone, and their output can only be added to its own kind
        alike = total is None or isinstance(total, Tensor) == (self.out is None)
        if self.filters and alike and [x.levels for x in integers] == self.levels:
            return self._convolve_transformed(integers, total)
        for index, x in enumerate(integers):
            act = "relu" if index == last and self.slope == 0 else "none"
            total = self._convolve(x, index, self.bias if index == 0 else None, act, total)
        assert total is not None
        return F.leaky_relu_(total, self.slope) if self.slope and isinstance(total, Tensor) else total

    def _convolve_transformed(self, inputs: Sequence[Quantised], onto: Map | None) -> Map:
        assert self.filters is not None
        B, _, H, W = inputs[0].data.shape
        before = onto.data if isinstance(onto, Quantised) else onto
        dtype = torch.float32 if self.out is None else torch.uint8
        data = inputs[0].data.new_empty(B, len(self.bias), H, W, dtype=dtype) if before is None else before
        data = data.contiguous(memory_format=torch.channels_last)
        finish = kernels.Finish(self.bias, data, onto is not None, 1.0 if self.slope is None else self.slope)
        if self.out is not None:
            # levels, of which what is behind the point is left out
            low, unit = self.out.zero + 0.5, 1 / self.out.scale
            own = onto.levels if isinstance(onto, Quantised) else self.out
            bias, factor = self.bias * unit + low, own.scale * unit
            bias = bias if onto is None else bias - own.zero * factor
            low = low if self.slope == 0 else 0.0
            finish = kernels.Finish(bias, data, onto is not None, factor, low, unit)
        maps = [kernels.Input(x.data, x.levels.zero) for x in inputs]
        kernels.convolve(maps, self.filters, self.geometry[2][0], finish)
        return data if self.out is None else Quantised(data, self.out)

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
        result: Map = self.layer(floats(x))
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


class Pool(nn.Module):
    """The largest of 3 x 3 pixels at every other one, of floats or of integers, whose order is the same."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool

    @classmethod
    def takes(cls, layer: nn.Module) -> bool:
        """Whether it is that."""
        kind = (3, 2, 1, 1, False)
        own = ("kernel_size", "stride", "padding", "dilation", "return_indices")
        return isinstance(layer, nn.MaxPool2d) and tuple(getattr(layer, name) for name in own) == kind

    def forward(self, x: Map) -> Map:
        """(B, C, H, W) -> (B, C, h, w)."""
        if not isinstance(x, Quantised):
            pooled: Tensor = self.pool(x)
            return pooled
        data = x.data
        for axis, length in zip((2, 3), self.pool(data[:1, :1].float()).shape[2:], strict=True):
            data = _pool_axis(data, axis, length)
        return Quantised(data, x.levels)


def _pool_axis(x: Tensor, axis: int, length: int) -> Tensor:
    """The largest of three at every other place of an axis; beyond it lies the lowest integer."""
    shape = list(x.shape)
    shape[axis] = length
    out = torch.zeros(shape, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    even, odd = (x[(slice(None),) * axis + (slice(first, None, 2),)] for first in range(2))
    for part, first in ((even, 0), (odd, 0), (odd, 1)):
        count = min(part.shape[axis], length - first)
        into = out.narrow(axis, first, count)
        torch.maximum(into, part.narrow(axis, 0, count), out=into)
    return out


class FloatMaps(nn.Module):
    """A backbone whose maps are handed out in float32."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps, (B, C, h, w) each."""
        return [floats(each) for each in self.backbone(x)]


@dataclass
class Ranges:
    """What was measured of a convolution: its inputs' ranges, its output's, and the error that integers make.

    quick says that minimal filtering is to take its place.
    """

    inputs: list[tuple[float, float]]
    output: tuple[float, float]
    error: float = 0.0
    quick: bool = False

    def join(self, other: "Ranges") -> "Ranges":
        """Those of both."""

        def both(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
            return min(a[0], b[0]), max(a[1], b[1])

        inputs = list(map(both, self.inputs, other.inputs))
        error, quick = max(self.error, other.error), self.quick and other.quick
        return Ranges(inputs, both(self.output, other.output), error, quick)


def check_support(device: torch.device) -> None:
    """InputError for a GPU, EnvironmentFailure for a processor without fast products of 8-bit integers."""
    if device.type != "cpu":
        raise InputError("precision int8", f"is for the CPU, not for {device.type}", "use bf16, or --device cpu")
    have: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not any(have.get(name) for name in INSTRUCTIONS) or not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        why = "this processor has no instructions for products of 8-bit integers (VNNI), or this torch no use for them"
        raise EnvironmentFailure("precision int8", why, "use bf16 or fp32")


def floats(x: Map) -> Tensor:
    """A map in float32, whatever it is in."""
    return x.dequantise() if isinstance(x, Quantised) else x
