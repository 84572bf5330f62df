"""Label maps in other files than PNG, written by Pillow: every value comes back, or the file is refused."""

import io
import re

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from ccnet_cli.errors import InputError
from ccnet_cli.media import images

VALUES = np.random.default_rng(0).integers(0, 12, (37, 53), dtype=np.uint8)
COLOURS = np.array([((i * 37 + 5) % 256, i * 91 % 256, (i * 53 + 7) % 256) for i in range(256)], np.uint8)


def grey(values=VALUES):
    return Image.fromarray(values)


def palette(values=VALUES, count=256):
    picture = Image.fromarray(values, "P")
    picture.putpalette(COLOURS[:count].ravel().tolist())
    return picture


def saved(tmp_path, picture, kind, **options):
    path = tmp_path / f"label.{kind}"
    picture.save(path, **options)
    return path


WAYS = {
    "grey tif": (grey, "tif", {}),
    "palette tif": (palette, "tif", {}),
    "lzw": (palette, "tif", {"compression": "tiff_lzw"}),
    "deflate": (palette, "tif", {"compression": "tiff_adobe_deflate"}),
    "packbits": (grey, "tif", {"compression": "packbits"}),
    "grey bmp": (grey, "bmp", {}),
    "palette bmp": (palette, "bmp", {}),
    "4-bit bmp": (lambda: palette(count=16), "bmp", {"bits": 4}),
    "grey gif": (grey, "gif", {}),
    "palette gif": (palette, "gif", {}),
    "transparent gif": (palette, "gif", {"transparency": 3}),
    "grey transparent gif": (grey, "gif", {"transparency": 3}),
    "webp": (grey, "webp", {"lossless": True}),
    "colours alike": (lambda: grey().convert("RGB"), "bmp", {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_values_and_indices_come_back(tmp_path, way):
    make, kind, options = WAYS[way]
    np.testing.assert_array_equal(images.read_label(saved(tmp_path, make(), kind, **options)), VALUES)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.uint32])
def test_tiffs_may_be_signed_or_of_32_bits(tmp_path, kind):
    label = VALUES.astype(np.int64) * (1 if kind is np.int8 else 2000)
    (tmp_path / "label.tif").write_bytes(cv2.imencode(".tif", label.astype(kind))[1].tobytes())
    np.testing.assert_array_equal(images.read_label(tmp_path / "label.tif"), label)


def test_deeper_and_shallower_tiffs_come_back(tmp_path):
    deep = VALUES.astype(np.uint16) * 5000
    np.testing.assert_array_equal(images.read_label(saved(tmp_path, Image.fromarray(deep), "tif")), deep)
    for options in ({}, {"compression": "group4"}):
        bits = images.read_label(saved(tmp_path, Image.fromarray(VALUES > 5), "tif", **options))
        np.testing.assert_array_equal(bits, VALUES > 5)


@pytest.mark.parametrize("way", ["palette tif", "lzw", "palette bmp", "palette gif", "transparent gif"])
def test_colours_come_back(tmp_path, way):
    make, kind, options = WAYS[way]
    path = saved(tmp_path, make(), kind, **options)
    np.testing.assert_array_equal(images.read_colours(path)[..., ::-1], COLOURS[VALUES])
    assert images.is_one_channel(path)


@pytest.mark.parametrize(("kind", "options"), [("tif", {}), ("webp", {"lossless": True})])
def test_a_file_of_colours_is_read_as_such_and_has_no_values(tmp_path, kind, options):
    path = saved(tmp_path, palette().convert("RGB"), kind, **options)
    np.testing.assert_array_equal(images.read_colours(path)[..., ::-1], COLOURS[VALUES])
    assert not images.is_one_channel(path)
    with pytest.raises(InputError, match=r"has colour or alpha channels.*data\.labels can name colours"):
        images.read_label(path)


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path):
    stream = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(stream) as file:
        for step in (1, 2):
            info = TiffImagePlugin.ImageFileDirectory_v2()
            info[254] = step - 1
            grey(VALUES[::step, ::step].copy()).save(file, "tiff", tiffinfo=info)
            file.newFrame()
    (tmp_path / "label.tif").write_bytes(stream.getvalue())
    np.testing.assert_array_equal(images.read_label(tmp_path / "label.tif"), VALUES)


BAD = {
    "lossy webp": (grey, "webp", {}, "not a PNG: other formats change"),
    "jpeg in tif": (grey, "tif", {"compression": "jpeg"}, "not a PNG: other formats change"),
    "floats": (
        lambda: Image.fromarray(VALUES.astype(np.float32)),
        "tif",
        {},
        "a TIFF of floating-point numbers, where",
    ),
    "negative": (lambda: Image.fromarray(VALUES.astype(np.int32) - 1), "tif", {}, "holds int32 from -1 to 10, where"),
    "large": (lambda: Image.fromarray(VALUES.astype(np.int32) * 9999), "tif", {}, "holds int32 from 0 to 109989, w"),
    "pages": (grey, "tif", {"save_all": True, "append_images": [grey()]}, "a TIFF of several pictures"),
    "frames": (grey, "gif", {"save_all": True, "append_images": [grey(VALUES.copy()[::-1])]}, "a GIF of several"),
}


@pytest.mark.parametrize("way", BAD)
def test_what_changes_values_or_hides_some_is_refused(tmp_path, way):
    make, kind, options, words = BAD[way]
    with pytest.raises(InputError, match=words):
        images.read_label(saved(tmp_path, make(), kind, **options))


@pytest.mark.parametrize("kind", ["tiff", "bmp", "gif", "webp"])
def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path, kind):
    stream = io.BytesIO()
    grey().save(stream, kind, **({"lossless": True} if kind == "webp" else {}))
    content, path = stream.getvalue(), tmp_path / "label"
    for length in [*range(1, 64), *range(64, len(content), 97)]:
        path.write_bytes(content[:length])
        try:
            label = images.read_label(path)
        except InputError as error:
            assert re.match(r"label \S+: .+; \S+", str(error)) and "\n" not in str(error)
        else:
            np.testing.assert_array_equal(label, VALUES)
