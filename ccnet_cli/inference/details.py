"""Figures beside the confusion matrix of all images: one row for each image, and how well outlines agree."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ccnet_cli.figures.report import WorstImages
from ccnet_cli.inference.metrics import Confusion
from ccnet_cli.media.images import Pixels, cv2

# the width of an outline, as a part of the picture's diagonal (Cheng et al., 2021)
OUTLINE = 0.02


class ImageFigures(NamedTuple):
    """Figures of one image, fractions in 0..1, nan where there was nothing to measure."""

    name: str
    miou: float
    pixel_accuracy: float
    mean_dice: float


def find_hardest(worst: WorstImages, classes: int) -> Callable[[str, Pixels, Pixels, Pixels], None]:
    """What shows `worst` each image: its name, BGR pixels, prediction and label, both train ids (H, W)."""

    def add(name: str, image_bgr: Pixels, prediction: Pixels, label: Pixels) -> None:
        own = Confusion(classes)
        own.update(torch.from_numpy(prediction), torch.from_numpy(label), worst.ignore_index)
        worst.add(name, own.miou(), image_bgr, label, prediction)

    return add


class Details:
    """Collects figures of single images and, if outlines is set, the pixels (K,) that outlines share and cover."""

    def __init__(self, classes: int, ignore_index: int, outlines: bool) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self.outlines = outlines
        self.images: list[ImageFigures] = []
        self.shared, self.covered = np.zeros(classes, np.int64), np.zeros(classes, np.int64)

    def add(self, name: str, prediction: Pixels, label: Pixels) -> None:
        """Add an image; both are train ids (H, W)."""
        own = Confusion(self.classes)
        own.update(torch.from_numpy(prediction), torch.from_numpy(label), self.ignore_index)
        self.images.append(ImageFigures(name, own.miou(), own.pixel_accuracy(), float(own.dice().nanmean())))
        if not self.outlines:
            return
        width = max(1, round(OUTLINE * float(np.hypot(*label.shape))))
        valid = label != self.ignore_index
        for index in np.union1d(prediction[valid], label[valid]).tolist():
            truth, answer = (draw_outline((ids == index) & valid, width) for ids in (label, prediction))
            self.shared[index] += np.count_nonzero(truth & answer)
            self.covered[index] += np.count_nonzero(truth | answer)

    def merge(self, others: Iterable["Details"]) -> None:
        """Take the images and counts of all processes in place of the own."""
        parts = [*others]
        self.images = sorted(row for part in parts for row in part.images)
        self.shared = np.stack([part.shared for part in parts]).sum(0)
        self.covered = np.stack([part.covered for part in parts]).sum(0)

    def boundary_iou(self) -> list[float]:
        """Intersection over union of the outlines of each class; nan where there are none."""
        with np.errstate(invalid="ignore"):
            figures: list[float] = (self.shared / self.covered).tolist()
        return figures


def draw_outline(mask: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.bool_]:
    """The pixels of a mask (H, W) that lie within `width` of what is not in it, or of the picture's border."""
    padded = np.pad(mask.astype(np.uint8), 1)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return np.asarray(mask & (inner == 0))
