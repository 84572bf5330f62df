"""A fully convolutional head: one 3x3 convolution and a classifier."""

from collections.abc import Sequence

from torch import Tensor, nn

from ccnet_cli.models.heads import FCN as Settings
from ccnet_cli.models.layers import Make, conv_norm_act


class FCNHead(nn.Sequential):
    """The deepest map it is given (B, C, h, w) -> class scores (B, K, h, w)."""

    levels = 1

    def __init__(self, inputs: int, classes: int, settings: Settings) -> None:
        s = settings
        layers = conv_norm_act(inputs, s.channels, s.activation, s.bias)
        super().__init__(*layers, nn.Dropout2d(s.dropout), nn.Conv2d(s.channels, classes, 1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the map's size."""
        x = features[-1]
        for layer in self:
            x = layer(x)
        return x

    def fold(self, make: Make) -> nn.Module:
        """Itself for inference."""
        return FoldedFCN(self, make)


class FoldedFCN(nn.Module):
    """The head of folded convolutions, the classifier in float32."""

    # the part that reads the backbone's map
    readers = ("reduce",)

    def __init__(self, head: FCNHead, make: Make) -> None:
        super().__init__()
        conv, norm, act, _, classify = head
        self.reduce = make(conv, norm, act)
        self.classify = make(classify, dtype="fp32")

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the map's size, float32."""
        scores: Tensor = self.classify(self.reduce(features[-1]).float())
        return scores


def build(settings: Settings, channels: Sequence[int], classes: int) -> FCNHead:
    """The head of these settings on the deepest of the maps."""
    return FCNHead(channels[-1], classes, settings)
