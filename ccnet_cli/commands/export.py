"""Write a model to hand on: our file without the training's state, the authors' layout, or the network itself."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccnet_cli import __version__, config, files
from ccnet_cli.config import migration
from ccnet_cli.errors import EnvironmentFailure, InputError, notice
from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.inference import portable
from ccnet_cli.inference.views import to_input
from ccnet_cli.models.backbones.resnet import RESNETS, Bottleneck
from ccnet_cli.models.network import CCNet
from ccnet_cli.weights import layouts as weights
from ccnet_cli.weights import load as loading

# formats that hold the network itself, and the endings by which their files are known
SUFFIXES = {"onnx": onnxfile.SUFFIX, "torch-export": portable.SUFFIX}
# batch, height and width of what a written network is tried with, none of them those that it was traced with
SHAPES = ((1, 49, 73), (3, 66, 41))
# of the range of the scores
NEAR = 1e-4


def export(
    source: Path, output: Path, format: str = "weights", preset: str | None = None, overrides: Sequence[str] = ()
) -> Path:
    """Write a checkpoint's model alone: "weights", about a third of the size, or "official", in the authors' layout.

    "onnx" and "torch-export" write the network itself, to be run without ccnet; nothing is written where their scores
    differ from the model's. source may be anybody's weights; preset and overrides are those of loading.understand.
    """
    for name, suffix in SUFFIXES.items():
        if (format == name) != (output.suffix.lower() == suffix):
            fix = f"end the name in {suffix}" if format == name else f"add --format {name}, or choose another name"
            raise InputError(output, f"{suffix} is the ending of --format {name}", fix)
    if output.exists() and source.exists() and output.samefile(source):
        raise InputError(output, "is the checkpoint itself", "choose another name")
    if format in SUFFIXES:
        network = _network(source, output, format, preset, overrides)
        return _written(output, lambda file: file.write(network))
    content = loading.understand(source, preset, overrides)
    kept = {key: value for key, value in content.items() if key != "training"}
    if format == "official":
        state, settings = content["model"], config.from_mapping(content["preset"]).model
        # a count other than 0 before the first step was in the file that the weights came from
        counts = not content["step"] and any(t.any() for key, t in state.items() if key.endswith("num_batches_tracked"))
        kept, rewritten = official(state, settings, source, counts)
        if rewritten:
            notice(f"{rewritten} batch-norm scales below 1e-5 moved into the convolutions before them")
    return _written(output, lambda file: torch.save(kept, file))


def _written(output: Path, fill: Callable[[Any], object]) -> Path:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        files.write(output, fill)
    except (OSError, RuntimeError) as error:
        # torch tells of a full disk in words of its own
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise EnvironmentFailure(output, f"not written ({why})", "make room, or choose another place") from None
    return output


def _network(source: Path, output: Path, format: str, preset: str | None, overrides: Sequence[str]) -> bytes:
    """The content of an ONNX file or of a program of torch's, whose scores were found to be the model's."""
    if format == "onnx":
        onnxfile.require("onnx", "onnxscript", "onnxruntime")
    restored = loading.restore(source, preset, overrides)
    model, classes = restored.model, restored.classes
    facts = {
        "ccnet": __version__,
        "preset": config.to_mapping(restored.preset),
        "classes": classes.to_mapping(),
        "step": restored.step,
        "metrics": restored.metrics,
    }
    traced = portable.program(model)
    if format == "onnx":
        content = onnxfile.write(traced, facts)
        written = onnxfile.Network(content, output, len(classes), model.normalisation, model.align_corners)
    else:
        content = portable.saved(traced, facts)
        written = portable.loaded(content)
    found = max(deviation(written, model, shape) for shape in SHAPES)
    # nan is not near either
    if not found <= NEAR:
        why = f"not written: its scores are {found:.1e} of their range away from the model's"
        raise EnvironmentFailure(output, why, "update torch, or report it")
    return content


@torch.inference_mode()
def deviation(network: nn.Module, model: CCNet, shape: tuple[int, int, int]) -> float:
    """The largest difference between two networks' scores of noise, (N, H, W), as a share of the scores' range."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    x = torch.cat([to_input(image, model.normalisation, "cpu") for image in noise])
    wanted = model(x)
    spread = wanted.max() - wanted.min()
    return float((network(x) - wanted).abs().max() / (spread if spread else 1))


def official(
    state: Mapping[str, Tensor], model: config.Model, path: Path, counts: bool = False
) -> tuple[dict[str, Tensor], int]:
    """Our weights in the authors' layout, and how many channels had to be rewritten to fit in-place ABN's rule.

    A scale s becomes a w with abs(w) + 1e-5 == s, bit for bit where s was made so. A scale below 1e-5 has none: its
    sign and size move to the convolution before it and its running mean, which leaves the output the same. counts of
    batches, which in-place ABN does not have, are written if asked. InputError where the authors' network differs from
    the model.
    """
    theirs = {
        "stem": "deep",
        "dilation": "dilated",
        "pool": "ceil",
        "activation": "leaky_relu",
        **({"auxiliary_bias": True} if model.auxiliary else {}),
    }
    own = migration.flat(model.model_dump(mode="json"))
    for key, value in theirs.items():
        if own.get(key, value) != value:
            why = f"model.{key} is {own[key]}, the authors' network has {value}"
            raise InputError(path, why, "use --format weights")
    if own["backbone"] not in RESNETS or RESNETS[own["backbone"]][0] is not Bottleneck:
        raise InputError(path, f"the authors have no {own['backbone']}", "use --format weights")
    ours = {key: tensor.clone() for key, tensor in state.items()}
    rewritten = 0
    for key in [key for key in ours if weights.is_scale(key, ours)]:
        rewritten += _fold(ours, key)
        ours[key] = _before_abs(ours[key])
    foreign = weights.Foreign("", {}, ours, weights.OFFICIAL)
    kept = [key for key in ours if counts or not key.endswith("num_batches_tracked")]
    written = {foreign.theirs(key): ours[key] for key in kept}
    if not own["recurrence"]:
        written |= _idle_attention(own)
    return written, rewritten


def _idle_attention(model: Mapping[str, Any]) -> dict[str, Tensor]:
    """The attention that the authors' R=0 network carries and never runs."""
    channels = model["channels"]
    reduced = model["query_channels"] or max(channels // 8, 1)
    shapes = {"query_conv": reduced, "key_conv": reduced, "value_conv": channels}
    kernels = {f"head.cca.{name}.weight": torch.zeros(size, channels, 1, 1) for name, size in shapes.items()}
    biases = {f"head.cca.{name}.bias": torch.zeros(size) for name, size in shapes.items()}
    return {**kernels, **biases, "head.cca.gamma": torch.zeros(1)}


def _fold(state: dict[str, Tensor], key: str) -> int:
    """Move sign and size of scales below 1e-5 into what stands before them; how many there were."""
    scale, least = state[key], torch.tensor(weights.ABN_EPS, dtype=state[key].dtype)
    small = scale < least
    if not small.any():
        return 0
    factor = torch.where(small, scale.sign() * (scale.abs() / least).clamp(max=1), torch.ones_like(scale))
    norm = key.removesuffix(".weight")
    before = portable.convolution_before(norm)
    state[f"{before}.weight"] = state[f"{before}.weight"] * factor.view(-1, 1, 1, 1)
    for name in (f"{before}.bias", f"{norm}.running_mean"):
        if name in state:
            state[name] = state[name] * factor
    state[key] = torch.where(small, scale.abs().clamp(min=weights.ABN_EPS), scale)
    return int(small.sum())


def _before_abs(scale: Tensor) -> Tensor:
    """The w with w + 1e-5 == scale in the scale's own arithmetic, for scales of at least 1e-5.

    Between 2**-14 and 2**-13 the sum is a tie in float32, and every other scale is the sum of no w: off by one bit.
    """
    w = (scale - weights.ABN_EPS).clamp(min=0)
    for _ in range(2):
        high, low = w + weights.ABN_EPS > scale, w + weights.ABN_EPS < scale
        w = torch.where(high, w.nextafter(torch.zeros_like(w)), torch.where(low, w.nextafter(scale), w))
    return w
