"""Damaged files by the hundred, read in a process of its own: no crash, no growth, nothing but our refusal."""

import json
import subprocess
import sys
from pathlib import Path

import bad_inputs
import cv2
import numpy as np
import peers
import pytest
import tiny
import torch

TESTS = Path(__file__).parents[1]
many = pytest.mark.slow


def fuzzed(kind, folder, count, seed=1):
    done = subprocess.run(
        [sys.executable, TESTS / "fuzz.py", kind, folder, str(count), str(seed)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    # below 0 it would have died of a signal
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(kind, count, found)
    return found["outcomes"], found["grown"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Our checkpoint, the authors' layout, and that as a legacy file."""
    folder = tmp_path_factory.mktemp("weights")
    checkpoint = tiny.save_checkpoint(folder)
    checkpoint.with_suffix(".json").unlink()
    state = peers.authors(depth=50, width=8, channels=16)
    torch.save(state, folder / "authors.pth")
    torch.save({"state_dict": state}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return folder


@pytest.mark.parametrize("count", [120, pytest.param(2000, marks=many)])
def test_damaged_checkpoints_are_refused_or_change_nothing(weights, count):
    outcomes, grown = fuzzed("checkpoints", weights, count)
    assert sum(outcomes.values()) == count and outcomes["refused"] > 0.5 * count
    # a legacy file has no checksum, and members that trade places with right checksums are a sound file of other
    # weights; of ours the manifest's sha256 would tell
    assert set(outcomes) <= {"refused", "same", "swapped", "other, legacy"}
    assert grown < 500


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A photograph in twelve formats."""
    folder = tmp_path_factory.mktemp("pictures")
    photo = bad_inputs.photograph(32, 48)
    palette = [(index * 37 % 256, index * 91 % 256, 255 - index) for index in range(256)]
    grey = photo[:, :, 0]
    formats = {
        "rgb.png": bad_inputs.png(photo, colour=2, filters=(0, 1, 2, 3, 4)),
        "grey.png": bad_inputs.png(grey, filters=(4, 3)),
        "palette.png": bad_inputs.png(grey, colour=3, palette=palette),
        "sixteen.png": bad_inputs.png(photo.astype(int) * 257, 16, 2),
        "baseline.jpg": bad_inputs.with_exif(bad_inputs.jpeg(photo), 6),
        "progressive.jpg": bad_inputs.jpeg(photo, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "cmyk.jpg": bad_inputs.flat_cmyk_jpeg((200, 100, 50, 255), 32),
        "lossy.webp": cv2.imencode(".webp", photo, [cv2.IMWRITE_WEBP_QUALITY, 60])[1].tobytes(),
        "lossless.webp": cv2.imencode(".webp", photo, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes(),
        "picture.bmp": cv2.imencode(".bmp", photo)[1].tobytes(),
        "picture.gif": cv2.imencode(".gif", photo)[1].tobytes(),
        "picture.tiff": cv2.imencode(".tiff", photo)[1].tobytes(),
    }
    for name, content in formats.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("count", [240, pytest.param(1200, marks=many)])
def test_damaged_images_are_refused_or_read(pictures, count):
    outcomes, grown = fuzzed("images", pictures, count)
    for name in ("read_image", "read_label", "read_size"):
        assert outcomes[f"{name} refused"] + outcomes.get(f"{name} read", 0) == count
    # damage gets past the first look, to the decoders
    assert outcomes["read_image read"] > 0.02 * count and outcomes["read_label read"] > 0
    assert grown < 500


def test_an_error_of_another_kind_would_be_noticed(pictures, tmp_path):
    """Teeth: an error that the loop does not expect ends the process."""
    broken = (TESTS / "fuzz.py").read_text().replace("except InputError as error", "except KeyError as error")
    (tmp_path / "fuzz.py").write_text(broken)
    done = subprocess.run(
        [sys.executable, tmp_path / "fuzz.py", "images", pictures, "24", "1"],
        capture_output=True,
        env={"PYTHONPATH": str(TESTS.parent)},
        check=False,
    )
    assert done.returncode == 1 and b"InputError" in done.stderr


BOMBS = """
import sys
from pathlib import Path
from fuzz import grown
from ccnet_cli import cli
from ccnet_cli.media import images
from ccnet_cli.runs import torchfile
before = grown()
for words in (
    ["predict", "bomb.jpg", "-o", "out.png", "--checkpoint", "model.pt"],
    ["eval", "deflated.pth"],
    ["eval", "stride.pth"],
    ["train", "--preset", "nested.yaml"],
    ["predict", "rows.png", "-o", "out.png", "--checkpoint", "model.pt"],
):
    try:
        cli.main(words)
    except SystemExit as stopped:
        assert stopped.code == 2, words
print(grown() - before)
"""


def test_bombs_take_no_memory(tmp_path):
    """A real picture of 20,000 x 10,000 pixels, a thousandfold zip, a tensor of 2**40, 5000 brackets, a false size."""
    import hostile

    tiny.save_checkpoint(tmp_path).rename(tmp_path / "model.pt")
    _, content = cv2.imencode(".jpg", np.zeros((20_000, 10_000), np.uint8))
    (tmp_path / "bomb.jpg").write_bytes(content.tobytes())
    hostile.deflated(tmp_path / "deflated.pth")
    torch.save({"a": torch.zeros(1).as_strided((1 << 40,), (0,))}, tmp_path / "stride.pth")
    (tmp_path / "nested.yaml").write_text("name: " + "[" * 5000)
    # within the limit by its header, and eight rows by its data
    (tmp_path / "rows.png").write_bytes(
        bad_inputs.with_size(bad_inputs.png(bad_inputs.photograph(8, 8), colour=2), 10_000, 13_000)
    )
    done = subprocess.run(
        [sys.executable, "-c", BOMBS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 5
    print("bombs:", done.stdout)
    assert float(done.stdout) < 300
