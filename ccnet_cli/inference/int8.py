"""Layers of the engine in 8-bit integers, for the CPU: oneDNN's integer convolutions, and what lies between them.

Weights have a scale for each output channel, maps one scale and one zero for all (Jacob et al., CVPR 2018). What the
ranges are, and which layers stay in float32, is for calibration.py to say.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.inference.engine import Convolution
from ccnet_cli.models.backbones.resnet import Residual

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
    """What was measured of a convolution: its inputs' ranges, its output's, and the error that integers make."""

    inputs: list[tuple[float, float]]
    output: tuple[float, float]
    error: float = 0.0

    def join(self, other: "Ranges") -> "Ranges":
        """Those of both."""

        def both(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
            return min(a[0], b[0]), max(a[1], b[1])

        inputs = list(map(both, self.inputs, other.inputs))
        return Ranges(inputs, both(self.output, other.output), max(self.error, other.error))


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
