"""What runs a network: torch as it is, the engine, or ONNX Runtime."""

import torch
from torch import nn

from ccnet_cli.errors import InputError
from ccnet_cli.inference import engine
from ccnet_cli.weights import load as loading


def network(restored: loading.Restored, device: torch.device) -> nn.Module:
    """The restored model on the device, in the memory format it was trained in."""
    model = restored.model.to(device)
    return model.to(memory_format=torch.channels_last) if restored.preset.train.channels_last else model


def runner(
    restored: loading.Restored, device: torch.device, precision: str, compile: str, images: int, done: int = 0
) -> nn.Module:
    """The engine of the restored model for so many images, or ONNX Runtime, whose network is float32 and compiled.

    done are those of the same work that were seen before: its last images must be answered as its first were.
    """
    if not loading.onnx(restored.path):
        compiled = engine.compiles(compile, device, images)
        return engine.prepare(restored.model, device, precision, compiled, images + done)
    if precision != "fp32":
        raise InputError(restored.path, "ONNX Runtime runs it in float32 alone", "use precision fp32")
    if compile == "on":
        raise InputError("option --compile on", "an ONNX file is run by ONNX Runtime, not by torch", "leave it out")
    return restored.model
