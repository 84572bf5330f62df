"""EncNet of PyTorch-Encoding, on its ResNets with a deep stem or a 7x7 one."""

from typing import Any

from torch import Tensor

from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts.family import Network, Weights, pairs
from ccnet_cli.weights.layouts.family import export as export_family
from ccnet_cli.weights.layouts.family import recognise as recognise_family
from ccnet_cli.weights.layouts.layout import Foreign, Table
from ccnet_cli.weights.layouts.network import OTHERS_BACKBONE, TORCHVISION_INPUT

# of a deep stem, the last norm alone is outside of the sequence
DEEP = (*zip((0, 1, 3, 4, 6), ("conv1", "bn1", "conv2", "bn2", "conv3"), strict=True),)
HEAD: Table = (
    *pairs("head.conv5", "head.reduce"),
    *(row for i in range(2) for row in pairs(f"head.connect.{i}", f"head.lateral.{i}")),
    *pairs("head.fusion", "head.join"),
    *pairs("head.encmodule.encoding", "head.encode.project"),
    ("head.encmodule.encoding.3.", "head.encode.encoding."),
    ("head.encmodule.encoding.4.", "head.encode.norm."),
    ("head.encmodule.fc.0.", "head.encode.gate."),
    ("head.encmodule.selayer.", "head.presence."),
    ("head.conv6.1.", "head.classify.1."),
    ("auxlayer.conv5.", "auxiliary."),
)
STEM: Table = (
    *((f"pretrained.conv1.{index}.", f"backbone.{name}.") for index, name in DEEP),
    ("pretrained.bn1.", "backbone.bn3."),
)
LAST: Table = (("pretrained.", "backbone."),)
MARK = "head.encmodule.encoding.3.codewords"


def _settings(weights: Weights) -> dict[str, Any]:
    channels, codewords = len(weights["head.reduce.0.weight"]), len(weights["head.encode.encoding.codewords"])
    own = {"channels": channels, "codewords": codewords, "lateral": "head.join.0.weight" in weights}
    return {"kind": "encnet", **own, "activation": "relu"}


def _network(mark: str, stem: Table) -> Network:
    table = (*HEAD, *stem, *LAST)
    backbone, expected = {**OTHERS_BACKBONE, "stem": "deep" if stem else "7x7"}, TORCHVISION_INPUT
    what = "PyTorch-Encoding's EncNet"
    return Network(what, (MARK, mark), table, _settings, backbone, expected, unused=("pretrained.fc.",))


NETWORKS = (_network("pretrained.conv1.6.weight", STEM), _network("pretrained.conv1.weight", ()))


def recognise(state: dict[str, Tensor], _: dict[str, Any]) -> Foreign | None:
    """PyTorch-Encoding's names of an encoding."""
    return recognise_family(NETWORKS, state)


def export(state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Our weights in this layout; Misfit for another network."""
    return export_family(NETWORKS, state, model)
