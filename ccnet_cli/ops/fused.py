"""The torch operators of fused attention on CUDA, which writes and saves nothing of size H W (H + W)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ccnet_cli.ops import registered
from ccnet_cli.ops.cuda import attention
from ccnet_cli.ops.define import operator


def fits(value: Tensor) -> bool:
    """Whether "numba" is this for a value."""
    return attention.fits(value)


def criss_cross(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One pass in the type of value."""
    out: Tensor = torch.ops.ccnet.fused(query.to(value.dtype), key.to(value.dtype), value)[0]
    return out


def residual(query: Tensor, key: Tensor, value: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """Gamma times one pass, plus x, in the type of value; without gradients, which need the pass itself."""
    out: Tensor = torch.ops.ccnet.fused_residual(query, key, value, x, gamma)
    return out


@torch.no_grad()
def run_once(query: Tensor, key: Tensor, value: Tensor, gradients: bool) -> None:
    """One pass to measure, without autograd."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    out, log = attention.attend(query, key, value)
    if gradients:
        attention.attend_backward(out, query, key, value, out, log)


@operator("fused")
def _fused(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return attention.attend(query, key, value)


@operator("fused_residual")
def _fused_residual(query: Tensor, key: Tensor, value: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    return attention.attend_and_add(query, key, value, x, gamma)


@operator("fused_backward")
def _fused_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return attention.attend_backward(grad, query, key, value, out, log)


def _empty(like: Tensor) -> Tensor:
    B, C, H, W = like.shape
    return like.new_empty(B, H, W, C).permute(0, 3, 1, 2)


@_fused.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    B, _, H, W = value.shape
    return _empty(value), value.new_empty(B, H, W, dtype=torch.float32)


@_fused_residual.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    return _empty(value)


@_fused_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(query), _empty(key), _empty(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, out, log = ctx.saved_tensors
    if not torch.is_grad_enabled():
        d_query, d_key, d_value = torch.ops.ccnet.fused_backward(grad, query, key, value, out, log)
        return d_query, d_key, d_value
    # the caller wants gradients of these gradients
    parts = registered._differentiable_gradients(grad, query.float(), key.float(), value, "numba")
    return parts[0].to(query.dtype), parts[1].to(key.dtype), parts[2].to(value.dtype)


_fused.register_autograd(_gradient, setup_context=_save)


@register_flop_formula([torch.ops.ccnet.fused, torch.ops.ccnet.fused_residual])
def _flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return registered._criss_cross_flops(query, key, value)


@register_flop_formula(torch.ops.ccnet.fused_backward)
def _backward_flops(grad: Sequence[int], query: Sequence[int], *_: Any, **__: Any) -> int:
    return registered._backward_flops(grad, query)
