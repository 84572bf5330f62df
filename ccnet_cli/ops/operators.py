"""The public operators: they check shapes, choose the implementation and call the registered operators."""

import difflib
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ccnet_cli.errors import InputError
from ccnet_cli.ops import IMPLEMENTATIONS, cpu, cuda, fused, implementations, registered
from ccnet_cli.ops.choice import CALLS, CANDIDATES, Choices, describe, time_on_gpu


def affinity(query: Tensor, key: Tensor, implementation: str = "auto") -> Tensor:
    """Energies of each position over its cross (ICCV 2019, section 3.2), not scaled.

    query and key (B, C, H, W) -> (B, H + W, H, W): the column first, its own entry -inf, then the row. Of a clip,
    (B, C, T, H, W) -> (B, T + H + W, T, H, W), the own entry in time is -inf too, and so for more axes.
    Half-precision input gives float32 energies. Raises ValueError on shapes that do not fit and InputError on an
    unknown name.
    """
    _check(query, key)
    _refuse_tangents(query, key)
    name = resolve(implementation, query)
    with _without_autocast(query):
        result: Tensor = torch.ops.ccnet.affinity(_full(query), _full(key), True, name)
    return result


def aggregate(attention: Tensor, value: Tensor, implementation: str = "auto") -> Tensor:
    """Gather each position's cross, weighted (ICCV 2019, section 3.2).

    attention (B, H + W, H, W) and value (B, C, H, W) -> (B, C, H, W) in the dtype of value; more axes as in affinity.
    Raises ValueError on shapes that do not fit and InputError on an unknown name.
    """
    _check_weights(attention, value)
    _refuse_tangents(attention, value)
    with _without_autocast(value):
        result: Tensor = torch.ops.ccnet.aggregate(attention.to(value.dtype), value, resolve(implementation, value))
    return result


def scatter(attention: Tensor, value: Tensor, implementation: str = "auto") -> Tensor:
    """Spread each position's value over its cross, weighted: the adjoint of aggregate in value, with its shapes."""
    _check_weights(attention, value)
    _refuse_tangents(attention, value)
    with _without_autocast(value):
        result: Tensor = torch.ops.ccnet.scatter(attention.to(value.dtype), value, resolve(implementation, value))
    return result


def criss_cross(
    query: Tensor, key: Tensor, value: Tensor, implementation: str = "auto", choices: Choices | None = None
) -> Tensor:
    """Affinity, softmax over the whole cross and aggregation as one operator with its own backward.

    query and key (B, C', H, W), value (B, C, H, W) -> (B, C, H, W) in the dtype of value; or with more axes, as in
    (B, C, T, H, W): each position attends to T + H + W - 2. Energies and softmax are at least float32. "auto" is
    "numba" for large maps in float32 on the CPU; on CUDA it is the fastest, measured once and kept in choices;
    elsewhere, without choices, and in the parts above, it is "gemm". Raises ValueError on shapes that do not fit and
    InputError on an unknown name.
    """
    _check(query, key)
    if value.dim() < 4 or value.shape[0] != query.shape[0] or value.shape[2:] != query.shape[2:]:
        raise ValueError(f"value {tuple(value.shape)} does not lie on the grid of query {tuple(query.shape)}")
    _refuse_tangents(query, key, value)
    name = resolve(implementation, query)
    with _without_autocast(query):
        if implementation == "auto":
            name = fastest(query, key, value, choices)
        if name == "numba" and fused.fits(value):
            return fused.criss_cross(query, key, value)
        out: Tensor = torch.ops.ccnet.criss_cross(_full(query), _full(key), value, name)[0]
    return out


def residual(
    projected_BCS: Tensor,
    x_BCS: Tensor,
    gamma: Tensor,
    reduced: int,
    implementation: str = "auto",
    choices: Choices | None = None,
) -> Tensor:
    """Gamma times criss_cross, plus x: one operator in "numba" on the CPU and, without gradients, fused on CUDA.

    projected_BCS is query, key (`reduced` channels each) and value in one tensor; gamma has one entry.
    """
    _refuse_tangents(projected_BCS, x_BCS, gamma)
    query, key, value = registered.split_projection(projected_BCS, reduced)
    name = resolve(implementation, value)
    alike = value.dtype == x_BCS.dtype
    # gradients need what gamma is multiplied with
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (projected_BCS, x_BCS, gamma))
    with _without_autocast(value):
        if implementation == "auto":
            name = fastest(query, key, value, choices)
        if name == "numba" and alike and fused.fits(value) and not gradients:
            return fused.residual(query, key, value, x_BCS, gamma)
        if name == "numba" and alike and value.dtype == gamma.dtype and value.device.type == "cpu":
            out: Tensor = torch.ops.ccnet.residual(projected_BCS, x_BCS, gamma, reduced)[0]
            return out
    gathered = criss_cross(query, key, value, name)
    return gamma.to(gathered.dtype) * gathered + x_BCS


def resolve(implementation: str, x: Tensor) -> str:
    """The implementation by its name in the table; "auto" is gemm. InputError if it has nothing for x's device."""
    if implementation == "auto":
        return "gemm"
    available = implementations(x.device.type)
    if implementation in available:
        return implementation
    fix = f"use auto, {', '.join(available)}"
    if implementation in IMPLEMENTATIONS:
        raise InputError(f"implementation {implementation}", f"it has no operators for {x.device.type} tensors", fix)
    near = difflib.get_close_matches(implementation, available, n=1)
    fix = f"did you mean {near[0]}? Otherwise {fix}" if near else fix
    raise InputError(f"implementation {implementation}", "unknown", fix)


def fastest(query: Tensor, key: Tensor, value: Tensor, choices: Choices | None) -> str:
    """On the CPU by size alone; on CUDA the choice that was measured, or gemm where nothing may be measured.

    That is while a graph is traced or captured, and where algorithms must be deterministic. Of several processes, each
    evaluates other images than the rest, so that they only measure passes with gradients.
    """
    tensors = (query, key, value)
    if not query.is_cuda:
        return "numba" if query.device.type == "cpu" and cpu.pays_off(_full(query), value) else "gemm"
    # tensors of another type may be fake, with shapes alone
    plain = all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
    unsupported = value.dtype not in cuda.DTYPES or value.dim() > 5
    if choices is None or torch.compiler.is_compiling() or not plain or unsupported:
        return "gemm"
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    device = choices.device or torch.cuda.get_device_name(query.device)
    if value.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        device += " in TF32"
    case = describe((_full(query.to("meta")), value), device, gradients)
    if case in choices.known:
        return choices.known[case]
    unshared = choices.share is not None and not gradients
    if unshared or torch.cuda.is_current_stream_capturing() or torch.are_deterministic_algorithms_enabled():
        return "gemm"
    full = _full(query), _full(key), value
    candidates = {name: partial(registered.run_once, name, *full, gradients) for name in CANDIDATES}
    if fused.fits(value):
        candidates["numba"] = partial(fused.run_once, *tensors, gradients)
    with torch.cuda.device(query.device):
        return choices.choose(case, candidates, partial(time_on_gpu, calls=CALLS))


def _without_autocast(x: Tensor) -> AbstractContextManager[None]:
    kind = x.device.type
    # the meta device, on which sizes and costs are worked out, has no autocast to switch off
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _refuse_tangents(*tensors: Tensor) -> None:
    """NotImplementedError in forward-mode differentiation, in which torch would take the tangents for 0."""
    # torch has no public name for whether a level is open, and without one unpack_dual raises
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            "criss-cross attention has no forward-mode derivative; use reverse mode (torch.func.vjp)"
        )


def _check(query: Tensor, key: Tensor) -> None:
    if query.dim() < 4 or query.shape != key.shape:
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} must have one and the same shape (B, C, H, W),"
            " or with more axes as in (B, C, T, H, W)"
        )


def _check_weights(attention: Tensor, value: Tensor) -> None:
    B, _, *S = value.shape
    if attention.shape != (B, sum(S), *S):
        names = ("H", "W") if len(S) == 2 else ("T", "H", "W")
        form = f"(B, {' + '.join(names)}, {', '.join(names)})"
        raise ValueError(f"attention {tuple(attention.shape)} must be {form} = {(B, sum(S), *S)}")
