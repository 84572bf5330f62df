"""What a layout is, and what it makes of a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccnet_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# (theirs, ours): of the first prefix that a name has, theirs is exchanged for ours
Table = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Foreign:
    """A recognised file: weights under our names, and the keys of the preset's section model that it fixes.

    model holds whole groups, such as {"backbone": {"kind": "resnet50", ...}}; a group of a preset's own kind is merged
    with the preset's. table is how names were exchanged, for messages. classes is their number, None for a backbone
    alone; names and palette are those that the file holds. done says what was converted. presets names the preset whose
    data and evaluation fit, for a data set.
    """

    what: str
    model: dict[str, Any]
    weights: "dict[str, Tensor]"
    table: Table = ()
    classes: int | None = None
    names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    done: tuple[str, ...] = ()
    presets: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "; ".join([self.what, *self.done])

    def original_name(self, key: str) -> str:
        """A weight's name in the file, by our name."""
        return original_name(key, self.table)


@dataclass(frozen=True)
class Layout:
    """How files of one layout are recognised and written.

    counts is whether its files hold how many batches a norm has seen in training, as torch's norms do. parts are the
    names of several files for one network, and of their state dicts in what export returns.
    """

    recognise: "Callable[[dict[str, Tensor], dict[str, Any]], Foreign | None]"
    export: "Callable[[dict[str, Tensor], Any], dict[str, Any]] | None" = None
    counts: bool = True
    parts: tuple[str, ...] = ()

    def files(self, output: Path) -> list[Path]:
        """The files that an output names: itself, or with parts one for each, between commas."""
        paths = [Path(word) for word in str(output).split(",")] if self.parts else [output]
        if len(paths) != len(self.parts or paths):
            fix = f"give {','.join(f'{part.upper()}.pth' for part in self.parts)}"
            raise InputError(output, f"names one file, and {' and '.join(self.parts)} are two", fix)
        return paths


class Misfit(Exception):
    """A file of a layout is damaged, or a network cannot be written in it: why, and what to do if that is known."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why, fix)
        self.why = why
        self.fix = fix


def rename(state: "Mapping[str, Tensor]", table: Table) -> "dict[str, Tensor]":
    """A file's weights under our names."""
    return {_exchange(key, table): tensor for key, tensor in state.items()}


def original_name(key: str, table: Table) -> str:
    """A weight's name in a file, by our name."""
    return _exchange(key, tuple((ours, theirs) for theirs, ours in table))


def _exchange(key: str, table: Table) -> str:
    return next((new + key.removeprefix(old) for old, new in table if key.startswith(old)), key)
