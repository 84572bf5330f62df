"""OCNet's object context (arXiv 1809.00916): one attention, one in each cell of four grids, or one beside an ASPP."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccnet_cli.models.blocks import GridAttention, SelfAttention, projections
from ccnet_cli.models.dense import DensePass
from ccnet_cli.models.heads.settings import OC as Settings
from ccnet_cli.models.layers import Classify, Head, conv_norm_act

GRIDS = (1, 2, 3, 6)
DILATIONS = (12, 24, 36)


def attention(
    inputs: int, inner: int, value: int, activation: str, separate: bool = False, pool: int = 1, grid: int = 1
) -> SelfAttention:
    """Object context of `inputs` channels, which starts at 0."""
    count = 2 if separate else 1
    key = projections(inputs, inner, activation, count, bias=True)
    query = projections(inputs, inner, activation, count, bias=True) if separate else None
    out = nn.Conv2d(value, inputs, 1)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)  # type: ignore[arg-type]
    parts = (key, query, nn.Conv2d(inputs, value, 1), out, inner)
    return GridAttention(*parts, grid=grid) if grid > 1 else SelfAttention(*parts, pool=pool)


class OCHead(Head):
    """The deepest map (B, C, h, w) -> (B, K, h, w): a reduction, what gathers the context, and the classifier."""

    def __init__(self, inputs: int, classes: int, settings: Settings, context: nn.Module) -> None:
        super().__init__()
        s = settings
        layers = conv_norm_act(inputs, s.channels, s.activation, bias=True)
        self.reduce = nn.Sequential(*(layers[:2] if s.form == "pyramid" else layers))
        self.context = context
        self.blocks = ("context.attentions" if s.form == "pyramid" else "context.attention",)
        self.attention_names = tuple(f"in {g}x{g} cells" for g in GRIDS) if s.form == "pyramid" else ("all positions",)
        own = 0.1 if s.form == "asp" else 0.05
        self.classify = Classify(s.channels, classes, own if s.dropout is None else s.dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the map's size."""
        scores: Tensor = self.classify(self.context(self.reduce(features[-1]), self.align_corners))
        return scores

    def attend(self, features: Sequence[Tensor]) -> tuple[Tensor, list[DensePass]]:
        """The scores, and the weights of each attention."""
        context: Any = self.context
        return self(features), context.passes(self.reduce(features[-1]))


class BaseContext(nn.Module):
    """The gathered context, then the map itself, joined by a 1x1 convolution."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        s, inner = settings, max(settings.channels // 2, 1)
        pool = 2 if s.pooled else 1
        self.attention = attention(s.channels, inner, inner, s.activation, s.separate, pool)
        self.join = nn.Sequential(*conv_norm_act(2 * s.channels, s.channels, s.activation, True, kernel=1))

    def forward(self, x: Tensor, align_corners: bool) -> Tensor:
        """(B, C, h, w) -> the same size."""
        out: Tensor = self.join(torch.cat([self.attention(x, align_corners), x], dim=1))
        return out

    def passes(self, x: Tensor) -> list[DensePass]:
        """The weights of the one attention."""
        return self.attention.passes(x)


class PyramidContext(nn.Module):
    """The map widened, and its context within the cells of each grid, joined by a 1x1 convolution."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        s, width, inner = settings, settings.channels * len(GRIDS), max(settings.channels // 2, 1)
        self.attentions = nn.ModuleList(attention(s.channels, inner, s.channels, s.activation, grid=g) for g in GRIDS)
        self.widen = nn.Sequential(*conv_norm_act(s.channels, width, s.activation, True, kernel=1))
        self.join = nn.Sequential(*conv_norm_act(2 * width, s.channels, s.activation, True, kernel=1))

    def forward(self, x: Tensor, align_corners: bool) -> Tensor:
        """(B, C, h, w) -> the same size."""
        out: Tensor = self.join(torch.cat([self.widen(x), *(each(x) for each in self.attentions)], dim=1))
        return out

    def passes(self, x: Tensor) -> list[DensePass]:
        """The weights of the attention in each grid."""
        return [each for attention in self.attentions for each in attention.passes(x)]  # type: ignore[operator]


class ASPContext(nn.Module):
    """Context at half the size, a 1x1 and three dilated 3x3 convolutions of half the channels, joined by a 1x1 one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        inputs, act, width = settings.channels, settings.activation, max(settings.channels // 2, 1)
        self.narrow = nn.Sequential(*conv_norm_act(inputs, width, act, bias=True))
        self.attention = attention(width, max(width // 2, 1), width, act, pool=2)
        self.after = nn.Sequential(*conv_norm_act(width, width, act, bias=True, kernel=1))
        branches = [conv_norm_act(inputs, width, act, kernel=1)]
        branches += [conv_norm_act(inputs, width, act, dilation=rate) for rate in DILATIONS]
        self.branches = nn.ModuleList(nn.Sequential(*layers) for layers in branches)
        self.join = nn.Sequential(*conv_norm_act(5 * width, inputs, act, kernel=1))

    def forward(self, x: Tensor, align_corners: bool) -> Tensor:
        """(B, C, h, w) -> the same size."""
        context = self.after(self.attention(self.narrow(x), align_corners))
        out: Tensor = self.join(torch.cat([context, *(branch(x) for branch in self.branches)], dim=1))
        return out

    def passes(self, x: Tensor) -> list[DensePass]:
        """The weights of the one attention."""
        return self.attention.passes(self.narrow(x))


def build(settings: Settings, channels: Sequence[int], classes: int) -> OCHead:
    """The head of these settings on the deepest of the maps."""
    context = {"base": BaseContext, "pyramid": PyramidContext, "asp": ASPContext}[settings.form](settings)
    return OCHead(channels[-1], classes, settings, context)
