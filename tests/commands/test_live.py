"""Streams by address, from a server of this machine: an MP4 with a length, and a camera's endless pictures."""

import contextlib
import http.server
import os
import signal
import socket
import threading
import time

import calls
import cameras
import cv2
import numpy as np
import pytest
import tiny

from ccnet_cli.errors import InputError, Interrupted
from ccnet_cli.media import films, streams, video

FRAMES = 12


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for number in range(FRAMES):
        writer.write(tiny.picture(48, 64, number))
    writer.release()
    return path


@pytest.fixture
def server(film):
    """The address of a server of the film and, below camera, of pictures that go on for a minute."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_response(200)
            with contextlib.suppress(OSError):
                if self.path == "/a.mp4":
                    content = film.read_bytes()
                    self.send_header("Content-Type", "video/mp4")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                    return
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                for number in range(3000):
                    content = cv2.imencode(".jpg", tiny.picture(48, 64, number % 7))[1].tobytes()
                    head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                    self.wfile.write(head.encode() + content + b"\r\n")
                    time.sleep(0.02)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def record(address, output, saved, **options):
    return calls.predict([address], output, saved, device="cpu", **options)


def test_a_film_with_a_length_loses_no_frame(saved, film, server, tmp_path, capsys):
    done = record(f"{server}/a.mp4", tmp_path / "live.mp4", saved, areas=True, formats=["overlay"])
    assert f"{FRAMES} frames of {server}/a.mp4 are segmented, 0 came too fast" in capsys.readouterr().err
    calls.predict([film], tmp_path / "file.mp4", saved, device="cpu", formats=["overlay"])
    one, two = (list(video.frames(tmp_path / name)) for name in ("live.mp4", "file.mp4"))
    assert len(one) == len(two) == FRAMES == done.areas[0].frames
    assert np.abs(np.array(one).astype(int) - np.array(two)).mean() < 2


def test_an_endless_stream_is_recorded_for_some_seconds(saved, server, tmp_path):
    done = record(f"{server}/camera", tmp_path / "live.mp4", saved, seconds=1.5, areas=True)
    found = video.inspect(tmp_path / "live.mp4")
    assert 1 < found.frames == done.areas[0].frames
    if films.is_installed():
        times = films.read_times(tmp_path / "live.mp4")
        assert 0.5 < float(times[-1] - times[0]) <= 1.5


def test_frames_that_nobody_takes_are_dropped_and_counted(server):
    with streams.open_stream(f"{server}/camera") as stream:
        assert stream.endless
        first = stream.next()
        while stream.dropped < 3:
            time.sleep(0.01)
        second = stream.next()
    assert first[0] == 0 < second[0] and second[1].shape == (48, 64, 3)


def test_a_signal_ends_a_stream_and_leaves_a_whole_file(saved, server, tmp_path, monkeypatch):
    taken = []
    plain = streams.Stream.next

    def interrupt(self):
        taken.append(1)
        if len(taken) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self)

    monkeypatch.setattr(streams.Stream, "next", interrupt)
    with pytest.raises(Interrupted, match=r"stopped by SIGINT; what came until then is in .*live\.mp4") as caught:
        record(f"{server}/camera", tmp_path / "live.mp4", saved)
    assert caught.value.exit_code == 130
    assert 3 <= video.inspect(tmp_path / "live.mp4").frames <= 5 and len(list(tmp_path.iterdir())) == 1


def test_nothing_comes_from_a_wrong_address(saved, tmp_path):
    with socket.socket() as taken:
        # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="no frame comes from there"):
            record(f"http://127.0.0.1:{taken.getsockname()[1]}/a.mp4", tmp_path / "live.mp4", saved)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sources", "output", "options", "why"),
    [
        (["rtsp://a/b", "c.png"], "out.mp4", {}, "other sources are given too"),
        (["rtsp://a/b"], "out", {}, "a stream becomes one video"),
        (["rtsp://a/b"], "out.png", {}, "a stream becomes one video"),
        (["rtsp://a/b"], "out.mp4", {"formats": ["train-id"]}, "cannot be written as train-id"),
        (["rtsp://a/b"], "out.mp4", {"processes": 2}, "is segmented by one process"),
        (["rtsp://a/b"], "old.mp4", {}, "exists"),
    ],
)
def test_what_a_stream_cannot_be_combined_with(saved, tmp_path, sources, output, options, why):
    (tmp_path / "old.mp4").write_bytes(b"mine")
    with pytest.raises(InputError, match=why):
        calls.predict(sources, tmp_path / output, saved, device="cpu", **options)
    assert (tmp_path / "old.mp4").read_bytes() == b"mine"


def test_what_is_an_address():
    for name in ("rtsp://user:word@camera:554/live?a=//b", "HTTP://x/y.mp4", "/dev/video0", "udp://@:1234"):
        assert streams.is_address(name)
    for name in ("photo.png", "http:photo.png", "/dev/null", "file:///a.mp4", "dev/video0", "https://a b"):
        assert not streams.is_address(name)


@pytest.fixture
def failing():
    """The address of a server: /silent never answers, /stalls sends some pictures and no more, /dies hangs up."""
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path == "/silent":
                over.wait(60)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            with contextlib.suppress(OSError):
                for number in range(40):
                    content = cv2.imencode(".jpg", tiny.picture(48, 64, number % 7))[1].tobytes()
                    head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                    self.wfile.write(head.encode() + content + b"\r\n")
                    time.sleep(0.02)
                if self.path == "/stalls":
                    over.wait(60)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        over.set()
        running.shutdown()


@pytest.mark.parametrize("name", ["stalls", "dies"])
def test_what_came_until_a_stream_broke_off_is_whole(saved, failing, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(streams, "PATIENCE_SECONDS", 1)
    done = record(f"{failing}/{name}", tmp_path / "live.mp4", saved, seconds=50, areas=True)
    assert 0 < video.inspect(tmp_path / "live.mp4").frames == done.areas[0].frames <= 40
    lines = [line for line in capsys.readouterr().err.splitlines() if "are segmented" in line]
    assert len(lines) == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["silent", "camera that is not there"])
def test_a_source_without_an_answer_is_refused_in_one_line(saved, failing, tmp_path, monkeypatch, name):
    monkeypatch.setattr(streams, "PATIENCE_SECONDS", 1)
    address = f"{failing}/silent" if name == "silent" else "/dev/video97"
    with pytest.raises(InputError, match="no frame comes from there") as caught:
        record(address, tmp_path / "live.mp4", saved, seconds=3)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def camera():
    with cameras.rtsp_server() as address:
        yield address


def test_an_rtsp_camera_shows_its_pictures_and_is_recorded_for_some_seconds(saved, camera, tmp_path, capsys):
    with streams.open_stream(f"{camera}/live") as stream:
        assert stream.endless and stream.size == cameras.SIZE
        _, frame = stream.next()
        # each picture is JPEG, as the camera sent it, and one of seven
        sent = [cv2.imdecode(cv2.imencode(".jpg", tiny.picture(48, 64, number))[1], 1) for number in range(7)]
        nearest, next_to_it, *_ = sorted(np.abs(frame.astype(int) - each).mean() for each in sent)
        assert nearest < 5 < next_to_it
    done = record(f"{camera}/live", tmp_path / "live.mp4", saved, seconds=1.5, areas=True, formats=["overlay"])
    found = video.inspect(tmp_path / "live.mp4")
    assert 1 < found.frames == done.areas[0].frames and found.size == cameras.SIZE
    assert f"{found.frames} frames of {camera}/live are segmented" in capsys.readouterr().err


def test_what_came_until_an_rtsp_camera_hung_up_is_whole(saved, camera, tmp_path):
    done = record(f"{camera}/dies", tmp_path / "live.mp4", saved, areas=True)
    assert 0 < video.inspect(tmp_path / "live.mp4").frames == done.areas[0].frames <= cameras.UNTIL_DEATH


def test_an_rtsp_camera_without_that_stream_is_refused_in_one_line(saved, camera, tmp_path):
    with pytest.raises(InputError, match="no frame comes from there"):
        record(f"{camera}/nothing", tmp_path / "live.mp4", saved)
    assert not list(tmp_path.iterdir())


def test_a_webcam_is_recorded_until_it_is_unplugged_and_slow_readers_lose_frames(saved, tmp_path, monkeypatch, capsys):
    webcam, asked = cameras.Webcam(30), []
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda *arguments: asked.append(arguments) or webcam)
    # the video that is written is looked at by the real one
    monkeypatch.setattr(video, "_count_frames", lambda _: written[0])
    plain, written = streams.Stream.next, [0]

    def slow(self):
        time.sleep(0.05)
        item = plain(self)
        written[0] += item is not None
        return item

    monkeypatch.setattr(streams.Stream, "next", slow)
    done = record("/dev/video0", tmp_path / "live.mp4", saved, areas=True)
    monkeypatch.undo()
    assert asked == [("/dev/video0", cv2.CAP_V4L2)] and webcam.released and webcam.read_all == 30
    frames = video.inspect(tmp_path / "live.mp4").frames
    dropped = int(capsys.readouterr().err.partition(" came too fast")[0].split()[-1])
    assert frames == done.areas[0].frames and 0 < dropped == 30 - frames
