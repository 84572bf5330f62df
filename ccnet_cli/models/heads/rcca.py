"""The head of CCNet: recurrent criss-cross attention between two convolutions (ICCV 2019, figure 2)."""

from collections.abc import Sequence

from torch import Tensor

from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross
from ccnet_cli.models.heads import RCCA as Settings
from ccnet_cli.models.heads.wrapped import Wrapped


class RCCAHead(Wrapped):
    """The wrapper around recurrent criss-cross attention; rcca None leaves the attention out (R = 0)."""

    name = "rcca"
    blocks = ("rcca",)
    rcca: RecurrentCrissCross | None

    def attend(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Class scores and the attention of each pass, each (B, P, h, w); no attention for R = 0."""
        reduced = self.conva(features[-1])
        gathered, maps = (reduced, []) if self.rcca is None else self.rcca.attend(reduced)
        return self.classify(features[-1], gathered), maps

    def projections(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Query and key of each pass, each (B, C', h, w)."""
        x, pairs = self.conva(features[-1]), []
        for _ in range(self.recurrence):
            query, key, _ = self.attention.project(x)
            pairs.append((query, key))
            x = self.attention(x)
        return pairs

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
