"""Attention of every position over all others, by torch's own operator; memory grows with the map alone."""

from collections.abc import Sequence
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

    query_P and key_P say of each of the H W positions which of the G N queries and of the G M keys is its own, -1 for
    none; of a key that several share, each gets an equal part.
    """

    queries_GNC: Tensor
    keys_GMC: Tensor
    query_P: Tensor
    key_P: Tensor
    scale: float
    size: tuple[int, int]

    def spread(self, map_HW: Tensor) -> Tensor:
        """The distribution over positions that those of a map look at, each weighted by its own, (H, W) float64."""
        (groups, _, channels), each = self.keys_GMC.shape, self.queries_GNC.shape[1]
        queries, weight_P = self.queries_GNC.reshape(-1, channels).double(), map_HW.flatten().double()
        total_GM = weight_P.new_zeros(groups, self.keys_GMC.shape[1])
        for position in weight_P.nonzero().flatten().tolist():
            own = int(self.query_P[position])
            energy_M = self.keys_GMC[own // each].double() @ queries[own] * self.scale
            total_GM[own // each] += weight_P[position] * energy_M.softmax(dim=0)
        present = self.key_P >= 0
        key_P = self.key_P.clamp(min=0)
        sharers = torch.bincount(key_P[present], minlength=total_GM.numel()).clamp(min=1)
        return torch.where(present, (total_GM.flatten() / sharers)[key_P], 0.0).view(map_HW.shape)

    def isfinite(self) -> Tensor:
        """Whether queries and keys are, 0-d."""
        return self.queries_GNC.isfinite().all() & self.keys_GMC.isfinite().all()


def dense_pass(query_BCHW: Tensor, key_BCHW: Tensor, scale: float = 1.0) -> DensePass:
    """The weights of the first image's positions over all keys, whose map may be pooled by 2."""
    H, W = query_BCHW.shape[2:]
    h, w = key_BCHW.shape[2:]
    row_H, column_W = (torch.arange(side, device=query_BCHW.device) for side in (H, W))
    factor = 1 if (h, w) == (H, W) else 2
    row_H, column_W = row_H // factor, column_W // factor
    key_HW = row_H[:, None] * w + column_W
    key_HW = key_HW.masked_fill((row_H >= h)[:, None] | (column_W >= w), -1)
    query_P = torch.arange(H * W, device=query_BCHW.device)
    queries, keys = (x[:1].flatten(2).transpose(1, 2) for x in (query_BCHW, key_BCHW))
    return DensePass(queries, keys, query_P, key_HW.flatten(), scale, (H, W))


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
