"""PSPNet of hszhao/semseg: a dilated ResNet whose stem is a sequence, and an auxiliary head of its own width."""

from typing import Any

from torch import Tensor

from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts.family import Network, Weights, pairs
from ccnet_cli.weights.layouts.family import export as export_family
from ccnet_cli.weights.layouts.family import recognise as recognise_family
from ccnet_cli.weights.layouts.layout import Foreign, Table
from ccnet_cli.weights.layouts.network import TORCHVISION_INPUT

STEM = zip((0, 1, 3, 4, 6, 7), ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"), strict=True)
TABLE: Table = (
    *((f"layer0.{index}.", f"backbone.{name}.") for index, name in STEM),
    *(row for i in range(4) for row in pairs(f"ppm.features.{i}", f"head.pyramid.stages.{i}", first=1)),
    *pairs("cls", "head.bottleneck"),
    ("cls.4.", "head.classify.1."),
    ("aux.", "auxiliary."),
    ("", "backbone."),
)


def _settings(weights: Weights) -> dict[str, Any]:
    channels = len(weights["head.bottleneck.0.weight"])
    return {"kind": "psp", "order": "map_first", "channels": channels, "activation": "relu"}


NETWORKS = (
    Network(
        "semseg's PSPNet",
        ("layer0.0.weight", "ppm.features.0.1.weight"),
        TABLE,
        _settings,
        {"stem": "deep", "dilation": "dilated", "pool": "floor"},
        TORCHVISION_INPUT,
    ),
)


def recognise(state: dict[str, Tensor], _: dict[str, Any]) -> Foreign | None:
    """semseg's names."""
    return recognise_family(NETWORKS, state)


def export(state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Our weights in this layout; Misfit for another network."""
    return export_family(NETWORKS, state, model)
