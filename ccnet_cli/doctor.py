"""What this machine offers: versions, GPUs, and whether the CUDA kernels compile here."""

import platform
from ctypes import CDLL, byref, c_int
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ccnet_cli import __version__
from ccnet_cli.errors import InputError
from ccnet_cli.ops.cuda import launch, steps

# compiled where there is no GPU whose architecture could be asked for
USUAL = (8, 0)


def report() -> dict[str, Any]:
    """Plain values by name; null where something is not there. "kernels" tells per architecture if one compiles."""
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        arch = f"sm_{properties.major}{properties.minor}"
        devices.append({"name": properties.name, "arch": arch, "memory": properties.total_memory})
    archs = sorted({torch.cuda.get_device_capability(index) for index in range(len(devices))}) or [USUAL]
    return {
        "ccnet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "numba": _version("numba"),
        "numba_cuda": _version("numba-cuda"),
        "nvvm": _version("nvidia-nvvm") or _version("nvidia-cuda-nvcc-cu12"),
        "driver": _driver(),
        "devices": devices,
        "kernels": {f"sm_{major}{minor}": _kernels((major, minor)) for major, minor in archs},
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The newest CUDA version that the driver knows."""
    number = c_int()
    try:
        CDLL("libcuda.so.1").cuDriverGetVersion(byref(number))
    except (OSError, AttributeError):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _kernels(arch: tuple[int, int]) -> str:
    """The word compiles, or the refusal."""
    try:
        launch.require()
        from ccnet_cli.ops.cuda import build

        build.assemble(steps.Kernel("nn", "float32", (16, 13), True, 32), arch)
    except InputError as refusal:
        return str(refusal)
    return "compiles"
