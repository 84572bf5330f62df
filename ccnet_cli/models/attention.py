"""Criss-cross attention and its recurrence (ICCV 2019, sections 3.2 and 3.3)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli import ops
from ccnet_cli.models.dense import DensePass
from ccnet_cli.models.layers import Make

# B batch, C channels, S the grid's axes, (H, W) of an image or (T, H, W) of a clip, P their sum: the entries on the
# cross of a position

# so far below any energy that the weight is 0 in float32; finite, as some runtimes make nan of an infinity
MASKED = -1e30


class CrissCrossAttention(nn.Module):
    """One pass: every pixel gathers from its row and column, (B, C, H, W) -> (B, C, H, W).

    Of a clip (B, C, T, H, W), it gathers from its place in the other frames too; the weights are the same.
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

    def project(self, x_BCS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of each position in one convolution: (B, C', *S) twice and (B, C, *S)."""
        query, key, value = self._project_jointly(x_BCS).split(self.widths, dim=1)
        return query, key, value

    def _project_jointly(self, x_BCS: Tensor) -> Tensor:
        convs = (self.query_conv, self.key_conv, self.value_conv)
        weight = torch.cat([conv.weight for conv in convs])
        bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
        return on_planes(lambda x_BCHW: F.conv2d(x_BCHW, weight, bias), x_BCS)

    def forward(self, x_BCS: Tensor) -> Tensor:
        """Gamma times what the cross holds, plus the input."""
        reduced = self.query_conv.out_channels
        projected = self._project_jointly(x_BCS)
        return ops.residual(projected, x_BCS, self.gamma, reduced, self.implementation, self.choices)

    def attend(self, x_BCS: Tensor) -> tuple[Tensor, Tensor]:
        """The output and each position's weights over its cross, (B, P, *S) float64, which sum to 1 over P."""
        query, key, value = self.project(x_BCS)
        # energies are not scaled, and float32 would round a weight to 0 where they differ by more than 104
        attention_BPS = ops.affinity(query, key, self.implementation).double().softmax(dim=1)
        gathered = ops.aggregate(attention_BPS, value, self.implementation)
        return self.gamma.to(gathered.dtype) * gathered + x_BCS, attention_BPS

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
    """CrissCrossAttention in batched products that follow any size, (B, C, *S) -> (B, C, *S)."""

    def __init__(self, attention: CrissCrossAttention) -> None:
        super().__init__()
        self.channels = attention.widths
        self.project = attention.joined_projection(torch.float32)

    def forward(self, x_BCS: Tensor) -> Tensor:
        """Gamma times what the cross holds, plus the input."""
        query, key, value = on_planes(self.project, x_BCS).split(self.channels, dim=1)
        attention_BSP = plain_energies(query, key).softmax(dim=-1)
        out_BCS: Tensor = plain_sums(attention_BSP, value).movedim(-1, 1) + x_BCS
        return out_BCS


def plain_energies(query_BCS: Tensor, key_BCS: Tensor) -> Tensor:
    """Energies of each position over its cross, (B, *S, P), in torch's own products."""
    last = query_BCS.dim() - 3
    return torch.cat([_plain_arm(query_BCS, key_BCS, axis, axis < last) for axis in range(last + 1)], dim=-1)


def plain_sums(attention_BSP: Tensor, value_BCS: Tensor) -> Tensor:
    """What each position gathers from its cross, (B, *S, C), in torch's own products."""
    last = value_BCS.dim() - 3
    total, start = None, 0
    for axis, length in enumerate(value_BCS.shape[2:]):
        stop = start + length if axis < last else None
        weight = attention_BSP[..., start:stop].movedim(axis + 1, -2)
        gathered_BSC = (weight @ value_BCS.permute(*_order(value_BCS, axis), axis + 2, 1)).movedim(-2, axis + 1)
        # the sum lies in memory as its first summand does
        total = gathered_BSC if total is None else gathered_BSC + total
        start += length
    assert total is not None
    return total


def _plain_arm(query_BCS: Tensor, key_BCS: Tensor, axis: int, mask: bool) -> Tensor:
    """Energies along the lines of an axis, (B, *S, L)."""
    order = _order(query_BCS, axis)
    energy = query_BCS.permute(*order, axis + 2, 1) @ key_BCS.permute(*order, 1, axis + 2)
    if mask:
        positions = torch.arange(query_BCS.shape[axis + 2], device=query_BCS.device)
        # the position lies on every arm: count it once, in the last
        energy = energy.masked_fill(positions[:, None] == positions, MASKED)
    return energy.movedim(-2, axis + 1)


def _order(x_BCS: Tensor, axis: int) -> list[int]:
    """The batch and all axes but one, as permute counts them."""
    return [0, *(other for other in range(2, x_BCS.dim()) if other != axis + 2)]


class RecurrentCrissCross(nn.Module):
    """The same attention, with the same weights, `recurrence` times; as many passes as axes reach every position."""

    def __init__(self, attention: CrissCrossAttention, recurrence: int = 2) -> None:
        super().__init__()
        self.attention = attention
        self.recurrence = recurrence

    def forward(self, x_BCS: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        for _ in range(self.recurrence):
            x_BCS = self.attention(x_BCS)
        return x_BCS

    def attend(self, x_BCS: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output and the attention of each pass, each (B, P, *S)."""
        maps = []
        for _ in range(self.recurrence):
            x_BCS, attention_BPS = self.attention.attend(x_BCS)
            maps.append(attention_BPS)
        return x_BCS, maps

    def passes(self, x_BCS: Tensor) -> list[Tensor]:
        """The attention of each pass, each (B, P, *S)."""
        return self.attend(x_BCS)[1]

    def fold(self, make: Make) -> nn.Module:
        """Itself for inference."""
        return FoldedPasses(self, make)


class FoldedPasses(nn.Module):
    """The recurrent attention with one projection; gamma, which no longer changes, is in the value's.

    Passes after the first write over the result of the one before.
    """

    def __init__(self, rcca: RecurrentCrissCross, make: Make) -> None:
        super().__init__()
        attention = rcca.attention
        self.widths = attention.widths
        self.project = make(attention.joined_projection(torch.float64))
        self.recurrence = rcca.recurrence
        self.implementation, self.choices = attention.implementation, attention.choices

    def forward(self, x_BCS: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        for _ in range(self.recurrence):
            if isinstance(self.project, SplitProjection):
                energies, value = (on_planes(part, x_BCS) for part in (self.project.energies, self.project.values))
                query, key = energies.split(self.widths[:2], dim=1)
            else:
                query, key, value = on_planes(self.project, x_BCS).split(self.widths, dim=1)
            x_BCS = ops.criss_cross(query, key, value, self.implementation, self.choices).add_(x_BCS)
            # the next pass projects anew
            del query, key, value
        return x_BCS


class SplitProjection(nn.Module):
    """A joined projection as one convolution to queries and keys, and one to values, which may be in integers."""

    def __init__(self, energies: nn.Module, values: nn.Module) -> None:
        super().__init__()
        self.energies, self.values = energies, values

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C' + C' + C, H, W)."""
        return torch.cat([self.energies(x), self.values(x)], dim=1)


def on_planes(convolve: Callable[[Tensor], Tensor], x_BCS: Tensor) -> Tensor:
    """Call a 1x1 convolution on (B, C, *S): more than two axes become the rows of one tall map."""
    if x_BCS.dim() == 4:
        return convolve(x_BCS)
    tall: Tensor = convolve(x_BCS.flatten(2, -2)).unflatten(2, x_BCS.shape[2:-1])
    return tall


def attention_map(passes: Sequence[Tensor | DensePass], *cell: int) -> Tensor:
    """Where a cell, (y, x) of the first image or (t, y, x) of the first clip, looks through all passes, *S; sums to 1.

    They come in the order in which they ran: the weights over crosses, (B, P, *S), or those over all positions. One
    pass gives 0 off the cell's cross; two give D[p, q] = sum over k of A2[p, k] A1[k, q], and so on: as many as there
    are axes give the full picture that recurrence reaches. The map of a clip is a row of T maps, (T, H, W).
    """
    first = passes[0]
    S = first.shape[2:] if isinstance(first, Tensor) else first.size
    weights = first if isinstance(first, Tensor) else first.keys_MC.double()
    map_S = weights.new_zeros(S)
    map_S[cell] = 1
    for each in reversed(passes):
        # the last pass is where the cell looks first; spreading its weights over their crosses composes the passes
        map_S = ops.scatter(each[:1], map_S[None, None])[0, 0] if isinstance(each, Tensor) else each.spread(map_S)
    return map_S
