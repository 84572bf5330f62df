"""Category-consistent loss (TPAMI 2020, section 3.3; the authors released no code)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli.losses import CategoryConsistent
from ccnet_cli.parts import Outputs

# N positions of the features, K classes, D reduced channels


class CategoryConsistentTerm(nn.Module):
    """The term of a preset's settings, with the 1x1 convolution that reduces the features."""

    def __init__(self, settings: CategoryConsistent, ignore_index: int, align_corners: bool) -> None:
        super().__init__()
        self.settings, self.ignore_index, self.classes = settings, ignore_index, 0

    def prepare(self, classes: int, features: int) -> None:
        """Make the convolution for features of this many channels."""
        self.classes, self.reduce = classes, nn.Conv2d(features, self.settings.channels, 1)

    def forward(self, outputs: Outputs, label_BHW: Tensor) -> Tensor:
        """The term before its weight, 0-d float32."""
        reduced_BDhw = self.reduce(outputs.features.to(self.reduce.weight.dtype))
        # nearest, as F.interpolate has it: the label of the pixel at the start of each cell
        label_Bhw = F.interpolate(label_BHW[:, None].double(), reduced_BDhw.shape[2:], mode="nearest")[:, 0].long()
        features_ND, label_N = reduced_BDhw.movedim(1, -1).flatten(0, 2), label_Bhw.flatten()
        return category_consistent(features_ND, label_N, self.classes, self.ignore_index, self.settings)


def category_consistent(
    features_ND: Tensor, label_N: Tensor, classes: int, ignore_index: int, settings: CategoryConsistent
) -> Tensor:
    """Variance, distance and regularization of the classes present, each weighed and added up, 0-d.

    All three are 0 where no position is valid, and distance where fewer than two classes are; no gradient is NaN where
    features or means are equal. Sums are products with one matrix, which no order of additions can change between runs.
    """
    s, valid_N = settings, label_N != ignore_index
    label_N = label_N.masked_fill(~valid_N, 0)
    member_NK = F.one_hot(label_N, classes).to(features_ND.dtype) * valid_N[:, None]
    pixels_K = member_NK.sum(0)
    present_K, share_K = pixels_K > 0, 1 / pixels_K.clamp(min=1)
    number = present_K.sum()
    mean_KD = (member_NK.T @ features_ND) * share_K[:, None]
    past_N = _norm(features_ND - mean_KD[label_N]) - s.delta_v
    cost_N = past_N.clamp(min=0) ** 2
    if s.phi == "piecewise":
        beyond_N = past_N + s.delta_v - s.delta_d
        cost_N = torch.where(beyond_N > 0, beyond_N + (s.delta_d - s.delta_v) ** 2, cost_N)
    variance = ((member_NK.T @ cost_N) * share_K).sum() / number.clamp(min=1)
    pair_KK = present_K[:, None] & present_K & ~torch.eye(classes, dtype=torch.bool, device=label_N.device)
    close_KK = (2 * s.delta_d - _norm(mean_KD[:, None] - mean_KD)).clamp(min=0) ** 2
    distance = (close_KK * pair_KK).sum() / (number * (number - 1)).clamp(min=1)
    regularization = (_norm(mean_KD) * present_K).sum() / number.clamp(min=1)
    return s.variance * variance + s.distance * distance + s.regularization * regularization


def _norm(vectors: Tensor) -> Tensor:
    """Lengths along the last axis; the gradient at length 0 is 0."""
    squares = vectors.square().sum(-1)
    return torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)


build = CategoryConsistentTerm
