"""Devices and precisions: from the words of the command line to those of torch."""

from collections.abc import Callable

import torch

from ccnet_cli.errors import InputError, notice

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def local_device(gpus: int | None, processes: int, name: str) -> torch.device:
    """Device of each local process; with CUDA, one GPU each. InputError where the options contradict each other."""
    if gpus and processes > 1:
        raise InputError("option --processes", "--gpus is given too", "give one of them")
    if gpus and gpus > torch.cuda.device_count():
        raise InputError(
            f"option --gpus {gpus}", f"this machine has {torch.cuda.device_count()}", "use fewer, or --processes"
        )
    return device("cuda" if gpus else "cpu" if processes > 1 else name)


def device(name: str = "auto") -> torch.device:
    """The device of a name: auto (CUDA where there is one), cpu, cuda or cuda:N; InputError where it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise InputError(f"device {name}", "unknown", "use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {name}", "torch sees no GPU here", "use --device cpu, or install a CUDA build of torch"
        )
    if index and int(index) >= torch.cuda.device_count():
        raise InputError(f"device {name}", f"this machine has {torch.cuda.device_count()}", "count from cuda:0")
    return torch.device(name)


def precision(name: str, device: torch.device, announce: Callable[[str], None] = notice) -> str:
    """The name of one of PRECISIONS; auto is bf16 where the device computes in it, else fp32, and is announced."""
    if name != "auto":
        if name not in PRECISIONS:
            raise InputError(f"precision {name}", "unknown", f"use one of auto, {', '.join(PRECISIONS)}")
        return name
    native = computes_bf16(device)
    where = "GPU" if device.type == "cuda" else "processor"
    chosen = "bf16" if native else "fp32"
    announce(f"precision {chosen}: this {where} {'has' if native else 'has no'} instructions for bfloat16")
    return chosen


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is emulated, and slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
