"""The criss-cross operators as Numba CUDA kernels on channels-last memory; nothing of Numba loads before the first use.

Every tensor is read and written as pixels of unit channel stride at equal distances, which a channels-last tensor is,
and a slice of its channels too; anything else is copied first. Energies and attention are float32.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ccnet_cli.errors import InputError
from ccnet_cli.ops.cuda import steps
from ccnet_cli.ops.cuda.steps import Buffer, Grid, Step
from ccnet_cli.ops.layout import pixel_step, pixels

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def attention_width(height: int, width: int) -> int:
    """Entries per pixel of the attention that criss_cross returns: each arm padded with zeros."""
    return steps.pad_length(height) + steps.pad_length(width)


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


def affinity(query_BCHW: Tensor, key_BCHW: Tensor, mask: bool) -> Tensor:
    """Energies of each pixel over its cross, not scaled: two (B, C, H, W) -> (B, P, H, W); own column entry -inf."""
    query, key = _pixels((query_BCHW, key_BCHW))
    B, H, W, C = query.shape
    energy = query.new_empty(B, H, W, H + W, dtype=torch.float32)
    # vectors must not reach from one arm into the next
    out = Buffer("out", H + W, H % 4 == 0 and W % 4 == 0)
    launches = _product("nt", _grid(query, H), _buffer("left", query), _buffer("right", key), out, C, mask)
    _run(launches, left=query, right=key, out=energy)
    return energy.to(query.dtype).permute(0, 3, 1, 2)


def aggregate(attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """Gather each pixel's cross, weighted: (B, P, H, W), (B, C, H, W) -> (B, C, H, W)."""
    return _sum_weighted("nn", attention_BPHW, value_BCHW)


def scatter(attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """Spread each pixel's value over its cross, weighted: the adjoint of aggregate, with the same shapes."""
    return _sum_weighted("tn", attention_BPHW, value_BCHW)


def _sum_weighted(form: str, attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    attention, value = _pixels((attention_BPHW.float(), value_BCHW))
    B, H, W, C = value.shape
    out = value.new_empty(B, H, W, C)
    left = Buffer("left", pixel_step(attention), H % 4 == 0 and _buffer("left", attention).aligned)
    launches = _product(form, _grid(value, H), left, _buffer("right", value), _buffer("out", out), C, False)
    _run(launches, left=attention, right=value, out=out)
    return out.permute(0, 3, 1, 2)


def criss_cross(
    query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, tensor: bool = False
) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W) and attention (B, H, W, attention_width) of one pass of criss-cross attention.

    tensor: gather on tensor cores, in TF32 or bfloat16, from sm_80 on; no operator uses it.
    """
    query, key, value = _pixels((query_BCHW, key_BCHW, value_BCHW))
    B, H, W, C = value.shape
    energy = query.new_empty(B, H, W, attention_width(H, W))
    out = value.new_empty(B, H, W, C)
    tensors = {"query": query, "key": key, "value": value, "energy": energy, "out": out}
    _run(_forward(_grid(value, steps.pad_length(H), tensor), query.shape[-1], C, *_buffers(tensors)), **tensors)
    return out.permute(0, 3, 1, 2), energy


def criss_cross_backward(
    grad_BCHW: Tensor, query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, attention_BHWP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient and the saved attention."""
    query, key, value, grad = _pixels((query_BCHW, key_BCHW, value_BCHW, grad_BCHW))
    H, C = value.shape[1], value.shape[-1]
    tensors = {"query": query, "key": key, "value": value, "energy": attention_BHWP, "grad": grad}
    tensors["pull"] = torch.empty_like(attention_BHWP)
    for name, like in (("d_query", query), ("d_key", key), ("d_value", value)):
        tensors[name] = like.new_empty(like.shape)
    _run(_backward(_grid(value, steps.pad_length(H)), query.shape[-1], C, *_buffers(tensors)), **tensors)
    d_query, d_key, d_value = (tensors[name].permute(0, 3, 1, 2) for name in ("d_query", "d_key", "d_value"))
    return d_query, d_key, d_value


# launches depend on sizes, strides and types alone
_product = lru_cache(maxsize=256)(steps.products)
_forward = lru_cache(maxsize=256)(steps.forward)
_backward = lru_cache(maxsize=256)(steps.backward)


def _buffer(name: str, x_BHWC: Tensor) -> Buffer:
    C, stride = x_BHWC.shape[-1], pixel_step(x_BHWC)
    return Buffer(name, stride, C % 4 == 0 and stride % 4 == 0 and x_BHWC.data_ptr() % (4 * x_BHWC.element_size()) == 0)


def _buffers(tensors: dict[str, Tensor]) -> list[Buffer]:
    return [_buffer(name, tensor) for name, tensor in tensors.items()]


def _pixels(tensors_BCHW: Sequence[Tensor]) -> list[Tensor]:
    if tensors_BCHW[0].dim() != 4:
        why = "its kernels for CUDA are for two"
        raise InputError("implementation numba on three axes", why, "use auto, gemm, flash or reference")
    return [pixels(x_BCHW) for x_BCHW in tensors_BCHW]


def _grid(x_BHWC: Tensor, arm: int, tensor: bool = False) -> Grid:
    if x_BHWC.dtype not in DTYPES:
        raise InputError(
            f"implementation numba on {x_BHWC.dtype}",
            "its kernels are for float32, float16 and bfloat16",
            "use gemm or reference",
        )
    B, H, W, _ = x_BHWC.shape
    return Grid(B, H, W, arm, DTYPES[x_BHWC.dtype], tensor=tensor)


def _run(launches: list[Step], **tensors: Tensor) -> None:
    from ccnet_cli.ops.cuda import launch

    launch.run(launches, tensors)
