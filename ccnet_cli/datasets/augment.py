"""What a training sample may go through beyond scaling, cropping, colours and mirroring; off unless a preset asks."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from ccnet_cli.media.images import cv2
from ccnet_cli.parts import Section

# H, W a sample

# the least and the greatest side of what erase hides, as a fraction of the sample's
ERASED = (0.1, 0.4)
# what uncovered corners and hidden parts show
GREY = 114

Frames = list[np.ndarray]


class Augment(Section):
    """Each change happens with the probability `chance`; at its default it never does.

    rotate is degrees either way; aspect how much wider or narrower; blur the largest sigma in pixels; noise the largest
    standard deviation in grey levels; jpeg the lowest quality; erase hides a rectangle, whose label stays.
    """

    chance: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.5
    rotate: Annotated[float, Field(strict=True, ge=0, le=180, allow_inf_nan=False)] = 0.0
    aspect: Annotated[float, Field(strict=True, ge=1, le=4, allow_inf_nan=False)] = 1.0
    blur: Annotated[float, Field(strict=True, ge=0, le=32, allow_inf_nan=False)] = 0.0
    noise: Annotated[float, Field(strict=True, ge=0, le=128, allow_inf_nan=False)] = 0.0
    jpeg: Annotated[int, Field(strict=True, ge=1, le=100)] = 100
    erase: Annotated[bool, Field(strict=True)] = False

    def stretch(self, size: tuple[int, int], random: np.random.Generator) -> tuple[int, int]:
        """A size (H, W) of about the same area, wider or narrower."""
        if self.aspect == 1 or not self._happens(random):
            return size
        factor = self.aspect ** random.uniform(-0.5, 0.5)
        return max(1, round(size[0] / factor)), max(1, round(size[1] * factor))

    def apply(
        self, frames: Frames, label_HW: np.ndarray, ignored: int, random: np.random.Generator
    ) -> tuple[Frames, np.ndarray]:
        """Frames (H, W, 3) and the label of one, changed alike; corners that a rotation uncovers are ignored."""
        if self.rotate and self._happens(random):
            frames, label_HW = rotate(frames, label_HW, random.uniform(-self.rotate, self.rotate), ignored)
        if self.blur and self._happens(random):
            sigma = random.uniform(0, self.blur)
            frames = [cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames] if sigma > 0.1 else frames
        if self.noise and self._happens(random):
            spread = random.uniform(0, self.noise)
            frames = [_add(frame, random.normal(0, spread, frame.shape)) for frame in frames]
        if self.jpeg < 100 and self._happens(random):
            quality = int(random.integers(self.jpeg, 101))
            frames = [_compress(frame, quality) for frame in frames]
        if self.erase and self._happens(random):
            frames = erase(frames, random)
        return frames, label_HW

    def _happens(self, random: np.random.Generator) -> bool:
        return bool(random.random() < self.chance)


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


def _add(frame: np.ndarray, noise: np.ndarray) -> np.ndarray:
    noisy: np.ndarray = np.rint(frame + noise).clip(0, 255).astype(np.uint8)
    return noisy


def _compress(frame: np.ndarray, quality: int) -> np.ndarray:
    _, content = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))
