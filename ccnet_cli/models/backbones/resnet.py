"""Dilated ResNets, and a tiny backbone: image (B, 3, H, W) -> (c3, c4) at stride 8."""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccnet_cli import ops


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size at stride 1, and its batch normalisation."""
    conv = ops.Conv2d(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


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
        return self.relu(out)


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
        return self.relu(out)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*conv_norm(inputs, outputs, 1, stride))


class ResNet(nn.Module):
    """Strides 1, 2, 1, 1 and dilations 1, 1, 2, 4 in the four layers: output stride 8.

    width is that of layer1 (64 in the paper); `channels` tells those of (c3, c4). stem, dilation and pool are the
    choices of config.Model. With recompute, blocks keep only their input for backward and run again.
    """

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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, c3, h, w), (B, c4, h, w) at stride 8.

        n pixels give (n + 1) // 2 // 4 + 1 cells, or ceil(n / 8) where the max-pool rounds down.
        """
        for index in range(1, self.stem_depth + 1):
            x = self.relu(getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x)))
        x = self._run(self.layer2, self._run(self.layer1, self.maxpool(x)))
        c3 = self._run(self.layer3, x)
        return c3, self._run(self.layer4, c3)

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        for block in layer.children():
            recompute = self.recompute and self.training
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


def _stem(name: str, width: int) -> tuple[int, tuple[int, ...]]:
    """Kernel size and output channels of the stem's convolutions."""
    if name == "7x7":
        return 7, (width,)
    half = max(width // 2, 1)
    return 3, (width, width, 2 * width) if name == "deep" else (half, half, width)


class Tiny(nn.Module):
    """Four 3x3 convolutions for the built-in data: stride 8, and each output sees 31 x 31 pixels of the image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm_relu(3, width // 2, 2), *_conv_norm_relu(width // 2, width, 2))
        self.layer3 = nn.Sequential(*_conv_norm_relu(width, 2 * width, 2))
        self.layer4 = nn.Sequential(*_conv_norm_relu(2 * width, 2 * width, 1))
        self.channels = (2 * width, 2 * width)
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> two of (B, 2 width, h, w) at stride 8, sizes rounded up."""
        c3 = self.layer3(self.stem(x))
        return c3, self.layer4(c3)


def _conv_norm_relu(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [*conv_norm(inputs, outputs, 3, stride), nn.ReLU(inplace=True)]


def initialise(module: nn.Module) -> None:
    """Kaiming normal convolutions for training from scratch (ICCV 2015, He et al., equation 14, fan out)."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
BACKBONES = ("tiny", *RESNETS)


def build(
    name: str,
    width: int = 64,
    stem: str = "deep",
    dilation: str = "dilated",
    pool: str = "ceil",
    recompute: bool = False,
) -> ResNet | Tiny:
    """The backbone of that name, one of BACKBONES; tiny has no choices but its width."""
    if name == "tiny":
        return Tiny(width)
    return ResNet(*RESNETS[name], width, stem, dilation, pool, recompute)
