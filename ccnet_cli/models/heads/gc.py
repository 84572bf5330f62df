"""GCNet's global context (ICCV workshops 2019) in CCNet's wrapper, as mmsegmentation's GCHead."""

from collections.abc import Sequence

from torch import nn

from ccnet_cli.models.blocks import GlobalContext
from ccnet_cli.models.heads.settings import GC as Settings
from ccnet_cli.models.heads.wrapped import wrap


def build(settings: Settings, channels: Sequence[int], classes: int) -> nn.Module:
    """The head of these settings on the deepest of the maps."""
    return wrap(settings, channels, classes, GlobalContext(settings.channels, settings.ratio))
