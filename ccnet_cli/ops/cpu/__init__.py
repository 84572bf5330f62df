"""The criss-cross operators as Numba kernels on a CPU's vector registers; nothing of Numba loads before the first use.

Every tensor is read and written as float32 pixels of unit channel stride at equal distances, which a channels-last
tensor is, and a slice of its channels too; anything else is copied first. The attention is (B, *S, P) as elsewhere.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.errors import InputError
from ccnet_cli.ops.cpu.threads import run_threads
from ccnet_cli.ops.layout import pixel_step, pixels

# the kernels' start, Numba's import and the first time compilation, costs more than smaller passes
MIN_MACS = 1 << 25


def pays_off(query_BCS: Tensor, value_BCS: Tensor) -> bool:
    """Whether the kernels support these tensors, and the map is large enough to repay their start."""
    B, c, *S = query_BCS.shape
    supported = query_BCS.dtype == value_BCS.dtype == torch.float32
    return supported and B * prod(S) * sum(S) * (c + value_BCS.shape[1]) >= MIN_MACS


def affinity(query_BCS: Tensor, key_BCS: Tensor, mask: bool) -> Tensor:
    """Energies of each position over its cross, not scaled: two (B, C, *S) -> (B, P, *S); own entries but one -inf."""
    query, key = _pixels(query_BCS, key_BCS)
    energy = query.new_empty(*query.shape[:-1], sum(query.shape[1:-1]))
    _run("affinity" if mask else "product", {"query": query, "key": key}, attention=energy)
    return energy.movedim(-1, 1)


def aggregate(attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    """Gather each position's cross, weighted: (B, P, *S), (B, C, *S) -> (B, C, *S)."""
    return _sum_weighted("aggregate", attention_BPS, value_BCS)


def scatter(attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    """Spread each position's value over its cross, weighted: the adjoint of aggregate, with the same shapes."""
    return _sum_weighted("scatter", attention_BPS, value_BCS)


def _sum_weighted(task: str, attention_BPS: Tensor, value_BCS: Tensor) -> Tensor:
    _check(attention_BPS)
    (value,) = _pixels(value_BCS)
    out = value.new_empty(value.shape)
    attention_BSP = attention_BPS.movedim(1, -1).contiguous()
    _run(task, {"value": value, "out": out}, attention=attention_BSP)
    return out.movedim(-1, 1)


def criss_cross(
    query_BCS: Tensor, key_BCS: Tensor, value_BCS: Tensor, base_BCS: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Output (B, C, *S), scale times the weighted sum plus base, and attention (B, *S, P)."""
    query, key, value = _pixels(query_BCS, key_BCS, value_BCS)
    attention = query.new_empty(*query.shape[:-1], sum(query.shape[1:-1]))
    tensors = {"query": query, "key": key, "value": value, "out": value.new_empty(value.shape)}
    if base_BCS is not None:
        (tensors["base"],) = _pixels(base_BCS)
    _run("forward", tensors, scale, attention=attention)
    return tensors["out"].movedim(-1, 1), attention


def criss_cross_backward(
    grad_BCS: Tensor, query_BCS: Tensor, key_BCS: Tensor, value_BCS: Tensor, attention_BSP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient and the saved attention."""
    inputs = (query_BCS, key_BCS, value_BCS)
    d_query, d_key, d_value = (x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1) for x in inputs)
    write_gradients(grad_BCS, inputs, attention_BSP, 1.0, (d_query, d_key, d_value))
    return d_query, d_key, d_value


def write_gradients(
    grad_BCS: Tensor,
    inputs_BCS: Sequence[Tensor],
    attention_BSP: Tensor,
    scale: float,
    outputs_BCS: Sequence[Tensor],
) -> Tensor:
    """Write the gradients of query, key and value to outputs with channels innermost; return the gradient of scale."""
    query, key, value, grad = _pixels(*inputs_BCS, grad_BCS)
    tensors = {"query": query, "key": key, "value": value, "grad": grad}
    for name, output_BCS in zip(("d_query", "d_key", "d_value"), outputs_BCS, strict=True):
        tensors[name] = output_BCS.movedim(1, -1)
    # the softmax's backward computes the summands of the gradient of scale anyway: attention times its gradient
    dots = value.new_empty(value.shape[:-2])
    _run("backward", tensors, scale, attention=attention_BSP, pull=torch.empty_like(attention_BSP), dots=dots)
    return dots.sum()


def _run(task: str, tensors: dict[str, Tensor], scale: float = 1.0, **packed: Tensor) -> None:
    """Run the steps of a task, axis by axis; tensors are pixels, packed ones lie in memory without gaps."""
    from ccnet_cli.ops.cpu import kernels

    B, *S, positions = packed["attention"].shape
    threads = torch.get_num_threads()
    channels = {name: tensors[name].shape[-1] if name in tensors else 0 for name in ("query", "value")}
    sizes = {"reduced": channels["query"], "channels": channels["value"]}
    # of all products, that of the gradient with the value alone sums over the value's channels
    left, size = kernels.scratch(max(S), **sizes, deep=channels["value"] if task == "backward" else channels["query"])
    scratch = torch.empty(threads * size, dtype=torch.uint8)
    addresses = {name: x.data_ptr() for name, x in packed.items()}
    for name, x in tensors.items():
        addresses |= {name: x.data_ptr(), f"{name}_step": x.element_size() * pixel_step(x)}
    addresses |= {"scratch": scratch.data_ptr(), "scratch_left": left, "scratch_whole": size}
    plan = np.zeros(1, kernels.PLAN)
    fields = {"task": kernels.TASKS[task], "scale": scale, "positions": positions, **sizes}
    for name, value in (fields | addresses | kernels.ADDRESSES).items():
        plan[name] = value
    *others, last = range(len(S))
    steps = [(kernels.COLUMN, axis) for axis in others] + [(kernels.ROW, last)]
    for number, (step, axis) in enumerate(steps + [(kernels.REST, axis) for axis in others]):
        stride, count = prod(S[axis + 1 :]), B * prod(S[:axis]) * prod(S[axis + 1 :])
        plan["step"], plan["first"], plan["count"], plan["next"], plan["threads"] = step, number == 0, count, 0, 0
        plan["length"], plan["stride"], plan["arm"] = S[axis], stride, sum(S[:axis])
        run_threads(kernels.lines.address, plan.ctypes.data, min(threads, count))


def _pixels(*tensors_BCS: Tensor) -> list[Tensor]:
    for x_BCS in tensors_BCS:
        _check(x_BCS)
    return [pixels(x_BCS) for x_BCS in tensors_BCS]


def _check(x: Tensor) -> None:
    if x.dtype != torch.float32:
        raise InputError(
            f"implementation numba on {x.dtype}", "its kernels for the CPU are for float32", "use gemm or reference"
        )
