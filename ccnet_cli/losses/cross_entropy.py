"""Cross entropy of all valid pixels, over a label map with ignored pixels."""

from torch import Tensor, nn

from ccnet_cli.losses import CrossEntropy
from ccnet_cli.losses.bands import BandedScores
from ccnet_cli.losses.pixels import divisor, sum_kept, widen
from ccnet_cli.losses.weights import ClassWeights
from ccnet_cli.parts import Outputs


def cross_entropy(scores_BKHW: Tensor, label_BHW: Tensor, ignore_index: int = 255, average: str = "valid") -> Tensor:
    """Mean over the valid pixels, or over "all" with 0 for the ignored; 0, with zero gradients, where none is valid."""
    valid_BHW = label_BHW != ignore_index
    total = sum_kept(scores_BKHW, widen(scores_BKHW).softmax(dim=1), label_BHW, valid_BHW, valid_BHW)
    return total / divisor(label_BHW, valid_BHW, average)


class CrossEntropyTerm(nn.Module):
    """The term of a preset's settings, from scores at the network's stride."""

    def __init__(self, settings: CrossEntropy, ignore_index: int, align_corners: bool) -> None:
        super().__init__()
        self.settings, self.ignore_index, self.align_corners = settings, ignore_index, align_corners
        self.classes = ClassWeights(settings.class_weights, settings.label_smoothing)
        self.needs_pixels, self.weigh = self.classes.needs_pixels, self.classes.weigh

    def prepare(self, classes: int, features: int) -> None:
        """Make the weights of this number of classes."""
        self.classes.prepare(classes)

    def forward(self, outputs: Outputs, label_BHW: Tensor) -> Tensor:
        """The term before its weight, 0-d float32."""
        valid_BHW, weighing = label_BHW != self.ignore_index, self.classes.weighing
        scores = BandedScores(outputs.by_name(self.settings.output), label_BHW.shape[1:], self.align_corners)
        total, _ = scores.cross_entropy(label_BHW, valid_BHW, weighing=weighing)
        return total / divisor(label_BHW, valid_BHW, self.settings.average, weighing)


build = CrossEntropyTerm
