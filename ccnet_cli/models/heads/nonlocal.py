"""Non-local attention (CVPR 2018) in CCNet's wrapper, as mmsegmentation's NLHead."""

from collections.abc import Sequence

from torch import nn

from ccnet_cli.models.blocks import NonLocal
from ccnet_cli.models.heads.settings import NonLocal as Settings
from ccnet_cli.models.heads.wrapped import wrap


def build(settings: Settings, channels: Sequence[int], classes: int) -> nn.Module:
    """The head of these settings on the deepest of the maps."""
    s = settings
    block = NonLocal(s.channels, s.inner or max(s.channels // 2, 1), s.mode, s.sub_sample)
    return wrap(s, channels, classes, block)
