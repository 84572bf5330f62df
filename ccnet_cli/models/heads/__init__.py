"""Heads: HEADS maps `model.head.kind` to the settings of a head and the function that builds it.

A builder is called as build(settings, channels, classes): channels are those of the backbone's feature maps, the
deepest last. It returns a module that takes the list of these maps and answers with class scores (B, K, h, w).

What else a head can do are methods of these names, each optional:
- `levels` (int): how many of the deepest maps it takes; left out, it gets all that the backbone has.
- `align_corners` (bool): how it resizes maps; the network sets it to the preset's.
- `finest` (bool): whether its scores have the size of the first map that it takes, not of the deepest.
- `outputs(features) -> Outputs`: scores of its own beside the main ones, for training; `output_names` are their names.
  Its features are what losses of features look at, the deepest map unless it has others, of `feature_channels`.
- `attend(features) -> (scores, passes)`: the attention of each pass for `ccnet visualize`, over the cross of each
  position, (B, P, h, w), or over all positions, a `models.dense.DensePass`, or over channels, a `ChannelPass`.
- `attention_names`: the names of what attend returns where these stand side by side; left out, they are the passes
  R = 1, 2, ... of one attention, each on the output of the one before.
- `blocks`: the names of its modules that gather context, whose costs `ccnet bench heads` counts apart.
- `takes_clips` (bool), of its settings too: whether its maps may be those of clips, (B, T, C, h, w). It then scores the
  frame whose place in the clip is its `labelled`, which the network sets.
- `fold(make) -> module`: itself for inference, by make(conv, norm, act); else inference runs it as it is.

This file loads no torch, so that a preset is checked in no time.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ccnet_cli.ops import IMPLEMENTATIONS
from ccnet_cli.parts import Channels, Flag, Fraction, LatePart, Part, Section, Text, UnknownPart, late

Activation = Literal["leaky_relu", "relu", "none"]


def _in_table(name: str) -> str:
    if name not in ("auto", *IMPLEMENTATIONS):
        raise UnknownPart("model.head.implementation", name, ("auto", *IMPLEMENTATIONS))
    return name


class RCCA(Section):
    """Recurrent criss-cross attention between two convolutions (ICCV 2019, figure 2); recurrence 0 leaves it out."""

    kind: Literal["rcca"] = "rcca"
    recurrence: Annotated[int, Field(strict=True, ge=0, le=3)] = 2
    channels: Channels = 512
    query_channels: Channels | None = None
    activation: Activation = "leaky_relu"
    dropout: Fraction = 0.1
    implementation: Annotated[Text, AfterValidator(_in_table)] = "auto"


class FCN(Section):
    """One 3x3 convolution and a classifier; on the map before the last, it is CCNet's auxiliary head."""

    kind: Literal["fcn"] = "fcn"
    channels: Channels = 512
    bias: Flag = True
    activation: Activation = "leaky_relu"
    dropout: Fraction = 0.1


HEADS: dict[str, Part | LatePart] = {
    "rcca": Part(RCCA, late("ccnet_cli.models.heads.rcca"), first=late("ccnet_cli.models.heads.rcca", "first")),
    "rcca3d": LatePart("ccnet_cli.models.heads.rcca3d"),
    "fcn": Part(FCN, late("ccnet_cli.models.heads.fcn")),
    "wrapped": LatePart("ccnet_cli.models.heads.wrapped"),
    "nonlocal": LatePart("ccnet_cli.models.heads.nonlocal"),
    "gc": LatePart("ccnet_cli.models.heads.gc"),
    "psp": LatePart("ccnet_cli.models.heads.psp"),
    "aspp": LatePart("ccnet_cli.models.heads.aspp"),
    "aspp_plus": LatePart("ccnet_cli.models.heads.aspp_plus"),
    "danet": LatePart("ccnet_cli.models.heads.danet"),
    "oc": LatePart("ccnet_cli.models.heads.oc"),
    "isa": LatePart("ccnet_cli.models.heads.isa"),
    "encnet": LatePart("ccnet_cli.models.heads.encnet"),
    "upernet": LatePart("ccnet_cli.models.heads.upernet"),
    "gcn": LatePart("ccnet_cli.models.heads.gcn"),
}
