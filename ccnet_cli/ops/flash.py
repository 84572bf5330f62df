"""Criss-cross attention by torch's own attention operators, along every row and along every column.

Each direction answers with the logarithm of its sum of weights, so that the two are merged exactly. They know no mask
of a diagonal: a pixel's own entry, in both, is taken out once. What is left is at least half of the sum. Nothing of
size H W (H + W) is written; the backward pass computes the weights again, and nothing is saved for it.

The operators want heads of one width: value becomes heads as wide as query and key, which share these.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# N lines, L their length, E heads, G their width

aten: Any = torch.ops.aten


def attention_width(height: int, width: int) -> int:
    """0: the backward pass needs no attention."""
    return 0


class Direction(NamedTuple):
    """Attention along the lines of one direction: its output (B, H, W, C), and logarithms of sums (B, H, W)."""

    out_BHWC: Tensor
    log_BHW: Tensor


class Sides(NamedTuple):
    """The two directions merged: output (B, H, W, C), logarithm of all weights, and the own entry's share (B, H, W)."""

    out_BHWC: Tensor
    log_BHW: Tensor
    own_BHW: Tensor


def criss_cross(query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W) of one pass, and an empty tensor in place of the attention (B, H, W, 0)."""
    B, H, W = len(value_BCHW), *value_BCHW.shape[2:]
    attention = query_BCHW.new_empty(B, H, W, 0)
    if not value_BCHW.numel() or not query_BCHW.numel():
        # without channels all energies are 0
        mean = value_BCHW.sum(2, keepdim=True) + value_BCHW.sum(3, keepdim=True) - value_BCHW
        return mean / max(H + W - 1, 1), attention
    merged = _merge(*(_innermost(x, value_BCHW.dtype) for x in (query_BCHW, key_BCHW, value_BCHW)))
    return merged.out_BHWC.to(value_BCHW.dtype).permute(0, 3, 1, 2), attention


def criss_cross_backward(
    grad_BCHW: Tensor, query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, attention_BHWP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient."""
    dtype = value_BCHW.dtype
    if not value_BCHW.numel() or not query_BCHW.numel():
        H, W = value_BCHW.shape[2:]
        d_value = grad_BCHW.sum(2, keepdim=True) + grad_BCHW.sum(3, keepdim=True) - grad_BCHW
        return torch.zeros_like(query_BCHW), torch.zeros_like(key_BCHW), d_value / max(H + W - 1, 1)
    grad, query, key, value = (_innermost(x, dtype) for x in (grad_BCHW, query_BCHW, key_BCHW, value_BCHW))
    merged = _merge(query, key, value)
    wide_grad, wide_value = grad.to(merged.out_BHWC.dtype), value.to(merged.out_BHWC.dtype)
    # the own entry, which both directions hold: minus its part in one of them
    delta_BHW = (wide_grad * merged.out_BHWC).sum(-1)
    pull_BHW1 = (merged.own_BHW * ((wide_grad * wide_value).sum(-1) - delta_BHW))[..., None]
    gradients = [-pull_BHW1 * key, -pull_BHW1 * query, -merged.own_BHW[..., None] * wide_grad]
    for across in (False, True):
        parts = _backward(grad, (query, key, value), merged, across)
        gradients = [one + other for one, other in zip(gradients, parts, strict=True)]
    d_query, d_key, d_value = (x_BHWC.permute(0, 3, 1, 2) for x_BHWC in gradients)
    return d_query.to(query_BCHW.dtype), d_key.to(key_BCHW.dtype), d_value.to(dtype)


def _innermost(x_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    return x_BCHW.permute(0, 2, 3, 1).to(dtype).contiguous()


def _merge(query_BHWC: Tensor, key_BHWC: Tensor, value_BHWC: Tensor) -> Sides:
    """Both directions as one softmax over the cross, the own pixel in it once; float32 at least."""
    wide = torch.promote_types(value_BHWC.dtype, torch.float32)
    rows, columns = (_attend(query_BHWC, key_BHWC, value_BHWC, across) for across in (False, True))
    own_BHW = (query_BHWC.to(wide) * key_BHWC.to(wide)).sum(-1)
    top_BHW = torch.maximum(rows.log_BHW, columns.log_BHW)
    row_BHW, column_BHW, twice_BHW = ((x - top_BHW).exp() for x in (rows.log_BHW, columns.log_BHW, own_BHW))
    total_BHW = row_BHW + column_BHW - twice_BHW
    parts = ((row_BHW, rows.out_BHWC), (column_BHW, columns.out_BHWC), (-twice_BHW, value_BHWC))
    out_BHWC = sum((weight / total_BHW)[..., None] * x.to(wide) for weight, x in parts)
    log_BHW = top_BHW + total_BHW.log()
    return Sides(torch.as_tensor(out_BHWC), log_BHW, (own_BHW - log_BHW).exp())


def _attend(query_BHWC: Tensor, key_BHWC: Tensor, value_BHWC: Tensor, across: bool) -> Direction:
    query, key, value = _heads(query_BHWC, key_BHWC, value_BHWC, across)
    if not value.is_cuda:
        out, log = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, scale=1.0)
    elif value.element_size() == 2:
        out, log, *_ = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False, scale=1.0)
    else:
        out, log, *_ = aten._scaled_dot_product_efficient_attention(query, key, value, None, True, scale=1.0)
    log_NL = log[:, 0, : query.shape[2]]
    return Direction(_from_heads(out, value_BHWC.shape, across), _from_lines(log_NL, value_BHWC.shape, across))


def _backward(
    grad_BHWC: Tensor, inputs: tuple[Tensor, Tensor, Tensor], merged: Sides, across: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction's part of the gradients (B, H, W, C', C', C): its own backward pass with the merged sums."""
    query, key, value = _heads(*inputs, across)
    shape, narrow = inputs[2].shape, inputs[0].shape
    grad, out = (_split(x.to(value.dtype), query.shape[3], across) for x in (grad_BHWC, merged.out_BHWC))
    log = _lines(merged.log_BHW, across)[:, None].expand(-1, query.shape[1], -1)
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
    d_query, d_key = (_from_lines(x.sum(1, dtype=merged.log_BHW.dtype), narrow, across) for x in parts[:2])
    return d_query, d_key, _from_heads(parts[2], shape, across)


def _heads(query_BHWC: Tensor, key_BHWC: Tensor, value_BHWC: Tensor, across: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as (N, E, L, G); across is along the columns."""
    value = _split(value_BHWC, query_BHWC.shape[3], across)
    query, key = (_lines(x, across)[:, None].expand(-1, value.shape[1], -1, -1) for x in (query_BHWC, key_BHWC))
    return query, key, value


def _split(x_BHWC: Tensor, width: int, across: bool) -> Tensor:
    """Channels as heads of `width`, the last one padded by zeros: (N, E, L, G)."""
    x_NLC = F.pad(_lines(x_BHWC, across), (0, -x_BHWC.shape[3] % width))
    return x_NLC.view(*x_NLC.shape[:2], -1, width).transpose(1, 2)


def _from_heads(x_NELG: Tensor, shape: torch.Size, across: bool) -> Tensor:
    return _from_lines(x_NELG.transpose(1, 2).flatten(2)[..., : shape[3]], shape, across)


def _lines(x_BHW: Tensor, across: bool) -> Tensor:
    """Rows, or columns, as the first axis: (B, H, W, ...) -> (N, L, ...)."""
    return (x_BHW.transpose(1, 2) if across else x_BHW).flatten(0, 1)


def _from_lines(x_NL: Tensor, shape: torch.Size, across: bool) -> Tensor:
    B, H, W = shape[:3]
    x = x_NL.reshape(B, W if across else H, *x_NL.shape[1:])
    return x.transpose(1, 2) if across else x
