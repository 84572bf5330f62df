"""OCNet.pytorch's networks: base, asp and pyramid object context, and their baseline, all with in-place ABN."""

from typing import Any

import torch
from torch import Tensor

from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts.family import Network, Weights, pairs
from ccnet_cli.weights.layouts.family import export as export_family
from ccnet_cli.weights.layouts.family import recognise as recognise_family
from ccnet_cli.weights.layouts.layout import Foreign, Misfit, Table
from ccnet_cli.weights.layouts.network import AUTHORS_BACKBONE

# red first, with the means in the order of blue first: as their reader does it
INPUT = {"channel_order": "rgb", "mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0]}
REST: Table = (
    ("cls.", "head.classify.1."),
    ("dsn.3.", "auxiliary.4."),
    ("dsn.", "auxiliary."),
    ("", "backbone."),
)


def _attention(theirs: str, ours: str) -> Table:
    return (
        *pairs(f"{theirs}.f_key", f"{ours}.key"),
        (f"{theirs}.f_value.", f"{ours}.value."),
        (f"{theirs}.W.", f"{ours}.out."),
    )


BASE: Table = (
    *pairs("context", "head.reduce"),
    *_attention("context.2.stages.0", "head.context.attention"),
    *pairs("context.2.conv_bn_dropout", "head.context.join"),
    *REST,
)
ASP: Table = (
    *pairs("context", "head.reduce"),
    *pairs("context.2.context", "head.context.narrow"),
    *_attention("context.2.context.2.stages.0", "head.context.attention"),
    *pairs("context.2.context.2.conv_bn_dropout", "head.context.after"),
    *(row for i in range(4) for row in pairs(f"context.2.conv{i + 2}", f"head.context.branches.{i}")),
    *pairs("context.2.conv_bn_dropout", "head.context.join"),
    *REST,
)
PYRAMID: Table = (
    *pairs("layer5", "head.reduce"),
    *(row for i in range(4) for row in _attention(f"context.stages.{i}", f"head.context.attentions.{i}")),
    *pairs("context.up_dr", "head.context.widen"),
    *pairs("context.conv_bn_dropout", "head.context.join"),
    *REST,
)
BASELINE: Table = (("layer6.", "head.4."), ("layer5.", "head."), ("", "backbone."))


def _settings(form: str) -> Any:
    def settings(weights: Weights) -> dict[str, Any]:
        channels = len(weights["head.reduce.0.weight"])
        return {"kind": "oc", "form": form, "channels": channels, "activation": "leaky_relu"}

    return settings


def _fcn(weights: Weights) -> dict[str, Any]:
    return {"kind": "fcn", "channels": len(weights["head.0.weight"]), "bias": True, "activation": "leaky_relu"}


def _network(name: str, mark: str, table: Table, settings: Any, auxiliary: str = "leaky_relu") -> Network:
    own = {"activation": auxiliary}
    marks = (mark, "conv1.weight")
    return Network(
        f"OCNet's {name}", marks, table, settings, {**AUTHORS_BACKBONE, "stem": "deep"}, INPUT, abn=True, auxiliary=own
    )


NETWORKS = (
    _network("base-oc", "context.2.stages.0.f_value.weight", BASE, _settings("base")),
    _network("asp-oc", "context.2.context.2.stages.0.f_value.weight", ASP, _settings("asp")),
    # its auxiliary head has no activation
    _network("pyramid-oc", "context.stages.3.f_value.weight", PYRAMID, _settings("pyramid"), "none"),
    _network("baseline", "layer6.weight", BASELINE, _fcn),
)


def recognise(state: dict[str, Tensor], _: dict[str, Any]) -> Foreign | None:
    """OCNet's names; queries, which are the keys under another name, are left out once they are known to be."""
    for key in [key for key in state if key.startswith("context.") and ".f_query." in key]:
        query, same = state.pop(key), state.get(key.replace(".f_query.", ".f_key."))
        if same is None or not torch.equal(query, same):
            raise Misfit(f"an OCNet whose {key} is not its key's", "give the file as it was released")
    return recognise_family(NETWORKS, state)


def export(state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Our weights in this layout, keys as queries too; Misfit for another network."""
    theirs = export_family(NETWORKS, state, model)
    keys = {key: tensor for key, tensor in theirs.items() if key.startswith("context.") and ".f_key." in key}
    return theirs | {key.replace(".f_key.", ".f_query."): tensor for key, tensor in keys.items()}
