"""Prediction: what is written for each kind of source, what is refused before anything is, and how it continues."""

import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import calls
import cv2
import numpy as np
import pytest
import tiny
import torch
from calls import class_scores, segment

from ccnet_cli import cli, devices
from ccnet_cli.errors import InputError, Interrupted
from ccnet_cli.inference import engine, segmenter, sharing
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.inference.views import to_input
from ccnet_cli.media import films, images, sources, video
from ccnet_cli.runs import checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def photos(tmp_path):
    """photos/a.png, photos/b.jpg, photos/town/c.png and a text file."""
    folder = tmp_path / "photos"
    tiny.write(folder / "a.png", tiny.picture(40, 56, 1))
    tiny.write(folder / "b.jpg", tiny.picture(33, 20, 2))
    tiny.write(folder / "town" / "c.png", tiny.picture(16, 16, 3))
    (folder / "notes.txt").write_text("no image")
    return folder


def predict(sources, output, saved, **options):
    found = calls.predict(sources, output, saved, device="cpu", **options).files
    assert all(path.is_file() for path in found)
    return found


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read(path):
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("native", [True, False])
def test_precision_auto_is_settled_and_told_once(saved, photos, tmp_path, monkeypatch, capsys, native):
    seen = []
    prepare = engine.prepare
    monkeypatch.setattr(devices, "computes_bf16", lambda device: native)
    monkeypatch.setattr(engine, "prepare", lambda *given: seen.append(given[2:]) or prepare(*given))
    taken = "bf16" if native else "fp32"
    predict([photos], tmp_path / "masks", saved, precision="auto", compile="auto")
    assert seen == [(taken, False, 3)]
    assert capsys.readouterr().err.count(f"precision {taken}") == 1


def test_long_videos_and_many_images_are_what_auto_compiles_for(saved, photos, tmp_path, monkeypatch):
    counts = []
    monkeypatch.setattr(engine, "compiles", lambda choice, device, images: counts.append(images))
    predict([photos], tmp_path / "masks", saved)
    predict([photos], tmp_path / "masks", saved, skip_complete=True)
    # refused or not before any work, then decided
    assert counts == [0, 3, 0, 3]


def test_the_rest_of_a_folder_is_answered_as_its_beginning_was(saved, photos, tmp_path, monkeypatch):
    seen = []
    prepare = engine.prepare
    monkeypatch.setattr(engine, "prepare", lambda *given: seen.append(given[4]) or prepare(*given))
    predict([photos], tmp_path / "masks", saved)
    (tmp_path / "masks" / "a.png").unlink()
    predict([photos], tmp_path / "masks", saved, skip_complete=True)
    assert seen == [3, 3]


def test_one_image_to_one_file(saved, photos, tmp_path):
    mask = tmp_path / "new" / "mask.png"
    assert predict([photos / "a.png"], mask, saved) == [mask]
    # a palette PNG: its indices are train ids, its colours the classes'
    ids = images.read_label(mask)
    assert ids.shape == (40, 56)
    assert len(np.unique(ids)) >= 3
    palette = np.array(load_model(saved).classes.palette)
    np.testing.assert_array_equal(read(mask), palette[ids][:, :, ::-1])
    predict([photos / "a.png"], tmp_path / "ids.png", saved, formats=["train-id"])
    np.testing.assert_array_equal(read(tmp_path / "ids.png"), ids)
    predict([photos / "a.png"], tmp_path / "over.png", saved, formats=["overlay"])
    np.testing.assert_array_equal(
        read(tmp_path / "over.png"), (read(photos / "a.png").astype(int) + palette[ids][:, :, ::-1]) // 2
    )


def test_the_checkpoint_tells_what_an_image_must_fit_and_which_classes_a_mirror_exchanges(photos, tmp_path):
    saved = tiny.save_checkpoint(tmp_path, "eval.fit=64,48", "eval.flip=true")
    content = checkpoint.read(saved)
    content["classes"]["mirrored"] = [[0, 1], [2, 5]]
    saved = checkpoint.save(tmp_path / "paired", 1, content, keep=2)
    predict([photos / "a.png"], tmp_path / "a.png", saved)
    restored, image = load_model(saved), read(photos / "a.png")
    assert restored.classes.mirrored == ((0, 1), (2, 5))
    cpu = torch.device("cpu")

    def expected(fit, mirrored):
        return segment(restored.network, image, cpu, flip=True, fit=fit, mirrored=mirrored)

    ids = images.read_label(tmp_path / "a.png")
    np.testing.assert_array_equal(ids, expected((64, 48), ((0, 1), (2, 5))))
    assert (ids != expected(None, ((0, 1), (2, 5)))).any() and (ids != expected((64, 48), ())).any()


def test_a_folder_is_mirrored(saved, photos, tmp_path):
    out = tmp_path / "out"
    written = predict([photos], out, saved)
    assert files(out) == ["a.png", "b.png", "town/c.png"]
    assert sorted(written) == sorted(out / name for name in files(out))
    assert images.read_label(out / "b.png").shape == (33, 20)


def test_globs_keep_what_follows_their_first_wildcard(saved, photos, tmp_path):
    assert predict([photos / "*.png"], tmp_path / "flat", saved) == [tmp_path / "flat" / "a.png"]
    predict([photos / "**" / "*.png"], tmp_path / "deep", saved)
    assert files(tmp_path / "deep") == ["a.png", "town/c.png"]
    odd = tiny.write(photos / "x[1].png", tiny.picture(9, 9, 4))
    assert predict([odd], tmp_path / "odd", saved) == [tmp_path / "odd" / "x[1].png"]


def test_several_formats_have_folders_of_their_own(saved, photos, tmp_path):
    predict([photos / "town"], tmp_path / "out", saved, formats=["color", "label-id", "color"])
    assert files(tmp_path / "out") == ["color/c.png", "label-id/c.png"]


def test_an_image_named_twice_is_segmented_once(saved, photos, tmp_path):
    assert len(predict([photos / "a.png", photos / "town" / ".." / "a.png"], tmp_path / "out", saved)) == 1


def test_masks_of_an_earlier_run_inside_the_folder_are_no_images(saved, photos):
    for _ in range(2):
        written = predict([photos], photos / "masks", saved, overwrite=True)
        assert len(written) == 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (23, 39)])
@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_masks_have_the_size_of_the_image(saved, tmp_path, shape, mode):
    image = tiny.write(tmp_path / "in.png", tiny.picture(*shape, 5))
    predict([image], tmp_path / "out.png", saved, mode=mode, scales=[0.5, 1.0], flip=True)
    assert images.read_label(tmp_path / "out.png").shape == shape


def test_the_rotation_of_a_photograph_is_applied(saved, tmp_path):
    done, jpeg = cv2.imencode(".jpg", tiny.picture(24, 40, 6))
    assert done
    # one EXIF entry: 0x112 orientation, a short, 6 (the camera stood upright)
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    turned = tmp_path / "turned.jpg"
    turned.write_bytes(bytes(jpeg[:2]) + b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body + bytes(jpeg[2:]))
    predict([turned], tmp_path / "out.png", saved)
    assert images.read_label(tmp_path / "out.png").shape == (40, 24)


def test_a_legend_is_drawn_and_existing_files_are_kept(saved, photos, tmp_path):
    legend = tmp_path / "legend.png"
    assert predict([photos / "a.png"], tmp_path / "a.png", saved, legend=legend)[-1] == legend
    assert min(read(legend).shape[:2]) > 50
    before = legend.read_bytes()
    with pytest.raises(InputError, match=r"legend\.png: exists"):
        predict([photos / "a.png"], tmp_path / "other.png", saved, legend=legend)
    assert not (tmp_path / "other.png").exists()
    with pytest.raises(InputError, match=r"a\.png: exists; pass --overwrite"):
        predict([photos / "a.png"], tmp_path / "a.png", saved)
    predict([photos / "a.png"], tmp_path / "a.png", saved, legend=legend, overwrite=True)
    assert legend.read_bytes() == before


def test_one_existing_mask_of_many_stops_before_the_first(saved, photos, tmp_path):
    out = tmp_path / "out"
    (out / "town").mkdir(parents=True)
    (out / "town" / "c.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists"):
        predict([photos], out, saved)
    assert files(out) == ["town/c.png"]
    assert (out / "town" / "c.png").read_bytes() == b"mine"


def test_masks_never_replace_the_images(saved, photos):
    before = (photos / "a.png").read_bytes()
    for output in (photos, photos / "a.png"):
        sources = [photos] if output is photos else [photos / "a.png"]
        with pytest.raises(InputError, match="is read by this command"):
            predict(sources, output, saved, overwrite=True)
    with pytest.raises(InputError, match="is read by this command"):
        predict([photos / "b.jpg"], photos / "mask.png", saved, legend=photos / "b.jpg", overwrite=True)
    assert (photos / "a.png").read_bytes() == before


def test_equal_names_are_refused_naming_both(saved, photos, tmp_path):
    other = tiny.write(tmp_path / "more" / "a.png", tiny.picture(8, 8, 7))
    with pytest.raises(InputError) as caught:
        predict([photos, tmp_path / "more"], tmp_path / "out", saved)
    assert str(photos / "a.png") in str(caught.value)
    assert str(other) in str(caught.value)
    assert not (tmp_path / "out").exists()
    tiny.write(photos / "a.jpg", tiny.picture(8, 8, 8))
    with pytest.raises(InputError, match="both would be written"):
        predict([photos], tmp_path / "out", saved)


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("missing.png", "out", "missing.png: does not exist"),
        ("empty", "out", "no image in this folder"),
        ("*.gif", "out", "no image matches"),
        ("photos/*/", "out", "no image matches"),
        ("photos", "out.png", "one file for 3 images"),
        ("photos/a.png", "out.jpg", "masks are PNG"),
        ("photos", "photos/notes.txt", "is a file"),
        ("photos/a.png", "wall/out.png", "wall"),
        ("nul\0.png", "out", "NUL"),
        ("photos/notes.txt", "out", "notes.txt"),
        ("fifo", "out", "regular file"),
        ("loop.png", "out", "loop.png"),
    ],
)
def test_bad_sources_and_outputs_are_refused(saved, photos, tmp_path, monkeypatch, source, output, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("wall").write_text("not a folder")
    os.mkfifo("fifo")
    Path("loop.png").symlink_to("loop.png")
    before = files(tmp_path)
    with pytest.raises(InputError, match=message):
        predict([source], Path(output), saved)
    assert files(tmp_path) == before
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["colour"]}, "format colour"),
        ({"formats": ["color", "overlay"]}, "2 formats"),
        ({"precision": "int4"}, "precision int4"),
        ({"compile": "on"}, "option --compile on"),
        ({"mode": "slide"}, "eval.mode"),
        ({"scales": [-1.0]}, "eval.scales"),
        ({"legend": Path("legend.txt")}, "no image suffix"),
    ],
)
def test_bad_options_are_refused(saved, photos, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        predict([photos / "a.png"], tmp_path / "out.png", saved, **options)
    assert not (tmp_path / "out.png").exists()


def test_unusual_names_are_kept(saved, tmp_path):
    names = ["ü ñ", "a b.c", "x" * 251]
    for name in names:
        tiny.write(tmp_path / "in" / f"{name}.png", tiny.picture(8, 8, 9))
    raw = os.fsencode(tmp_path / "in") + b"/\xff\xfe.png"
    Path(os.fsdecode(raw)).write_bytes((tmp_path / "in" / "ü ñ.png").read_bytes())
    predict([tmp_path / "in"], tmp_path / "out", saved)
    assert files(tmp_path / "out") == files(tmp_path / "in")


def test_progress_is_told_in_lines(saved, photos, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sharing, "PROGRESS_IMAGES", 2)
    predict([photos], tmp_path / "out", saved)
    told = capfd.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"image 2/3  segmented  eta \d+:\d\d\n", told.err)


def test_probabilities_lie_beside_the_masks(saved, photos, tmp_path):
    out = tmp_path / "out"
    predict([photos], out, saved, probabilities=True)
    assert files(out) == ["a.npz", "a.png", "b.npz", "b.png", "town/c.npz", "town/c.png"]
    restored = load_model(saved)
    for name, source in {"a": "a.png", "b": "b.jpg"}.items():
        with np.load(out / f"{name}.npz") as found:
            assert found["classes"].tolist() == list(restored.classes.names)
            share = found["probabilities"]
        assert share.dtype == np.float16
        scores = class_scores(restored.network, to_input(read(photos / source), restored.network.normalisation, "cpu"))
        odds = np.exp(scores.double().numpy() - scores.max().item())
        np.testing.assert_allclose(share, odds / odds.sum(axis=0), rtol=1e-3, atol=1e-6)
        ids = images.read_label(out / f"{name}.png")
        assert (np.take_along_axis(share, ids[None].astype(int), axis=0)[0] == share.max(axis=0)).all()
    predict([photos / "a.png"], tmp_path / "one.png", saved, probabilities=True)
    assert (tmp_path / "one.npz").read_bytes() == (out / "a.npz").read_bytes()
    predict([photos / "town"], tmp_path / "two", saved, probabilities=True, formats=["color", "overlay"])
    assert files(tmp_path / "two") == ["color/c.png", "npz/c.npz", "overlay/c.png"]


def test_areas_are_counted(saved, photos, tmp_path):
    result = calls.predict([photos], tmp_path / "out", saved, areas=True).to_mapping()
    json.dumps(result, allow_nan=False)
    assert result["checkpoint"] == str(saved)
    names = load_model(saved).classes.names
    assert [Path(entry["source"]).name for entry in result["sources"]] == ["a.png", "b.jpg", "c.png"]
    for entry, mask in zip(result["sources"], ["a.png", "b.png", "town/c.png"], strict=True):
        ids = images.read_label(tmp_path / "out" / mask)
        assert (entry["height"], entry["width"], entry["frames"]) == (*ids.shape, 1)
        assert list(entry["classes"]) == list(names)
        for number, area in enumerate(entry["classes"].values()):
            assert area == {"pixels": (ids == number).sum(), "share": (ids == number).mean()}
    assert calls.predict([photos], tmp_path / "other", saved).areas == []


def test_names_come_from_standard_input(saved, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path / "x[1].png", tiny.picture(8, 8, 7))
    tiny.write(tmp_path / "two\nlines.png", tiny.picture(8, 8, 8))
    elsewhere = tiny.write(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "d" / "e.png", tiny.picture(8, 8, 9))

    def listed(content, *more):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return list(sources.find(["-", *more]))

    lines = f"photos/a.png\r\n\n./photos/town/../town/c.png\n{elsewhere}\nx[1].png\n{photos / 'a.png'}".encode()
    assert names(listed(lines)) == {
        "photos/a.png": "photos/a",
        "photos/town/../town/c.png": "photos/town/c",
        str(elsewhere): "e",
        "x[1].png": "x[1]",
    }
    assert names(listed(b"two\nlines.png\0photos/a.png\0")) == {
        "two\nlines.png": "two\nlines",
        "photos/a.png": "photos/a",
    }
    assert list(names(listed(b"photos\n", "x[1].png")).values()) == ["a", "b", "town/c", "x[1]"]
    for content, message in [(b" \n\n", "names no image"), (b"no.png\n", "no.png: does not exist")]:
        (source,) = listed(content)
        assert re.match(f"standard input.*{message}", str(source.error))
    with pytest.raises(InputError, match=r"^standard input: a name is longer"):
        listed(b"x" * 200_000)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match=r"^standard input: is closed"):
        list(sources.find(["-"]))


def names(found):
    assert not any(source.error for source in found)
    return {str(source.path): source.name for source in found}


def film(path, count=6, size=(25, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"FFV1"), 7.5, size[::-1])
    for number in range(count):
        writer.write(tiny.picture(*size, number))
    writer.release()
    return path


def test_a_video_is_segmented_frame_by_frame(saved, tmp_path, capfd):
    source = film(tmp_path / "clips" / "day" / "a.mkv", size=(26, 40))
    restored = load_model(saved)
    ids = [segment(restored.network, frame, torch.device("cpu")) for frame in video.frames(source)]
    palette = np.array(restored.classes.palette)[:, ::-1]
    result = calls.predict([tmp_path / "clips"], tmp_path / "out", saved, formats=["color", "overlay"], areas=True)
    assert files(tmp_path / "out") == ["color/day/a.mp4", "overlay/day/a.mp4"]
    found = video.inspect(result.files[0])
    assert (found.frames, found.size) == (6, (26, 40)) and found.rate == pytest.approx(7.5, abs=0.02)
    wanted = {"color": palette[ids], "overlay": (palette[ids] + list(video.frames(source))) // 2}
    for path in result.files:
        difference = np.abs(np.array(list(video.frames(path))) - wanted[path.parts[-3]])
        assert difference.mean() < 16
    (area,) = result.areas
    assert (area.frames, area.size) == (6, (26, 40))
    assert area.pixels == tuple(np.bincount(np.ravel(ids), minlength=11).tolist())
    told = capfd.readouterr()
    assert told.out == ""
    if not films.is_installed():
        assert "sound, if a video has any, is not kept" in told.err and "ccnet-cli[video]" in told.err


def test_an_odd_video_grows_and_webm_is_written(saved, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sharing, "PROGRESS_IMAGES", 4)
    # an animated PNG, for OpenCV writes no odd video
    animation = cv2.Animation()
    animation.frames = [tiny.picture(25, 41, number) for number in range(6)]
    animation.durations = [250] * 6
    (tmp_path / "odd.mov").write_bytes(cv2.imencodeanimation(".png", animation)[1].tobytes())
    assert video.inspect(tmp_path / "odd.mov").size == (25, 41)
    result = calls.predict([tmp_path / "odd.mov"], tmp_path / "out.webm", saved, areas=True)
    assert video.inspect(tmp_path / "out.webm") == video.Video(tmp_path / "out.webm", 6, 4, (26, 42))
    assert sum(result.areas[0].pixels) == 6 * 25 * 41
    assert sum(area["share"] for area in result.to_mapping()["sources"][0]["classes"].values()) == pytest.approx(1)
    told = capfd.readouterr().err
    assert "odd.mov: 41x25 pixels become 42x26" in told
    assert "frame 4/6  segmented  eta" in told


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("out.avi", {}, r"videos are MP4, WebM, GIF or WebP files, not \.avi"),
        ("out.png", {}, "videos are MP4, WebM"),
        ("out", {"formats": ["train-id"]}, "cannot be written as train-id; use color or overlay"),
        ("out", {"probabilities": True}, "cannot be written as npz"),
        ("a.mkv", {"overwrite": True}, "videos are"),
    ],
)
def test_what_a_video_cannot_be_is_refused(saved, tmp_path, monkeypatch, output, options, message):
    monkeypatch.chdir(tmp_path)
    film(Path("a.mkv"))
    with pytest.raises(InputError, match=message):
        predict(["a.mkv"], Path(output), saved, **options)
    assert files(tmp_path) == ["a.mkv"]


def test_a_damaged_video_is_an_error_and_the_others_are_done(saved, photos, tmp_path):
    content = film(photos / "c.mkv", count=60).read_bytes()
    (photos / "c.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="1 of 4 sources were not segmented, the others were") as caught:
        predict([photos], tmp_path / "out", saved)
    (note,) = caught.value.__notes__
    assert note.startswith(f"video {photos}/c.mkv: truncated: ")
    assert files(tmp_path / "out") == ["a.png", "b.png", "town/c.png"]


def test_a_video_that_changes_while_it_is_read_leaves_nothing(saved, tmp_path, monkeypatch):
    source = film(tmp_path / "a.mkv")
    monkeypatch.setattr(video, "frames", lambda path, frames=video.frames: list(frames(path))[:-1])
    with pytest.raises(InputError, match="changed"):
        predict([source], tmp_path / "out", saved)
    assert files(tmp_path) == ["a.mkv"]


def test_continuing_passes_over_what_is_whole(saved, photos, tmp_path, capfd):
    film(photos / "v.mkv", size=(24, 40))
    out = tmp_path / "out"
    options = {"formats": ["color", "overlay"], "legend": tmp_path / "legend.png"}
    first = predict([photos], out, saved, **options)
    before = {path: path.stat().st_mtime_ns for path in first}
    capfd.readouterr()
    assert predict([photos], out, saved, **options, skip_complete=True) == [tmp_path / "legend.png"]
    assert "4 of 4 are there already" in capfd.readouterr().err
    assert all(path.stat().st_mtime_ns == before[path] for path in first[:-1])
    whole = {path: path.read_bytes() for path in first}
    (out / "overlay" / "a.png").unlink()
    (out / "color" / "b.png").write_bytes(whole[out / "color" / "b.png"][:-20])
    (out / "color" / "v.mp4").write_bytes(whole[out / "color" / "v.mp4"][:-300])
    again = predict([photos], out, saved, **options, skip_complete=True)
    assert {path.relative_to(out).stem for path in again[:-1]} == {"a", "b", "v"}
    assert {path: path.read_bytes() for path in first} == whole
    with pytest.raises(InputError, match="--overwrite is given too"):
        predict([photos], out, saved, skip_complete=True, overwrite=True)
    with pytest.raises(InputError, match="is a folder"):
        predict([photos / "a.png"], tmp_path / "town.png", saved, skip_complete=True, legend=folder(tmp_path / "l.png"))


def folder(path):
    path.mkdir()
    return path


def test_a_cut_array_is_written_again(saved, photos, tmp_path):
    predict([photos / "town"], tmp_path, saved, probabilities=True)
    content = (tmp_path / "c.npz").read_bytes()
    spoilt = bytearray(content)
    spoilt[len(content) // 2] ^= 1
    for damaged in (content[:-30], bytes(spoilt), b""):
        (tmp_path / "c.npz").write_bytes(damaged)
        assert len(predict([photos / "town"], tmp_path, saved, probabilities=True, skip_complete=True)) == 2
        assert (tmp_path / "c.npz").read_bytes() == content
    assert predict([photos / "town"], tmp_path, saved, probabilities=True, skip_complete=True) == []


@pytest.mark.parametrize("format", ["color", "train-id", "overlay", "label-id"])
def test_areas_of_what_is_kept_are_read_back_or_found_again(saved, photos, tmp_path, format):
    def run(**options):
        return calls.predict([photos], tmp_path / "out", saved, formats=[format], areas=True, **options)

    first = run()
    first.files[1].unlink()
    again = run(skip_complete=True)
    assert again.areas == first.areas
    assert len(again.files) == (1 if format in ("color", "train-id") else 3)


def test_a_kept_mask_of_other_classes_has_no_areas(saved, photos, tmp_path):
    images.write_label(tmp_path / "c.png", np.full((16, 16), 11, np.uint8))
    with pytest.raises(InputError, match=r"c\.png: holds 11, which is no class"):
        calls.predict([photos / "town"], tmp_path, saved, areas=True, skip_complete=True)


def stop_at(monkeypatch, number, count):
    """Send this process a signal within the count-th call of the network."""
    calls = []

    def scores(*arguments, found=segmenter.batch_scores, **options):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return found(*arguments, **options)

    monkeypatch.setattr(segmenter, "batch_scores", scores)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_image_at_hand_be_finished(saved, photos, tmp_path, monkeypatch, number):
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_at(patch, number, 2)
        with pytest.raises(Interrupted, match=f"stopped by {number.name} after 2 of 3, .*--continue") as caught:
            predict([photos], tmp_path / "out", saved)
    assert caught.value.exit_code == 128 + number
    assert files(tmp_path / "out") == ["a.png", "b.png"]
    assert signal.getsignal(number) is handler
    assert predict([photos], tmp_path / "out", saved, skip_complete=True) == [tmp_path / "out" / "town" / "c.png"]
    with monkeypatch.context() as patch:
        stop_at(patch, number, 3)
        assert len(predict([photos], tmp_path / "out", saved, overwrite=True)) == 3
        stop_at(patch, number, 1)
        with pytest.raises(Interrupted, match="run the same again"):
            predict([photos], tmp_path / "out", saved, overwrite=True)


def test_a_signal_gives_up_the_video_at_hand(saved, tmp_path, monkeypatch):
    for name in "ab":
        film(tmp_path / "clips" / f"{name}.mkv")
    stop_at(monkeypatch, signal.SIGTERM, 9)
    with pytest.raises(Interrupted, match="after 1 of 2"):
        predict([tmp_path / "clips"], tmp_path / "out", saved)
    assert files(tmp_path / "out") == ["a.mp4"]


def test_a_second_signal_ends_at_once(saved, photos, tmp_path, monkeypatch):
    stop_at(monkeypatch, signal.SIGINT, 1)
    stop_at(monkeypatch, signal.SIGINT, 1)
    # whatever earlier tests have made of it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            predict([photos], tmp_path / "out", saved)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "out").exists()


def test_other_threads_may_predict(saved, photos, tmp_path):
    thread = threading.Thread(target=predict, args=([photos], tmp_path / "out", saved))
    thread.start()
    thread.join()
    assert len(files(tmp_path / "out")) == 3


def test_what_dead_processes_left_is_swept(saved, photos, tmp_path):
    out = folder(tmp_path / "out")
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    host = socket.gethostname()
    left = [f".ccnet-{host}-{process.pid}-0123abcd.tmp", f".ccnet-{host}-{process.pid}-0123abcd.tmp.mp4"]
    others = [
        f".ccnet-{host}-{os.getpid()}-0123abcd.tmp",
        f".ccnet-else{host}-{process.pid}-0123abcd.tmp",
        ".ccnet-x.tmp",
    ]
    for name in left + others:
        (out / name).write_bytes(b"half")
    predict([photos / "town"], out, saved)
    assert files(out) == sorted([*others, "c.png"])
    with video.open_writer(out / "v.mp4", 5, (8, 8)) as write:
        write(np.zeros((8, 8, 3), np.uint8))
        assert any(name.startswith(f".tmp-{host}-{os.getpid()}-") for name in files(out))
        assert [source.path.name for source in sources.find([out], None)] == ["c.png"]


@pytest.fixture(scope="module")
def sixty(saved, tmp_path_factory):
    """Sixty photographs, and their masks and probabilities by an undisturbed run."""
    place = tmp_path_factory.mktemp("sixty")
    for number in range(60):
        tiny.write(place / "photos" / f"{number % 3}" / f"{number:02}.png", tiny.picture(64, 96, number))
    calls.predict([place / "photos"], place / "masks", saved, probabilities=True)
    return place / "photos", {name: (place / "masks" / name).read_bytes() for name in files(place / "masks")}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_folder_interrupted_at_any_moment_continues(saved, sixty, tmp_path, number):
    photos, whole = sixty
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ccnet_cli.cli", "predict", photos, "-o", out, "--checkpoint", saved]
    process = subprocess.Popen([*command, "--probabilities", "npz"], stderr=subprocess.PIPE, text=True)
    moment = random.randint(1, 50)
    while process.poll() is None and len(list(out.rglob("*.png"))) < moment:
        time.sleep(0.001)
    time.sleep(random.random() / 50)
    process.send_signal(number)
    told = process.communicate()[1]
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), told
    left = {name: (out / name).read_bytes() for name in files(out) if not Path(name).name.startswith(".tmp-")}
    assert moment <= len(left) < 120 and left.items() <= whole.items()
    if number != signal.SIGKILL:
        assert re.search(rf"^ccnet: error: predict: stopped by {number.name} after \d+ of 60.*--continue", told, re.M)
        assert len(files(out)) == len(left) == 2 * int(re.search(r"after (\d+) of", told)[1])
    written = predict([photos], out, saved, probabilities=True, skip_complete=True)
    done = sum(name.removesuffix(".png") + ".npz" in left for name in left if name.endswith(".png"))
    assert len(written) == 120 - 2 * done
    assert {name: (out / name).read_bytes() for name in files(out)} == whole


def test_the_command_line_tells_areas_alone(saved, photos, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{photos}/a.png\n{photos}/b.jpg".encode())))
    command = ["predict", "-", "-o", f"{tmp_path}/out", "--checkpoint", str(saved), "--probabilities", "npz"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command, "--json", "-"])
    assert [entry["width"] for entry in json.loads(capfd.readouterr().out)["sources"]] == [56, 20]
    assert files(tmp_path / "out") == ["a.npz", "a.png", "b.npz", "b.png"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{photos}/town/c.png".encode())))
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command, "--continue", "--json", f"{tmp_path}/areas.json"])
    assert capfd.readouterr().out.split() == [f"{tmp_path}/out/c.png", f"{tmp_path}/out/c.npz"]
    assert json.loads((tmp_path / "areas.json").read_text())["sources"][0]["width"] == 16


def test_a_prediction_loads_no_compiler_and_no_algebra(saved, photos, tmp_path):
    """Each is imported by one careless call, such as that of an operator made by torch.library.custom_op."""
    code = (
        "import sys\nfrom ccnet_cli.cli import main\n"
        f"sys.argv = ['ccnet', 'predict', {str(photos / 'a.png')!r}, '-o', {str(tmp_path / 'a.png')!r},"
        f" '--checkpoint', {str(saved)!r}, '--device', 'cpu']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print(*({'torch._dynamo', 'torch._inductor', 'sympy', 'scipy', 'matplotlib', 'onnx'}"
        " & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1].strip() == ""
    assert (tmp_path / "a.png").is_file()
