"""Lovasz-softmax (Berman et al., CVPR 2018): the Lovasz extension of each class's Jaccard loss."""

import torch
from torch import Tensor, nn

from ccnet_cli.losses import Lovasz
from ccnet_cli.losses.focal import enlarge
from ccnet_cli.losses.pixels import with_gradient
from ccnet_cli.parts import Outputs

# P pixels of what one sort takes


class LovaszTerm(nn.Module):
    """The term of a preset's settings, from scores at the network's stride."""

    def __init__(self, settings: Lovasz, ignore_index: int, align_corners: bool) -> None:
        super().__init__()
        self.settings, self.ignore_index, self.align_corners = settings, ignore_index, align_corners

    def forward(self, outputs: Outputs, label_BHW: Tensor) -> Tensor:
        """The term before its weight, 0-d float32; 0 where no pixel is valid."""
        s = self.settings
        probability_BKHW = enlarge(outputs.by_name(s.output), label_BHW, self.align_corners).softmax(dim=1)
        batches = [slice(i, i + 1) for i in range(len(label_BHW))] if s.per_image else [slice(None)]
        losses = [
            lovasz_softmax(probability_BKHW[part], label_BHW[part], self.ignore_index, s.classes) for part in batches
        ]
        return torch.stack(losses).mean()


def lovasz_softmax(
    probability_BKHW: Tensor, label_BHW: Tensor, ignore_index: int = 255, classes: str = "present"
) -> Tensor:
    """The mean over the classes present, or over all, of sum_j e_j g_j: errors in falling order, Jaccard's steps.

    Equal errors keep their order. One class at a time is sorted, and nothing is asked of the device; good for one
    backward pass, 0 where no pixel is valid.
    """
    label_P = label_BHW.flatten()
    valid_P = label_P != ignore_index
    with torch.no_grad():
        values, present, gradient_BKHW = [], [], torch.empty_like(probability_BKHW)
        for index in range(probability_BKHW.shape[1]):
            true_P = (label_P == index) & valid_P
            probability_BHW = probability_BKHW[:, index]
            value, step_P = _jaccard(probability_BHW.flatten(), true_P, valid_P)
            # error is 1 - p where the label is the class, and p elsewhere
            gradient_BKHW[:, index] = torch.where(true_P, -step_P, step_P).view_as(probability_BHW)
            values.append(value)
            present.append(true_P.any() if classes == "present" else valid_P.any())
        present_K = torch.stack(present)
        share_K = present_K / present_K.sum().clamp(min=1)
        gradient_BKHW *= share_K[:, None, None]
        value = (torch.stack(values) * share_K).sum()
    return with_gradient(probability_BKHW, value, gradient_BKHW)


def _jaccard(probability_P: Tensor, true_P: Tensor, valid_P: Tensor) -> tuple[Tensor, Tensor]:
    """A class's loss, and what each pixel's error counts in it, (P,); the gradient takes the latter as constant."""
    # ignored pixels come last, where they count nothing
    error_P = (true_P.to(probability_P.dtype) - probability_P).abs().masked_fill(~valid_P, -1.0)
    error_P, order_P = error_P.sort(descending=True, stable=True)
    true_P, valid_P = true_P[order_P], valid_P[order_P]
    intersection_P = true_P.sum() - true_P.cumsum(0)
    union_P = true_P.sum() + (~true_P & valid_P).cumsum(0)
    jaccard_P = 1 - intersection_P.double() / union_P.clamp(min=1)
    step_P = jaccard_P.diff(prepend=jaccard_P.new_zeros(1)).to(error_P.dtype) * valid_P
    return (error_P * step_P).sum(), torch.empty_like(step_P).scatter_(0, order_P, step_P)


build = LovaszTerm
