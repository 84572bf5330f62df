"""Videos that browsers play, H.264, VP9 or GIF, with sound and times of their source; the only user of PyAV."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.media.images import Pixels

# the encoder of each kind of file, and its settings: areas of one colour must stay such
CODECS = {
    ".mp4": ("libx264", {"crf": "18", "preset": "fast"}),
    ".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "4", "row-mt": "1"}),
    ".gif": ("gif", {}),
}
# the kinds of sound that stay as they are in each kind of file, and what others become
SOUNDS = {".mp4": (("aac", "mp3", "opus"), "aac"), ".webm": (("opus", "vorbis"), "libopus")}
TICKS = 90_000


def is_installed() -> bool:
    """Whether PyAV is here."""
    return find_spec("av") is not None


def read_times(path: Path) -> list[Fraction]:
    """When each frame of a video is shown, in seconds and in order; frames that do not say so are missing."""
    import av

    with av.open(str(path.absolute())) as container:
        stream = container.streams.video[0]
        return sorted(packet.pts * stream.time_base for packet in container.demux(stream) if packet.pts is not None)


@dataclass
class Clock:
    """The times of frames in ticks, from 0: those given, as long as they rise, else of a constant rate."""

    rate: float
    times: list[Fraction]
    last: int = -1

    def ticks(self, index: int) -> int:
        """The time of a frame; each comes after the one before it."""
        if index < len(self.times):
            ticks = round((self.times[index] - self.times[0]) * TICKS)
        else:
            ticks = round(index * TICKS / self.rate)
        self.last = max(ticks, self.last + 1)
        return self.last


@contextmanager
def open_writer(
    temporary: Path, path: Path, size: tuple[int, int], clock: Clock, source: Path | None
) -> Iterator[Callable[[Pixels], None]]:
    """Yield a function that appends a BGR frame of an even size (H, W); the sound of source comes with them."""
    import av

    codec, options = CODECS[path.suffix.lower()]
    settings = {"movflags": "faststart"} if path.suffix.lower() == ".mp4" else {}
    count = 0
    with ExitStack() as stack:
        stack.enter_context(_translate_errors(path, size))
        container = stack.enter_context(av.open(str(temporary.absolute()), "w", options=settings))
        stream = container.add_stream(codec, rate=Fraction(clock.rate).limit_denominator(1001), options=dict(options))
        stream.height, stream.width, stream.pix_fmt = *size, "pal8" if codec == "gif" else "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, TICKS)
        convert = _make_palettes(size) if codec == "gif" else _reformat
        if codec != "gif":
            # what every player takes HD for, and some all pictures: said, so that none has to guess
            stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
            stream.codec_context.color_range = 1
        first = clock.times[0] if clock.times else Fraction(0)
        sound = (
            _read_sound(stack, container, source, path.suffix.lower(), first) if source and codec != "gif" else iter(())
        )
        waiting = next(sound, None)

        def write(frame_bgr: Pixels) -> None:
            nonlocal count, waiting
            ticks = clock.ticks(count)
            while waiting is not None and waiting[0] * TICKS <= ticks:
                container.mux(waiting[1])
                waiting = next(sound, None)
            frame = av.VideoFrame.from_ndarray(frame_bgr, "bgr24")
            frame.pts, frame.time_base = ticks, Fraction(1, TICKS)
            for converted in convert(frame):
                converted.pts, converted.time_base = ticks, Fraction(1, TICKS)
                container.mux(stream.encode(converted))
            count += 1

        yield write
        container.mux(stream.encode(None))
        while waiting is not None:
            container.mux(waiting[1])
            waiting = next(sound, None)


def _reformat(frame: Any) -> list[Any]:
    return [frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")]


def _make_palettes(size: tuple[int, int]) -> Callable[[Any], list[Any]]:
    """A function that gives each frame a palette of its own: up to 256 colours stay as they are."""
    import av

    graph = av.filter.Graph()
    begin = graph.add_buffer(width=size[1], height=size[0], format="bgra", time_base=Fraction(1, TICKS))
    split, end = graph.add("split"), graph.add("buffersink")
    palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1:dither=none")
    begin.link_to(split)
    split.link_to(palette)
    split.link_to(use, 1)
    palette.link_to(use, 0, 1)
    use.link_to(end)
    graph.configure()

    def convert(frame: Any) -> list[Any]:
        graph.push(frame.reformat(format="bgra"))
        return [graph.pull()]

    return convert


@contextmanager
def _translate_errors(path: Path, size: tuple[int, int]) -> Iterator[None]:
    import av

    try:
        yield
    except av.FFmpegError as error:
        if error.errno in files.MACHINE_ERRORS:
            raise EnvironmentFailure(f"output {path}", "not written whole", "make room and run again") from None
        why = f"cannot hold {size[1]}x{size[0]} pixels ({error.strerror})"
        raise InputError(f"output {path}", why, "try the other of .mp4 and .webm") from None


def _read_sound(
    stack: ExitStack, output: Any, source: Path, suffix: str, first: Fraction
) -> Iterator[tuple[Fraction, Any]]:
    """Time and packets of the first sound track that can be decoded, from the time of the first frame on."""
    import av

    container = stack.enter_context(av.open(str(source.absolute())))
    track = next((track for track in container.streams.audio if track.codec_context is not None), None)
    if track is None:
        return iter(())
    copied, codec = SOUNDS[suffix]
    if track.codec_context.name in copied:
        return _copy(container, track, output.add_stream_from_template(track), first)
    new = output.add_stream(codec, rate=48_000)
    return _encode(container, track, new, first)


def _copy(container: Any, track: Any, new: Any, first: Fraction) -> Iterator[tuple[Fraction, Any]]:
    shift = round(first / track.time_base)
    for packet in container.demux(track):
        if packet.pts is None or packet.dts is None or packet.pts < shift:
            continue
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        time = packet.pts * track.time_base
        packet.stream = new
        yield time, packet


def _encode(container: Any, track: Any, new: Any, first: Fraction) -> Iterator[tuple[Fraction, Any]]:
    import av

    new.codec_context.open()
    context = new.codec_context
    resampler = av.AudioResampler(context.format, context.layout, 48_000, context.frame_size)
    for frame in itertools.chain(_decode(container, track), [None]):
        for part in resampler.resample(frame):
            part.pts = (part.pts or 0) - round(first / part.time_base)
            if part.pts >= 0:
                yield from _timed(new.encode(part))
    yield from _timed(new.encode(None))


def _decode(container: Any, track: Any) -> Iterator[Any]:
    """The frames of a track; damaged ones are left out."""
    import av

    for packet in container.demux(track):
        with suppress(av.error.InvalidDataError):
            yield from packet.decode()


def _timed(packets: list[Any]) -> Iterator[tuple[Fraction, Any]]:
    return ((packet.pts * packet.time_base, packet) for packet in packets if packet.pts is not None)
