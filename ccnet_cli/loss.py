"""Cross entropy, online hard example mining by the authors' rule or mmsegmentation's, main plus auxiliary loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# B batch, K classes, H height, W width; h, w the grid on which OHEM estimates its threshold
GRID = 8


def cross_entropy(scores_BKHW: Tensor, label_BHW: Tensor, ignore_index: int = 255, average: str = "valid") -> Tensor:
    """Mean over the valid pixels, or over "all" with 0 for the ignored; 0, with zero gradients, where none is valid."""
    total = F.cross_entropy(scores_BKHW, label_BHW, ignore_index=ignore_index, reduction="sum")
    return total / _pixels(label_BHW != ignore_index, average)


def ohem_cross_entropy(
    scores_BKHW: Tensor, label_BHW: Tensor, threshold: float = 0.7, min_kept: int = 100_000, ignore_index: int = 255
) -> Tensor:
    """Mean cross entropy over the pixels whose true class has at most the mining threshold's probability.

    The threshold is `ohem_threshold`. It stays on the device; 0 with zero gradients where no pixel is valid.
    """
    valid_BHW = label_BHW != ignore_index
    with torch.no_grad():
        probability_BKHW = scores_BKHW.float().softmax(dim=1)
        bound = ohem_threshold(probability_BKHW, label_BHW, threshold, min_kept, ignore_index)
        kept_BHW = valid_BHW & (_own(probability_BKHW, label_BHW, valid_BHW) <= bound)
    return _sum(scores_BKHW, label_BHW, kept_BHW, ignore_index) / kept_BHW.sum().clamp(min=1)


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
    valid_BHW = label_BHW != ignore_index
    with torch.no_grad():
        true_BHW = _own(scores_BKHW.float().softmax(dim=1), label_BHW, valid_BHW)
        kept_BHW = valid_BHW & (true_BHW < mmseg_threshold(true_BHW, valid_BHW, threshold, min_kept))
    return _sum(scores_BKHW, label_BHW, kept_BHW, ignore_index) / _pixels(valid_BHW, average)


def ohem_threshold(
    probability_BKHW: Tensor, label_BHW: Tensor, threshold: float, min_kept: int, ignore_index: int = 255
) -> Tensor:
    """The authors' rule, a 0-d tensor: the (min_kept // 64)-th smallest true-class probability, at least `threshold`.

    It is estimated on a grid of 1/8 the size, probabilities linear and labels nearest, bit for bit as
    scipy.ndimage.zoom computes it; 1 (keep all) where the grid has no more valid samples than that.
    """
    H, W = label_BHW.shape[1:]
    y_h, x_w = _grid(H, label_BHW.device), _grid(W, label_BHW.device)
    # in about one length of seven the last sample is rounded to just beyond the border, where zoom reads zeros:
    # a valid sample of class 0 with probability 0
    beyond_hw = (y_h > H - 1)[:, None] | (x_w > W - 1)
    # half up, as scipy rounds for order 0
    label_Bhw = label_BHW[:, (y_h + 0.5).floor().long()][:, :, (x_w + 0.5).floor().long()].masked_fill(beyond_hw, 0)
    valid_Bhw = label_Bhw != ignore_index
    sample_Bhw = _sample(probability_BKHW, label_Bhw.masked_fill(~valid_Bhw, 0), y_h, x_w)
    sample_Bhw = sample_Bhw.masked_fill(beyond_hw, 0.0).masked_fill(~valid_Bhw, float("inf"))
    rank = min_kept // GRID**2
    if rank > sample_Bhw.numel():
        return probability_BKHW.new_ones(())
    smallest = sample_Bhw.flatten().kthvalue(rank).values if rank else probability_BKHW.new_zeros(())
    # fills and clamps only: a scalar made into a tensor would wait for the device
    return smallest.clamp(min=threshold).masked_fill(valid_Bhw.sum() <= rank, 1.0)


def mmseg_threshold(true_BHW: Tensor, valid_BHW: Tensor, threshold: float, min_kept: int) -> Tensor:
    """mmsegmentation's rule, a 0-d tensor: the true-class probability of the valid pixel of rank min_kept * B.

    Ranks count from 0 at the smallest and end at the last valid pixel; at least `threshold`.
    """
    rank = min(min_kept * len(true_BHW), true_BHW.numel() - 1)
    largest = true_BHW.masked_fill(~valid_BHW, 0.0).amax()
    ranked = true_BHW.masked_fill(~valid_BHW, float("inf")).flatten().kthvalue(rank + 1).values
    return torch.minimum(ranked, largest).clamp(min=threshold)


def _own(probability_BKHW: Tensor, label_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Each pixel's probability of its own class, (B, H, W); of class 0 where it has none."""
    return probability_BKHW.gather(1, label_BHW.masked_fill(~valid_BHW, 0)[:, None])[:, 0]


def _sum(scores_BKHW: Tensor, label_BHW: Tensor, kept_BHW: Tensor, ignore_index: int) -> Tensor:
    loss_BHW = F.cross_entropy(scores_BKHW, label_BHW, ignore_index=ignore_index, reduction="none")
    # a product, not a fill: a score that is not a number must show, and an ignored pixel's loss is 0 whatever it is
    return (loss_BHW * kept_BHW).sum()


def _pixels(valid_BHW: Tensor, average: str) -> Tensor | int:
    return valid_BHW.numel() if average == "all" else valid_BHW.sum().clamp(min=1)


def _grid(length: int, device: torch.device) -> Tensor:
    """Where the samples of one axis lie, first and last on the borders, in pixels (float64)."""
    count = round(length / GRID)
    return torch.arange(count, dtype=torch.float64, device=device) * ((length - 1) / max(count - 1, 1))


def _sample(probability_BKHW: Tensor, label_Bhw: Tensor, y_h: Tensor, x_w: Tensor) -> Tensor:
    """Bilinear samples of each grid point's own class, (B, h, w), by scipy's operations in scipy's order."""
    B, _, H, W = probability_BKHW.shape
    batch = torch.arange(B, device=label_Bhw.device)[:, None, None]
    top_h, left_w = y_h.floor(), x_w.floor()
    down_h, across_w = y_h - top_h, x_w - left_w
    rows = ((top_h, 1 - down_h), ((top_h + 1).clamp(max=H - 1), down_h))
    columns = ((left_w, 1 - across_w), ((left_w + 1).clamp(max=W - 1), across_w))
    total_Bhw = torch.zeros(label_Bhw.shape, dtype=torch.float64, device=label_Bhw.device)
    for y, weight_h in rows:
        for x, weight_w in columns:
            corner_Bhw = probability_BKHW[batch, label_Bhw, y.long()[:, None], x.long()]
            total_Bhw = total_Bhw + corner_Bhw * weight_h[:, None] * weight_w
    return total_Bhw.to(probability_BKHW.dtype)


class Objective(nn.Module):
    """The training loss: main (OHEM or plain) plus `auxiliary` times plain cross entropy of the auxiliary head."""

    def __init__(
        self,
        ohem: bool,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        auxiliary: float = 0.4,
        ignore_index: int = 255,
        align_corners: bool = True,
        rule: str = "official",
        average: str = "valid",
    ) -> None:
        super().__init__()
        self.ohem = ohem
        self.threshold = threshold
        self.min_kept = min_kept
        self.auxiliary = auxiliary
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        self.rule = rule
        self.average = average

    def forward(self, main_BKhw: Tensor, auxiliary_BKhw: Tensor | None, label_BHW: Tensor) -> Tensor:
        """Scores at stride 8, enlarged bilinearly to the label, in float32; a 0-d tensor."""
        main = self._enlarge(main_BKhw, label_BHW)
        mining = self.threshold, self.min_kept, self.ignore_index
        if not self.ohem:
            loss = cross_entropy(main, label_BHW, self.ignore_index, self.average)
        elif self.rule == "mmseg":
            loss = mmseg_ohem_cross_entropy(main, label_BHW, *mining, self.average)
        else:
            loss = ohem_cross_entropy(main, label_BHW, *mining)
        if auxiliary_BKhw is not None:
            enlarged = self._enlarge(auxiliary_BKhw, label_BHW)
            loss = loss + self.auxiliary * cross_entropy(enlarged, label_BHW, self.ignore_index, self.average)
        return loss

    def _enlarge(self, scores_BKhw: Tensor, label_BHW: Tensor) -> Tensor:
        size = label_BHW.shape[1:]
        return F.interpolate(scores_BKhw.float(), size, mode="bilinear", align_corners=self.align_corners)
