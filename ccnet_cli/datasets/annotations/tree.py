"""A folder of annotations: its files, the images that they name, and what is read of them."""

import base64
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar
from unicodedata import normalize

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ccnet_cli.datasets.annotations.shapes import Paint
from ccnet_cli.datasets.listing import scan
from ccnet_cli.errors import InputError
from ccnet_cli.media import READ_SUFFIXES
from ccnet_cli.media.formats import name_other
from ccnet_cli.media.images import Pixels, read_bytes

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# classes whose pixels do not count, and the class of all that nobody outlined
VOID = {"void", "ignore", "ignored", "unlabeled", "unlabelled", "__ignore__"}
BACKGROUND = {"background", "_background_", "__background__"}

BOM = b"\xef\xbb\xbf"
Number = Annotated[float, Field(allow_inf_nan=False)]
Colour = tuple[int, int, int]


class Record(BaseModel):
    """A record of somebody's file: what is not named here is left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class Picture:
    """An image, the split that it belongs to, if any, and what paints its label; size is what the file says."""

    image: Path
    paints: Sequence[Paint]
    split: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Annotations:
    """What a folder says: its classes, their colours where it has some, and its pictures.

    maps reads each picture's whole label (H, W), of indices of classes and 255 for ignored, where masks say it all.
    skipped counts what outlines nothing, such as points; others images of which nothing is said.
    """

    classes: Sequence[str]
    pictures: Sequence[Picture]
    colours: dict[str, Colour] = field(default_factory=dict)
    maps: Sequence[Callable[[], Pixels]] = ()
    skipped: int = 0
    others: int = 0


class Tree:
    """The files below a folder; labels, the meaning of values or colours, is for files that do not say it."""

    def __init__(self, top: Path, labels: dict[str, str | None] | None = None) -> None:
        if not top.is_dir():
            why, fix = "is not a folder" if top.exists() else "does not exist", "give the folder of the export"
            raise InputError(f"folder {top}", why, f"unpack it, and {fix}" if top.is_file() else fix)
        self.top = top
        self.labels = labels
        self.files = scan(top, ("",))
        self.images = [name for name in self.files if name.lower().endswith(READ_SUFFIXES)]
        # systems write accented letters as one character or as two
        self._known = {normalize("NFC", name): name for name in self.images}
        self._names: dict[str, list[str]] = {}
        for name in self._known:
            self._names.setdefault(posixpath.basename(name).casefold(), []).append(name)

    def ending(self, *suffixes: str) -> list[str]:
        """The files that end so, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def find_image(self, name: str, beside: str, where: str) -> Path:
        """The image that a file names: by its path, from the folder of the file or the top, or by its name alone.

        Only images below the folder are found, whatever the path leads to.
        """
        plain = normalize("NFC", name.replace("\\", "/"))
        for path in (posixpath.join(normalize("NFC", posixpath.dirname(beside)), plain), plain):
            if (path := posixpath.normpath(path)) in self._known:
                return self.top / self._known[path]
        base = posixpath.basename(plain)
        named = self._names.get(base.casefold(), [])
        # of its very name, in a folder of the export's own
        named = [path for path in named if posixpath.basename(path) == base] or named
        named = [path for path in named if path.endswith(f"/{plain}")] or named
        if len(named) == 1:
            return self.top / self._known[named[0]]
        others = map(posixpath.basename, set(self.files).difference(self.images))
        if not named and base.casefold() in map(str.casefold, others):
            why = f"image {name[:200]} is of a kind that is not read ({posixpath.splitext(base)[1]})"
            raise InputError(where, why, "save it as JPEG or PNG")
        why = f"names {len(named)} images below {self.top}" if named else f"is no image below {self.top}"
        fix = "name it with its folder" if named else "put it there, under the name that the file has for it"
        raise InputError(where, f"image {name[:200]} {why}", fix)

    def hide(self, image: Path) -> None:
        """Find an image no longer: it is a label."""
        name = normalize("NFC", image.relative_to(self.top).as_posix())
        if self._known.pop(name, None):
            self._names[posixpath.basename(name).casefold()].remove(name)

    def load(self, name: str, kind: type[R]) -> R:
        """A JSON file as records; InputError names the first key that is missing or of another type."""
        path = self.top / name
        content = read_bytes(path, "file").removeprefix(BOM)
        refuse_other(content, f"file {path}")
        try:
            return kind.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            message = first["msg"][:1].lower() + first["msg"][1:200]
            why = f"{where}: {message}" if where else message
            raise InputError(f"file {path}", why, "export it again") from None

    def peek(self, name: str) -> Any:
        """What a JSON file holds; None where it is none."""
        try:
            return json.loads(read_bytes(self.top / name, "file"))
        except (InputError, ValueError, RecursionError):
            return None


def refuse_other(content: bytes, where: str) -> None:
    """InputError for the content of a file that is met in the place of a text, such as a web page."""
    if other := name_other(content):
        raise InputError(where, f"is {other}, where annotations are expected", "export or download it again")


def split_of(*names: str) -> str | None:
    """The split that a folder of a path, or the name of a file, belongs to."""
    for name in names:
        for part in re.split(r"[/_.\- ]|(?=annot)|2017", name.lower()):
            if part in SPLITS:
                return SPLITS[part]
    return None


def parse_colour(text: object) -> Colour | None:
    """The RGB colour of #RRGGBB; None for anything else."""
    if not isinstance(text, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return None
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def from_base64(text: str, where: str) -> bytes:
    """The bytes that a text in base64 stands for."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise InputError(where, "its pixels are no base64 text", "export it again") from None


def require_classes(names: Sequence[str], where: object) -> list[str]:
    """The names of classes, each once; InputError for none or too many."""
    unique = list(dict.fromkeys(names))
    if not unique:
        raise InputError(where, "nothing in it has a class", "outline something in the program, and export it again")
    if len(unique) > 254:
        raise InputError(where, f"names {len(unique)} classes", "1 to 254 are possible")
    bad = [name for name in unique if not name.strip() or not name.isprintable() or len(name) > 200]
    if bad:
        raise InputError(where, f"class {bad[0]!r:.60} has no printable name", "rename it")
    return unique


def pairs(values: Sequence[float]) -> Iterator[tuple[float, float]]:
    """x0, y0, x1, y1, ... in twos."""
    return zip(values[::2], values[1::2], strict=True)
