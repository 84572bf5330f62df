"""mmsegmentation's decode heads beside CCNet's: by which name they are known, and what ours is called and set to."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ccnet_cli.weights.layouts.layout import Misfit, Table

Weights = Mapping[str, Tensor]
HEAD = "decode_head."
# what only the decode head's part of a configuration says
DILATIONS = re.compile(r"decode_head\b(?:(?!auxiliary_head).)*?\bdilations'?\s*[=:]\s*[(\[]([\d, ]+)[)\]]", re.DOTALL)
MODE = re.compile(r"\bmode'?\s*[=:]\s*'(embedded_gaussian|dot_product|gaussian|concatenation)'")


@dataclass(frozen=True)
class Other:
    """A decode head with a weight of the name `mark`, and perhaps none of the name `without`."""

    name: str
    mark: str
    table: Table
    settings: Callable[[Weights, str], dict[str, Any]]
    without: str = ""
    backbone: Mapping[str, Any] = field(default_factory=dict)

    def knows(self, state: Weights) -> bool:
        """Whether a file holds such a head, and no further parts of a decode head."""
        own = [key for key in state if key.startswith(HEAD)]
        if f"{HEAD}{self.mark}" not in state or (self.without and f"{HEAD}{self.without}" in state):
            return False
        return all(key.startswith(tuple(theirs for theirs, _ in self.table)) for key in own)


def conv_modules(*pairs: tuple[str, str]) -> Table:
    """Modules of a convolution and a norm: theirs, and ours, which may end in the index of the convolution."""
    rows: list[tuple[str, str]] = []
    for theirs, ours in pairs:
        name, _, at = ours.rpartition(":")
        name, first = (name, int(at)) if name else (ours, 0)
        rows += [
            (f"{HEAD}{theirs}.conv.", f"head.{name}.{first}."),
            (f"{HEAD}{theirs}.bn.", f"head.{name}.{first + 1}."),
        ]
    return tuple(rows)


def names(*pairs: tuple[str, str]) -> Table:
    """Names below the heads."""
    return tuple((HEAD + theirs, f"head.{ours}") for theirs, ours in pairs)


def separable(theirs: str, ours: str, at: int = 0) -> Table:
    """A convolution of each channel by itself and a 1x1 one."""
    pairs = ((f"{theirs}.depthwise_conv", f"{ours}:{at}"), (f"{theirs}.pointwise_conv", f"{ours}:{at + 3}"))
    return conv_modules(*pairs)


def width(weights: Weights, key: str) -> int:
    """The outputs of a weight of ours; Misfit where it is missing."""
    if key not in weights:
        raise Misfit(f"a file of mmsegmentation without {key}", "give the whole file")
    return len(weights[key])


WRAPPER: Table = (
    *conv_modules(("convs.0", "conva"), ("convs.1", "convb"), ("conv_cat", "bottleneck")),
    *names(("conv_seg.", "bottleneck.4.")),
)
CLASSIFY: Table = names(("conv_seg.", "classify.1."))
PYRAMID: Table = conv_modules(*((f"psp_modules.{i}.1", f"pyramid.stages.{i}") for i in range(4)))
ATTENTIONS = [
    *conv_modules(
        *(
            (f"{theirs}.{part}_project.{i}", f"isa.{ours}.{part}:{3 * i}")
            for theirs, ours in (("global_relation", "long"), ("local_relation", "short"))
            for part in ("key", "query")
            for i in (0, 1)
        ),
        ("global_relation.output_project", "isa.long.out"),
        ("local_relation.output_project", "isa.short.out"),
    ),
    *names(
        ("global_relation.value_project.", "isa.long.value."), ("local_relation.value_project.", "isa.short.value.")
    ),
]


def _nonlocal(weights: Weights, text: str) -> dict[str, Any]:
    mode = MODE.search(text)
    if mode and mode[1] in ("gaussian", "concatenation"):
        raise Misfit(f"a non-local head of mode {mode[1]}")
    own = {"channels": width(weights, "head.conva.0.weight"), "inner": width(weights, "head.block.query.weight")}
    return {"kind": "nonlocal", **own, "mode": mode[1] if mode else "embedded_gaussian"}


def _pooled_nonlocal(weights: Weights, text: str) -> dict[str, Any]:
    return {**_nonlocal(weights, text), "sub_sample": True}


def _gc(weights: Weights, text: str) -> dict[str, Any]:
    channels, inner = width(weights, "head.conva.0.weight"), width(weights, "head.block.transform.0.weight")
    return {"kind": "gc", "channels": channels, "ratio": inner / channels}


def _dilations(text: str) -> list[int]:
    match = DILATIONS.search(text)
    rates = [int(rate) for rate in match[1].split(",") if rate.strip()] if match else [1, 12, 24, 36]
    if rates[:1] != [1] or len(rates) != 4:
        raise Misfit(f"an ASPP of dilations {rates}")
    return rates[1:]


def _aspp(weights: Weights, text: str) -> dict[str, Any]:
    own = {
        "width": width(weights, "head.pyramid.pool.0.weight"),
        "channels": width(weights, "head.bottleneck.0.weight"),
    }
    return {"kind": "aspp", "form": "mmseg", **own, "dilations": _dilations(text)}


def _aspp_plus(weights: Weights, text: str) -> dict[str, Any]:
    own = {"channels": width(weights, "head.bottleneck.0.weight"), "fine": width(weights, "head.fine.0.weight")}
    return {"kind": "aspp_plus", **own, "dilations": _dilations(text)}


def _danet(weights: Weights, text: str) -> dict[str, Any]:
    own = {"channels": width(weights, "head.pam_reduce.0.weight")}
    return {"kind": "danet", **own, "query_channels": width(weights, "head.pam.query_conv.weight")}


def _isa(weights: Weights, text: str) -> dict[str, Any]:
    own = {"channels": width(weights, "head.reduce.0.weight"), "inner": width(weights, "head.isa.long.key.0.weight")}
    return {"kind": "isa", "form": "mmseg", **own, "value_bias": "head.isa.long.value.bias" in weights, "dropout": 0.1}


def _encnet(weights: Weights, text: str) -> dict[str, Any]:
    own = {"channels": width(weights, "head.reduce.0.weight"), "lateral": "head.join.0.weight" in weights}
    return {"kind": "encnet", **own, "codewords": width(weights, "head.encode.encoding.codewords")}


def _of(kind: str, key: str, **more: Any) -> Callable[[Weights, str], dict[str, Any]]:
    """Settings that are the width of one weight."""
    return lambda weights, text: {"kind": kind, "channels": width(weights, key), **more}


NL_TABLE: Table = conv_modules(("nl_block.conv_out", "block.out"))
BRANCHES: Table = conv_modules(
    ("image_pool.1", "pyramid.pool"), *((f"aspp_modules.{i}", f"pyramid.branches.{i}") for i in range(4))
)
HEADS = (
    Other(
        "non-local network",
        "nl_block.g.conv.weight",
        (
            *names(
                ("nl_block.g.conv.", "block.value."),
                ("nl_block.theta.conv.", "block.query."),
                ("nl_block.phi.conv.", "block.key."),
            ),
            *NL_TABLE,
            *WRAPPER,
        ),
        _nonlocal,
    ),
    Other(
        "non-local network with sub-sampling",
        "nl_block.g.0.conv.weight",
        (
            *names(
                ("nl_block.g.0.conv.", "block.value."),
                ("nl_block.theta.conv.", "block.query."),
                ("nl_block.phi.0.conv.", "block.key."),
            ),
            *NL_TABLE,
            *WRAPPER,
        ),
        _pooled_nonlocal,
    ),
    Other(
        "GCNet",
        "gc_block.conv_mask.weight",
        (
            *names(
                ("gc_block.conv_mask.", "block.mask."),
                *((f"gc_block.channel_add_conv.{i}.", f"block.transform.{i}.") for i in (0, 1, 3)),
            ),
            *WRAPPER,
        ),
        _gc,
    ),
    Other(
        "PSPNet",
        "psp_modules.3.1.conv.weight",
        (*PYRAMID, *conv_modules(("bottleneck", "bottleneck")), *CLASSIFY),
        _of("psp", "head.bottleneck.0.weight", order="map_first"),
        without="fpn_bottleneck.conv.weight",
    ),
    Other(
        "UPerNet",
        "fpn_bottleneck.conv.weight",
        (
            *PYRAMID,
            *conv_modules(
                ("bottleneck", "bottleneck"),
                ("fpn_bottleneck", "join"),
                *((f"lateral_convs.{i}", f"lateral.{i}") for i in range(3)),
                *((f"fpn_convs.{i}", f"smooth.{i}") for i in range(3)),
            ),
            *CLASSIFY,
        ),
        _of("upernet", "head.bottleneck.0.weight"),
        backbone={"stride": 32},
    ),
    Other(
        "DeepLabv3",
        "aspp_modules.1.conv.weight",
        (*BRANCHES, *conv_modules(("bottleneck", "bottleneck")), *CLASSIFY),
        _aspp,
    ),
    Other(
        "DeepLabv3+",
        "c1_bottleneck.conv.weight",
        (
            *(row for i in (1, 2, 3) for row in separable(f"aspp_modules.{i}", f"pyramid.branches.{i}")),
            *BRANCHES,
            *conv_modules(("bottleneck", "bottleneck"), ("c1_bottleneck", "fine")),
            *separable("sep_bottleneck.0", "decode"),
            *separable("sep_bottleneck.1", "decode", 6),
            *CLASSIFY,
        ),
        _aspp_plus,
    ),
    Other(
        "DANet",
        "pam_in_conv.conv.weight",
        (
            *conv_modules(
                *((f"{name}_in_conv", f"{name}_reduce") for name in ("pam", "cam")),
                *((f"{name}_out_conv", f"{name}_convolve") for name in ("pam", "cam")),
            ),
            *names(
                *((f"pam.{part}_project.", f"pam.{part}_conv.") for part in ("query", "key", "value")),
                *((f"{name}.gamma.scale", f"{name}.gamma") for name in ("pam", "cam")),
                *((f"{name}_conv_seg.", f"{name}_classify.1.") for name in ("pam", "cam")),
            ),
            *CLASSIFY,
        ),
        _danet,
    ),
    Other(
        "ISANet",
        "global_relation.value_project.weight",
        (*conv_modules(("in_conv", "reduce"), ("out_conv", "bottleneck")), *ATTENTIONS, *CLASSIFY),
        _isa,
    ),
    Other(
        "EncNet",
        "enc_module.encoding.0.codewords",
        (
            *conv_modules(
                ("bottleneck", "reduce"),
                ("fusion", "join"),
                ("enc_module.encoding_project", "encode.project"),
                *((f"lateral_convs.{i}", f"lateral.{i}") for i in range(2)),
            ),
            *names(
                ("enc_module.encoding.0.", "encode.encoding."),
                ("enc_module.encoding.1.", "encode.norm."),
                ("enc_module.fc.0.", "encode.gate."),
                ("se_layer.", "presence."),
            ),
            *CLASSIFY,
        ),
        _encnet,
    ),
    Other("FCN", "conv_cat.conv.weight", WRAPPER, _of("rcca", "head.conva.0.weight", recurrence=0)),
    Other(
        "plain FCN",
        "convs.0.conv.weight",
        (
            (f"{HEAD}convs.0.conv.", "head.0."),
            (f"{HEAD}convs.0.bn.", "head.1."),
            (f"{HEAD}conv_seg.", "head.4."),
        ),
        _of("fcn", "head.0.weight", bias=False),
    ),
)
