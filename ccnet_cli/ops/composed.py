"""One pass of criss-cross attention and its gradients, composed of an implementation's three bilinear operators."""

from typing import Any

from torch import Tensor


def criss_cross(operators: Any, query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W) and attention (B, H, W, P)."""
    attention_BPHW = operators.affinity(query_BCHW, key_BCHW, True).softmax(dim=1)
    out_BCHW = operators.aggregate(attention_BPHW.to(value_BCHW.dtype), value_BCHW)
    return out_BCHW, attention_BPHW.permute(0, 2, 3, 1)


def criss_cross_backward(
    operators: Any,
    grad_BCHW: Tensor,
    query_BCHW: Tensor,
    key_BCHW: Tensor,
    value_BCHW: Tensor,
    attention_BHWP: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient and the attention."""
    attention_BPHW = attention_BHWP.permute(0, 3, 1, 2)
    pull_BPHW = operators.affinity(grad_BCHW, value_BCHW, False).to(attention_BPHW.dtype)
    energy_BPHW = attention_BPHW * (pull_BPHW - (attention_BPHW * pull_BPHW).sum(dim=1, keepdim=True))
    return (
        operators.aggregate(energy_BPHW, key_BCHW),
        operators.scatter(energy_BPHW, query_BCHW),
        operators.scatter(attention_BPHW.to(grad_BCHW.dtype), grad_BCHW),
    )
