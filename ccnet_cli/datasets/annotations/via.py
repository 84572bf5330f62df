"""VGG Image Annotator: a JSON file of images by name and size, or a project that holds one, with shapes as regions."""

import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, RootModel

from ccnet_cli.datasets.annotations.shapes import Paint, Polygon, box, ellipse, read_ring, turn
from ccnet_cli.datasets.annotations.tree import (
    Annotations,
    Number,
    Picture,
    Record,
    Tree,
    require_classes,
    split_of,
)
from ccnet_cli.errors import InputError

# the key of the images in the file of a project
PROJECT = "_via_img_metadata"
# attributes of regions that say what a region is, the better names first
CLASS_KEYS = ("class", "label", "category", "type", "name", "object", "object_name")
# of regions without attributes
ONLY_CLASS = "object"


class _Shape(Record):
    name: str
    all_points_x: list[Number] = Field(default_factory=list)
    all_points_y: list[Number] = Field(default_factory=list)
    x: Number = 0
    y: Number = 0
    width: Number = 0
    height: Number = 0
    cx: Number = 0
    cy: Number = 0
    r: Number = 0
    rx: Number = 0
    ry: Number = 0
    theta: Number = 0


class _Region(Record):
    shape_attributes: _Shape
    region_attributes: dict[str, Any] = Field(default_factory=dict)


class _Image(Record):
    filename: str
    regions: list[_Region] | dict[str, _Region]

    @property
    def shapes(self) -> list[_Region]:
        """The regions; version 1 numbers them."""
        return list(self.regions.values()) if isinstance(self.regions, dict) else self.regions


class _Images(RootModel[dict[str, _Image]]):
    pass


class _Project(Record):
    images: dict[str, _Image] = Field(alias=PROJECT)


def recognise(tree: Tree) -> bool:
    """Whether a JSON file is a project of VIA or its images."""
    return bool(_files(tree))


def _files(tree: Tree) -> dict[str, bool]:
    """Whether each file is a project's; the images of a project may lie beside it as a file of their own."""
    loaded = {name: tree.peek(name) for name in tree.ending(".json")}
    own = {name: value for name, value in loaded.items() if isinstance(value, dict) and value}
    images = {name: False for name, value in own.items() if all(map(_is_image, value.values()))}
    return images or {name: True for name, value in own.items() if PROJECT in value}


def _is_image(value: object) -> bool:
    return isinstance(value, dict) and {"filename", "regions"} <= value.keys()


def read(tree: Tree) -> Annotations:
    """Every file's images; lines and points are skipped."""
    images: list[tuple[str, _Image]] = []
    for name, is_project in (_files(tree) or dict.fromkeys(tree.ending(".json"), False)).items():
        loaded = tree.load(name, _Project).images if is_project else tree.load(name, _Images).root
        images += [(name, image) for image in loaded.values()]
    key = _find_class_key([region.region_attributes for _, image in images for region in image.shapes], tree)
    pictures: list[Picture] = []
    skipped = 0
    for name, image in images:
        where = f"file {tree.top / name}: image {image.filename[:100]}"
        paints = [_paint(region, key, f"{where}: region {index}") for index, region in enumerate(image.shapes)]
        skipped += paints.count(None)
        path = tree.find_image(image.filename, name, where)
        pictures.append(Picture(path, [each for each in paints if each], split_of(posixpath.dirname(name))))
    classes = sorted({paint.name for picture in pictures for paint in picture.paints})
    return Annotations(require_classes(classes, f"folder {tree.top}"), pictures, skipped=skipped)


def _find_class_key(attributes: list[dict[str, Any]], tree: Tree) -> str | None:
    """The attribute that holds the classes: the only one with values, or one that is called so; None without any."""
    keys = Counter(key for each in attributes for key, value in each.items() if _name_of(value))
    if len(keys) < 2:
        return next(iter(keys), None)
    if named := [key for known in CLASS_KEYS for key in keys if key.lower() == known]:
        return named[0]
    listed = ", ".join(list(keys)[:8])
    why = f"its regions have several attributes ({listed}), and none is called {' or '.join(CLASS_KEYS[:2])}"
    raise InputError(f"folder {tree.top}", why, "rename the attribute of the classes to class, and export it again")


def _name_of(value: object) -> str:
    """The class that an attribute says: its text, or the boxes that are ticked."""
    if isinstance(value, Mapping):
        return " ".join(str(key) for key, ticked in value.items() if ticked)
    return value.strip() if isinstance(value, str) else ""


def _paint(region: _Region, key: str | None, where: str) -> Paint | None:
    shape, name = region.shape_attributes, _name_of(region.region_attributes.get(key)) if key else ONLY_CLASS
    if shape.name not in ("polygon", "rect", "circle", "ellipse"):
        return None
    if not name:
        raise InputError(where, f"has no {key}", f"say its {key} in VIA, and export it again")
    if shape.name == "polygon":
        if len(shape.all_points_x) != len(shape.all_points_y):
            raise InputError(where, "has another number of x than of y", "export it again")
        return Polygon(name, [read_ring([*zip(shape.all_points_x, shape.all_points_y, strict=True)], where)], where)
    if shape.name == "rect":
        ring = box(shape.x, shape.y, shape.x + shape.width, shape.y + shape.height, where)
        return Polygon(name, [ring], where)
    radii = (shape.r, shape.r) if shape.name == "circle" else (shape.rx, shape.ry)
    ring = ellipse((shape.cx, shape.cy), radii, where)
    return Polygon(name, [turn(ring, float(np.rad2deg(shape.theta)))], where)
