"""Images and label maps made byte by byte, sound and broken, so that tests do not trust the codecs under test."""

import zlib
from collections.abc import Sequence

import cv2
import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)


def png(
    samples: np.ndarray,
    depth: int = 8,
    colour: int = 0,
    palette: Sequence[tuple[int, int, int]] | None = None,
    filters: Sequence[int] = (0,),
    extra: bytes = b"",
) -> bytes:
    """A PNG of samples (H, W) or (H, W, C); row i uses filter filters[i % len]; extra chunks stand before the data."""
    height, width = samples.shape[:2]
    step = max(1, depth * CHANNELS[colour] // 8)
    above = None
    data = bytearray()
    for index, row in enumerate(samples.reshape(height, -1).tolist()):
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        line = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
        above = above or bytes(len(line))
        method = filters[index % len(filters)]
        data.append(method)
        data += bytes((line[i] - _predict(method, line, above, i, step)) & 255 for i in range(len(line)))
        above = line
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([depth, colour, 0, 0, 0])
    colours = chunk(b"PLTE", bytes(value for entry in palette for value in entry)) if palette else b""
    body = chunk(b"IHDR", header) + extra + colours + chunk(b"IDAT", zlib.compress(bytes(data)))
    return SIGNATURE + body + chunk(b"IEND", b"")


def _predict(method: int, line: bytes, above: bytes, i: int, step: int) -> int:
    left, corner = (line[i - step], above[i - step]) if i >= step else (0, 0)
    if method == 4:
        estimate = left + above[i] - corner
        return min((left, above[i], corner), key=lambda value: abs(estimate - value))
    return (0, left, above[i], (left + above[i]) // 2)[method]


def read_png(content: bytes) -> tuple[bytes, bytes, np.ndarray]:
    """IHDR, PLTE and the values (H, W) of an 8-bit one-channel PNG whose rows are not filtered."""
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4])
        name, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert content[at : at + 12 + length] == chunk(name, body)
        chunks[name] = chunks.get(name, b"") + body
        at += 12 + length
    header = chunks[b"IHDR"]
    width = int.from_bytes(header[:4])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(-1, width + 1)
    assert not rows[:, 0].any()
    return header, chunks.get(b"PLTE", b""), rows[:, 1:]


def photograph(height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """Something like a photograph: uint8 (H, W, 3), no flat parts."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(image: np.ndarray | None = None, *options: int) -> bytes:
    return cv2.imencode(".jpg", photograph() if image is None else image, list(options))[1].tobytes()


def with_size(content: bytes, height: int, width: int) -> bytes:
    """The JPEG or PNG with another size in its header, checksums right."""
    if content.startswith(SIGNATURE):
        header = width.to_bytes(4) + height.to_bytes(4) + content[24:29]
        return SIGNATURE + chunk(b"IHDR", header) + content[33:]
    at = next(content.index(bytes([0xFF, kind, 0])) for kind in (0xC0, 0xC2) if bytes([0xFF, kind, 0]) in content)
    return content[: at + 5] + height.to_bytes(2) + width.to_bytes(2) + content[at + 9 :]


def with_exif(content: bytes, orientation: int, thumbnail: bytes = b"") -> bytes:
    """The JPEG with an EXIF block that gives the orientation and may carry a thumbnail."""
    entry = (0x0112).to_bytes(2) + (3).to_bytes(2) + (1).to_bytes(4) + orientation.to_bytes(2) + bytes(2)
    body = b"Exif\0\0MM\0*" + (8).to_bytes(4) + (1).to_bytes(2) + entry + bytes(4) + thumbnail
    return content[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body + content[2:]


def flat_cmyk_jpeg(inks: Sequence[int], side: int = 16) -> bytes:
    """A baseline JPEG of four components, each one value everywhere, stored inverted as Adobe's programs do."""
    bits = ""
    for block in range((side // 8) ** 2):
        for ink in inks:
            level = ink - 128 if block == 0 else 0  # afterwards the difference is 0
            category = abs(level).bit_length()
            value = level if level >= 0 else level + (1 << category) - 1
            # a four-bit code for each category, then its bits, then the one-bit code of "no more coefficients"
            bits += f"{category:04b}" + (f"{value:0{category}b}" if category else "") + "0"
    bits += "1" * (-len(bits) % 8)
    data = b"".join(int(bits[at : at + 8], 2).to_bytes() for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body

    components = b"".join(bytes([number, 0x11, 0]) for number in range(1, 5))
    selectors = b"".join(bytes([number, 0]) for number in range(1, 5))
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"),
            segment(0xDB, bytes([0]) + bytes([8] * 64)),
            segment(0xC0, bytes([8]) + side.to_bytes(2) * 2 + bytes([4]) + components),
            segment(0xC4, bytes([0x00, 0, 0, 0, 9, *[0] * 12, *range(9)])),
            segment(0xC4, bytes([0x10, 1, *[0] * 15, 0])),
            segment(0xDA, bytes([4]) + selectors + bytes([0, 63, 0])),
            data,
            b"\xff\xd9",
        ]
    )


def broken_images() -> dict[str, tuple[bytes, str]]:
    """By file name: contents that read_image must refuse, and a word of the reason."""
    whole = jpeg()
    progressive = jpeg(None, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    picture = png(photograph(16, 24), colour=2)
    flipped = bytearray(picture)
    flipped[len(flipped) // 2] ^= 1
    webp = cv2.imencode(".webp", photograph())[1].tobytes()
    short = chunk(b"IHDR", (8).to_bytes(4) * 2 + bytes([8, 0, 0, 0, 0])) + chunk(b"IDAT", zlib.compress(bytes(30)))
    return {
        "empty.png": (b"", "empty"),
        "text.png": (b"this is no image\n", "not a PNG"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "truncated.jpg": (whole[: len(whole) // 2], "truncated"),
        "one_byte_short.jpg": (whole[:-1], "truncated"),
        "cut_and_closed.jpg": (whole[: len(whole) // 2] + b"\xff\xd9", "truncated"),
        "thumbnail_only.jpg": (with_exif(whole, 1, thumbnail=jpeg(photograph(16, 16)))[:-400], "truncated"),
        "truncated_progressive.jpg": (progressive[: len(progressive) // 2], "truncated"),
        "header_only.jpg": (whole[:20], "truncated"),
        "truncated.png": (picture[: len(picture) // 2], "truncated"),
        "no_end.png": (picture[:-12], "truncated"),
        "checksum.png": (bytes(flipped), "checksum"),
        "too_few_rows.png": (SIGNATURE + short + chunk(b"IEND", b""), "damaged"),
        "huge.png": (with_size(picture, 100_000, 100_000), "limit"),
        "bomb.jpg": (with_size(whole, 10_000, 20_000), "limit"),
        "no_size.png": (with_size(picture, 0, 24), "0 x 24"),
        "truncated.webp": (webp[: len(webp) // 2], "truncated"),
        "short.webp": (b"RIFF" + (8).to_bytes(4, "little") + b"WEBPVP8X", "truncated"),
        "truncated.bmp": (cv2.imencode(".bmp", photograph())[1].tobytes()[:2000], "damaged"),
        "huge.bmp": (b"BM" + bytes(12) + (40).to_bytes(4, "little") + (100_000).to_bytes(4, "little") * 2, "limit"),
        "picture.gif": (cv2.imencode(".gif", photograph())[1].tobytes(), "GIF"),
        "picture.tiff": (cv2.imencode(".tiff", photograph().astype(np.float32))[1].tobytes(), "TIFF"),
    }


def broken_labels() -> dict[str, tuple[bytes, str]]:
    """By file name: contents that read_label must refuse, and a word of the reason."""
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    good = png(ids)
    return {
        "colour.png": (png(np.dstack([ids] * 3), colour=2), "colour"),
        "grey_alpha.png": (png(np.dstack([ids] * 2), colour=4), "alpha"),
        "rgba.png": (png(np.dstack([ids] * 4), colour=6), "alpha"),
        "label.jpg": (jpeg(), "not a PNG"),
        "jpeg_named.png": (jpeg(), "not a PNG"),
        "truncated.png": (good[:-20], "truncated"),
        "checksum.png": (good.replace(b"IDAT", b"IDAS"), "checksum"),
        "huge.png": (with_size(good, 100_000, 100_000), "limit"),
        "taller.png": (with_size(good, 9, 6), "damaged"),
        "empty.png": (b"", "empty"),
    }
