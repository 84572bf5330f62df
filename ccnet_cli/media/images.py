"""Read and write images and label maps, every file checked first; the only user of OpenCV's codecs."""

import contextlib
import errno
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
from ccnet_cli.errors import EnvironmentFailure, InputError, out_of_memory, warn
from ccnet_cli.media import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from ccnet_cli.media import formats, lossless
from ccnet_cli.media.formats import GREY, PALETTE, UnreadableError
from ccnet_cli.media.formats import PNG_SIGNATURE as PNG_SIGNATURE

COLOURED = "has colour or alpha channels, where one channel of class values is expected (data.labels can name colours)"
UNDECODABLE = "cannot be decoded: the file is damaged"
BANDS = ", or has not 1, 3 or 4 bands and becomes a TIFF alone (-o NAME.tif)"
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
    if out_of_memory(error):
        fix = "free some, or raise the limit (ulimit -v)"
        raise EnvironmentFailure("memory", "too little to load OpenCV", fix) from None
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

# what libjpeg, libpng and FFmpeg print
CODEC_MESSAGE = re.compile(
    rb"(?:Corrupt JPEG|Premature end|Inconsistent progression|Invalid SOS|Unknown Adobe|Warning: unknown JFIF"
    rb"|Application transferred|libpng |OpenCV: FFMPEG: )[^\n]*\n"
)
# what of it says that pixels are wrong
DAMAGE = re.compile(rb"(?:Corrupt JPEG data: |Inconsistent |Premature |libpng error: |libpng warning: IDAT: )[^\n]*")
REPLACE = "replace the file, or convert it to PNG or JPEG"
_stderr_lock = threading.Lock()


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


def read_image(path: Path, exif: bool = False, tolerate: bool = False) -> Pixels:
    """A PNG, JPEG, WebP, BMP or TIFF file as BGR (H, W, 3): grey repeated, alpha dropped, 16 bits cut to 8, no CMYK.

    exif applies the EXIF rotation; without it the picture stays as the sensor, and a label map, has it. tolerate reads
    what it can of a damaged file, with a notice, where it would be an InputError.
    """
    content = read_bytes(path)
    flags = cv2.IMREAD_COLOR if exif else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        found = _inspect(content, tolerate)
        image, damage = _decode(found.content, flags)
        if image is None and tolerate and content.startswith(PNG_SIGNATURE):
            image, _ = _decode(formats.repair_png(content), flags)
        damage = found.damage or damage
        if image is None or (damage and not tolerate):
            raise UnreadableError(damage or UNDECODABLE + BANDS * content.startswith((b"II", b"MM")))
        shapes = [(found.height, found.width, 3), *([(found.width, found.height, 3)] if exif else [])]
        if image.dtype != np.uint8 or image.shape not in shapes:
            raise UnreadableError(f"decodes to {image.shape} where its header says {found.height} x {found.width}")
    except UnreadableError as error:
        raise InputError(f"image {path}", str(error), REPLACE) from None
    if damage:
        warn(f"warning: image {path}: {damage}; what is left of it is used")
    return image


def read_unchecked(path: Path, grey: bool = False) -> Pixels:
    """A file as OpenCV alone reads it, BGR (H, W, 3) or grey (H, W): what `ccnet bench data` compares with."""
    flags = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR
    return np.asarray(cv2.imdecode(np.fromfile(path, np.uint8), flags), np.uint8)


def read_size(path: Path, tolerate: bool = False) -> tuple[int, int]:
    """Height and width by an image's header, without EXIF rotation; decodes no pixels."""
    try:
        found = _inspect(read_bytes(path), tolerate)
    except UnreadableError as error:
        raise InputError(f"image {path}", str(error), REPLACE) from None
    return found.height, found.width


def upright_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image with its EXIF rotation; None where it has none."""
    content = read_bytes(path)
    if not any(mark in content for mark in (b"Exif", b"eXIf", b"EXIF")):
        return None
    height, width = read_size(path)
    # a large one is decoded at an eighth of its size
    flags = cv2.IMREAD_REDUCED_COLOR_8 if min(height, width) > 256 else cv2.IMREAD_COLOR
    (upright, _), (plain, _) = (_decode(content, flags | ignored) for ignored in (0, cv2.IMREAD_IGNORE_ORIENTATION))
    if upright is None or plain is None or np.array_equal(upright, plain):
        return None
    return (height, width) if upright.shape == plain.shape else (width, height)


def read_label(path: Path) -> Labels:
    """Values (H, W) of a file without loss: the indices of a palette, grey of 1 to 16 bits unscaled."""
    content = read_bytes(path, "label")
    try:
        return _read_png_label(content) if content.startswith(PNG_SIGNATURE) else _read_values(content)
    except UnreadableError as error:
        raise InputError(f"label {path}", str(error), "save it as an 8-bit grey or palette PNG") from None


def _read_png_label(content: bytes) -> Labels:
    _inspect(content)
    chunks, _ = formats.png_chunks(content)
    height, width, depth, colour = formats.png_header(chunks[0][1])
    if colour not in (GREY, PALETTE):
        raise UnreadableError(COLOURED)
    # declared grey and without its palette, a palette picture decodes to its indices
    header = bytes(chunks[0][1][:9]) + bytes([GREY]) + bytes(chunks[0][1][10:])
    data = b"".join(body for name, body in chunks if name == b"IDAT")
    plain = formats.make_png((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    values = _decode_whole(plain, cv2.IMREAD_UNCHANGED, (height, width))
    if values.dtype != (np.uint16 if depth == 16 else np.uint8):
        raise UnreadableError(f"decodes to {values.dtype} where its header says {depth} bits")
    # the decoder scales fewer than 8 bits to the full range of grey
    return values if depth >= 8 else values // np.uint8(255 // ((1 << depth) - 1))


def _read_values(content: bytes) -> Labels:
    """The values of a TIFF, BMP, GIF or lossless WebP: of one channel, or of three that are the same."""
    size = _inspect_lossless(content, "values")
    is_gif = content.startswith(lossless.GIF)
    plain = lossless.without_transparency(content) if is_gif else lossless.with_indices(content)
    pixels = _decode_whole(plain, cv2.IMREAD_UNCHANGED, size)
    if is_gif and not _is_grey(pixels):
        # it has no grey but a palette of greys
        pixels = _decode_whole(lossless.with_indices(plain), cv2.IMREAD_UNCHANGED, size)
    if not _is_grey(pixels):
        raise UnreadableError(COLOURED)
    values = lossless.to_values(pixels if pixels.ndim == 2 else pixels[..., 0])
    return values // np.uint8(255) if lossless.is_bilevel(content) else values


def _is_grey(pixels: npt.NDArray[Any]) -> bool:
    return pixels.ndim == 2 or bool((pixels[..., 1:3] == pixels[..., :1]).all())


def _inspect_lossless(content: bytes, what: str) -> tuple[int, int]:
    """The size of a label that loses nothing; UnreadableError for another, saying what it would change."""
    if not lossless.is_lossless(content):
        other = formats.name_other(content)
        lossy = f"not a PNG: other formats change or cannot hold class {what}"
        raise UnreadableError(f"not an image but {other}" if other else lossy)
    found = lossless.inspect_one(content)
    _require_sound(found)
    return found.height, found.width


def _decode_whole(content: bytes, flags: int, size: tuple[int, int]) -> npt.NDArray[Any]:
    """The pixels of a label; UnreadableError for damage of any kind, or another size."""
    pixels, damage = _decode(content, flags)
    if pixels is None or damage:
        raise UnreadableError(damage or UNDECODABLE)
    if pixels.shape[:2] != size:
        raise UnreadableError(f"decodes to {pixels.shape} where its header says {size[0]} x {size[1]}")
    return pixels


def is_one_channel(path: Path) -> bool:
    """Whether a file has one channel, grey or palette, by its header."""
    return lossless.is_one_channel(read_bytes(path, "label"))


def read_colours(path: Path) -> Pixels:
    """The colours of a label file that loses none, as BGR (H, W, 3); alpha is dropped."""
    content = read_bytes(path, "label")
    try:
        size = _inspect_lossless(content, "colours")
        pixels = _decode_whole(lossless.without_transparency(content), cv2.IMREAD_COLOR, size)
        if (pixels == pixels[0, 0]).all():
            alpha, _ = _decode(content, cv2.IMREAD_UNCHANGED)
            if alpha is not None and alpha.ndim == 3 and alpha.shape[2] == 4 and np.ptp(alpha[..., 3]):
                why = "has one colour alone, and shows its picture by transparency, which is not read"
                raise InputError(f"label {path}", why, "save it as a grey or palette PNG without transparency")
    except UnreadableError as error:
        raise InputError(f"label {path}", str(error), "save it as a PNG, from the program that drew it") from None
    return np.asarray(pixels, np.uint8)


def decode_bits(content: bytes, what: str) -> npt.NDArray[np.bool_]:
    """The pixels (H, W) of a PNG's bytes that are not 0 or, with an alpha channel, not transparent."""
    try:
        found = _inspect(content)
        pixels, damage = _decode(content, cv2.IMREAD_UNCHANGED)
        if pixels is None or damage or pixels.shape[:2] != (found.height, found.width):
            raise UnreadableError(damage or UNDECODABLE)
    except UnreadableError as error:
        raise InputError(what, f"its bitmap is {error}", "export it again") from None
    if pixels.ndim == 2:
        return pixels > 0
    return np.asarray(pixels[..., 3] > 0 if pixels.shape[2] == 4 else pixels.any(-1))


def write_image(path: Path, image_bgr: Pixels) -> None:
    """Write BGR (H, W, 3) in the format of the suffix, whole or not at all."""
    suffix = ".png" if files.is_stream(path) else path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"output {path}", "has no image suffix", f"use one of {' '.join(IMAGE_SUFFIXES)}")
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix in (".jpg", ".jpeg") else []
    files.write_bytes(path, _encode(suffix, image_bgr, options))


def write_label(path: Path, ids: Pixels, palette: Palette | None = None) -> None:
    """Write ids (H, W) as a grey PNG, or with RGB colours of ids 0.. as a palette PNG (ids past them are black)."""
    if path.suffix.lower() != ".png" and not files.is_stream(path):
        raise InputError(f"output {path}", "a label map must be a PNG", "give a name that ends in .png")
    height, width = ids.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter, 0
    rows[:, 1:] = ids
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, GREY if palette is None else PALETTE, 0, 0, 0])
    colours = [] if palette is None else [(b"PLTE", _table(palette).tobytes())]
    # a map of classes is runs of one value: as small as by searching for repetitions, in an eighth of the time
    deflate = zlib.compressobj(strategy=zlib.Z_RLE)
    data = deflate.compress(rows.tobytes()) + deflate.flush()
    files.write_bytes(path, formats.make_png((b"IHDR", header), *colours, (b"IDAT", data), (b"IEND", b"")))


def encode_png(image_bgr: Pixels, smallest: bool = False) -> bytes:
    """BGR (H, W, 3) as the bytes of a PNG file; smallest takes several times as long and halves the size."""
    return _encode(".png", image_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 9] if smallest else [])


def encode_jpeg(image_bgr: Pixels, quality: int = 88) -> bytes:
    """BGR (H, W, 3) as the bytes of a JPEG file, for thumbnails and previews."""
    return _encode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])


def recompress(image_bgr: Pixels, quality: int) -> Pixels:
    """BGR (H, W, 3) as a JPEG of that quality shows it."""
    content = np.frombuffer(encode_jpeg(image_bgr, quality), np.uint8)
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)


def colorize(ids: Pixels, palette: Palette) -> Pixels:
    """Ids (H, W) in the palette's RGB colours, as BGR (H, W, 3); ids past the palette, such as 255, are black."""
    return np.ascontiguousarray(_table(palette)[:, ::-1][ids])


def draw_legend(names: Sequence[str], palette: Palette, zoom: float = 1) -> Pixels:
    """A picture of every class: a swatch of its RGB colour and its name, BGR (28 K + 12, W, 3) on white, zoomed."""
    plain = [ascii_text(name) for name in names]
    font, scale, thin = cv2.FONT_HERSHEY_SIMPLEX, 0.55 * zoom, max(round(zoom), 1)
    widest = max(cv2.getTextSize(name, font, scale, thin)[0][0] for name in plain)

    def at(*lengths: float) -> tuple[int, ...]:
        return tuple(round(zoom * length) for length in lengths)

    height, left = at(28 * len(plain) + 12, 74)
    picture = np.full((height, left + widest, 3), 255, np.uint8)
    for row, (name, (red, green, blue)) in enumerate(zip(plain, palette, strict=True)):
        begin, top, end, bottom, base = at(10, 28 * row + 9, 50, 28 * row + 31, 28 * row + 25)
        picture[top:bottom, begin:end] = (blue, green, red)
        cv2.rectangle(picture, (begin, top), (end - 1, bottom - 1), (90, 90, 90), thin)
        cv2.putText(picture, name, (round(zoom * 60), base), font, scale, (20, 20, 20), thin, cv2.LINE_AA)
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


def _inspect(content: bytes, tolerate: bool = False) -> formats.Inspection:
    """A file's size and the bytes to decode; UnreadableError where it is too large or, unless tolerate, damaged."""
    return _require_sound(formats.inspect(content), tolerate)


def _require_sound(found: formats.Inspection, tolerate: bool = False) -> formats.Inspection:
    if found.height * found.width > PIXEL_LIMIT:
        size = f"{found.height} x {found.width} pixels"
        raise UnreadableError(f"its header says {size}, more than the limit of {PIXEL_LIMIT:,}")
    if found.damage and not tolerate:
        raise UnreadableError(found.damage)
    return found


def _decode(content: bytes, flags: int) -> tuple[npt.NDArray[Any] | None, str | None]:
    """The pixels, None if the codec refuses the file, and what the codec says is wrong with them."""
    with codec_messages() as messages:
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise EnvironmentFailure("memory", "too little to decode an image", "free some, or scale it") from None
            image = None
    complaint = next(filter(None, map(DAMAGE.match, messages)), None)
    damage = None
    if complaint:
        words = complaint[0].decode("ascii", "replace").rpartition(": ")[2]
        missing = "premature end" in complaint[0].decode("ascii", "replace").lower()
        damage = "truncated: some of its pixels are missing" if missing else f"damaged: the decoder reports {words!r}"
    return (None if image is None else np.asarray(image)), damage


@contextlib.contextmanager
def codec_messages() -> Iterator[list[bytes]]:
    """Collect what libjpeg and libpng print: they report damage only on the C library's stderr."""
    messages: list[bytes] = []
    with _stderr_lock, os.fdopen(_anonymous_file(), "r+b") as file:
        try:
            stderr = os.dup(2)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            stderr = None  # closed
        os.dup2(file.fileno(), 2)
        try:
            yield messages
        finally:
            if stderr is None:
                os.close(2)
            else:
                os.dup2(stderr, 2)
                os.close(stderr)
            file.seek(0)
            printed = file.read()
            messages += CODEC_MESSAGE.findall(printed)
            # other threads may have printed meanwhile
            if others := CODEC_MESSAGE.sub(b"", printed):
                with contextlib.suppress(OSError):
                    os.write(2, others)


def _anonymous_file() -> int:
    """A file in memory, where the system has such files: it gets what the decoder says on a full disk too."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ccnet")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
