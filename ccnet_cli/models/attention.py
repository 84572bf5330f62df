"""Criss-cross attention and its recurrence (ICCV 2019, sections 3.2 and 3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli import ops
from ccnet_cli.models.dense import DensePass
from ccnet_cli.models.layers import Make

# B batch, C channels, H height, W width, P = H + W positions on a pixel's cross

# so far below any energy that the weight is 0 in float32; finite, as some runtimes make nan of an infinity
MASKED = -1e30


class CrissCrossAttention(nn.Module):
    """One pass: every pixel gathers from its row and column, (B, C, H, W) -> (B, C, H, W).

    query_channels defaults to channels // 8; gamma, the weight of the gathered part, starts at 0 as in the paper.
    """

    def __init__(self, channels: int, query_channels: int | None = None, implementation: str = "auto") -> None:
        super().__init__()
        query_channels = query_channels or max(channels // 8, 1)
        self.query_conv = nn.Conv2d(channels, query_channels, 1)
        self.key_conv = nn.Conv2d(channels, query_channels, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.implementation = implementation
        # what auto measures on CUDA; ops.use replaces it
        self.choices = ops.Choices()

    def project(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of each pixel in one convolution: (B, C', H, W) twice and (B, C, H, W)."""
        query, key, value = self._project_jointly(x_BCHW).split(self.widths, dim=1)
        return query, key, value

    def _project_jointly(self, x_BCHW: Tensor) -> Tensor:
        convs = (self.query_conv, self.key_conv, self.value_conv)
        weight = torch.cat([conv.weight for conv in convs])
        bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
        return F.conv2d(x_BCHW, weight, bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Gamma times what the cross holds, plus the input."""
        reduced = self.query_conv.out_channels
        projected = self._project_jointly(x_BCHW)
        return ops.residual(projected, x_BCHW, self.gamma, reduced, self.implementation, self.choices)

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The output and each pixel's weights over its cross, (B, P, H, W) float64, which sum to 1 over P."""
        query, key, value = self.project(x_BCHW)
        # energies are not scaled, and float32 would round a weight to 0 where they differ by more than 104
        attention_BPHW = ops.affinity(query, key, self.implementation).double().softmax(dim=1)
        gathered = ops.aggregate(attention_BPHW, value, self.implementation)
        return self.gamma.to(gathered.dtype) * gathered + x_BCHW, attention_BPHW

    @property
    def widths(self) -> list[int]:
        """Channels of query, key and value."""
        return [conv.out_channels for conv in (self.query_conv, self.key_conv, self.value_conv)]

    @torch.no_grad()
    def joined_projection(self, dtype: torch.dtype) -> nn.Conv2d:
        """One convolution to query, key and gamma times value: gamma times a sum of values is a sum of these."""
        convs, scales = (self.query_conv, self.key_conv, self.value_conv), (1, 1, self.gamma.to(dtype))
        # what it is initialised with is written over, and must cost no random numbers
        with torch.random.fork_rng(devices=[]):
            joined = nn.Conv2d(convs[0].in_channels, sum(self.widths), 1, dtype=dtype)
        for name in ("weight", "bias"):
            parts = [getattr(conv, name).to(dtype) * scale for conv, scale in zip(convs, scales, strict=True)]
            getattr(joined, name).copy_(torch.cat(parts))
        return joined

    def portable(self) -> nn.Module:
        """The same in torch's own operators, for export."""
        return PlainCrissCross(self)


class PlainCrissCross(nn.Module):
    """CrissCrossAttention in batched products that follow any size, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, attention: CrissCrossAttention) -> None:
        super().__init__()
        self.channels = attention.widths
        self.project = attention.joined_projection(torch.float32)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Gamma times what the cross holds, plus the input."""
        query, key, value = self.project(x_BCHW).split(self.channels, dim=1)
        H = x_BCHW.shape[2]
        positions = torch.arange(H, device=x_BCHW.device)
        # the pixel lies on both arms: count it once, in the row
        own_HH = positions[:, None] == positions
        column_BWHH = (query.permute(0, 3, 2, 1) @ key.permute(0, 3, 1, 2)).masked_fill(own_HH, MASKED)
        row_BHWW = query.permute(0, 2, 3, 1) @ key.permute(0, 2, 1, 3)
        attention_BHWP = torch.cat([column_BWHH.transpose(1, 2), row_BHWW], dim=3).softmax(dim=3)
        up_BWHC = attention_BHWP[..., :H].transpose(1, 2) @ value.permute(0, 3, 2, 1)
        across_BHWC = attention_BHWP[..., H:] @ value.permute(0, 2, 3, 1)
        out_BCHW: Tensor = (up_BWHC.transpose(1, 2) + across_BHWC).permute(0, 3, 1, 2) + x_BCHW
        return out_BCHW


class RecurrentCrissCross(nn.Module):
    """The same attention, with the same weights, applied `recurrence` times; 2 passes reach every pixel."""

    def __init__(self, attention: CrissCrossAttention, recurrence: int = 2) -> None:
        super().__init__()
        self.attention = attention
        self.recurrence = recurrence

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        for _ in range(self.recurrence):
            x_BCHW = self.attention(x_BCHW)
        return x_BCHW

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output and the attention of each pass, each (B, P, H, W)."""
        maps = []
        for _ in range(self.recurrence):
            x_BCHW, attention_BPHW = self.attention.attend(x_BCHW)
            maps.append(attention_BPHW)
        return x_BCHW, maps

    def passes(self, x_BCHW: Tensor) -> list[Tensor]:
        """The attention of each pass, each (B, P, H, W)."""
        return self.attend(x_BCHW)[1]

    def fold(self, make: Make) -> nn.Module:
        """Itself for inference."""
        return FoldedPasses(self, make)


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


def attention_map(passes: Sequence[Tensor | DensePass], y: int, x: int) -> Tensor:
    """Where the first image's pixel (y, x) looks through all given passes, (H, W); sums to 1.

    They come in the order in which they ran: the weights over crosses, (B, P, H, W), or those over all positions. One
    pass gives 0 off the pixel's cross; two give D[p, q] = sum over k of A2[p, k] A1[k, q], the full picture that
    recurrence reaches.
    """
    first = passes[0]
    H, W = first.shape[2:] if isinstance(first, Tensor) else first.size
    weights = first if isinstance(first, Tensor) else first.keys_GMC.double()
    map_HW = weights.new_zeros(H, W)
    map_HW[y, x] = 1
    for each in reversed(passes):
        # the last pass is where the pixel looks first; spreading its weights over their crosses composes the passes
        map_HW = ops.scatter(each[:1], map_HW[None, None])[0, 0] if isinstance(each, Tensor) else each.spread(map_HW)
    return map_HW
