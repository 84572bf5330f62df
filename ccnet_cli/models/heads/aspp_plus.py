"""DeepLabv3+ (ECCV 2018): ASPP of separable convolutions, decoded with the finest map, as in mmsegmentation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ccnet_cli.models.heads.aspp import Branches
from ccnet_cli.models.heads.settings import ASPPPlus as Settings
from ccnet_cli.models.layers import Classify, Head, conv_norm_act, resize, separable


class ASPPPlusHead(Head):
    """All maps -> (B, K, h, w) at the size of the first."""

    blocks = ("pyramid",)

    finest = True

    def __init__(self, maps: Sequence[int], classes: int, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.levels = len(maps)
        self.pyramid = Branches(maps[-1], s.channels, s.dilations, s.activation, apart=True)
        joined = s.channels * (2 + len(s.dilations))
        self.bottleneck = nn.Sequential(*conv_norm_act(joined, s.channels, s.activation))
        self.fine = nn.Sequential(*conv_norm_act(maps[0], s.fine, s.activation, kernel=1))
        first = separable(s.channels + s.fine, s.channels, s.activation)
        self.decode = nn.Sequential(*first, *separable(s.channels, s.channels, s.activation))
        self.classify = Classify(s.channels, classes, s.dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the finest map's size."""
        fine = self.fine(features[0])
        context = resize(self.bottleneck(self.pyramid(features[-1])), fine, self.align_corners)
        scores: Tensor = self.classify(self.decode(torch.cat([context, fine], dim=1)))
        return scores


def build(settings: Settings, channels: Sequence[int], classes: int) -> ASPPPlusHead:
    """The head of these settings on all maps."""
    return ASPPPlusHead(channels, classes, settings)
