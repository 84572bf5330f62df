"""CCNet's head for clips: recurrent criss-cross attention along time, height and width (TPAMI 2020).

Its weights have the names and shapes of `rcca`: a CCNet for images is a start for one for clips.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ccnet_cli.models.attention import CrissCrossAttention
from ccnet_cli.models.clips import FoldedClips, RecurrentClips
from ccnet_cli.models.heads.rcca import RCCAHead
from ccnet_cli.models.heads.settings import RCCA3D as Settings
from ccnet_cli.models.heads.wrapped import FoldedWrapped
from ccnet_cli.models.layers import Make
from ccnet_cli.parts import Outputs


class ClipHead(RCCAHead):
    """The deepest map of each frame, (B, T, C, h, w) -> the labelled frame's scores (B, K, h, w).

    A map (B, C, h, w) is a clip of one frame. labelled is the labelled frame's place in the clip.
    """

    takes_clips = True
    labelled = -1
    rcca: RecurrentClips

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The labelled frame's scores."""
        return self.outputs(features).main

    def outputs(self, features: Sequence[Tensor]) -> Outputs:
        """The labelled frame's scores, with what its positions gathered as the features that losses look at."""
        deepest_BTChw = clip_of(features[-1])
        frame = self.labelled % deepest_BTChw.shape[1]
        gathered_BChw = self.rcca.at(self._reduce(deepest_BTChw), frame)
        return Outputs(self.classify(deepest_BTChw[:, frame], gathered_BChw), {}, gathered_BChw)

    def score_frames(self, features: Sequence[Tensor]) -> Tensor:
        """The scores of all frames, (B, T, K, h, w)."""
        deepest_BTChw = clip_of(features[-1])
        gathered_BTChw = self.rcca(self._reduce(deepest_BTChw)).transpose(1, 2)
        scores = self.classify(deepest_BTChw.flatten(0, 1), gathered_BTChw.flatten(0, 1))
        every: Tensor = scores.unflatten(0, deepest_BTChw.shape[:2])
        return every

    def attend(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The labelled frame's scores and the attention of each pass: (B, P, T, h, w), of one frame (B, P, h, w).

        P counts a line through time, a column and a row; of one frame a column and a row.
        """
        deepest_BTChw = clip_of(features[-1])
        T = deepest_BTChw.shape[1]
        frame = self.labelled % T
        gathered, maps = self.rcca.attend(self._reduce(deepest_BTChw))
        scores = self.classify(deepest_BTChw[:, frame], gathered[:, :, frame])
        return scores, [each[:, 1:, 0] for each in maps] if T == 1 else maps

    def projections(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Query and key of each pass, each (B, C', T, h, w), of one frame (B, C', h, w)."""
        x, pairs = self._reduce(clip_of(features[-1])), []
        for _ in range(self.recurrence):
            query, key, _ = self.attention.project(x)
            pairs.append((query, key) if x.shape[2] > 1 else (query[:, :, 0], key[:, :, 0]))
            x = self.attention(x)
        return pairs

    def fold(self, make: Make) -> nn.Module:
        """Itself for inference."""
        return FoldedClipHead(self, make)

    def _reduce(self, deepest_BTChw: Tensor) -> Tensor:
        reduced: Tensor = self.conva(deepest_BTChw.flatten(0, 1)).unflatten(0, deepest_BTChw.shape[:2])
        return reduced.transpose(1, 2)


class FoldedClipHead(FoldedWrapped):
    """The head of folded convolutions; `encode` is what one frame gives to every clip that it is in."""

    # maps are put together in clips first
    readers = ()

    rcca: FoldedClips

    def __init__(self, head: ClipHead, make: Make) -> None:
        super().__init__(head, make)
        self.labelled = head.labelled

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The labelled frame's scores, float32."""
        deepest_BTChw = clip_of(features[-1])
        encoded, T = self.encode([deepest_BTChw.flatten(0, 1)]), deepest_BTChw.shape[1]
        frames = [tuple(each[frame::T] for each in encoded) for frame in range(T)]
        place = self.labelled % T
        return self.decode(deepest_BTChw[:, place], frames, place)

    def release_maps(self) -> None:
        """Nothing: a frame's map is read again for each clip."""

    def encode(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the attention sees of each of B frames, whatever clip it is in."""
        return self.rcca.encode(self.conva(features[-1]))

    def decode(
        self, deepest_BChw: Tensor, frames: Sequence[tuple[Tensor, ...]], place: int, repeats: int = 1
    ) -> Tensor:
        """The scores of a frame of a clip, from its own deepest map and what each frame was encoded to.

        A frame alone may stand for a clip that repeats it.
        """
        gathered = self.rcca.at(frames, place, repeats)
        scores: Tensor = self.classify(self.bottleneck(deepest_BChw, self.convb(gathered)).float())
        return scores


def clip_of(x: Tensor) -> Tensor:
    """(B, T, C, h, w), of one frame where the map is an image's."""
    return x[:, None] if x.dim() == 4 else x


def first(settings: Settings) -> RecurrentClips:
    """The attention of these settings."""
    attention = CrissCrossAttention(settings.channels, settings.query_channels, settings.implementation)
    return RecurrentClips(attention, settings.recurrence)


def build(settings: Settings, channels: Sequence[int], classes: int, block: RecurrentClips) -> ClipHead:
    """The head of these settings on the deepest of the maps, around the attention that first made."""
    return ClipHead(channels[-1], classes, settings, block)
