"""Label maps in files that lose nothing: PNG, TIFF, BMP, GIF, and WebP where it is lossless."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ccnet_cli.media.formats import (
    GREY,
    PALETTE,
    PNG_SIGNATURE,
    TIFF_ORDERS,
    Inspection,
    UnreadableError,
    inspect,
    tiff_entries,
    tiff_numbers,
    webp_chunks,
)

# of a TIFF: bits of a sample, compression, what a sample is, the next picture, and what kind that is
BITS, COMPRESSION, PHOTOMETRIC, NEXT, KIND = 258, 259, 262, 0, 254
SAMPLES, FLOATS = 339, 3
# a smaller copy of the first picture, or its mask
SECONDARY = 1 | 4
MAX_PICTURES = 64
TIFF_GREY, TIFF_PALETTE = (0, 1), 3
# nothing, fax codes, LZW, deflate (two numbers), PackBits: what OpenCV reads
LOSSLESS_TIFF = {1, 2, 3, 4, 5, 8, 32946, 32773}
GIF, BMP = b"GIF8", b"BM"


def is_lossless(content: bytes) -> bool:
    """Whether a file is a PNG, TIFF, BMP, GIF or WebP that holds its pixels as they were."""
    if content[:4] in TIFF_ORDERS:
        return set(tiff_numbers(content, tiff_entries(content), COMPRESSION)) <= LOSSLESS_TIFF
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return b"VP8 " not in webp_chunks(content)[0]
    return content.startswith((PNG_SIGNATURE, GIF, BMP))


def is_one_channel(content: bytes) -> bool:
    """Whether such a file has grey values or the indices of a palette; False for any other file."""
    if content.startswith(PNG_SIGNATURE):
        return content[25:26] in (bytes([GREY]), bytes([PALETTE]))
    if content[:4] in TIFF_ORDERS:
        kinds = tiff_numbers(content, tiff_entries(content), PHOTOMETRIC) if is_lossless(content) else []
        return bool(kinds) and kinds[0] in (*TIFF_GREY, TIFF_PALETTE)
    return content.startswith(GIF) or (content.startswith(BMP) and 0 < _bmp_layout(content)[2] <= 8)


def inspect_one(content: bytes) -> Inspection:
    """What the bytes of such a file say; UnreadableError where a TIFF or a GIF holds several pictures."""
    if content[:4] in TIFF_ORDERS and _has_pages(content):
        raise UnreadableError("a TIFF of several pictures, where one is expected")
    if content.startswith(GIF) and sum(kind == 0x2C for kind, _ in _gif_blocks(content)) > 1:
        raise UnreadableError("a GIF of several pictures, where one is expected")
    if content.startswith(GIF):
        width, height = (int.from_bytes(content[start : start + 2], "little") for start in (6, 8))
        return Inspection(height, width, content, None if width and height else "damaged: the GIF has no size")
    if content[:4] in TIFF_ORDERS and FLOATS in tiff_numbers(content, tiff_entries(content), SAMPLES):
        raise UnreadableError("a TIFF of floating-point numbers, where class values are expected")
    return inspect(content, 32)


def _has_pages(content: bytes) -> bool:
    """Whether a TIFF holds further pictures that are no smaller copies of the first."""
    entries = tiff_entries(content)
    for _ in range(MAX_PICTURES):
        start = next(iter(tiff_numbers(content, entries, NEXT)), 0)
        if not start:
            return False
        entries = tiff_entries(content, start)
        if not any(kind & SECONDARY for kind in tiff_numbers(content, entries, KIND)):
            return True
    return True


def with_indices(content: bytes) -> bytes:
    """The file with grey levels 0, 1, 2, ... in place of its palette's colours, so that it decodes to indices."""
    if content[:4] in TIFF_ORDERS:
        entries = tiff_entries(content)
        if tiff_numbers(content, entries, PHOTOMETRIC) != [TIFF_PALETTE]:
            return content
        value = entries[PHOTOMETRIC]
        return _replace(content, value[0], (1).to_bytes(value.step, TIFF_ORDERS[content[:4]]))
    if content.startswith(BMP):
        start, size, depth = _bmp_layout(content)
        count = min((int.from_bytes(content[10:14], "little") - start) // size, 256) if depth <= 8 else 0
        greys = b"".join(bytes([index] * 3) + bytes(size - 3) for index in range(count))
        return _replace(content, start, greys)
    for kind, offset in _gif_blocks(content) if content.startswith(GIF) else ():
        if kind != 0xF9 and content[offset] & 0x80:
            greys = b"".join(bytes([index] * 3) for index in range(2 << (content[offset] & 7)))
            content = _replace(content, offset + (3 if kind == 0 else 1), greys)
    return content


def without_transparency(content: bytes) -> bytes:
    """The file; of a GIF, every pixel has the colour of its index."""
    for kind, offset in _gif_blocks(content) if content.startswith(GIF) else ():
        if kind == 0xF9:
            content = _replace(content, offset, bytes([content[offset] & 0xFE]))
    return content


def is_bilevel(content: bytes) -> bool:
    """Whether a file is a TIFF of one bit a pixel, which decodes to 0 and 255."""
    return content[:4] in TIFF_ORDERS and set(tiff_numbers(content, tiff_entries(content), BITS)) <= {1}


def to_values(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Class values (H, W) of a TIFF, which may be signed or have 32 bits; UnreadableError for what is none."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 0xFFFF:
        extent = f"{pixels.dtype} from {pixels.min():g} to {pixels.max():g}"
        raise UnreadableError(f"holds {extent}, where class values from 0 to 65535 are expected")
    return pixels.astype(np.uint16)


def _replace(content: bytes, offset: int, part: bytes) -> bytes:
    return content[:offset] + part + content[offset + len(part) :]


def _bmp_layout(content: bytes) -> tuple[int, int, int]:
    """Where a BMP's palette begins, the bytes of each of its colours, and the bits of a pixel."""
    header = int.from_bytes(content[14:18], "little")
    old = header == 12
    depth = content[24:26] if old else content[28:30]
    return 14 + header, 3 if old else 4, int.from_bytes(depth, "little")


def _gif_blocks(content: bytes) -> Iterator[tuple[int, int]]:
    """Kind and offset of the flags of the whole picture (0), of each frame (0x2C), and of what controls one (0xF9)."""
    yield 0, 10
    start = 13 + (3 * (2 << (content[10] & 7)) if len(content) > 10 and content[10] & 0x80 else 0)
    while start + 2 < len(content) and (kind := content[start]) in (0x21, 0x2C):
        if kind == 0x2C:
            if start + 9 >= len(content):
                return
            yield kind, start + 9
            flags = content[start + 9]
            start += 11 + (3 * (2 << (flags & 7)) if flags & 0x80 else 0)
        else:
            if content[start + 1] == 0xF9:
                yield 0xF9, start + 3
            start += 2
        while start < len(content) and content[start]:
            start += 1 + content[start]
        start += 1
