"""Plain cross entropy, over a label map with ignored pixels."""

from torch import Tensor

from ccnet_cli.losses import CrossEntropy
from ccnet_cli.losses.bands import BandedScores
from ccnet_cli.losses.objective import LossTerm
from ccnet_cli.losses.pixels import divisor, sum_kept, widen
from ccnet_cli.parts import Outputs


def cross_entropy(scores_BKHW: Tensor, label_BHW: Tensor, ignore_index: int = 255, average: str = "valid") -> Tensor:
    """Mean over the valid pixels, or over "all" with 0 for the ignored; 0, with zero gradients, where none is valid."""
    valid_BHW = label_BHW != ignore_index
    total = sum_kept(scores_BKHW, widen(scores_BKHW).softmax(dim=1), label_BHW, valid_BHW, valid_BHW)
    return total / divisor(valid_BHW, average)


def build(settings: CrossEntropy, ignore_index: int, align_corners: bool) -> LossTerm:
    """The term of these settings, from scores at the network's stride."""

    def term(outputs: Outputs, label_BHW: Tensor) -> Tensor:
        valid_BHW = label_BHW != ignore_index
        scores = BandedScores(outputs.by_name(settings.output), label_BHW.shape[1:], align_corners)
        return scores.cross_entropy(label_BHW, valid_BHW)[0] / divisor(valid_BHW, settings.average)

    return term
