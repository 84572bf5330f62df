"""Encoder and decoder of MIT CSAIL's semantic-segmentation-pytorch: C1, PPM and UPerNet on its ResNets."""

from typing import Any

from torch import Tensor

from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts.family import Network, Weights, pairs
from ccnet_cli.weights.layouts.family import export as export_family
from ccnet_cli.weights.layouts.family import recognise as recognise_family
from ccnet_cli.weights.layouts.layout import Foreign, Misfit, Table
from ccnet_cli.weights.layouts.network import TORCHVISION_INPUT

# what its synchronised norms keep for themselves
COUNTERS = ("_tmp_running_mean", "_tmp_running_var", "_running_iter")
REST: Table = (
    *pairs("decoder.cbr_deepsup", "auxiliary"),
    ("decoder.conv_last_deepsup.", "auxiliary.4."),
    ("encoder.", "backbone."),
)
C1: Table = (*pairs("decoder.cbr", "head"), ("decoder.conv_last.", "head.4."), *REST)
PPM: Table = (
    *(row for i in range(4) for row in pairs(f"decoder.ppm.{i}", f"head.pyramid.stages.{i}", first=1)),
    *pairs("decoder.conv_last", "head.bottleneck"),
    ("decoder.conv_last.4.", "head.classify.1."),
    *REST,
)
UPERNET: Table = (
    *(row for i in range(4) for row in pairs(f"decoder.ppm_conv.{i}", f"head.pyramid.stages.{i}")),
    *pairs("decoder.ppm_last_conv", "head.bottleneck"),
    *(row for i in range(3) for row in pairs(f"decoder.fpn_in.{i}", f"head.lateral.{i}")),
    *(row for i in range(3) for row in pairs(f"decoder.fpn_out.{i}.0", f"head.smooth.{i}")),
    *pairs("decoder.conv_last.0", "head.join"),
    ("decoder.conv_last.1.", "head.classify.1."),
    *REST,
)


def _c1(weights: Weights) -> dict[str, Any]:
    return {"kind": "fcn", "channels": len(weights["head.0.weight"]), "bias": False, "activation": "relu"}


def _ppm(weights: Weights) -> dict[str, Any]:
    channels = len(weights["head.bottleneck.0.weight"])
    return {"kind": "psp", "order": "map_first", "channels": channels, "activation": "relu"}


def _upernet(weights: Weights) -> dict[str, Any]:
    own = {"channels": len(weights["head.bottleneck.0.weight"]), "resize_first": True, "activation": "relu"}
    return {"kind": "upernet", **own, "pooled_channels": len(weights["head.pyramid.stages.0.0.weight"])}


def _network(name: str, mark: str, table: Table, settings: Any, stride: int = 8) -> Network:
    backbone = {"stem": "deep", "dilation": "mit", "pool": "floor", "stride": stride}
    marks = ("encoder.conv1.weight", f"decoder.{mark}.weight")
    return Network(f"MIT CSAIL's {name}", marks, table, settings, backbone, TORCHVISION_INPUT, align_corners=False)


NETWORKS = (
    _network("PPM", "ppm.0.1", PPM, _ppm),
    _network("UPerNet", "fpn_in.0.0", UPERNET, _upernet, 32),
    _network("C1", "cbr.0", C1, _c1),
)


def recognise(state: dict[str, Tensor], _: dict[str, Any]) -> Foreign | None:
    """The names of both parts, each below `encoder.` or `decoder.`."""
    if {key.partition(".")[0] for key in state} != {"encoder", "decoder"}:
        return None
    foreign = recognise_family(NETWORKS, {key: value for key, value in state.items() if not key.endswith(COUNTERS)})
    if foreign is None:
        raise Misfit("no encoder and decoder of MIT CSAIL's on a ResNet", "give ENCODER.pth,DECODER.pth in this order")
    return foreign


def export(state: dict[str, Tensor], model: Model) -> dict[str, dict[str, Tensor]]:
    """Our weights as an encoder's and a decoder's; Misfit for another network."""
    theirs = export_family(NETWORKS, state, model)
    return {
        part: {key.removeprefix(f"{part}."): tensor for key, tensor in theirs.items() if key.startswith(f"{part}.")}
        for part in ("encoder", "decoder")
    }
