"""Videos by PyAV: browsers play them, with the sound and the times of their source; and animations."""

import base64
from fractions import Fraction

import browser
import cv2
import numpy as np
import pytest

from ccnet_cli.errors import InputError
from ccnet_cli.media import films, outputs, video

av = pytest.importorskip("av")
EVEN = [100 * number for number in range(20)]
UNEVEN = [0, 50, 400, 450, 460, 900, 1900]


def grey(number, size=(64, 96)):
    return np.full((*size, 3), 40 + 9 * number, np.uint8)


def film(path, codec="libx264", sound="aac", pixels="yuv420p", times=EVEN, seconds=2, start=0.0):
    """A video of 2 s by PyAV itself, with a tone of that many seconds from `start` on; times are in ms."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        track = container.add_stream(sound, rate=44_100, layout="mono") if sound else None
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(grey(number), "bgr24").reformat(format=pixels)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            kind = track.codec_context.format.name
            tone = np.sin(np.arange(44_100 * seconds) * 0.06) * 0.3
            tone = (tone * 32_767).astype(np.int16) if kind == "s16" else tone.astype(np.float32)
            for first in range(0, len(tone), 1024):
                frame = av.AudioFrame.from_ndarray(tone[None, first : first + 1024], kind, "mono")
                frame.sample_rate, frame.pts = 44_100, first + round(44_100 * start)
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return path


def rewrite(source, path):
    """The frames of a video as they are, written by us."""
    found = video.inspect(source)
    with video.open_writer(path, found.rate, found.size, found) as write:
        for frame in video.frames(source):
            write(frame)
        assert not path.exists()
    return path


def tracks(path):
    with av.open(str(path)) as container:
        codecs = {stream.type: stream.codec_context.name for stream in container.streams}
        seconds = (
            sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0)) if "audio" in codecs else 0
        )
    return codecs, seconds


SOURCES = {
    "a.mp4": ({}, ("aac", "opus")),
    "pcm.mov": ({"sound": "pcm_s16le"}, ("aac", "opus")),
    "ten bits.mkv": ({"codec": "libx265", "pixels": "yuv420p10le", "sound": "ac3"}, ("aac", "opus")),
    "silent.mp4": ({"sound": None}, (None, None)),
    "uneven.mp4": ({"times": UNEVEN}, ("aac", "opus")),
}


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("name", SOURCES)
def test_sound_and_times_are_those_of_the_source(tmp_path, name, suffix, capfd):
    options, sounds = SOURCES[name]
    path = rewrite(film(tmp_path / name, **options), tmp_path / f"out/new{suffix}")
    codecs, seconds = tracks(path)
    sound = sounds[suffix == ".webm"]
    assert codecs == {"video": "h264" if suffix == ".mp4" else "vp9"} | ({"audio": sound} if sound else {})
    assert sound is None or abs(seconds - 2) < 0.15
    times = [float(time) for time in films.read_times(path)]
    assert np.abs(np.array(times) - np.array(options.get("times", EVEN)) / 1000).max() < 0.002
    for number, frame in enumerate(video.frames(path)):
        assert np.abs(frame.astype(int) - grey(number)).max() <= 12
    assert [each.name for each in path.parent.iterdir()] == [path.name] and outputs.is_complete(path)
    assert capfd.readouterr().err == ""
    path.write_bytes(path.read_bytes()[:-1])
    assert not outputs.is_complete(path)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_sound_may_last_longer_than_the_picture_or_begin_later(tmp_path, suffix):
    for name, seconds, start in (("long", 5, 0.0), ("late", 1, 0.7)):
        path = rewrite(film(tmp_path / f"{name}.mp4", seconds=seconds, start=start), tmp_path / f"out/{name}{suffix}")
        assert video.inspect(path).frames == 20 and abs(tracks(path)[1] - seconds) < 0.15
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(audio=0) if packet.pts is not None]
            # an encoder may begin a frame or two before the sound
            assert start - 0.05 < packets[0].pts * packets[0].time_base < start + 0.03


def test_a_film_that_is_cut_is_not_taken_for_one_with_longer_sound(tmp_path):
    path = rewrite(film(tmp_path / "long.mp4", seconds=5), tmp_path / "long.webm")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(InputError, match="truncated: 20 of 50 frames"):
        video.inspect(path)


def unknown(path):
    """Its first sound track is of a kind that nobody knows."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"sowt", b"zzzz", 1))
    return path


def test_sound_of_an_unknown_kind_is_left_out(tmp_path):
    path = rewrite(unknown(film(tmp_path / "a.mov", sound="pcm_s16le")), tmp_path / "out/new.mp4")
    assert tracks(path)[0] == {"video": "h264"}


def test_damaged_sound_does_not_stop_the_picture(tmp_path):
    source = film(tmp_path / "a.mkv", sound="ac3")
    with av.open(str(source)) as container:
        middle = [bytes(packet) for packet in container.demux(audio=0)][20]
    source.write_bytes(source.read_bytes().replace(middle, bytes(len(middle))))
    path = rewrite(source, tmp_path / "out/new.mp4")
    codecs, seconds = tracks(path)
    assert codecs == {"video": "h264", "audio": "aac"} and 1.8 < seconds < 2.1 and video.inspect(path).frames == 20


def test_a_rotated_video_is_written_upright(tmp_path):
    """As telephones do it: the picture lies, and a matrix says how to turn it."""
    path = film(tmp_path / "a.mp4", sound=None)
    content = bytearray(path.read_bytes())
    # the matrix of the track's header is the second of two such
    start = content.index(b"tkhd") + 4 + 40
    assert content[start : start + 4] == (1 << 16).to_bytes(4)
    turned = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    content[start : start + 36] = b"".join(number.to_bytes(4, signed=True) for number in turned)
    path.write_bytes(content)
    assert video.inspect(path).size == (96, 64)
    new = rewrite(path, tmp_path / "new.mp4")
    assert video.inspect(new).size == (96, 64)
    with av.open(str(new)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (64, 96) and next(container.decode(stream)).rotation == 0


def test_times_that_do_not_rise_still_follow_each_other():
    clock = films.Clock(10.0, [Fraction(1), Fraction(1), Fraction(3, 2)])
    assert [clock.ticks(index) for index in range(4)] == [0, 1, 45_000, 45_001]
    assert [films.Clock(25.0, []).ticks(index) for index in (0, 1, 5)] == [0, 3600, 18_000]


def test_after_an_interrupt_the_earlier_file_is_there(tmp_path):
    source, path = film(tmp_path / "a.mp4"), tmp_path / "out/b.mp4"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    found = video.inspect(source)
    with pytest.raises(KeyboardInterrupt), video.open_writer(path, 10, found.size, found) as write:
        write(grey(0))
        raise KeyboardInterrupt
    assert [each.name for each in path.parent.iterdir()] == ["b.mp4"] and path.read_bytes() == b"mine"


def test_a_full_disk_leaves_nothing(tmp_path, film_on_a_full_disk):
    assert "EnvironmentFailure" in film_on_a_full_disk and "not written whole" in film_on_a_full_disk
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_chromium_plays_it(tmp_path, suffix):
    path = rewrite(film(tmp_path / "a.mp4"), tmp_path / f"new{suffix}")
    content = base64.b64encode(path.read_bytes()).decode()
    page = tmp_path / "page.html"
    page.write_text(f'<video muted src="data:video/{suffix[1:]};base64,{content}"></video>')
    with browser.launched() as program:
        tab = program.page()
        tab.open(page)
        film_of = "document.querySelector('video')"
        tab.value(
            f"new Promise((done) => {{ const v = {film_of}; v.onended = () => done(1); v.onerror = () => done(0);"
            " v.playbackRate = 4; v.play(); })"
        )
        assert tab.value(f"{film_of}.error && {film_of}.error.message") is None
        assert tab.value(f"{film_of}.ended") and abs(tab.value(f"{film_of}.duration") - 2) < 0.1
        assert tab.value(f"[{film_of}.videoWidth, {film_of}.videoHeight]") == [96, 64]
        assert tab.value(f"{film_of}.webkitAudioDecodedByteCount") > 0
        assert tab.value(f"{film_of}.getVideoPlaybackQuality().totalVideoFrames") >= 5


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_hold_frames_and_their_times(tmp_path, suffix):
    path = rewrite(film(tmp_path / "a.mp4", times=UNEVEN), tmp_path / f"new{suffix}")
    done, animation = cv2.imdecodeanimation(np.fromfile(path, np.uint8))
    assert done and len(animation.frames) == len(UNEVEN) and outputs.is_complete(path)
    for number, frame in enumerate(animation.frames):
        assert np.abs(frame[..., :3].astype(int) - grey(number)).max() <= 12
    # a GIF counts hundredths of a second
    assert np.abs(np.array(animation.durations[:-1]) - np.diff(UNEVEN)).max() <= 10
    path.write_bytes(path.read_bytes()[:100])
    assert not outputs.is_complete(path)


def test_an_endless_animation_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "ANIMATION_PIXELS", 3 * 64 * 96)
    with pytest.raises(InputError, match="too long or too large for an animation"):
        rewrite(film(tmp_path / "a.mp4"), tmp_path / "new.webp")
    assert not (tmp_path / "new.webp").exists()
