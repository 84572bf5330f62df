"""What runs an artifact's network: torch as it is, the engine, or ONNX Runtime."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from ccnet_cli import devices
from ccnet_cli.errors import InputError
from ccnet_cli.inference import engine
from ccnet_cli.inference.artifact import Artifact, Network, default_device, default_precision
from ccnet_cli.models.network import CCNet


@dataclass(frozen=True)
class Runtime:
    """Device, precision (auto, fp32, bf16, fp16) and whether to compile (off, auto, on), as named by the user."""

    device: str = "auto"
    precision: str = "fp32"
    compile: str = "off"

    def resolve(self, path: Path) -> "Runtime":
        """With the device and precision that auto means for an artifact; InputError for what cannot be had here."""
        device = devices.device(default_device(self.device, path))
        precision = devices.precision(default_precision(self.precision, path), device)
        engine.compiles(self.compile, device, 0)
        return replace(self, device=str(device), precision=precision)

    def prepare(self, artifact: Artifact[Network], images: int) -> Network:
        """The engine of the artifact's network for N images, or ONNX Runtime, which takes float32 alone."""
        if isinstance(artifact.network, CCNet):
            device = torch.device(self.device)
            compiled = engine.compiles(self.compile, device, images)
            prepared = engine.prepare(artifact.network, device, self.precision, compiled, images)
            return cast(Network, prepared)
        if self.precision != "fp32":
            raise InputError(artifact.path, "ONNX Runtime runs it in float32 alone", "use precision fp32")
        if self.compile == "on":
            raise InputError("option --compile on", "an ONNX file is run by ONNX Runtime, not by torch", "leave it out")
        return artifact.network


def to_device(artifact: Artifact[CCNet], device: torch.device) -> CCNet:
    """The model on the device, in the memory format it was trained in."""
    model: Any = artifact.network.to(device)
    if artifact.preset.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return cast(CCNet, model)
