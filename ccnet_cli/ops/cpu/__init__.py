"""The criss-cross operators as Numba kernels on a CPU's vector registers; nothing of Numba loads before the first use.

Every tensor is read and written as float32 pixels of unit channel stride at equal distances, which a channels-last
tensor is, and a slice of its channels too; anything else is copied first. The attention is (B, H, W, P) as elsewhere.
"""

import ctypes
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

def criss_cross(
    query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, base_BCHW: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W), of scale times what the cross holds plus base, and attention (B, H, W, P)."""
    query, key, value = _pixels(query_BCHW, key_BCHW, value_BCHW)
    B, H, W, C = value.shape
    attention = query.new_empty(B, H, W, H + W)
    out = value.new_empty(B, H, W, C)
    tensors = {"query": query, "key": key, "value": value, "out": out}
    if base_BCHW is not None:
        (tensors["base"],) = _pixels(base_BCHW)
    _run(0, scale, tensors, attention=attention.data_ptr())
    return out.permute(0, 3, 1, 2), attention


def criss_cross_backward(
    grad_BCHW: Tensor,
    query_BCHW: Tensor,
    key_BCHW: Tensor,
    value_BCHW: Tensor,
    attention_BHWP: Tensor,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and scale from the output's gradient and the saved attention.

    The first three are slices of one tensor, channels innermost.
    """
    query, key, value, grad = _pixels(query_BCHW, key_BCHW, value_BCHW, grad_BCHW)
    B, H, W, C = value.shape
    c = query.shape[-1]
    whole = value.new_empty(B, H, W, 2 * c + C)
    d_query, d_key, d_value = whole.split([c, c, C], dim=-1)
    tensors = {"query": query, "key": key, "value": value, "grad": grad}
    tensors |= {"d_query": d_query, "d_key": d_key, "d_value": d_value}
    pull, dots = torch.empty_like(attention_BHWP), value.new_empty(B, H)
    _run(1, scale, tensors, attention=attention_BHWP.data_ptr(), pull=pull.data_ptr(), dots=dots.data_ptr())
    return whole, dots.sum()


def _run(direction: int, scale: float, tensors: dict[str, Tensor], **addresses: int) -> None:
    from ccnet_cli.ops.cpu import kernels

    B, H, W, C = tensors["value"].shape
    sizes = {"height": H, "width": W, "reduced": tensors["query"].shape[-1], "channels": C}
    threads = torch.get_num_threads()
    left, whole = kernels.scratch(**sizes)
    scratch = torch.empty(threads * whole, dtype=torch.uint8)
    for name, x in tensors.items():
        addresses |= {name: x.data_ptr(), f"{name}_step": x.element_size() * _step(x)}
    addresses |= {"scratch": scratch.data_ptr(), "scratch_left": left, "scratch_whole": whole}
    plan = np.zeros(1, kernels.PLAN)
    for name, value in {"direction": direction, "scale": scale, **sizes, **addresses, **kernels.ADDRESSES}.items():
        plan[name] = value
    for step, count in ((kernels.COLUMN, B * W), (kernels.ROW, B * H), (kernels.REST, B * W)):
        plan["step"], plan["count"], plan["next"], plan["threads"] = step, count, 0, 0
        _together(kernels.LINES, plan.ctypes.data, min(threads, count))


def _together(function: int, argument: int, threads: int) -> None:
    """Call a C function in so many threads at once."""
    parallel = _openmp()
    if parallel:
        parallel(function, argument, threads, 0)
        return
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
    others = [threading.Thread(target=call, args=(argument,)) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    call(argument)
    for thread in others:
        thread.join()


@lru_cache(maxsize=1)
def _openmp() -> Callable[[int, int, int, int], None] | None:
    """The start of a parallel region in the OpenMP that torch itself runs on; None where it has another interface.

    Threads of a second pool would fight with torch's for the processor, as both wait for work by spinning.
    """
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def _pixels(*tensors_BCHW: Tensor) -> list[Tensor]:
    """Views (B, H, W, C) with unit channel stride and evenly spaced pixels; copies of what is laid out otherwise."""
    found = []
    for x_BCHW in tensors_BCHW:
        x_BHWC = x_BCHW.detach().permute(0, 2, 3, 1)
        H, W, C = x_BHWC.shape[1:]
        step = _step(x_BHWC)
        expected = (H * W * step, W * step, step, 1)
        even = all(n == 1 or a == b for n, a, b in zip(x_BHWC.shape, x_BHWC.stride(), expected, strict=True))
        found.append(x_BHWC if even and step >= C else x_BHWC.contiguous())
    return found


def _step(x_BHWC: Tensor) -> int:
    """From one pixel to the next; the stride of an axis of length 1 says nothing."""
    return next((x_BHWC.stride(axis) for axis in (2, 1, 0) if x_BHWC.shape[axis] > 1), x_BHWC.shape[-1])
