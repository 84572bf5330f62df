"""GCNet's global context (ICCV workshops 2019) in CCNet's wrapper, as mmsegmentation's GCHead."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from ccnet_cli.models.blocks import GlobalContext
from ccnet_cli.models.heads import Activation
from ccnet_cli.models.heads.wrapped import wrap
from ccnet_cli.parts import Channels, Fraction, Section


class Settings(Section):
    """ratio is the block's inner width for each of its channels."""

    kind: Literal["gc"] = "gc"
    channels: Channels = 512
    ratio: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.25
    activation: Activation = "leaky_relu"
    dropout: Fraction = 0.1


def build(settings: Settings, channels: Sequence[int], classes: int) -> nn.Module:
    """The head of these settings on the deepest of the maps."""
    return wrap(settings, channels, classes, GlobalContext(settings.channels, settings.ratio))
