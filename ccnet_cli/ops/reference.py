"""The definition of the criss-cross operators: short, any dtype and device, differentiable by autograd."""

import torch
from torch import Tensor


def affinity(query_BCHW: Tensor, key_BCHW: Tensor, mask: bool) -> Tensor:
    """Energies of each pixel over its cross, not scaled: two (B, C, H, W) -> (B, P, H, W); own column entry -inf."""
    column_BGHW = torch.einsum("bchw,bcgw->bghw", query_BCHW, key_BCHW)
    row_BVHW = torch.einsum("bchw,bchv->bvhw", query_BCHW, key_BCHW)
    if mask:
        own_GH = torch.eye(query_BCHW.shape[-2], dtype=torch.bool, device=query_BCHW.device)
        # the pixel lies on both arms: count it once, in the row
        column_BGHW = column_BGHW.masked_fill(own_GH[..., None], float("-inf"))
    return torch.cat([column_BGHW, row_BVHW], dim=1)


def aggregate(attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """Gather each pixel's cross, weighted: (B, P, H, W), (B, C, H, W) -> (B, C, H, W)."""
    column_BGHW, row_BVHW = attention_BPHW.split(list(value_BCHW.shape[-2:]), dim=1)
    return torch.einsum("bghw,bcgw->bchw", column_BGHW, value_BCHW) + torch.einsum(
        "bvhw,bchv->bchw", row_BVHW, value_BCHW
    )


def scatter(attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """Spread each pixel's value over its cross, weighted: the adjoint of aggregate, with the same shapes."""
    column_BGHW, row_BVHW = attention_BPHW.split(list(value_BCHW.shape[-2:]), dim=1)
    return torch.einsum("bghw,bchw->bcgw", column_BGHW, value_BCHW) + torch.einsum(
        "bvhw,bchw->bchv", row_BVHW, value_BCHW
    )


def criss_cross(query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W) and attention (B, H, W, P) of one pass of criss-cross attention."""
    attention_BPHW = affinity(query_BCHW, key_BCHW, mask=True).softmax(dim=1)
    return aggregate(attention_BPHW.to(value_BCHW.dtype), value_BCHW), attention_BPHW.permute(0, 2, 3, 1)


def criss_cross_backward(
    grad_BCHW: Tensor, query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, attention_BHWP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient and the saved attention."""
    attention_BPHW = attention_BHWP.permute(0, 3, 1, 2)
    pull_BPHW = affinity(grad_BCHW, value_BCHW, mask=False).to(attention_BPHW.dtype)
    energy_BPHW = attention_BPHW * (pull_BPHW - (attention_BPHW * pull_BPHW).sum(dim=1, keepdim=True))
    return (
        aggregate(energy_BPHW, key_BCHW),
        scatter(energy_BPHW, query_BCHW),
        scatter(attention_BPHW.to(grad_BCHW.dtype), grad_BCHW),
    )
