"""COCO: one JSON file of images, categories and annotations; polygons, run lengths (plain or packed), crowds."""

from functools import partial

from ccnet_cli.datasets.annotations.shapes import Mask, Paint, Polygon, decode_runs, read_ring
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
from ccnet_cli.errors import InputError


class _Image(Record):
    id: int | str
    file_name: str
    height: int | None = None
    width: int | None = None


class _Category(Record):
    id: int
    name: str
    supercategory: str | None = None


class _Runs(Record):
    size: tuple[int, int]
    counts: list[int] | str


class _Annotation(Record):
    image_id: int | str
    # those of panoptic files have segments in its place
    category_id: int | None = None
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
    pictures: list[Picture] = []
    used: set[str] = set()
    categories: dict[int, str] = {}
    parents: set[str] = set()
    skipped = 0
    for name in names:
        file, where = tree.load(name, _File), f"file {tree.top / name}"
        own = {category.id: category.name for category in file.categories}
        if changed := [key for key, title in own.items() if categories.setdefault(key, title) != title]:
            why = f"category {changed[0]} is {own[changed[0]]}, in another file {categories[changed[0]]}"
            raise InputError(where, why, "convert the files apart")
        parents |= {category.supercategory or "" for category in file.categories}
        paints: dict[int | str, list[Paint]] = {image.id: [] for image in file.images}
        for number, annotation in enumerate(file.annotations):
            made = _paints(annotation, own, f"{where}: annotation {number}")
            if annotation.image_id not in paints:
                raise InputError(
                    f"{where}: annotation {number}", f"no image has id {annotation.image_id}", "export it again"
                )
            paints[annotation.image_id] += made
            skipped += not made
            used |= {each.name for each in made}
        for image in file.images:
            path = tree.find_image(image.file_name, name, where)
            size = (image.height, image.width) if image.height and image.width else None
            pictures.append(Picture(path, paints[image.id], split_of(name, image.file_name), size))
    if skipped and not used:
        fix = "export segmentations: COCO's boxes alone outline nothing"
        raise InputError(f"folder {tree.top}", "its annotations have no segmentation", fix)
    # Roboflow adds a category that holds the others
    classes = [title for title in categories.values() if title in used or title not in parents]
    return Annotations(require_classes(classes, f"folder {tree.top}"), pictures, skipped=skipped)


def _paints(annotation: _Annotation, categories: dict[int, str], where: str) -> list[Paint]:
    if annotation.category_id is None:
        fix = "export instances: polygons, or run lengths"
        raise InputError(where, "names no category, as in files of panoptic segmentation", fix)
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
