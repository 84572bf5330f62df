"""One pass of criss-cross attention and its gradients, composed of an implementation's three bilinear operators."""

from typing import Any

from torch import Tensor


def criss_cross(operators: Any, query_BCS: Tensor, key_BCS: Tensor, value_BCS: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, C, *S) and attention (B, *S, P)."""
    attention_BPS = operators.affinity(query_BCS, key_BCS, True).softmax(dim=1)
    out_BCS = operators.aggregate(attention_BPS.to(value_BCS.dtype), value_BCS)
    return out_BCS, attention_BPS.movedim(1, -1)


def criss_cross_backward(
    operators: Any,
    grad_BCS: Tensor,
    query_BCS: Tensor,
    key_BCS: Tensor,
    value_BCS: Tensor,
    attention_BSP: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient and the attention."""
    attention_BPS = attention_BSP.movedim(-1, 1)
    pull_BPS = operators.affinity(grad_BCS, value_BCS, False).to(attention_BPS.dtype)
    energy_BPS = attention_BPS * (pull_BPS - (attention_BPS * pull_BPS).sum(dim=1, keepdim=True))
    return (
        operators.aggregate(energy_BPS, key_BCS),
        operators.scatter(energy_BPS, query_BCS),
        operators.scatter(attention_BPS.to(grad_BCS.dtype), grad_BCS),
    )
