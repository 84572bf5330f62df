"""toyclips: short films of a street in which only an earlier frame tells a vehicle's class.

All vehicles of a clip have one class, and look alike; each has a sign, whose colour tells the class while it is lit.
One vehicle's is lit in earlier frames, another's perhaps, none's in the last frame, which is the labelled one: that
frame by itself says nothing of the class.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccnet_cli import files
from ccnet_cli.datasets import street
from ccnet_cli.datasets.settings import CITY, Data
from ccnet_cli.datasets.toyscapes import CLASSES, SIGNALS, fill_new, find_or_draw
from ccnet_cli.errors import InputError
from ccnet_cli.media import images

# raise it when the drawing changes, so that the built-in set is drawn again
VERSION = 1
# one terrace
SIZE = (80, 128)
FRAMES, TRAIN, VAL = 5, 400, 60
DARK = (46, 44, 42)
# of the first frames, in how many a sign is lit at least
MIN_LIT = 4
# pixels that the traffic moves from a frame to the next, at most
SPEED = 3


@dataclass(frozen=True)
class Vehicle:
    """A vehicle's centre in the last frame, in pixels, and in how many of the first frames its sign is lit."""

    x: int
    y: int
    lit: int


@dataclass(frozen=True)
class Facts:
    """The class of all vehicles, the vehicles, and the pixels that they move from frame to frame."""

    truth: str
    vehicles: tuple[Vehicle, ...]
    speed: int


def built_in(data: Data | None = None) -> Path:
    """The folder of the built-in set, drawn on first use."""
    parameters = repr((VERSION, TRAIN, VAL, FRAMES, SIZE))
    name = f"toyclips-{VERSION}-{hashlib.sha256(parameters.encode()).hexdigest()[:8]}"
    folder = files.cache_folder() / name
    return find_or_draw(folder, f"{TRAIN + VAL} clips", lambda: make(folder, train=TRAIN, val=VAL, size=SIZE))


def make(folder: Path, *, train: int = TRAIN, val: int = VAL, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """Draw the splits train and val, clips of size (H, W), in Cityscapes layout into a new or empty folder.

    The frames lie in leftImg8bit_sequence, the last of each clip in leftImg8bit too. The classes take turns.
    """
    if train < 2 or val < 2:
        raise InputError("toyclips", f"{train} training and {val} validation clips", "draw at least two of each")
    if size[0] < SIZE[0] or size[1] < SIZE[1]:
        why, smallest = f"frames of {size[0]}x{size[1]} are too small", f"{SIZE[0]}x{SIZE[1]}"
        raise InputError("toyclips", why, f"draw at least {smallest}")

    def fill(root: Path) -> None:
        for stream, (split, count) in enumerate((("train", train), ("val", val))):
            for index in range(count):
                truth = list(CLASSES)[index % len(CLASSES)]
                frames, labels, _ = clip(np.random.default_rng((seed, stream, index)), size, truth)
                _write(root, split, index, frames, labels)

    return fill_new(folder, fill)


def _write(root: Path, split: str, index: int, frames: list[images.Pixels], labels: images.Pixels) -> None:
    for number, frame in enumerate(frames):
        name = f"{CITY}_{index:06d}_{number:06d}"
        images.write_image(root / "leftImg8bit_sequence" / split / CITY / f"{name}_leftImg8bit.png", frame)
    images.write_image(root / "leftImg8bit" / split / CITY / f"{name}_leftImg8bit.png", frames[-1])
    images.write_label(root / "gtFine" / split / CITY / f"{name}_gtFine_labelIds.png", labels)


def clip(
    rng: np.random.Generator, size: tuple[int, int] = SIZE, truth: str | None = None
) -> tuple[list[images.Pixels], images.Pixels, Facts]:
    """Draw a clip: its frames uint8 (H, W, 3) BGR, the last one's Cityscapes label ids uint8 (H, W), and its facts.

    truth is the vehicles' class (None: a random one); it changes the colour of the signs that are lit, nothing else.
    """
    names = list(CLASSES)
    drawn = names[rng.integers(len(names))]
    truth = truth or drawn
    background, ids, lanes = street.draw_streets(rng, size)
    facts = _place(rng, size[1], lanes[-1], truth)
    looks = rng.integers(1 << 30, size=len(facts.vehicles))
    frames = []
    for number in range(FRAMES):
        image, labels = background.copy(), ids.copy()
        for vehicle, look in zip(facts.vehicles, looks, strict=True):
            x = vehicle.x - facts.speed * (FRAMES - 1 - number)
            # it looks the same in every frame, but for its sign
            street.draw_van(np.random.default_rng(look), image, labels, (x, vehicle.y), CLASSES[truth])
            colour = SIGNALS[truth][0] if number < vehicle.lit else DARK
            street.draw_sign(image, x, vehicle.y - 3, colour)
        frames.append(street.expose(rng, image))
    return frames, labels, facts


def _place(rng: np.random.Generator, width: int, lane: int, truth: str) -> Facts:
    """Two vehicles side by side, at a distance, of which the first to be placed has a sign that is lit."""
    half = street.VEHICLE[0] // 2
    first = int(rng.integers(half + 2, width - 3 * half - 6))
    places = [first, int(rng.integers(first + 2 * half + 4, width - half - 1))]
    lit = [int(rng.integers(MIN_LIT, FRAMES)), int(rng.integers(MIN_LIT, FRAMES)) * int(rng.integers(2))]
    order = rng.permutation(2).tolist()
    vehicles = (Vehicle(places[each], lane + int(rng.integers(-2, 3)), lit[i]) for i, each in enumerate(order))
    return Facts(truth, tuple(vehicles), int(rng.integers(-SPEED, SPEED + 1)))
