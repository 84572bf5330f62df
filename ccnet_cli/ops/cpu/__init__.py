"""The criss-cross operators as Numba kernels on a CPU's vector registers; nothing of Numba loads before the first use.

Every tensor is read and written as float32 pixels of unit channel stride at equal distances, which a channels-last
tensor is, and a slice of its channels too; anything else is copied first. The attention is (B, H, W, P) as elsewhere.
"""

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.errors import InputError
from ccnet_cli.ops.cpu.threads import together
from ccnet_cli.ops.layout import pixel_step, pixels

# multiply-adds of a pass from which on the kernels repay their start: Numba's import, and the first time compilation
WORTH = 1 << 25


def pays_off(query_BCHW: Tensor, value_BCHW: Tensor) -> bool:
    """Whether the kernels take these tensors, and the map is large enough for them."""
    B, c, H, W = query_BCHW.shape
    fits = query_BCHW.dtype == value_BCHW.dtype == torch.float32
    return fits and B * H * W * (H + W) * (c + value_BCHW.shape[1]) >= WORTH


def affinity(query_BCHW: Tensor, key_BCHW: Tensor, mask: bool) -> Tensor:
    """Energies of each pixel over its cross, not scaled: two (B, C, H, W) -> (B, P, H, W); own column entry -inf."""
    query, key = _pixels(query_BCHW, key_BCHW)
    B, H, W, _ = query.shape
    energy = query.new_empty(B, H, W, H + W)
    _run("affinity" if mask else "product", {"query": query, "key": key}, attention=energy)
    return energy.permute(0, 3, 1, 2)


def aggregate(attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """Gather each pixel's cross, weighted: (B, P, H, W), (B, C, H, W) -> (B, C, H, W)."""
    return _weighted("aggregate", attention_BPHW, value_BCHW)


def scatter(attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """Spread each pixel's value over its cross, weighted: the adjoint of aggregate, with the same shapes."""
    return _weighted("scatter", attention_BPHW, value_BCHW)


def _weighted(what: str, attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    _check(attention_BPHW)
    (value,) = _pixels(value_BCHW)
    out = value.new_empty(value.shape)
    attention_BHWP = attention_BPHW.permute(0, 2, 3, 1).contiguous()
    _run(what, {"value": value, "out": out}, attention=attention_BHWP)
    return out.permute(0, 3, 1, 2)


def criss_cross(
    query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, base_BCHW: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W), scale times what the cross holds plus base, and attention (B, H, W, P)."""
    query, key, value = _pixels(query_BCHW, key_BCHW, value_BCHW)
    B, H, W, C = value.shape
    attention = query.new_empty(B, H, W, H + W)
    tensors = {"query": query, "key": key, "value": value, "out": value.new_empty(B, H, W, C)}
    if base_BCHW is not None:
        (tensors["base"],) = _pixels(base_BCHW)
    _run("forward", tensors, scale, attention=attention)
    return tensors["out"].permute(0, 3, 1, 2), attention


def criss_cross_backward(
    grad_BCHW: Tensor, query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, attention_BHWP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient and the saved attention."""
    inputs = (query_BCHW, key_BCHW, value_BCHW)
    found = [x.new_empty(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2) for x in inputs]
    gradients(grad_BCHW, *inputs, attention_BHWP, 1.0, *found)
    return found[0], found[1], found[2]


def gradients(
    grad_BCHW: Tensor,
    query_BCHW: Tensor,
    key_BCHW: Tensor,
    value_BCHW: Tensor,
    attention_BHWP: Tensor,
    scale: float,
    d_query_BCHW: Tensor,
    d_key_BCHW: Tensor,
    d_value_BCHW: Tensor,
) -> Tensor:
    """Write the gradients of query, key and value, which have their channels innermost; gives that of scale."""
    query, key, value, grad = _pixels(query_BCHW, key_BCHW, value_BCHW, grad_BCHW)
    tensors = {"query": query, "key": key, "value": value, "grad": grad}
    written = {"d_query": d_query_BCHW, "d_key": d_key_BCHW, "d_value": d_value_BCHW}
    tensors |= {name: x.permute(0, 2, 3, 1) for name, x in written.items()}
    # what the gradient of scale sums over is there anyway: attention times its own gradient
    dots = value.new_empty(value.shape[:2])
    _run("backward", tensors, scale, attention=attention_BHWP, pull=torch.empty_like(attention_BHWP), dots=dots)
    return dots.sum()


def _run(what: str, tensors: dict[str, Tensor], scale: float = 1.0, **whole: Tensor) -> None:
    from ccnet_cli.ops.cpu import kernels

    B, H, W, _ = whole["attention"].shape
    threads = torch.get_num_threads()
    channels = {name: tensors[name].shape[-1] if name in tensors else 0 for name in ("query", "value")}
    sizes = {"height": H, "width": W, "reduced": channels["query"], "channels": channels["value"]}
    # the gradient's product with the value alone is as deep as that has channels
    left, size = kernels.scratch(**sizes, deep=channels["value"] if what == "backward" else channels["query"])
    scratch = torch.empty(threads * size, dtype=torch.uint8)
    addresses = {name: x.data_ptr() for name, x in whole.items()}
    for name, x in tensors.items():
        addresses |= {name: x.data_ptr(), f"{name}_step": x.element_size() * pixel_step(x)}
    addresses |= {"scratch": scratch.data_ptr(), "scratch_left": left, "scratch_whole": size}
    plan = np.zeros(1, kernels.PLAN)
    fields = {"task": kernels.TASKS[what], "scale": scale, **sizes, **addresses, **kernels.ADDRESSES}
    for name, value in fields.items():
        plan[name] = value
    for step, count in ((kernels.COLUMN, B * W), (kernels.ROW, B * H), (kernels.REST, B * W)):
        plan["step"], plan["count"], plan["next"], plan["threads"] = step, count, 0, 0
        together(kernels.lines, plan.ctypes.data, min(threads, count))


def _pixels(*tensors_BCHW: Tensor) -> list[Tensor]:
    for x_BCHW in tensors_BCHW:
        _check(x_BCHW)
    return [pixels(x_BCHW) for x_BCHW in tensors_BCHW]


def _check(x: Tensor) -> None:
    if x.dtype != torch.float32:
        raise InputError(
            f"implementation numba on {x.dtype}", "its kernels for the CPU are for float32", "use gemm or reference"
        )
