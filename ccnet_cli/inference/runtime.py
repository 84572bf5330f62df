"""What runs an artifact's network: torch as it is, the engine in floats or in integers, or another runtime."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from ccnet_cli import devices
from ccnet_cli.errors import InputError, detail
from ccnet_cli.inference import calibration, engine, int8
from ccnet_cli.inference.artifact import Artifact, Network, default_device, default_precision
from ccnet_cli.inference.budget import Budget, machine_memory
from ccnet_cli.inference.int8 import INT8
from ccnet_cli.inference.views import host_input
from ccnet_cli.media import images
from ccnet_cli.models.network import CCNet, Normalisation, build_unfilled

# images whose ranges are measured for int8, and the pixels of a side, around the middle, that are looked at
CALIBRATION_IMAGES, CALIBRATION_SIDE = 8, 1025
# the label (H, W) of an image, 255 ignored, None where there is none
ReadLabel = Callable[[Path], images.Pixels | None]


@dataclass(frozen=True)
class Runtime:
    """Device, precision (auto, fp32, bf16, fp16, int8) and whether to compile (off, auto, on), as named by the user.

    int8 measures its ranges on the first images of calibration that can be read. memory is what a process may take, in
    bytes; where it is not firm, that is what the machine has left, see Budget.
    """

    device: str = "auto"
    precision: str = "fp32"
    compile: str = "off"
    calibration: tuple[Path, ...] = ()
    memory: int = 0
    firm: bool = False

    def resolve(self, path: Path, processes: int = 1) -> "Runtime":
        """With the device and precision that auto means for an artifact; InputError for what cannot be had here.

        The memory that the machine has left is for that many processes.
        """
        device = devices.device(default_device(self.device, path))
        if self.precision == INT8:
            int8.check_support(device)
            precision = INT8
        else:
            precision = devices.precision(default_precision(self.precision, path), device)
        engine.compiles(self.compile, device, 0)
        memory = self.memory or machine_memory(device) // processes
        return replace(self, device=str(device), precision=precision, memory=memory)

    def budget(self, artifact: Artifact[Network], network: Network) -> Budget:
        """What the images that the artifact's network, as prepared, sees may take."""
        model, classes = artifact.preset.model, len(artifact.classes)
        return Budget(self.memory, self.firm, network, lambda: build_unfilled(model, classes))

    def prepare(self, artifact: Artifact[Network], count: int, read_label: ReadLabel | None = None) -> Network:
        """The engine of the artifact's network for N images, or ONNX Runtime, which takes float32 alone.

        read_label gives the labels of calibration images, to weigh what int8 costs.
        """
        if isinstance(artifact.network, CCNet):
            device = torch.device(self.device)
            compiled = engine.compiles(self.compile, device, count)
            if self.precision == INT8:
                return cast(Network, self._quantise(artifact.network, device, count, read_label))
            return cast(Network, engine.prepare(artifact.network, device, self.precision, compiled, count))
        name = getattr(artifact.network, "runtime", "another runtime")
        if self.precision != "fp32":
            raise InputError(artifact.path, f"{name} runs it in float32 alone", "use precision fp32")
        if self.compile == "on":
            raise InputError("option --compile on", f"the file is run by {name}, not by torch", "leave it out")
        return artifact.network

    def calibrate(self, candidates: Iterable[Path]) -> "Runtime":
        """With these images for int8, unless others are named already."""
        if self.precision != INT8 or self.calibration:
            return self
        return replace(self, calibration=tuple(islice(candidates, CALIBRATION_IMAGES)))

    def _quantise(
        self, network: CCNet, device: torch.device, count: int, read_label: ReadLabel | None
    ) -> torch.nn.Module:
        if self.compile == "on":
            raise InputError("option --compile on", "int8 is computed by ready operators", "leave it out")
        examples = read_examples(self.calibration, network.normalisation, read_label)
        prepared = cast(engine.Engine, engine.prepare(network, device, "fp32", False, count))
        return calibration.quantise(prepared, examples)


def read_examples(
    paths: Iterable[Path], normalisation: Normalisation, read_label: ReadLabel | None = None
) -> list[calibration.Example]:
    """The middles of the images that can be read, for int8; InputError where there is none."""
    examples = []
    for path in paths:
        try:
            image = images.read_image(path, exif=True)
            label = read_label(path) if read_label else None
        except InputError as error:
            # which is for others to report
            detail(f"not calibrated on: {error}")
            continue
        top, left = (max(0, (side - CALIBRATION_SIDE) // 2) for side in image.shape[:2])
        middle = slice(top, top + CALIBRATION_SIDE), slice(left, left + CALIBRATION_SIDE)
        x = host_input(image[middle], normalisation, "cpu")
        examples.append(calibration.Example(x, None if label is None else label[middle]))
    if not examples:
        raise InputError("precision int8", "no image to measure the ranges on", "name a folder of some by --calibrate")
    return examples


def to_device(artifact: Artifact[CCNet], device: torch.device) -> CCNet:
    """The model on the device, in the memory format it was trained in."""
    model: Any = artifact.network.to(device)
    if artifact.preset.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return cast(CCNet, model)
