"""Supervisely: meta.json, and for each image DATASET/img/NAME a file DATASET/ann/NAME.json of bitmaps and polygons."""

import posixpath
import zlib

from pydantic import Field

from ccnet_cli.datasets.annotations.shapes import Bits, Mask, Paint, Polygon, box, read_ring
from ccnet_cli.datasets.annotations.tree import (
    Annotations,
    Number,
    Picture,
    Record,
    Tree,
    from_base64,
    parse_colour,
    require_classes,
    split_of,
)
from ccnet_cli.errors import InputError
from ccnet_cli.media.images import decode_bits

# of an unpacked bitmap
MAX_BYTES = 1 << 27


class _Class(Record):
    title: str
    color: str = ""


class _Meta(Record):
    classes: list[_Class]


class _Points(Record):
    exterior: list[tuple[Number, Number]]
    interior: list[list[tuple[Number, Number]]] = Field(default_factory=list)


class _Bitmap(Record):
    data: str
    origin: tuple[int, int]


class _Object(Record):
    classTitle: str
    geometryType: str = "polygon"
    points: _Points | None = None
    bitmap: _Bitmap | None = None


class _Size(Record):
    height: int
    width: int


class _File(Record):
    size: _Size
    objects: list[_Object]


def recognise(tree: Tree) -> bool:
    """Whether there is a folder ann of files of objects, or beside a meta.json."""
    if not (own := _files(tree)) or any(posixpath.basename(name) == "meta.json" for name in tree.files):
        return bool(own)
    first = tree.peek(own[0])
    return isinstance(first, dict) and {"size", "objects"} <= first.keys()


def _files(tree: Tree) -> list[str]:
    return [name for name in tree.ending(".json") if posixpath.basename(posixpath.dirname(name)) == "ann"]


def read(tree: Tree) -> Annotations:
    """One picture for each file; lines and points are skipped."""
    metas = [name for name in tree.files if posixpath.basename(name) == "meta.json"]
    if not metas:
        fix = "give the folder of the whole Supervisely project, with the meta.json that names its classes"
        raise InputError(f"folder {tree.top}", "holds no meta.json", fix)
    classes = tree.load(metas[0], _Meta).classes
    names = require_classes([each.title for each in classes], f"file {tree.top / metas[0]}")
    colours = {each.title: colour for each in classes if (colour := parse_colour(each.color))}
    stems = {posixpath.splitext(path)[0]: path for path in tree.images}
    pictures: list[Picture] = []
    skipped = 0
    for name in _files(tree):
        file, where = tree.load(name, _File), f"file {tree.top / name}"
        paints = [_paint(each, names, f"{where}: object {index}") for index, each in enumerate(file.objects)]
        skipped += paints.count(None)
        folder, own = posixpath.dirname(posixpath.dirname(name)), posixpath.basename(name).removesuffix(".json")
        path = posixpath.join(folder, "img", own)
        # older files lack the ending of their image
        image = tree.find_image(stems.get(path, path), "", where)
        pictures.append(
            Picture(image, [each for each in paints if each], split_of(name), (file.size.height, file.size.width))
        )
    return Annotations(names, pictures, colours, skipped=skipped)


def _paint(each: _Object, names: list[str], where: str) -> Paint | None:
    if each.classTitle not in names:
        raise InputError(where, f"class {each.classTitle[:60]} is not in meta.json", "export the project again")
    if each.geometryType == "bitmap" and each.bitmap is not None:
        bits = _unpack(each.bitmap.data, where)
        return Mask(each.classTitle, lambda: bits, where, *each.bitmap.origin, float(bits.sum()))
    if each.geometryType == "rectangle" and each.points is not None and len(each.points.exterior) == 2:
        (left, top), (right, bottom) = each.points.exterior
        return Polygon(each.classTitle, [box(left, top, right, bottom, where)], where)
    if each.geometryType == "polygon" and each.points is not None:
        rings = [each.points.exterior, *each.points.interior]
        return Polygon(each.classTitle, [read_ring(ring, where) for ring in rings], where)
    if each.geometryType in ("bitmap", "polygon", "rectangle"):
        raise InputError(where, f"a {each.geometryType} without its points or pixels", "export the project again")
    return None


def _unpack(text: str, where: str) -> Bits:
    """The opaque pixels of a PNG that is packed by zlib and written in base64."""
    try:
        content = zlib.decompressobj().decompress(from_base64(text, where), MAX_BYTES)
    except zlib.error:
        raise InputError(where, "its bitmap is damaged", "export the project again") from None
    return decode_bits(content, where)
