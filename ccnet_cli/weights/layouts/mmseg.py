"""mmsegmentation's CCNet, of its generations 0.x and 1.x: gamma is a number, not a vector of one."""

import re
from dataclasses import replace
from typing import Any

from torch import Tensor

from ccnet_cli.weights.layouts.layout import Foreign, Table, rename
from ccnet_cli.weights.layouts.network import ATTENTION, OTHERS_BACKBONE, TORCHVISION_INPUT, V1C_STEM, ccnet

TABLE: Table = (
    *((f"backbone.{theirs}", ours) for theirs, ours in V1C_STEM),
    ("backbone.", "backbone."),
    ("decode_head.cca.gamma.scale", f"{ATTENTION}gamma"),
    ("decode_head.cca.", ATTENTION),
    ("decode_head.convs.0.conv.", "head.conva.0."),
    ("decode_head.convs.0.bn.", "head.conva.1."),
    ("decode_head.convs.1.conv.", "head.convb.0."),
    ("decode_head.convs.1.bn.", "head.convb.1."),
    ("decode_head.conv_cat.conv.", "head.bottleneck.0."),
    ("decode_head.conv_cat.bn.", "head.bottleneck.1."),
    ("decode_head.conv_seg.", "head.bottleneck.4."),
    ("auxiliary_head.convs.0.conv.", "auxiliary.0."),
    ("auxiliary_head.convs.0.bn.", "auxiliary.1."),
    ("auxiliary_head.conv_seg.", "auxiliary.4."),
)
# what only the auxiliary head's configuration says does not count
ALIGNED = re.compile(r"decode_head\b(?:(?!auxiliary_head).)*?\balign_corners'?\s*[=:]\s*(True|False)", re.DOTALL)
RECURRENCE = re.compile(r"\brecurrence'?\s*[=:]\s*([0-3])\b")


def recognise(state: dict[str, Tensor], meta: dict[str, Any]) -> Foreign | None:
    """A decode head with criss-cross attention; meta has class names, colours and the configuration's text."""
    if not any(key.startswith("decode_head.cca.") for key in state):
        return None
    statistics = {name: state.pop(f"data_preprocessor.{name}", None) for name in ("mean", "std")}
    own_input = {name: [float(v) for v in value.flatten()] for name, value in statistics.items() if value is not None}
    weights = rename(state, TABLE)
    if f"{ATTENTION}gamma" in weights:
        weights[f"{ATTENTION}gamma"] = weights[f"{ATTENTION}gamma"].reshape(1)
    text = str(meta.get("config") or meta.get("cfg") or "")
    aligned, recurrence = ALIGNED.search(text), RECURRENCE.search(text)
    align_corners = aligned is not None and aligned[1] == "True"
    done = ["names and gamma's shape changed"]
    if not aligned:
        done.append("align_corners is not in the file, taken as false (model.align_corners)")
    foreign = ccnet(
        "mmsegmentation's CCNet",
        weights,
        TABLE,
        backbone=OTHERS_BACKBONE,
        head={"recurrence": int(recurrence[1]) if recurrence else 2, "activation": "relu"},
        others={**TORCHVISION_INPUT, **own_input, "align_corners": align_corners},
        done=done,
    )
    presets = {"cityscapes": f"mmseg-r101-cityscapes-{'769' if align_corners else '512x1024'}-80k"}
    return _with_classes(replace(foreign, presets=presets), meta)


def _with_classes(foreign: Foreign, meta: dict[str, Any]) -> Foreign:
    """With the names and colours of its classes that the file holds, if there is one of each."""
    described = meta["dataset_meta"] if isinstance(meta.get("dataset_meta"), dict) else meta
    names = described.get("classes") or described.get("CLASSES")
    palette = described.get("palette") or described.get("PALETTE")
    if isinstance(names, list | tuple) and len({str(name) for name in names}) == len(names) == foreign.classes:
        foreign = replace(foreign, names=tuple(str(name) for name in names))
        colours = [tuple(colour) for colour in palette] if isinstance(palette, list | tuple) else []
        if len(colours) == foreign.classes and all(
            len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c) for c in colours
        ):
            foreign = replace(foreign, palette=tuple((int(r), int(g), int(b)) for r, g, b in colours))
    return foreign
