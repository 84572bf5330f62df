"""The head of CCNet: recurrent criss-cross attention between two convolutions (ICCV 2019, figure 2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ccnet_cli import ops
from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross
from ccnet_cli.models.heads import RCCA as Settings
from ccnet_cli.models.layers import Make, conv_norm_act
from ccnet_cli.parts import Outputs


class RCCAHead(nn.Module):
    """Reduce, attend over criss-cross paths, and classify with the backbone's features beside.

    The deepest map (B, C, h, w) -> (B, K, h, w). rcca None leaves the attention out (R = 0).
    """

    levels = 1

    def __init__(self, inputs: int, classes: int, settings: Settings, rcca: RecurrentCrissCross | None) -> None:
        super().__init__()
        channels, activation = settings.channels, settings.activation
        self.feature_channels = channels
        self.conva = nn.Sequential(*conv_norm_act(inputs, channels, activation))
        self.rcca = rcca
        self.convb = nn.Sequential(*conv_norm_act(channels, channels, activation))
        self.bottleneck = nn.Sequential(
            *conv_norm_act(inputs + channels, channels, activation),
            nn.Dropout2d(settings.dropout),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the features' size."""
        reduced = self.conva(features[-1])
        return self._classify(features[-1], reduced if self.rcca is None else self.rcca(reduced))

    def outputs(self, features: Sequence[Tensor]) -> Outputs:
        """Class scores, with the attention's output (B, C, h, w) as the features that losses look at."""
        reduced = self.conva(features[-1])
        gathered = reduced if self.rcca is None else self.rcca(reduced)
        return Outputs(self._classify(features[-1], gathered), {}, gathered)

    def attend(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Class scores and the attention of each pass, each (B, P, h, w); no attention for R = 0."""
        reduced = self.conva(features[-1])
        gathered, maps = (reduced, []) if self.rcca is None else self.rcca.attend(reduced)
        return self._classify(features[-1], gathered), maps

    def projections(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Query and key of each pass, each (B, C', h, w)."""
        x, pairs = self.conva(features[-1]), []
        for _ in range(self.recurrence):
            query, key, _ = self.attention.project(x)
            pairs.append((query, key))
            x = self.attention(x)
        return pairs

    def fold(self, make: Make) -> nn.Module:
        """Itself for inference."""
        return FoldedHead(self, make)

    @property
    def attention(self) -> CrissCrossAttention:
        """The module that every pass applies; AttributeError for R = 0."""
        if self.rcca is None:
            raise AttributeError("no attention (recurrence 0)")
        return self.rcca.attention

    @property
    def recurrence(self) -> int:
        """How often the attention is applied, R."""
        return 0 if self.rcca is None else self.rcca.recurrence

    @recurrence.setter
    def recurrence(self, times: int) -> None:
        if self.rcca is None and times:
            raise ValueError("the model was built without attention (recurrence 0)")
        if self.rcca is not None:
            self.rcca.recurrence = times

    @property
    def gamma(self) -> float:
        """The weight of what the attention gathers; 0 for R = 0."""
        return 0.0 if self.rcca is None else self.rcca.attention.gamma.item()

    def _classify(self, x: Tensor, gathered: Tensor) -> Tensor:
        scores: Tensor = self.bottleneck(torch.cat([x, self.convb(gathered)], dim=1))
        return scores


class FoldedHead(nn.Module):
    """The head of folded convolutions; nothing is concatenated, and the last convolution is float32."""

    def __init__(self, head: RCCAHead, make: Make) -> None:
        super().__init__()
        self.conva = make(*head.conva)
        self.rcca = nn.Identity() if head.rcca is None else FoldedPasses(head.rcca, make)
        self.convb = make(*head.convb)
        conv, norm, act, _, classify = head.bottleneck
        widths = (head.conva[0].in_channels, head.convb[0].out_channels)
        self.bottleneck = make(conv, norm, act, widths=widths)
        # class scores that lie close together would be equal in bfloat16
        self.classify = make(classify, dtype="fp32")

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the features' size, float32."""
        x = features[-1]
        scores: Tensor = self.classify(self.bottleneck(x, self.convb(self.rcca(self.conva(x)))).float())
        return scores


class FoldedPasses(nn.Module):
    """The recurrent attention with one projection; gamma, which no longer changes, is in the value's."""

    def __init__(self, rcca: RecurrentCrissCross, make: Make) -> None:
        super().__init__()
        attention = rcca.attention
        self.widths = attention.widths
        self.project = make(attention.joined_projection(torch.float64))
        self.recurrence = rcca.recurrence
        self.implementation, self.choices = attention.implementation, attention.choices

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        for _ in range(self.recurrence):
            query, key, value = self.project(x_BCHW).split(self.widths, dim=1)
            x_BCHW = ops.criss_cross(query, key, value, self.implementation, self.choices).add_(x_BCHW)
        return x_BCHW


def first(settings: Settings) -> RecurrentCrissCross | None:
    """The attention of these settings, None for R = 0."""
    if not settings.recurrence:
        return None
    attention = CrissCrossAttention(settings.channels, settings.query_channels, settings.implementation)
    return RecurrentCrissCross(attention, settings.recurrence)


def build(
    settings: Settings, channels: Sequence[int], classes: int, block: RecurrentCrissCross | None = None
) -> RCCAHead:
    """The head of these settings on the deepest of the maps, around the attention that first made."""
    return RCCAHead(channels[-1], classes, settings, block)
