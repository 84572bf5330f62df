"""Launches on a GPU: kernels compiled once per architecture, loaded once per device, on torch's current stream."""

import ctypes
import hashlib
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccnet_cli import files
from ccnet_cli.errors import CCNetError, EnvironmentFailure, InputError, notice
from ccnet_cli.ops.cuda.steps import Kernel, Step

# the module that numba-cuda's .pth file imports
REDIRECTOR = "_numba_cuda_redirector"


def run(steps: Sequence[Step], tensors: dict[str, Tensor]) -> None:
    """Launch in order on the tensors' device, on torch's current stream there.

    A CUDA graph can capture it after a first run, which loads the kernels.
    """
    device = next(iter(tensors.values())).device
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    with torch.cuda.device(device):
        index, stream = torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream
        # a thread that has not called the CUDA runtime yet has no context
        _check(_driver().cuCtxSetCurrent(_context(index)))
        # an empty batch, line or channel axis leaves nothing to do
        for step in (step for step in steps if 0 not in step.grid):
            _prepare(step, index)(pointers, stream)


class _Launch:
    """One launch with its arguments laid out for the driver, which copies them during the call."""

    def __init__(self, step: Step, function: Any) -> None:
        self.function = function
        self.shape = (*step.grid, step.kernel.threads, 1, 1)
        self.names = [x for x in step.arguments if isinstance(x, str)]
        self.slots = [ctypes.c_void_p() for _ in self.names]
        numbers = [ctypes.c_int32(x) for x in step.arguments if not isinstance(x, str)]
        self.values = [*self.slots, *numbers]
        self.table = (ctypes.c_void_p * len(self.values))(*map(ctypes.addressof, self.values))
        self.address = ctypes.addressof(self.table)
        # a backward pass may launch from another thread
        self.lock = threading.Lock()

    def __call__(self, pointers: dict[str, int], stream: int) -> None:
        with self.lock:
            for name, slot in zip(self.names, self.slots, strict=True):
                slot.value = pointers[name]
            _check(_driver().cuLaunchKernel(self.function, *self.shape, 0, stream, self.address, 0))


@lru_cache(maxsize=1024)
def _prepare(step: Step, index: int) -> _Launch:
    return _Launch(step, _load(step.kernel, index))


@lru_cache(maxsize=64)
def _context(index: int) -> Any:
    """The primary context of a device, which is the one that torch uses."""
    _check(_driver().cuInit(0))
    return _check(_driver().cuDevicePrimaryCtxRetain(_check(_driver().cuDeviceGet(index))))


@lru_cache(maxsize=256)
def _load(kernel: Kernel, index: int) -> Any:
    """The kernel as a function in the primary context of a device, current here."""
    module = _check(_driver().cuModuleLoadData(machine_code(kernel, torch.cuda.get_device_capability(index))))
    return _check(_driver().cuModuleGetFunction(module, kernel.entry.encode()))


def machine_code(kernel: Kernel, arch: tuple[int, int]) -> bytes:
    """The kernel's machine code for one architecture, from the cache folder, or compiled and written there.

    Where it cannot be compiled, what another compiler made of these sources elsewhere.
    """
    path = _path(kernel, arch)
    with suppress(OSError):
        return path.read_bytes()
    try:
        require()
        image: bytes = compile_to_cache(kernel, arch).image
    except InputError:
        others = sorted(path.parent.glob(f"{path.name.rpartition('-')[0]}-{_sources()}*.cubin"))
        if not others:
            raise
        return others[0].read_bytes()
    return image


def compile_to_cache(kernel: Kernel, arch: tuple[int, int]) -> Any:
    """The compiled kernel with the assembler's figures, written to the cache folder.

    Where the folder cannot be written to, each process compiles its own.
    """
    from ccnet_cli.ops.cuda import build

    code, path = build.assemble(kernel, arch), _path(kernel, arch)
    try:
        files.write_bytes(path, code.image)
    except (OSError, CCNetError) as error:
        _warn_of_cache(path.parent, error.why if isinstance(error, CCNetError) else str(error.strerror or error))
    return code


def _path(kernel: Kernel, arch: tuple[int, int]) -> Path:
    return _folder() / f"{kernel.name}-sm_{arch[0]}{arch[1]}-{_version()}.cubin"


def _folder() -> Path:
    return files.cache_folder() / "kernels"


@lru_cache(maxsize=1)
def _warn_of_cache(folder: Path, why: str) -> None:
    notice(f"warning: compiled kernels are not kept in {folder} ({why}); set CCNET_CACHE to a folder you can write to")


def require() -> None:
    """InputError, with the pip command to run, if the compiler of the kernels is not installed."""
    for name in ("numba_cuda", "cuda.bindings"):
        if _is_missing(name):
            raise InputError("implementation numba", f"{name} is not installed", f"pip install '{pip_extra()}'")
    # numba-cuda takes numba.cuda's place by a .pth file, which Python reads in site-packages alone
    if REDIRECTOR not in sys.modules:
        why = "numba-cuda is on PYTHONPATH, where Python does not read its .pth file"
        fix = "install it with pip into this environment, or call site.addsitedir on its folder in sitecustomize.py"
        raise InputError("implementation numba", why, fix)


def pip_extra() -> str:
    """The pip extra whose toolkit fits this torch."""
    return f"ccnet-cli[cuda{12 if (torch.version.cuda or '13').startswith('12') else 13}]"


def _is_missing(name: str) -> bool:
    try:
        return find_spec(name) is None
    except ModuleNotFoundError:
        return True


@lru_cache(maxsize=1)
def _version() -> str:
    """Hashes of everything that decides the machine code: these sources and the compiler."""
    digest = hashlib.sha256()
    for name in ("numba-cuda", "numba", "llvmlite", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink"):
        with suppress(PackageNotFoundError):
            digest.update(f"{name} {version(name)}".encode())
    return _sources() + digest.hexdigest()[:8]


@lru_cache(maxsize=1)
def _sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _driver() -> Any:
    # all else that `require` asks for only compiles
    if _is_missing("cuda.bindings"):
        require()
    from cuda.bindings import driver

    return driver


def _check(outcome: tuple[Any, ...]) -> Any:
    """The value of a call to the driver; EnvironmentFailure names the driver's error."""
    status, *values = outcome
    if status != 0:
        why = f"it answered {getattr(status, 'name', status)}"
        raise EnvironmentFailure("the CUDA driver", why, "see ccnet doctor, or set model.implementation=gemm")
    return values[0] if values else None
