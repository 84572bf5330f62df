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

from ccnet_cli.models.heads.settings import (
    ASPP,
    FCN,
    GC,
    GCN,
    ISA,
    OC,
    PSP,
    RCCA,
    RCCA3D,
    Activation,
    ASPPPlus,
    DANet,
    EncNet,
    NonLocal,
    UPerNet,
    Wrapped,
)
from ccnet_cli.parts import LatePart, Part, late

__all__ = ["FCN", "HEADS", "RCCA", "Activation"]

HEADS: dict[str, Part | LatePart] = {
    "rcca": Part(RCCA, late("ccnet_cli.models.heads.rcca"), first=late("ccnet_cli.models.heads.rcca", "first")),
    "rcca3d": Part(RCCA3D, late("ccnet_cli.models.heads.rcca3d"), first=late("ccnet_cli.models.heads.rcca3d", "first")),
    "fcn": Part(FCN, late("ccnet_cli.models.heads.fcn")),
    "wrapped": Part(Wrapped, late("ccnet_cli.models.heads.wrapped")),
    "nonlocal": Part(NonLocal, late("ccnet_cli.models.heads.nonlocal")),
    "gc": Part(GC, late("ccnet_cli.models.heads.gc")),
    "psp": Part(PSP, late("ccnet_cli.models.heads.psp")),
    "aspp": Part(ASPP, late("ccnet_cli.models.heads.aspp")),
    "aspp_plus": Part(ASPPPlus, late("ccnet_cli.models.heads.aspp_plus")),
    "danet": Part(DANet, late("ccnet_cli.models.heads.danet")),
    "oc": Part(OC, late("ccnet_cli.models.heads.oc")),
    "isa": Part(ISA, late("ccnet_cli.models.heads.isa")),
    "encnet": Part(EncNet, late("ccnet_cli.models.heads.encnet")),
    "upernet": Part(UPerNet, late("ccnet_cli.models.heads.upernet")),
    "gcn": Part(GCN, late("ccnet_cli.models.heads.gcn")),
}
