"""The launch path of the kernels as on a GPU, where there is none: real calls of cuda.bindings to a stub of the driver.

The stub is a library of few lines of C in the driver's place, whose functions Python defines. As a script, a process
of its own with the stub on LD_LIBRARY_PATH, this runs one pass and its gradients and prints what was launched.
"""

import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ccnet_cli.errors import CCNetError

ROOT = Path(__file__).parent.parent
STUB = r"""
#include <string.h>
static struct { char name[64]; void *function; } table[64];
static int count;
static int missing(void) { return 801; }
void define(const char *name, void *function) {
    strncpy(table[count].name, name, 63);
    table[count++].function = function;
}
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    *function = (void *)missing;
    for (int i = 0; i < count; i++) if (!strcmp(table[i].name, name)) *function = table[i].function;
    if (status) *status = 0;
    return 0;
}
int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags, int *status) {
    return cuGetProcAddress_v2(name, function, version, flags, status);
}
"""
# pointers and numbers of each kernel
ARGUMENTS = {"fused": (6, 8), "fused_residual": (8, 9), "fused_delta": (3, 4), "fused_backward": (11, 9)}
DEVICE, STREAM = 3, 0x5EED0
CONTEXT, ILLEGAL_ADDRESS = 0xC0DE00, 700
WORD, POINTER = ctypes.c_uint, ctypes.c_void_p


def build(folder: Path) -> None:
    """Make the stub, which the driver's name finds in this folder."""
    compiler = shutil.which("cc")
    assert compiler
    (folder / "driver.c").write_text(STUB)
    library = str(folder / "libcuda.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, str(folder / "driver.c")], check=True)


def run_apart(folder: Path, **options: Any) -> dict[str, Any]:
    """What a process of its own prints."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__)), json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


class Driver:
    """What the driver's functions do: contexts, modules and functions are numbers, launches are kept."""

    def __init__(self, forms: dict[str, str], execute: Callable[..., None] | None, fails_at: int) -> None:
        self.forms, self.execute, self.fails_at = forms, execute, fails_at
        self.launches: list[dict[str, Any]] = []
        self.modules: list[str] = []
        self.functions: list[str] = []
        self.context = 0
        library = ctypes.CDLL("libcuda.so.1")
        functions: dict[str, tuple[Callable[..., int], list[Any]]] = {
            "cuInit": (lambda flags: 0, [WORD]),
            "cuDeviceGet": (lambda device, ordinal: store(device, ctypes.c_int, ordinal), [POINTER, WORD]),
            "cuDevicePrimaryCtxRetain": (
                lambda context, device: store(context, POINTER, CONTEXT + device),
                [POINTER, WORD],
            ),
            "cuCtxSetCurrent": (self.set_context, [POINTER]),
            "cuModuleLoadData": (self.load, [POINTER, POINTER]),
            "cuModuleGetFunction": (self.find, [POINTER, POINTER, ctypes.c_char_p]),
            "cuLaunchKernel": (self.launch, [POINTER, *[WORD] * 7, *[POINTER] * 3]),
        }
        # they live as long as this
        self.calls = {name: ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(call) for name, (call, kinds) in functions.items()}
        for name, call in self.calls.items():
            library.define(name.encode(), ctypes.cast(call, POINTER))

    def set_context(self, context: int) -> int:
        self.context = context
        return 0

    def load(self, module: int, image: int) -> int:
        self.modules.append(ctypes.string_at(image, 4).hex())
        return store(module, POINTER, len(self.modules))

    def find(self, function: int, module: int, name: bytes) -> int:
        self.functions.append(name.decode())
        return store(function, POINTER, len(self.functions))

    def launch(self, function: int, *rest: Any) -> int:
        shape, (shared, stream, table, extra) = rest[:6], rest[6:]
        if len(self.launches) == self.fails_at:
            return ILLEGAL_ADDRESS
        name = self.functions[function - 1]
        pointers, numbers = ARGUMENTS[self.forms[name]]
        slots = (POINTER * (pointers + numbers)).from_address(table)
        row = {"name": name, "form": self.forms[name], "grid": shape[:3], "block": shape[3:], "shared": shared}
        row |= {"stream": stream, "extra": extra, "context": self.context}
        row["pointers"] = [POINTER.from_address(slot).value for slot in slots[:pointers]]
        row["numbers"] = [ctypes.c_int32.from_address(slot).value for slot in slots[pointers:]]
        self.launches.append(row)
        try:
            if self.execute:
                self.execute(row)
        except Exception as error:
            row["fault"] = repr(error)
        return 0


def store(address: int, kind: Any, value: int) -> int:
    """Write what a function of the driver answers with."""
    kind.from_address(address).value = value
    return 0


def memory_from(address: int) -> np.ndarray:
    """The bytes from an address to the end of the tensor that it lies in."""
    for tensor in (x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)):
        whole = tensor.untyped_storage()
        start, size = whole.data_ptr(), whole.nbytes()
        if start <= address < start + size:
            return np.frombuffer((ctypes.c_uint8 * (start + size - address)).from_address(address), np.uint8)
    raise ValueError(f"no tensor has address {address:#x}")


@contextmanager
def selected(device: torch.device) -> Any:
    """torch.cuda.device."""
    yield


def main(options: dict[str, Any]) -> dict[str, Any]:
    """A residual in prediction, and one with its gradients; errors relative to float64 if they are executed."""
    import kernels

    from ccnet_cli import ops
    from ccnet_cli.ops.cuda import attention, launch

    sys.path.insert(0, str(kernels.PTXRUN))
    made: dict[str, Any] = {}
    forms: dict[str, str] = {}
    arch, compile_kernel = tuple(options["arch"]), launch.machine_code

    def machine_code(kernel: Any, arch: tuple[int, int]) -> bytes:
        made[kernel.entry], forms[kernel.entry] = kernel, kernel.form
        return compile_kernel(kernel, arch) if options["execute"] else b"\x7fELF"

    def execute(row: dict[str, Any]) -> None:
        import ptxrun

        from ccnet_cli.ops.cuda import build

        arguments = [*map(memory_from, row["pointers"]), *row["numbers"]]
        ptxrun.run(build.ptx(made[row["name"]], arch), "", row["grid"], row["block"][0], arguments)

    driver = Driver(forms, execute if options["execute"] else None, options.get("fails_at", -1))
    launch.machine_code = machine_code
    attention.fits = lambda value: True
    torch.cuda.device = selected
    torch.cuda.current_device = lambda: DEVICE
    torch.cuda.get_device_capability = lambda index: arch
    torch.cuda.current_stream = lambda: SimpleNamespace(cuda_stream=STREAM)
    B, c, C, H, W = options["shape"]
    shift = options.get("shift", 0)
    whole = torch.randn(B, shift + 2 * c + 2 * C, H, W, generator=torch.Generator().manual_seed(0))
    whole[:, : shift + 2 * c] *= c**-0.25
    whole = whole.to(getattr(torch, options["dtype"])).contiguous(memory_format=torch.channels_last)
    projected, x = whole[:, shift:].split([2 * c + C, C], dim=1)
    leaves = [x.detach().requires_grad_() for x in (projected, x, torch.tensor([0.5]))]
    answer: dict[str, Any] = {"launches": driver.launches, "modules": driver.modules}
    answer["sources"] = {"projected": projected.data_ptr(), "x": x.data_ptr(), "gamma": leaves[2].data_ptr()}
    try:
        with torch.no_grad():
            got = [ops.residual(*leaves, c, "numba")]
        weight = torch.linspace(-1, 1, got[0].numel()).view_as(got[0])
        # by itself: on the CPU in float32, the residual with gradients is another operator
        out = leaves[2] * ops.criss_cross(*leaves[0].split([c, c, C], dim=1), "numba") + leaves[1]
        got += torch.autograd.grad((out * weight).sum(), leaves)
    except CCNetError as error:
        return answer | {"error": str(error)}
    if options["execute"]:
        exact = [x.detach().double().requires_grad_() for x in leaves]
        sums = ops.residual(*exact, c, "reference")
        wanted = [sums, *torch.autograd.grad((sums * weight).sum(), exact)]
        pairs = zip(got, wanted, strict=True)
        answer["errors"] = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]
    return answer


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
