"""Criss-cross attention by torch's own attention operators, along every row, every column, and any further axis.

Each axis answers with the logarithm of its sum of weights, so that all are merged exactly. They know no mask of a
diagonal: a position's own entry, in all of them, is taken out of all but one. What is left is at least a half of the
sum of two axes, a third of three. Nothing of size H W (H + W) is written; the backward pass computes the weights
again, and nothing is saved for it.

The operators want heads of one width: value becomes heads as wide as query and key, which share these.
"""

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# N lines, L their length, E heads, G their width

aten: Any = torch.ops.aten


def attention_width(*lengths: int) -> int:
    """0: the backward pass needs no attention."""
    return 0


class Arm(NamedTuple):
    """Attention along the lines of one axis: its output (B, *S, C), and logarithms of sums (B, *S)."""

    out_BSC: Tensor
    log_BS: Tensor


class Cross(NamedTuple):
    """All arms merged: output (B, *S, C), logarithm of all weights, and the own entry's fraction (B, *S)."""

    out_BSC: Tensor
    log_BS: Tensor
    own_BS: Tensor


def criss_cross(query_BCS: Tensor, key_BCS: Tensor, value_BCS: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, C, *S) of one pass, and an empty tensor in place of the attention (B, *S, 0)."""
    attention = query_BCS.new_empty(len(value_BCS), *value_BCS.shape[2:], 0)
    if not value_BCS.numel() or not query_BCS.numel():
        return _mean(value_BCS), attention
    merged = _merge(*(_innermost(x, value_BCS.dtype) for x in (query_BCS, key_BCS, value_BCS)))
    return merged.out_BSC.to(value_BCS.dtype).movedim(-1, 1), attention


def criss_cross_backward(
    grad_BCS: Tensor, query_BCS: Tensor, key_BCS: Tensor, value_BCS: Tensor, attention_BSP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient."""
    dtype = value_BCS.dtype
    if not value_BCS.numel() or not query_BCS.numel():
        return torch.zeros_like(query_BCS), torch.zeros_like(key_BCS), _mean(grad_BCS)
    grad, query, key, value = (_innermost(x, dtype) for x in (grad_BCS, query_BCS, key_BCS, value_BCS))
    merged = _merge(query, key, value)
    wide_grad, wide_value = grad.to(merged.out_BSC.dtype), value.to(merged.out_BSC.dtype)
    # the own entry, which all arms hold: minus its part in all but one of them
    spare_BS = (_axes(value) - 1) * merged.own_BS
    delta_BS = (wide_grad * merged.out_BSC).sum(-1)
    pull_BS1 = (spare_BS * ((wide_grad * wide_value).sum(-1) - delta_BS))[..., None]
    gradients = [-pull_BS1 * key, -pull_BS1 * query, -spare_BS[..., None] * wide_grad]
    for axis in reversed(range(_axes(value))):
        parts = _backward(grad, (query, key, value), merged, axis)
        gradients = [one + other for one, other in zip(gradients, parts, strict=True)]
    d_query, d_key, d_value = (x_BSC.movedim(-1, 1) for x_BSC in gradients)
    return d_query.to(query_BCS.dtype), d_key.to(key_BCS.dtype), d_value.to(dtype)


def _mean(x_BCS: Tensor) -> Tensor:
    """The mean over each position's cross: without channels of query and key, all energies are 0."""
    axes = x_BCS.dim() - 2
    total = sum(x_BCS.sum(axis, keepdim=True) for axis in range(2, axes + 2)) - (axes - 1) * x_BCS
    return total / max(sum(x_BCS.shape[2:]) - axes + 1, 1)


def _axes(x_BSC: Tensor) -> int:
    return x_BSC.dim() - 2


def _innermost(x_BCS: Tensor, dtype: torch.dtype) -> Tensor:
    return x_BCS.movedim(1, -1).to(dtype).contiguous()


def _merge(query_BSC: Tensor, key_BSC: Tensor, value_BSC: Tensor) -> Cross:
    """All axes as one softmax over the cross, the own position in it once; float32 at least."""
    wide = torch.promote_types(value_BSC.dtype, torch.float32)
    axes = _axes(value_BSC)
    arms = [_attend(query_BSC, key_BSC, value_BSC, axis) for axis in reversed(range(axes))]
    own_BS = (query_BSC.to(wide) * key_BSC.to(wide)).sum(-1)
    top_BS = reduce(torch.maximum, (arm.log_BS for arm in arms))
    weights = [(arm.log_BS - top_BS).exp() for arm in arms]
    spare_BS = (axes - 1) * (own_BS - top_BS).exp()
    total_BS = reduce(torch.add, weights) - spare_BS
    parts = [*zip(weights, (arm.out_BSC for arm in arms), strict=True), (-spare_BS, value_BSC)]
    out_BSC = sum((weight / total_BS)[..., None] * x.to(wide) for weight, x in parts)
    log_BS = top_BS + total_BS.log()
    return Cross(torch.as_tensor(out_BSC), log_BS, (own_BS - log_BS).exp())


def _attend(query_BSC: Tensor, key_BSC: Tensor, value_BSC: Tensor, axis: int) -> Arm:
    query, key, value = _heads(query_BSC, key_BSC, value_BSC, axis)
    if not value.is_cuda:
        out, log = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, scale=1.0)
    elif value.element_size() == 2:
        out, log, *_ = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False, scale=1.0)
    else:
        out, log, *_ = aten._scaled_dot_product_efficient_attention(query, key, value, None, True, scale=1.0)
    log_NL = log[:, 0, : query.shape[2]]
    return Arm(_from_heads(out, value_BSC.shape, axis), _from_lines(log_NL, value_BSC.shape, axis))


def _backward(
    grad_BSC: Tensor, inputs: tuple[Tensor, Tensor, Tensor], merged: Cross, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One axis's part of the gradients (B, *S, C', C', C): its own backward pass with the merged sums."""
    query, key, value = _heads(*inputs, axis)
    shape, narrow = inputs[2].shape, inputs[0].shape
    grad, out = (_split(x.to(value.dtype), query.shape[3], axis) for x in (grad_BSC, merged.out_BSC))
    log = _lines(merged.log_BS[..., None], axis)[:, None, :, 0].expand(-1, query.shape[1], -1)
    if not value.is_cuda:
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
        parts = backward(grad, query, key, value, out, log.contiguous(), 0.0, False, scale=1.0)
    elif value.element_size() == 2:
        backward, L = aten._scaled_dot_product_flash_attention_backward, query.shape[2]
        # without dropout, no random numbers are read
        empty = torch.empty(0, dtype=torch.uint64, device=value.device)
        sums = out, log.contiguous(), None, None
        parts = backward(grad, query, key, value, *sums, L, L, 0.0, False, empty, empty, scale=1.0)
    else:
        backward = aten._scaled_dot_product_efficient_attention_backward
        # it wants the sums of each line in whole groups of 32
        log = F.pad(log, (0, -log.shape[2] % 32)).contiguous()
        empty = torch.empty((), dtype=torch.int64, device=value.device)
        wanted = True, True, True, False
        parts = backward(grad, query, key, value, None, out, log, empty, empty, 0.0, wanted, False, scale=1.0)
    d_query, d_key = (_from_lines(x.sum(1, dtype=merged.log_BS.dtype), narrow, axis) for x in parts[:2])
    return d_query, d_key, _from_heads(parts[2], shape, axis)


def _heads(query_BSC: Tensor, key_BSC: Tensor, value_BSC: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as (N, E, L, G)."""
    value = _split(value_BSC, query_BSC.shape[-1], axis)
    query, key = (_lines(x, axis)[:, None].expand(-1, value.shape[1], -1, -1) for x in (query_BSC, key_BSC))
    return query, key, value


def _split(x_BSC: Tensor, width: int, axis: int) -> Tensor:
    """Channels as heads of `width`, the last one padded by zeros: (N, E, L, G)."""
    x_NLC = F.pad(_lines(x_BSC, axis), (0, -x_BSC.shape[-1] % width))
    return x_NLC.view(*x_NLC.shape[:2], -1, width).transpose(1, 2)


def _from_heads(x_NELG: Tensor, shape: torch.Size, axis: int) -> Tensor:
    return _from_lines(x_NELG.transpose(1, 2).flatten(2)[..., : shape[-1]], shape, axis)


def _lines(x_BSC: Tensor, axis: int) -> Tensor:
    """The lines along an axis as the first one: (B, *S, C) -> (N, L, C)."""
    return x_BSC.movedim(axis + 1, -2).flatten(0, -3)


def _from_lines(x_NL: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Back to (B, *S, ...), where shape is that of (B, *S, C)."""
    B, *others, _ = shape
    others.pop(axis)
    return x_NL.reshape(B, *others, *x_NL.shape[1:]).movedim(len(others) + 1, axis + 1)
