"""EncNet (CVPR 2018): channels weighed by an encoding of the whole map, which also says which classes are present."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ccnet_cli.models.heads.settings import EncNet as Settings
from ccnet_cli.models.layers import Classify, Head, conv_norm_act, exactly, resize
from ccnet_cli.parts import Outputs

# B batch, N positions, D channels, K codewords


class Encoding(nn.Module):
    """(B, D, h, w) -> (B, K, D): differences from learned codewords, softly assigned and summed over positions."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        bound = (count * channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(count, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(count).uniform_(-1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """The sums, in the parameters' precision."""
        with exactly(x):
            x_BDN = x.flatten(2).to(self.codewords.dtype)
            square_B1N, length_K1 = x_BDN.square().sum(1, keepdim=True), self.codewords.square().sum(1)[:, None]
            # |x - c|^2 without a tensor of all differences
            distance_BKN = square_B1N - 2 * (self.codewords @ x_BDN) + length_K1
            weights_BKN = (self.scale[:, None] * distance_BKN).softmax(dim=1)
            return weights_BKN @ x_BDN.transpose(1, 2) - weights_BKN.sum(2, keepdim=True) * self.codewords


class EncodingModule(nn.Module):
    """(B, D, h, w) -> what each channel is multiplied with besides 1, (B, D, 1, 1), and the encoding, (B, D)."""

    def __init__(self, channels: int, codewords: int, activation: str) -> None:
        super().__init__()
        self.project = nn.Sequential(*conv_norm_act(channels, channels, activation, kernel=1))
        self.encoding = Encoding(channels, codewords)
        self.norm = nn.BatchNorm1d(codewords)
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and encoding."""
        encoded_BD = torch.relu(self.norm(self.encoding(self.project(x)))).mean(dim=1)
        return self.gate(encoded_BD).sigmoid()[:, :, None, None].to(x.dtype), encoded_BD


class EncNetHead(Head):
    """The deepest map, or with lateral the three deepest -> (B, K, h, w)."""

    blocks = ("encode",)

    output_names = ("presence",)

    def __init__(self, maps: Sequence[int], classes: int, settings: Settings) -> None:
        super().__init__()
        s = settings
        sides = maps[-3:-1] if s.lateral else ()
        self.levels = 1 + len(sides)
        self.reduce = nn.Sequential(*conv_norm_act(maps[-1], s.channels, s.activation))
        self.lateral = nn.ModuleList(
            nn.Sequential(*conv_norm_act(side, s.channels, s.activation, kernel=1)) for side in sides
        )
        joined = s.channels * self.levels
        self.join = nn.Sequential(*conv_norm_act(joined, s.channels, s.activation)) if sides else None
        self.encode = EncodingModule(s.channels, s.codewords, s.activation)
        self.presence = nn.Linear(s.channels, classes)
        self.classify = Classify(s.channels, classes, s.dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the deepest map's size."""
        return self._answer(features)[0]

    def outputs(self, features: Sequence[Tensor]) -> Outputs:
        """The scores, and of each class whether the image holds it."""
        scores, encoded = self._answer(features)
        return Outputs(scores, {"presence": self.presence(encoded)}, features[-1])

    def _answer(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        x = self.reduce(features[-1])
        if self.join is not None:
            sides = features[-self.levels : -1]
            maps = [resize(each(side), x, self.align_corners) for each, side in zip(self.lateral, sides, strict=True)]
            x = self.join(torch.cat([x, *maps], dim=1))
        gate, encoded = self.encode(x)
        return self.classify(torch.relu(x + x * gate)), encoded


def build(settings: Settings, channels: Sequence[int], classes: int) -> EncNetHead:
    """The head of these settings on the deepest of the maps."""
    return EncNetHead(channels, classes, settings)
