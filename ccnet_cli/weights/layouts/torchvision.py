"""torchvision's FCN and DeepLabv3 on ResNets."""

from typing import Any

from torch import Tensor

from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts.family import Network, Weights, pairs
from ccnet_cli.weights.layouts.family import export as export_family
from ccnet_cli.weights.layouts.family import recognise as recognise_family
from ccnet_cli.weights.layouts.layout import Foreign, Table
from ccnet_cli.weights.layouts.network import OTHERS_BACKBONE, TORCHVISION_INPUT

REST: Table = (("aux_classifier.", "auxiliary."), ("backbone.", "backbone."))
DEEPLAB: Table = (
    *(row for i in range(4) for row in pairs(f"classifier.0.convs.{i}", f"head.pyramid.branches.{i}")),
    *pairs("classifier.0.convs.4", "head.pyramid.pool", first=1),
    *pairs("classifier.0.project", "head.bottleneck"),
    *pairs("classifier", "head.bottleneck", at=4, first=1),
    ("classifier.4.", "head.classify.1."),
    *REST,
)
FCN: Table = (("classifier.", "head."), *REST)


def _deeplab(weights: Weights) -> dict[str, Any]:
    width, channels = len(weights["head.pyramid.pool.0.weight"]), len(weights["head.bottleneck.0.weight"])
    return {"kind": "aspp", "form": "torchvision", "width": width, "channels": channels, "activation": "relu"}


def _fcn(weights: Weights) -> dict[str, Any]:
    return {"kind": "fcn", "channels": len(weights["head.0.weight"]), "bias": False, "activation": "relu"}


def _network(name: str, mark: str, table: Table, settings: Any) -> Network:
    marks, backbone = (mark, "backbone.conv1.weight"), {**OTHERS_BACKBONE, "stem": "7x7"}
    return Network(f"torchvision's {name}", marks, table, settings, backbone, TORCHVISION_INPUT, align_corners=False)


NETWORKS = (
    _network("DeepLabv3", "classifier.0.convs.0.0.weight", DEEPLAB, _deeplab),
    _network("FCN", "classifier.4.weight", FCN, _fcn),
)


def recognise(state: dict[str, Tensor], _: dict[str, Any]) -> Foreign | None:
    """torchvision's names of a segmentation network."""
    return recognise_family(NETWORKS, state)


def export(state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Our weights in this layout; Misfit for another network."""
    return export_family(NETWORKS, state, model)
