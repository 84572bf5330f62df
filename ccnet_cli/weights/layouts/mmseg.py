"""mmsegmentation's networks, of its generations 0.x and 1.x: CCNet and those of the other heads of `mmseg_heads`."""

import re
from dataclasses import replace
from typing import Any

from torch import Tensor

from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts.family import is_same
from ccnet_cli.weights.layouts.layout import Foreign, Misfit, Table, original_name, rename
from ccnet_cli.weights.layouts.mmseg_heads import HEADS, Other
from ccnet_cli.weights.layouts.network import (
    ATTENTION,
    MMSEG_BACKBONE,
    OTHERS_BACKBONE,
    TORCHVISION_INPUT,
    V1C_STEM,
    ccnet,
    segmenter,
)

COMMON: Table = (
    *((f"backbone.{theirs}", ours) for theirs, ours in V1C_STEM),
    ("backbone.", "backbone."),
    ("auxiliary_head.convs.0.conv.", "auxiliary.0."),
    ("auxiliary_head.convs.0.bn.", "auxiliary.1."),
    ("auxiliary_head.conv_seg.", "auxiliary.4."),
)
TABLE: Table = (
    *COMMON,
    ("decode_head.cca.gamma.scale", f"{ATTENTION}gamma"),
    ("decode_head.cca.", ATTENTION),
    ("decode_head.convs.0.conv.", "head.conva.0."),
    ("decode_head.convs.0.bn.", "head.conva.1."),
    ("decode_head.convs.1.conv.", "head.convb.0."),
    ("decode_head.convs.1.bn.", "head.convb.1."),
    ("decode_head.conv_cat.conv.", "head.bottleneck.0."),
    ("decode_head.conv_cat.bn.", "head.bottleneck.1."),
    ("decode_head.conv_seg.", "head.bottleneck.4."),
)
# what only the auxiliary head's configuration says does not count
ALIGNED = re.compile(r"decode_head\b(?:(?!auxiliary_head).)*?\balign_corners'?\s*[=:]\s*(True|False)", re.DOTALL)
RECURRENCE = re.compile(r"\brecurrence'?\s*[=:]\s*([0-3])\b")


def recognise(state: dict[str, Tensor], meta: dict[str, Any]) -> Foreign | None:
    """A decode head that is known; meta has class names, colours and the configuration's text."""
    statistics = {name: state.pop(f"data_preprocessor.{name}", None) for name in ("mean", "std")}
    own_input = {name: [float(v) for v in value.flatten()] for name, value in statistics.items() if value is not None}
    text = str(meta.get("config") or meta.get("cfg") or "")
    aligned = ALIGNED.search(text)
    align_corners = aligned is not None and aligned[1] == "True"
    others = {**TORCHVISION_INPUT, **own_input, "align_corners": align_corners}
    done = [] if aligned else ["align_corners is not in the file, taken as false (model.align_corners)"]
    if any(key.startswith("decode_head.cca.") for key in state):
        foreign = _ccnet(state, text, others, done)
    elif (other := next((each for each in HEADS if each.knows(state)), None)) is not None:
        foreign = _with_other_head(other, state, text, others, done)
    else:
        return None
    presets = {"cityscapes": f"mmseg-r101-cityscapes-{'769' if align_corners else '512x1024'}-80k"}
    return _with_classes(replace(foreign, presets=presets), meta)


def _ccnet(state: dict[str, Tensor], text: str, others: dict[str, Any], done: list[str]) -> Foreign:
    weights = rename(state, TABLE)
    if f"{ATTENTION}gamma" in weights:
        weights[f"{ATTENTION}gamma"] = weights[f"{ATTENTION}gamma"].reshape(1)
    recurrence = RECURRENCE.search(text)
    return ccnet(
        "mmsegmentation's CCNet",
        weights,
        TABLE,
        backbone=OTHERS_BACKBONE,
        head={"recurrence": int(recurrence[1]) if recurrence else 2, "activation": "relu"},
        others=others,
        done=["names and gamma's shape changed", *done],
    )


def _with_other_head(
    other: Other, state: dict[str, Tensor], text: str, others: dict[str, Any], done: list[str]
) -> Foreign:
    table = (*COMMON, *other.table)
    weights = rename(state, table)
    # a scale is a number there
    weights |= {key: tensor.reshape(1) for key, tensor in weights.items() if key.endswith(".gamma")}
    backbone = {**MMSEG_BACKBONE, **other.backbone}
    head = {**other.settings(weights, text), "activation": "relu"}
    what = f"mmsegmentation's {other.name}"
    return segmenter(what, weights, table, backbone=backbone, head=head, others=others, done=["names changed", *done])


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


def export(state: dict[str, Tensor], model: Model) -> dict[str, Any]:
    """Our weights in this layout, with the part of the configuration that they do not show; Misfit for another network.

    The file is as mmsegmentation's are: `state_dict`, and `meta` with the text.
    """
    own = model.model_dump(mode="json")
    content = {"meta": {"config": _configuration(own)}}
    # its stem of another kind has other names
    tables = (TABLE, *((*COMMON, *other.table) for other in HEADS)) if own["backbone"].get("stem") == "v1c" else ()
    for table in tables:
        theirs = {original_name(key, table): tensor.clone() for key, tensor in state.items()}
        # a scale is a number there
        theirs |= {key: tensor.reshape(()) for key, tensor in theirs.items() if key.endswith(".gamma.scale")}
        try:
            foreign = recognise(dict(theirs), content["meta"])
        except Misfit:
            continue
        if foreign is not None and foreign.weights.keys() == state.keys() and is_same(foreign.model, model):
            return {"state_dict": theirs, **content}
    raise Misfit("the model is no network of mmsegmentation's", "use --format weights")


def _configuration(model: dict[str, Any]) -> str:
    """What recognise reads of a configuration, as its owner writes it."""
    head = model["head"]
    own = {"align_corners": model["align_corners"], **{key: head[key] for key in ("recurrence", "mode") if key in head}}
    if "dilations" in head:
        own["dilations"] = (1, *head["dilations"])
    words = ", ".join(f"{key}={value!r}" for key, value in own.items())
    return f"model = dict(decode_head=dict({words}), auxiliary_head=dict(align_corners={model['align_corners']}))"
