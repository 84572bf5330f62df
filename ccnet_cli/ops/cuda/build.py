"""Kernels from their description: as functions for the simulator, as PTX for an architecture, compiled for a device."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from types import SimpleNamespace
from typing import Any

from numba import cuda, types

from ccnet_cli.errors import InputError
from ccnet_cli.ops.cuda import plan
from ccnet_cli.ops.cuda.lines import line_product
from ccnet_cli.ops.cuda.softmax import softmax, softmax_backward
from ccnet_cli.ops.cuda.steps import THREADS, Kernel
from ccnet_cli.ops.cuda.tensor import tensor_product

# bfloat16 has no type of its own in the simulator and no need of one here
STORED = {"float32": types.float32, "float16": types.float16, "bfloat16": types.uint16}


def make_function(kernel: Kernel) -> Callable[..., None]:
    """The kernel in plain Python."""
    if kernel.form in plan.FORMS:
        return _make_fused(kernel)
    if "softmax" in kernel.form:
        return (softmax if kernel.form == "softmax" else softmax_backward)(*kernel.sizes)
    across, down, *parts = kernel.sizes
    if kernel.form == "tensor":
        return tensor_product(across, down, parts[0], kernel.dtype, kernel.aligned)
    return line_product(kernel.form, across, down, kernel.aligned)


def _make_fused(kernel: Kernel) -> Callable[..., None]:
    # imported here: the simulator cannot run them
    from ccnet_cli.ops.cuda import fused

    if kernel.form == "fused_delta":
        return fused.inner_products(kernel.dtype, kernel.sizes[1], kernel.aligned)
    return (fused.attend_backward if kernel.form == "fused_backward" else fused.attend)(kernel)


def signature(kernel: Kernel) -> Any:
    """Pointers, then int32, some of them as tuples, which are single numbers in PTX."""
    stored, full, number = types.CPointer(STORED[kernel.dtype]), types.CPointer(types.float32), types.int32
    if kernel.form in plan.FORMS:
        return _fused_signature(kernel)
    if "softmax" in kernel.form:
        return types.void(*[full] * (1 if kernel.form == "softmax" else 2), number, types.UniTuple(number, 6), number)
    pointers = (stored, stored, full) if kernel.form == "nt" else (full, stored, stored)
    # strides, two arms, and pixels per image with channels
    return types.void(*pointers, *(types.UniTuple(number, count) for count in (3, 9, 2)))


def _fused_signature(kernel: Kernel) -> Any:
    """Pointers and numbers in tuples; numbers of 16 bits as they lie in memory."""
    form = kernel.form

    def several(kind: Any, count: int) -> Any:
        return types.UniTuple(kind, count)

    full, number = types.CPointer(types.float32), types.int32
    half = full if kernel.dtype == "float32" else types.CPointer(types.uint16)
    if form == "fused_delta":
        return types.void(half, half, full, several(number, 2), number, number)
    # of pointers to numbers and to float32, and strides
    counts = {"fused": (4, 2, 3), "fused_residual": (5, 3, 4), "fused_backward": (4, 4, 4)}
    halves, fulls, strides = counts[form]
    pointers = [several(half, halves), *([several(half, 3)] if form == "fused_backward" else [])]
    return types.void(*pointers, several(full, fulls), several(number, strides), several(number, 4), number)


def launch_bounds(kernel: Kernel) -> tuple[int, int]:
    """Threads per block, and blocks per multiprocessor: 128 registers per thread, 64 in a large softmax, 255 fused."""
    two = kernel.threads <= THREADS and kernel.form not in plan.FORMS
    return (THREADS, 2) if two else (kernel.threads, 1)


@lru_cache(maxsize=256)
def ptx(kernel: Kernel, arch: tuple[int, int]) -> str:
    """The kernel for a compute capability, compiled without a GPU; InputError if the toolkit is missing."""
    # imported here: the simulator does not have them
    from numba.core.errors import NumbaError
    from numba.cuda.cudadrv.error import CCSupportError, NvvmError, NvvmSupportError

    if kernel.form in ("tensor", *plan.FORMS) and arch < (8, 0):
        why = "TF32 and bfloat16 need sm_80 or newer"
        raise InputError(f"numba kernels on tensor cores of sm_{arch[0]}{arch[1]}", why, "do not use tensor cores")
    options = {"device": False, "abi": "numba", "output": "ptx", "launch_bounds": launch_bounds(kernel)}
    text: str
    try:
        with _device_of(arch):
            text, _ = cuda.compile(make_function(kernel), signature(kernel), cc=arch, **options)
    except (NvvmSupportError, CCSupportError, NvvmError, NumbaError) as error:
        raise _refusal(arch, error) from None
    mangled = re.search(r"\.entry (\w+)\(", text)
    assert mangled
    return text.replace(mangled.group(1), kernel.entry)


@contextmanager
def _device_of(arch: tuple[int, int]) -> Iterator[None]:
    """Let numba compile device functions for a compute capability; it would ask the current device for it."""
    from numba.cuda import dispatcher

    ask = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=arch)
    try:
        yield
    finally:
        dispatcher.get_current_device = ask


@dataclass(frozen=True)
class MachineCode:
    """Machine code with the assembler's figures: registers per thread, the rest in bytes."""

    image: bytes
    registers: int
    stack: int
    spills: int
    shared: int


@lru_cache(maxsize=256)
def assemble(kernel: Kernel, arch: tuple[int, int]) -> MachineCode:
    """The kernel's machine code for a compute capability, assembled without a GPU."""
    text = ptx(kernel, arch).encode()
    try:
        from cuda.bindings import nvjitlink

        link = nvjitlink.create(2, [f"-arch=sm_{arch[0]}{arch[1]}", "-verbose"])
    except (ImportError, RuntimeError) as error:
        raise _refusal(arch, error) from None
    try:
        nvjitlink.add_data(link, nvjitlink.InputType.PTX, text, len(text), kernel.entry)
        nvjitlink.complete(link)
        image = bytearray(nvjitlink.get_linked_cubin_size(link))
        nvjitlink.get_linked_cubin(link, image)
        log = bytearray(nvjitlink.get_info_log_size(link))
        nvjitlink.get_info_log(link, log)
    except nvjitlink.nvJitLinkError as error:
        raise _refusal(arch, error) from None
    finally:
        nvjitlink.destroy(link)
    return MachineCode(bytes(image), *_resources(log.decode()))


def inner_loop(image: bytes, operation: str = "FFMA") -> tuple[int, int]:
    """How many of an operation, and how many vector loads from shared memory, the densest loop of machine code has."""
    loops = []
    for body in inner_loops(image):
        multiplies = count(body, operation)
        loads = sum(re.search(r" LDS\S*\.128", x) is not None for x in body)
        loops.append((multiplies / len(body), multiplies, loads))
    # of all loops, the one with the most products per instruction
    return max(loops, default=(0, 0, 0))[1:]


def count(body: list[str], operation: str) -> int:
    """How many instructions are of an operation."""
    return sum(f" {operation}" in line for line in body)


def inner_loops(image: bytes) -> list[list[str]]:
    """The instructions of each loop of machine code in which there is no other: from a label to a branch back to it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        command = [_disassembler(), "-c", file.name]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    labels = {line.strip()[:-1]: number for number, line in enumerate(lines) if re.match(r"\.L_x_\d+:", line.strip())}
    spans = []
    for number, line in enumerate(lines):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        # behind a kernel's end is a branch to itself
        if target and labels.get(target.group(1), number) < number - 1:
            spans.append(range(labels[target.group(1)], number))
    return [lines[x.start : x.stop] for x in spans if sum(x.start <= y.start and y.stop <= x.stop for y in spans) == 1]


def _disassembler() -> str:
    with suppress(PackageNotFoundError):
        for file in files("nvidia-cuda-nvdisasm") or ():
            if file.name == "nvdisasm":
                return str(file.locate())
    raise InputError("nvdisasm", "not installed", "pip install nvidia-cuda-nvdisasm")


def _resources(log: str) -> tuple[int, int, int, int]:
    """Registers, and bytes of stack, spills and shared memory, from the assembler's log."""

    def number(pattern: str) -> int:
        match = re.search(pattern, log)
        return int(match.group(1)) if match else 0

    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    registers = number(r"Used (\d+) registers")
    if not registers:
        raise RuntimeError(f"no number of registers in the assembler's log: {log!r}")
    return registers, number(r"(\d+) bytes stack frame"), spills, number(r"(\d+) bytes smem")


def _refusal(arch: tuple[int, int], error: Exception) -> InputError:
    name = f"sm_{arch[0]}{arch[1]}"
    why = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return InputError(
        f"numba kernels for {name}",
        f"they cannot be compiled here ({why})",
        "pip install 'ccnet-cli[cuda13]' (sm_75 and newer) or 'ccnet-cli[cuda12]'",
    )
