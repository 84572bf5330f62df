"""A checkpoint and a CamVid-like data set, both tiny, for tests of whole commands."""

from pathlib import Path

import cv2
import numpy as np
import torch

from ccnet_cli import config
from ccnet_cli.datasets import camvid, cityscapes
from ccnet_cli.media.classes import Classes
from ccnet_cli.models.network import build
from ccnet_cli.runs import checkpoint

OVERRIDES = (
    "model.backbone=tiny",
    "model.width=8",
    "model.channels=8",
    "model.query_channels=4",
    "model.auxiliary_channels=8",
    "eval.tile=24,40",
)


# label ids: road, building and car, then every one that does not count
STREET_IDS = (7, 11, 26, *range(7), 9, 10, *range(14, 17), 18, 29, 30)


def save_checkpoint(
    folder: Path,
    *overrides: str,
    spoil: bool = False,
    classes: Classes = camvid.CLASSES,
    never: int | None = None,
    stirred: bool = False,
) -> Path:
    """An untrained model that answers with several of the classes, CamVid's, but never one; spoil: scores overflow.

    stirred: its batch norms are none that change nothing.
    """
    preset = config.load("camvid", [*OVERRIDES, *overrides])
    torch.manual_seed(3)
    model = build(preset.model, len(classes)).eval()
    if stirred:
        stir(model)
    with torch.no_grad():
        if model.head.rcca is not None:
            model.head.rcca.attention.gamma.fill_(0.5)
        # strong enough for answers that change from place to place
        classify = model.head.bottleneck[-1]
        classify.weight.mul_(20)
        classify.bias.zero_()
        if never is not None:
            classify.bias[never] = -1e6
        if spoil:
            classify.weight.fill_(3e38)
    state = {
        "format": checkpoint.FORMAT,
        "model": model.state_dict(),
        "preset": config.to_mapping(preset),
        "classes": classes.to_mapping(),
        "step": 1,
        "metrics": {},
    }
    return checkpoint.save(folder, 1, state, keep=2)


def stir(model: torch.nn.Module) -> None:
    """Batch norms as a training leaves them: each channel with statistics, scale and shift of its own."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                for tensor, low in ((norm.running_mean, -0.3), (norm.bias, -0.3), (norm.running_var, 0.4)):
                    tensor.copy_(low + 0.6 * torch.rand(tensor.shape, generator=random))
                norm.weight.copy_(torch.rand(norm.weight.shape, generator=random) + 0.5)


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


def save_cityscapes_checkpoint(folder: Path) -> Path:
    """As save_checkpoint, of Cityscapes' classes; it never answers with train."""
    classes = cityscapes.CLASSES
    return save_checkpoint(folder, "data.dataset=cityscapes", classes=classes, never=classes.names.index("train"))


def make_cityscapes(root: Path, sizes: list[tuple[int, int]], split: str, labels: Path | None) -> Path:
    """One image per size below root and, if given, random label ids below labels; the last label map is all void."""
    for number, (height, width) in enumerate(sizes):
        city = ("ulm", "bad-homburg")[number % 2]
        name = f"{split}/{city}/{city}_{number:06}_{number + 19:06}"
        write(root / f"leftImg8bit/{name}_leftImg8bit.png", picture(height, width, number))
        if labels is not None:
            ids = np.array(STREET_IDS[3:] if number == len(sizes) - 1 else STREET_IDS, np.uint8)
            values = np.random.default_rng(number).choice(ids, (height, width))
            write(labels / f"gtFine/{name}_gtFine_labelIds.png", values)
    return root
