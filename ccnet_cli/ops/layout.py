"""Tensors as all Numba kernels read them: pixels of unit channel stride at equal distances."""

from torch import Tensor

# B batch, C channels, H height, W width


def pixels(x_BCHW: Tensor) -> Tensor:
    """A view (B, H, W, C) with unit channel stride and evenly spaced pixels, or a copy if the layout is another."""
    x_BHWC = x_BCHW.detach().permute(0, 2, 3, 1)
    H, W, C = x_BHWC.shape[1:]
    step = pixel_step(x_BHWC)
    expected = (H * W * step, W * step, step, 1)
    even = all(n == 1 or a == b for n, a, b in zip(x_BHWC.shape, x_BHWC.stride(), expected, strict=True))
    return x_BHWC if even and step >= C else x_BHWC.contiguous()


def pixel_step(x_BHWC: Tensor) -> int:
    """Elements from one pixel to the next; the stride of an axis of length 1 means nothing."""
    return next((x_BHWC.stride(axis) for axis in (2, 1, 0) if x_BHWC.shape[axis] > 1), x_BHWC.shape[-1])
