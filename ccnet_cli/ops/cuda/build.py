"""Kernels from their description: as functions for the simulator, as PTX for an architecture, compiled for a device."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numba import cuda, types

from ccnet_cli.ops.cuda.lines import line_product
from ccnet_cli.ops.cuda.softmax import softmax, softmax_backward
from ccnet_cli.ops.cuda.steps import THREADS, Kernel

# bfloat16 has no type of its own in the simulator and no need of one here
STORED = {"float32": types.float32, "float16": types.float16, "bfloat16": types.uint16}


def function(kernel: Kernel) -> Callable[..., None]:
    """The kernel in plain Python."""
    if kernel.form in ("softmax", "softmax_backward"):
        return {"softmax": softmax, "softmax_backward": softmax_backward}[kernel.form](*kernel.sizes)
    return line_product(kernel.form, *kernel.sizes, kernel.aligned)


def signature(kernel: Kernel) -> Any:
    """Pointers, then int32."""
    stored, full = types.CPointer(STORED[kernel.dtype]), types.CPointer(types.float32)
    pointers, numbers = {
        "softmax": ([full], 5),
        "softmax_backward": ([full, full], 5),
        "nt": ([stored, stored, full], 9),
        "nn": ([full, stored, stored], 9),
        "tn": ([full, stored, stored], 9),
    }[kernel.form]
    return types.void(*pointers, *[types.int32] * numbers)


def bounds(kernel: Kernel) -> tuple[int, int]:
    """Threads and blocks that share a multiprocessor: 128 registers each for a product, 64 for a large softmax."""
    return (THREADS, 2) if kernel.threads <= THREADS else (kernel.threads, 1)


@lru_cache(maxsize=256)
def ptx(kernel: Kernel, arch: tuple[int, int]) -> str:
    """The kernel for a compute capability, compiled without a GPU."""
    text, _ = cuda.compile(
        function(kernel),
        signature(kernel),
        device=False,
        abi="numba",
        cc=arch,
        output="ptx",
        launch_bounds=bounds(kernel),
    )
    return text
