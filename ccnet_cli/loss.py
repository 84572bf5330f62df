"""Cross entropy with the authors' online hard example mining, and the sum of main and auxiliary loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# B batch, K classes, H height, W width; h, w the grid on which OHEM estimates its threshold
GRID = 8


def cross_entropy(scores_BKHW: Tensor, label_BHW: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean over the valid pixels; 0, with zero gradients, where there is none."""
    total = F.cross_entropy(scores_BKHW, label_BHW, ignore_index=ignore_index, reduction="sum")
    return total / (label_BHW != ignore_index).sum().clamp(min=1)


def ohem_cross_entropy(
    scores_BKHW: Tensor, label_BHW: Tensor, threshold: float = 0.7, min_kept: int = 100_000, ignore_index: int = 255
) -> Tensor:
    """Mean cross entropy over the pixels whose true class has at most the mining threshold's probability.

    The threshold is `ohem_threshold`. It stays on the device; 0 with zero gradients where no pixel is valid.
    """
    valid_BHW = label_BHW != ignore_index
    target_BHW = label_BHW.masked_fill(~valid_BHW, 0)
    with torch.no_grad():
        probability_BKHW = scores_BKHW.float().softmax(dim=1)
        bound = ohem_threshold(probability_BKHW, label_BHW, threshold, min_kept, ignore_index)
        true_BHW = probability_BKHW.gather(1, target_BHW[:, None])[:, 0]
        kept_BHW = valid_BHW & (true_BHW <= bound)
    loss_BHW = F.cross_entropy(scores_BKHW, label_BHW, ignore_index=ignore_index, reduction="none")
    # where, not a product: an ignored pixel's loss must not turn the sum into NaN
    return torch.where(kept_BHW, loss_BHW, 0.0).sum() / kept_BHW.sum().clamp(min=1)


def ohem_threshold(
    probability_BKHW: Tensor, label_BHW: Tensor, threshold: float, min_kept: int, ignore_index: int = 255
) -> Tensor:
    """The authors' rule, a 0-d tensor: the (min_kept // 64)-th smallest true-class probability, at least `threshold`.

    It is estimated on a grid of 1/8 the size, probabilities linear and labels nearest, as scipy.ndimage.zoom lays it;
    1 (keep all) where the grid has no more valid samples than that.
    """
    H, W = label_BHW.shape[1:]
    device = label_BHW.device
    y_h, x_w = _grid(H, device), _grid(W, device)
    # half up, as scipy rounds for order 0
    label_Bhw = label_BHW[:, (y_h + 0.5).floor().long()][:, :, (x_w + 0.5).floor().long()]
    valid_Bhw = label_Bhw != ignore_index
    sample_Bhw = _sample(probability_BKHW, label_Bhw.masked_fill(~valid_Bhw, 0), y_h, x_w)
    floor = torch.tensor(threshold, dtype=sample_Bhw.dtype, device=device)
    one = torch.ones_like(floor)
    rank = min_kept // GRID**2
    if rank == 0:
        return torch.where(valid_Bhw.any(), floor, one)
    if rank > sample_Bhw.numel():
        return one
    smallest = sample_Bhw.masked_fill(~valid_Bhw, float("inf")).flatten().kthvalue(rank).values
    return torch.where(valid_Bhw.sum() <= rank, one, torch.maximum(floor, smallest))


def _grid(length: int, device: torch.device) -> Tensor:
    """Where the samples of one axis lie, first and last on the borders, in pixels (float64)."""
    count = round(length / GRID)
    return torch.arange(count, dtype=torch.float64, device=device) * ((length - 1) / max(count - 1, 1))


def _sample(probability_BKHW: Tensor, label_Bhw: Tensor, y_h: Tensor, x_w: Tensor) -> Tensor:
    """Bilinear samples of each grid point's own class, (B, h, w)."""
    B, _, H, W = probability_BKHW.shape
    batch = torch.arange(B, device=label_Bhw.device)[:, None, None]
    top, left = y_h.floor().long(), x_w.floor().long()
    bottom, right = (top + 1).clamp(max=H - 1), (left + 1).clamp(max=W - 1)
    down_h1, across_w = (y_h - top)[:, None], x_w - left

    def at(y: Tensor, x: Tensor) -> Tensor:
        return probability_BKHW[batch, label_Bhw, y[:, None], x].double()

    upper = at(top, left) * (1 - across_w) + at(top, right) * across_w
    lower = at(bottom, left) * (1 - across_w) + at(bottom, right) * across_w
    return (upper * (1 - down_h1) + lower * down_h1).to(probability_BKHW.dtype)


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
    ) -> None:
        super().__init__()
        self.ohem = ohem
        self.threshold = threshold
        self.min_kept = min_kept
        self.auxiliary = auxiliary
        self.ignore_index = ignore_index
        self.align_corners = align_corners

    def forward(self, main_BKhw: Tensor, auxiliary_BKhw: Tensor | None, label_BHW: Tensor) -> Tensor:
        """Scores at stride 8, enlarged bilinearly to the label, in float32; a 0-d tensor."""
        main = self._enlarge(main_BKhw, label_BHW)
        if self.ohem:
            loss = ohem_cross_entropy(main, label_BHW, self.threshold, self.min_kept, self.ignore_index)
        else:
            loss = cross_entropy(main, label_BHW, self.ignore_index)
        if auxiliary_BKhw is not None:
            enlarged = self._enlarge(auxiliary_BKhw, label_BHW)
            loss = loss + self.auxiliary * cross_entropy(enlarged, label_BHW, self.ignore_index)
        return loss

    def _enlarge(self, scores_BKhw: Tensor, label_BHW: Tensor) -> Tensor:
        size = label_BHW.shape[1:]
        return F.interpolate(scores_BKhw.float(), size, mode="bilinear", align_corners=self.align_corners)
