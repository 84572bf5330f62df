"""Videos: what is read and refused, what a written one holds, and that a file appears whole or not at all."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from ccnet_cli.errors import InputError
from ccnet_cli.media import films, images, video


@pytest.fixture(autouse=True)
def without_pyav(monkeypatch):
    """What OpenCV does by itself; films has tests of its own."""
    monkeypatch.setattr(films, "is_installed", lambda: False)


def frame(number, height=48, width=64):
    """Grey that tells the number, brighter to the right; a colour every codec keeps."""
    level = np.linspace(20 + 10 * number, 60 + 10 * number, width).astype(np.uint8)
    return np.repeat(np.repeat(level[None, :, None], height, axis=0), 3, axis=2)


def film(path, count=12, rate=5.0, size=(48, 64), code="MJPG"):
    """A video by OpenCV itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), rate, size[::-1])
    for number in range(count):
        writer.write(frame(number, *size))
    writer.release()
    return path


def names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("name", ["a.avi", "b.mkv", "c.mov", "ü d.mp4", "%03d.avi"])
def test_what_a_video_holds(tmp_path, name):
    path = film(tmp_path / name, count=7, rate=12.5, code="mp4v" if name.endswith("mp4") else "MJPG")
    assert video.inspect(path) == video.Video(path, 7, 12.5, (48, 64))
    for number, found in enumerate(video.frames(path)):
        assert np.abs(found.astype(int) - frame(number)).max() <= 12
    assert number == 6


def test_a_relative_name_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film(Path("one.avi")).rename("concat:one.avi")
    assert video.inspect(Path("concat:one.avi")).frames == 12


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("size", [(48, 64), (33, 65), (1, 1), (2, 131)])
def test_a_written_video_holds_its_frames_at_an_even_size(tmp_path, suffix, size, capfd):
    path = tmp_path / "new" / f"out{suffix}"
    with video.open_writer(path, 23.976, size) as write:
        for number in range(5):
            write(frame(number, *size))
        assert not path.exists()
    found = video.inspect(path)
    height, width = size[0] + size[0] % 2, size[1] + size[1] % 2
    assert (found.frames, found.size) == (5, (height, width))
    assert found.rate == pytest.approx(23.976, abs=0.01)
    for number, read in enumerate(video.frames(path)):
        wanted = np.pad(frame(number, *size), ((0, height - size[0]), (0, width - size[1]), (0, 0)), mode="edge")
        assert np.abs(read.astype(int) - wanted).max() <= 16
    assert names(path.parent) == [path.name]
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_video_leaves_nothing_and_keeps_the_earlier_one(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(KeyboardInterrupt), video.open_writer(path, 5, (48, 64)) as write:
        write(frame(0))
        raise KeyboardInterrupt
    assert names(tmp_path) == ["out.mp4"] and path.read_bytes() == b"mine"
    with pytest.raises(ValueError, match="in a video of"), video.open_writer(path, 5, (48, 64)) as write:
        write(frame(0, 64, 48))
    assert path.read_bytes() == b"mine"


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, film_on_a_full_disk):
    assert all(part in film_on_a_full_disk for part in ("EnvironmentFailure", "out.mp4", "not written whole"))
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_told_by_the_system(tmp_path):
    (tmp_path / "wall").write_text("no folder")
    with pytest.raises(OSError, match="wall"), video.open_writer(tmp_path / "wall" / "out.mp4", 5, (48, 64)):
        pass


def cut(path, size):
    content = path.read_bytes()
    return content[: size if size > 0 else len(content) + size]


BROKEN = {
    "missing.mp4": None,
    "empty.mp4": lambda folder: b"",
    "text.mp4": lambda folder: b"no video\n" * 500,
    "noise.avi": lambda folder: np.random.default_rng(0).bytes(20_000),
    "head.mkv": lambda folder: cut(film(folder / "whole.mkv"), 600),
    "tail.mp4": lambda folder: cut(film(folder / "whole.mp4", code="mp4v"), -600),
    "still.mp4": lambda folder: cv2.imencode(".png", frame(0))[1].tobytes()[:60],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_video_is_refused_in_words(tmp_path, capfd, name):
    if BROKEN[name]:
        (tmp_path / name).write_bytes(BROKEN[name](tmp_path / "whole"))
    with pytest.raises(InputError, match=rf"^video .*{name}: "):
        video.inspect(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_a_truncated_video_tells_how_much_is_there(tmp_path):
    whole = film(tmp_path / "whole.mkv", count=60, rate=10).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"truncated: (\d\d) of 60 frames") as caught:
        video.inspect(tmp_path / "cut.mkv")
    assert 20 < int(str(caught.value).split("truncated: ")[1][:2]) < 40


def test_pipes_and_names_that_opencv_cannot_open_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(InputError, match="not a regular file"):
        video.inspect(tmp_path / "pipe.mp4")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.avi"))
    film(tmp_path / "a.avi").rename(odd)
    with pytest.raises(InputError, match="not UTF-8"):
        video.inspect(odd)


def test_a_huge_frame_is_refused_from_the_header(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PIXEL_LIMIT", 48 * 64 - 1)
    with pytest.raises(InputError, match="48 x 64 pixels"):
        video.inspect(film(tmp_path / "a.avi"))
    monkeypatch.setattr(images, "PIXEL_LIMIT", 48 * 64)
    assert video.inspect(tmp_path / "a.avi").frames == 12


def test_a_frame_rate_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_RATE", 4)
    with pytest.raises(InputError, match="has no frame rate"):
        video.inspect(film(tmp_path / "a.avi", rate=5))


def test_a_size_or_codec_that_no_encoder_takes_is_refused(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(video.ENCODERS, ".mp4", "XXXX")
    with (
        pytest.raises(InputError, match="cannot hold 64x48 pixels"),
        video.open_writer(tmp_path / "a.mp4", 5, (48, 64)),
    ):
        pass
    assert names(tmp_path) == []
    assert capfd.readouterr() == ("", "")
