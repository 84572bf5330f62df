"""What training and inference both do to pixels: size a scaled picture, normalise it, swap mirrored classes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def scaled_size(size: tuple[int, int], scale: float, fit: tuple[int, int] | None = None) -> tuple[int, int]:
    """(H, W) times scale, at least one pixel; with fit (longer, shorter), of the largest size that fits into it."""
    height, width = size
    if fit is None:
        return max(1, round(height * scale)), max(1, round(width * scale))
    scale *= min(fit[0] / max(size), fit[1] / min(size))
    # here a half is rounded up, as mmsegmentation does: 1024 x 2048 becomes 1025 x 2049 to fit 2049, 1025
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def normalise(
    image_bgr: npt.NDArray[np.uint8], channel_order: str, mean: Sequence[float], std: Sequence[float]
) -> Floats:
    """(image - mean) / std of uint8 BGR (H, W, 3), as float32 (3, H, W) in channel_order, "bgr" or "rgb"."""
    output = np.empty((3, *image_bgr.shape[:2]), np.float32)
    for channel, (table, plane) in enumerate(zip(normalised_bytes(mean, std), output, strict=True)):
        np.take(table, image_bgr[..., channel if channel_order == "bgr" else 2 - channel], out=plane)
    return output


def normalised_bytes(mean: Sequence[float], std: Sequence[float]) -> Floats:
    """(value - mean) / std of every byte, (3, 256) float32: exact, and quicker than arithmetic on every pixel."""
    values = np.arange(256, dtype=np.float64)
    table = (values - np.array(mean, np.float64)[:, None]) / np.array(std, np.float64)[:, None]
    return table.astype(np.float32)


def swap_pairs(count: int, pairs: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """0 to count - 1 in order, but with the two numbers of each pair swapped."""
    order = np.arange(count)
    for one, other in pairs:
        order[one], order[other] = other, one
    return order
