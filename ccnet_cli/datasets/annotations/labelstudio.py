"""Label Studio: a JSON list of tasks; brush strokes in its own run-length code, outlines in percent of the picture."""

import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pydantic import Field, RootModel, model_validator

from ccnet_cli.datasets.annotations.shapes import Bits, Mask, Paint, Polygon, Ring, box, ellipse, read_ring, turn
from ccnet_cli.datasets.annotations.tree import Annotations, Number, Picture, Record, Tree, require_classes, split_of
from ccnet_cli.errors import InputError
from ccnet_cli.media import READ_SUFFIXES
from ccnet_cli.media.images import PIXEL_LIMIT

IMAGE = rf"(?i)(?:{'|'.join(map(re.escape, READ_SUFFIXES))})(?:[?#].*)?$"


class _Value(Record):
    rle: list[int] | None = None
    points: list[tuple[Number, Number]] | None = None
    # a corner and sides, or the middle and radii, turned about the first
    x: Number | None = None
    y: Number | None = None
    width: Number | None = None
    height: Number | None = None
    radiusX: Number | None = None
    radiusY: Number | None = None
    rotation: Number = 0.0
    brushlabels: list[str] = Field(default_factory=list)
    polygonlabels: list[str] = Field(default_factory=list)
    rectanglelabels: list[str] = Field(default_factory=list)
    ellipselabels: list[str] = Field(default_factory=list)
    labels: list[str] = Field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The classes of the shape, of whatever tag."""
        kinds = self.brushlabels, self.polygonlabels, self.rectanglelabels, self.ellipselabels, self.labels
        return [name for kind in kinds for name in kind]


class _Result(Record):
    # relations between others have none
    value: _Value = Field(default_factory=_Value)
    original_width: int | None = None
    original_height: int | None = None


class _Annotation(Record):
    result: list[_Result]
    was_cancelled: bool = False


class _Task(Record):
    data: dict[str, object]
    annotations: list[_Annotation] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, task: Any) -> Any:
        """JSON-MIN has the values of each tag in a list, and the image among the other keys."""
        if not isinstance(task, dict) or "data" in task:
            return task
        values = [value for key in task.values() if isinstance(key, list) for value in key if isinstance(value, dict)]
        sizes = ("original_width", "original_height")
        results = [{"value": value, **{key: value.get(key) for key in sizes}} for value in values]
        return {"data": task, "annotations": [{"result": results}]}


class _File(RootModel[list[_Task]]):
    pass


def recognise(tree: Tree) -> bool:
    """Whether a JSON file is a list of tasks."""
    return bool(_files(tree))


def _files(tree: Tree) -> list[str]:
    loaded = ((name, tree.peek(name)) for name in tree.ending(".json"))
    return [name for name, value in loaded if isinstance(value, list) and value and _is_task(value[0])]


def _is_task(value: object) -> bool:
    return isinstance(value, dict) and ({"data", "annotations"} <= value.keys() or "annotation_id" in value)


def read(tree: Tree) -> Annotations:
    """One picture for each task, of its first annotation that was not cancelled."""
    pictures: list[Picture] = []
    skipped = 0
    for name in _files(tree) or tree.ending(".json"):
        for index, task in enumerate(tree.load(name, _File).root):
            where = f"file {tree.top / name}: task {index}"
            chosen = next((each for each in task.annotations if not each.was_cancelled), None)
            results = [] if chosen is None else chosen.result
            paints = [_paint(each, where) for each in results]
            skipped += paints.count(None)
            sizes = {(each.original_height, each.original_width) for each in results if each.original_height}
            if len(sizes) > 1:
                raise InputError(where, "its results have several sizes", "export it again")
            height, width = next(iter(sizes), (None, None))
            size = (height, width) if height and width else None
            image = _find(tree, task, name, where)
            pictures.append(Picture(image, [each for each in paints if each], split_of(name), size))
    classes = sorted({paint.name for picture in pictures for paint in picture.paints})
    return Annotations(require_classes(classes, f"folder {tree.top}"), pictures, skipped=skipped)


def _find(tree: Tree, task: _Task, name: str, where: str) -> Path:
    texts = [value for value in task.data.values() if isinstance(value, str)]
    text = next((each for each in texts if re.search(IMAGE, each)), next(iter(texts), ""))
    url = urlsplit(text) if "\0" not in text else urlsplit("")
    path = unquote(parse_qs(url.query).get("d", [url.path])[0])
    base = posixpath.basename(path)
    # an upload gets a random name before its own
    plain = re.sub(r"^[0-9a-f]{8}-", "", base)
    try:
        return tree.find_image(path.lstrip("/"), name, where)
    except InputError:
        return tree.find_image(plain, name, where)


def _paint(result: _Result, where: str) -> Paint | None:
    value = result.value
    ring = _outline(value, where)
    if not value.names or (value.rle is None and ring is None):
        return None
    width, height = result.original_width or 0, result.original_height or 0
    if not 0 < width * height <= PIXEL_LIMIT or width < 1:
        raise InputError(where, f"a result of {width} x {height} pixels", "export it again")
    if ring is None:
        return Mask(value.names[0], partial(decode_brush, value.rle or [], height, width, where), where)
    ring = ring * (width / 100, height / 100)
    start = (value.x or 0.0) * width / 100, (value.y or 0.0) * height / 100
    return Polygon(value.names[0], [turn(ring, value.rotation, start)], where)


def _outline(value: _Value, where: str) -> Ring | None:
    """The outline of a polygon, a rectangle or an ellipse before it is turned, in percent."""
    if value.points is not None:
        return read_ring(value.points, where)
    if value.x is None or value.y is None:
        return None
    if value.width is not None and value.height is not None:
        return box(value.x, value.y, value.x + value.width, value.y + value.height, where)
    if value.radiusX is not None and value.radiusY is not None:
        return ellipse((value.x, value.y), (value.radiusX, value.radiusY), where)
    return None


def decode_brush(code: list[int], height: int, width: int, where: str) -> Bits:
    """The opaque pixels of a brush: bytes that hold RGBA values as runs and literals of bits.

    32 bits say how many values there are, 5 how many bits each has (less one), and four times 4 bits how long (less
    one) the length of a block may be written. A block is a bit, run or literal, two bits that choose how its length
    (less one) is written, the length, and one value or that number of them.
    """
    bits = _Bits(code, where)
    count, size = bits.take(32), bits.take(5) + 1
    sizes = [bits.take(4) + 1 for _ in range(4)]
    if count != 4 * height * width or size != 8:
        raise InputError(where, f"its brush has {count} values for {width} x {height} pixels", "export it again")
    values = np.zeros(count, np.uint8)
    start = 0
    while start < count:
        is_run = bits.take(1)
        end = start + 1 + bits.take(sizes[bits.take(2)])
        values[start:end] = bits.take(size) if is_run else bits.take_bytes(min(end, count) - start)
        start = end
    return values.reshape(height, width, 4)[..., 3] > 0


class _Bits:
    """Numbers of any width, out of a list of bytes."""

    def __init__(self, code: list[int], where: str) -> None:
        if any(not 0 <= byte <= 255 for byte in code):
            raise InputError(where, "its brush is no list of bytes", "export it again")
        self.code = bytes(code)
        self.where = where
        self.start = 0

    def take(self, count: int) -> int:
        """The next bits as a number."""
        start, self.start = self.start, self.start + count
        if self.start > 8 * len(self.code):
            raise InputError(self.where, "its brush ends early", "export it again")
        return int.from_bytes(self.code[start >> 3 : (self.start + 7) >> 3]) >> (-self.start & 7) & ((1 << count) - 1)

    def take_bytes(self, count: int) -> "np.ndarray":
        """The next numbers of eight bits."""
        return np.frombuffer(self.take(8 * count).to_bytes(count), np.uint8)
