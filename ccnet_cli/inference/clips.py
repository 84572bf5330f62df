"""Networks of clips on videos and single images: what a frame gives to its clips is computed once and kept for them."""

import hashlib
from collections import ChainMap, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ccnet_cli.datasets.clips import Clips
from ccnet_cli.datasets.settings import Clip
from ccnet_cli.inference.scores import Scores
from ccnet_cli.inference.views import Views, batch_scores
from ccnet_cli.models.network import Normalisation

Frame = TypeVar("Frame")
# a little below the most that glibc takes into account
KEPT_BYTES = (1 << 25) - (1 << 16)
# of a view of a frame: its deepest map, until the frame is scored, and what the attention sees of it
Kept = tuple[Tensor | None, tuple[Tensor, ...]]
Key = tuple[torch.Size, bytes]


class VideoNetwork:
    """Looks like a network of images to what cuts a frame into views, and answers with the scores of clips.

    A frame's views (tiles, scales, flips) come in one order. Of each, what the last (frames - 1) * stride + 1 frames
    were encoded to is kept. Scores are those of the frame `delay` before the newest, of which a clip needs the later
    ones. Where a clip reaches before the first frame, that is repeated; where it reaches beyond the last, see `repeat`.
    """

    normalisation: Normalisation
    align_corners: bool
    stride: int

    def __init__(self, engine: Any, clip: Clip) -> None:
        self.engine = engine
        self.normalisation, self.align_corners, self.stride = engine.normalisation, engine.align_corners, engine.stride
        self.place, self.step = clip.place, clip.stride
        self.length = (clip.frames - 1) * clip.stride + 1
        self.delay = self.length - 1 - clip.place * clip.stride
        self.views: list[deque[Kept]] = []
        # views of the newest frame that are kept already, and the next one to come
        self.done = self.next = 0
        # glibc takes the largest block that was freed for the memory worth keeping, and would return a clip's each time
        torch.empty(KEPT_BYTES, dtype=torch.uint8)

    def score(self, input_1CHW: Tensor, views: Views, device: torch.device, repeat: bool = False) -> Scores:
        """The scores of the frame that is due, once the newest has come; repeat takes the last for the newest again."""
        if repeat:
            for own in self.views:
                own.append(own[-1])
        self.done = len(self.views) if repeat else 0
        return batch_scores(self, input_1CHW, views, device)[0]

    def rewind(self) -> None:
        """The views of a frame come from the first one on, perhaps again."""
        self.next = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Views (B, 3, h, w) of the newest frame -> the scores of the same views of the frame that is due."""
        first, self.next = self.next, self.next + len(x)
        if self.next > self.done:
            encoded = self.engine.encode(x)
            for offset in range(max(self.done - first, 0), len(x)):
                deepest, *rest = (each[offset : offset + 1] for each in encoded)
                self._keep(first + offset, (deepest, tuple(rest)))
            self.done = self.next
        scores = [self._decode(self.views[index]) for index in range(first, self.next)]
        return scores[0] if len(scores) == 1 else torch.cat(scores)

    def _keep(self, view: int, newest: Kept) -> None:
        if view == len(self.views):
            self.views.append(deque([newest] * self.length, self.length))
            return
        own, due = self.views[view], self.place * self.step
        # it was scored with the last frame
        own[due] = (None, own[due][1])
        own.append(newest)

    def _decode(self, kept: deque[Kept]) -> Tensor:
        clip = [kept[index] for index in range(0, self.length, self.step)]
        deepest, frames = clip[self.place][0], [encoded for _, encoded in clip]
        assert deepest is not None
        if all(each is frames[0] for each in frames):
            # a picture by itself, or the begin of a video
            scores: Tensor = self.engine.decode(deepest, frames[:1], 0, len(frames))
        else:
            scores = self.engine.decode(deepest, frames, self.place)
        return scores


class ClipNetwork:
    """Looks like a network of clips (B, T, 3, h, w), and computes once what frames give to neighbouring clips.

    Frames are known by their pixels, view by view. What the last images, as many as the clips' stride, did not need
    is dropped, so that memory is bounded by their clips; a deepest map, which is large, once its frame is scored.
    """

    def __init__(self, engine: Any, clips: Clips) -> None:
        self.engine, self.place = engine, clips.place
        self.normalisation, self.align_corners, self.stride = engine.normalisation, engine.align_corners, engine.stride
        self.before: deque[dict[Key, Kept]] = deque(maxlen=clips.stride)
        self.kept: dict[Key, Kept] = {}

    def rewind(self) -> None:
        """The views of other images begin, or of the same ones again."""
        self.before.appendleft(self.kept)
        self.kept = {}

    def __call__(self, x_BTChw: Tensor) -> Tensor:
        """The scores of each clip's labelled frame."""
        B, T = x_BTChw.shape[:2]
        frames = x_BTChw.flatten(0, 1)
        keys = [_identify(frame) for frame in frames]
        scored = keys[self.place :: T]
        known = ChainMap(self.kept, *self.before)
        self.kept.update({key: known[key] for key in keys if key in known})
        missing = {key: index for index, key in enumerate(keys) if key not in self.kept}
        missing |= {key: keys.index(key) for key in scored if key in self.kept and self.kept[key][0] is None}
        if missing:
            encoded = self.engine.encode(frames[list(missing.values())])
            for offset, key in enumerate(missing):
                deepest, *rest = (each[offset : offset + 1] for each in encoded)
                self.kept[key] = (deepest, tuple(rest))
        scores = torch.cat([self._decode(keys[T * index : T * index + T]) for index in range(B)])
        self.kept |= {key: (None, self.kept[key][1]) for key in scored}
        return scores

    def _decode(self, keys: Sequence[Key]) -> Tensor:
        clip = [self.kept[key] for key in keys]
        deepest = clip[self.place][0]
        assert deepest is not None
        scores: Tensor = self.engine.decode(deepest, [encoded for _, encoded in clip], self.place)
        return scores


def share_frames(network: Any, clips: Clips | None, images: Sequence[Path]) -> Any:
    """The network or, where it is one of clips and those of neighbouring images overlap, a ClipNetwork around it."""
    if clips is None or not hasattr(network, "encode"):
        return network
    frames = [set(clips.frames[image]) for image in images]
    pairs = ((own, later) for at, own in enumerate(frames) for later in frames[at + 1 : at + 1 + clips.stride])
    return ClipNetwork(network, clips) if any(own & later for own, later in pairs) else network


def _identify(frame: Tensor) -> Key:
    return frame.shape, hashlib.blake2b(frame.cpu().numpy().tobytes()).digest()


def score_video(
    network: VideoNetwork, frames: Iterable[tuple[Frame, Tensor]], views: Views, device: torch.device
) -> Iterator[tuple[Frame, Scores]]:
    """What came with each frame's input, and the frame's scores, in order; the last frame is repeated at the end."""
    waiting: deque[Frame] = deque()
    late, input_1CHW = network.delay, None
    for frame, input_1CHW in frames:
        waiting.append(frame)
        scores = network.score(input_1CHW, views, device)
        if late:
            late -= 1
        else:
            yield waiting.popleft(), scores
    while waiting and input_1CHW is not None:
        scores = network.score(input_1CHW, views, device, repeat=True)
        if late:
            late -= 1
        else:
            yield waiting.popleft(), scores
