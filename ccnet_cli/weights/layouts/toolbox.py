"""PSPNet and DeepLabv3 of pytorch-segmentation-toolbox and of CCNet's authors, with in-place ABN or plain norms."""

from typing import Any

from torch import Tensor

from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts.family import Network, Weights, pairs
from ccnet_cli.weights.layouts.family import export as export_family
from ccnet_cli.weights.layouts.family import recognise as recognise_family
from ccnet_cli.weights.layouts.layout import Foreign, Table
from ccnet_cli.weights.layouts.network import AUTHORS_BACKBONE, AUTHORS_INPUT

PSP: Table = (
    *(row for i in range(4) for row in pairs(f"head.0.stages.{i}", f"head.pyramid.stages.{i}", first=1)),
    *pairs("head.0.bottleneck", "head.bottleneck"),
    ("head.1.", "head.classify.1."),
)
ASPP: Table = (
    *pairs("head.0.conv1", "head.pyramid.pool", first=1),
    *(row for i in range(4) for row in pairs(f"head.0.conv{i + 2}", f"head.pyramid.branches.{i}")),
    *pairs("head.0.bottleneck", "head.bottleneck"),
    ("head.1.", "head.classify.1."),
)


def _psp(weights: Weights) -> dict[str, Any]:
    return {"kind": "psp", "order": "map_last", "channels": len(weights["head.bottleneck.0.weight"])}


def _aspp(weights: Weights) -> dict[str, Any]:
    width = len(weights["head.pyramid.pool.0.weight"])
    return {"kind": "aspp", "form": "toolbox", "width": width, "channels": len(weights["head.bottleneck.0.weight"])}


def _networks() -> list[Network]:
    networks = []
    for name, mark, table, settings in (
        ("PSPNet", "head.0.stages.0.1.weight", PSP, _psp),
        ("DeepLabv3", "head.0.conv1.1.weight", ASPP, _aspp),
    ):
        # the activation is inside the norm of in-place ABN, so what follows comes one place earlier
        for abn, last in ((True, 3), (False, 4)):
            rest = (*table, (f"dsn.{last}.", "auxiliary.4."), ("dsn.", "auxiliary."), ("", "backbone."))
            activation = "leaky_relu" if abn else "relu"
            networks.append(
                Network(
                    f"the toolbox's {name}" + ("" if abn else " with plain norms"),
                    (mark, "conv1.weight", f"dsn.{last}.weight"),
                    rest,
                    _with(settings, activation),
                    {**AUTHORS_BACKBONE, "stem": "deep"},
                    AUTHORS_INPUT,
                    abn=abn,
                )
            )
    return networks


def _with(settings: Any, activation: str) -> Any:
    return lambda weights: {**settings(weights), "activation": activation}


NETWORKS = _networks()


def recognise(state: dict[str, Tensor], _: dict[str, Any]) -> Foreign | None:
    """The authors' names of a head with pooled maps or dilated branches."""
    return recognise_family(NETWORKS, state)


def export(state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Our weights in this layout; Misfit for another network."""
    return export_family(NETWORKS, state, model)
