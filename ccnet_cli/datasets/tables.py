"""data.labels: what the values or the colours of label files mean, for masks that people have."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ccnet_cli.errors import InputError

if TYPE_CHECKING:
    import numpy as np

# the key of what no other key names
REST = "rest"
MAX_VALUE = 65535
COLOUR = re.compile(r"#([0-9a-fA-F]{6})")
TRIPLE = re.compile(r"(\d{1,3}) *, *(\d{1,3}) *, *(\d{1,3})")
VALUES = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
MAX_LISTED = 8
KEY = "data.labels"
# a label map has hardly more values than this, a photograph hardly fewer
MAX_VALUES = 64
# as a JPEG too, this part of its pixels has its commonest colours
MIN_FLAT = 0.5


@dataclass(frozen=True)
class Table:
    """Class names, None for ignored, by file value or by colour 0xRRGGBB; rest is (name,) or () if it is refused."""

    values: Mapping[int, str | None]
    colours: Mapping[int, str | None]
    rest: tuple[str | None, ...]

    @property
    def names(self) -> list[str]:
        """The classes, in the order of the table."""
        named = [*self.values.values(), *self.colours.values(), *self.rest]
        return list(dict.fromkeys(name for name in named if name is not None))

    def colours_of(self, names: Sequence[str]) -> list[tuple[int, int, int]] | None:
        """The RGB colour of each class, the first that the table names; None unless all have one, and all differ."""
        first = {name: colour for colour, name in reversed([*self.colours.items()])}
        colours = [first.get(name) for name in names]
        if None in colours or len(set(colours)) < len(colours):
            return None
        return [(colour >> 16, colour >> 8 & 255, colour & 255) for colour in colours if colour is not None]


def parse_table(labels: Mapping[str, str | None]) -> Table:
    """The table of the key data.labels; ValueError for one that says nothing, or two things."""
    values: dict[int, str | None] = {}
    colours: dict[int, str | None] = {}
    rest: tuple[str | None, ...] = ()
    for key, name in labels.items():
        if key == REST:
            rest = (name,)
            continue
        into, entries = (colours, [_colour(key)]) if "#" in key or "," in key else (values, _values(key))
        for entry in entries:
            if into.setdefault(entry, name) != name:
                raise ValueError(f"{key} belongs to two classes, {into[entry]} and {name}")
    if values and colours:
        raise ValueError("values and colours are mixed: name the one or the other")
    if not values and not colours:
        raise ValueError("names no value and no colour, such as {0: background, 255: car} or {'#804080': road}")
    return Table(values, colours, rest)


def _colour(key: str) -> int:
    if match := COLOUR.fullmatch(key):
        return int(match[1], 16)
    match = TRIPLE.fullmatch(key)
    if match is None or max(map(int, match.groups())) > 255:
        raise ValueError(f"{key[:40]} is no colour: write '#RRGGBB' or 'R,G,B'")
    red, green, blue = map(int, match.groups())
    return red << 16 | green << 8 | blue


def _values(key: str) -> range:
    match = VALUES.fullmatch(key)
    if match is None or not int(match[1]) <= int(match[2] or match[1]) <= MAX_VALUE:
        raise ValueError(f"{key[:40]} is no value, range or colour: write 7, 1000-1999, '#RRGGBB', or {REST}")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def value_reader(key: str = KEY) -> "Callable[[Path], np.ndarray]":
    """A reader of label files whose values a table names: one channel, or three that are the same.

    key is where colours can be named instead.
    """
    from ccnet_cli.media import images

    def read(path: Path) -> "np.ndarray":
        if images.is_one_channel(path):
            return images.read_label(path)
        pixels = images.read_colours(path)
        if (pixels != pixels[..., :1]).any():
            listed = ", ".join(map(_hex, list(_distinct(pixels))[:MAX_LISTED]))
            fix = f"name its colours in {key}, such as {{'#804080': road}}"
            raise InputError(f"label {path}", f"has colours ({listed}) where values are expected", fix)
        return pixels[..., 0]

    return read


def colour_reader(
    table: Table, names: Sequence[str], ignored: int, source: str = KEY, key: str = KEY
) -> "Callable[[Path], np.ndarray]":
    """A reader of label files whose colours the table names, as train ids (H, W) uint8.

    source is what the table was read of, key where it can be corrected.
    """
    import numpy as np

    from ccnet_cli.media import images

    known = np.array(sorted(table.colours), np.int64)
    ids = [ignored if (name := table.colours[int(colour)]) is None else names.index(name) for colour in known]
    rest = [ignored if name is None else names.index(name) for name in table.rest]
    train_ids = np.array([*ids, *(rest or [ignored])], np.uint8)

    def read(path: Path) -> "np.ndarray":
        packed = pack(images.read_colours(path))
        index = np.searchsorted(known, packed).clip(max=len(known) - 1)
        listed = known[index] == packed
        if not rest and not listed.all():
            raise _describe_colours(path, np.unique(packed[~listed]).tolist(), source, key)
        return train_ids[np.where(listed, index, len(known))]

    return read


def _describe_colours(path: Path, colours: list[int], source: str, key: str) -> InputError:
    listed = ", ".join(map(_hex, colours[:MAX_LISTED])) + (", ..." if len(colours) > MAX_LISTED else "")
    if len(colours) > 4 * MAX_LISTED:
        fix = f"give masks without smoothed edges or JPEG compression, or ignore them: {REST}: null in {key}"
        return InputError(f"label {path}", f"{len(colours)} colours are not in {source} ({listed})", fix)
    there = "" if source == key else "correct it there, or "
    fix = f"{there}add them to {key}, or ignore what is not named with {REST}: null"
    return InputError(f"label {path}", f"colour {listed} is not in {source}", fix)


def pack(pixels_bgr: "np.ndarray") -> "np.ndarray":
    """Colours 0xRRGGBB (H, W) of a picture (H, W, 3)."""
    import numpy as np

    return np.asarray(pixels_bgr.astype(np.int64) @ (1, 1 << 8, 1 << 16))


def refuse_swapped(image: Path, label: Path, fix: str) -> None:
    """InputError where a label that cannot be read looks like a picture, and its image like a label map."""
    import numpy as np

    from ccnet_cli.media import images

    try:
        if images.is_one_channel(image):
            swapped = len(np.unique(images.read_label(image))) <= MAX_VALUES
        else:
            swapped = len(np.unique(pack(images.read_colours(image)))) <= MAX_VALUES
            # images may be drawn too
            counts = np.sort(np.unique(pack(images.read_image(label)), return_counts=True)[1])
            swapped = swapped and counts[-MAX_VALUES:].sum() < MIN_FLAT * counts.sum()
    except InputError:
        return
    if swapped:
        why = f"looks like a picture, and its image {image} like a label map: the two are swapped"
        raise InputError(f"label {label}", why, fix)


def _distinct(pixels: "np.ndarray") -> Iterator[int]:
    import numpy as np

    for blue, green, red in np.unique(pixels.reshape(-1, 3), axis=0).tolist():
        yield red << 16 | green << 8 | blue


def _hex(colour: int) -> str:
    return f"#{colour:06x}"
