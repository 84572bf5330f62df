"""The criss-cross operators as Numba CUDA kernels on channels-last memory; nothing of Numba loads before the first use.

Every tensor is read and written as pixels of unit channel stride at equal distances, which a channels-last tensor is,
and a slice of its channels too; anything else is copied first. Energies and attention are float32.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ccnet_cli.errors import InputError
from ccnet_cli.ops.cuda import steps
from ccnet_cli.ops.cuda.steps import Buffer, Grid, Step
from ccnet_cli.ops.layout import pixel_step, pixels

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def attention_width(*lengths: int) -> int:
    """Entries per pixel of the attention that criss_cross returns: each arm padded with zeros."""
    return sum(map(steps.pad_length, lengths))


def try_to_compile(arch: tuple[int, int]) -> str:
    """Compile a kernel for a compute capability, which needs no GPU: "compiles", or the error's text."""
    from ccnet_cli.ops.cuda import launch

    try:
        launch.require()
        from ccnet_cli.ops.cuda import build

        # for a small map, which takes least time
        build.assemble(steps.Kernel("softmax", "float32", (32, 8, 8), True, 32), arch)
    except (InputError, ImportError) as error:
        return str(error)
    return "compiles"


# its name in 0.1.0, which scripts for short times on a card call
compiles = try_to_compile


def affinity(query_BCS: Tensor, key_BCS: Tensor, mask: bool) -> Tensor:
    """Energies of each position over its cross, not scaled: two (B, C, *S) -> (B, P, *S); own entries but one -inf."""
    query, key = _pixels((query_BCS, key_BCS))
    S, C = query.shape[1:-1], query.shape[-1]
    energy = query.new_empty(*query.shape[:-1], sum(S), dtype=torch.float32)
    # vectors must not reach from one arm into the next
    out = Buffer("out", sum(S), all(length % 4 == 0 for length in S))
    launches = _product("nt", _grid(query, S), _buffer("left", query), _buffer("right", key), out, C, mask)
    _run(launches, left=query, right=key, out=energy)
    return energy.to(query.dtype).movedim(-1, 1)


def aggregate(attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    """Gather each position's cross, weighted: (B, P, *S), (B, C, *S) -> (B, C, *S)."""
    return _sum_weighted("nn", attention_BPS, value_BCS)


def scatter(attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    """Spread each position's value over its cross, weighted: the adjoint of aggregate, with the same shapes."""
    return _sum_weighted("tn", attention_BPS, value_BCS)


def _sum_weighted(form: str, attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    attention, value = _pixels((attention_BPS.float(), value_BCS))
    S, C = value.shape[1:-1], value.shape[-1]
    out = value.new_empty(value.shape)
    aligned = all(length % 4 == 0 for length in S[:-1]) and _buffer("left", attention).aligned
    left = Buffer("left", pixel_step(attention), aligned)
    launches = _product(form, _grid(value, S), left, _buffer("right", value), _buffer("out", out), C, False)
    _run(launches, left=attention, right=value, out=out)
    return out.movedim(-1, 1)


def criss_cross(query_BCS: Tensor, key_BCS: Tensor, value_BCS: Tensor, tensor: bool = False) -> tuple[Tensor, Tensor]:
    """Output (B, C, *S) and attention (B, *S, attention_width) of one pass of criss-cross attention.

    tensor: gather on tensor cores, in TF32 or bfloat16, from sm_80 on; no operator uses it.
    """
    query, key, value = _pixels((query_BCS, key_BCS, value_BCS))
    S = value.shape[1:-1]
    energy = query.new_empty(*value.shape[:-1], attention_width(*S))
    tensors = {"query": query, "key": key, "value": value, "energy": energy, "out": value.new_empty(value.shape)}
    launches = _forward(_padded_grid(value, tensor), query.shape[-1], value.shape[-1], *_buffers(tensors))
    _run(launches, **tensors)
    return tensors["out"].movedim(-1, 1), energy


def criss_cross_backward(
    grad_BCS: Tensor, query_BCS: Tensor, key_BCS: Tensor, value_BCS: Tensor, attention_BSP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient and the saved attention."""
    query, key, value, grad = _pixels((query_BCS, key_BCS, value_BCS, grad_BCS))
    tensors = {"query": query, "key": key, "value": value, "energy": attention_BSP, "grad": grad}
    tensors["pull"] = torch.empty_like(attention_BSP)
    for name, like in (("d_query", query), ("d_key", key), ("d_value", value)):
        tensors[name] = like.new_empty(like.shape)
    _run(_backward(_padded_grid(value), query.shape[-1], value.shape[-1], *_buffers(tensors)), **tensors)
    d_query, d_key, d_value = (tensors[name].movedim(-1, 1) for name in ("d_query", "d_key", "d_value"))
    return d_query, d_key, d_value


# launches depend on sizes, strides and types alone
_product = lru_cache(maxsize=256)(steps.products)
_forward = lru_cache(maxsize=256)(steps.forward)
_backward = lru_cache(maxsize=256)(steps.backward)


def _buffer(name: str, x_BSC: Tensor) -> Buffer:
    C, stride = x_BSC.shape[-1], pixel_step(x_BSC)
    return Buffer(name, stride, C % 4 == 0 and stride % 4 == 0 and x_BSC.data_ptr() % (4 * x_BSC.element_size()) == 0)


def _buffers(tensors: dict[str, Tensor]) -> list[Buffer]:
    return [_buffer(name, tensor) for name, tensor in tensors.items()]


def _pixels(tensors_BCS: Sequence[Tensor]) -> list[Tensor]:
    axes = tensors_BCS[0].dim() - 2
    if axes > 3:
        why = "its kernels for CUDA are for two or three"
        raise InputError(f"implementation numba on {axes} axes", why, "use auto, gemm, flash or reference")
    return [pixels(x_BCS) for x_BCS in tensors_BCS]


def _padded_grid(x_BSC: Tensor, tensor: bool = False) -> Grid:
    return _grid(x_BSC, [steps.pad_length(length) for length in x_BSC.shape[1:-1]], tensor)


def _grid(x_BSC: Tensor, arms: Sequence[int], tensor: bool = False) -> Grid:
    """The sizes of a tensor, and entries of a pixel's energies for each arm."""
    if x_BSC.dtype not in DTYPES:
        raise InputError(
            f"implementation numba on {x_BSC.dtype}",
            "its kernels are for float32, float16 and bfloat16",
            "use gemm or reference",
        )
    B, *frames, H, W, _ = x_BSC.shape
    clip: dict[str, Any] = {"frames": frames[0], "column": arms[0]} if frames else {}
    return Grid(B, H, W, sum(arms[:-1]), DTYPES[x_BSC.dtype], tensor=tensor, **clip)


def _run(launches: list[Step], **tensors: Tensor) -> None:
    from ccnet_cli.ops.cuda import launch

    launch.run(launches, tensors)
