"""The losses' rules once more, with scipy and numpy, and the cases that they are tried on."""

import numpy as np
import torch
from scipy.ndimage import zoom
from scipy.special import log_softmax
from torch.nn import functional as F

CLASSES = 5
CASES = ["random", "easy", "hard", "uniform", "flat", "ties", "few valid", "one valid", "all void"]
# height, width, batch, classes; the last sample of 109, 115, 117 and 256 is rounded to beyond the border, those of 22
# and 26 fall between two pixels, and an eighth of 20 and 36 is rounded to even
SHAPES = [
    (64, 64, 2, 5),
    (97, 129, 1, 19),
    (193, 193, 1, 7),
    (40, 57, 3, 2),
    (109, 115, 2, 3),
    (256, 33, 1, 4),
    (22, 26, 2, 3),
    (20, 36, 2, 3),
    (117, 1, 3, 2),
    (1, 40, 2, 6),
    (33, 1, 1, 3),
    (3, 9, 2, 4),
    (1, 1, 1, 2),
    (7, 300, 2, 3),
]
MINED = [(1, 0.7), (64, 0.7), (1000, 0.3), (1000, 0.7), (6400, 0.95), (10**6, 0.7)]


def authors_rule(
    probability: np.ndarray, label: np.ndarray, threshold: float, min_kept: int
) -> tuple[float, np.ndarray]:
    """The released code's threshold, on a 1/8 grid by scipy.ndimage.zoom, and the mask of the pixels it keeps."""
    small = zoom(probability, (1, 1, 1 / 8, 1 / 8), order=1)
    small_label = zoom(label, (1, 1 / 8, 1 / 8), order=0).ravel()
    columns = np.moveaxis(small, 1, 0).reshape(probability.shape[1], -1)
    valid = small_label != 255
    rank = min_kept // 64
    if rank >= valid.sum():
        bound = 1.0
    else:
        own = columns[:, valid][small_label[valid], np.arange(valid.sum())]
        bound = max(threshold, float(np.partition(own, rank - 1)[rank - 1])) if rank else threshold
    return bound, (label != 255) & (own_class(probability, label) <= probability.dtype.type(bound))


def mmseg_rule(probability: np.ndarray, label: np.ndarray, threshold: float, min_kept: int) -> tuple[float, np.ndarray]:
    """mmsegmentation's threshold, by sorting the batch's valid pixels, and the mask of the pixels it keeps."""
    valid, own = label != 255, own_class(probability, label)
    ranked = np.sort(own[valid])
    least = ranked[min(min_kept * len(label), len(ranked) - 1)] if len(ranked) else 0
    bound = max(np.float32(threshold), least)
    return float(bound), valid & (own < bound)


def own_class(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.take_along_axis(probability, np.where(label == 255, 0, label)[:, None], 1)[:, 0]


def weighted(scores: torch.Tensor, label: torch.Tensor, weight: np.ndarray) -> tuple[float, np.ndarray]:
    """The weighted sum of the pixels' cross entropies in float64, and its gradient."""
    logarithm = log_softmax(scores.detach().double().numpy(), axis=1)
    one_hot = np.moveaxis(np.eye(scores.shape[1])[np.where(label == 255, 0, label)], 3, 1)
    return -(weight[:, None] * one_hot * logarithm).sum(), weight[:, None] * (np.exp(logarithm) - one_hot)


def case(name: str, size: tuple[int, int], batch: int = 2, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(name) + size[0])
    label = torch.randint(0, classes, (batch, *size), generator=generator)
    scores = torch.randn(batch, classes, *size, generator=generator)
    if name == "flat":
        scores = scores[:1, :, :1, :1].expand(batch, -1, *size).clone()
    if name in ("easy", "ties"):
        scores = scores * 0.3 + 6 * F.one_hot(label, classes).permute(0, 3, 1, 2)
    if name == "hard":
        scores = scores - 6 * F.one_hot(label, classes).permute(0, 3, 1, 2)
    if name == "uniform":
        scores = scores * 1e-3
    if name == "ties":
        scores = scores.round()
    if name == "all void":
        label.fill_(255)
    elif name == "one valid":
        label.view(-1)[1:] = 255
    else:
        share = 0.02 if name == "few valid" else 0.8
        label[torch.rand(label.shape, generator=generator) > share] = 255
    return scores, label


def mined(probability: torch.Tensor, label: torch.Tensor) -> list[tuple[int, float]]:
    """min_kept and threshold to try: MINED, some whose rank decides, and a threshold that is a pixel's probability."""
    own = np.sort(own_class(probability.numpy(), label.numpy())[label.numpy() != 255])
    low = [(int(own.size * share), 1e-3) for share in (0.3, 0.6, 0.9)]
    return [*MINED, *low, *((64, float(p)) for p in own[len(own) // 2 :][:1])]
