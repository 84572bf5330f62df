"""The network's scores enlarged to the label's size a band of rows at a time, and cross entropy over the bands."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ccnet_cli.losses import grid as grids
from ccnet_cli.losses import pixels
from ccnet_cli.losses.grid import Grid

# B batch, K classes, H height, W width of the label; h, w of the network's map or of the grid; R the rows of a band

# bytes of a band's scores, without and with a GPU: on a CPU they fit its cache, and a GPU has enough to do with them
BAND_BYTES = (2 << 20, 64 << 20)


class BandedScores:
    """Scores at stride 8, enlarged to the label's size, of which at most a band of one image exists at a time.

    An image's rows are interpolated first, then a band's columns. Whole maps would take most of a step's memory and, on
    the CPU, most of the loss's time, which goes into getting that memory.
    """

    def __init__(self, scores_BKhw: Tensor, size: tuple[int, ...], align_corners: bool) -> None:
        self.scores_BKhw = scores_BKhw
        self.size = size
        self.align_corners = align_corners
        row = scores_BKhw.shape[1] * size[1] * pixels.widen(scores_BKhw[:0]).itemsize
        self.band = max(BAND_BYTES[scores_BKhw.is_cuda] // row, 1)

    @torch.no_grad()
    def true_probability(self, label_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
        """Each pixel's probability of its true class, (B, H, W)."""
        true_BHW = self._new(*label_BHW.shape)
        for image, tall_1KHw in enumerate(self._images()):
            for rows in self._bands(self.size[0]):
                part = slice(image, image + 1), rows
                probability_1KRW = self._widths(tall_1KHw[:, :, rows]).softmax(dim=1)
                true_BHW[part] = pixels.of_true_class(probability_1KRW, label_BHW[part], valid_BHW[part])
        return true_BHW

    @torch.no_grad()
    def sample(self, grid: Grid) -> Tensor:
        """The grid's samples of the true classes' probabilities, (B, h, w); computes only the rows that they need."""
        (above_h, weight_above_h), (below_h, weight_below_h) = grid.rows
        sample_Bhw = self._new(*grid.label_Bhw.shape)
        for image, tall_1KHw in enumerate(self._images()):
            for rows in self._bands(len(above_h), 2):
                near_R = torch.cat([above_h[rows], below_h[rows]])
                first, second = torch.arange(len(near_R), device=near_R.device).chunk(2)
                sides = (first, weight_above_h[rows]), (second, weight_below_h[rows])
                probability_1KRW = self._widths(tall_1KHw[:, :, near_R]).softmax(dim=1)
                part = slice(image, image + 1), rows
                sample_Bhw[part] = grids.sample(probability_1KRW, grid.label_Bhw[part], sides, grid.columns)
        return sample_Bhw

    def cross_entropy(
        self,
        label_BHW: Tensor,
        valid_BHW: Tensor,
        bound: Tensor | None = None,
        weighing: pixels.Weighing = pixels.PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """Sum over the valid pixels whose true class has at most the probability `bound` (0-d), and their mask."""
        needs_gradient = torch.is_grad_enabled() and self.scores_BKhw.requires_grad
        with torch.no_grad():
            total, gradient_BKhw, kept_BHW = self._sum(label_BHW, valid_BHW, bound, weighing, needs_gradient)
        return pixels.with_gradient(self.scores_BKhw, total, gradient_BKhw), kept_BHW

    def _sum(
        self,
        label_BHW: Tensor,
        valid_BHW: Tensor,
        bound: Tensor | None,
        weighing: pixels.Weighing,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        (H, W), (h, w) = self.size, self.scores_BKhw.shape[2:]
        kept_BHW, totals, gradients = valid_BHW.clone(), [], []
        up_hH, left_Ww = self._weights(h, H), self._weights(w, W).T
        for image, tall_1KHw in enumerate(self._images()):
            gradient_1KHw = torch.empty_like(tall_1KHw)
            for rows in self._bands(H):
                part = slice(image, image + 1), rows
                label_1RW, valid_1RW, kept_1RW = label_BHW[part], valid_BHW[part], kept_BHW[part]
                scores_1KRW = self._widths(tall_1KHw[:, :, rows])
                probability_1KRW = scores_1KRW.softmax(dim=1)
                if bound is not None:
                    kept_1RW &= pixels.of_true_class(probability_1KRW, label_1RW, valid_1RW) <= bound
                totals.append(
                    pixels.sum_in_place(
                        scores_1KRW, probability_1KRW, label_1RW, valid_1RW, kept_1RW, needs_gradient, weighing
                    )
                )
                if needs_gradient:
                    gradient_1KHw[:, :, rows] = probability_1KRW @ left_Ww
            gradients.append(up_hH @ gradient_1KHw)
        return torch.stack(totals).sum(), torch.cat(gradients) if needs_gradient else None, kept_BHW

    def _new(self, *shape: int) -> Tensor:
        return pixels.widen(self.scores_BKhw).new_empty(shape)

    def _images(self) -> Iterator[Tensor]:
        """Every image's scores with the label's rows and the map's columns, (1, K, H, w)."""
        for scores_1Khw in torch.split(pixels.widen(self.scores_BKhw), 1):
            yield self._resize(scores_1Khw, (self.size[0], scores_1Khw.shape[3]))

    def _bands(self, count: int, rows: int = 1) -> Iterator[slice]:
        """Slices of range(count), each of one band where an element takes `rows` rows."""
        step = max(self.band // rows, 1)
        return (slice(start, start + step) for start in range(0, count, step))

    def _widths(self, tall_1KRw: Tensor) -> Tensor:
        return self._resize(tall_1KRw, (tall_1KRw.shape[2], self.size[1]))

    def _resize(self, scores_BKhw: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(scores_BKhw, size, mode="bilinear", align_corners=self.align_corners)

    def _weights(self, length: int, enlarged: int) -> Tensor:
        """Weights with which an axis is enlarged, (length, enlarged)."""
        return self._resize(self._new(length, length).zero_().fill_diagonal_(1)[None, None], (length, enlarged))[0, 0]
