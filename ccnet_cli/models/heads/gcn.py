"""Global convolutions (GCN, CVPR 2017) on one map: CCNet never published its GCN head, so this one is our choice."""

from collections.abc import Sequence

from torch import Tensor, nn

from ccnet_cli.models.heads.settings import GCN as Settings
from ccnet_cli.models.layers import Head


class GlobalConvolution(nn.Module):
    """(B, C, h, w) -> (B, K, h, w): a column and then a row of weights, and a row and then a column, added up."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()

        def pair(first: tuple[int, int], second: tuple[int, int]) -> nn.Sequential:
            sides = [(side[0] // 2, side[1] // 2) for side in (first, second)]
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, first, padding=sides[0]),
                nn.Conv2d(outputs, outputs, second, padding=sides[1]),
            )

        self.down, self.across = pair((kernel, 1), (1, kernel)), pair((1, kernel), (kernel, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Both ways, added."""
        out: Tensor = self.down(x) + self.across(x)
        return out


class GCNHead(Head):
    """The deepest map (B, C, h, w) -> (B, K, h, w): a global convolution, and a residual refinement of borders."""

    blocks = ("global_convolution",)

    def __init__(self, inputs: int, classes: int, settings: Settings) -> None:
        super().__init__()
        self.global_convolution = GlobalConvolution(inputs, classes, settings.kernel)
        self.refine = nn.Sequential(
            nn.Conv2d(classes, classes, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(classes, classes, 3, padding=1)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores at the map's size."""
        rough = self.global_convolution(features[-1])
        scores: Tensor = rough + self.refine(rough)
        return scores


def build(settings: Settings, channels: Sequence[int], classes: int) -> GCNHead:
    """The head of these settings on the deepest of the maps."""
    return GCNHead(channels[-1], classes, settings)
