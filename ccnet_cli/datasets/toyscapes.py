"""toyscapes: streets on a hillside in which only long-range context tells a vehicle's class.

All vehicles look alike; the colour of one signal says which class all vehicles of a scene have. Half of the vehicles
share a row or a column with the signal, so one criss-cross pass can carry the message; the others share neither, which
takes two. All are farther from the signal than `REACH`, more than the convolutions of the tiny network see.

With two signals, of two classes, each rules the vehicles that wear its mark: the marks must be matched over a distance.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np

from ccnet_cli import files
from ccnet_cli.datasets import street
from ccnet_cli.datasets.settings import CITY, Data, Toyscapes
from ccnet_cli.errors import InputError, notice
from ccnet_cli.media import images

# raise it when the drawing changes, so that the built-in set is drawn again
VERSION = 1
SIZE = (160, 208)
TRAIN, VAL = 720, 60
SMALLEST = SIZE
# pixels between the edges of signal and vehicle along the axis that they share, or along both if they share none: the
# backbone and three 3x3 convolutions at stride 8 see 39 pixels far, and enlarging the scores adds 8
REACH = 50
# vehicles on the signal's row or column; equally many are off both
PAIRS = 2

# Cityscapes label ids of the vehicles, and the colour (BGR) and label id of each one's signal: a traffic light is red,
# yellow or green, a traffic sign blue or pink
CLASSES = {"car": 26, "truck": 27, "bus": 28, "motorcycle": 32, "bicycle": 33}
LIGHT, SIGN = 19, 20
SIGNALS = {
    "car": ((40, 30, 230), LIGHT),
    "truck": ((30, 215, 245), LIGHT),
    "bus": ((50, 200, 40), LIGHT),
    "motorcycle": ((170, 50, 20), SIGN),
    "bicycle": ((225, 140, 250), SIGN),
}


# a scene's image and labels, by its index in the split
Draw = Callable[[int], tuple[images.Pixels, images.Pixels]]


@dataclass(frozen=True)
class Vehicle:
    """A vehicle's relation to the signal, "row", "column" or "off", and its centre in pixels."""

    relation: str
    x: int
    y: int


@dataclass(frozen=True)
class Facts:
    """The class of all vehicles, the class whose colour the signal shows, its centre in pixels, and the vehicles."""

    truth: str
    shown: str
    x: int
    y: int
    vehicles: tuple[Vehicle, ...]


@dataclass(frozen=True)
class Signal:
    """The class of its vehicles, the class whose colour it shows, their mark, and its centre in pixels."""

    truth: str
    shown: str
    mark: str
    x: int
    y: int


@dataclass(frozen=True)
class FactsOfTwo:
    """Two signals, and the vehicles of each, whose relations are to their own signal."""

    signals: tuple[Signal, Signal]
    vehicles: tuple[tuple[Vehicle, ...], tuple[Vehicle, ...]]


def built_in(data: Data | None = None) -> Path:
    """The folder of the built-in set, drawn on first use; of two processes at once, the set of one is kept."""
    signals = data.signals if isinstance(data, Toyscapes) else 1
    folder = built_in_folder(signals)

    def draw() -> Path:
        return make(folder, train=TRAIN, val=VAL, size=SIZE, signals=signals)

    return find_or_draw(folder, f"{TRAIN + VAL} scenes", draw)


def find_or_draw(folder: Path, what: str, draw: Callable[[], Path]) -> Path:
    """The folder of a built-in set, drawn where it is missing."""
    if folder.is_dir():
        return folder
    notice(f"drawing the built-in data set, {what}, into {folder}")
    try:
        return draw()
    except InputError:
        # another process was quicker
        if folder.is_dir():
            return folder
        raise


def built_in_folder(signals: int = 1) -> Path:
    """Where the built-in set is, or will be drawn."""
    parameters = repr((VERSION, TRAIN, VAL, SIZE, *([signals] if signals > 1 else [])))
    return files.cache_folder() / f"toyscapes-{VERSION}-{hashlib.sha256(parameters.encode()).hexdigest()[:8]}"


def make(
    folder: Path,
    *,
    train: int = TRAIN,
    val: int = VAL,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
    shuffle_signals: bool = False,
    signals: int = 1,
) -> Path:
    """Draw the splits train and val, scenes of size (H, W), in Cityscapes layout into a new or empty folder.

    The classes take turns. shuffle_signals draws the colours of val's signals at random; nothing else changes.
    signals is 1 or 2 for each scene.
    """
    if train < 1 or val < 1:
        raise InputError("toyscapes", f"{train} training and {val} validation scenes", "draw at least one of each")
    if size[0] < SMALLEST[0] or size[1] < SMALLEST[1]:
        smallest = f"{SMALLEST[0]}x{SMALLEST[1]}"
        raise InputError("toyscapes", f"scenes of {size[0]}x{size[1]} are too small", f"draw at least {smallest}")

    def fill(root: Path) -> None:
        for stream, (split, count, shuffle) in enumerate((("train", train, False), ("val", val, shuffle_signals))):
            _write(root, split, count, (_draw_one if signals == 1 else _draw_two)(size, seed, stream, shuffle))

    return fill_new(folder, fill)


def fill_new(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write a data set into a new or empty folder, which appears when it is whole."""
    folder = folder.expanduser().resolve()
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            why = "is not empty" if folder.is_dir() else "is not a folder"
            raise InputError(f"folder {folder}", why, "name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".toyscapes-", dir=folder.parent))
        try:
            fill(temporary)
            temporary.chmod(0o755)
            # replaces an empty folder, and fails if another process has filled it meanwhile
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        fix = "choose a folder that you can write to; $CCNET_CACHE names that of the built-in set"
        raise InputError(f"folder {folder}", f"cannot be made ({error.strerror})", fix) from None
    return folder


def _draw_one(size: tuple[int, int], seed: int, stream: int, shuffle: bool) -> Draw:
    """The scenes of one signal, by their index."""
    names = list(CLASSES)

    def draw(index: int) -> tuple[images.Pixels, images.Pixels]:
        shown = names[np.random.default_rng((seed, stream, index, 1)).integers(len(names))] if shuffle else None
        return scene(np.random.default_rng((seed, stream, index)), size, names[index % len(names)], shown)[:2]

    return draw


def _draw_two(size: tuple[int, int], seed: int, stream: int, shuffle: bool) -> Draw:
    """The scenes of two signals, by their index."""
    pairs = list(permutations(CLASSES, 2))

    def draw(index: int) -> tuple[images.Pixels, images.Pixels]:
        shown = pairs[np.random.default_rng((seed, stream, index, 1)).integers(len(pairs))] if shuffle else None
        return scene_of_two(np.random.default_rng((seed, stream, index)), size, pairs[index % len(pairs)], shown)[:2]

    return draw


def _write(root: Path, split: str, count: int, draw: Draw) -> None:
    for index in range(count):
        image, labels = draw(index)
        name = f"{CITY}_{index:06d}_000000"
        images.write_image(root / "leftImg8bit" / split / CITY / f"{name}_leftImg8bit.png", image)
        images.write_label(root / "gtFine" / split / CITY / f"{name}_gtFine_labelIds.png", labels)


def scene(
    rng: np.random.Generator, size: tuple[int, int], truth: str | None = None, shown: str | None = None
) -> tuple[images.Pixels, images.Pixels, Facts]:
    """Draw a street of size (H, W): image uint8 (H, W, 3) BGR, Cityscapes label ids uint8 (H, W), and its facts.

    truth is the vehicles' class (None: a random one), shown the class whose colour the signal shows (None: the truth);
    neither changes anything else in the picture.
    """
    names = list(CLASSES)
    drawn = names[rng.integers(len(names))]
    truth = truth or drawn
    shown = shown or truth
    image, labels, lanes = street.draw_streets(rng, size)
    x, y, vehicles = _place_vehicles(rng, size[1], lanes)
    for vehicle in vehicles:
        street.draw_van(rng, image, labels, (vehicle.x, vehicle.y), CLASSES[truth])
    street.draw_signal(image, labels, x, y, *SIGNALS[shown])
    return street.expose(rng, image), labels, Facts(truth, shown, x, y, vehicles)


def _place_vehicles(rng: np.random.Generator, width: int, lanes: list[int]) -> tuple[int, int, tuple[Vehicle, ...]]:
    """Choose the signal's centre (x, y) and the vehicles, half of them on its row or column."""
    half = street.VEHICLE[0] // 2
    gap = REACH + half + street.SIGNAL_RADIUS
    pairs = max(PAIRS, len(lanes) * width // 1000)
    while True:
        signal_lane = int(rng.integers(len(lanes)))
        x = int(rng.integers(street.SIGNAL_RADIUS + 4, width - street.SIGNAL_RADIUS - 4))
        y = lanes[signal_lane] + int(rng.integers(-2, 3))
        others = [int(i) for i in rng.permutation([i for i in range(len(lanes)) if i != signal_lane])]
        on_column = min(len(others), pairs // 2)
        needed = [("column", lane) for lane in others[:on_column]] + [("row", signal_lane)] * (pairs - on_column)
        needed += [("off", others[i % len(others)]) for i in range(pairs)]
        placed: list[tuple[int, Vehicle]] = []
        for relation, lane in needed:
            low, high = (x - 4, x + 5) if relation == "column" else (0, width)
            for _ in range(20):
                centre = int(np.clip(rng.integers(low, high), half + 2, width - half - 2))
                too_close = abs(centre - x) < gap if relation != "column" else abs(centre - x) > half
                free = all(lane != other or abs(centre - v.x) > street.VEHICLE[0] + 8 for other, v in placed)
                if free and not too_close:
                    placed.append((lane, Vehicle(relation, centre, lanes[lane] + int(rng.integers(-2, 3)))))
                    break
        if len(placed) == len(needed):
            return x, y, tuple(vehicle for _, vehicle in placed)


def scene_of_two(
    rng: np.random.Generator,
    size: tuple[int, int],
    truths: tuple[str, str],
    shown: tuple[str, str] | None = None,
) -> tuple[images.Pixels, images.Pixels, FactsOfTwo]:
    """Draw a street of two signals as `scene` draws one of one: truths are the classes of their vehicles.

    The marks are two of street.MARKS, whatever the classes; each signal rules as many vehicles as the other.
    """
    image, labels, lanes = street.draw_streets(rng, size)
    places, vehicles = _place_two(rng, size[1], lanes)
    marks = [str(mark) for mark in rng.permutation(list(street.MARKS))[:2]]
    for truth, mark, own in zip(truths, marks, vehicles, strict=True):
        for vehicle in own:
            street.draw_van(rng, image, labels, (vehicle.x, vehicle.y), CLASSES[truth])
            street.draw_mark(image, vehicle.x, vehicle.y - 3, mark)
    one, two = (
        Signal(truth, colour, mark, *place)
        for truth, colour, mark, place in zip(truths, shown or truths, marks, places, strict=True)
    )
    for signal in (one, two):
        street.draw_board(image, labels, signal.x, signal.y, signal.mark)
        street.draw_signal(image, labels, signal.x, signal.y, *SIGNALS[signal.shown])
    return street.expose(rng, image), labels, FactsOfTwo((one, two), vehicles)


def _place_two(
    rng: np.random.Generator, width: int, lanes: list[int]
) -> tuple[list[tuple[int, int]], tuple[tuple[Vehicle, ...], tuple[Vehicle, ...]]]:
    """Choose the centres of two signals, and the vehicles of each, half of them on its row or column."""
    half, edge = street.VEHICLE[0] // 2, street.SIGNAL_RADIUS + 4
    gap = REACH + half + street.SIGNAL_RADIUS
    each = max(PAIRS, len(lanes) * width // 1000) // 2
    centres = np.arange(half + 2, width - half - 1)
    while True:
        signals = [(int(rng.integers(edge, width - edge)), int(rng.integers(len(lanes)))) for _ in range(2)]
        free = np.ones((len(lanes), len(centres)), bool)
        for x, lane in signals:
            free[lane] &= abs(centres - x) >= gap
        placed: tuple[list[Vehicle], list[Vehicle]] = ([], [])
        for index in [*range(2)] * each:
            x, own = signals[index]
            for relation in (("row", "column")[rng.integers(2)], "off"):
                allowed = free & ((np.arange(len(lanes)) == own) == (relation == "row"))[:, None]
                # the nearest that keeps inside the picture
                near = abs(centres - np.clip(x, centres[0], centres[-1])) <= 4
                allowed &= near if relation == "column" else abs(centres - x) >= gap
                if allowed.any():
                    lane, column = rng.permutation(np.argwhere(allowed))[0].tolist()
                    free[lane] &= abs(centres - centres[column]) > street.VEHICLE[0] + 8
                    y = lanes[lane] + int(rng.integers(-2, 3))
                    placed[index].append(Vehicle(relation, int(centres[column]), y))
        apart = signals[0][1] != signals[1][1] or abs(signals[0][0] - signals[1][0]) >= 2 * edge
        if apart and len(placed[0]) == len(placed[1]) == 2 * each:
            places = [(x, lanes[lane] + int(rng.integers(-2, 3))) for x, lane in signals]
            return places, (tuple(placed[0]), tuple(placed[1]))
