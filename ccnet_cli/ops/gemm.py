"""The criss-cross operators as strided batched matrix products on channels-last tensors.

With the channels innermost, the rows of an image are H matrices (W, C) and its columns, seen through a transposed view,
are W matrices (H, C): every product below reads and writes such views in place, without permuted copies. Energies of
both arms land in one buffer (B, H, W, P), so that one softmax over its last axis covers the whole cross.
"""

import torch
from torch import Tensor


def channels_innermost(x_BCHW: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H, W, C) with unit channel stride; copies only where the layout is another."""
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    return x_BHWC if x_BHWC.stride(-1) == 1 and x_BHWC.shape[-1] > 1 else x_BHWC.contiguous()


def _energies(query_BHWC: Tensor, key_BHWC: Tensor, mask: bool) -> Tensor:
    B, H, W, _ = query_BHWC.shape
    energy_BHWP = query_BHWC.new_empty(B, H, W, H + W)
    for query, key, energy in zip(query_BHWC, key_BHWC, energy_BHWP, strict=True):
        column_WHG = energy.transpose(0, 1)[..., :H]
        torch.bmm(query.transpose(0, 1), key.permute(1, 2, 0), out=column_WHG)
        torch.bmm(query, key.transpose(1, 2), out=energy[..., H:])
        if mask:
            # the pixel lies on both arms: count it once, in the row
            column_WHG.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
    return energy_BHWP


def _gather(attention_BHWP: Tensor, value_BHWC: Tensor) -> Tensor:
    B, H, W, C = value_BHWC.shape
    out_BHWC = value_BHWC.new_empty(B, H, W, C)
    for weight, value, out in zip(attention_BHWP, value_BHWC, out_BHWC, strict=True):
        torch.bmm(weight[..., H:], value, out=out)
        out.transpose(0, 1).baddbmm_(weight.transpose(0, 1)[..., :H], value.transpose(0, 1))
    return out_BHWC


def _spread(attention_BHWP: Tensor, value_BHWC: Tensor) -> Tensor:
    B, H, W, C = value_BHWC.shape
    out_BHWC = value_BHWC.new_empty(B, H, W, C)
    for weight, value, out in zip(attention_BHWP, value_BHWC, out_BHWC, strict=True):
        torch.bmm(weight[..., H:].transpose(1, 2), value, out=out)
        out.transpose(0, 1).baddbmm_(weight[..., :H].permute(1, 2, 0), value.transpose(0, 1))
    return out_BHWC


def _to_BCHW(x_BHWC: Tensor) -> Tensor:
    return x_BHWC.permute(0, 3, 1, 2)


def affinity(query_BCHW: Tensor, key_BCHW: Tensor, mask: bool) -> Tensor:
    """Energies of each pixel over its cross, not scaled: two (B, C, H, W) -> (B, P, H, W); own column entry -inf."""
    return _to_BCHW(_energies(channels_innermost(query_BCHW), channels_innermost(key_BCHW), mask))


def aggregate(attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """Gather each pixel's cross, weighted: (B, P, H, W), (B, C, H, W) -> (B, C, H, W)."""
    return _to_BCHW(_gather(channels_innermost(attention_BPHW), channels_innermost(value_BCHW)))


def scatter(attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """Spread each pixel's value over its cross, weighted: the adjoint of aggregate, with the same shapes."""
    return _to_BCHW(_spread(channels_innermost(attention_BPHW), channels_innermost(value_BCHW)))


def criss_cross(query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W) and attention (B, H, W, P) of one pass of criss-cross attention."""
    energy_BHWP = _energies(channels_innermost(query_BCHW), channels_innermost(key_BCHW), mask=True)
    attention_BHWP = torch.softmax(energy_BHWP, dim=-1)
    out_BHWC = _gather(attention_BHWP.to(value_BCHW.dtype), channels_innermost(value_BCHW))
    return _to_BCHW(out_BHWC), attention_BHWP


def criss_cross_backward(
    grad_BCHW: Tensor, query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, attention_BHWP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient and the saved attention."""
    grad_BHWC = channels_innermost(grad_BCHW)
    pull_BHWP = _energies(grad_BHWC, channels_innermost(value_BCHW), mask=False).to(attention_BHWP.dtype)
    # the softmax's own backward: attention * (pull - sum(attention * pull)), in one pass
    energy_BHWP = torch.ops.aten._softmax_backward_data(pull_BHWP, attention_BHWP, -1, attention_BHWP.dtype)
    return (
        _to_BCHW(_gather(energy_BHWP, channels_innermost(key_BCHW))),
        _to_BCHW(_spread(energy_BHWP, channels_innermost(query_BCHW))),
        _to_BCHW(_spread(attention_BHWP.to(grad_BHWC.dtype), grad_BHWC)),
    )
