"""openseg.pytorch's OCNet (base) and ISANet, with plain norms or in-place ABN."""

from typing import Any

from torch import Tensor

from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts.family import Network, Weights
from ccnet_cli.weights.layouts.family import export as export_family
from ccnet_cli.weights.layouts.family import recognise as recognise_family
from ccnet_cli.weights.layouts.layout import Foreign, Table
from ccnet_cli.weights.layouts.network import MIT_INPUT

STEM = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
BACKBONE: Table = (
    *((f"backbone.resinit.{name}.", f"backbone.{name}.") for name in STEM),
    ("backbone.", "backbone."),
)


def _sequence(theirs: str, ours: str, plain: bool, count: int = 1) -> Table:
    """Convolutions with norms: a plain norm and its activation are a sequence, and ABN is one layer."""
    rows: list[tuple[str, str]] = []
    for i in range(count):
        rows += [
            (f"{theirs}.{2 * i}.", f"{ours}.{3 * i}."),
            (f"{theirs}.{2 * i + 1}.{'0.' if plain else ''}", f"{ours}.{3 * i + 1}."),
        ]
    return tuple(rows)


def _attention(theirs: str, ours: str, plain: bool) -> Table:
    return (
        *_sequence(f"{theirs}.f_key", f"{ours}.key", plain, 2),
        *_sequence(f"{theirs}.f_query", f"{ours}.query", plain, 2),
        (f"{theirs}.f_value.", f"{ours}.value."),
    )


def _oc_table(plain: bool) -> Table:
    return (
        *_sequence("oc_module_pre", "head.reduce", plain),
        *_attention("oc_module.stages.0", "head.context.attention", plain),
        ("oc_module.stages.0.W.", "head.context.attention.out."),
        *_sequence("oc_module.conv_bn_dropout", "head.context.join", plain),
        ("cls.", "head.classify.1."),
        *_sequence("dsn", "auxiliary", plain),
        ("dsn.2.", "auxiliary.4."),
        *BACKBONE,
    )


def _isa_table(plain: bool) -> Table:
    stages = "isa_head.2.stages.0"
    return (
        *_sequence("isa_head", "head.reduce", plain),
        *_attention(f"{stages}.long_range_sa", "head.isa.long", plain),
        *_sequence(f"{stages}.long_range_sa.W", "head.isa.long.out", plain),
        *_attention(f"{stages}.short_range_sa", "head.isa.short", plain),
        *_sequence(f"{stages}.short_range_sa.W", "head.isa.short.out", plain),
        *_sequence("isa_head.2.conv_bn", "head.bottleneck", plain),
        ("cls_head.", "head.classify.1."),
        ("dsn_head.3.", "auxiliary.4."),
        *_sequence("dsn_head", "auxiliary", plain),
        *BACKBONE,
    )


def _oc(weights: Weights) -> dict[str, Any]:
    return {"kind": "oc", "form": "base", "separate": True, "channels": len(weights["head.reduce.0.weight"])}


def _isa(weights: Weights) -> dict[str, Any]:
    own = {"channels": len(weights["head.reduce.0.weight"]), "inner": len(weights["head.isa.long.key.0.weight"])}
    biases = {"bias": "head.reduce.0.bias" in weights, "value_bias": "head.isa.long.value.bias" in weights}
    return {"kind": "isa", "form": "openseg", **own, **biases}


def _network(name: str, mark: str, table: Table, settings: Any, plain: bool) -> Network:
    activation = "relu" if plain else "leaky_relu"

    def activated(weights: Weights) -> dict[str, Any]:
        return {**settings(weights), "activation": activation}

    backbone = {"stem": "deep", "dilation": "mit", "pool": "ceil"}
    return Network(f"openseg's {name}", (mark,), table, activated, backbone, MIT_INPUT, abn=not plain)


NETWORKS = tuple(
    network
    for plain, index in ((True, "1.0"), (False, "1"))
    for network in (
        _network("OCNet", f"oc_module_pre.{index}.weight", _oc_table(plain), _oc, plain),
        _network("ISANet", f"isa_head.{index}.weight", _isa_table(plain), _isa, plain),
    )
)


def recognise(state: dict[str, Tensor], _: dict[str, Any]) -> Foreign | None:
    """openseg's names."""
    return recognise_family(NETWORKS, state)


def export(state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Our weights in this layout; Misfit for another network."""
    return export_family(NETWORKS, state, model)
