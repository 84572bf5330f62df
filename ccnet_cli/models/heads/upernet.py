"""UPerNet (ECCV 2018): a feature pyramid over all maps, the deepest pooled as in PSPNet."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ccnet_cli.models.heads.psp import Pyramid
from ccnet_cli.models.heads.settings import UPerNet as Settings
from ccnet_cli.models.layers import Classify, Head, conv_norm_act, resize

BINS = (1, 2, 3, 6)


class UPerNetHead(Head):
    """All maps -> (B, K, h, w) at the size of the first; a backbone of output stride 32 suits it best."""

    blocks = ("pyramid",)

    finest = True

    def __init__(self, maps: Sequence[int], classes: int, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.levels = len(maps)
        pooled = s.pooled_channels or s.channels
        self.pyramid = Pyramid(maps[-1], pooled, BINS, s.activation, s.resize_first)
        self.bottleneck = nn.Sequential(*conv_norm_act(maps[-1] + len(BINS) * pooled, s.channels, s.activation))
        self.lateral = nn.ModuleList(
            nn.Sequential(*conv_norm_act(each, s.channels, s.activation, kernel=1)) for each in maps[:-1]
        )
        self.smooth = nn.ModuleList(
            nn.Sequential(*conv_norm_act(s.channels, s.channels, s.activation)) for _ in maps[:-1]
        )
        self.join = nn.Sequential(*conv_norm_act(len(maps) * s.channels, s.channels, s.activation))
        self.classify = Classify(s.channels, classes, s.dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the finest map's size."""
        x = self.bottleneck(self.pyramid(features[-1], "map_first", self.align_corners))
        maps = [x]
        for lateral, smooth, side in reversed([*zip(self.lateral, self.smooth, features[:-1], strict=True)]):
            near = lateral(side)
            # the sum goes on, not what is smoothed
            x = near + resize(x, near, self.align_corners)
            maps.insert(0, smooth(x))
        joined = torch.cat([maps[0], *(resize(each, maps[0], self.align_corners) for each in maps[1:])], dim=1)
        scores: Tensor = self.classify(self.join(joined))
        return scores


def build(settings: Settings, channels: Sequence[int], classes: int) -> UPerNetHead:
    """The head of these settings on all maps."""
    return UPerNetHead(channels, classes, settings)
