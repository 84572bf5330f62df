"""Read and write videos and animations frame by frame; the only user of OpenCV's video reader and writers."""

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.media import films, images
from ccnet_cli.media.images import Pixels, cv2

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".ogv"),
    *(".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv"),
)
# the encoders that OpenCV's wheels hold: MPEG-4 and VP9; H.264 would need the system's libraries
ENCODERS = {".mp4": "mp4v", ".webm": "VP90"}
ANIMATIONS = (".gif", ".webp")
WRITTEN = (*ENCODERS, *ANIMATIONS)
# all pixels of an animation, which is held until it is written
ANIMATION_PIXELS = 1 << 28
# seconds by which sound, or a header's rounding, may exceed the picture
SLACK = 1.0
MAX_RATE = 1000
# of WebM, the elements that a file consists of: a header and a segment
EBML = (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67")

# OpenCV reads this when it opens a video; our errors say what is wrong
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@dataclass(frozen=True)
class Video:
    """A complete video: number of frames that can be decoded, frames per second, size (H, W) as shown."""

    path: Path
    frames: int
    rate: float
    size: tuple[int, int]


def inspect(path: Path) -> Video:
    """Decode a video once to check it; InputError unless it is as long as its header says."""
    with _open(path) as capture:
        declared, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        if not 0 < rate <= MAX_RATE:
            raise _error(path, "has no frame rate")
        success, frame = capture.read()
        if not success:
            raise _error(path, "no frame can be decoded: damaged, or of a kind that OpenCV cannot decode (AV1)")
        count = 1
        end = 0.0
        while capture.grab():
            count += 1
            end = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
    # a varying rate has fewer frames than duration times rate, so the time of the last frame counts too
    if count < declared and declared / rate - (end + 1 / rate) > SLACK and not _has_longer_sound(path, count):
        raise _error(path, f"truncated: {count} of {declared:.0f} frames can be decoded")
    return Video(path, count, rate, (frame.shape[0], frame.shape[1]))


def _has_longer_sound(path: Path, count: int) -> bool:
    """Whether a file is whole, and its picture ends after N frames: then the length in its header is the sound's."""
    return films.is_installed() and not is_cut(path) and len(films.read_times(path)) == count


def declared_frames(path: Path) -> int:
    """Frames by a video's header, at least 1, also where it cannot be read."""
    try:
        with _open(path) as capture:
            return max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    except InputError:
        return 1


def frames(path: Path) -> Iterator[Pixels]:
    """Yield the frames in order, BGR (H, W, 3), rotated as they are shown."""
    with _open(path) as capture:
        while True:
            success, frame = capture.read()
            if not success:
                return
            yield np.asarray(frame, np.uint8)


@contextmanager
def open_writer(
    path: Path,
    rate: float,
    size: tuple[int, int],
    source: Video | None = None,
    times: list[Fraction] | None = None,
) -> Iterator[Callable[[Pixels], None]]:
    """Yield a function that appends a BGR frame of size (H, W); the video appears when the block ends without error.

    Encoders need even sizes: an odd one grows by a copy of its last row or column. Where PyAV is installed, frames have
    the times of those of source, and its sound is kept; or the times that the caller adds before each frame.
    """
    height, width = size
    count = 0
    animated = path.suffix.lower() in ANIMATIONS
    down, right = (0, 0) if animated else (height % 2, width % 2)
    target = files.find_target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.replace_file(target) as temporary:
        # says, as the codecs do not, why a file cannot be made
        temporary.touch()
        if times is None and source is not None and films.is_installed():
            own = films.read_times(source.path)
            times = own if len(own) == source.frames else None
        clock = films.Clock(rate, [] if times is None else times)
        with _open_encoder(temporary, path, (height + down, width + right), clock, source) as append:

            def write(frame_bgr: Pixels) -> None:
                nonlocal count
                if frame_bgr.shape != (height, width, 3):
                    raise ValueError(f"a frame of {frame_bgr.shape} in a video of {size}")
                append(np.asarray(cv2.copyMakeBorder(frame_bgr, 0, down, 0, right, cv2.BORDER_REPLICATE), np.uint8))
                count += 1

            yield write
        # encoders do not report a full disk
        if not is_whole_animation(temporary) if animated else _count_frames(temporary) != count:
            raise EnvironmentFailure(f"output {path}", "not written whole", "make room and run again")


@contextmanager
def _open_encoder(
    temporary: Path, path: Path, size: tuple[int, int], clock: films.Clock, source: Video | None
) -> Iterator[Callable[[Pixels], object]]:
    height, width = size
    with ExitStack() as stack:
        if path.suffix.lower() == ".webp" or (path.suffix.lower() == ".gif" and not films.is_installed()):
            yield stack.enter_context(_open_animation(temporary, path, clock))
            return
        if films.is_installed():
            yield stack.enter_context(films.open_writer(temporary, path, size, clock, source.path if source else None))
            return
        code = cv2.VideoWriter.fourcc(*ENCODERS[path.suffix.lower()])
        # OpenCV prints that it has another name for the codec
        with images.codec_messages():
            writer = cv2.VideoWriter(_file_name(temporary), cv2.CAP_FFMPEG, code, clock.rate, (width, height))
        if not writer.isOpened():
            raise InputError(
                f"output {path}", f"cannot hold {width}x{height} pixels", "try the other of .mp4 and .webm"
            )
        stack.callback(writer.release)
        yield writer.write


@contextmanager
def _open_animation(temporary: Path, path: Path, clock: films.Clock) -> Iterator[Callable[[Pixels], None]]:
    frames: list[Pixels] = []

    def write(frame_bgr: Pixels) -> None:
        frames.append(frame_bgr)
        if len(frames) * frame_bgr.shape[0] * frame_bgr.shape[1] > ANIMATION_PIXELS:
            raise InputError(f"output {path}", "too long or too large for an animation", "write a .mp4 or a .webm file")

    yield write
    ticks = [clock.ticks(index) for index in range(len(frames) + 1)] if frames else []
    animation = cv2.Animation()
    animation.frames = frames
    animation.durations = [round(1000 * (end - start) / films.TICKS) for start, end in itertools.pairwise(ticks)]
    # a GIF has a fixed palette: without dithering, areas stay areas
    options = [cv2.IMWRITE_GIF_QUALITY, cv2.IMWRITE_GIF_FAST_NO_DITHER] if path.suffix.lower() == ".gif" else []
    done, content = cv2.imencodeanimation(path.suffix.lower(), animation, options)
    if not done:
        raise InputError(f"output {path}", "cannot hold these frames", "write a .mp4 or a .webm file")
    temporary.write_bytes(bytes(content))


def is_cut(path: Path) -> bool:
    """Whether an MP4 or a WebM ends before the parts that its headers name: of a frame that is cut, some is decoded."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            if len(head) < 8:
                return True
            if head[:4] in EBML:
                octets = 9 - head[4].bit_length()
                length, unknown = int.from_bytes(head[4 : 4 + octets]) & (1 << 7 * octets) - 1, (1 << 7 * octets) - 1
                step = size - at if length == unknown else 4 + octets + length
            else:
                # 0 is the rest of the file, 1 says that 64 bits follow
                length = int.from_bytes(head[:4])
                step = size - at if length == 0 else int.from_bytes(head[8:]) if length == 1 else length
            if step < min(8, size - at):
                return True
            at += step
    return at > size


def is_whole_animation(path: Path) -> bool:
    """Whether all of a GIF or an animated WebP can be decoded."""
    try:
        return bool(cv2.imdecodeanimation(np.fromfile(path, np.uint8))[0])
    except (OSError, cv2.error):
        return False


def open_address(address: str, seconds: int) -> cv2.VideoCapture:
    """What reads a camera or a stream; it waits that long for each frame of a stream."""
    if Path(address).is_absolute():
        return cv2.VideoCapture(address, cv2.CAP_V4L2)
    limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * seconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * seconds)
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)


def _count_frames(path: Path) -> int:
    """Number of frames that can be decoded; 0 for a damaged video."""
    try:
        return inspect(path).frames
    except InputError:
        return 0


@contextmanager
def _open(path: Path) -> Iterator[cv2.VideoCapture]:
    try:
        status = path.stat()
        # a pipe or a device could block, or never end
        if not stat.S_ISREG(status.st_mode):
            raise _error(path, "not a regular file")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        why = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise InputError(f"video {path}", why, "check the path and its permissions") from None
    capture = cv2.VideoCapture(_file_name(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise _error(path, "not a video that OpenCV can read, or truncated")
        height, width = capture.get(cv2.CAP_PROP_FRAME_HEIGHT), capture.get(cv2.CAP_PROP_FRAME_WIDTH)
        if not 0 < height * width <= images.PIXEL_LIMIT:
            raise _error(path, f"its header says {height:.0f} x {width:.0f} pixels")
        yield capture
    finally:
        capture.release()


def _file_name(path: Path) -> str:
    # absolute, so that no name looks like a URL
    name = str(path.absolute())
    if os.fsencode(name).decode(errors="replace") != name:
        # OpenCV would crash
        raise InputError(f"video {path}", "its name is not UTF-8", "rename it")
    return name


def _error(path: Path, why: str) -> InputError:
    return InputError(f"video {path}", why, "replace the file, or convert it to MP4")
