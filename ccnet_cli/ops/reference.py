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
