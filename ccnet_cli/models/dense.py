"""Attention of every position over all others, by torch's own operator; memory grows with the map alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

# B batch, C channels, H height, W width of the map; N and M positions that ask and that are asked, G groups of them

# bytes of weights that exist at once on the CPU where torch's kernel does not apply
CHUNK_BYTES = 8 << 20


def attend_everywhere(
    query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, scale: float = 1.0, mask_HW: Tensor | None = None
) -> Tensor:
    """What each position of the query gathers from all values with weights softmax(scale q k): (B, C, H, W).

    Key and value may be of another size than the query; the mask is False where a key must not be looked at.
    """
    query, key, value = (x.flatten(2).transpose(1, 2).contiguous()[:, None] for x in (query_BCHW, key_BCHW, value_BCHW))
    if mask_HW is None:
        gathered_BNC = _gather(query, key, value, scale)[:, 0]
    else:
        mask = mask_HW.flatten()[None, None, None]
        gathered_BNC = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)[:, 0]
    gathered: Tensor = gathered_BNC.transpose(1, 2).unflatten(2, query_BCHW.shape[2:])
    return gathered


def _gather(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """(B, 1, N, C'), (B, 1, M, C'), (B, 1, M, C) -> (B, 1, N, C)."""
    if query.device.type != "cpu" or query.shape[3] == value.shape[3] or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    # the CPU's kernel needs values as wide as queries: else torch holds all weights at once
    rows = max(CHUNK_BYTES // (4 * len(key) * key.shape[2]), 1)
    parts = query.split(rows, dim=2)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        return torch.cat([checkpoint(_attend, part, key, value, scale, use_reentrant=False) for part in parts], dim=2)
    return torch.cat([_attend(part, key, value, scale) for part in parts], dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


@dataclass(frozen=True, eq=False)
class DensePass:
    """The weights softmax(scale q k) of one image's positions within their group, computed for those asked for.

    queries_PC is the query of each of the H W positions, keys_MC all keys. key_P says which key is a position's own, -1
    for none; of a key that several share, each gets an equal part. group_P and group_M, the groups of positions and of
    keys, are None where there is one.
    """

    queries_PC: Tensor
    keys_MC: Tensor
    key_P: Tensor
    scale: float
    size: tuple[int, int]
    group_P: Tensor | None = None
    group_M: Tensor | None = None

    def spread(self, map_HW: Tensor) -> Tensor:
        """The distribution over positions that those of a map look at, each weighted by its own, (H, W) float64."""
        weight_P = map_HW.flatten().double()
        total_M = weight_P.new_zeros(len(self.keys_MC))
        own_M: Any = slice(None)
        for position in weight_P.nonzero().flatten().tolist():
            if self.group_P is not None and self.group_M is not None:
                own_M = torch.where(self.group_M == self.group_P[position])[0]
            energy_M = self.keys_MC[own_M].double() @ self.queries_PC[position].double() * self.scale
            total_M[own_M] += weight_P[position] * energy_M.softmax(dim=0)
        present = self.key_P >= 0
        key_P = self.key_P.clamp(min=0)
        sharers = torch.bincount(key_P[present], minlength=len(total_M)).clamp(min=1)
        return torch.where(present, (total_M / sharers)[key_P], 0.0).view(map_HW.shape)

    def isfinite(self) -> Tensor:
        """Whether queries and keys are, 0-d."""
        return self.queries_PC.isfinite().all() & self.keys_MC.isfinite().all()


@dataclass(frozen=True, eq=False)
class ChannelPass:
    """What the channels of one image gather from one another; its maps are those of classes, not of positions.

    answer maps the block's output to class scores, gain is what the gathered part is multiplied with in that output.
    """

    gathered_BCHW: Tensor
    output_BCHW: Tensor
    gain: float
    answer: Callable[[Tensor], Tensor]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.output_BCHW.shape[2], self.output_BCHW.shape[3]

    def of_class(self, index: int) -> tuple[int, Tensor]:
        """The channel whose gathered part adds most to a class's scores, and its map: that part's size, (H, W) float64.

        To the scores where the class is predicted, or everywhere if it is nowhere: gradient times what is gathered. The
        map sums to 1; that of a channel that gathered nothing is even.
        """
        with torch.inference_mode(False), torch.enable_grad():
            output = self.output_BCHW.clone().requires_grad_()
            scores_KHW = self.answer(output)[0]
            own = scores_KHW.argmax(dim=0) == index
            chosen = scores_KHW[index][own] if own.any() else scores_KHW[index]
            (slope_BCHW,) = torch.autograd.grad(chosen.sum(), output)
        effect_C = (slope_BCHW * self.gathered_BCHW)[0].double().sum((1, 2)) * (self.gain or 1.0)
        channel = int(effect_C.argmax())
        part_HW = self.gathered_BCHW[0, channel].double().abs()
        total = part_HW.sum()
        return channel, part_HW / total if total > 0 else torch.full_like(part_HW, 1 / part_HW.numel())

    def isfinite(self) -> Tensor:
        """Whether all that is gathered is, 0-d."""
        return self.gathered_BCHW.isfinite().all()


def dense_pass(
    query_BCHW: Tensor, key_BCHW: Tensor, scale: float = 1.0, size: tuple[int, int] | None = None
) -> DensePass:
    """The weights of the first image's positions over all keys; both maps may be pooled by 2 from one of that size.

    A position of a pooled query has that of its cell of 2 x 2, as if outputs were not interpolated between cells.
    """
    size = size or (query_BCHW.shape[2], query_BCHW.shape[3])
    # of an odd last row or column, which no cell has, the query is the nearest
    query_P, key_P = _cells(size, query_BCHW, nearest=True), _cells(size, key_BCHW)
    queries, keys = (x[0].flatten(1).T for x in (query_BCHW, key_BCHW))
    return DensePass(queries[query_P], keys, key_P, scale, size)


def grouped_pass(query_BCHW: Tensor, key_BCHW: Tensor, group_HW: Tensor, scale: float) -> DensePass:
    """The weights of the first image's positions over those of the same group."""
    queries, keys = (x[0].flatten(1).T for x in (query_BCHW, key_BCHW))
    group_P, key_P = group_HW.flatten(), torch.arange(len(keys), device=keys.device)
    return DensePass(queries, keys, key_P, scale, (group_HW.shape[0], group_HW.shape[1]), group_P, group_P)


def _cells(size: tuple[int, int], map_BCHW: Tensor, nearest: bool = False) -> Tensor:
    """The cell of each position in a map of that size or pooled by 2, (H W); where there is none, -1 or the nearest."""
    axes = []
    for length, cells in zip(size, map_BCHW.shape[2:], strict=True):
        index = torch.arange(length, device=map_BCHW.device) // (1 if tuple(map_BCHW.shape[2:]) == size else 2)
        axes.append(index.clamp(max=cells - 1) if nearest else index.where(index < cells, -(1 << 40)))
    return (axes[0][:, None] * map_BCHW.shape[3] + axes[1]).flatten().clamp(min=-1)


def _flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward_flops(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# torch has formulas for CUDA's operators alone
for _operator, _formula in (
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, _flops),
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, _backward_flops),
):
    if _operator not in flop_registry:
        register_flop_formula(_operator)(_formula)
