"""The authors' CCNet with in-place activated batch norm (ABN), which scales by abs(w) + 1e-5."""

from typing import Any

import torch
from torch import Tensor

from ccnet_cli.models.backbones.resnet import RESNETS, Bottleneck
from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts import port
from ccnet_cli.weights.layouts.abn import give_abn_scales, take_absolute_scales
from ccnet_cli.weights.layouts.layout import Foreign, Misfit, Table, original_name, rename

# the activation is inside the norm, so what follows comes one place earlier than in the port
TABLE: Table = (("head.bottleneck.3.", "head.bottleneck.4."), ("dsn.3.", "auxiliary.4."), *port.TABLE)
# keys of the preset's section model that the authors' network has no choice in
FIXED = {
    "backbone.stem": "deep",
    "backbone.dilation": "dilated",
    "backbone.pool": "ceil",
    "head.kind": "rcca",
    "head.activation": "leaky_relu",
    "auxiliary.kind": "fcn",
    "auxiliary.activation": "leaky_relu",
    "auxiliary.bias": True,
}
FIX = "use --format weights"


def recognise(state: dict[str, Tensor], meta: dict[str, Any]) -> Foreign | None:
    """The authors' names, with the classifier directly after the head's last norm."""
    if not port.has_authors_names(state) or "head.bottleneck.3.weight" not in state:
        return None
    weights = rename(state, TABLE)
    converted = take_absolute_scales(weights)
    return port.authors("the authors' CCNet", weights, TABLE, meta, "leaky_relu", converted)


def export(state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Our weights in the authors' layout; Misfit where their network differs from the model.

    A scale s becomes a w with abs(w) + 1e-5 == s, bit for bit where s was made so. A scale below 1e-5 has none: its
    sign and size move into the convolution before it and its running mean, which leaves the output the same; a notice
    says how many there are.
    """
    own = model.model_dump(mode="json")
    _require_authors_network(own)
    ours = {key: tensor.clone() for key, tensor in state.items()}
    give_abn_scales(ours)
    theirs = {original_name(key, TABLE): tensor for key, tensor in ours.items()}
    return theirs if own["head"]["recurrence"] else theirs | _idle_attention(own["head"])


def _require_authors_network(own: dict[str, Any]) -> None:
    kind = own["backbone"]["kind"]
    if kind not in RESNETS or RESNETS[kind][0] is not Bottleneck:
        raise Misfit(f"the authors have no {kind}", FIX)
    for key, theirs in FIXED.items():
        part, _, name = key.partition(".")
        if own[part] is not None and own[part].get(name) != theirs:
            raise Misfit(f"model.{key} is {own[part].get(name)}, the authors' network has {theirs}", FIX)


def _idle_attention(head: dict[str, Any]) -> dict[str, Tensor]:
    """The attention that the authors' R=0 network carries and never runs."""
    channels = head["channels"]
    reduced = head["query_channels"] or max(channels // 8, 1)
    shapes = {"query_conv": reduced, "key_conv": reduced, "value_conv": channels}
    kernels = {f"head.cca.{name}.weight": torch.zeros(size, channels, 1, 1) for name, size in shapes.items()}
    biases = {f"head.cca.{name}.bias": torch.zeros(size) for name, size in shapes.items()}
    return {**kernels, **biases, "head.cca.gamma": torch.zeros(1)}
