"""From pictures to class ids, with one network and one way to look at pictures."""

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.inference.artifact import Network
from ccnet_cli.inference.scores import Predictor, Scores
from ccnet_cli.inference.views import Views, batch_scores, host_input


class Segmenter:
    """A network on a device, and the views in which it sees a picture."""

    def __init__(self, network: Network, views: Views, device: torch.device) -> None:
        self.network = network
        self.views = views
        self.device = device
        self._predictor = Predictor()

    def __call__(self, image_bgr: np.ndarray) -> np.ndarray:
        """The class of each pixel, uint8 (H, W), of a uint8 BGR picture (H, W, 3)."""
        return self.predict(self.score(self.load(image_bgr)))

    def load(self, image_bgr: np.ndarray) -> Tensor:
        """The network's input (1, 3, H, W), still on the CPU; another thread may call this."""
        return host_input(image_bgr, self.network.normalisation, self.device)

    def score(self, input_1CHW: Tensor) -> Scores:
        """The class scores of a loaded picture."""
        return batch_scores(self.network, input_1CHW, self.views, self.device)[0]

    def predict(self, scores: Scores) -> np.ndarray:
        """The best class of each pixel, uint8 (H, W)."""
        return self._predictor.predict(scores)
