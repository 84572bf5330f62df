"""Focal loss (Lin et al., ICCV 2017): easy pixels count little."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli.losses import Focal
from ccnet_cli.losses.pixels import of_true_class
from ccnet_cli.losses.weights import ClassWeights
from ccnet_cli.parts import Outputs


class FocalTerm(nn.Module):
    """The term of a preset's settings, from scores at the network's stride."""

    def __init__(self, settings: Focal, ignore_index: int, align_corners: bool) -> None:
        super().__init__()
        self.settings, self.ignore_index, self.align_corners = settings, ignore_index, align_corners
        self.classes = ClassWeights(settings.class_weights)
        self.needs_pixels, self.weigh = self.classes.needs_pixels, self.classes.weigh

    def prepare(self, classes: int, features: int) -> None:
        """Make the weights of this number of classes."""
        self.classes.prepare(classes)

    def forward(self, outputs: Outputs, label_BHW: Tensor) -> Tensor:
        """The term before its weight, 0-d float32; 0 where no pixel is valid."""
        scores_BKHW = enlarge(outputs.by_name(self.settings.output), label_BHW, self.align_corners)
        valid_BHW, weighing = label_BHW != self.ignore_index, self.classes.weighing
        log_BHW = of_true_class(scores_BKHW.log_softmax(dim=1), label_BHW, valid_BHW)
        # not 0, where the power of a gamma below 1 has no derivative
        miss_BHW = -torch.expm1(log_BHW).clamp(max=-1e-12)
        loss_BHW = (-(miss_BHW**self.settings.gamma) * log_BHW).masked_fill(~valid_BHW, 0.0)
        weight_BHW = weighing.of_label(label_BHW, valid_BHW)
        return (loss_BHW * weight_BHW).sum() / weighing.divisor(label_BHW, valid_BHW)


def enlarge(scores_BKhw: Tensor, label_BHW: Tensor, align_corners: bool) -> Tensor:
    """The scores at the label's size, in float32 at least."""
    wide_BKhw = scores_BKhw.to(torch.promote_types(scores_BKhw.dtype, torch.float32))
    size = (label_BHW.shape[1], label_BHW.shape[2])
    return F.interpolate(wide_BKhw, size, mode="bilinear", align_corners=align_corners)


build = FocalTerm
