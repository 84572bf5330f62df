"""The criss-cross operators as Numba kernels on a CPU's vector registers; nothing of Numba loads before the first use.

Every tensor is read and written as float32 pixels of unit channel stride at equal distances, which a channels-last
tensor is, and a slice of its channels too; anything else is copied first. The attention is (B, H, W, P) as elsewhere.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.errors import InputError
from ccnet_cli.ops.cpu.threads import run_threads
from ccnet_cli.ops.layout import pixel_step, pixels

# the kernels' start, Numba's import and the first time compilation, costs more than smaller passes
MIN_MACS = 1 << 25


def pays_off(query_BCHW: Tensor, value_BCHW: Tensor) -> bool:
    """Whether the kernels support these tensors, and the map is large enough to repay their start."""
    if query_BCHW.dim() != 4:
        return False
    B, c, H, W = query_BCHW.shape
    supported = query_BCHW.dtype == value_BCHW.dtype == torch.float32
    return supported and B * H * W * (H + W) * (c + value_BCHW.shape[1]) >= MIN_MACS


def affinity(query_BCHW: Tensor, key_BCHW: Tensor, mask: bool) -> Tensor:
    """Energies of each pixel over its cross, not scaled: two (B, C, H, W) -> (B, P, H, W); own column entry -inf."""
    query, key = _pixels(query_BCHW, key_BCHW)
    B, H, W, _ = query.shape
    energy = query.new_empty(B, H, W, H + W)
    _run("affinity" if mask else "product", {"query": query, "key": key}, attention=energy)
    return energy.permute(0, 3, 1, 2)


def aggregate(attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """Gather each pixel's cross, weighted: (B, P, H, W), (B, C, H, W) -> (B, C, H, W)."""
    return _sum_weighted("aggregate", attention_BPHW, value_BCHW)


def scatter(attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """Spread each pixel's value over its cross, weighted: the adjoint of aggregate, with the same shapes."""
    return _sum_weighted("scatter", attention_BPHW, value_BCHW)


def _sum_weighted(task: str, attention_BPHW: Tensor, value_BCHW: Tensor) -> Tensor:
    _check(attention_BPHW)
    (value,) = _pixels(value_BCHW)
    out = value.new_empty(value.shape)
    attention_BHWP = attention_BPHW.permute(0, 2, 3, 1).contiguous()
    _run(task, {"value": value, "out": out}, attention=attention_BHWP)
    return out.permute(0, 3, 1, 2)


def criss_cross(
    query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, base_BCHW: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W), scale times the weighted sum plus base, and attention (B, H, W, P)."""
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
    d_query, d_key, d_value = (x.new_empty(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2) for x in inputs)
    write_gradients(grad_BCHW, inputs, attention_BHWP, 1.0, (d_query, d_key, d_value))
    return d_query, d_key, d_value


def write_gradients(
    grad_BCHW: Tensor,
    inputs_BCHW: Sequence[Tensor],
    attention_BHWP: Tensor,
    scale: float,
    outputs_BCHW: Sequence[Tensor],
) -> Tensor:
    """Write the gradients of query, key and value to outputs with channels innermost; return the gradient of scale."""
    query, key, value, grad = _pixels(*inputs_BCHW, grad_BCHW)
    tensors = {"query": query, "key": key, "value": value, "grad": grad}
    for name, output_BCHW in zip(("d_query", "d_key", "d_value"), outputs_BCHW, strict=True):
        tensors[name] = output_BCHW.permute(0, 2, 3, 1)
    # the softmax's backward computes the summands of the gradient of scale anyway: attention times its gradient
    dots = value.new_empty(value.shape[:2])
    _run("backward", tensors, scale, attention=attention_BHWP, pull=torch.empty_like(attention_BHWP), dots=dots)
    return dots.sum()


def _run(task: str, tensors: dict[str, Tensor], scale: float = 1.0, **packed: Tensor) -> None:
    """Run the three steps of a task; tensors are pixels, packed ones lie in memory without gaps."""
    from ccnet_cli.ops.cpu import kernels

    B, H, W, _ = packed["attention"].shape
    threads = torch.get_num_threads()
    channels = {name: tensors[name].shape[-1] if name in tensors else 0 for name in ("query", "value")}
    sizes = {"height": H, "width": W, "reduced": channels["query"], "channels": channels["value"]}
    # of all products, that of the gradient with the value alone sums over the value's channels
    left, size = kernels.scratch(**sizes, deep=channels["value"] if task == "backward" else channels["query"])
    scratch = torch.empty(threads * size, dtype=torch.uint8)
    addresses = {name: x.data_ptr() for name, x in packed.items()}
    for name, x in tensors.items():
        addresses |= {name: x.data_ptr(), f"{name}_step": x.element_size() * pixel_step(x)}
    addresses |= {"scratch": scratch.data_ptr(), "scratch_left": left, "scratch_whole": size}
    plan = np.zeros(1, kernels.PLAN)
    fields = {"task": kernels.TASKS[task], "scale": scale, **sizes, **addresses, **kernels.ADDRESSES}
    for name, value in fields.items():
        plan[name] = value
    for step, count in ((kernels.COLUMN, B * W), (kernels.ROW, B * H), (kernels.REST, B * W)):
        plan["step"], plan["count"], plan["next"], plan["threads"] = step, count, 0, 0
        run_threads(kernels.lines.address, plan.ctypes.data, min(threads, count))


def _pixels(*tensors_BCHW: Tensor) -> list[Tensor]:
    for x_BCHW in tensors_BCHW:
        _check(x_BCHW)
    return [pixels(x_BCHW) for x_BCHW in tensors_BCHW]


def _check(x: Tensor) -> None:
    if x.dim() != 4:
        raise InputError("implementation numba on three axes", "its kernels are for two", "use auto, gemm or flash")
    if x.dtype != torch.float32:
        raise InputError(
            f"implementation numba on {x.dtype}", "its kernels for the CPU are for float32", "use gemm or reference"
        )
