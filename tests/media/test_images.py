import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import bad_inputs
import cv2
import numpy as np
import pytest

from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.media import images

PALETTE = [(index * 37 % 256, index * 91 % 256, 255 - index) for index in range(256)]
BROKEN_IMAGES = bad_inputs.broken_images()
BROKEN_LABELS = bad_inputs.broken_labels()


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", BROKEN_IMAGES)
def test_a_broken_image_is_refused_in_one_line(tmp_path, capfd, name):
    content, word = BROKEN_IMAGES[name]
    path = written(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        images.read_image(path)
    assert word in error.value.why
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # the codecs' own words stay out of the user's sight


@pytest.mark.parametrize("name", BROKEN_LABELS)
def test_a_broken_label_is_refused(tmp_path, capfd, name):
    content, word = BROKEN_LABELS[name]
    with pytest.raises(InputError) as error:
        images.read_label(written(tmp_path, name, content))
    assert word in error.value.why
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("colour", [0, 3])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (4, 3, 2, 1, 0)])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (9, 16), (1, 33), (33, 1)])
def test_label_values_are_those_of_the_file(tmp_path, colour, depth, filters, shape):
    values = np.random.default_rng(depth).integers(0, 1 << depth, shape, dtype=np.uint8)
    content = bad_inputs.png(values, depth, colour, PALETTE[: 1 << depth] if colour == 3 else None, filters)
    label = images.read_label(written(tmp_path, "label.png", content))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, values)


@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,)])
def test_sixteen_bit_labels_keep_their_values(tmp_path, filters):
    values = np.array([[0, 18, 255], [256, 24_000, 65_535]])
    label = images.read_label(written(tmp_path, "label.png", bad_inputs.png(values, 16, filters=filters)))
    assert label.dtype == np.uint16
    np.testing.assert_array_equal(label, values)


def test_transparency_does_not_disturb_labels(tmp_path):
    values = np.array([[0, 1, 2]], np.uint8)
    grey = bad_inputs.png(values, extra=bad_inputs.chunk(b"tRNS", b"\0\1"))
    np.testing.assert_array_equal(images.read_label(written(tmp_path, "grey.png", grey)), values)


def test_label_names_may_end_in_anything(tmp_path):
    values = np.array([[3, 4]], np.uint8)
    np.testing.assert_array_equal(images.read_label(written(tmp_path, "a.jpg", bad_inputs.png(values))), values)


def test_every_kind_of_image_becomes_bgr_bytes(tmp_path):
    rgb = bad_inputs.photograph(10, 14)
    bgr = rgb[:, :, ::-1]
    alpha = np.full((10, 14, 1), 7, np.uint8)
    grey = rgb[:, :, 0]
    ids = (np.arange(140) % 256).reshape(10, 14).astype(np.uint8)
    wide = rgb.astype(np.int64) * 256 + 77
    trns = bad_inputs.chunk(b"tRNS", b"\0\1\0\2\0\3")
    expected = {
        "rgb.png": (bad_inputs.png(rgb, colour=2, extra=trns, filters=(4, 1)), bgr),
        "rgba.png": (bad_inputs.png(np.dstack([rgb, alpha]), colour=6), bgr),
        "grey.png": (bad_inputs.png(grey), np.dstack([grey] * 3)),
        "grey_alpha.png": (bad_inputs.png(np.dstack([grey, alpha]), colour=4), np.dstack([grey] * 3)),
        "palette.png": (bad_inputs.png(ids, colour=3, palette=PALETTE), np.array(PALETTE, np.uint8)[ids][:, :, ::-1]),
        "sixteen.png": (bad_inputs.png(wide, 16, 2), bgr),
        "picture.bmp": (cv2.imencode(".bmp", bgr)[1].tobytes(), bgr),
        "lossless.webp": (cv2.imencode(".webp", bgr)[1].tobytes(), bgr),
        "misnamed.jpg": (bad_inputs.png(rgb, colour=2), bgr),
        "cmyk.jpg": (bad_inputs.flat_cmyk_jpeg((200, 100, 50, 255)), np.full((16, 16, 3), (50, 100, 200))),
    }
    for name, (content, pixels) in expected.items():
        image = images.read_image(written(tmp_path, name, content))
        assert image.dtype == np.uint8, name
        np.testing.assert_allclose(image.astype(int), pixels, atol=1, err_msg=name)
        assert images.read_size(tmp_path / name) == pixels.shape[:2]


def extended_webp(content, width, height):
    """A WebP file in the extended format, whose header has the size a second time."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"WEBPVP8X" + (10).to_bytes(4, "little") + bytes(4) + size + content[12:]
    return b"RIFF" + len(chunks).to_bytes(4, "little") + chunks


@pytest.mark.parametrize(("kind", "quality"), [(b"VP8 ", 90), (b"VP8L", 101)])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (300, 7)])
def test_webp_files_of_every_format_have_height_and_width(tmp_path, kind, quality, shape):
    # grey ramps, which differ from top to bottom and from left to right: lossy files halve the resolution of colours
    ramp = np.linspace(20, 120, shape[0])[:, None] + np.linspace(0, 100, shape[1])[None]
    picture = np.repeat(ramp.astype(np.uint8)[..., None], 3, axis=2)
    content = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
    assert content[12:16] == kind
    for name, file in (("plain.webp", content), ("extended.webp", extended_webp(content, *shape[::-1]))):
        path = written(tmp_path, name, file)
        assert images.read_size(path) == shape
        assert np.abs(images.read_image(path).astype(int) - picture).mean() < 8


def test_an_animated_webp_is_refused(tmp_path):
    content = cv2.imencode(".webp", bad_inputs.photograph(24, 40))[1].tobytes()
    animated = bytearray(extended_webp(content, 40, 24))
    animated[20] |= 2
    with pytest.raises(InputError, match="an animated WebP"):
        images.read_image(written(tmp_path, "a.webp", bytes(animated)))


def bmp(picture_bgr, header, rows):
    """A BMP file of 24 bits: a header of 12 or 40 bytes, rows stored from the bottom or from the top."""
    height, width = picture_bgr.shape[:2]
    padded = np.zeros((height, -(-3 * width // 4) * 4), np.uint8)
    padded[:, : 3 * width] = picture_bgr.reshape(height, -1)
    signed = -height if rows == "top" else height
    length = 2 if header == 12 else 4
    sizes = width.to_bytes(length, "little") + signed.to_bytes(length, "little", signed=True)
    head = header.to_bytes(4, "little") + sizes + (1).to_bytes(2, "little") + (24).to_bytes(2, "little")
    head += bytes(header - len(head))
    data = (padded if rows == "top" else padded[::-1]).tobytes()
    size = 14 + header + len(data)
    return b"BM" + size.to_bytes(4, "little") + bytes(4) + (14 + header).to_bytes(4, "little") + head + data


@pytest.mark.parametrize(("header", "rows"), [(12, "bottom"), (40, "bottom"), (40, "top")])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (300, 2)])
def test_bmp_files_of_every_header_and_row_order_are_read(tmp_path, header, rows, shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    path = written(tmp_path, "a.bmp", bmp(picture, header, rows))
    assert images.read_size(path) == shape
    np.testing.assert_array_equal(images.read_image(path), picture)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_sound_jpegs_are_read_whatever_follows_them(tmp_path, capfd, options):
    picture = bad_inputs.photograph()
    content = bad_inputs.with_exif(bad_inputs.jpeg(picture, *options), 1, thumbnail=bad_inputs.jpeg(picture[:16, :16]))
    for tail in (b"", bytes(99), bad_inputs.jpeg(picture[:8])):
        image = images.read_image(written(tmp_path, "a.jpg", content + tail))
        assert np.abs(image.astype(int) - picture).mean() < 6
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
@pytest.mark.parametrize("suffix", images.IMAGE_SUFFIXES)
def test_thin_images_are_read(tmp_path, shape, suffix):
    path = tmp_path / f"thin{suffix}"
    images.write_image(path, np.full((*shape, 3), 90, np.uint8))
    image = images.read_image(path)
    assert image.shape == (*shape, 3)
    assert images.read_size(path) == shape
    np.testing.assert_allclose(image.astype(int), 90, atol=2)


def test_a_flat_end_is_not_taken_for_missing_data(tmp_path):
    picture = bad_inputs.photograph()
    picture[20:] = 0
    assert not images.read_image(written(tmp_path, "a.jpg", bad_inputs.jpeg(picture)))[40:].any()


def test_exif_turns_the_image_only_on_request(tmp_path):
    picture = bad_inputs.photograph(24, 40)
    path = written(tmp_path, "a.jpg", bad_inputs.with_exif(bad_inputs.jpeg(picture), 6))
    upright, turned = images.read_image(path), images.read_image(path, exif=True)
    assert upright.shape == (24, 40, 3)
    assert images.read_size(path) == (24, 40)
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))


# what undoes each orientation, by the EXIF standard: where the sensor's first row and column are
TURNS = {
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.transpose(1, 0, 2),
    6: lambda picture: np.rot90(picture, -1),
    7: lambda picture: picture[::-1, ::-1].transpose(1, 0, 2),
    8: lambda picture: np.rot90(picture),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_is_undone_on_request(tmp_path, orientation):
    stored = bad_inputs.jpeg(bad_inputs.photograph(24, 40))
    plain = images.read_image(written(tmp_path, "plain.jpg", stored))
    path = written(tmp_path, "a.jpg", bad_inputs.with_exif(stored, orientation))
    np.testing.assert_array_equal(images.read_image(path), plain)
    np.testing.assert_array_equal(images.read_image(path, exif=True), TURNS[orientation](plain))
    assert images.read_size(path) == (24, 40)


def test_a_segment_of_arithmetic_coding_is_no_frame(tmp_path):
    """Its marker lies among those of frames, as do those of tables; only frames have a size."""
    content = bad_inputs.jpeg(bad_inputs.photograph(24, 40))
    at = content.index(b"\xff\xda")
    path = written(tmp_path, "a.jpg", content[:at] + b"\xff\xcc\0\4\0\x10" + content[at:])
    assert images.read_size(path) == (24, 40)
    assert images.read_image(path).shape == (24, 40, 3)


def test_the_size_is_checked_before_any_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(images.cv2, "imdecode", None)
    path = written(tmp_path, "bomb.jpg", bad_inputs.with_size(bad_inputs.jpeg(), 10_000, 20_000))
    with pytest.raises(InputError, match="limit"):
        images.read_image(path)


def test_opencv_has_the_limit_too(tmp_path):
    path = written(tmp_path, "bomb.jpg", bad_inputs.with_size(bad_inputs.jpeg(), 10_000, 20_000))
    code = "import sys, pathlib, ccnet_cli.media.images as images; images.PIXEL_LIMIT = 1 << 40\n"
    code += "path = pathlib.Path(sys.argv[1]); print(images.read_size(path)); images.read_image(path)"
    env = {key: value for key, value in os.environ.items() if not key.startswith("OPENCV")}
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=env)
    assert done.stdout == "(10000, 20000)\n"
    assert "cannot be decoded" in done.stderr  # and not: pixels are missing


def test_only_regular_files_are_opened(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    names = [pipe, loop, Path("/dev/zero"), tmp_path, tmp_path / "missing.png", tmp_path / "nul\0.png"]
    for path in [*names, tmp_path / ("x" * 300)]:
        for read in (images.read_image, images.read_label, images.read_size):
            with pytest.raises(InputError) as error:
                read(path)
            assert str(error.value).isprintable()


def test_a_file_past_the_byte_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "BYTE_LIMIT", 100)
    with pytest.raises(InputError, match="larger than"):
        images.read_image(written(tmp_path, "a.png", bytes(101)))


@pytest.mark.parametrize("name", ["two words.png", "straße_雪.png", "x" * 251 + ".png", b"caf\xe9.png", "a\nb.png"])
def test_any_file_name_can_be_read_and_written(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    picture = bad_inputs.photograph(8, 8)
    images.write_image(path, picture)
    np.testing.assert_array_equal(images.read_image(path), picture)
    images.write_label(path, picture[:, :, 0])
    np.testing.assert_array_equal(images.read_label(path), picture[:, :, 0])
    assert len(list(tmp_path.iterdir())) == 1


def test_written_labels_are_what_another_reader_sees(tmp_path):
    ids = np.random.default_rng(0).integers(0, 256, (7, 11), dtype=np.uint8)
    images.write_label(tmp_path / "grey.png", ids)
    header, colours, values = bad_inputs.read_png((tmp_path / "grey.png").read_bytes())
    assert (header[8:], colours) == (bytes([8, 0, 0, 0, 0]), b"")
    np.testing.assert_array_equal(values, ids)
    images.write_label(tmp_path / "palette.png", ids, PALETTE[1:4])
    header, colours, values = bad_inputs.read_png((tmp_path / "palette.png").read_bytes())
    assert header[8:] == bytes([8, 3, 0, 0, 0])
    assert colours == bytes(np.array(PALETTE[1:4]).ravel().tolist()) + bytes(253 * 3)
    np.testing.assert_array_equal(values, ids)
    np.testing.assert_array_equal(images.read_label(tmp_path / "palette.png"), ids)
    expected = np.zeros((7, 11, 3), np.uint8)
    for number in range(3):
        expected[ids == number] = PALETTE[1 + number][::-1]
    np.testing.assert_array_equal(images.read_image(tmp_path / "palette.png"), expected)
    np.testing.assert_array_equal(images.colorize(ids, PALETTE[1:4]), expected)


def test_images_are_written_with_ordinary_permissions_and_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "a.png"
    images.write_image(path, bad_inputs.photograph())
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    np.testing.assert_array_equal(images.read_image(path), bad_inputs.photograph())
    assert images.encode_png(bad_inputs.photograph()) == path.read_bytes()


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = written(tmp_path, "a.png", b"old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(EnvironmentFailure, match="No space left"):
        images.write_image(path, bad_inputs.photograph())
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_places_that_cannot_be_written_are_refused(tmp_path):
    file = written(tmp_path, "file", b"x")
    for path in (file / "a.png", tmp_path / "nul\0.png", tmp_path / ("x" * 300 + ".png"), tmp_path / "a.txt"):
        with pytest.raises(InputError):
            images.write_image(path, bad_inputs.photograph())
    with pytest.raises(InputError, match="PNG"):
        images.write_label(tmp_path / "a.jpg", np.zeros((2, 2), np.uint8))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_legend_shows_every_colour():
    picture = images.draw_legend(["road", "straße", "car"], PALETTE[5:8])
    assert picture.shape[0] == 28 * 3 + 12
    for colour in PALETTE[5:8]:
        assert (picture == colour[::-1]).all(axis=2).sum() >= 20 * 38
    assert (picture[:, 60:] < 100).any()  # text


def test_each_line_of_the_legend_is_its_own_class_whole():
    long = "a class of a very long name indeed"
    alone, several = images.draw_legend([long], [(9, 8, 7)]), images.draw_legend(["x", long], [(1, 2, 3), (9, 8, 7)])
    assert several.shape[1] == alone.shape[1]
    np.testing.assert_array_equal(several[28 + 9 : 28 + 31], alone[9:31])
    assert (alone[:, -14:] == 255).all(), "the text reaches the edge"
    assert several[20, 30].tolist() == [3, 2, 1]


def test_texts_to_draw_are_ascii_without_accents():
    # the second is written with combining marks
    for text in ("Straße, Tür, ñ", "Straße, Tu\u0308r, n\u0303"):
        assert images.ascii_text(text) == "Stra?e, Tur, n"
    assert images.ascii_text("日本 ½") == "?? 1?2"


def test_words_of_others_on_stderr_are_kept(capfd):
    with images.codec_messages() as messages:
        thread = threading.Thread(target=os.write, args=(2, b"30 %"))
        thread.start()
        thread.join()
        os.write(2, b"Corrupt JPEG data: x\n")
    assert messages == [b"Corrupt JPEG data: x\n"]
    assert capfd.readouterr().err == "30 %"


def test_images_are_read_with_stderr_closed(tmp_path):
    images.write_image(tmp_path / "a.jpg", bad_inputs.photograph())
    code = "import os, pathlib, ccnet_cli.media.images as images; os.close(2)\n"
    code += f"print(images.read_image(pathlib.Path({str(tmp_path / 'a.jpg')!r})).shape)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout == b"(64, 96, 3)\n"


def test_an_opencv_that_cannot_be_loaded_is_explained_in_one_line():
    code = "import sys; sys.modules['cv2'] = None\nfrom ccnet_cli.errors import EnvironmentFailure\n"
    code += "try:\n import ccnet_cli.media.images\nexcept EnvironmentFailure as error:\n print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "opencv-python-headless" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_missing_system_library_is_explained_in_two_lines():
    told = "libGL.so.1: cannot open shared object file: No such file or directory"
    code = "import sys\nfrom ccnet_cli import cli\nclass Finder:\n def find_spec(self, name, *rest):\n"
    code += f"  if name == 'cv2': raise ImportError('{told}')\n"
    code += "sys.meta_path.insert(0, Finder())\ncli.main(['data', 'check', '.', '--quiet'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert_two_lines(done.stderr, "libGL.so.1")


def assert_two_lines(told, library):
    first, second = told.splitlines()
    assert first.startswith(f"ccnet: error: opencv: the system library {library} is missing; apt-get install libgl1 ")
    assert second.startswith(
        "ccnet: or, without root: pip uninstall -y opencv-python && pip install opencv-python-head"
    )


# in a mount namespace of its own; the folder is replaced by one of links to what it held
HIDE = """
mkdir "$2" "$2/real" "$2/shown"
mount --bind "$1" "$2/real"
ln -s "$2"/real/* "$2/shown"
rm "$2"/shown/libGL.so* "$2"/shown/libxcb.so*
mount --bind "$2/shown" "$1"
shift 2
exec "$@"
"""


@pytest.fixture
def hidden(tmp_path):
    """Run a command for which libGL and libxcb are not there; skips where they cannot be hidden."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.is_file() else []
    folders = {Path(line.split()[-1]).parent for line in lines if "/libGL.so" in line or "/libxcb.so" in line}
    if len(folders) != 1:
        pytest.skip("this OpenCV does without system libraries")

    def run(name, *command):
        words = ["unshare", "-rm", "sh", "-ec", HIDE, "sh", *folders, tmp_path / name, *command]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    if shutil.which("unshare") is None or run("trial", "true").returncode != 0:
        pytest.skip("nothing can be hidden here")
    return run


def test_hidden_system_libraries_are_explained(hidden):
    done = hidden("check", sys.executable, "-m", "ccnet_cli.cli", "data", "check", ".")
    assert (done.returncode, done.stdout) == (3, "")
    library = re.search(r"lib(GL|xcb)\.so\.1", done.stderr)
    assert_two_lines(done.stderr, library[0])
    (check,) = json.loads(hidden("doctor", sys.executable, "-m", "ccnet_cli.commands.doctor", "opencv").stdout)
    assert check["state"] == "fail"
    assert check["detail"] == f"the system library {library[0]} is missing; this system lacks libGL.so.1, libxcb.so.1"
    assert "apt-get" in check["fix"] and "opencv-python-headless" in check["fix"]


def test_random_damage_never_passes_for_a_whole_file_or_crashes(tmp_path, capfd):
    random = np.random.default_rng(0)
    picture = bad_inputs.photograph(16, 24)
    sources = [bad_inputs.png(picture, colour=2), bad_inputs.jpeg(picture), cv2.imencode(".webp", picture)[1].tobytes()]
    for number, content in enumerate(sources * 60):
        damaged = bytearray(content[: random.integers(1, len(content))] if number % 2 else content)
        for _ in range(3):
            damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        path = written(tmp_path, "a.png", bytes(damaged))
        try:
            image = images.read_image(path)
        except InputError:
            continue
        assert image.dtype == np.uint8
        assert not damaged.startswith(images.PNG_SIGNATURE)  # there, checksums tell every damage
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("options", [[], [cv2.IMWRITE_TIFF_COMPRESSION, 1], [cv2.IMWRITE_TIFF_COMPRESSION, 8]])
@pytest.mark.parametrize("kind", ["colour", "grey", "16 bits", "transparent"])
def test_a_tiff_is_read_as_its_pixels_are(tmp_path, kind, options):
    photo = bad_inputs.photograph(33, 20)
    grey = photo[..., 0]
    stored, expected = {
        "colour": (photo, photo),
        "grey": (grey, grey[..., None].repeat(3, 2)),
        "16 bits": (photo.astype(np.uint16) * 257, photo),
        "transparent": (np.dstack([photo, np.full((33, 20), 255, np.uint8)]), photo),
    }[kind]
    content = cv2.imencode(".tiff", stored, options)[1].tobytes()
    path = written(tmp_path, "a.tif", content)
    np.testing.assert_array_equal(images.read_image(path), expected)
    assert images.read_size(path) == (33, 20)
    for length in (6, 9, 40, len(content) * 2 // 3):
        with pytest.raises(InputError, match="TIFF"):
            images.read_image(written(tmp_path, "b.tif", content[:length]))


def test_a_tiff_of_floats_is_refused(tmp_path):
    content = cv2.imencode(".tiff", bad_inputs.photograph(9, 9).astype(np.float32))[1].tobytes()
    with pytest.raises(InputError, match="a TIFF of 32 bits a sample"):
        images.read_size(written(tmp_path, "a.tif", content))
