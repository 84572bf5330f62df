"""Context blocks, (B, C, H, W) -> (B, C, H, W): each position learns of the others. BLOCKS has them by name.

`passes(x)`, where a block has it, is what each position looks at, pass by pass, or side by side with the names in
`attention_names`.
"""

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross
from ccnet_cli.models.dense import ChannelPass, DensePass, attend_everywhere, dense_pass, grouped_pass
from ccnet_cli.models.layers import conv_norm, conv_norm_act, exactly

# B batch, C channels, H height, W width, K channels of keys


class NonLocal(nn.Module):
    """A non-local block (CVPR 2018) of `inner` channels, added to its input; it starts as the identity.

    mode embedded_gaussian weighs by softmax(q k / sqrt(inner)), dot_product by q k over the number of keys. sub_sample
    max-pools keys and values by 2.
    """

    attention_names = ("all positions",)

    def __init__(self, channels: int, inner: int, mode: str = "embedded_gaussian", sub_sample: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Sequential(*conv_norm(inner, channels, 1))
        self.pool = nn.MaxPool2d(2) if sub_sample else nn.Identity()
        self.mode = mode
        self.scale = inner**-0.5
        for conv in (self.query, self.key, self.value):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.out[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The input and what each position gathers."""
        query, key = self._project(x)
        value = self.pool(self.value(x))
        if self.mode == "dot_product":
            # (q k) v is q (k v): no weights of pairs
            joint_BKC = key.flatten(2) @ value.flatten(2).transpose(1, 2) / key[0, 0].numel()
            gathered = (joint_BKC.transpose(1, 2) @ query.flatten(2)).unflatten(2, x.shape[2:])
        else:
            gathered = attend_everywhere(query, key, value, self.scale)
        out: Tensor = x + self.out(gathered)
        return out

    def passes(self, x: Tensor) -> list[DensePass]:
        """The weights of the one pass, of the embedded Gaussian: others are no distribution."""
        return [dense_pass(*self._project(x), self.scale)]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.query(x), self.pool(self.key(x))


class PositionAttention(nn.Module):
    """DANet's PAM (CVPR 2019): softmax(q k), unscaled, over all positions; gamma starts at 0."""

    attention_names = ("all positions",)

    def __init__(self, channels: int, query_channels: int | None = None) -> None:
        super().__init__()
        query_channels = query_channels or max(channels // 8, 1)
        self.query_conv = nn.Conv2d(channels, query_channels, 1)
        self.key_conv = nn.Conv2d(channels, query_channels, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Gamma times what each position gathers, plus the input."""
        gathered = attend_everywhere(self.query_conv(x), self.key_conv(x), self.value_conv(x))
        return self.gamma.to(gathered.dtype) * gathered + x

    def passes(self, x: Tensor) -> list[DensePass]:
        """The weights of the one pass."""
        return [dense_pass(self.query_conv(x), self.key_conv(x))]


class ChannelAttention(nn.Module):
    """DANet's CAM (CVPR 2019): each channel gathers the others, the least alike most; gamma starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Gamma times what each channel gathers, plus the input."""
        with exactly(x):
            return self._add(self._gather(x), x)

    def attend(self, x: Tensor, answer: Callable[[Tensor], Tensor]) -> ChannelPass:
        """What the first image's channels gather; answer maps the block's output to class scores."""
        x = x[:1]
        with exactly(x):
            gathered = self._gather(x)
            return ChannelPass(gathered, self._add(gathered, x), self.gamma.item(), answer)

    def _gather(self, x: Tensor) -> Tensor:
        # a sum over all positions is more than float16 holds
        x_BCN = x.flatten(2).float() if x.dtype != torch.float64 else x.flatten(2)
        energy_BCC = x_BCN @ x_BCN.transpose(1, 2)
        weights_BCC = (energy_BCC.amax(dim=2, keepdim=True) - energy_BCC).softmax(dim=2)
        return (weights_BCC @ x_BCN).view_as(x)

    def _add(self, gathered: Tensor, x: Tensor) -> Tensor:
        return (self.gamma * gathered).to(x.dtype) + x


class ChannelNorm(nn.LayerNorm):
    """Layer norm over channels, height and width of (B, C, 1, 1), in its parameters' precision."""

    def __init__(self, channels: int) -> None:
        super().__init__([channels, 1, 1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, 1) -> the same."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class GlobalContext(nn.Module):
    """GCNet's block (ICCV 2019): a weighted mean of all positions, transformed and added to each; starts as 0."""

    attention_names = ("all positions",)

    def __init__(self, channels: int, ratio: float = 0.25) -> None:
        super().__init__()
        inner = max(int(channels * ratio), 1)
        self.mask = nn.Conv2d(channels, 1, 1)
        last = nn.Conv2d(inner, channels, 1)
        self.transform = nn.Sequential(nn.Conv2d(channels, inner, 1), ChannelNorm(inner), nn.ReLU(), last)
        nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
        for tensor in (self.mask.bias, last.weight, last.bias):
            nn.init.zeros_(tensor)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The input and the transformed mean."""
        weights_B1N = self.mask(x).flatten(2).softmax(dim=2, dtype=torch.promote_types(x.dtype, torch.float32))
        mean_BC1 = x.flatten(2) @ weights_B1N.to(x.dtype).transpose(1, 2)
        out: Tensor = x + self.transform(mean_BC1[..., None])
        return out

    def passes(self, x: Tensor) -> list[DensePass]:
        """The weights, which are the same for every position."""
        mask = self.mask(x)
        return [dense_pass(torch.ones_like(mask), mask)]


class SelfAttention(nn.Module):
    """Object context (OCNet): softmax(q k / sqrt(K)) over all positions, and a projection of what is gathered.

    Without a query of its own, the key's is taken. pool 2 attends on a map of half the size.
    """

    def __init__(
        self, key: nn.Module, query: nn.Module | None, value: nn.Module, out: nn.Module, channels: int, pool: int = 1
    ) -> None:
        super().__init__()
        self.key, self.query, self.value, self.out = key, query, value, out
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.scale = channels**-0.5

    def forward(self, x: Tensor, align_corners: bool = True, mask_HW: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H, W). The mask is False where a position must not be looked at."""
        small = self.pool(x)
        query, key = self.project(small)
        out: Tensor = self.out(attend_everywhere(query, key, self.value(small), self.scale, mask_HW))
        if out.shape[2:] != x.shape[2:]:
            out = F.interpolate(out, x.shape[2:], mode="bilinear", align_corners=align_corners)
        return out

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key."""
        # a shared one runs twice, as the authors' does: the statistics of its norm move twice in a step
        return (self.key if self.query is None else self.query)(x), self.key(x)

    def passes(self, x: Tensor) -> list[DensePass]:
        """The weights of the one pass, of a pooled map those between its cells."""
        query, key = self.project(self.pool(x))
        return [dense_pass(query, key, self.scale, (x.shape[2], x.shape[3]))]


class GridAttention(SelfAttention):
    """Object context within each of grid x grid cells of the map; the last cell of a side has what is left over."""

    def __init__(
        self, key: nn.Module, query: nn.Module | None, value: nn.Module, out: nn.Module, channels: int, grid: int
    ) -> None:
        super().__init__(key, query, value, out, channels)
        self.grid = grid
        self.masked = False

    def forward(self, x: Tensor, align_corners: bool = True, mask_HW: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H, W), at full size and without a mask."""
        query, key = self.project(x)
        value = self.value(x)
        if self.masked:
            return self._attend_masked(query, key, value)
        rows = []
        for top, bottom in self._sides(x.shape[2]):
            cells = []
            for left, right in self._sides(x.shape[3]):
                own = [part[:, :, top:bottom, left:right] for part in (query, key, value)]
                cells.append(attend_everywhere(own[0], own[1], own[2], self.scale))
            rows.append(torch.cat(cells, dim=3))
        out: Tensor = self.out(torch.cat(rows, dim=2))
        return out

    def portable(self) -> nn.Module:
        """Itself with a mask in place of cuts, whose sizes an exported graph would fix; memory is quadratic."""
        other = copy.copy(self)
        other.masked = True
        return other

    def _attend_masked(self, *parts: Tensor) -> Tensor:
        # of a side too short for the grid, all is one cell
        steps = [side // self.grid for side in parts[0].shape[2:]]
        row_H, column_W = (
            (torch.arange(side, device=parts[0].device) // torch.sym_max(step, 1)).clamp(max=self.grid - 1)
            * torch.sym_min(step, 1)
            for side, step in zip(parts[0].shape[2:], steps, strict=True)
        )
        cell_P = (row_H[:, None] * self.grid + column_W).flatten()
        query, key, value = (part.flatten(2).transpose(1, 2)[:, None] for part in parts)
        mask_PP = cell_P[:, None] == cell_P
        gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_PP, scale=self.scale)[:, 0]
        out: Tensor = self.out(gathered.transpose(1, 2).unflatten(2, parts[0].shape[2:]))
        return out

    def passes(self, x: Tensor) -> list[DensePass]:
        """The weights of the one pass, within each grid cell."""
        query, key = self.project(x[:1])
        groups_HW = torch.empty(x.shape[2:], dtype=torch.long, device=x.device)
        cells = [(*rows, *columns) for rows in self._sides(x.shape[2]) for columns in self._sides(x.shape[3])]
        for index, (top, bottom, left, right) in enumerate(cells):
            groups_HW[top:bottom, left:right] = index
        return [grouped_pass(query, key, groups_HW, self.scale)]

    def _sides(self, length: int) -> list[tuple[int, int]]:
        step, last = length // self.grid, self.grid - 1
        if step == 0:
            return [(0, length)]
        return [(i * step, length if i == last else (i + 1) * step) for i in range(self.grid)]


def projections(inputs: int, outputs: int, activation: str, count: int, bias: bool) -> nn.Sequential:
    """`count` 1x1 convolutions, each with norm and activation."""
    widths = [inputs, *[outputs] * count]
    layers = [conv_norm_act(a, b, activation, bias, kernel=1) for a, b in pairwise(widths)]
    return nn.Sequential(*(layer for each in layers for layer in each))


class InterlacedAttention(nn.Module):
    """Interlaced sparse self-attention (ISA): first among positions of the same offset in their cells, then in cells.

    The map is padded by zeros, evenly on both sides, to whole cells of `cell` positions each way.
    """

    def __init__(self, channels: int, inner: int, activation: str, cell: int = 8, value_bias: bool = False) -> None:
        super().__init__()

        def attention() -> SelfAttention:
            key, query = (projections(channels, inner, activation, 2, bias=False) for _ in range(2))
            value = nn.Conv2d(channels, channels, 1, bias=value_bias)
            return SelfAttention(key, query, value, projections(channels, channels, activation, 1, bias=False), inner)

        self.long, self.short = attention(), attention()
        self.cell = cell
        self.spare = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); the input is not added."""
        out, cells, (top, left) = self._pad(x)
        mask_hw = None
        if self.spare:
            inside = [torch.arange(count, device=x.device) < count - self.spare for count in cells]
            mask_hw = inside[0][:, None] & inside[1]
        out = self._join(self.long(self._split(out, cells, False), mask_HW=mask_hw), cells, False)
        out = self._join(self.short(self._split(out, cells, True)), cells, True)
        return out[:, :, top : top + x.shape[2], left : left + x.shape[3]]

    def portable(self) -> nn.Module:
        """Itself with a spare row and column of cells: exported graphs tell one cell from several."""
        other = copy.copy(self)
        other.spare = 1
        return other

    def passes(self, x: Tensor) -> list[DensePass]:
        """The weights of the two passes."""
        x, passes = x[:1], []
        out, cells, (top, left) = self._pad(x)
        index = torch.arange(out[0, 0].numel(), device=x.device).view(1, 1, *out.shape[2:])
        for attention, outer in ((self.long, False), (self.short, True)):
            groups = self._split(out, cells, outer)
            queries, keys = (each.flatten(2).transpose(1, 2) for each in attention.project(groups))
            # of each padded position, its index among the groups; then those of the map's own positions
            order = self._split(index, cells, outer).flatten().argsort().view(out.shape[2:])
            own_P = order[top : top + x.shape[2], left : left + x.shape[3]].flatten()
            group_M = torch.arange(len(keys), device=x.device).repeat_interleave(keys.shape[1])
            queries, keys = queries.flatten(0, 1)[own_P], keys.flatten(0, 1)
            size = (x.shape[2], x.shape[3])
            passes.append(DensePass(queries, keys, own_P, attention.scale, size, group_M[own_P], group_M))
            out = self._join(attention(groups), cells, outer)
        return passes

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
        """The map in whole cells, how many these are each way, and where it begins."""
        H, W = x.shape[2:]
        h, w = (H + self.cell - 1) // self.cell, (W + self.cell - 1) // self.cell
        top, left = (h * self.cell - H) // 2, (w * self.cell - W) // 2
        h, w = h + self.spare, w + self.spare
        sides = (left, w * self.cell - W - left, top, h * self.cell - H - top)
        return F.pad(x, sides), (h, w), (top, left)

    def _split(self, x: Tensor, cells: tuple[int, int], outer: bool) -> Tensor:
        """The groups as a batch: per cell, (B h w, C, cell, cell), or per offset in a cell, (B cell cell, C, h, w)."""
        x = x.unflatten(3, (cells[1], self.cell)).unflatten(2, (cells[0], self.cell)).permute(0, 2, 4, 1, 3, 5)
        x = x if outer else x.permute(0, 4, 5, 3, 1, 2)
        return x.flatten(0, 2)

    def _join(self, x: Tensor, cells: tuple[int, int], outer: bool) -> Tensor:
        x = x.unflatten(0, (-1, *(cells if outer else (self.cell, self.cell))))
        x = x if outer else x.permute(0, 4, 5, 3, 1, 2)
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


# by name, from the number of channels and the activation
BLOCKS: dict[str, Callable[[int, str], nn.Module]] = {
    "none": lambda channels, activation: nn.Identity(),
    "criss_cross": lambda channels, activation: RecurrentCrissCross(CrissCrossAttention(channels), 2),
    "nonlocal": lambda channels, activation: NonLocal(channels, max(channels // 2, 1)),
    "gc": lambda channels, activation: GlobalContext(channels),
    "pam": lambda channels, activation: PositionAttention(channels),
    "cam": lambda channels, activation: ChannelAttention(),
    "isa": lambda channels, activation: InterlacedAttention(channels, max(channels // 2, 1), activation),
}
