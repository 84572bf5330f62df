"""Parts: what the tables at the rooms' doors hold, and the types of the keys that a preset sets.

A table (HEADS, BACKBONES, LOSSES, DATASETS) maps a name to a Part. This module loads neither torch nor another room, so
that presets are checked in no time.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ccnet_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# files to import before a command, separated as PATH is; worker processes inherit it
EXTEND = "CCNET_EXTEND"
# of a crop or a tile: 400 MB as the network's input
MAX_PIXELS = 1 << 25


def _two(value: object, meaning: str) -> object:
    """Read "512,1024" as the two integers that it names; leave anything else of two parts to the validator."""
    if isinstance(value, str):
        parts = value.split(",")
        if len(parts) == 2 and all(re.fullmatch(r"\s*\d{1,6}\s*", part) for part in parts):
            return [int(part) for part in parts]
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"two positive integers expected, {meaning}")
    return value


def _pair(value: object) -> object:
    return _two(value, "height and width, such as 512,1024")


def _sides(value: object) -> object:
    return _two(value, "the longer side and the shorter, such as 2048,512")


def _longer_first(sides: tuple[int, int]) -> tuple[int, int]:
    if sides[0] < sides[1]:
        raise ValueError("the longer side comes first, whatever the picture's orientation")
    return sides


def _fits_memory(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"at most {MAX_PIXELS} pixels")
    return size


# strict: YAML has its own types, so a quoted number or a true in place of 1 is a mistake worth an error
Int = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
Channels = Annotated[int, Field(strict=True, ge=1, le=16384)]
Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
Flag = Annotated[bool, Field(strict=True)]
# a number that float32 holds, as gradients are; products of larger ones are infinite
Float = Annotated[float, Field(strict=True, ge=0, le=1e30, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, ge=1e-30, le=1e30, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Side = Annotated[int, Field(strict=True, ge=1, le=16384)]
Pair = Annotated[tuple[Side, Side], BeforeValidator(_pair), AfterValidator(_fits_memory)]
Fit = Annotated[tuple[Side, Side], BeforeValidator(_sides), AfterValidator(_longer_first)]
Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
Scale = Annotated[float, Field(strict=True, ge=0.01, le=8, allow_inf_nan=False)]


class Section(BaseModel):
    """A group of preset keys: unknown keys are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Term(Section):
    """Keys that every term of the loss has: its kind, its weight, and the network's output that it looks at."""

    kind: Text
    weight: Float = 1.0
    output: Text = "main"


@dataclass(frozen=True)
class Part:
    """What a table holds under a name: the class of its settings, and the function that builds it from them.

    first(settings), where a head has it, builds what is drawn at random before the auxiliary head; build gets it last.
    """

    settings: type[Section]
    build: Callable[..., Any]
    first: Callable[..., Any] | None = None


@dataclass(frozen=True)
class LatePart:
    """A part whose module, with `Settings` and `build`, is imported when it is first needed: it may load torch."""

    module: str

    @property
    def settings(self) -> type[Section]:
        """The module's `Settings`."""
        settings: type[Section] = import_module(self.module).Settings
        return settings

    @property
    def build(self) -> Callable[..., Any]:
        """The module's `build`."""
        build: Callable[..., Any] = import_module(self.module).build
        return build

    @property
    def first(self) -> Callable[..., Any] | None:
        """The module's `first`, where it has one."""
        return getattr(import_module(self.module), "first", None)


class UnknownPart(InputError):
    """A preset names a part that no table holds; `kind` is its name, `key` the preset's key."""

    def __init__(self, key: str, kind: object, known: Iterable[str]) -> None:
        why = f"must be one of {', '.join(known)}, found {kind}"
        fix = "correct it, or give the file that defines it with --extend FILE"
        super().__init__(f"preset key {key}", why, fix)
        self.args = (key, kind, tuple(known))
        self.key = key
        self.kind = kind


class PartError(ValueError):
    """What is wrong with the settings of a part, for the section that holds it."""

    def __init__(self, errors: list[Any]) -> None:
        super().__init__("its settings are wrong")
        self.errors = errors


Table = Mapping[str, Part | LatePart]


def part_of(table: Table, key: str, kind: object) -> Part | LatePart:
    """The part of that name; UnknownPart, which tells the key, where there is none."""
    if not isinstance(kind, str) or kind not in table:
        raise UnknownPart(key, kind, table)
    return table[kind]


def chooser(
    table: Table, key: str, optional: bool = False, default: str | None = None
) -> Callable[[object], Section | None]:
    """A validator of a mapping with a `kind`, or of the kind's name alone, by the settings of the table's part.

    optional lets null pass; default is the kind of a mapping that names none.
    """

    def choose(value: object) -> Section | None:
        if isinstance(value, Section) or (optional and value is None):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict):
            raise ValueError("a group of keys with a kind expected")
        if default is not None:
            value = {"kind": default, **value}
        if "kind" not in value:
            raise PartError([{"type": "missing", "loc": ("kind",), "msg": "missing", "input": value}])
        part = part_of(table, f"{key}.kind", value["kind"])
        try:
            return part.settings.model_validate(value)
        except ValidationError as error:
            raise PartError(list(error.errors(include_url=False))) from None

    return choose


class Outputs(NamedTuple):
    """What a network answers in training: class scores (B, K, h, w), further ones by name, and the last features."""

    main: "Tensor"
    auxiliary: "Mapping[str, Tensor]"
    features: "Tensor"

    def by_name(self, name: str) -> "Tensor":
        """The output `main` or an auxiliary one; KeyError for a name that the network does not have."""
        return self.main if name == "main" else self.auxiliary[name]


def late(module: str, name: str = "build") -> Callable[..., Any]:
    """A function that imports `module` when it is first called, and calls its `name`."""

    def build(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **options)

    return build


def extend(files: Iterable[str | Path]) -> None:
    """Import Python files that add parts to the tables, each once; InputError where one cannot be imported."""
    for file in files:
        path = Path(file).expanduser().resolve()
        name = f"ccnet_extension_{path.stem}"
        if name in sys.modules and sys.modules[name].__file__ == str(path):
            continue
        spec = util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise InputError(f"option --extend {file}", "not a Python file", "give the path of a .py file")
        module = util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            why = f"cannot be imported ({type(error).__name__}: {error})"
            raise InputError(f"option --extend {file}", why, "correct the file") from error


def extend_from_environment() -> None:
    """Import the files that $CCNET_EXTEND names."""
    extend(file for file in os.environ.get(EXTEND, "").split(os.pathsep) if file)
