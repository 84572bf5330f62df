"""A checkpoint and a CamVid-like data set, both tiny, for tests of whole commands."""

from pathlib import Path

import cv2
import numpy as np
import torch

from ccnet_cli import checkpoint, config
from ccnet_cli.datasets.camvid import CLASSES
from ccnet_cli.model import build

OVERRIDES = (
    "model.backbone=tiny",
    "model.width=8",
    "model.channels=8",
    "model.query_channels=4",
    "model.auxiliary_channels=8",
    "eval.tile=24,40",
)


def save_checkpoint(folder: Path, *overrides: str, spoil: bool = False) -> Path:
    """An untrained model of CamVid's classes that answers with several of them; spoil makes its scores nan."""
    preset = config.load("camvid", [*OVERRIDES, *overrides])
    torch.manual_seed(3)
    model = build(preset.model, len(CLASSES)).eval()
    with torch.no_grad():
        if model.head.rcca is not None:
            model.head.rcca.attention.gamma.fill_(0.5)
        # strong enough for answers that change from place to place
        classify = model.head.bottleneck[-1]
        classify.weight.mul_(20)
        classify.bias.zero_()
        if spoil:
            classify.bias.fill_(float("nan"))
    state = {
        "format": checkpoint.FORMAT,
        "model": model.state_dict(),
        "preset": config.to_mapping(preset),
        "classes": CLASSES.to_mapping(),
        "step": 1,
        "metrics": {},
    }
    return checkpoint.save(folder, 1, state, keep=2)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Coloured rectangles with noise, uint8 BGR."""
    random = np.random.default_rng(seed)
    image = np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    for _ in range(8):
        y, x = random.integers(0, height), random.integers(0, width)
        image[y : y + height // 3 + 1, x : x + width // 3 + 1] = random.integers(0, 256, 3)
    return cv2.add(image, random.integers(0, 30, image.shape, dtype=np.uint8))


def write(path: Path, array: np.ndarray) -> Path:
    """Write a PNG (or JPEG) with OpenCV itself, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, content = cv2.imencode(path.suffix, array)
    assert done
    path.write_bytes(bytes(content))
    return path


def make_camvid(root: Path, sizes: list[tuple[int, int]], split: str = "val", void: float = 0.2) -> Path:
    """A CamVid folder with one image per size and random labels, some of them void; classes 9 and 10 do not occur."""
    for number, (height, width) in enumerate(sizes):
        random = np.random.default_rng(100 + number)
        label = random.integers(0, 9, (height, width), dtype=np.uint8)
        label[random.random((height, width)) < void] = 11
        write(root / split / f"{number:03}.png", picture(height, width, number))
        write(root / f"{split}annot" / f"{number:03}.png", label)
    return root
