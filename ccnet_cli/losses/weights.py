"""What each class weighs in a loss: given, or from how often it occurs in the training set."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ccnet_cli.errors import InputError
from ccnet_cli.losses.pixels import PLAIN, Weighing

# ENet's constant (Paszke et al., 2016): the rarest class weighs at most 1 / ln(1.02) = 50.5
ENET = 1.02


class ClassWeights(nn.Module):
    """Weights (K,) float32, saved with the run; "auto" ones are 1 until weigh has seen the training set's pixels."""

    def __init__(self, weights: Literal["auto"] | Sequence[float] | None, smoothing: float = 0.0) -> None:
        super().__init__()
        self.fixed, self.smoothing = weights, smoothing
        self.weights_K: Tensor | None
        self.register_buffer("weights_K", None)

    @property
    def needs_pixels(self) -> bool:
        """Whether weigh must be called before training."""
        return self.fixed == "auto"

    @property
    def weighing(self) -> Weighing:
        """The weights and the smoothing."""
        if self.weights_K is None and not self.smoothing:
            return PLAIN
        return Weighing(self.weights_K, self.smoothing)

    def prepare(self, classes: int) -> None:
        """Make the weights of this number of classes; InputError for a list of another length."""
        if self.fixed is None:
            return
        weights = torch.ones(classes) if isinstance(self.fixed, str) else torch.tensor(self.fixed)
        if len(weights) != classes:
            why = f"{len(weights)} weights for {classes} classes"
            raise InputError("preset key class_weights of a loss term", why, "give one for each class, or auto")
        self.weights_K = weights

    def weigh(self, pixels_K: npt.NDArray[np.int64]) -> None:
        """Set automatic weights from each class's pixels in the training set: ENet's 1 / ln(1.02 + share), mean 1.

        A class without a pixel counts as little as it would with the largest weight, and has none to weigh.
        """
        if self.needs_pixels and self.weights_K is not None:
            weights_K = 1 / np.log(ENET + pixels_K / max(int(pixels_K.sum()), 1))
            self.weights_K.copy_(torch.from_numpy(weights_K / weights_K.mean()))
