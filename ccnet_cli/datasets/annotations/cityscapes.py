"""Cityscapes' outlines: a file NAME_gtFine_polygons.json for each image NAME_leftImg8bit, later objects in front."""

import posixpath
import re

from pydantic import Field

from ccnet_cli.datasets.annotations.shapes import Polygon, read_ring
from ccnet_cli.datasets.annotations.tree import Annotations, Number, Picture, Record, Tree, require_classes, split_of

FILE = re.compile(r"(.+?)(?:_gt\w+?)?_polygons\.json", re.IGNORECASE)


class _Object(Record):
    label: str
    polygon: list[tuple[Number, Number]]
    deleted: int = 0


class _File(Record):
    height: int = Field(alias="imgHeight")
    width: int = Field(alias="imgWidth")
    objects: list[_Object]


def recognise(tree: Tree) -> bool:
    """Whether there is a file of such a name."""
    return bool(_files(tree))


def _files(tree: Tree) -> dict[str, str]:
    """The name of the image of each file."""
    matches = {name: FILE.fullmatch(posixpath.basename(name)) for name in tree.ending(".json")}
    return {name: match[1] for name, match in matches.items() if match}


def read(tree: Tree) -> Annotations:
    """One picture for each file."""
    images = {posixpath.splitext(posixpath.basename(path))[0]: posixpath.basename(path) for path in tree.images}
    pictures: list[Picture] = []
    for name, stem in _files(tree).items():
        file, where = tree.load(name, _File), f"file {tree.top / name}"
        image = images.get(f"{stem}_leftImg8bit") or images.get(stem) or f"{stem}_leftImg8bit.png"
        paints = [
            Polygon(each.label, [read_ring(each.polygon, f"{where}: object {index}")], where, index)
            for index, each in enumerate(file.objects)
            if not each.deleted
        ]
        path = tree.find_image(image, name, where)
        pictures.append(Picture(path, paints, split_of(name), (file.height, file.width)))
    classes = sorted({paint.name for picture in pictures for paint in picture.paints})
    return Annotations(require_classes(classes, f"folder {tree.top}"), pictures)
