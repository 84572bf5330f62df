"""What a training sample may go through beyond scaling, cropping, colours and mirroring; off unless a preset asks."""

from collections.abc import Sequence

import numpy as np

from ccnet_cli.datasets.settings import Augment
from ccnet_cli.media.images import cv2, recompress

# H, W a sample

# the least and the greatest side of what erase hides, as a fraction of the sample's
ERASED = (0.1, 0.4)
# what uncovered corners and hidden parts show
GREY = 114

Frames = list[np.ndarray]


def stretch(recipe: Augment, size: tuple[int, int], random: np.random.Generator) -> tuple[int, int]:
    """A size (H, W) of about the same area, wider or narrower."""
    if recipe.aspect == 1 or not _happens(recipe, random):
        return size
    factor = recipe.aspect ** random.uniform(-0.5, 0.5)
    return max(1, round(size[0] / factor)), max(1, round(size[1] * factor))


def apply(
    recipe: Augment, frames: Frames, label_HW: np.ndarray, ignored: int, random: np.random.Generator
) -> tuple[Frames, np.ndarray]:
    """Frames (H, W, 3) and the label of one, changed alike; corners that a rotation uncovers are ignored."""
    if recipe.rotate and _happens(recipe, random):
        frames, label_HW = rotate(frames, label_HW, random.uniform(-recipe.rotate, recipe.rotate), ignored)
    if recipe.blur and _happens(recipe, random):
        sigma = random.uniform(0, recipe.blur)
        frames = [cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames] if sigma > 0.1 else frames
    if recipe.noise and _happens(recipe, random):
        spread = random.uniform(0, recipe.noise)
        frames = [_add(frame, random.normal(0, spread, frame.shape)) for frame in frames]
    if recipe.jpeg < 100 and _happens(recipe, random):
        quality = int(random.integers(recipe.jpeg, 101))
        frames = [recompress(frame, quality) for frame in frames]
    if recipe.erase and _happens(recipe, random):
        frames = erase(frames, random)
    return frames, label_HW


def rotate(
    frames: Sequence[np.ndarray], label_HW: np.ndarray, degrees: float, ignored: int
) -> tuple[Frames, np.ndarray]:
    """Turn frames and label about their middle, in the same size."""
    height, width = label_HW.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)

    def warp(picture: np.ndarray, flags: int, value: tuple[int, ...]) -> np.ndarray:
        size, constant = (width, height), cv2.BORDER_CONSTANT
        return np.asarray(cv2.warpAffine(picture, turn, size, None, flags, constant, value))

    label = warp(label_HW, cv2.INTER_NEAREST, (ignored,))
    return [warp(frame, cv2.INTER_LINEAR, (GREY,) * 3) for frame in frames], label


def erase(frames: Sequence[np.ndarray], random: np.random.Generator) -> Frames:
    """Hide the same rectangle of each frame behind grey."""
    height, width = frames[0].shape[:2]
    rows, columns = (max(1, round(side * random.uniform(*ERASED))) for side in (height, width))
    top, left = (int(random.integers(side - part + 1)) for side, part in ((height, rows), (width, columns)))
    hidden = [frame.copy() for frame in frames]
    for frame in hidden:
        frame[top : top + rows, left : left + columns] = GREY
    return hidden


def _happens(recipe: Augment, random: np.random.Generator) -> bool:
    return bool(random.random() < recipe.chance)


def _add(frame: np.ndarray, noise: np.ndarray) -> np.ndarray:
    noisy: np.ndarray = np.rint(frame + noise).clip(0, 255).astype(np.uint8)
    return noisy
