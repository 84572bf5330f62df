"""Read and write videos frame by frame; the only user of OpenCV's video reader and writer."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.media import images
from ccnet_cli.media.images import Pixels, cv2

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".ogv"),
    *(".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv"),
)
# the encoders that OpenCV's wheels hold: MPEG-4 and VP9; H.264 would need the system's libraries
ENCODERS = {".mp4": "mp4v", ".webm": "VP90"}
# seconds by which sound, or a header's rounding, may be longer than the picture
SLACK = 1.0
HIGHEST_RATE = 1000

# OpenCV reads this as it opens a video; what its decoders have to say is said by our errors
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@dataclass(frozen=True)
class Video:
    """A whole video: how many frames can be decoded, their rate per second, their size (H, W) as shown."""

    path: Path
    frames: int
    rate: float
    size: tuple[int, int]


def inspect(path: Path) -> Video:
    """Decode a video once, keeping nothing; InputError unless it is whole, as far as its header tells."""
    with _opened(path) as capture:
        declared, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        if not 0 < rate <= HIGHEST_RATE:
            raise _refused(path, "does not tell its frame rate")
        done, frame = capture.read()
        if not done:
            raise _refused(path, "no frame can be decoded: the file is damaged")
        count = 1
        end = 0.0
        while capture.grab():
            count += 1
            end = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
    # frames may be fewer than duration times rate where their rate varies, so the last one's time counts too
    if count < declared and declared / rate - (end + 1 / rate) > SLACK:
        raise _refused(path, f"truncated: {count} of {declared:.0f} frames can be decoded")
    return Video(path, count, rate, (frame.shape[0], frame.shape[1]))


def frames(path: Path) -> Iterator[Pixels]:
    """The frames in turn, BGR (H, W, 3), rotated as they are shown."""
    with _opened(path) as capture:
        while True:
            done, frame = capture.read()
            if not done:
                return
            yield frame


@contextmanager
def writing(path: Path, rate: float, size: tuple[int, int]) -> Iterator[Callable[[Pixels], None]]:
    """What appends a BGR frame of size (H, W) to a video that appears when the block ends, and not where it raises.

    The encoders know even sizes alone: an odd one grows by a row or a column, a copy of its last.
    """
    height, width = size
    down, right = height % 2, width % 2
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replace_file(path) as temporary:
        # tells, as OpenCV does not, why a file cannot be made
        temporary.touch()
        code = cv2.VideoWriter.fourcc(*ENCODERS[path.suffix.lower()])
        # OpenCV prints that it names the codec in its own way
        with images.heard([]):
            writer = cv2.VideoWriter(_name(temporary), cv2.CAP_FFMPEG, code, rate, (width + right, height + down))
        if not writer.isOpened():
            raise InputError(
                f"output {path}", f"cannot hold {width}x{height} pixels", "try the other of .mp4 and .webm"
            )

        def write(frame_bgr: Pixels) -> None:
            nonlocal count
            if frame_bgr.shape != (height, width, 3):
                raise ValueError(f"a frame of {frame_bgr.shape} in a video of {size}")
            writer.write(cv2.copyMakeBorder(frame_bgr, 0, down, 0, right, cv2.BORDER_REPLICATE))
            count += 1

        try:
            yield write
        finally:
            writer.release()
        # the writer does not report a full disk
        if _readable(temporary) != count:
            raise EnvironmentFailure(f"output {path}", "not written whole", "make room and run again")


def _readable(path: Path) -> int:
    try:
        return inspect(path).frames
    except InputError:
        return 0


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    try:
        found = path.stat()
        # a pipe or a device would block, or never end
        if not stat.S_ISREG(found.st_mode):
            raise _refused(path, "not a regular file")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        why = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise InputError(f"video {path}", why, "check the path and its permissions") from None
    capture = cv2.VideoCapture(_name(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise _refused(path, "not a video that OpenCV can read, or truncated")
        height, width = capture.get(cv2.CAP_PROP_FRAME_HEIGHT), capture.get(cv2.CAP_PROP_FRAME_WIDTH)
        if not 0 < height * width <= images.PIXEL_LIMIT:
            raise _refused(path, f"its header says {height:.0f} x {width:.0f} pixels")
        yield capture
    finally:
        capture.release()


def _name(path: Path) -> str:
    # absolute, so that no name looks like an address
    name = str(path.absolute())
    if os.fsencode(name).decode(errors="replace") != name:
        # OpenCV would crash
        raise InputError(f"video {path}", "its name is not UTF-8", "rename it")
    return name


def _refused(path: Path, why: str) -> InputError:
    return InputError(f"video {path}", why, "replace the file, or convert it to MP4")
