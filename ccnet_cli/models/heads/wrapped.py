"""CCNet's wrapper with any block inside: reduce, block, convolve, and classify with the backbone's features beside.

With another block in the same place, what is compared is the block alone. `block: none` is mmsegmentation's FCN.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ccnet_cli.models.blocks import BLOCKS, ChannelAttention
from ccnet_cli.models.dense import ChannelPass, DensePass
from ccnet_cli.models.heads.settings import Wrapped as Settings
from ccnet_cli.models.layers import Make, conv_norm_act, fold_layers
from ccnet_cli.parts import Outputs


class Wrapped(nn.Module):
    """The deepest map (B, C, h, w) -> (B, K, h, w); block None stands for none.

    settings have channels, activation and dropout. `name` is the block's among the weights.
    """

    levels = 1
    name = "block"
    blocks: tuple[str, ...] = ("block",)

    def __init__(self, inputs: int, classes: int, settings: Any, block: nn.Module | None) -> None:
        super().__init__()
        channels, activation = settings.channels, settings.activation
        self.feature_channels = channels
        self.conva = nn.Sequential(*conv_norm_act(inputs, channels, activation))
        self.add_module(self.name, block)
        self.convb = nn.Sequential(*conv_norm_act(channels, channels, activation))
        self.bottleneck = nn.Sequential(
            *conv_norm_act(inputs + channels, channels, activation),
            nn.Dropout2d(settings.dropout),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the features' size."""
        return self.classify(features[-1], self._gather(features[-1]))

    def outputs(self, features: Sequence[Tensor]) -> Outputs:
        """Class scores, with the block's output (B, C, h, w) as the features that losses look at."""
        gathered = self._gather(features[-1])
        return Outputs(self.classify(features[-1], gathered), {}, gathered)

    def classify(self, x: Tensor, gathered: Tensor) -> Tensor:
        """Class scores from the features and what the block answers."""
        scores: Tensor = self.bottleneck(torch.cat([x, self.convb(gathered)], dim=1))
        return scores

    def fold(self, make: Make) -> nn.Module:
        """Itself for inference."""
        return FoldedWrapped(self, make)

    def _gather(self, x: Tensor) -> Tensor:
        reduced, block = self.conva(x), getattr(self, self.name)
        gathered: Tensor = reduced if block is None else block(reduced)
        return gathered


class FoldedWrapped(nn.Module):
    """The head of folded convolutions; nothing is concatenated, and the last convolution is float32."""

    # the parts that read the backbone's map
    readers: tuple[str, ...] = ("conva", "bottleneck")

    def __init__(self, head: Wrapped, make: Make) -> None:
        super().__init__()
        self.conva = make(*head.conva)
        self.name, block = head.name, getattr(head, head.name)
        fold = getattr(block, "fold", None)
        folded = nn.Identity() if block is None else fold_layers(block, make) if fold is None else fold(make)
        self.add_module(self.name, folded)
        self.convb = make(*head.convb)
        conv, norm, act, _, classify = head.bottleneck
        widths = (head.conva[0].in_channels, head.convb[0].out_channels)
        self.bottleneck = make(conv, norm, act, widths=widths)
        # the part of it that reads the backbone's map, where that is to come first
        self.beside: nn.Module | None = None
        # class scores that lie close together would be equal in bfloat16
        self.classify = make(classify, dtype="fp32")

    def forward(self, features: list[Tensor]) -> Tensor:
        """Class scores at the features' size, float32."""
        x, block = features[-1], getattr(self, self.name)
        reduced = self.conva(x)
        if self.beside is None:
            joined = self.bottleneck(x, self.convb(block(reduced)))
        else:
            joined = self.beside(x)
            del x
            features.clear()
            joined = self.bottleneck(self.convb(block(reduced)), onto=joined)
        scores: Tensor = self.classify(joined.float())
        return scores

    def release_maps(self) -> None:
        """Read the backbone's map before the block runs, and take it out of the list that it came in."""
        divide = getattr(self.bottleneck, "divide", None)
        if self.beside is None and divide is not None:
            self.beside, self.bottleneck = divide()


class AttentiveWrapped(Wrapped):
    """The wrapper around a block whose passes can be drawn."""

    def attend(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | DensePass]]:
        """Class scores, and the weights of each pass."""
        block: Any = getattr(self, self.name)
        return self(features), block.passes(self.conva(features[-1]))

    @property
    def attention_names(self) -> tuple[str, ...]:
        """The block's."""
        return getattr(getattr(self, self.name), "attention_names", ())


class ChannelWrapped(Wrapped):
    """The wrapper around attention over channels."""

    attention_names = ("channels",)

    def attend(self, features: Sequence[Tensor]) -> tuple[Tensor, list[ChannelPass]]:
        """Class scores, and what the channels gather."""
        block: Any = getattr(self, self.name)
        x = features[-1]
        return self(features), [block.attend(self.conva(x), partial(self.classify, x[:1]))]


def wrap(settings: Any, channels: Sequence[int], classes: int, block: nn.Module) -> Wrapped:
    """The wrapper around a block on the deepest of the maps."""
    drawn = hasattr(block, "passes") and getattr(block, "mode", "") != "dot_product"
    kind = ChannelWrapped if isinstance(block, ChannelAttention) else AttentiveWrapped if drawn else Wrapped
    return kind(channels[-1], classes, settings, block)


def build(settings: Settings, channels: Sequence[int], classes: int) -> nn.Module:
    """The head of these settings on the deepest of the maps."""
    return wrap(settings, channels, classes, BLOCKS[settings.block](settings.channels, settings.activation))
