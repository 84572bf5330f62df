"""Fused attention on a GPU: energies stay on chip, and only the logarithms of their sums are kept (fused.py)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from ccnet_cli.errors import InputError
from ccnet_cli.ops.cuda import launch, plan
from ccnet_cli.ops.cuda.steps import Buffer, Grid
from ccnet_cli.ops.layout import pixel_step, pixels

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
# an environment variable: how kernels bring numbers to shared memory
COPIES = "CCNET_CUDA_COPIES"


def fits(value: Tensor) -> bool:
    """Whether the kernels are for a tensor: two axes, on a GPU whose tensor cores take bfloat16 and TF32.

    float32 only where torch lets its products be rounded to TF32.
    """
    if not value.is_cuda or value.dtype not in DTYPES or value.dim() != 4:
        return False
    # torch.compile can trace this, and not torch.get_float32_matmul_precision
    if value.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32:
        return False
    return torch.cuda.get_device_capability(value.device) >= (8, 0)


def attend(query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W) of one pass of one type, and the logarithm (B, H, W) of each pixel's sum of weights."""
    query, key, value = map(pixels, (query_BCHW, key_BCHW, value_BCHW))
    B, H, W, C = value.shape
    out, log = value.new_empty(B, H, W, C), value.new_empty(B, H, W, dtype=torch.float32)
    if out.numel():
        tensors = {"query": query, "key": key, "value": value, "out": out}
        launches = _forward(_grid(value), query.shape[-1], C, *_buffers(tensors))
        launch.run(launches, tensors | {"log": log, "log_rows": torch.empty_like(log)})
    return out.permute(0, 3, 1, 2), log


def attend_and_add(query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, x_BCHW: Tensor, gamma: Tensor) -> Tensor:
    """Gamma, which has one entry, times one pass, plus x: the columns add it before they round."""
    query, key, value, x = map(pixels, (query_BCHW, key_BCHW, value_BCHW, x_BCHW))
    B, H, W, C = value.shape
    out, log = value.new_empty(B, H, W, C), value.new_empty(B, H, W, dtype=torch.float32)
    if out.numel():
        tensors = {"query": query, "key": key, "value": value, "out": out, "x": x}
        launches = _forward(_grid(value), query.shape[-1], C, *_buffers(tensors))
        launch.run(launches, tensors | {"gamma": gamma.float(), "log": log, "log_rows": torch.empty_like(log)})
    return out.permute(0, 3, 1, 2)


def attend_backward(
    grad_BCHW: Tensor, query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor, out_BCHW: Tensor, log_BHW: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the output's gradient, the output and the logarithms."""
    sources = (out_BCHW, query_BCHW, key_BCHW, value_BCHW, grad_BCHW)
    tensors = dict(zip(("out", "query", "key", "value", "grad"), map(pixels, sources), strict=True))
    query, value = tensors["query"], tensors["value"]
    made = {f"d_{name}": tensors[name].new_empty(tensors[name].shape) for name in ("query", "key", "value")}
    if value.numel():
        launches = _backward(_grid(value), query.shape[-1], value.shape[-1], *_buffers(tensors))
        width = plan.scratch_width(query.shape[-1])
        rows = {f"{x}_rows": log_BHW.new_empty(*log_BHW.shape, width) for x in ("query", "key")}
        launch.run(launches, tensors | made | rows | {"log": log_BHW, "delta": torch.empty_like(log_BHW)})
    else:
        made = {name: x.zero_() for name, x in made.items()}
    d_query, d_key, d_value = (x.permute(0, 3, 1, 2) for x in made.values())
    return d_query, d_key, d_value


# launches depend on sizes, strides and types alone
_forward = lru_cache(maxsize=256)(plan.forward)
_backward = lru_cache(maxsize=256)(plan.backward)


def _grid(x_BHWC: Tensor) -> Grid:
    B, H, W, _ = x_BHWC.shape
    return Grid(B, H, W, 0, DTYPES[x_BHWC.dtype], largest=plan.LINE, copies=read_copies())


def read_copies() -> str:
    """The environment's choice; InputError for an unknown one."""
    copies = os.environ.get(COPIES) or plan.COPIES[0]
    if copies not in plan.COPIES:
        raise InputError(
            f"{COPIES}={copies}", "not a way to copy", f"set it to {' or '.join(plan.COPIES)}, or unset it"
        )
    return copies


@contextmanager
def copying(copies: str) -> Iterator[None]:
    """Make this choice, whatever it was before."""
    before = os.environ.get(COPIES, "")
    os.environ[COPIES] = copies
    try:
        yield
    finally:
        os.environ[COPIES] = before


def _buffers(tensors: dict[str, Tensor]) -> list[Buffer]:
    """Each tensor with its pixels' distance, and whether 16 bytes of numbers of it are one access."""
    steps = ((name, x, pixel_step(x), 16 // x.element_size()) for name, x in tensors.items())
    return [
        Buffer(name, step, x.shape[-1] % numbers == 0 and step % numbers == 0 and x.data_ptr() % 16 == 0)
        for name, x, step, numbers in steps
    ]
