"""The torch operators behind the public functions: one operator each for autocast, torch.compile, DDP and export."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ccnet_cli.errors import InputError
from ccnet_cli.ops import choice, cpu, cuda, gemm, reference

# "numba" on the CPU is "vector" to the torch operators
_MODULES = {"reference": reference, "gemm": gemm, "numba": cuda, "vector": cpu}
# of the measured choices; the others are never the fastest
_CANDIDATES = ("gemm", "numba")
choices = choice.Choices(_CANDIDATES)


def implementations(device: str = "cpu") -> tuple[str, ...]:
    """Names that `implementation` accepts besides "auto" for tensors on a device, the definition first."""
    numba = device.startswith(("cuda", "cpu"))
    return tuple(name for name in _MODULES if name != "vector" and (name != "numba" or numba))


def _resolve(implementation: str, x: Tensor) -> str:
    if implementation == "auto":
        return "gemm"
    # the meta device, on which shapes are worked out, stands for every other
    here = implementations("cuda" if x.device.type == "meta" else x.device.type)
    if implementation not in here:
        known = implementation in _MODULES
        why = f"for CUDA and the CPU, and this tensor is on {x.device}" if known else "not available in this version"
        raise InputError(f"implementation {implementation}", why, f"use auto, {', '.join(here)}")
    return "vector" if implementation == "numba" and x.device.type == "cpu" else implementation


def _fastest(query: Tensor, key: Tensor, value: Tensor) -> str:
    """On the CPU by size alone; the measured choice on CUDA, or one made before, gemm where nothing may be measured.

    That is while a graph is traced or captured, and where algorithms must be deterministic. Of several processes, each
    evaluates other images than the rest, so that they only measure passes with gradients.
    """
    tensors = (query, key, value)
    if not query.is_cuda:
        return "vector" if query.device.type == "cpu" and cpu.pays(query, value) else "gemm"
    # tensors of another type may be fake, with shapes alone
    plain = all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
    if torch.compiler.is_compiling() or not plain or value.dtype not in cuda.DTYPES:
        return "gemm"
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    device = choices.device or torch.cuda.get_device_name(query.device)
    words = choice.key((query, value), device, gradients)
    if words in choices.known:
        return choices.known[words]
    apart = choices.share is not None and not gradients
    if apart or torch.cuda.is_current_stream_capturing() or torch.are_deterministic_algorithms_enabled():
        return "gemm"
    candidates = {name: partial(_once, name, query, key, value, gradients) for name in _CANDIDATES}
    with torch.cuda.device(query.device):
        return choices.choose(words, candidates, choice.elapsed)


@torch.no_grad()
def _once(name: str, query: Tensor, key: Tensor, value: Tensor, gradients: bool) -> None:
    """What is measured: a pass without autograd, whose hooks on saved tensors belong to the caller."""
    out, attention = _MODULES[name].criss_cross(query, key, value)
    if gradients:
        _MODULES[name].criss_cross_backward(out, query, key, value, attention)


def affinity(query: Tensor, key: Tensor, implementation: str = "auto") -> Tensor:
    """Energies of each pixel over its cross (ICCV 2019, section 3.2), not scaled.

    query and key (B, C, H, W) -> (B, H + W, H, W): the column first, its own entry -inf, then the row. Half-precision
    input gives float32 energies. Raises ValueError on shapes that do not fit and InputError on an unknown name.
    """
    _check(query, key)
    name = _resolve(implementation, query)
    with _without_autocast(query):
        result: Tensor = torch.ops.ccnet.affinity(_full(query), _full(key), True, name)
    return result


def aggregate(attention: Tensor, value: Tensor, implementation: str = "auto") -> Tensor:
    """Gather each pixel's cross, weighted (ICCV 2019, section 3.2).

    attention (B, H + W, H, W) and value (B, C, H, W) -> (B, C, H, W) in the dtype of value.
    Raises ValueError on shapes that do not fit and InputError on an unknown name.
    """
    _check_weights(attention, value)
    with _without_autocast(value):
        result: Tensor = torch.ops.ccnet.aggregate(attention.to(value.dtype), value, _resolve(implementation, value))
    return result


def scatter(attention: Tensor, value: Tensor, implementation: str = "auto") -> Tensor:
    """Spread each pixel's value over its cross, weighted: the adjoint of aggregate in value, with its shapes."""
    _check_weights(attention, value)
    with _without_autocast(value):
        result: Tensor = torch.ops.ccnet.scatter(attention.to(value.dtype), value, _resolve(implementation, value))
    return result


def criss_cross(query: Tensor, key: Tensor, value: Tensor, implementation: str = "auto") -> Tensor:
    """Affinity, softmax over the whole cross and aggregation as one operator with its own backward.

    query and key (B, C', H, W), value (B, C, H, W) -> (B, C, H, W) in the dtype of value; energies and softmax are at
    least float32. On CUDA "auto" is the fastest when first measured, see `choices`; on the CPU it is "numba" for large
    maps in float32; elsewhere, and in the parts above, it is "gemm". Raises ValueError on shapes that do not fit and
    InputError on an unknown name.
    """
    _check(query, key)
    if value.dim() != 4 or value.shape[0] != query.shape[0] or value.shape[2:] != query.shape[2:]:
        raise ValueError(f"value {tuple(value.shape)} does not lie on the grid of query {tuple(query.shape)}")
    name = _resolve(implementation, query)
    with _without_autocast(query):
        query, key = _full(query), _full(key)
        if implementation == "auto":
            name = _fastest(query, key, value)
        out: Tensor = torch.ops.ccnet.criss_cross(query, key, value, name)[0]
    return out


def residual(
    projected_BCHW: Tensor, x_BCHW: Tensor, gamma: Tensor, reduced: int, implementation: str = "auto"
) -> Tensor:
    """Gamma times criss_cross, plus x: one operator on the CPU's "numba", which "auto" is as in criss_cross.

    projected_BCHW is query, key (so many reduced channels each) and value in one tensor; gamma has one entry.
    """
    query, key, value = projected_BCHW.split([reduced, reduced, projected_BCHW.shape[1] - 2 * reduced], dim=1)
    name = _resolve(implementation, value)
    if implementation == "auto" and value.device.type == "cpu":
        name = _fastest(query, key, value)
    if name == "vector" and value.dtype == x_BCHW.dtype == gamma.dtype:
        with _without_autocast(value):
            out: Tensor = torch.ops.ccnet.residual(projected_BCHW, x_BCHW, gamma, reduced)[0]
        return out
    gathered = criss_cross(query, key, value, implementation)
    return gamma.to(gathered.dtype) * gathered + x_BCHW


def _without_autocast(x: Tensor) -> AbstractContextManager[None]:
    kind = x.device.type
    # the meta device, on which sizes and costs are worked out, has no autocast to switch off
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check(query: Tensor, key: Tensor) -> None:
    if query.dim() != 4 or query.shape != key.shape:
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} must have one and the same shape (B, C, H, W)"
        )


def _check_weights(attention: Tensor, value: Tensor) -> None:
    B, _, H, W = value.shape
    if attention.shape != (B, H + W, H, W):
        raise ValueError(f"attention {tuple(attention.shape)} must be (B, H + W, H, W) = {(B, H + W, H, W)}")


# The three bilinear operators are closed under differentiation: the gradients of each are the other two.


@torch.library.custom_op("ccnet::affinity", mutates_args=())
def _affinity(query: Tensor, key: Tensor, mask: bool, implementation: str) -> Tensor:
    return _innermost(_MODULES[implementation].affinity(query, key, mask))


@torch.library.custom_op("ccnet::aggregate", mutates_args=())
def _aggregate(attention: Tensor, value: Tensor, implementation: str) -> Tensor:
    return _innermost(_MODULES[implementation].aggregate(attention, value))


@torch.library.custom_op("ccnet::scatter", mutates_args=())
def _scatter(attention: Tensor, value: Tensor, implementation: str) -> Tensor:
    return _innermost(_MODULES[implementation].scatter(attention, value))


@torch.library.custom_op("ccnet::criss_cross", mutates_args=())
def _criss_cross(query: Tensor, key: Tensor, value: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    out, attention_BHWP = _MODULES[implementation].criss_cross(query, key, value)
    return _innermost(out), attention_BHWP.contiguous()


@torch.library.custom_op("ccnet::criss_cross_backward", mutates_args=())
def _criss_cross_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, attention: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _MODULES[implementation].criss_cross_backward(grad, query, key, value, attention)
    return _innermost(gradients[0]), _innermost(gradients[1]), _innermost(gradients[2])


def _innermost(x_BCHW: Tensor) -> Tensor:
    """Every implementation answers with its second axis innermost in memory, as the fake kernels promise."""
    return x_BCHW.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _empty(like: Tensor, channels: int) -> Tensor:
    B, _, H, W = like.shape
    return like.new_empty(B, H, W, channels).permute(0, 3, 1, 2)


@_affinity.register_fake
def _(query: Tensor, key: Tensor, mask: bool, implementation: str) -> Tensor:
    return _empty(query, query.shape[2] + query.shape[3])


@_aggregate.register_fake
def _(attention: Tensor, value: Tensor, implementation: str) -> Tensor:
    return _empty(value, value.shape[1])


@_scatter.register_fake
def _(attention: Tensor, value: Tensor, implementation: str) -> Tensor:
    return _empty(value, value.shape[1])


@_criss_cross.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    B, _, H, W = query.shape
    # the attention is for the same implementation's backward pass, which may want its arms padded
    width = cuda.attention_width(H, W) if implementation == "numba" else H + W
    return _empty(value, value.shape[1]), query.new_empty(B, H, W, width)


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
        H = query.shape[2]
        own_PH = torch.eye(grad.shape[1], H, dtype=torch.bool, device=grad.device)
        grad = grad.masked_fill(own_PH[..., None], 0.0)
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
    # somebody wants gradients of these gradients
    return (*_differentiable_gradients(grad, query, key, value, ctx.implementation), None)


def _differentiable_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value in differentiable operators."""
    energy = torch.ops.ccnet.affinity(query, key, True, implementation)
    weights = energy.softmax(dim=1)
    pull = torch.ops.ccnet.affinity(grad, value, False, implementation).to(weights.dtype)
    d_energy = weights * (pull - (weights * pull).sum(dim=1, keepdim=True))
    return (
        torch.ops.ccnet.aggregate(d_energy, key, implementation),
        torch.ops.ccnet.scatter(d_energy, query, implementation),
        torch.ops.ccnet.scatter(weights.to(grad.dtype), grad, implementation),
    )


_criss_cross.register_autograd(_criss_cross_gradient, setup_context=_save_criss_cross)


# On the CPU: the sum with the input in the same passes over memory, and every gradient where it is wanted.


@torch.library.custom_op("ccnet::residual", mutates_args=())
def _residual(projected: Tensor, x: Tensor, gamma: Tensor, reduced: int) -> tuple[Tensor, Tensor]:
    query, key, value = _parts(projected, reduced)
    return cpu.criss_cross(query, key, value, x, gamma.item())


@torch.library.custom_op("ccnet::residual_backward", mutates_args=())
def _residual_backward(
    grad: Tensor, projected: Tensor, attention: Tensor, gamma: Tensor, reduced: int
) -> tuple[Tensor, Tensor]:
    query, key, value = _parts(projected, reduced)
    d_projected = _empty(projected, projected.shape[1])
    d_gamma = cpu.gradients(grad, query, key, value, attention, gamma.item(), *_parts(d_projected, reduced))
    return d_projected, d_gamma.reshape(gamma.shape)


def _parts(projected: Tensor, reduced: int) -> tuple[Tensor, ...]:
    return projected.split([reduced, reduced, projected.shape[1] - 2 * reduced], dim=1)


@_residual.register_fake
def _(projected: Tensor, x: Tensor, gamma: Tensor, reduced: int) -> tuple[Tensor, Tensor]:
    B, _, H, W = x.shape
    return _empty(x, x.shape[1]), x.new_empty(B, H, W, H + W)


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
    # somebody wants gradients of these gradients: the same in differentiable operators
    query, key, value = _parts(projected, ctx.reduced)
    gathered = torch.ops.ccnet.criss_cross(query, key, value, "vector")[0]
    d_parts = _differentiable_gradients(gamma * grad, query, key, value, "vector")
    return torch.cat(d_parts, dim=1), grad, (gathered * grad).sum().reshape(gamma.shape), None


_residual.register_autograd(_residual_gradient, setup_context=_save_residual)


# FLOPs as torch counts them, 2 per multiply-add: one dot product or one update for each pixel and cross position.


def _line_flops(shape: Sequence[int], positions: int) -> int:
    B, C, H, W = shape
    return 2 * B * C * H * W * positions


@register_flop_formula([torch.ops.ccnet.affinity, torch.ops.ccnet.aggregate, torch.ops.ccnet.scatter])
def _bilinear_flops(left: Sequence[int], right: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _line_flops(right, right[2] + right[3])


@register_flop_formula(torch.ops.ccnet.criss_cross)
def _criss_cross_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    positions = query[2] + query[3]
    return _line_flops(query, positions) + _line_flops(value, positions)


@register_flop_formula(torch.ops.ccnet.residual)
def _residual_flops(projected: Sequence[int], x: Sequence[int], *_: Any, **__: Any) -> int:
    return _line_flops([x[0], (projected[1] + x[1]) // 2, *x[2:]], x[2] + x[3])


@register_flop_formula(torch.ops.ccnet.residual_backward)
def _residual_backward_flops(grad: Sequence[int], projected: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _residual_flops(projected, grad)


@register_flop_formula(torch.ops.ccnet.criss_cross_backward)
def _backward_flops(grad: Sequence[int], query: Sequence[int], *_: Any, **__: Any) -> int:
    positions = query[2] + query[3]
    return 2 * (_line_flops(query, positions) + _line_flops(grad, positions))
