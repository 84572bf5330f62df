"""Start the kernels' threads."""

import ctypes
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch


def run_threads(function: int, argument: int, threads: int) -> None:
    """Call a C function, by its address, in all of N threads at once."""
    parallel = openmp()
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
def openmp() -> Callable[[int, int, int, int], None] | None:
    """Start of a parallel region in the OpenMP that torch itself uses; None if that has another interface.

    The threads of a second pool would compete with torch's for the processor: both spin while they wait for work.
    """
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
