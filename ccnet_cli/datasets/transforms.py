"""Pure functions that turn an image and its label map into a training sample: the authors' recipe or mmsegmentation's.

resize scales a whole picture; image_part and label_part compute only the part of it that a crop needs.
"""

import copy
from collections.abc import Sequence

import numpy as np

from ccnet_cli.media.images import cv2
from ccnet_cli.media.pixels import scaled_size, swap_pairs

# H, W an image; h, w the crop; images are BGR, all arrays uint8

# how often a crop is redrawn that one class fills
MAX_REDRAWS = 10
# mmsegmentation's ranges: added to, multiplied with, multiplied with, and added on OpenCV's circle of 180 hues
BRIGHTNESS = 32
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch, independent of any other's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, index))))


def scales(minimum: float, maximum: float, step: float) -> tuple[float, ...]:
    """minimum + k step up to maximum, k = 0, 1, ..."""
    # without rounding, floats would make fewer than fifteen scales of 0.7 to 2.1 by 0.1
    count = int(round((maximum - minimum) / step, 6)) + 1
    return tuple(round(minimum + k * step, 9) for k in range(count))


def random_scale(minimum: float, maximum: float, step: float, random: np.random.Generator) -> float:
    """One of the scales with equal chances; with step 0 any number of the range."""
    if step == 0:
        return float(random.uniform(minimum, maximum))
    choices = scales(minimum, maximum, step)
    return choices[int(random.integers(len(choices)))]


def cut(
    image_HW3: np.ndarray,
    label_HW: np.ndarray,
    size: tuple[int, int],
    crop: tuple[int, int],
    random: np.random.Generator,
    category_ratio: float = 1.0,
    ignore_index: int = 255,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a random part of at most crop (h, w) from the picture scaled to size; as cropping the padded picture does."""
    rows, columns, label = place(label_HW, size, crop, random, category_ratio, ignore_index)
    return image_part(image_HW3, size, rows, columns), label


def place(
    label_HW: np.ndarray,
    size: tuple[int, int],
    crop: tuple[int, int],
    random: np.random.Generator,
    category_ratio: float = 1.0,
    ignore_index: int = 255,
) -> tuple[slice, slice, np.ndarray]:
    """The rows and columns of a random part of at most crop (h, w) of the picture scaled to size, and its label.

    With category_ratio below 1 the part is redrawn, at most MAX_REDRAWS times, while one class covers that fraction.
    """
    height, width = (min(part, whole) for part, whole in zip(crop, size, strict=True))
    for _ in range(1 + MAX_REDRAWS):
        top = int(random.integers(size[0] - height + 1))
        left = int(random.integers(size[1] - width + 1))
        window = slice(top, top + height), slice(left, left + width)
        label = label_part(label_HW, size, *window)
        if category_ratio == 1 or largest_fraction(label, ignore_index) < category_ratio:
            break
    return *window, label


def image_part(image_HW3: np.ndarray, size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    """The rows and columns of an image scaled to size, equal to resize's to the last bit; little else is scaled."""
    whole = image_HW3.shape[:2]
    if size == whole:
        return image_HW3[rows, columns]
    # given factors in place of a size, OpenCV puts pixels where it does in the whole picture, but for the last edge
    factors = [new / old for new, old in zip(size, whole, strict=True)]
    needed = [
        min(old, -(-part.stop * old // new) + 1) for part, new, old in zip((rows, columns), size, whole, strict=True)
    ]
    # OpenCV only copies if the size would not change
    if all(round(old * factor) == old for old, factor in zip(needed, factors, strict=True)):
        needed = list(whole)
    region = image_HW3[: needed[0], : needed[1]]
    scaled = cv2.resize(region, None, fx=factors[1], fy=factors[0], interpolation=cv2.INTER_LINEAR)
    return np.asarray(scaled)[rows, columns]


def label_part(label_HW: np.ndarray, size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    """The rows and columns of a label map scaled to size, equal to resize's; only these are looked up."""
    if size == label_HW.shape:
        return label_HW[rows, columns]
    y, x = (_nearest(old, new)[part] for part, old, new in zip((rows, columns), label_HW.shape, size, strict=True))
    return np.asarray(np.take(label_HW[y[0] : y[-1] + 1], x, axis=1)[y - y[0]])


def _nearest(old: int, new: int) -> np.ndarray:
    """For each of `new` pixels in a row, the index of its source among `old` ones."""
    indices = np.arange(old, dtype=np.int32)[None]
    return np.asarray(cv2.resize(indices, (new, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0])


def largest_fraction(label_HW: np.ndarray, ignore_index: int) -> float:
    """The fraction of the most frequent class among the pixels that are not ignored; 1 if all are ignored."""
    counts = cv2.calcHist([label_HW], [0], None, [256], [0, 256]).ravel()
    counts[ignore_index] = 0
    total = counts.sum(dtype=np.float64)
    return float(counts.max() / total) if total else 1.0


def distort(image_HW3: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of BGR, each with equal chances; contrast second or last."""
    image = image_HW3
    if random.integers(2):
        image = cv2.LUT(image, _linear(1.0, random.uniform(-BRIGHTNESS, BRIGHTNESS)))
    contrast_first = random.integers(2)
    if contrast_first and random.integers(2):
        image = cv2.LUT(image, _linear(random.uniform(*CONTRAST)))
    if random.integers(2):
        image = _map_hsv(image, 1, _linear(random.uniform(*SATURATION)))
    if random.integers(2):
        # without the upper end, as in mmsegmentation
        hues = (np.arange(256) + random.integers(-HUE, HUE)) % 180
        image = _map_hsv(image, 0, hues.astype(np.uint8))
    if not contrast_first and random.integers(2):
        image = cv2.LUT(image, _linear(random.uniform(*CONTRAST)))
    return np.asarray(image)


def distort_alike(frames: Sequence[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
    """Each frame distorted by the same random numbers."""
    states = [*(copy.deepcopy(random) for _ in frames[1:]), random]
    return [distort(frame, state) for frame, state in zip(frames, states, strict=True)]


def _linear(slope: float, offset: float = 0.0) -> np.ndarray:
    """The table of slope * value + offset, clipped to 0 and 255, fractions dropped."""
    values = np.arange(256, dtype=np.float32) * np.float32(slope) + np.float32(offset)
    return values.clip(0, 255).astype(np.uint8)


def _map_hsv(image_HW3: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """BGR with the table applied to its hue (channel 0) or saturation (1)."""
    hsv = cv2.cvtColor(image_HW3, cv2.COLOR_BGR2HSV)
    hsv[..., channel] = table[hsv[..., channel]]
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))


def mirror(
    image_HW3: np.ndarray, label_HW: np.ndarray, pairs: Sequence[tuple[int, int]] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Swap left and right; pairs are the classes that swap too, such as left and right arm."""
    label = cv2.flip(label_HW, 1)
    if pairs:
        label = cv2.LUT(label, swap_pairs(256, pairs).astype(np.uint8))
    return cv2.flip(image_HW3, 1), label


def resize(
    image_HW3: np.ndarray, label_HW: np.ndarray, scale: float, fit: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The image bilinear and the label nearest, in the scaled size."""
    height, width = scaled_size((label_HW.shape[0], label_HW.shape[1]), scale, fit)
    if (height, width) == label_HW.shape:
        return image_HW3, label_HW
    # plain INTER_NEAREST takes pixel corners for centres and would shift labels by up to half a pixel against the image
    return (
        cv2.resize(image_HW3, (width, height), interpolation=cv2.INTER_LINEAR),
        cv2.resize(label_HW, (width, height), interpolation=cv2.INTER_NEAREST_EXACT),
    )


def pad(
    image_HW3: np.ndarray, label_HW: np.ndarray, crop: tuple[int, int], left: int, ignore_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Extend to the crop at the bottom, by left at the left and the rest at the right, with 0 and with ignore_index."""
    below, beside = (max(whole - part, 0) for whole, part in zip(crop, label_HW.shape, strict=True))
    if not below and not beside:
        return image_HW3, label_HW
    edges = 0, below, left, beside - left, cv2.BORDER_CONSTANT
    return cv2.copyMakeBorder(image_HW3, *edges, value=0), cv2.copyMakeBorder(label_HW, *edges, value=ignore_index)
