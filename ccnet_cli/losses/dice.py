"""Dice loss (Milletari et al., 2016): the overlap of each class's probabilities with its label."""

from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli.losses import Dice
from ccnet_cli.losses.focal import enlarge
from ccnet_cli.parts import Outputs


class DiceTerm(nn.Module):
    """The term of a preset's settings, from scores at the network's stride."""

    def __init__(self, settings: Dice, ignore_index: int, align_corners: bool) -> None:
        super().__init__()
        self.settings, self.ignore_index, self.align_corners = settings, ignore_index, align_corners

    def forward(self, outputs: Outputs, label_BHW: Tensor) -> Tensor:
        """The term before its weight, 0-d float32; 0 where no class is present, or no pixel valid."""
        s, valid_BHW = self.settings, label_BHW != self.ignore_index
        probability_BKHW = enlarge(outputs.by_name(s.output), label_BHW, self.align_corners).softmax(dim=1)
        probability_BKHW = probability_BKHW.masked_fill(~valid_BHW[:, None], 0.0)
        true_BHWK = F.one_hot(label_BHW.masked_fill(~valid_BHW, 0), probability_BKHW.shape[1]) * valid_BHW[..., None]
        true_BKHW = true_BHWK.movedim(-1, 1).to(probability_BKHW.dtype)
        overlap_K, pixels_K = ((p * true_BKHW).sum((0, 2, 3)) for p in (probability_BKHW, true_BKHW))
        area_K = (probability_BKHW**s.power).sum((0, 2, 3)) + pixels_K
        # the area of a class that is nowhere is 0 without smoothing
        loss_K = 1 - (2 * overlap_K + s.smooth) / (area_K + s.smooth).clamp(min=1e-12)
        counts_K = pixels_K > 0 if s.classes == "present" else valid_BHW.any().expand_as(pixels_K)
        return loss_K.masked_fill(~counts_K, 0.0).sum() / counts_K.sum().clamp(min=1)


build = DiceTerm
