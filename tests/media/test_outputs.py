"""Outputs: what each format holds, which are complete, and which paths are refused."""

import cv2
import numpy as np
import pytest

from ccnet_cli.errors import InputError
from ccnet_cli.media import images, outputs, video
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.layout import Layout

CLASSES = Classes(("road", "car", "sky"), ((200, 10, 30), (0, 255, 1), (90, 60, 250)), (7, 26, 23))
IDS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
IMAGE = np.array([[[250, 251, 252], [0, 1, 2], [9, 200, 100]], [[1, 3, 5], [255, 255, 255], [0, 0, 0]]], np.uint8)


def test_each_format_holds_what_it_says(tmp_path):
    for name in outputs.FORMATS:
        outputs.write(tmp_path / name / "a.png", name, IDS, IMAGE, CLASSES)
    read = {name: tmp_path / name / "a.png" for name in outputs.FORMATS}
    colours = np.array(CLASSES.palette)[IDS][..., ::-1]
    assert (images.read_label(read["color"]) == IDS).all() and (images.read_image(read["color"]) == colours).all()
    assert (images.read_label(read["train-id"]) == IDS).all()
    assert images.read_label(read["label-id"]).tolist() == [[7, 26, 23], [23, 26, 7]]
    assert (images.read_image(read["overlay"]) == (IMAGE.astype(int) + colours) // 2).all()
    with pytest.raises(ValueError, match="unknown format"):
        outputs.write(tmp_path / "b.png", "x", IDS, IMAGE, CLASSES)


def test_a_legend_names_the_classes_that_are_in_the_picture_the_largest_first(tmp_path):
    ids = np.zeros((300, 400), np.uint8)
    ids[:200] = 2
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    outputs.write(tmp_path / "a.png", "overlay-legend", ids, image, CLASSES)
    drawn = images.read_image(tmp_path / "a.png")
    assert (drawn[:, :400] == outputs.draw("overlay", ids, image, CLASSES)).all()
    assert len(drawn) == 300 and (drawn[80:, 400:] == 255).all()
    # the swatches, one below the other
    swatches = [drawn[20 + 28 * row, 400 + 30][::-1].tolist() for row in range(2)]
    assert swatches == [list(CLASSES.palette[2]), list(CLASSES.palette[0])]
    # a picture lower than its legend is not cut, and the letters of a large one are larger
    outputs.write(tmp_path / "b.png", "overlay-legend", IDS, IMAGE, CLASSES)
    assert images.read_image(tmp_path / "b.png").shape[0] == 3 * 28 + 12
    wide = outputs.draw_with_legend(ids.repeat(4, 0), image.repeat(4, 0), CLASSES).shape[1] - 400
    assert wide > 2 * (drawn.shape[1] - 400)


def test_formats_are_checked_and_have_folders_of_their_own_if_several(tmp_path):
    assert outputs.check_formats(["overlay", "color", "overlay"]) == ("overlay", "color")
    for formats in ([], ["colour"]):
        with pytest.raises(InputError, match="choose from color, overlay, train-id, label-id"):
            outputs.check_formats(formats)
    assert outputs.destinations(tmp_path, "a/b", ["color"]) == {"color": tmp_path / "a/b.png"}
    assert outputs.destinations(tmp_path, "a", ["color", "overlay"], ".mp4") == {
        "color": tmp_path / "color/a.mp4",
        "overlay": tmp_path / "overlay/a.mp4",
    }


def test_names_stay_below_the_folder(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "link").symlink_to(elsewhere)
    (out / "loop").symlink_to(out / "loop")
    assert outputs.path_inside(out, "a/b.png") == out / "a/b.png"
    for name in ("../a.png", "a/../../b.png", "..\\a.png", "link/a.png", "loop/a.png", "/etc/a.png", "a\0.png"):
        with pytest.raises(InputError, match="would be written outside"):
            outputs.path_inside(out, name)


def test_a_truncated_output_is_not_complete(tmp_path):
    outputs.write(tmp_path / "a.png", "train-id", IDS, IMAGE, CLASSES)
    outputs.write_probabilities(tmp_path / "a.npz", np.full((3, 40, 50), 1 / 3, np.float32), CLASSES)
    for name in ("a.mp4", "a.webm"):
        with video.open_writer(tmp_path / name, 5, (48, 64)) as write:
            for level in range(20):
                write(np.full((48, 64, 3), 10 * level, np.uint8))
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["probabilities"].shape == (3, 40, 50) and stored["classes"].tolist() == list(CLASSES.names)
    for name in ("a.png", "a.npz", "a.mp4", "a.webm"):
        path = tmp_path / name
        assert outputs.is_complete(path)
        content = path.read_bytes()
        for rest in (len(content) - 1, len(content) - len(content) // 4, 60, 3):
            path.write_bytes(content[:rest])
            assert not outputs.is_complete(path), (name, rest)
        path.write_bytes(b"")
        assert not outputs.is_complete(path)
        path.unlink()
        assert not outputs.is_complete(path)


def test_a_changed_byte_of_an_npz_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    outputs.write_probabilities(path, np.random.default_rng(0).random((3, 40, 50), np.float32), CLASSES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not outputs.is_complete(path)


def test_jpegs_are_written_close_to_the_image(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    smooth = cv2.resize(picture, (96, 64), interpolation=cv2.INTER_CUBIC)
    images.write_image(tmp_path / "a.jpg", smooth)
    assert np.abs(images.read_image(tmp_path / "a.jpg").astype(int) - smooth).mean() < 3


@pytest.mark.parametrize("name", ["v.apng", "mask.jp2", "MASK.SVG", "v.txt", "v.mp3", "v.json"])
def test_a_file_of_a_kind_that_is_not_written_is_no_folder(tmp_path, name):
    with pytest.raises(InputError, match="files are not written; end the name in"):
        Layout(tmp_path / name, ("color",))
    # who has such a folder means it
    (tmp_path / name).mkdir()
    assert not Layout(tmp_path / name, ("color",)).is_file
    assert not Layout(tmp_path / "masks.v2", ("color",)).is_file
