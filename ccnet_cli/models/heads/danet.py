"""DANet (CVPR 2019): attention over positions and over channels side by side, with scores of their own in training."""

from collections.abc import Sequence

from torch import Tensor, nn

from ccnet_cli.models.blocks import ChannelAttention, PositionAttention
from ccnet_cli.models.dense import ChannelPass, DensePass
from ccnet_cli.models.heads.settings import DANet as Settings
from ccnet_cli.models.layers import Classify, Head, conv_norm_act
from ccnet_cli.parts import Outputs


class DANetHead(Head):
    """The deepest map (B, C, h, w) -> (B, K, h, w)."""

    output_names = ("pam", "cam")
    blocks = ("pam", "cam")
    attention_names = ("all positions", "channels")

    def __init__(self, inputs: int, classes: int, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.pam = PositionAttention(s.channels, s.query_channels)
        self.cam = ChannelAttention()
        self.pam_reduce, self.cam_reduce = (
            nn.Sequential(*conv_norm_act(inputs, s.channels, s.activation)) for _ in range(2)
        )
        self.pam_convolve, self.cam_convolve = (
            nn.Sequential(*conv_norm_act(s.channels, s.channels, s.activation)) for _ in range(2)
        )
        self.classify, self.pam_classify, self.cam_classify = (
            Classify(s.channels, classes, s.dropout) for _ in range(3)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores of both branches' sum."""
        pam, cam = self._branches(features[-1])
        scores: Tensor = self.classify(pam + cam)
        return scores

    def outputs(self, features: Sequence[Tensor]) -> Outputs:
        """The scores of the sum, and of each branch alone."""
        pam, cam = self._branches(features[-1])
        own = {"pam": self.pam_classify(pam), "cam": self.cam_classify(cam)}
        return Outputs(self.classify(pam + cam), own, features[-1])

    def attend(self, features: Sequence[Tensor]) -> tuple[Tensor, list[DensePass | ChannelPass]]:
        """The scores, the weights of the attention over positions, and what the channels gather."""
        pam, _ = self._branches(features[-1])
        channels = self.cam.attend(
            self.cam_reduce(features[-1]), lambda out: self.classify(pam[:1] + self.cam_convolve(out))
        )
        return self(features), [*self.pam.passes(self.pam_reduce(features[-1])), channels]

    @property
    def gamma(self) -> float:
        """The weight of what the attention over positions gathers."""
        return self.pam.gamma.item()

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.pam_convolve(self.pam(self.pam_reduce(x))), self.cam_convolve(self.cam(self.cam_reduce(x)))


def build(settings: Settings, channels: Sequence[int], classes: int) -> DANetHead:
    """The head of these settings on the deepest of the maps."""
    return DANetHead(channels[-1], classes, settings)
