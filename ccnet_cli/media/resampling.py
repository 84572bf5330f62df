"""Linear interpolation along one axis, rounded as torch's bilinear upsampling rounds it."""

import torch
from torch import Tensor


def neighbours(pixels: int, size: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `pixels` outputs, the two of `size` inputs that it lies between and the second one's weight.

    The weights are rounded to float32 where torch's bilinear upsampling rounds, so that both agree to the last bits.
    """
    scale = (size - 1) / max(pixels - 1, 1) if align_corners else size / pixels
    # the product of two float32 numbers is exact in float64
    exact = torch.tensor(scale, dtype=torch.float32).double()
    position = torch.arange(pixels, dtype=torch.float64)
    position = exact * position if align_corners else (exact * (position + 0.5) - 0.5).clamp(min=0)
    position = position.float()
    low = position.long().clamp(max=size - 1)
    return low, (low + 1).clamp(max=size - 1), (position - low).clamp(0, 1)


def interpolation(pixels: int, size: int, align_corners: bool) -> Tensor:
    """The matrix (pixels, size) of linear interpolation along one axis."""
    low, high, fraction = neighbours(pixels, size, align_corners)
    matrix = torch.zeros(pixels, size)
    matrix.scatter_add_(1, low[:, None], 1 - fraction[:, None])
    return matrix.scatter_add_(1, high[:, None], fraction[:, None])
