"""COCO: one JSON file of images, categories and annotations; polygons, run lengths (plain or packed), crowds.

Panoptic files have a PNG for each image, whose colours are the numbers of its segments.
"""

import posixpath
from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ccnet_cli.datasets.annotations.shapes import Bits, Mask, Paint, Polygon, decode_runs, read_ring
from ccnet_cli.datasets.annotations.tree import (
    Annotations,
    Number,
    Picture,
    Record,
    Tree,
    pairs,
    require_classes,
    split_of,
)
from ccnet_cli.datasets.tables import pack
from ccnet_cli.errors import InputError
from ccnet_cli.media.images import Pixels, read_colours


class _Image(Record):
    id: int | str
    file_name: str
    height: int | None = None
    width: int | None = None


class _Category(Record):
    id: int
    name: str
    supercategory: str | None = None
    keypoints: list[str] | None = None


class _Segment(Record):
    id: int
    category_id: int


class _Runs(Record):
    size: tuple[int, int]
    counts: list[int] | str


class _Annotation(Record):
    image_id: int | str
    # those of panoptic files have the segments of a PNG in its place
    category_id: int | None = None
    file_name: str | None = None
    segments_info: list[_Segment] | None = None
    iscrowd: int = 0
    segmentation: list[list[Number]] | _Runs | None = None


class _File(Record):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def recognise(tree: Tree) -> bool:
    """Whether a JSON file has COCO's three lists."""
    return bool(_files(tree))


def _files(tree: Tree) -> list[str]:
    loaded = ((name, tree.peek(name)) for name in tree.ending(".json"))
    return [name for name, value in loaded if isinstance(value, dict) and _File.model_fields.keys() <= value.keys()]


def read(tree: Tree) -> Annotations:
    """Every file's images; the categories of several files must be the same."""
    names = _files(tree) or tree.ending(".json")
    if not names:
        raise InputError(f"folder {tree.top}", "holds no JSON file", "give the folder of a COCO export")
    files = {name: tree.load(name, _File) for name in names}
    # COCO's own has joints of the same images beside
    plain = {name: file for name, file in files.items() if not _has_joints(file.categories)}
    pictures: dict[Path, tuple[str, Picture]] = {}
    categories: dict[int, str] = {}
    parents: set[str] = set()
    skipped = 0
    for name, file in (plain or files).items():
        where = f"file {tree.top / name}"
        own = {category.id: category.name for category in file.categories}
        if double := [each for each in file.categories if own[each.id] != each.name]:
            why = f"category {double[0].id} is {double[0].name} and {own[double[0].id]}"
            raise InputError(where, why, "export it again")
        if changed := [key for key, title in own.items() if categories.setdefault(key, title) != title]:
            why = f"category {changed[0]} is {own[changed[0]]}, in another file {categories[changed[0]]}"
            raise InputError(where, why, "convert the files apart")
        parents |= {category.supercategory or "" for category in file.categories}
        paints, empty = _read_paints(tree, name, file, own)
        skipped += empty
        for image in file.images:
            path = tree.find_image(image.file_name, name, where)
            size = (image.height, image.width) if image.height and image.width else None
            picture = Picture(path, paints[image.id], split_of(name, image.file_name), size)
            before, _ = pictures.setdefault(path, (name, picture))
            if before != name:
                why = f"annotates images of {before} again, such as {path.name}"
                raise InputError(where, why, "give a folder with one of the two files")
            if pictures[path][1] is not picture:
                raise InputError(where, f"image {path.name} is annotated twice", "remove one of them")
    used = {each.name for _, picture in pictures.values() for each in picture.paints}
    if skipped and not used:
        fix = "export segmentations: COCO's boxes alone outline nothing"
        raise InputError(f"folder {tree.top}", "its annotations have no segmentation", fix)
    # Roboflow adds a category that holds the others
    classes = [title for title in categories.values() if title in used or title not in parents]
    only = [picture for _, picture in pictures.values()]
    return Annotations(require_classes(classes, f"folder {tree.top}"), only, skipped=skipped)


def _read_paints(tree: Tree, name: str, file: _File, own: dict[int, str]) -> tuple[dict[int | str, list[Paint]], int]:
    """What each image of a file has, by its id, and the number of annotations that outline nothing."""
    read_map = lru_cache(maxsize=1)(lambda path: pack(read_colours(path)))
    paints: dict[int | str, list[Paint]] = {image.id: [] for image in file.images}
    if len(paints) < len(file.images):
        number, _ = Counter(image.id for image in file.images).most_common(1)[0]
        raise InputError(f"file {tree.top / name}", f"several images have the id {number}", "export it again")
    skipped = 0
    for number, annotation in enumerate(file.annotations):
        where = f"file {tree.top / name}: annotation {number}"
        if annotation.segments_info is not None and annotation.file_name:
            folder = posixpath.splitext(posixpath.basename(name))[0]
            png = tree.find_image(posixpath.join(folder, annotation.file_name), name, where)
            tree.hide(png)
            made = _segments(annotation.segments_info, own, partial(read_map, png), f"{where}: {png.name}")
        else:
            made = _paints(annotation, own, where)
        if annotation.image_id not in paints:
            raise InputError(where, f"no image has id {annotation.image_id}", "export it again")
        paints[annotation.image_id] += made
        skipped += not made
    return paints, skipped


def _has_joints(categories: list[_Category]) -> bool:
    return bool(categories) and all(category.keypoints is not None for category in categories)


def _segments(
    segments: list[_Segment], categories: dict[int, str], read: Callable[[], Pixels], where: str
) -> list[Paint]:
    """What the segments of a PNG paint: those pixels whose red + 256 green + 65536 blue is a segment's number."""

    def find(number: int) -> Bits:
        bits = np.equal(read(), (number & 255) << 16 | number & 0xFF00 | number >> 16)
        if not bits.any():
            raise InputError(where, f"no pixel is of segment {number}", "give the PNGs that the file was written with")
        return bits

    if unknown := [each.category_id for each in segments if each.category_id not in categories]:
        raise InputError(where, f"no category has id {unknown[0]}", "export it again")
    return [Mask(categories[each.category_id], partial(find, each.id), where) for each in segments]


def _paints(annotation: _Annotation, categories: dict[int, str], where: str) -> list[Paint]:
    if annotation.category_id is None:
        raise InputError(where, "names no category, and no PNG of segments", "export it again")
    if annotation.category_id not in categories:
        raise InputError(where, f"no category has id {annotation.category_id}", "export it again")
    name, level = categories[annotation.category_id], -1 if annotation.iscrowd else 0
    shape = annotation.segmentation
    if isinstance(shape, _Runs):
        runs = unpack(shape.counts, where) if isinstance(shape.counts, str) else shape.counts
        height, width = shape.size
        if height < 1 or width < 1:
            raise InputError(where, f"a mask of {width} x {height} pixels", "export it again")
        return [
            Mask(name, partial(decode_runs, runs, height, width, where, True), where, area=sum(runs[1::2]), level=level)
        ]
    shape = shape or []
    if odd := [ring for ring in shape if len(ring) % 2]:
        raise InputError(where, f"a polygon of {len(odd[0])} numbers", "x and y alternate")
    return [Polygon(name, [read_ring([*pairs(ring)], where)], where, level) for ring in shape]


def unpack(text: str, where: str) -> list[int]:
    """Run lengths of COCO's packed text: five bits a letter, lowest first; later ones as differences to two before."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise InputError(where, "its packed runs are damaged", "export it again")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise InputError(where, "its packed runs end early", "export it again")
    return runs
