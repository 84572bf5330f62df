"""Backbones: BACKBONES maps `model.backbone.kind` to the settings of a backbone and the function that builds it.

A builder is called as build(settings, recompute): recompute trades time for training memory, where the backbone can.
It returns a module from an image (B, 3, H, W) to a list of feature maps, the deepest last, with two attributes:
`channels`, those of the maps in the same order, and `stride`, that of the deepest map.

Optional:
- `fold(make, levels)`: itself for inference, answering with the `levels` deepest maps (see heads).
- `levels` (int): how many of its deepest maps it answers with; the network sets it to what the heads take.
- `strides`: those of all maps, where they differ.

This file loads no torch, so that a preset is checked in no time.
"""

from typing import Literal

from ccnet_cli.parts import Channels, Flag, LatePart, Part, Section, late


class ResNet(Section):
    """A ResNet; width is that of layer1, 64 in the paper.

    stem: deep is three 3x3 convolutions of 64, 64, 128 channels (at width 64), v1c of 32, 32, 64, 7x7 one of 64.
    dilation: the first block of layers 3 and 4 is dilated as the others are, or half as much (contracted). mmseg and
    mit are contracted too; of a block of ResNet-18 and -34, mmseg dilates the first convolution alone, and mit dilates
    the second one of a layer's first block in full.
    pool: whether the max-pool rounds its size up or down. stride: that of the deepest map; below 32, layers are dilated
    instead. multi_grid: the blocks of layer 4 have dilations 4, 8, 16, as DANet's.
    """

    kind: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    width: Channels = 64
    stem: Literal["deep", "v1c", "7x7"] = "deep"
    dilation: Literal["dilated", "contracted", "mmseg", "mit"] = "dilated"
    pool: Literal["ceil", "floor"] = "ceil"
    stride: Literal[8, 16, 32] = 8
    multi_grid: Flag = False


class Tiny(Section):
    """Four 3x3 convolutions of output stride 8, for the built-in data."""

    kind: Literal["tiny"] = "tiny"
    width: Channels = 64


_RESNET = Part(ResNet, late("ccnet_cli.models.backbones.resnet"))
BACKBONES: dict[str, Part | LatePart] = {
    "tiny": Part(Tiny, late("ccnet_cli.models.backbones.tiny")),
    "resnet18": _RESNET,
    "resnet34": _RESNET,
    "resnet50": _RESNET,
    "resnet101": _RESNET,
    "resnet152": _RESNET,
}
