"""Pure functions that make a training sample of an image and its label map; the recipe is the authors'."""

from collections.abc import Sequence

import numpy as np

from ccnet_cli.images import cv2

# H, W an image; h, w the crop


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch, independent of any other's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, index))))


def scales(minimum: float, maximum: float, step: float) -> tuple[float, ...]:
    """minimum + k step up to maximum, k = 0, 1, ..."""
    # rounding makes 0.7 to 2.1 by 0.1 the fifteen scales that it says, whatever floats make of it
    count = int(round((maximum - minimum) / step, 6)) + 1
    return tuple(round(minimum + k * step, 9) for k in range(count))


def cut(
    image_HW3: np.ndarray,
    label_HW: np.ndarray,
    crop: tuple[int, int],
    scales: Sequence[float],
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale at random and cut a random part of at most crop (h, w): the same as padding to the crop first."""
    image, label = resize(image_HW3, label_HW, scales[int(random.integers(len(scales)))])
    height, width = label.shape
    top = int(random.integers(max(height - crop[0], 0) + 1))
    left = int(random.integers(max(width - crop[1], 0) + 1))
    return image[top : top + crop[0], left : left + crop[1]], label[top : top + crop[0], left : left + crop[1]]


def mirror(image_3HW: np.ndarray, label_HW: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Left and right exchanged, or not, with equal chance; padding moves with the rest."""
    if random.integers(2):
        return np.ascontiguousarray(image_3HW[:, :, ::-1]), np.ascontiguousarray(label_HW[:, ::-1])
    return image_3HW, label_HW


def resize(image_HW3: np.ndarray, label_HW: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Image bilinear, label nearest, to round(scale x size), at least one pixel."""
    height, width = label_HW.shape
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return image_HW3, label_HW
    # plain INTER_NEAREST takes pixel corners for centres and would shift labels by up to half a pixel against the image
    return (
        cv2.resize(image_HW3, size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(label_HW, size, interpolation=cv2.INTER_NEAREST_EXACT),
    )


def pad(
    image_3HW: np.ndarray, label_HW: np.ndarray, crop: tuple[int, int], ignore_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Extend a normalised image by 0, the mean, and its label by ignore_index, at the bottom and right, to the crop."""
    below, right = (max(whole - part, 0) for whole, part in zip(crop, label_HW.shape, strict=True))
    return (
        np.pad(image_3HW, ((0, 0), (0, below), (0, right))),
        np.pad(label_HW, ((0, below), (0, right)), constant_values=ignore_index),
    )


def normalise(image_bgr: np.ndarray, channel_order: str, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(image - mean) / std of uint8 BGR (H, W, 3), as float32 (3, H, W) in channel_order, "bgr" or "rgb"."""
    values = np.arange(256, dtype=np.float64)
    output = np.empty((3, *image_bgr.shape[:2]), np.float32)
    for channel, plane in enumerate(output):
        source = image_bgr[..., channel if channel_order == "bgr" else 2 - channel]
        # a byte has 256 values: a table is exact, and quicker than arithmetic on every pixel
        np.take(((values - mean[channel]) / std[channel]).astype(np.float32), source, out=plane)
    return output
