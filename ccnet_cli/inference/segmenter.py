"""From pictures to class ids, with one network and one way to look at pictures."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.datasets.settings import Clip
from ccnet_cli.inference.artifact import Network
from ccnet_cli.inference.bands import MIN_PIXELS_OF_BANDS, Read, Region, score_bands, suits
from ccnet_cli.inference.clips import Frame, VideoNetwork, score_video
from ccnet_cli.inference.scores import Predictor, Scores
from ccnet_cli.inference.views import Views, batch_scores, host_input


class Segmenter:
    """A network on a device, the views in which it sees a picture, and the clip that a network of clips sees.

    To the latter, a picture by itself is a clip of equal frames.
    """

    def __init__(self, network: Network, views: Views, device: torch.device, clip: Clip | None = None) -> None:
        self.network = network
        self.views = views
        self.device = device
        self.clip = clip
        self._predictor = Predictor()

    def __call__(self, image_bgr: np.ndarray) -> np.ndarray:
        """The class of each pixel, uint8 (H, W), of a uint8 BGR picture (H, W, 3)."""
        return self.predict(self.score(self.load(image_bgr)))

    def load(self, image_bgr: np.ndarray) -> Tensor:
        """The network's input (1, 3, H, W), still on the CPU; another thread may call this."""
        return host_input(image_bgr, self.network.normalisation, self.device)

    def score(self, input_1CHW: Tensor) -> Scores:
        """The class scores of a loaded picture."""
        if self.clip is not None:
            return VideoNetwork(self.network, self.clip).score(input_1CHW, self.views, self.device)
        return batch_scores(self.network, input_1CHW, self.views, self.device)[0]

    @property
    def takes_bands(self) -> bool:
        """Whether pictures can be seen band by band."""
        return self.clip is None and suits(self.views)

    def sees_bands(self, size: tuple[int, int]) -> bool:
        """Whether a picture is so large that it is better seen band by band, where that gives the same."""
        whole = self.views.fit_to(size).grid(size, size, True).is_whole
        return size[0] * size[1] >= MIN_PIXELS_OF_BANDS and not whole and self.takes_bands

    def predict_bands(self, size: tuple[int, int], read: Read) -> Iterator[tuple[Region, np.ndarray]]:
        """The bands of a picture in order, and the best class of each of their pixels, 0 where none counts.

        Where pictures cannot be seen in bands, all of it.
        """
        if not self.takes_bands:
            region = read(0, size[0])
            yield region, self(region.image)
            return
        for band in score_bands(self.network, read, size, self.views.fit_to(size), self.device):
            blank = np.zeros(band.region.image.shape[:2], np.uint8)
            yield band.region, blank if band.scores is None else self.predict(band.scores)

    def score_video(self, frames: Iterable[tuple[Frame, Tensor]]) -> Iterator[tuple[Frame, Scores]]:
        """What came with each frame's input, and the frame's scores, in order."""
        if self.clip is not None:
            return score_video(VideoNetwork(self.network, self.clip), frames, self.views, self.device)
        return ((frame, self.score(input_1CHW)) for frame, input_1CHW in frames)

    def predict(self, scores: Scores) -> np.ndarray:
        """The best class of each pixel, uint8 (H, W)."""
        return self._predictor.predict(scores)
