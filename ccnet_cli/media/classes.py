"""The classes of a segmentation: their names, colours and label ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Classes:
    """Names, RGB colours and the values written as label ids, in the order of the train ids.

    mirrored holds the pairs of classes that swap places in a mirrored picture, such as left and right arm.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_ids: tuple[int, ...]
    mirrored: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) == len(self.palette) == len(self.label_ids) < 256:
            raise ValueError("1 to 255 classes, each with a name, a colour and a label id")
        bytes_needed = [*self.label_ids, *(value for colour in self.palette for value in colour)]
        if not all(isinstance(value, int) and 0 <= value <= 255 for value in bytes_needed):
            raise ValueError("colours and label ids lie in 0 to 255")
        paired = [index for pair in self.mirrored for index in pair]
        if len(set(paired)) < len(paired) or not set(paired) <= set(range(len(self.names))):
            raise ValueError("mirrored pairs each class once at most")

    def __len__(self) -> int:
        return len(self.names)

    def to_mapping(self) -> dict[str, Any]:
        """Plain lists under names, palette, label_ids and, if there are any, mirrored, for checkpoints."""
        mirrored = {"mirrored": [list(pair) for pair in self.mirrored]} if self.mirrored else {}
        return {
            "names": list(self.names),
            "palette": [list(colour) for colour in self.palette],
            "label_ids": list(self.label_ids),
            **mirrored,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Classes":
        """The classes that to_mapping wrote; KeyError, TypeError or ValueError for another mapping."""
        colours = [(int(red), int(green), int(blue)) for red, green, blue in mapping["palette"]]
        names = tuple(str(name) for name in mapping["names"])
        mirrored = tuple((int(one), int(other)) for one, other in mapping.get("mirrored", ()))
        return cls(names, tuple(colours), tuple(int(value) for value in mapping["label_ids"]), mirrored)


def parse_colours(table: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """The names and RGB colours of a table "NAME RRGGBB, NAME RRGGBB, ..."."""
    entries = [entry.strip().rpartition(" ") for entry in table.split(",")]
    colours = [bytes.fromhex(colour) for _, _, colour in entries]
    return tuple(name for name, _, _ in entries), tuple((red, green, blue) for red, green, blue in colours)
