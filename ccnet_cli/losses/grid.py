"""The grid of 1/8 the label's size on which the authors' OHEM estimates its threshold, as scipy.ndimage.zoom does."""

from typing import NamedTuple

import torch
from torch import Tensor

# B batch, K classes, H height, W width of the label; h, w of the grid; R the rows of a band
STRIDE = 8
# for each sample of an axis, the pixels on its two sides and their weights in a linear interpolation
Sides = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class Grid(NamedTuple):
    """Positions of the samples, and the labels there, 0 where ignored; beyond marks samples that zoom reads as zeros.

    In about one length of seven the last sample is rounded to just beyond the border: a valid one of class 0 with
    probability 0.
    """

    rows: Sides
    columns: Sides
    label_Bhw: Tensor
    valid_Bhw: Tensor
    beyond_hw: Tensor


def make_grid(label_BHW: Tensor, ignore_index: int) -> Grid:
    """The grid of a label map; its labels are the nearest."""
    H, W = label_BHW.shape[1:]
    y_h, x_w = _positions(H, label_BHW.device), _positions(W, label_BHW.device)
    beyond_hw = (y_h > H - 1)[:, None] | (x_w > W - 1)
    # half up, as scipy rounds for order 0
    label_Bhw = label_BHW[:, (y_h + 0.5).floor().long()][:, :, (x_w + 0.5).floor().long()].masked_fill(beyond_hw, 0)
    valid_Bhw = label_Bhw != ignore_index
    return Grid(_sides(y_h, H), _sides(x_w, W), label_Bhw.masked_fill(~valid_Bhw, 0), valid_Bhw, beyond_hw)


def _positions(length: int, device: torch.device) -> Tensor:
    """Where the samples of an axis lie, first and last on the borders, in pixels (float64)."""
    samples = round(length / STRIDE)
    return torch.arange(samples, dtype=torch.float64, device=device) * ((length - 1) / max(samples - 1, 1))


def _sides(position: Tensor, length: int) -> Sides:
    before = position.floor()
    past = position - before
    return (before.long(), 1 - past), ((before + 1).clamp(max=length - 1).long(), past)


def sample(probability_BKRW: Tensor, label_Bhw: Tensor, rows: Sides, columns: Sides) -> Tensor:
    """Bilinear samples of each grid point's true class, (B, h, w), by scipy's operations in scipy's order."""
    batch = torch.arange(len(label_Bhw), device=label_Bhw.device)[:, None, None]
    total_Bhw = torch.zeros(label_Bhw.shape, dtype=torch.float64, device=label_Bhw.device)
    for y, weight_h in rows:
        for x, weight_w in columns:
            corner_Bhw = probability_BKRW[batch, label_Bhw, y[:, None], x]
            total_Bhw = total_Bhw + corner_Bhw * weight_h[:, None] * weight_w
    return total_Bhw.to(probability_BKRW.dtype)


def threshold_of(sample_Bhw: Tensor, grid: Grid, threshold: float, min_kept: int) -> Tensor:
    """The authors' threshold, 0-d, from the samples of the grid: see ohem_threshold."""
    rank = min_kept // STRIDE**2
    if rank > sample_Bhw.numel():
        return sample_Bhw.new_ones(())
    sample_Bhw = sample_Bhw.masked_fill(grid.beyond_hw, 0.0).masked_fill(~grid.valid_Bhw, float("inf"))
    smallest = sample_Bhw.flatten().kthvalue(rank).values if rank else sample_Bhw.new_zeros(())
    # fills and clamps only: making a tensor of a number would wait for the device
    return smallest.clamp(min=threshold).masked_fill(grid.valid_Bhw.sum() <= rank, 1.0)
