"""DANet as its authors released it in 2018, on PyTorch-Encoding's ResNet with multi-grid."""

from typing import Any

from torch import Tensor

from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts.family import Network, Weights, pairs
from ccnet_cli.weights.layouts.family import export as export_family
from ccnet_cli.weights.layouts.family import recognise as recognise_family
from ccnet_cli.weights.layouts.layout import Foreign, Table
from ccnet_cli.weights.layouts.network import OTHERS_BACKBONE, TORCHVISION_INPUT

TABLE: Table = (
    *pairs("head.conv5a", "head.pam_reduce"),
    *pairs("head.conv5c", "head.cam_reduce"),
    *pairs("head.conv51", "head.pam_convolve"),
    *pairs("head.conv52", "head.cam_convolve"),
    ("head.sa.", "head.pam."),
    ("head.sc.", "head.cam."),
    ("head.conv6.1.", "head.pam_classify.1."),
    ("head.conv7.1.", "head.cam_classify.1."),
    ("head.conv8.1.", "head.classify.1."),
    ("pretrained.", "backbone."),
)


def _settings(weights: Weights) -> dict[str, Any]:
    query, channels = len(weights["head.pam.query_conv.weight"]), len(weights["head.pam_reduce.0.weight"])
    return {"kind": "danet", "channels": channels, "query_channels": query, "activation": "relu"}


NETWORKS = (
    Network(
        "the authors' DANet",
        ("head.conv5a.0.weight", "pretrained.conv1.weight"),
        TABLE,
        _settings,
        {**OTHERS_BACKBONE, "stem": "7x7", "multi_grid": True},
        TORCHVISION_INPUT,
        unused=("pretrained.fc.",),
    ),
)


def recognise(state: dict[str, Tensor], _: dict[str, Any]) -> Foreign | None:
    """DANet's names."""
    return recognise_family(NETWORKS, state)


def export(state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Our weights in this layout; Misfit for another network."""
    return export_family(NETWORKS, state, model)
