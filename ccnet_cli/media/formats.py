"""What an image file's bytes say of it before it is decoded: its size, and whether something of it is missing."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# inside entropy-coded data 0xFF is followed by 0 (a stuffed byte) or a restart marker, unless a marker ends it
JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
SCAN, END, PROGRESSIVE = 0xDA, 0xD9, (0xC2, 0xCA)
# low bits that are still to come of a coefficient that no scan has sent
MISSING = 255
# of a PNG, what its pixels need
PNG_PARTS = (b"PLTE", b"tRNS", b"IDAT")
GREY, PALETTE = 0, 3
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
OTHER_FORMATS = {
    b"GIF8": "GIF",
    b"II+\x00": "BigTIFF",
    b"MM\x00+": "BigTIFF",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"version https://git-lfs": "a Git LFS pointer (run git lfs pull)",
    b"PK\x03\x04": "a ZIP archive (unpack it)",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF document",
}
PAGES = (b"<!doctype html", b"<html")

TIFF_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\x00": "little", b"MM\x00*": "big"}
TIFF_SIZES = {1: 1, 3: 2, 4: 4}
# of a TIFF's tags: where its strips or tiles are, and how many bytes each has
TIFF_STRIPS = ((273, 279), (324, 325))

Chunks = list[tuple[bytes, memoryview]]


class UnreadableError(Exception):
    """Why a file holds no image that can be read; the caller adds its name."""


@dataclass(frozen=True)
class Inspection:
    """Height and width by the header, the bytes to decode, and what is wrong with the file, if anything is."""

    height: int
    width: int
    content: bytes
    damage: str | None = None


def inspect(content: bytes, max_bits: int = 16) -> Inspection:
    """Inspect a PNG, JPEG, WebP, BMP or TIFF file; UnreadableError where it is none, or has no size.

    max_bits is the largest sample of a TIFF.
    """
    found = _inspect(content, max_bits)
    if not found.height or not found.width:
        raise UnreadableError(f"its header says {found.height} x {found.width} pixels")
    return found


def _inspect(content: bytes, max_bits: int) -> Inspection:
    if content.startswith(PNG_SIGNATURE):
        return _inspect_png(content)
    if content.startswith(b"\xff\xd8\xff"):
        return _inspect_jpeg(content)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _inspect_webp(content)
    if content.startswith(b"BM") and len(content) >= 26:
        return _inspect_bmp(content)
    if content[:4] in TIFF_ORDERS:
        return _inspect_tiff(content, max_bits)
    raise UnreadableError(
        f"not a PNG, JPEG, WebP, BMP or TIFF image but {name_other(content) or 'another kind of file'}"
    )


def name_other(content: bytes) -> str | None:
    """What kind of file it is that is often met in the place of another; None for any other."""
    if content[:99].lstrip().lower().startswith(PAGES):
        return "a web page, as of a download that asked to log in"
    return next((name for start, name in OTHER_FORMATS.items() if content.startswith(start)), None)


def read_tiff_size(file: BinaryIO) -> tuple[int, int] | None:
    """Height and width of a TIFF's first picture; None for a BigTIFF, which can be larger, ValueError for neither."""
    head = file.read(8)
    if OTHER_FORMATS.get(head[:4]) == "BigTIFF":
        return None
    if head[:4] not in TIFF_ORDERS:
        raise ValueError("no TIFF")
    order = TIFF_ORDERS[head[:4]]
    file.seek(int.from_bytes(head[4:8], order))
    entries = file.read(12 * int.from_bytes(file.read(2), order))
    sides = {256: 0, 257: 0}
    for start in range(0, len(entries), 12):
        # a side is stored in two bytes or in four
        size = TIFF_SIZES.get(int.from_bytes(entries[start + 2 : start + 4], order), 0)
        sides[int.from_bytes(entries[start : start + 2], order)] = int.from_bytes(
            entries[start + 8 : start + 8 + size], order
        )
    return sides[257], sides[256]


def make_png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks."""
    parts = [PNG_SIGNATURE]
    for name, body in chunks:
        parts += [len(body).to_bytes(4), name, body, zlib.crc32(body, zlib.crc32(name)).to_bytes(4)]
    return b"".join(parts)


def png_header(body: memoryview) -> tuple[int, int, int, int]:
    """Height, width, bit depth and colour type in IHDR."""
    return int.from_bytes(body[4:8]), int.from_bytes(body[:4]), body[8], body[9]


def png_chunks(content: bytes) -> tuple[Chunks, str | None]:
    """Names and bodies (views) up to IEND, or to where the file ends, and what is wrong with them.

    Every checksum is compared: the decoder skips some.
    """
    chunks: Chunks = []
    damage = None
    start, whole = len(PNG_SIGNATURE), memoryview(content)
    while not chunks or chunks[-1][0] != b"IEND":
        length = int.from_bytes(content[start : start + 4])
        name, body = content[start + 4 : start + 8], whole[start + 8 : start + 8 + length]
        checksum = content[start + 8 + length : start + 12 + length]
        if len(checksum) == 4 and zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(checksum):
            damage = damage or f"damaged: the checksum of PNG chunk {name!r} does not match"
        if len(name) == 4:
            chunks.append((name, body))
        start += 12 + length
        if len(checksum) < 4:
            damage = damage or "truncated: the PNG ends early"
            break
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise UnreadableError(damage or "damaged: the PNG does not begin with its header")
    return chunks, damage


def repair_png(content: bytes) -> bytes:
    """A sound PNG of what is left of a damaged one; the pixels that are missing are 0."""
    chunks, _ = png_chunks(content)
    height, width, depth, colour = png_header(chunks[0][1])
    decompressor = zlib.decompressobj()
    data = bytearray()
    # twice the bytes that the pixels take: the passes of an interlaced picture have more rows
    size = 2 * height * (2 + width * depth * PNG_CHANNELS.get(colour, 4) // 8) + 64
    compressed = b"".join(body for name, body in chunks if name == b"IDAT")
    for start in range(0, len(compressed), 256):
        try:
            data += decompressor.decompress(compressed[start : start + 256], max(size - len(data), 1))
        except zlib.error:
            break
    parts = [(name, bytes(body)) for name, body in chunks if name in PNG_PARTS[:2]]
    image = zlib.compress(bytes(data[:size]) + bytes(max(size - len(data), 0)), 1)
    return make_png((b"IHDR", bytes(chunks[0][1])), *parts, (b"IDAT", image), (b"IEND", b""))


def _inspect_png(content: bytes) -> Inspection:
    chunks, damage = png_chunks(content)
    height, width, _, _ = png_header(chunks[0][1])
    return Inspection(height, width, content, damage)


def _inspect_jpeg(content: bytes) -> Inspection:
    """Walk a JPEG segment by segment, since thumbnails have end markers too."""
    height = width = 0
    frame, scans = 0, dict[int, list[int]]()
    start = 2
    while match := JPEG_MARKER.search(content, start):
        marker, start = content[match.end() - 1], match.end()
        if marker == END:
            break
        if marker in (0x01, 0xD8):  # these stand alone
            continue
        length = int.from_bytes(content[start : start + 2])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[offset : offset + 2]) for offset in (start + 3, start + 5))
            components = content[start + 8 : start + length : 3]
            frame, scans = marker, {component: [MISSING] * 64 for component in components}
        elif marker == SCAN:
            _note_scan(scans, content[start + 2 : start + length], progressive=frame in PROGRESSIVE)
        start += length
    damage = None
    if match is None:
        damage = "truncated: the JPEG has no end marker"
    elif any(bits for component in scans.values() for bits in component):
        damage = "truncated: the JPEG lacks scans of its picture"
    if not frame:
        raise UnreadableError(damage or "damaged: the JPEG has no frame")
    # what follows the end marker is no part of the picture; without one, the decoder gives nothing
    return Inspection(height, width, content + b"\xff\xd9" if match is None else content[:start], damage)


def _note_scan(scans: dict[int, list[int]], header: bytes, progressive: bool) -> None:
    """Note how many low bits of each coefficient are still to come after a scan, 0 of all in a sequential JPEG."""
    count = header[0] if header else 0
    if len(header) < 4 + 2 * count:
        return
    first, last, bits = header[-3:] if progressive else (0, 63, 0)
    for component in header[1 : 1 + 2 * count : 2]:
        for coefficient in range(first, min(last, 63) + 1):
            scans.setdefault(component, [MISSING] * 64)[coefficient] = bits & 15


def webp_chunks(content: bytes) -> tuple[list[bytes], int]:
    """The names of a WebP's chunks, and where the last one ends."""
    end, start, names = 8 + int.from_bytes(content[4:8], "little"), 12, list[bytes]()
    while start + 8 <= min(end, len(content)):
        names.append(content[start : start + 4])
        length = int.from_bytes(content[start + 4 : start + 8], "little")
        start += 8 + length + length % 2
    return names, start


def _inspect_webp(content: bytes) -> Inspection:
    """Inspect a still WebP: it must be as long as it declares, and each of its chunks too."""
    if len(content) < 30:
        raise UnreadableError("truncated: the WebP ends early")
    end = 8 + int.from_bytes(content[4:8], "little")
    names, start = webp_chunks(content)
    kind = content[12:16]
    if kind == b"VP8X":
        if content[20] & 2:
            raise UnreadableError("an animated WebP")
        width, height = (1 + number for number in _numbers(content, (24, 27), 3))
    elif kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (number & 0x3FFF for number in _numbers(content, (26, 28), 2))
    damage = None
    # a last chunk of odd length may lack its padding
    if len(content) < end or start > len(content) + 1 or start > end + 1:
        damage = "truncated: the WebP ends early"
    elif not {b"VP8 ", b"VP8L"} & set(names):
        damage = "truncated: the WebP holds no picture"
    elif kind == b"VP8X" and content[20] & 16 and b"VP8 " in names and b"ALPH" not in names:
        damage = "damaged: the WebP lacks the transparency that it declares"
    return Inspection(height, width, content, damage)


def _inspect_bmp(content: bytes) -> Inspection:
    if int.from_bytes(content[14:18], "little") == 12:
        width, height = _numbers(content, (18, 20), 2)
        (depth,), compression = _numbers(content, (24,), 2), 0
    else:  # a negative height: rows are stored from the top
        width, height = map(abs, _numbers(content, (18, 22), 4, signed=True))
        (depth,), (compression,) = _numbers(content, (28,), 2), _numbers(content, (30,), 4)
    # the lengths of run-length rows are not known beforehand; the decoder refuses those that end early
    size = 0 if compression in (1, 2) else height * (-(-width * depth // 32) * 4)
    short = len(content) < int.from_bytes(content[10:14], "little") + size
    return Inspection(height, width, content, "damaged: the BMP ends early" if short else None)


def tiff_entries(content: bytes, start: int | None = None) -> dict[int, range]:
    """Where each number of each tag of a TIFF lies, of its first picture or the one at start; tag 0 is the next one."""
    order = TIFF_ORDERS[content[:4]]

    def number(offset: int, size: int) -> int:
        return int.from_bytes(content[offset : offset + size], order)

    start = number(4, 4) if start is None else start
    count = number(start, 2)
    entries = {0: range(start + 2 + 12 * count, start + 6 + 12 * count, 4)}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        size, length = TIFF_SIZES.get(number(entry + 2, 2), 0), number(entry + 4, 4)
        place = entry + 8 if size * length <= 4 else number(entry + 8, 4)
        if size and place + size * length <= len(content):
            entries[number(entry, 2)] = range(place, place + size * length, size)
    return entries


def tiff_numbers(content: bytes, entries: dict[int, range], tag: int) -> list[int]:
    """The numbers of a tag, none where the file lacks it."""
    order, offsets = TIFF_ORDERS[content[:4]], entries.get(tag, range(0))
    return [int.from_bytes(content[offset : offset + offsets.step], order) for offset in offsets]


def _inspect_tiff(content: bytes, max_bits: int) -> Inspection:
    """The first picture of a TIFF: its size by its tags, and whether the file holds all its strips or tiles."""
    entries = tiff_entries(content)
    height, width, bits = (tiff_numbers(content, entries, tag) for tag in (257, 256, 258))
    strips = next(tags for tags in TIFF_STRIPS if tags[0] in entries or tags[0] == 324)
    offsets, lengths = (tiff_numbers(content, entries, tag) for tag in strips)
    if not (height and width and offsets and len(offsets) == len(lengths)):
        raise UnreadableError("damaged or truncated: the TIFF says no size, or not where its pixels are")
    if max(bits or [1]) > max_bits:
        raise UnreadableError(f"a TIFF of {max(bits)} bits a sample, where 8 or 16 can be read")
    end = max(offset + length for offset, length in zip(offsets, lengths, strict=True))
    damage = "truncated: the TIFF ends early" if end > len(content) else None
    return Inspection(height[0], width[0], content, damage)


def _numbers(content: bytes, offsets: Sequence[int], length: int, signed: bool = False) -> list[int]:
    """Little-endian numbers of `length` bytes at these offsets."""
    return [int.from_bytes(content[offset : offset + length], "little", signed=signed) for offset in offsets]
