"""Non-local attention (CVPR 2018) in CCNet's wrapper, as mmsegmentation's NLHead."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from ccnet_cli.models.blocks import NonLocal
from ccnet_cli.models.heads import Activation
from ccnet_cli.models.heads.wrapped import wrap
from ccnet_cli.parts import Channels, Flag, Fraction, Section


class Settings(Section):
    """inner is the width of query, key and value, by default half the channels; sub_sample pools keys and values."""

    kind: Literal["nonlocal"] = "nonlocal"
    channels: Channels = 512
    inner: Channels | None = None
    mode: Literal["embedded_gaussian", "dot_product"] = "embedded_gaussian"
    sub_sample: Flag = False
    activation: Activation = "leaky_relu"
    dropout: Fraction = 0.1


def build(settings: Settings, channels: Sequence[int], classes: int) -> nn.Module:
    """The head of these settings on the deepest of the maps."""
    s = settings
    block = NonLocal(s.channels, s.inner or max(s.channels // 2, 1), s.mode, s.sub_sample)
    return wrap(s, channels, classes, block)
