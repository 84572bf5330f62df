"""Segment a stream that goes on, from a camera or a network, into a video."""

import itertools
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import Tensor

from ccnet_cli.inference.segmenter import Segmenter
from ccnet_cli.media import outputs, streams, video
from ccnet_cli.media.background import prefetch
from ccnet_cli.media.classes import Classes

Timed = tuple[float, np.ndarray]


@dataclass(frozen=True)
class Recording:
    """What was written of a stream: size (H, W), the pixels of each class, the frames, and how many were dropped."""

    size: tuple[int, int]
    pixels: tuple[int, ...]
    frames: int
    dropped: int


def segment_live(
    segmenter: Segmenter,
    classes: Classes,
    address: str,
    target: tuple[str, Path],
    seconds: float | None,
    stop_signal: Callable[[], int],
) -> Recording:
    """Write a stream, in the format and the file that target holds, until it ends, for N seconds, or until a signal.

    In each case the file is whole. Frames have the times at which they came.
    """
    format, path = target
    counts, times = np.zeros(len(classes), np.int64), list[Fraction]()
    with ExitStack() as stack:
        stream = stack.enter_context(streams.open_stream(address))
        append = stack.enter_context(video.open_writer(path, stream.rate, stream.size, times=times))

        def read(_: int) -> tuple[Timed, Tensor] | None:
            item = None if stop_signal() else stream.next()
            if item is None or (seconds is not None and item[0] > seconds):
                return None
            return item, segmenter.load(item[1])

        # what is read ahead would be older than what could come
        loaded = stack.enter_context(closing(prefetch(read, itertools.count(), 0 if stream.endless else 1)))
        for (time, frame), scores in segmenter.score_video(iter(loaded.__next__, None)):
            ids = segmenter.predict(scores)
            counts += np.bincount(ids.ravel(), minlength=len(classes))
            times.append(Fraction(time).limit_denominator(90_000))
            append(outputs.draw(format, ids, frame, classes))
        dropped = stream.dropped
    return Recording(stream.size, tuple(counts.tolist()), len(times), dropped)
