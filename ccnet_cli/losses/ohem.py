"""Cross entropy with online hard example mining, by the authors' rule or mmsegmentation's."""

import torch
from torch import Tensor, nn

from ccnet_cli.losses import Ohem
from ccnet_cli.losses.bands import BandedScores
from ccnet_cli.losses.grid import make_grid, sample, threshold_of
from ccnet_cli.losses.pixels import count, divisor, of_true_class, sum_kept, widen
from ccnet_cli.losses.weights import ClassWeights
from ccnet_cli.parts import Outputs

# B batch, K classes, H height, W width; h, w the grid on which the authors' rule estimates its threshold


def ohem_cross_entropy(
    scores_BKHW: Tensor, label_BHW: Tensor, threshold: float = 0.7, min_kept: int = 100_000, ignore_index: int = 255
) -> Tensor:
    """Mean cross entropy over the pixels whose true class has at most the mining threshold's probability.

    The threshold is `ohem_threshold`. It stays on the device; 0 with zero gradients where no pixel is valid.
    """
    probability_BKHW = widen(scores_BKHW).softmax(dim=1)
    bound = ohem_threshold(probability_BKHW, label_BHW, threshold, min_kept, ignore_index)
    valid_BHW = label_BHW != ignore_index
    kept_BHW = valid_BHW & (of_true_class(probability_BKHW, label_BHW, valid_BHW) <= bound)
    return sum_kept(scores_BKHW, probability_BKHW, label_BHW, valid_BHW, kept_BHW) / count(kept_BHW)


def mmseg_ohem_cross_entropy(
    scores_BKHW: Tensor,
    label_BHW: Tensor,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    ignore_index: int = 255,
    average: str = "valid",
) -> Tensor:
    """Cross entropy summed over the pixels below mmsegmentation's threshold, divided by the valid or by "all" pixels.

    The threshold is `mmseg_threshold`. It stays on the device; 0 with zero gradients where no pixel is valid.
    """
    probability_BKHW, valid_BHW = widen(scores_BKHW).softmax(dim=1), label_BHW != ignore_index
    true_BHW = of_true_class(probability_BKHW, label_BHW, valid_BHW)
    kept_BHW = valid_BHW & (true_BHW < mmseg_threshold(true_BHW, valid_BHW, threshold, min_kept))
    return sum_kept(scores_BKHW, probability_BKHW, label_BHW, valid_BHW, kept_BHW) / divisor(
        label_BHW, valid_BHW, average
    )


def ohem_threshold(
    probability_BKHW: Tensor, label_BHW: Tensor, threshold: float, min_kept: int, ignore_index: int = 255
) -> Tensor:
    """The authors' rule, a 0-d tensor: the (min_kept // 64)-th smallest true-class probability, at least `threshold`.

    It is estimated on a grid of 1/8 the size, probabilities linear and labels nearest, bit for bit as
    scipy.ndimage.zoom computes it; 1 (keep all) where the grid has no more valid samples than that.
    """
    grid = make_grid(label_BHW, ignore_index)
    sample_Bhw = sample(probability_BKHW, grid.label_Bhw, grid.rows, grid.columns)
    return threshold_of(sample_Bhw, grid, threshold, min_kept)


def mmseg_threshold(true_BHW: Tensor, valid_BHW: Tensor, threshold: float, min_kept: int) -> Tensor:
    """mmsegmentation's rule, a 0-d tensor: the true-class probability of the valid pixel of rank min_kept * B.

    Ranks count from 0 at the smallest and end at the last valid pixel; at least `threshold`.
    """
    rank = min(min_kept * len(true_BHW), true_BHW.numel() - 1)
    largest = true_BHW.masked_fill(~valid_BHW, 0.0).amax()
    ranked = true_BHW.masked_fill(~valid_BHW, float("inf")).flatten().kthvalue(rank + 1).values
    return torch.minimum(ranked, largest).clamp(min=threshold)


class OhemTerm(nn.Module):
    """The term of a preset's settings, from scores at the network's stride; mining itself knows no weights."""

    def __init__(self, settings: Ohem, ignore_index: int, align_corners: bool) -> None:
        super().__init__()
        self.settings, self.ignore_index, self.align_corners = settings, ignore_index, align_corners
        self.classes = ClassWeights(settings.class_weights, settings.label_smoothing)
        self.needs_pixels, self.weigh = self.classes.needs_pixels, self.classes.weigh

    def prepare(self, classes: int, features: int) -> None:
        """Make the weights of this number of classes."""
        self.classes.prepare(classes)

    def forward(self, outputs: Outputs, label_BHW: Tensor) -> Tensor:
        """The term before its weight, 0-d float32."""
        settings, weighing, valid_BHW = self.settings, self.classes.weighing, label_BHW != self.ignore_index
        scores = BandedScores(outputs.by_name(settings.output), label_BHW.shape[1:], self.align_corners)
        bound = _bound(scores, label_BHW, valid_BHW, settings, self.ignore_index)
        total, kept_BHW = scores.cross_entropy(label_BHW, valid_BHW, bound, weighing)
        if settings.rule == "official":
            return total / weighing.divisor(label_BHW, kept_BHW)
        return total / divisor(label_BHW, valid_BHW, settings.average, weighing)


build = OhemTerm


def _bound(scores: BandedScores, label_BHW: Tensor, valid_BHW: Tensor, settings: Ohem, ignore_index: int) -> Tensor:
    """The greatest true-class probability of a pixel that mining keeps, 0-d."""
    if settings.rule == "mmseg":
        true_BHW = scores.true_probability(label_BHW, valid_BHW)
        bound = mmseg_threshold(true_BHW, valid_BHW, settings.threshold, settings.min_kept)
        # this rule keeps what is below its threshold, and the authors' what is not above
        return torch.nextafter(bound, torch.zeros_like(bound))
    grid = make_grid(label_BHW, ignore_index)
    return threshold_of(scores.sample(grid), grid, settings.threshold, settings.min_kept)
