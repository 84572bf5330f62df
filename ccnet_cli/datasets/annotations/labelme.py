"""LabelMe: a JSON file beside each image, with shapes."""

import numpy as np

from ccnet_cli.datasets.annotations.shapes import Mask, Paint, Polygon, box, ellipse, read_ring
from ccnet_cli.datasets.annotations.tree import (
    Annotations,
    Number,
    Picture,
    Record,
    Tree,
    from_base64,
    require_classes,
    split_of,
)
from ccnet_cli.errors import InputError
from ccnet_cli.media.images import decode_bits

OUTLINES = ("polygon", "rotation", "oriented_rectangle")


class _Shape(Record):
    label: str
    points: list[tuple[Number, Number]]
    shape_type: str | None = "polygon"
    mask: str | None = None


class _File(Record):
    imagePath: str
    shapes: list[_Shape]
    imageHeight: int | None = None
    imageWidth: int | None = None
    imageData: str | None = None


def recognise(tree: Tree) -> bool:
    """Whether the first JSON file that can be read has shapes and an image."""
    first = next((value for name in tree.ending(".json") if (value := tree.peek(name)) is not None), None)
    return isinstance(first, dict) and {"shapes", "imagePath"} <= first.keys()


def read(tree: Tree) -> Annotations:
    """One picture for each file; lines and points are skipped."""
    pictures: list[Picture] = []
    skipped = 0
    for name in tree.ending(".json"):
        file, where = tree.load(name, _File), f"file {tree.top / name}"
        paints = [_paint(shape, f"{where}: shape {index}") for index, shape in enumerate(file.shapes)]
        skipped += paints.count(None)
        size = (file.imageHeight, file.imageWidth) if file.imageHeight and file.imageWidth else None
        try:
            image = tree.find_image(file.imagePath, name, where)
        except InputError as error:
            if file.imageData is None:
                raise
            fix = "save it there as a file, as labelme_export_json does"
            raise InputError(where, f"{error.why}; its pixels are in the file alone (imageData)", fix) from None
        pictures.append(Picture(image, [each for each in paints if each], split_of(name), size))
    classes = sorted({paint.name for picture in pictures for paint in picture.paints})
    return Annotations(require_classes(classes, f"folder {tree.top}"), pictures, skipped=skipped)


def _paint(shape: _Shape, where: str) -> Paint | None:
    points = np.array(shape.points, np.float64).reshape(-1, 2)
    # programs of LabelMe's kind write rectangles with four corners, and turned ones as rotation
    if shape.shape_type in (None, *OUTLINES) or (shape.shape_type == "rectangle" and len(points) == 4):
        return Polygon(shape.label, [read_ring(shape.points, where)], where)
    if shape.shape_type in ("rectangle", "circle", "mask") and len(points) != 2:
        raise InputError(where, f"a {shape.shape_type} of {len(points)} points", "two make one")
    if shape.shape_type == "rectangle":
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        return Polygon(shape.label, [box(left, top, right, bottom, where)], where)
    if shape.shape_type == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return Polygon(shape.label, [ellipse((points[0, 0], points[0, 1]), (radius, radius), where)], where)
    if shape.shape_type == "mask":
        bits = decode_bits(from_base64(shape.mask or "", where), where)
        left, top = (int(value) for value in points.min(0))
        return Mask(shape.label, lambda: bits, where, left, top, float(bits.sum()))
    return None
