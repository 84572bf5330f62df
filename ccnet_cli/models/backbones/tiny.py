"""A tiny backbone for the built-in data: image (B, 3, H, W) -> [c3, c4] at stride 8."""

from torch import Tensor, nn

from ccnet_cli.models.backbones import Tiny as Settings
from ccnet_cli.models.layers import FoldedStages, Make, conv_norm, initialise


class Tiny(nn.Module):
    """Four 3x3 convolutions for the built-in data: stride 8, and each output sees 31 x 31 pixels of the image."""

    stride = 8

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm_relu(3, width // 2, 2), *_conv_norm_relu(width // 2, width, 2))
        self.layer3 = nn.Sequential(*_conv_norm_relu(width, 2 * width, 2))
        self.layer4 = nn.Sequential(*_conv_norm_relu(2 * width, 2 * width, 1))
        self.channels = (2 * width, 2 * width)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> two maps (B, 2 width, h, w) at stride 8, sizes rounded up."""
        c3 = self.layer3(self.stem(x))
        return [c3, self.layer4(c3)]

    def fold(self, make: Make, levels: int = 2) -> nn.Module:
        """Itself for inference; of its maps, the `levels` deepest."""
        stages = ([*self.stem, *self.layer3], [*self.layer4])
        return FoldedStages([[make(*stage[at : at + 3]) for at in range(0, len(stage), 3)] for stage in stages], levels)


def _conv_norm_relu(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [*conv_norm(inputs, outputs, 3, stride), nn.ReLU(inplace=True)]


def build(settings: Settings, recompute: bool = False) -> Tiny:
    """The backbone of these settings, freshly initialised; there is nothing to recompute in so small a one."""
    return Tiny(settings.width)
