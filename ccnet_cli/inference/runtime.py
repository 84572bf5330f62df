"""What runs an artifact's network: torch as it is, the engine, or ONNX Runtime."""

import torch

from ccnet_cli.errors import InputError
from ccnet_cli.inference import engine
from ccnet_cli.inference.artifact import Artifact, Network
from ccnet_cli.models.network import CCNet


def network(artifact: Artifact[CCNet], device: torch.device) -> CCNet:
    """The model on the device, in the memory format it was trained in."""
    model = artifact.network.to(device)
    return model.to(memory_format=torch.channels_last) if artifact.preset.train.channels_last else model


def runner(
    artifact: Artifact[Network], device: torch.device, precision: str, compile: str, images: int, done: int = 0
) -> Network:
    """The engine of the artifact's network for N images, or ONNX Runtime, which takes float32 alone.

    done images of the same work were seen before: the last ones must be answered as the first ones were.
    """
    if isinstance(artifact.network, CCNet):
        compiled = engine.compiles(compile, device, images)
        return engine.prepare(artifact.network, device, precision, compiled, images + done)
    if precision != "fp32":
        raise InputError(artifact.path, "ONNX Runtime runs it in float32 alone", "use precision fp32")
    if compile == "on":
        raise InputError("option --compile on", "an ONNX file is run by ONNX Runtime, not by torch", "leave it out")
    return artifact.network
