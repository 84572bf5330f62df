"""Dilated ResNets: image (B, 3, H, W) -> [c3, c4] at stride 8."""

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

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, width, 3, stride, dilation)
        self.conv2, self.bn2 = conv_norm(width, width, 3, 1, dilation)
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

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, width, 1)
        self.conv2, self.bn2 = conv_norm(width, width, 3, stride, dilation)
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
    """Strides 1, 2, 1, 1 and dilations 1, 1, 2, 4 in the four layers: output stride 8.

    width is that of layer1 (64 in the paper); `channels` are those of c3 and c4. stem, dilation and pool are the keys
    of the settings. With recompute, blocks keep only their input for backward and run again.
    """

    stride = 8

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        width: int = 64,
        stem: str = "deep",
        dilation: str = "dilated",
        pool: str = "ceil",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        kernel, stem_widths = _stem(stem, width)
        inputs = 3
        for index, outputs in enumerate(stem_widths, start=1):
            conv, norm = conv_norm(inputs, outputs, kernel, stride=2 if index == 1 else 1)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", norm)
            inputs = outputs
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=pool == "ceil")
        self.stem_depth = len(stem_widths)
        for index, (depth, stride, rate) in enumerate(zip(depths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            outputs = width * 2**index
            # contracted: the block that would have had the stride still sees the grid as the layer before it did
            first = max(rate // 2, 1) if dilation == "contracted" else rate
            blocks = [block(inputs, outputs, stride, first)]
            inputs = outputs * block.expansion
            blocks += [block(inputs, outputs, 1, rate) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.channels = (inputs // 2, inputs)
        self.recompute = recompute
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> [(B, c3, h, w), (B, c4, h, w)] at stride 8.

        n pixels give (n + 1) // 2 // 4 + 1 cells, or ceil(n / 8) where the max-pool rounds down.
        """
        for index in range(1, self.stem_depth + 1):
            x = self.relu(getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x)))
        x = self._run(self.layer2, self._run(self.layer1, self.maxpool(x)))
        c3 = self._run(self.layer3, x)
        return [c3, self._run(self.layer4, c3)]

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
    s = settings
    return ResNet(*RESNETS[s.kind], s.width, s.stem, s.dilation, s.pool, recompute)
