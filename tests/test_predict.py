"""Prediction: what is written for files, folders and globs, and what is refused before anything is."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import torch

from ccnet_cli import checkpoint, images, loading
from ccnet_cli import predict as prediction
from ccnet_cli.errors import InputError
from ccnet_cli.inference import segment


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
    found = prediction.predict([str(source) for source in sources], output, saved, device="cpu", **options).files
    assert all(path.is_file() for path in found)
    return found


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read(path):
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


def test_one_image_to_one_file(saved, photos, tmp_path):
    mask = tmp_path / "new" / "mask.png"
    assert predict([photos / "a.png"], mask, saved) == [mask]
    # a palette PNG: its indices are train ids, its colours the classes'
    ids = images.read_label(mask)
    assert ids.shape == (40, 56)
    assert len(np.unique(ids)) >= 3
    palette = np.array(loading.restore(saved).classes.palette)
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
    restored, image = loading.restore(saved), read(photos / "a.png")
    assert restored.classes.mirrored == ((0, 1), (2, 5))
    cpu = torch.device("cpu")

    def expected(fit, mirrored):
        return segment(restored.model, image, cpu, flip=True, fit=fit, mirrored=mirrored)

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
        with pytest.raises(InputError, match="one of the images"):
            predict(sources, output, saved, overwrite=True)
    with pytest.raises(InputError, match="one of the images"):
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
        ({"precision": "int8"}, "precision int8"),
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
    monkeypatch.setattr(prediction, "EVERY", 2)
    predict([photos], tmp_path / "out", saved)
    told = capfd.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"image 2/3  segmented  eta \d+:\d\d\n", told.err)
