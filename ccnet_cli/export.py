"""Write a model to hand on: our file without the training's state, or the layout of the authors' code."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ccnet_cli import config, durable, loading, weights
from ccnet_cli.errors import EnvironmentFailure, InputError, notice
from ccnet_cli.resnet import RESNETS, Bottleneck


def export(
    source: Path, output: Path, format: str = "weights", preset: str | None = None, overrides: Sequence[str] = ()
) -> Path:
    """Write a checkpoint's model alone: "weights", about a third of the size, or "official", in the authors' layout.

    source may be anybody's weights; preset and overrides are those of loading.understand.
    """
    content = loading.understand(source, preset, overrides)
    if output.exists() and output.samefile(source):
        raise InputError(output, "is the checkpoint itself", "choose another name")
    kept = {key: value for key, value in content.items() if key != "training"}
    if format == "official":
        state, settings = content["model"], config.from_mapping(content["preset"]).model
        # a count other than 0 before the first step was in the file that the weights came from
        counts = not content["step"] and any(t.any() for key, t in state.items() if key.endswith("num_batches_tracked"))
        kept, rewritten = official(state, settings, source, counts)
        if rewritten:
            notice(f"{rewritten} batch-norm scales below 1e-5 moved into the convolutions before them")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        durable.write(output, lambda file: torch.save(kept, file))
    except (OSError, RuntimeError) as error:
        # torch tells of a full disk in words of its own
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise EnvironmentFailure(output, f"not written ({why})", "make room, or choose another place") from None
    return output


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
    for key, value in theirs.items():
        if getattr(model, key) != value:
            why = f"model.{key} is {getattr(model, key)}, the authors' network has {value}"
            raise InputError(path, why, "use --format weights")
    if model.backbone not in RESNETS or RESNETS[model.backbone][0] is not Bottleneck:
        raise InputError(path, f"the authors have no {model.backbone}", "use --format weights")
    ours = {key: tensor.clone() for key, tensor in state.items()}
    rewritten = 0
    for key in [key for key in ours if weights.is_scale(key, ours)]:
        rewritten += _fold(ours, key)
        ours[key] = _before_abs(ours[key])
    foreign = weights.Foreign("", {}, ours, weights.OFFICIAL)
    kept = [key for key in ours if counts or not key.endswith("num_batches_tracked")]
    written = {foreign.theirs(key): ours[key] for key in kept}
    if not model.recurrence:
        written |= _idle_attention(model)
    return written, rewritten


def _idle_attention(model: config.Model) -> dict[str, Tensor]:
    """The attention that the authors' R=0 network carries and never runs."""
    channels, reduced = model.channels, model.query_channels or max(model.channels // 8, 1)
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
    before = re.sub(r"\.1$", ".0", re.sub(r"(^|\.)bn(\d)$", r"\1conv\2", norm))
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
