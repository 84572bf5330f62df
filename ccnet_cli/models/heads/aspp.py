"""DeepLabv3's pyramid of dilated convolutions (arXiv 1706.05587), in the forms of three projects."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ccnet_cli.models.heads.settings import ASPP as Settings
from ccnet_cli.models.layers import Classify, Head, conv_norm_act, separable

# width of the branches, channels and kernel of the convolution over them
FORMS = {"toolbox": (256, 512, 1), "mmseg": (512, 512, 3), "torchvision": (256, 256, 1)}


class Branches(nn.Module):
    """(B, C, h, w) -> (B, (2 + dilations) x width, h, w): the mean, a 1x1 and several dilated 3x3 convolutions."""

    def __init__(self, inputs: int, width: int, dilations: Sequence[int], activation: str, apart: bool = False) -> None:
        super().__init__()
        self.pool = nn.Sequential(*conv_norm_act(inputs, width, activation, kernel=1))
        dilated = [
            separable(inputs, width, activation, rate)
            if apart
            else conv_norm_act(inputs, width, activation, dilation=rate)
            for rate in dilations
        ]
        pointwise = conv_norm_act(inputs, width, activation, kernel=1)
        self.branches = nn.ModuleList(nn.Sequential(*layers) for layers in (pointwise, *dilated))

    def forward(self, x: Tensor, mean_last: bool = False) -> Tensor:
        """The concatenation, the mean first or last."""
        mean = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        maps = [branch(x) for branch in self.branches]
        return torch.cat([*maps, mean] if mean_last else [mean, *maps], dim=1)


class ASPPHead(Head):
    """The deepest map (B, C, h, w) -> (B, K, h, w)."""

    blocks = ("pyramid",)

    def __init__(self, inputs: int, classes: int, settings: Settings) -> None:
        super().__init__()
        s = settings
        own_width, own_channels, kernel = FORMS[s.form]
        width, channels = s.width or own_width, s.channels or own_channels
        self.pyramid = Branches(inputs, width, s.dilations, s.activation)
        joined = width * (2 + len(s.dilations))
        layers = conv_norm_act(joined, channels, s.activation, kernel=kernel)
        if s.form == "torchvision":
            layers += [nn.Dropout(0.5), *conv_norm_act(channels, channels, s.activation)]
        self.bottleneck = nn.Sequential(*layers)
        self.classify = Classify(channels, classes, 0.0 if s.form == "torchvision" else s.dropout)
        self.mean_last = s.form == "torchvision"

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the map's size."""
        scores: Tensor = self.classify(self.bottleneck(self.pyramid(features[-1], self.mean_last)))
        return scores


def build(settings: Settings, channels: Sequence[int], classes: int) -> ASPPHead:
    """The head of these settings on the deepest of the maps."""
    return ASPPHead(channels[-1], classes, settings)
