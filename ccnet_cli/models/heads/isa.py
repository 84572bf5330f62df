"""Interlaced sparse self-attention (arXiv 1907.12273), with its input beside what it gathers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ccnet_cli.models.blocks import InterlacedAttention
from ccnet_cli.models.dense import DensePass
from ccnet_cli.models.heads.settings import ISA as Settings
from ccnet_cli.models.layers import Classify, Head, conv_norm_act


class ISAHead(Head):
    """The deepest map (B, C, h, w) -> (B, K, h, w)."""

    blocks = ("isa",)

    def __init__(self, inputs: int, classes: int, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.reduce = nn.Sequential(*conv_norm_act(inputs, s.channels, s.activation, s.bias))
        inner = s.inner or max(s.channels // 2, 1)
        self.isa = InterlacedAttention(s.channels, inner, s.activation, s.cell, s.value_bias)
        self.bottleneck = nn.Sequential(*conv_norm_act(2 * s.channels, s.channels, s.activation, kernel=1))
        self.classify = Classify(s.channels, classes, s.dropout)
        self.input_first = s.form == "openseg"

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the map's size."""
        x = self.reduce(features[-1])
        pair = [x, self.isa(x)]
        scores: Tensor = self.classify(self.bottleneck(torch.cat(pair if self.input_first else pair[::-1], dim=1)))
        return scores

    def attend(self, features: Sequence[Tensor]) -> tuple[Tensor, list[DensePass]]:
        """The scores, and the weights of both passes; what looks at the border's padding is lost."""
        return self(features), self.isa.passes(self.reduce(features[-1]))


def build(settings: Settings, channels: Sequence[int], classes: int) -> ISAHead:
    """The head of these settings on the deepest of the maps."""
    return ISAHead(channels[-1], classes, settings)
