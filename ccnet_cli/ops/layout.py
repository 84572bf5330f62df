"""Tensors as all Numba kernels read them: positions of unit channel stride at equal distances."""

from math import prod

from torch import Tensor

# B batch, C channels, S the axes of the grid


def pixels(x_BCS: Tensor) -> Tensor:
    """A view (B, *S, C) with unit channel stride and evenly spaced positions, or a copy if the layout is another."""
    x_BSC = x_BCS.detach().movedim(1, -1)
    step = pixel_step(x_BSC)
    expected = [step * prod(x_BSC.shape[axis + 1 : -1]) for axis in range(x_BSC.dim() - 1)]
    even = all(n == 1 or a == b for n, a, b in zip(x_BSC.shape, x_BSC.stride(), [*expected, 1], strict=True))
    return x_BSC if even and step >= x_BSC.shape[-1] else x_BSC.contiguous()


def pixel_step(x_BSC: Tensor) -> int:
    """Elements from one position to the next; the stride of an axis of length 1 means nothing."""
    axes = reversed(range(x_BSC.dim() - 1))
    return next((x_BSC.stride(axis) for axis in axes if x_BSC.shape[axis] > 1), x_BSC.shape[-1])
