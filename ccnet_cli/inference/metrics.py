"""How well predictions agree with the truth: one confusion matrix, and whether the confidence is right."""

import torch
from torch import Tensor


class Confusion:
    """Counts of pixels by class: matrix (K, K) int64, rows the truth, columns the prediction."""

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor, ignore_index: int = 255) -> None:
        """Count every pixel whose label is not ignore_index; both are class indices of one shape, any integer type."""
        if prediction.shape != label.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape")
        classes, device = len(self.matrix), self.matrix.device
        prediction, label = prediction.to(device), label.to(device)
        valid = label != ignore_index
        truth, answer = label[valid].long(), prediction[valid].long()
        # an index out of range would be counted silently in another class's row
        for name, index in (("label", truth), ("prediction", answer)):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < classes:
                raise ValueError(f"{name} outside 0..{classes - 1}")
        self.matrix += torch.bincount(truth * classes + answer, minlength=classes**2).view(classes, classes)

    def merge(self, other: "Confusion") -> None:
        """Add the counts of another matrix over the same classes."""
        if other.matrix.shape != self.matrix.shape:
            raise ValueError("confusion matrices of different sizes")
        self.matrix += other.matrix.to(self.matrix.device)

    def iou(self) -> Tensor:
        """Intersection over union of each class, (K,) float64; nan where a class is neither present nor predicted."""
        hits = self.matrix.diagonal()
        return _ratio(hits, self.matrix.sum(0) + self.matrix.sum(1) - hits)

    def dice(self) -> Tensor:
        """Dice coefficient, which is F1, of each class, (K,) float64; nan where iou is."""
        return _ratio(2 * self.matrix.diagonal(), self.matrix.sum(0) + self.matrix.sum(1))

    def precision(self) -> Tensor:
        """The share of each class's predicted pixels that are right, (K,) float64; nan where it is not predicted."""
        return _ratio(self.matrix.diagonal(), self.matrix.sum(0))

    def recall(self) -> Tensor:
        """The share of each class's pixels that are predicted so, (K,) float64; nan where it is not present."""
        return _ratio(self.matrix.diagonal(), self.matrix.sum(1))

    def miou(self) -> float:
        """Mean IoU over the classes that are present or predicted (the Cityscapes rule); nan without any."""
        return float(self.iou().nanmean())

    def pixel_accuracy(self) -> float:
        """The share of counted pixels that are right; nan without any."""
        return float(_ratio(self.matrix.trace(), self.matrix.sum()))

    def mean_accuracy(self) -> float:
        """Mean over the classes present of the share of their pixels found; nan without any."""
        return float(_ratio(self.matrix.diagonal(), self.matrix.sum(1)).nanmean())


class Calibration:
    """Expected calibration error (Guo et al., ICML 2017): sum over bins of |right - confidence| / all pixels.

    A pixel's confidence is the largest probability of its softmax; bin m of 15 takes those above (m - 1) / 15 and up to
    m / 15. Sums are whole numbers, of UNIT for the confidence, so that no order of the pixels changes a bit: counts
    (3, 15) int64 are pixels, right ones, and confidence.
    """

    BINS = 15
    # float32 has no finer steps at 1; a sum over 2**38 pixels does not overflow
    UNIT = 1 << 24

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(3, self.BINS, dtype=torch.int64, device=device)

    def update(self, scores_KHW: Tensor, label_HW: Tensor, ignore_index: int = 255) -> None:
        """Count every pixel whose label is not ignore_index."""
        best, prediction = scores_KHW.max(dim=0)
        # float64, so that what a vector's end rounds otherwise is far below a UNIT
        confidence = 1 / (scores_KHW.double() - best).exp().sum(dim=0)
        label = label_HW.to(best.device)
        valid = label != ignore_index
        steps = (confidence[valid] * self.UNIT).round().long()
        right = (prediction[valid] == label[valid]).long()
        bins = (steps * self.BINS - 1) // self.UNIT
        for row, values in zip(self.counts, (torch.ones_like(right), right, steps), strict=True):
            row.index_add_(0, bins.to(row.device), values.to(row.device))

    def error(self) -> float:
        """The error, 0..1; nan without a pixel."""
        pixels, right, confidence = self.counts.double()
        return float((right - confidence / self.UNIT).abs().sum() / pixels.sum())


def _ratio(part: Tensor, total: Tensor) -> Tensor:
    """part / total in float64, nan where total is 0; float32 would lose counts above 2**24."""
    return part.double() / total.double()
