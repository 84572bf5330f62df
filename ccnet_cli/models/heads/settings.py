"""The settings of every head; they load no torch, so that a preset is checked in no time."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from ccnet_cli.ops import IMPLEMENTATIONS
from ccnet_cli.parts import Channels, Count, Flag, Fraction, Section, Text, UnknownPart

Activation = Literal["leaky_relu", "relu", "none"]
Dilations = Annotated[list[Count], Field(min_length=1, max_length=16)]
Order = Literal["map_last", "map_first"]


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


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("an odd number expected")
    return value


class Wrapped(Section):
    """block is what stands between the two 3x3 convolutions, made for the authors' sizes; see the heads of its own."""

    kind: Literal["wrapped"] = "wrapped"
    block: Literal["none", "criss_cross", "nonlocal", "gc", "pam", "cam", "isa"] = "none"
    channels: Channels = 512
    activation: Activation = "leaky_relu"
    dropout: Fraction = 0.1


class NonLocal(Section):
    """inner is the width of query, key and value, by default half the channels; sub_sample pools keys and values."""

    kind: Literal["nonlocal"] = "nonlocal"
    channels: Channels = 512
    inner: Channels | None = None
    mode: Literal["embedded_gaussian", "dot_product"] = "embedded_gaussian"
    sub_sample: Flag = False
    activation: Activation = "leaky_relu"
    dropout: Fraction = 0.1


class GC(Section):
    """ratio is the block's inner width for each of its channels."""

    kind: Literal["gc"] = "gc"
    channels: Channels = 512
    ratio: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.25
    activation: Activation = "leaky_relu"
    dropout: Fraction = 0.1


class PSP(Section):
    """Maps are pooled to bins x bins cells; order says where the map itself stands among them, as authors differ.

    map_last is the authors' toolbox; map_first mmsegmentation, semseg and MIT.
    """

    kind: Literal["psp"] = "psp"
    channels: Channels = 512
    bins: Annotated[list[Count], Field(min_length=1, max_length=16)] = [1, 2, 3, 6]
    order: Order = "map_last"
    activation: Activation = "leaky_relu"
    dropout: Fraction = 0.1


class ASPP(Section):
    """form is whose: the authors' toolbox, mmsegmentation, or torchvision, where one 3x3 convolution more follows.

    width (of a branch) and channels are the form's unless set.
    """

    kind: Literal["aspp"] = "aspp"
    form: Literal["toolbox", "mmseg", "torchvision"] = "toolbox"
    width: Channels | None = None
    channels: Channels | None = None
    dilations: Dilations = [12, 24, 36]
    activation: Activation = "leaky_relu"
    dropout: Fraction = 0.1


class ASPPPlus(Section):
    """fine is how many channels the finest map is reduced to."""

    kind: Literal["aspp_plus"] = "aspp_plus"
    channels: Channels = 512
    fine: Channels = 48
    dilations: Dilations = [12, 24, 36]
    activation: Activation = "leaky_relu"
    dropout: Fraction = 0.1


class DANet(Section):
    """The outputs pam and cam are scores of one branch alone, for terms of the loss (loss.pam.output=pam)."""

    kind: Literal["danet"] = "danet"
    channels: Channels = 512
    query_channels: Channels | None = None
    activation: Activation = "relu"
    dropout: Fraction = 0.1


class OC(Section):
    """form base attends once, pyramid within grids of 1, 2, 3 and 6 cells a side, asp beside dilated convolutions.

    separate, of base, is openseg's: query and key of their own, two convolutions each. pooled attends at half the size.
    dropout is by default the authors', 0.1 in asp and 0.05 in the others.
    """

    kind: Literal["oc"] = "oc"
    form: Literal["base", "pyramid", "asp"] = "base"
    channels: Channels = 512
    separate: Flag = False
    pooled: Flag = False
    activation: Activation = "leaky_relu"
    dropout: Fraction | None = None


class ISA(Section):
    """inner is the width of query and key, by default half the channels; cell is a cell's height and width.

    bias is that of the first convolution. form says in which order input and context are joined: openseg's input
    first, mmsegmentation's context first.
    """

    kind: Literal["isa"] = "isa"
    form: Literal["openseg", "mmseg"] = "openseg"
    channels: Channels = 512
    inner: Channels | None = None
    cell: Count = 8
    bias: Flag = False
    value_bias: Flag = False
    activation: Activation = "relu"
    dropout: Fraction = 0.05


class EncNet(Section):
    """The output presence holds a score (B, classes) for each class that an image may hold: see the loss presence.

    lateral joins the two maps before the deepest.
    """

    kind: Literal["encnet"] = "encnet"
    channels: Channels = 512
    codewords: Count = 32
    lateral: Flag = False
    activation: Activation = "relu"
    dropout: Fraction = 0.1


class UPerNet(Section):
    """pooled_channels are those of a pooled map, by default as many as channels.

    resize_first enlarges pooled maps before their convolution, as MIT does; mmsegmentation does it after.
    """

    kind: Literal["upernet"] = "upernet"
    channels: Channels = 512
    pooled_channels: Channels | None = None
    resize_first: Flag = False
    activation: Activation = "relu"
    dropout: Fraction = 0.1


class GCN(Section):
    """kernel is the longer side of the separated convolutions."""

    kind: Literal["gcn"] = "gcn"
    kernel: Annotated[Count, AfterValidator(_odd)] = 15


class RCCA3D(RCCA):
    """As `rcca`, over clips: three passes reach every position of a clip from every other.

    The clip is that of data.clip, and the scores are its labelled frame's.
    """

    takes_clips: ClassVar[bool] = True

    kind: Literal["rcca3d"] = "rcca3d"  # type: ignore[assignment]
    recurrence: Annotated[int, Field(strict=True, ge=1, le=3)] = 3
