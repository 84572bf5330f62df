"""Cross entropy, online hard example mining by the authors' rule or mmsegmentation's, main plus auxiliary loss.

One softmax serves all: mining looks at it, the loss is told by it, and in place it becomes the gradient.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# B batch, K classes, H height, W width; h, w the grid on which OHEM estimates its threshold, or the network's map;
# R the rows of a band
GRID = 8
# bytes of a band's scores, without and with a GPU: a CPU has them in its cache, a GPU has enough to do with them
BAND = (2 << 20, 64 << 20)


def cross_entropy(scores_BKHW: Tensor, label_BHW: Tensor, ignore_index: int = 255, average: str = "valid") -> Tensor:
    """Mean over the valid pixels, or over "all" with 0 for the ignored; 0, with zero gradients, where none is valid."""
    valid_BHW = label_BHW != ignore_index
    return _sum(scores_BKHW, _softmax(scores_BKHW), label_BHW, valid_BHW, valid_BHW) / _pixels(valid_BHW, average)


def ohem_cross_entropy(
    scores_BKHW: Tensor, label_BHW: Tensor, threshold: float = 0.7, min_kept: int = 100_000, ignore_index: int = 255
) -> Tensor:
    """Mean cross entropy over the pixels whose true class has at most the mining threshold's probability.

    The threshold is `ohem_threshold`. It stays on the device; 0 with zero gradients where no pixel is valid.
    """
    probability_BKHW = _softmax(scores_BKHW)
    bound = ohem_threshold(probability_BKHW, label_BHW, threshold, min_kept, ignore_index)
    valid_BHW = label_BHW != ignore_index
    kept_BHW = valid_BHW & (_own(probability_BKHW, label_BHW, valid_BHW) <= bound)
    return _sum(scores_BKHW, probability_BKHW, label_BHW, valid_BHW, kept_BHW) / _count(kept_BHW)


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
    probability_BKHW, valid_BHW = _softmax(scores_BKHW), label_BHW != ignore_index
    true_BHW = _own(probability_BKHW, label_BHW, valid_BHW)
    kept_BHW = valid_BHW & (true_BHW < mmseg_threshold(true_BHW, valid_BHW, threshold, min_kept))
    return _sum(scores_BKHW, probability_BKHW, label_BHW, valid_BHW, kept_BHW) / _pixels(valid_BHW, average)


def ohem_threshold(
    probability_BKHW: Tensor, label_BHW: Tensor, threshold: float, min_kept: int, ignore_index: int = 255
) -> Tensor:
    """The authors' rule, a 0-d tensor: the (min_kept // 64)-th smallest true-class probability, at least `threshold`.

    It is estimated on a grid of 1/8 the size, probabilities linear and labels nearest, bit for bit as
    scipy.ndimage.zoom computes it; 1 (keep all) where the grid has no more valid samples than that.
    """
    grid = _grid(label_BHW, ignore_index)
    sample_Bhw = _sample(probability_BKHW, grid.label_Bhw, grid.rows, grid.columns)
    return _ranked(sample_Bhw, grid, threshold, min_kept)


def mmseg_threshold(true_BHW: Tensor, valid_BHW: Tensor, threshold: float, min_kept: int) -> Tensor:
    """mmsegmentation's rule, a 0-d tensor: the true-class probability of the valid pixel of rank min_kept * B.

    Ranks count from 0 at the smallest and end at the last valid pixel; at least `threshold`.
    """
    rank = min(min_kept * len(true_BHW), true_BHW.numel() - 1)
    largest = true_BHW.masked_fill(~valid_BHW, 0.0).amax()
    ranked = true_BHW.masked_fill(~valid_BHW, float("inf")).flatten().kthvalue(rank + 1).values
    return torch.minimum(ranked, largest).clamp(min=threshold)


def _softmax(scores_BKHW: Tensor) -> Tensor:
    return _wide(scores_BKHW).softmax(dim=1)


def _wide(scores_BKHW: Tensor) -> Tensor:
    """The scores without their past, in float32 where they were of half precision."""
    return scores_BKHW.detach().to(torch.promote_types(scores_BKHW.dtype, torch.float32))


def _own(value_BKHW: Tensor, label_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Each pixel's value of its own class, (B, H, W); of class 0 where it has none."""
    return value_BKHW.gather(1, label_BHW.masked_fill(~valid_BHW, 0)[:, None])[:, 0]


def _sum(
    scores_BKHW: Tensor, probability_BKHW: Tensor, label_BHW: Tensor, valid_BHW: Tensor, kept_BHW: Tensor
) -> Tensor:
    """The kept pixels' cross entropy, added up; probability is spent."""
    wanted = torch.is_grad_enabled() and scores_BKHW.requires_grad
    total = _spend(_wide(scores_BKHW), probability_BKHW, label_BHW, valid_BHW, kept_BHW, wanted)
    result: Tensor = _Known.apply(scores_BKHW, total, probability_BKHW)
    return result


def _spend(
    scores_BKHW: Tensor,
    probability_BKHW: Tensor,
    label_BHW: Tensor,
    valid_BHW: Tensor,
    kept_BHW: Tensor,
    wanted: bool,
) -> Tensor:
    """The kept pixels' cross entropy, added up; where wanted, probability becomes its gradient by the scores."""
    # by the largest score and its probability: that of the own class may be too small to have a logarithm
    top_BHW = scores_BKHW.amax(dim=1) - probability_BKHW.amax(dim=1).log()
    loss_BHW = top_BHW - _own(scores_BKHW, label_BHW, valid_BHW)
    # a product, not a fill: a score that is not a number must show, and an ignored pixel's loss is 0 whatever it is
    total = (loss_BHW.masked_fill(~valid_BHW, 0.0) * kept_BHW).sum()
    if wanted:
        weight_B1HW = kept_BHW[:, None].to(probability_BKHW.dtype)
        probability_BKHW *= weight_B1HW
        probability_BKHW.scatter_add_(1, label_BHW.masked_fill(~valid_BHW, 0)[:, None], -weight_B1HW)
    return total


class _Known(torch.autograd.Function):
    """A value whose gradient was computed along with it; good for one backward pass, which takes that memory."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of this loss was taken already: compute the loss again")
        return gradient.mul_(factor), None, None


def _count(mask_BHW: Tensor) -> Tensor:
    return mask_BHW.sum().clamp(min=1)


def _pixels(valid_BHW: Tensor, average: str) -> Tensor | int:
    return valid_BHW.numel() if average == "all" else _count(valid_BHW)


# the pixels on both sides of each place on an axis, and their weights in a linear interpolation
Sides = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Grid(NamedTuple):
    """Where OHEM samples, and the labels there, 0 for the ignored; beyond tells the samples that zoom reads as zeros.

    In about one length of seven the last sample is rounded to just beyond the border: a valid one of class 0 with
    probability 0.
    """

    rows: Sides
    columns: Sides
    label_Bhw: Tensor
    valid_Bhw: Tensor
    beyond_hw: Tensor


def _grid(label_BHW: Tensor, ignore_index: int) -> _Grid:
    H, W = label_BHW.shape[1:]
    y_h, x_w = _places(H, label_BHW.device), _places(W, label_BHW.device)
    beyond_hw = (y_h > H - 1)[:, None] | (x_w > W - 1)
    # half up, as scipy rounds for order 0
    label_Bhw = label_BHW[:, (y_h + 0.5).floor().long()][:, :, (x_w + 0.5).floor().long()].masked_fill(beyond_hw, 0)
    valid_Bhw = label_Bhw != ignore_index
    return _Grid(_sides(y_h, H), _sides(x_w, W), label_Bhw.masked_fill(~valid_Bhw, 0), valid_Bhw, beyond_hw)


def _places(length: int, device: torch.device) -> Tensor:
    """Where the samples of one axis lie, first and last on the borders, in pixels (float64)."""
    count = round(length / GRID)
    return torch.arange(count, dtype=torch.float64, device=device) * ((length - 1) / max(count - 1, 1))


def _sides(place: Tensor, length: int) -> Sides:
    before = place.floor()
    past = place - before
    return (before.long(), 1 - past), ((before + 1).clamp(max=length - 1).long(), past)


def _sample(probability_BKRW: Tensor, label_Bhw: Tensor, rows: Sides, columns: Sides) -> Tensor:
    """Bilinear samples of each grid point's own class, (B, h, w), by scipy's operations in scipy's order."""
    batch = torch.arange(len(label_Bhw), device=label_Bhw.device)[:, None, None]
    total_Bhw = torch.zeros(label_Bhw.shape, dtype=torch.float64, device=label_Bhw.device)
    for y, weight_h in rows:
        for x, weight_w in columns:
            corner_Bhw = probability_BKRW[batch, label_Bhw, y[:, None], x]
            total_Bhw = total_Bhw + corner_Bhw * weight_h[:, None] * weight_w
    return total_Bhw.to(probability_BKRW.dtype)


def _ranked(sample_Bhw: Tensor, grid: _Grid, threshold: float, min_kept: int) -> Tensor:
    """The authors' threshold from the samples of the grid."""
    rank = min_kept // GRID**2
    if rank > sample_Bhw.numel():
        return sample_Bhw.new_ones(())
    sample_Bhw = sample_Bhw.masked_fill(grid.beyond_hw, 0.0).masked_fill(~grid.valid_Bhw, float("inf"))
    smallest = sample_Bhw.flatten().kthvalue(rank).values if rank else sample_Bhw.new_zeros(())
    # fills and clamps only: a scalar made into a tensor would wait for the device
    return smallest.clamp(min=threshold).masked_fill(grid.valid_Bhw.sum() <= rank, 1.0)


class _Enlarged:
    """Scores at stride 8 as they are at the label's size, though never more than a band of one image is there.

    An image's rows are interpolated first, then a band's columns. Whole maps would be the larger part of a step's
    memory, and on the CPU of the loss's time, which goes into getting that memory.
    """

    def __init__(self, scores_BKhw: Tensor, size: tuple[int, int], align_corners: bool) -> None:
        self.scores_BKhw = scores_BKhw
        self.size = size
        self.align_corners = align_corners
        row = scores_BKhw.shape[1] * size[1] * _wide(scores_BKhw[:0]).itemsize
        self.band = max(BAND[scores_BKhw.is_cuda] // row, 1)

    @torch.no_grad()
    def own(self, label_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
        """Each pixel's probability of its own class, (B, H, W)."""
        own_BHW = self._map(*label_BHW.shape)
        for image, tall_1KHw in enumerate(self._images()):
            for rows in self._bands(self.size[0]):
                part = slice(image, image + 1), rows
                own_BHW[part] = _own(
                    self._across(tall_1KHw[:, :, rows]).softmax(dim=1), label_BHW[part], valid_BHW[part]
                )
        return own_BHW

    @torch.no_grad()
    def sample(self, grid: _Grid) -> Tensor:
        """The grid's samples of the own classes' probabilities, (B, h, w), from the rows alone on which they lie."""
        (above_h, weight_above_h), (below_h, weight_below_h) = grid.rows
        sample_Bhw = self._map(*grid.label_Bhw.shape)
        for image, tall_1KHw in enumerate(self._images()):
            for rows in self._bands(len(above_h), 2):
                near_R = torch.cat([above_h[rows], below_h[rows]])
                first, second = torch.arange(len(near_R), device=near_R.device).chunk(2)
                sides = (first, weight_above_h[rows]), (second, weight_below_h[rows])
                probability_1KRW = self._across(tall_1KHw[:, :, near_R]).softmax(dim=1)
                part = slice(image, image + 1), rows
                sample_Bhw[part] = _sample(probability_1KRW, grid.label_Bhw[part], sides, grid.columns)
        return sample_Bhw

    def sum(self, label_BHW: Tensor, valid_BHW: Tensor, bound: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The cross entropy of the pixels whose own class has at most the bound's probability, added up; those pixels.

        Without a bound they are the valid ones.
        """
        wanted = torch.is_grad_enabled() and self.scores_BKhw.requires_grad
        with torch.no_grad():
            total, gradient_BKhw, kept_BHW = self._sum(label_BHW, valid_BHW, bound, wanted)
        return _Known.apply(self.scores_BKhw, total, gradient_BKhw), kept_BHW

    def _sum(
        self, label_BHW: Tensor, valid_BHW: Tensor, bound: Tensor | None, wanted: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        (H, W), (h, w) = self.size, self.scores_BKhw.shape[2:]
        kept_BHW, totals, gradients = valid_BHW.clone(), [], []
        up_hH, left_Ww = self._weights(h, H), self._weights(w, W).T
        for image, tall_1KHw in enumerate(self._images()):
            gradient_1KHw = torch.empty_like(tall_1KHw)
            for rows in self._bands(H):
                part = slice(image, image + 1), rows
                label_1RW, valid_1RW, kept_1RW = label_BHW[part], valid_BHW[part], kept_BHW[part]
                scores_1KRW = self._across(tall_1KHw[:, :, rows])
                probability_1KRW = scores_1KRW.softmax(dim=1)
                if bound is not None:
                    kept_1RW &= _own(probability_1KRW, label_1RW, valid_1RW) <= bound
                totals.append(_spend(scores_1KRW, probability_1KRW, label_1RW, valid_1RW, kept_1RW, wanted))
                if wanted:
                    gradient_1KHw[:, :, rows] = probability_1KRW @ left_Ww
            gradients.append(up_hH @ gradient_1KHw)
        return torch.stack(totals).sum(), torch.cat(gradients) if wanted else None, kept_BHW

    def _map(self, *shape: int) -> Tensor:
        return _wide(self.scores_BKhw).new_empty(shape)

    def _images(self) -> Iterator[Tensor]:
        """Every image's scores with the label's rows and the map's columns, (1, K, H, w)."""
        for scores_1Khw in _wide(self.scores_BKhw).split(1):
            yield self._resize(scores_1Khw, (self.size[0], scores_1Khw.shape[3]))

    def _bands(self, count: int, rows: int = 1) -> Iterator[slice]:
        """Cuts so many into parts of which each needs no more than a band, at `rows` rows for each."""
        step = max(self.band // rows, 1)
        return (slice(start, start + step) for start in range(0, count, step))

    def _across(self, tall_1KRw: Tensor) -> Tensor:
        return self._resize(tall_1KRw, (tall_1KRw.shape[2], self.size[1]))

    def _resize(self, scores_BKhw: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(scores_BKhw, size, mode="bilinear", align_corners=self.align_corners)

    def _weights(self, length: int, enlarged: int) -> Tensor:
        """What each place of an axis gives to each of the enlarged one, (length, enlarged)."""
        return self._resize(self._map(length, length).zero_().fill_diagonal_(1)[None, None], (length, enlarged))[0, 0]


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
        """Scores at stride 8, enlarged bilinearly to the label, in float32; a 0-d tensor.

        The gradient is computed along with the loss, and good for one backward pass.
        """
        with torch.autocast(label_BHW.device.type, enabled=False):
            valid_BHW = label_BHW != self.ignore_index
            pixels = _pixels(valid_BHW, self.average)
            main = _Enlarged(main_BKhw, label_BHW.shape[1:], self.align_corners)
            total, kept_BHW = main.sum(label_BHW, valid_BHW, self._bound(main, label_BHW, valid_BHW))
            loss = total / (_count(kept_BHW) if self.ohem and self.rule == "official" else pixels)
            if auxiliary_BKhw is not None:
                auxiliary = _Enlarged(auxiliary_BKhw, label_BHW.shape[1:], self.align_corners)
                loss = loss + self.auxiliary * (auxiliary.sum(label_BHW, valid_BHW)[0] / pixels)
            return loss

    def _bound(self, main: _Enlarged, label_BHW: Tensor, valid_BHW: Tensor) -> Tensor | None:
        """The greatest probability of a pixel that mining keeps."""
        if not self.ohem:
            return None
        if self.rule == "mmseg":
            bound = mmseg_threshold(main.own(label_BHW, valid_BHW), valid_BHW, self.threshold, self.min_kept)
            # that rule keeps what is below
            return torch.nextafter(bound, torch.zeros_like(bound))
        grid = _grid(label_BHW, self.ignore_index)
        return _ranked(main.sample(grid), grid, self.threshold, self.min_kept)
