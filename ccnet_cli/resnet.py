"""Dilated ResNets with the deep stem, and a tiny backbone: image (B, 3, H, W) -> (c3, c4) at stride 8."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size at stride 1, and its batch normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
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
    """Strides 1, 2, 1, 1 and dilations 1, 1, 2, 4 in every block of the four layers: output stride 8.

    width is that of layer1 (64 in the paper); `channels` tells those of (c3, c4). With recompute, blocks keep only
    their input for backward and run again.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        width: int = 64,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(3, width, 3, stride=2)
        self.conv2, self.bn2 = conv_norm(width, width)
        self.conv3, self.bn3 = conv_norm(width, 2 * width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        inputs = 2 * width
        for index, (depth, stride, dilation) in enumerate(zip(depths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            outputs = width * 2**index
            blocks = [block(inputs, outputs, stride, dilation)]
            inputs = outputs * block.expansion
            blocks += [block(inputs, outputs, 1, dilation) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.channels = (inputs // 2, inputs)
        self.recompute = recompute
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, c3, h, w), (B, c4, h, w) at stride 8: n pixels give (n + 1) // 2 // 4 + 1 cells."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.relu(self.bn3(self.conv3(x)))
        x = self._run(self.layer2, self._run(self.layer1, self.maxpool(x)))
        c3 = self._run(self.layer3, x)
        return c3, self._run(self.layer4, c3)

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        for block in layer.children():
            recompute = self.recompute and self.training
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


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


BACKBONES: dict[str, Callable[[int, bool], ResNet | Tiny]] = {
    "tiny": lambda width, recompute: Tiny(width),
    "resnet18": lambda width, recompute: ResNet(BasicBlock, (2, 2, 2, 2), width, recompute),
    "resnet50": lambda width, recompute: ResNet(Bottleneck, (3, 4, 6, 3), width, recompute),
    "resnet101": lambda width, recompute: ResNet(Bottleneck, (3, 4, 23, 3), width, recompute),
}
