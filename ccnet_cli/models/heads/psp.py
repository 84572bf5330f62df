"""PSPNet's pyramid of pooled maps (CVPR 2017)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ccnet_cli.models.heads.settings import PSP as Settings
from ccnet_cli.models.layers import Classify, Head, conv_norm_act, resize


class Pyramid(nn.Module):
    """(B, C, h, w) -> (B, C + channels x bins, h, w): the map beside its pooled, reduced and enlarged copies.

    resize_first enlarges before the reduction, as MIT's UPerNet does.
    """

    def __init__(
        self, inputs: int, channels: int, bins: Sequence[int], activation: str, resize_first: bool = False
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(*conv_norm_act(inputs, channels, activation, kernel=1)) for _ in bins)
        self.bins = tuple(bins)
        self.resize_first = resize_first

    def forward(self, x: Tensor, order: str, align_corners: bool) -> Tensor:
        """The concatenation, in the order of that name."""
        maps = []
        for size, stage in zip(self.bins, self.stages, strict=True):
            pooled = nn.functional.adaptive_avg_pool2d(x, size)
            if self.resize_first:
                maps.append(stage(resize(pooled, x, align_corners)))
            else:
                maps.append(resize(stage(pooled), x, align_corners))
        return torch.cat([*maps, x] if order == "map_last" else [x, *maps], dim=1)


class PSPHead(Head):
    """The deepest map (B, C, h, w) -> (B, K, h, w)."""

    blocks = ("pyramid",)

    def __init__(self, inputs: int, classes: int, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.pyramid = Pyramid(inputs, s.channels, s.bins, s.activation)
        joined = inputs + s.channels * len(s.bins)
        self.bottleneck = nn.Sequential(*conv_norm_act(joined, s.channels, s.activation))
        self.classify = Classify(s.channels, classes, s.dropout)
        self.order = s.order

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the map's size."""
        scores: Tensor = self.classify(self.bottleneck(self.pyramid(features[-1], self.order, self.align_corners)))
        return scores


def build(settings: Settings, channels: Sequence[int], classes: int) -> PSPHead:
    """The head of these settings on the deepest of the maps."""
    return PSPHead(channels[-1], classes, settings)
