"""ResNets: image (B, 3, H, W) -> [c1, c2, c3, c4], or the deepest of these; dilated, the last three have stride 8."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccnet_cli.models.backbones import ResNet as Settings
from ccnet_cli.models.layers import FoldedStages, Make, conv_norm, initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, width, 3, stride, dilations[0])
        self.conv2, self.bn2 = conv_norm(width, width, 3, 1, dilations[1])
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return torch.relu_(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, dilated) and 1x1 convolutions around a shortcut (ResNet-50 and -101)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, width, 1)
        self.conv2, self.bn2 = conv_norm(width, width, 3, stride, dilations[0])
        self.conv3, self.bn3 = conv_norm(width, width * self.expansion, 1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 4 width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return torch.relu_(out)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*conv_norm(inputs, outputs, 1, stride))


class ResNet(nn.Module):
    """Strides 1, 2, 1, 1 and dilations 1, 1, 2, 4 in the four layers where the output stride is 8.

    `channels` and `strides` are those of all four maps, of which the `levels` deepest are answered. With recompute,
    blocks keep only their input for backward and run again.
    """

    levels = 2

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        settings: Settings,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.stride, width = settings.stride, settings.width
        kernel, stem_widths = _stem(settings.stem, width)
        inputs = 3
        for index, outputs in enumerate(stem_widths, start=1):
            conv, norm = conv_norm(inputs, outputs, kernel, stride=2 if index == 1 else 1)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", norm)
            inputs = outputs
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=settings.pool == "ceil")
        self.stem_depth = len(stem_widths)
        strides, channels = [4], []
        for index, depth in enumerate(depths):
            full = 4 * 2**index
            rates = _rates(depth, full // min(full, self.stride), settings, last=index == 3)
            strides.append(min(full, self.stride))
            blocks = []
            for at, rate in enumerate(rates):
                blocks.append(block(inputs, width * 2**index, 1 if at else strides[-1] // strides[-2], rate))
                inputs = width * 2**index * block.expansion
            channels.append(inputs)
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.channels, self.strides = tuple(channels), tuple(strides[1:])
        self.recompute = recompute
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the maps (B, C, h, w), the deepest last.

        At stride 8, n pixels give (n + 1) // 2 // 4 + 1 cells, or ceil(n / 8) where the max-pool rounds down.
        """
        for index in range(1, self.stem_depth + 1):
            x = self.relu(getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x)))
        x, maps = self.maxpool(x), []
        for left, layer in zip((4, 3, 2, 1), (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            x = self._run(layer, x)
            if left <= self.levels:
                maps.append(x)
        return maps

    def fold(self, make: Make, levels: int = 2) -> nn.Module:
        """Itself for inference; of its maps, the `levels` deepest."""
        depth = range(1, self.stem_depth + 1)
        stem = [make(getattr(self, f"conv{i}"), getattr(self, f"bn{i}"), self.relu) for i in depth]
        layers: Any = (self.layer1, self.layer2, self.layer3, self.layer4)
        first, *rest = ([Residual(block, make) for block in layer.children()] for layer in layers)
        return FoldedStages([[*stem, copy.copy(self.maxpool), *first], *rest], levels)

    def _run(self, layer: Any, x: Tensor) -> Tensor:
        for block in layer.children():
            recompute = self.recompute and self.training
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


class Residual(nn.Module):
    """A block of folded convolutions, which writes its result over its input where its shortcut has no convolution."""

    def __init__(self, block: nn.Module, make: Make) -> None:
        super().__init__()
        count = 3 if hasattr(block, "conv3") else 2
        *first, last = (
            make(getattr(block, f"conv{i}"), getattr(block, f"bn{i}"), block.relu) for i in range(1, count + 1)
        )
        self.first = nn.Sequential(*first)
        self.last = last
        shortcut: Any = block.downsample
        self.shortcut = nn.Identity() if isinstance(shortcut, nn.Identity) else make(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        result: Tensor = self.last(self.first(x), onto=self.shortcut(x))
        return result


def _rates(depth: int, rate: int, settings: Settings, last: bool) -> list[tuple[int, int]]:
    """The dilations of the 3x3 convolutions of each block of a layer."""
    if last and settings.multi_grid:
        return [((4, 8, 16)[min(index, 2)],) * 2 for index in range(depth)]
    # contracted: the block that would have had the stride still sees the grid as the layer before it did
    first = rate if settings.dilation == "dilated" else max(rate // 2, 1)
    if settings.dilation == "mmseg":
        return [(first, 1), *[(rate, 1)] * (depth - 1)]
    return [(first, rate if settings.dilation == "mit" else first), *[(rate, rate)] * (depth - 1)]


def _stem(name: str, width: int) -> tuple[int, tuple[int, ...]]:
    """Kernel size and output channels of the stem's convolutions."""
    if name == "7x7":
        return 7, (width,)
    half = max(width // 2, 1)
    return 3, (width, width, 2 * width) if name == "deep" else (half, half, width)


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def build(settings: Settings, recompute: bool = False) -> ResNet:
    """The ResNet of these settings, freshly initialised."""
    return ResNet(*RESNETS[settings.kind], settings, recompute)
