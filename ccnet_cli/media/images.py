"""Read and write images and label maps, every file checked first; the only user of OpenCV's codecs."""

import contextlib
import os
import re
import stat
import tempfile
import threading
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.media import IMAGE_SUFFIXES as IMAGE_SUFFIXES

# 16384 x 8192, about 400 MB as a decoded image: larger ones are refused from their header
PIXEL_LIMIT = 1 << 27
BYTE_LIMIT = 1 << 30
# what opencv-python is linked to
SYSTEM_PACKAGES = "libgl1 libglib2.0-0 libxcb1"

# OpenCV reads this once, while it is loaded
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(PIXEL_LIMIT))
try:
    import cv2 as cv2
except ImportError as error:
    headless = "pip uninstall -y opencv-python && pip install opencv-python-headless, which needs no system libraries"
    library = re.match(r"(\S+\.so\S*): cannot open shared object file", str(error))
    if library is None:
        raise EnvironmentFailure("opencv", f"cannot be loaded ({error})", f"run {headless}") from None
    failure = EnvironmentFailure(
        "opencv", f"the system library {library[1]} is missing", f"apt-get install {SYSTEM_PACKAGES} (Debian, Ubuntu)"
    )
    failure.add_note(f"or, without root: {headless}")
    raise failure from None

# our errors say what is wrong with a file
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Palette = Sequence[Sequence[int]]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3
# inside entropy-coded data 0xFF is followed by 0 (a stuffed byte) or a restart marker, unless a marker ends it
JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
CODEC_MESSAGE = re.compile(rb"(?:Corrupt JPEG|Premature end|libpng |OpenCV: FFMPEG: )[^\n]*\n")
OTHER_FORMATS = {
    b"GIF8": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"version https://git-lfs": "a Git LFS pointer (run git lfs pull)",
}
_stderr_lock = threading.Lock()


class _DamagedError(Exception):
    """What is wrong with a file's content; the caller adds its name."""


def read_bytes(path: Path, kind: str = "image") -> bytes:
    """Content of a regular, non-empty file of at most BYTE_LIMIT bytes; InputError begins with kind and path."""
    what = f"{kind} {path}"
    try:
        status = path.stat()
        # a pipe or a device could block, or never end
        if not stat.S_ISREG(status.st_mode):
            raise InputError(what, "not a regular file", f"give the path of one {kind} file")
        if status.st_size > BYTE_LIMIT:
            raise InputError(what, f"larger than {BYTE_LIMIT >> 20} MiB", f"give a smaller {kind} file")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({_reason(error)})"
        raise InputError(what, why, "check the path and its permissions") from None
    if not content:
        raise InputError(what, "is empty (0 bytes)", "copy or download it again")
    return content


def read_image(path: Path, exif: bool = False) -> Pixels:
    """A PNG, JPEG, WebP or BMP file as BGR (H, W, 3): grey repeated, alpha dropped, 16 bits cut to 8, CMYK converted.

    exif applies the EXIF rotation; without it the picture stays as the sensor, and a label map, has it.
    """
    content = read_bytes(path)
    try:
        (height, width), content = _inspect(content)
        image = _decode(content, cv2.IMREAD_COLOR if exif else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        shapes = [(height, width, 3), *([(width, height, 3)] if exif else [])]
        if image.dtype != np.uint8 or image.shape not in shapes:
            raise _DamagedError(f"decodes to {image.shape} where its header says {height} x {width}")
    except _DamagedError as error:
        raise InputError(f"image {path}", str(error), "replace the file, or convert it to PNG or JPEG") from None
    return image


def read_unchecked(path: Path, grey: bool = False) -> Pixels:
    """A file as OpenCV alone reads it, BGR (H, W, 3) or grey (H, W): what `ccnet bench data` compares with."""
    flags = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR
    return np.asarray(cv2.imdecode(np.fromfile(path, np.uint8), flags), np.uint8)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width by an image's header, without EXIF rotation; decodes no pixels."""
    try:
        return _inspect(read_bytes(path))[0]
    except _DamagedError as error:
        raise InputError(f"image {path}", str(error), "replace the file, or convert it to PNG or JPEG") from None


def read_label(path: Path) -> Labels:
    """Values (H, W) of a one-channel PNG: the indices of a palette, grey of 1 to 16 bits unscaled."""
    content = read_bytes(path, "label")
    try:
        if not content.startswith(PNG_SIGNATURE):
            raise _DamagedError("not a PNG: other formats change or cannot hold class values")
        chunks = _png_chunks(content)
        height, width, depth, colour = _png_header(chunks[0][1])
        if colour not in (GREY, PALETTE):
            raise _DamagedError("has colour or alpha channels; a label map has one channel of class values")
        # declared grey and without its palette, a palette picture decodes to its indices
        header = bytes(chunks[0][1][:9]) + bytes([GREY]) + bytes(chunks[0][1][10:])
        data = b"".join(body for name, body in chunks if name == b"IDAT")
        values = _decode(_png((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")), cv2.IMREAD_UNCHANGED)
        if values.shape != (height, width) or values.dtype != (np.uint16 if depth == 16 else np.uint8):
            raise _DamagedError(f"decodes to {values.shape} where its header says {height} x {width}")
    except _DamagedError as error:
        raise InputError(f"label {path}", str(error), "save it as an 8-bit grey or palette PNG") from None
    # the decoder scales fewer than 8 bits to the full range of grey
    return values if depth >= 8 else values // np.uint8(255 // ((1 << depth) - 1))


def write_image(path: Path, image_bgr: Pixels) -> None:
    """Write BGR (H, W, 3) in the format of the suffix, whole or not at all."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"output {path}", "has no image suffix", f"use one of {' '.join(IMAGE_SUFFIXES)}")
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix in (".jpg", ".jpeg") else []
    files.write_bytes(path, _encode(suffix, image_bgr, options))


def write_label(path: Path, ids: Pixels, palette: Palette | None = None) -> None:
    """Write ids (H, W) as a grey PNG, or with RGB colours of ids 0.. as a palette PNG (ids past them are black)."""
    if path.suffix.lower() != ".png":
        raise InputError(f"output {path}", "a label map must be a PNG", "give a name that ends in .png")
    height, width = ids.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter, 0
    rows[:, 1:] = ids
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, GREY if palette is None else PALETTE, 0, 0, 0])
    colours = [] if palette is None else [(b"PLTE", _table(palette).tobytes())]
    data = zlib.compress(rows.tobytes(), 6)
    files.write_bytes(path, _png((b"IHDR", header), *colours, (b"IDAT", data), (b"IEND", b"")))


def encode_png(image_bgr: Pixels, smallest: bool = False) -> bytes:
    """BGR (H, W, 3) as the bytes of a PNG file; smallest takes several times as long and halves the size."""
    return _encode(".png", image_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 9] if smallest else [])


def encode_jpeg(image_bgr: Pixels, quality: int = 88) -> bytes:
    """BGR (H, W, 3) as the bytes of a JPEG file, for thumbnails and previews."""
    return _encode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])


def colorize(ids: Pixels, palette: Palette) -> Pixels:
    """Ids (H, W) in the palette's RGB colours, as BGR (H, W, 3); ids past the palette, such as 255, are black."""
    return np.ascontiguousarray(_table(palette)[:, ::-1][ids])


def draw_legend(names: Sequence[str], palette: Palette) -> Pixels:
    """A picture of every class: a swatch of its RGB colour and its name, BGR (28 K + 12, W, 3) on white."""
    plain = [ascii_text(name) for name in names]
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.55
    widest = max(cv2.getTextSize(name, font, scale, 1)[0][0] for name in plain)
    picture = np.full((28 * len(plain) + 12, 60 + widest + 14, 3), 255, np.uint8)
    for row, (name, (red, green, blue)) in enumerate(zip(plain, palette, strict=True)):
        top = 28 * row + 9
        picture[top : top + 22, 10:50] = (blue, green, red)
        cv2.rectangle(picture, (10, top), (49, top + 21), (90, 90, 90), 1)
        cv2.putText(picture, name, (60, top + 16), font, scale, (20, 20, 20), 1, cv2.LINE_AA)
    return picture


def ascii_text(text: str) -> str:
    """A text that OpenCV's fonts can draw: letters without their accents, and ? for any that is not ASCII."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letters).encode("ascii", "replace").decode()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _table(palette: Palette) -> Pixels:
    """RGB of all 256 ids, (256, 3); black past the palette."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table


def _encode(suffix: str, image: Pixels, options: Sequence[int]) -> bytes:
    done, content = cv2.imencode(suffix, image, options)
    if not done:
        raise ValueError(f"no {suffix} file can hold {image.shape} of {image.dtype}")
    return bytes(content)


def _decode(content: bytes, flags: int) -> npt.NDArray[Any]:
    """Decode; refuse a file that the codec refuses or whose missing pixels it fills in."""
    with codec_messages() as messages:
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise EnvironmentFailure("memory", "too little to decode an image", "free some, or scale it") from None
            image = None
    if image is None:
        raise _DamagedError("cannot be decoded: the file is damaged")
    if any(b"premature end" in message.lower() for message in messages):
        raise _DamagedError("truncated: some of its pixels are missing")
    return np.asarray(image)


@contextlib.contextmanager
def codec_messages() -> Iterator[list[bytes]]:
    """Collect what libjpeg and libpng print: they report missing data only on the C library's stderr."""
    messages: list[bytes] = []
    with _stderr_lock, contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile())
            stderr = os.dup(2)
        except OSError:  # stderr is closed, or nothing can be written: decode without messages
            yield messages
            return
        os.dup2(file.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            printed = file.read()
            messages += CODEC_MESSAGE.findall(printed)
            # other threads may have printed meanwhile
            os.write(2, CODEC_MESSAGE.sub(b"", printed))


def _inspect(content: bytes) -> tuple[tuple[int, int], bytes]:
    """Height and width by the header, and the bytes to decode; raises _DamagedError unless the file is whole."""
    if content.startswith(PNG_SIGNATURE):
        chunks = _png_chunks(content)
        height, width, _, _ = _png_header(chunks[0][1])
        return (height, width), content
    if content.startswith(b"\xff\xd8\xff"):
        height, width, end = _jpeg_frame(content)
        return _check_size(height, width), content[:end]
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _check_size(*_webp_size(content)), content
    if content.startswith(b"BM") and len(content) >= 26:
        if int.from_bytes(content[14:18], "little") == 12:
            width, height = _numbers(content, (18, 20), 2)
        else:  # a negative height: rows are stored from the top
            width, height = map(abs, _numbers(content, (18, 22), 4, signed=True))
        return _check_size(height, width), content
    other = next((name for start, name in OTHER_FORMATS.items() if content.startswith(start)), "another kind of file")
    raise _DamagedError(f"not a PNG, JPEG, WebP or BMP image but {other}")


def _numbers(content: bytes, offsets: Sequence[int], length: int, signed: bool = False) -> list[int]:
    """Little-endian numbers of `length` bytes at these offsets."""
    return [int.from_bytes(content[offset : offset + length], "little", signed=signed) for offset in offsets]


def _check_size(height: int, width: int) -> tuple[int, int]:
    if not height or not width:
        raise _DamagedError(f"its header says {height} x {width} pixels")
    if height * width > PIXEL_LIMIT:
        raise _DamagedError(f"its header says {height} x {width} pixels, more than the limit of {PIXEL_LIMIT:,}")
    return height, width


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks."""
    parts = [PNG_SIGNATURE]
    for name, body in chunks:
        parts += [len(body).to_bytes(4), name, body, zlib.crc32(body, zlib.crc32(name)).to_bytes(4)]
    return b"".join(parts)


def _png_chunks(content: bytes) -> list[tuple[bytes, memoryview]]:
    """Names and bodies up to IEND, with every checksum compared (the decoder skips some); bodies are views."""
    chunks: list[tuple[bytes, memoryview]] = []
    start, whole = len(PNG_SIGNATURE), memoryview(content)
    while not chunks or chunks[-1][0] != b"IEND":
        length = int.from_bytes(content[start : start + 4])
        name, body = content[start + 4 : start + 8], whole[start + 8 : start + 8 + length]
        checksum = content[start + 8 + length : start + 12 + length]
        if len(checksum) < 4:
            raise _DamagedError("truncated: the PNG ends early")
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(checksum):
            raise _DamagedError(f"damaged: the checksum of PNG chunk {name!r} does not match")
        chunks.append((name, body))
        start += 12 + length
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise _DamagedError("damaged: the PNG does not begin with its header")
    return chunks


def _png_header(body: memoryview) -> tuple[int, int, int, int]:
    """Height, width, bit depth and colour type in IHDR."""
    height, width = _check_size(int.from_bytes(body[4:8]), int.from_bytes(body[:4]))
    return height, width, body[8], body[9]


def _jpeg_frame(content: bytes) -> tuple[int, int, int]:
    """Height, width and where the picture ends, segment by segment, since thumbnails have end markers too."""
    height = width = 0
    start = 2
    while match := JPEG_MARKER.search(content, start):
        marker, start = content[match.end() - 1], match.end()
        if marker == 0xD9:
            return height, width, start
        if marker in (0x01, 0xD8):  # these stand alone
            continue
        length = int.from_bytes(content[start : start + 2])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[offset : offset + 2]) for offset in (start + 3, start + 5))
            _check_size(height, width)
        start += length
    raise _DamagedError("truncated: the JPEG has no end marker")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Height and width of a still WebP that is as long as it declares."""
    if len(content) < 30 or len(content) < 8 + int.from_bytes(content[4:8], "little"):
        raise _DamagedError("truncated: the WebP ends early")
    kind = content[12:16]
    if kind == b"VP8X":
        if content[20] & 2:
            raise _DamagedError("an animated WebP")
        width, height = (1 + number for number in _numbers(content, (24, 27), 3))
    elif kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (number & 0x3FFF for number in _numbers(content, (26, 28), 2))
    return height, width
