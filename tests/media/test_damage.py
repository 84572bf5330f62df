"""Damaged image files are refused with the reason, or read with a notice; sound ones of every kind are accepted."""

import io
import itertools
import os
import re
import zlib

import bad_inputs
import calls
import cv2
import numpy as np
import pytest
import tiny
from bad_inputs import SIGNATURE, chunk

from ccnet_cli import cli, errors
from ccnet_cli.errors import InputError
from ccnet_cli.media import images

JPEGS = {
    "baseline": (),
    "restarts": (cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
    "progressive": (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "optimised": (cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_QUALITY, 60),
}


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    monkeypatch.setenv(errors.VERBOSITY, "")


def check(tmp_path, content, reason, capfd, readable=True):
    """The image that is left of a damaged file, which is refused for a reason unless damage is tolerated."""
    path = tmp_path / "a.img"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        images.read_image(path)
    assert capfd.readouterr() == ("", "")
    if not readable:
        with pytest.raises(InputError):
            images.read_image(path, tolerate=True)
        return None
    image = images.read_image(path, tolerate=True)
    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(f"warning: image .*a.img: .*{reason}", line)
    return image


def scans(content):
    """Where each scan of a JPEG begins, and where its picture ends."""
    return [match.start() for match in re.finditer(rb"\xff[\xda\xd9]", content)]


def libjpeg_complains(content):
    """Whether the decoder alone prints a warning."""
    with images.codec_messages() as messages:
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return bool(messages)


@pytest.mark.parametrize("kind", JPEGS)
def test_overwritten_bytes_of_which_the_decoder_warns_are_refused(kind, tmp_path, capfd):
    random = np.random.default_rng(len(kind))
    content = bad_inputs.jpeg(bad_inputs.photograph(120, 160), *JPEGS[kind])
    start = scans(content)[0] + 16
    warned = 0
    for _ in range(30):
        damaged = bytearray(content)
        offset = random.integers(start, len(content) - 12)
        damaged[offset : offset + 8] = random.integers(0, 255, 8, np.uint8).tobytes()
        if libjpeg_complains(bytes(damaged)):
            warned += 1
            assert check(tmp_path, bytes(damaged), "truncated|damaged", capfd).shape == (120, 160, 3)
    assert warned >= 5


def test_every_warning_of_libjpeg_is_heard(tmp_path, capfd):
    baseline, restarts = bad_inputs.jpeg(), bad_inputs.jpeg(None, *JPEGS["restarts"])
    end = baseline.rindex(b"\xff\xd9")
    check(tmp_path, baseline[:end] + bytes(40) + baseline[end:], "extraneous bytes", capfd)
    swapped = restarts.replace(b"\xff\xd1", b"\xff\xd5", 1)
    check(tmp_path, swapped, "found marker 0xd5 instead of RST1", capfd)
    # a piece between two restart markers, cut out
    first, second = restarts.index(b"\xff\xd0"), restarts.index(b"\xff\xd1")
    check(tmp_path, restarts[:first] + restarts[second:], "damaged|truncated", capfd)
    middle = (scans(baseline)[0] + end) // 2
    check(tmp_path, baseline[:middle] + b"\xff\xd9", "truncated", capfd)
    check(tmp_path, baseline[:middle] + baseline[middle + 300 :], "truncated", capfd)


@pytest.mark.parametrize("pixels", [bad_inputs.photograph(), bad_inputs.photograph()[:, :, :1]], ids=["colour", "grey"])
def test_a_progressive_jpeg_cut_at_any_scan_and_closed_lacks_scans(pixels, tmp_path, capfd):
    content = bad_inputs.jpeg(pixels, *JPEGS["progressive"])
    *starts, end = scans(content)
    assert len(starts) >= 6
    # tables of Huffman codes may stand between two scans, they are no picture
    for cut in starts[1:]:
        for closed in (content[:cut] + b"\xff\xd9", content[:cut] + b"\xff\xd9" + content[cut:]):
            image = check(tmp_path, closed, "lacks scans", capfd)
            assert image.shape == (64, 96, 3)
    assert end == len(content) - 2


def separate(content):
    """A progressive JPEG's first scan for each component: a sequential JPEG whose components come one by one."""
    image = bad_inputs.photograph()
    parts = [bad_inputs.jpeg(np.ascontiguousarray(image[:, :, i : i + 1])) for i in range(2)]
    one = parts[0]
    frame = one.index(b"\xff\xc0")
    length = int.from_bytes(one[frame + 2 : frame + 4])
    header = one[frame + 4 : frame + 9] + bytes([2, 1, 0x11, 0, 2, 0x11, 0])
    tables = one[frame + 2 + length : scans(one)[0]]
    pieces = [one[:frame], b"\xff\xc0" + (len(header) + 2).to_bytes(2) + header, tables]
    for number, part in enumerate(parts, 1):
        scan = bytearray(part[scans(part)[0] : scans(part)[-1]])
        scan[5] = number
        pieces.append(bytes(scan))
    return pieces


def test_a_sequential_jpeg_lacks_a_scan_where_a_component_is_missing(tmp_path, capfd):
    pieces = separate(bad_inputs.jpeg())
    check(tmp_path, b"".join(pieces[:-1]) + b"\xff\xd9", "lacks scans", capfd, readable=False)


def test_a_tolerated_jpeg_without_an_end_keeps_its_upper_half(tmp_path, capfd):
    picture = bad_inputs.photograph(64, 96)
    content = bad_inputs.jpeg(picture)
    image = check(tmp_path, content[: -len(content) // 4], "truncated", capfd)
    assert np.abs(image[:24].astype(int) - picture[:24]).mean() < 6


def png_of(rows, *compressed, extra=b"", end=True):
    header = (96).to_bytes(4) + (64).to_bytes(4) + bytes([8, 2, 0, 0, 0])
    data = b"".join(chunk(b"IDAT", part) for part in compressed or [zlib.compress(rows)])
    return SIGNATURE + chunk(b"IHDR", header) + extra + data + (chunk(b"IEND", b"") if end else b"")


def test_every_damage_of_a_png_is_refused_and_what_is_left_is_read(tmp_path, capfd):
    picture = bad_inputs.photograph(64, 96)
    rows = b"".join(b"\0" + row.tobytes() for row in picture[:, :, ::-1])
    packed = zlib.compress(rows)
    wrong_sum = packed[:-1] + bytes([packed[-1] ^ 1])
    sound = png_of(rows)
    data = sound.index(b"IDAT")
    flipped = bytearray(sound)
    flipped[data + len(packed) // 2] ^= 16
    comment = bytearray(png_of(rows, extra=chunk(b"tEXt", b"Comment\0x")))
    comment[comment.index(b"Comment")] ^= 1
    cases = {
        "checksum.*IDAT": bytes(flipped),
        "checksum.*tEXt": bytes(comment),
        "ends early": sound[: len(sound) // 2],
        "the PNG ends early": png_of(rows, end=False),
        "Not enough image data": png_of(rows[:-300]),
        "incorrect data check": png_of(rows, wrong_sum),
        "Extra compressed data": png_of(rows, packed + b"more"),
        "Too much image data": png_of(rows + rows[:1000]),
        "truncated|Not enough image": png_of(rows, packed[: len(packed) // 2]),
    }
    for reason, content in cases.items():
        image = check(tmp_path, content, reason, capfd)
        np.testing.assert_array_equal(image[:16], picture[:16], err_msg=reason)
    for content in (sound, png_of(rows, packed[:50], b"", packed[50:])):
        (tmp_path / "a.png").write_bytes(content)
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), picture)


def test_labels_are_never_read_in_part(tmp_path):
    content = bad_inputs.png(np.arange(24, dtype=np.uint8).reshape(4, 6))
    data = content.index(b"IDAT")
    length = int.from_bytes(content[data - 4 : data])
    packed = content[data + 4 : data + 4 + length]
    for damaged in (packed[:-1] + bytes([packed[-1] ^ 1]), packed + b"more", packed[: length // 2]):
        (tmp_path / "a.png").write_bytes(content[: data - 4] + chunk(b"IDAT", damaged) + chunk(b"IEND", b""))
        with pytest.raises(InputError, match="damaged"):
            images.read_label(tmp_path / "a.png")


def riff(*chunks):
    body = b"WEBP" + b"".join(
        name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("quality", [80, 101])
def test_every_damage_of_a_webp_is_refused(quality, tmp_path, capfd):
    content = cv2.imencode(".webp", bad_inputs.photograph(64, 96), [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
    name, data = content[12:16], content[20:]
    size = (95).to_bytes(3, "little") + (63).to_bytes(3, "little")
    for cut in (len(data) // 2, len(data) - 8, len(data) - 2):
        # cut; cut, with the length of the file corrected; and with that of the chunk
        check(tmp_path, content[: 20 + cut], "truncated", capfd, readable=False)
        shorter = b"RIFF" + (12 + cut).to_bytes(4, "little") + content[8 : 20 + cut]
        check(tmp_path, shorter, "truncated", capfd, readable=False)
        check(tmp_path, riff((name, data[:cut])), "damaged", capfd, readable=False)
    check(tmp_path, riff((b"VP8X", bytes(4) + size), (b"EXIF", bytes(20))), "holds no picture", capfd, readable=False)
    (tmp_path / "a.webp").write_bytes(riff((b"VP8X", bytes(4) + size), (name, data), (b"XMP ", b"odd")) + b"tail")
    assert images.read_image(tmp_path / "a.webp").shape == (64, 96, 3)


@pytest.mark.parametrize("cut", [1, 30, 2000, 64 * 96 * 3])
def test_a_bmp_that_ends_early_is_refused(cut, tmp_path, capfd):
    content = cv2.imencode(".bmp", bad_inputs.photograph(64, 96))[1].tobytes()
    check(tmp_path, content[:-cut], "ends early", capfd, readable=False)


def test_sound_jpegs_of_every_kind_are_accepted(tmp_path, capfd):
    picture = bad_inputs.photograph(57, 83)
    path = tmp_path / "a.jpg"
    samplings = (0x111111, 0x211111, 0x221111, 0x121111, 0x411111)
    for quality, progressive, restart, sampling in itertools.product((1, 50, 95, 100), (0, 1), (0, 1, 7), samplings):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
        options += [cv2.IMWRITE_JPEG_RST_INTERVAL, restart, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        content = bad_inputs.jpeg(picture, *options)
        comment = content[:2] + b"\xff\xfe\0\x08\xff\xd9\xff\xda\0\0" + content[2:]
        for whole in (content, content + bytes(50), content + content, comment):
            path.write_bytes(whole)
            assert images.read_image(path).shape == picture.shape
    assert capfd.readouterr().err == ""


def test_sound_files_of_another_encoder_are_accepted(tmp_path, capfd):
    pillow = pytest.importorskip("PIL.Image")
    picture = pillow.fromarray(bad_inputs.photograph(57, 83))
    path = tmp_path / "a"

    def accept(image, kind, **options):
        content = io.BytesIO()
        image.save(content, kind, **options)
        path.write_bytes(content.getvalue())
        assert images.read_image(path).shape == (57, 83, 3)

    for mode, progressive, quality in itertools.product(("RGB", "L", "CMYK"), (False, True), (5, 95)):
        options = {"progressive": progressive, "quality": quality, "icc_profile": bytes(70000), "exif": b"Exif\0\0x"}
        accept(picture.convert(mode), "JPEG", **options)
    for mode in ("RGB", "L", "P", "RGBA", "LA", "1"):
        accept(picture.convert(mode), "PNG", optimize=True, icc_profile=bytes(200))
    accept(pillow.fromarray((np.arange(57 * 83) * 13 % 65536).astype(np.uint16).reshape(57, 83)), "PNG")
    for mode, lossless in itertools.product(("RGB", "L", "RGBA"), (False, True)):
        accept(picture.convert(mode), "WEBP", lossless=lossless, exif=b"Exif\0\0x")
    for mode in ("RGB", "L", "P", "1", "RGBA"):
        accept(picture.convert(mode), "BMP")
    assert capfd.readouterr().err == ""


def test_damage_is_heard_where_stderr_is_closed_or_full(tmp_path):
    content = bad_inputs.jpeg()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) * 3 // 4] + b"\xff\xd9")
    for state in ("closed", "full"):
        saved = os.dup(2)
        try:
            if state == "closed":
                os.close(2)
            else:
                os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
            with pytest.raises(InputError, match="truncated"):
                images.read_image(tmp_path / "a.jpg")
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def cut_jpeg(path):
    content = bad_inputs.jpeg(bad_inputs.photograph(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content[: scans(content)[3]] + b"\xff\xd9")
    return path


def run(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main([os.fspath(word) for word in words])
    return stop.value.code


def test_predict_tolerates_damage_on_request(saved, tmp_path, capfd):
    path = cut_jpeg(tmp_path / "a.jpg")
    words = ["predict", path, "-o", tmp_path / "a.png", "--checkpoint", saved, "--device", "cpu"]
    assert run(*words) == 2
    assert "lacks scans" in capfd.readouterr().err
    assert not (tmp_path / "a.png").exists()
    assert run(*words, "--tolerate-damage") == 0
    assert "lacks scans of its picture; what is left of it is used" in capfd.readouterr().err
    assert images.read_label(tmp_path / "a.png").shape == (64, 96)


def test_evaluation_tolerates_damage_on_request(saved, tmp_path, capfd):
    data = tiny.make_camvid(tmp_path, [(64, 96)])
    (data / "val" / "000.png").unlink()
    cut_jpeg(data / "val" / "000.jpg")
    with pytest.raises(InputError, match="lacks scans"):
        calls.evaluate(saved, data, device="cpu")
    assert calls.evaluate(saved, data, device="cpu", tolerate_damage=True).images == 1
    assert "what is left of it is used" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_so_do_several_processes(saved, tmp_path, capfd, forked_workers, command):
    data = tiny.make_camvid(tmp_path, [(64, 96)] * 4)
    for name in ("000", "003"):
        (data / "val" / f"{name}.png").unlink()
        cut_jpeg(data / "val" / f"{name}.jpg")
    words = {"predict": ["predict", data / "val", "-o", tmp_path / "out", "--checkpoint", saved]}
    words["eval"] = ["eval", saved, "--data", data]
    words = [*words[command], "--processes", "2"]
    assert run(*words) == 2
    assert "lacks scans" in capfd.readouterr().err
    assert run(*words, "--tolerate-damage", *(["--continue"] if command == "predict" else [])) == 0
    printed = capfd.readouterr().err
    assert all(printed.count(f"{name}.jpg: truncated: the JPEG lacks scans") == 1 for name in ("000", "003")), printed


def test_a_check_of_data_tolerates_damage_on_request(tmp_path, capfd):
    for split in ("train", "val"):
        data = tiny.make_camvid(tmp_path, [(64, 96)], split)
    (data / "val" / "000.png").unlink()
    cut_jpeg(data / "val" / "000.jpg")
    assert run("data", "check", data, "--split", "val") == 2
    assert "lacks scans" in "".join(capfd.readouterr())
    assert run("data", "check", data, "--split", "val", "--tolerate-damage") == 0
    printed = capfd.readouterr()
    assert "what is left of it is used" in printed.err and "no problem found" in printed.out


@pytest.mark.parametrize("words", [("--point", "3,4", "-o"), ("--html",)])
def test_figures_tolerate_damage_on_request(saved, tmp_path, capfd, words):
    path, target = cut_jpeg(tmp_path / "a.jpg"), tmp_path / ("a.png" if "-o" in words else "a.html")
    words = ["visualize", path, "--checkpoint", saved, "--device", "cpu", *words, target]
    assert run(*words) == 2
    assert "lacks scans" in capfd.readouterr().err and not target.exists()
    assert run(*words, "--tolerate-damage") == 0
    assert "what is left of it is used" in capfd.readouterr().err and target.exists()


def test_training_tolerates_damage_on_request(tmp_path, capfd):
    for split in ("train", "val"):
        data = tiny.make_camvid(tmp_path / "data", [(64, 96), (64, 96)], split)
        (data / split / "000.png").unlink()
        cut_jpeg(data / split / "000.jpg")
    settings = ["train.batch=2", "data.workers=0", "schedule.steps=1", "schedule.warmup=0", "data.crop=24,40"]
    sets = [word for setting in [*tiny.OVERRIDES, *settings] for word in ("-s", setting)]
    words = ["train", "--preset", "camvid", "--data", data, "--device", "cpu", *sets]
    assert run(*words, "-o", tmp_path / "one") == 2
    assert "lacks scans" in capfd.readouterr().err
    assert run(*words, "-o", tmp_path / "two", "--tolerate-damage") == 0
    printed = capfd.readouterr().err
    assert printed.count("train/000.jpg: truncated") == printed.count("val/000.jpg: truncated") == 1
