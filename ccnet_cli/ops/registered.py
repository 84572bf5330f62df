"""The torch operators behind the public functions: one operator each for autocast, torch.compile, DDP and export."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ccnet_cli.errors import InputError
from ccnet_cli.ops import IMPLEMENTATIONS, composed, cpu
from ccnet_cli.ops.define import operator
from ccnet_cli.ops.reference import own_entries


def load(implementation: str, device: str) -> Any:
    """The module of an implementation for a type of device."""
    # graphs that 0.1.0 exported say "vector" where they mean numba on the CPU
    module = IMPLEMENTATIONS["numba" if implementation == "vector" else implementation].on(device)
    return import_module(module) if isinstance(module, str) else module


def _operator(implementation: str, x: Tensor, name: str) -> Any:
    """An implementation's operator, or that composed of its others; InputError where it has neither."""
    operator = getattr(load(implementation, x.device.type), name, None)
    if operator is None and implementation in IMPLEMENTATIONS and (rest := IMPLEMENTATIONS[implementation].rest):
        return _operator(rest, x, name)
    if operator is None and name in vars(composed):
        others = _bilinear(lambda other, *inputs: _operator(implementation, x, other)(*inputs))
        return partial(getattr(composed, name), others)
    if operator is None:
        raise InputError(f"implementation {implementation}", f"it has no {name}", "add it, or use another")
    return operator


def _bilinear(call: Callable[..., Tensor]) -> Any:
    """The three operators, as calls of a function with their name and input."""
    return SimpleNamespace(**{name: partial(call, name) for name in ("affinity", "aggregate", "scatter")})


@torch.no_grad()
def run_once(implementation: str, query: Tensor, key: Tensor, value: Tensor, gradients: bool) -> None:
    """One pass to measure, without autograd: its hooks on saved tensors belong to the caller."""
    out, attention = _operator(implementation, query, "criss_cross")(query, key, value)
    if gradients:
        _operator(implementation, query, "criss_cross_backward")(out, query, key, value, attention)


# The three bilinear operators are closed under differentiation: the gradients of each are the other two.


@operator("affinity")
def _affinity(query: Tensor, key: Tensor, mask: bool, implementation: str) -> Tensor:
    return _innermost(_operator(implementation, query, "affinity")(query, key, mask))


@operator("aggregate")
def _aggregate(attention: Tensor, value: Tensor, implementation: str) -> Tensor:
    return _innermost(_operator(implementation, value, "aggregate")(attention, value))


@operator("scatter")
def _scatter(attention: Tensor, value: Tensor, implementation: str) -> Tensor:
    return _innermost(_operator(implementation, value, "scatter")(attention, value))


@operator("criss_cross")
def _criss_cross(query: Tensor, key: Tensor, value: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    out, attention_BSP = _operator(implementation, query, "criss_cross")(query, key, value)
    return _innermost(out), attention_BSP.contiguous()


@operator("criss_cross_backward")
def _criss_cross_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, attention: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    backward = _operator(implementation, query, "criss_cross_backward")
    gradients = backward(grad, query, key, value, attention)
    return _innermost(gradients[0]), _innermost(gradients[1]), _innermost(gradients[2])


def _innermost(x_BCS: Tensor) -> Tensor:
    """Every implementation answers with its second axis innermost in memory, as the fake kernels promise."""
    return x_BCS.movedim(1, -1).contiguous().movedim(-1, 1)


def _empty(like: Tensor, channels: int) -> Tensor:
    B, _, *S = like.shape
    return like.new_empty(B, *S, channels).movedim(-1, 1)


@_affinity.register_fake
def _(query: Tensor, key: Tensor, mask: bool, implementation: str) -> Tensor:
    return _empty(query, sum(query.shape[2:]))


@_aggregate.register_fake
def _(attention: Tensor, value: Tensor, implementation: str) -> Tensor:
    return _empty(value, value.shape[1])


@_scatter.register_fake
def _(attention: Tensor, value: Tensor, implementation: str) -> Tensor:
    return _empty(value, value.shape[1])


@_criss_cross.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    B, _, *S = query.shape
    # the attention is for the same implementation's backward pass, which may want its arms padded
    width = getattr(load(implementation, query.device.type), "attention_width", lambda *lengths: sum(lengths))
    return _empty(value, value.shape[1]), query.new_empty(B, *S, width(*S))


@_criss_cross_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, attention: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(query, query.shape[1]), _empty(key, key.shape[1]), _empty(value, value.shape[1])


def _save_bilinear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    left, right, *ctx.options = inputs
    ctx.save_for_backward(left, right)


def _affinity_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    query, key = ctx.saved_tensors
    mask, implementation = ctx.options
    if mask:
        grad = grad.masked_fill(own_entries(query), 0.0)
    return (
        torch.ops.ccnet.aggregate(grad, key, implementation),
        torch.ops.ccnet.scatter(grad, query, implementation),
        None,
        None,
    )


def _aggregate_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    attention, value = ctx.saved_tensors
    (implementation,) = ctx.options
    return (
        torch.ops.ccnet.affinity(grad, value, False, implementation),
        torch.ops.ccnet.scatter(attention, grad, implementation),
        None,
    )


def _scatter_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    attention, value = ctx.saved_tensors
    (implementation,) = ctx.options
    return (
        torch.ops.ccnet.affinity(value, grad, False, implementation),
        torch.ops.ccnet.aggregate(attention, grad, implementation),
        None,
    )


_affinity.register_autograd(_affinity_gradient, setup_context=_save_bilinear)
_aggregate.register_autograd(_aggregate_gradient, setup_context=_save_bilinear)
_scatter.register_autograd(_scatter_gradient, setup_context=_save_bilinear)


def _save_criss_cross(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ctx.implementation = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, output[1])


def _criss_cross_gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    query, key, value, attention = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return (*torch.ops.ccnet.criss_cross_backward(grad, query, key, value, attention, ctx.implementation), None)
    # the caller wants gradients of these gradients
    return (*_differentiable_gradients(grad, query, key, value, ctx.implementation), None)


def _differentiable_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value in differentiable operators."""
    operators = _bilinear(lambda name, *inputs: getattr(torch.ops.ccnet, name)(*inputs, implementation))
    attention_BPS = operators.affinity(query, key, True).softmax(dim=1)
    return composed.criss_cross_backward(operators, grad, query, key, value, attention_BPS.movedim(1, -1))


_criss_cross.register_autograd(_criss_cross_gradient, setup_context=_save_criss_cross)


# On the CPU: the sum with the input in the same passes over memory, and every gradient where it is wanted.


@operator("residual")
def _residual(projected: Tensor, x: Tensor, gamma: Tensor, reduced: int) -> tuple[Tensor, Tensor]:
    query, key, value = split_projection(projected, reduced)
    return cpu.criss_cross(query, key, value, x, gamma.item())


@operator("residual_backward")
def _residual_backward(
    grad: Tensor, projected: Tensor, attention: Tensor, gamma: Tensor, reduced: int
) -> tuple[Tensor, Tensor]:
    d_projected = _empty(projected, projected.shape[1])
    inputs, outputs = (split_projection(x, reduced) for x in (projected, d_projected))
    d_gamma = cpu.write_gradients(grad, inputs, attention, gamma.item(), outputs)
    return d_projected, d_gamma.reshape(gamma.shape)


def split_projection(projected: Tensor, reduced: int) -> tuple[Tensor, ...]:
    """Query, key (`reduced` channels each) and value."""
    parts: tuple[Tensor, ...] = projected.split([reduced, reduced, projected.shape[1] - 2 * reduced], dim=1)
    return parts


@_residual.register_fake
def _(projected: Tensor, x: Tensor, gamma: Tensor, reduced: int) -> tuple[Tensor, Tensor]:
    B, _, *S = x.shape
    return _empty(x, x.shape[1]), x.new_empty(B, *S, sum(S))


@_residual_backward.register_fake
def _(grad: Tensor, projected: Tensor, attention: Tensor, gamma: Tensor, reduced: int) -> tuple[Tensor, Tensor]:
    return _empty(projected, projected.shape[1]), torch.empty_like(gamma)


def _save_residual(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    projected, _, gamma, ctx.reduced = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(projected, gamma, output[1])


def _residual_gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    projected, gamma, attention = ctx.saved_tensors
    if not torch.is_grad_enabled():
        d_projected, d_gamma = torch.ops.ccnet.residual_backward(grad, projected, attention, gamma, ctx.reduced)
        return d_projected, grad, d_gamma, None
    # the caller wants gradients of these gradients: the same in differentiable operators
    query, key, value = split_projection(projected, ctx.reduced)
    gathered = torch.ops.ccnet.criss_cross(query, key, value, "numba")[0]
    d_parts = _differentiable_gradients(gamma * grad, query, key, value, "numba")
    return torch.cat(d_parts, dim=1), grad, (gathered * grad).sum().reshape(gamma.shape), None


_residual.register_autograd(_residual_gradient, setup_context=_save_residual)


# FLOPs as torch counts them, 2 per multiply-add: one dot product or one update for each position and each of its cross.


def _line_flops(shape: Sequence[int]) -> int:
    return 2 * prod(shape) * sum(shape[2:])


@register_flop_formula([torch.ops.ccnet.affinity, torch.ops.ccnet.aggregate, torch.ops.ccnet.scatter])
def _bilinear_flops(left: Sequence[int], right: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _line_flops(right)


@register_flop_formula(torch.ops.ccnet.criss_cross)
def _criss_cross_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return _line_flops(query) + _line_flops(value)


@register_flop_formula(torch.ops.ccnet.residual)
def _residual_flops(projected: Sequence[int], x: Sequence[int], *_: Any, **__: Any) -> int:
    return _line_flops([x[0], (projected[1] + x[1]) // 2, *x[2:]])


@register_flop_formula(torch.ops.ccnet.residual_backward)
def _residual_backward_flops(grad: Sequence[int], projected: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _residual_flops(projected, grad)


@register_flop_formula(torch.ops.ccnet.criss_cross_backward)
def _backward_flops(grad: Sequence[int], query: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * (_line_flops(query) + _line_flops(grad))
