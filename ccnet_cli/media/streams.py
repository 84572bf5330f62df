"""Videos by address: cameras, RTSP, HTTP. Of an endless one, frames that nobody takes in time are dropped."""

import queue
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ccnet_cli.errors import InputError
from ccnet_cli.media import video
from ccnet_cli.media.images import PIXEL_LIMIT, Pixels, cv2

ADDRESS = re.compile(r"(?:rtsps?|rtmps?|https?|srt|udp|tcp)://\S+|/dev/video\d+", re.IGNORECASE)
# to open a stream, and to get its next frame
PATIENCE_SECONDS = 15
# where a stream says none
DEFAULT_RATE = 25.0


def is_address(name: str) -> bool:
    """Whether a source is a stream, not a file."""
    return ADDRESS.fullmatch(name) is not None


class Stream:
    """An open stream of frames of one size; endless where it has no length, as cameras have none."""

    def __init__(self, capture: Any, first: Pixels) -> None:
        rate = capture.get(cv2.CAP_PROP_FPS)
        self.capture = capture
        self.rate = rate if 0 < rate <= video.MAX_RATE else DEFAULT_RATE
        self.size = (first.shape[0], first.shape[1])
        self.endless = capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0
        self.dropped = 0
        self.begin = time.monotonic()
        self.closed = self.ended = False
        self.frames: queue.Queue[tuple[float, Pixels] | None] = queue.Queue(1)
        self.frames.put((0.0, first))
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def next(self) -> tuple[float, Pixels] | None:
        """Seconds since the first frame, and the newest one that nobody had; None when the stream has ended."""
        item = None if self.ended else self.frames.get()
        self.ended = item is None
        return item

    def close(self) -> None:
        """Stop reading."""
        self.closed = True
        while self.thread.is_alive():
            self._take()
            self.thread.join(0.05)

    def _read(self) -> None:
        origin = self.capture.get(cv2.CAP_PROP_POS_MSEC)
        while not self.closed:
            success, frame = self.capture.read()
            if not success or frame.shape[:2] != self.size:
                break
            at = self.capture.get(cv2.CAP_PROP_POS_MSEC) - origin
            seconds = time.monotonic() - self.begin if self.endless else at / 1000
            if self.endless:
                self.dropped += self._take()
            self.frames.put((seconds, np.asarray(frame, np.uint8)))
        self.frames.put(None)

    def _take(self) -> int:
        """Make room; the number of frames that this took."""
        try:
            self.frames.get_nowait()
        except queue.Empty:
            return 0
        return 1


@contextmanager
def open_stream(address: str) -> Iterator[Stream]:
    """Yield the stream at an address; InputError where nothing comes."""
    capture = video.open_address(address, PATIENCE_SECONDS)
    try:
        success, frame = capture.read() if capture.isOpened() else (False, None)
        if not success or frame is None:
            raise InputError(f"stream {address}", "no frame comes from there", "check the address, and that it plays")
        if frame.shape[0] * frame.shape[1] > PIXEL_LIMIT:
            raise InputError(f"stream {address}", "its frames are too large", "let it send smaller ones")
        stream = Stream(capture, np.asarray(frame, np.uint8))
        try:
            yield stream
        finally:
            stream.close()
    finally:
        capture.release()
