"""CVAT: an XML file with polygons, boxes, ellipses and run-length masks of images or of frames, without entities."""

import posixpath
from bisect import bisect_left, bisect_right
from functools import partial
from xml.etree.ElementTree import Element, ParseError, XMLParser

from ccnet_cli.datasets.annotations.shapes import Mask, Paint, Polygon, box, decode_runs, ellipse, read_ring, turn
from ccnet_cli.datasets.annotations.tree import (
    Annotations,
    Picture,
    Tree,
    parse_colour,
    refuse_other,
    require_classes,
    split_of,
)
from ccnet_cli.errors import InputError
from ccnet_cli.media.images import read_bytes

SHAPES = ("polygon", "box", "mask", "polyline", "points", "ellipse", "cuboid", "skeleton")


def recognise(tree: Tree) -> bool:
    """Whether an XML file begins as CVAT's do."""
    return any(b"<annotations>" in read_bytes(tree.top / name, "file")[:2000] for name in tree.ending(".xml"))


def read(tree: Tree) -> Annotations:
    """Every file's images, in the order of z_order; lines and points are skipped."""
    pictures: list[Picture] = []
    colours = {}
    names: list[str] = []
    skipped = 0
    for name in tree.ending(".xml"):
        where = f"file {tree.top / name}"
        root = parse(read_bytes(tree.top / name, "file"), where)
        if root.tag != "annotations":
            why = f"begins with <{root.tag[:40]}>, where CVAT for images is expected"
            raise InputError(where, why, 'export it as "CVAT for images"')
        for label in root.iterfind("meta//labels/label"):
            # the joints of a skeleton
            if label.findtext("parent"):
                continue
            names.append(label.findtext("name") or "")
            if colour := parse_colour(label.findtext("color")):
                colours[names[-1]] = colour
        for element in root.iterfind("image"):
            own = f"{where}: image {element.get('name', '')[:100]}"
            image = tree.find_image(_get(element, "name", own), name, own)
            shapes = [shape for shape in element if shape.tag in SHAPES]
            paints = [_paint(shape, own) for shape in shapes]
            skipped += paints.count(None)
            size = (_count(element, "height", own), _count(element, "width", own))
            split = split_of(element.get("subset", ""), name, _get(element, "name", own))
            pictures.append(Picture(image, [each for each in paints if each], split, size))
        if root.find("track") is not None:
            pictures += _read_tracks(tree, root, name)
    names += sorted({paint.name for picture in pictures for paint in picture.paints} - set(names))
    return Annotations(require_classes(names, f"folder {tree.top}"), pictures, colours, skipped=skipped)


def _read_tracks(tree: Tree, root: Element, name: str) -> list[Picture]:
    """The frames of a video in which the shape of every track is written down; between keyframes, CVAT guesses it."""
    where = f"file {tree.top / name}"
    paints: dict[int, list[Paint]] = {}
    # between which frames shapes are guessed
    opened: list[int] = []
    closed: list[int] = []
    for track in root.iterfind("track"):
        label, before = _get(track, "label", where), None
        shapes = sorted(
            (shape for shape in track if shape.tag in SHAPES), key=lambda each: _count(each, "frame", where)
        )
        for shape in shapes:
            frame = _count(shape, "frame", where)
            if before is not None:
                opened.append(before)
                closed.append(frame)
            before = None if shape.get("outside") == "1" else frame
            paint = None if before is None else _paint(shape, f"{where}: frame {frame}", label)
            paints.setdefault(frame, []).extend([paint] if paint else [])
    opened.sort()
    closed.sort()
    own = (frame for frame in sorted(paints) if paints[frame])
    whole = [frame for frame in own if bisect_left(opened, frame) == bisect_right(closed, frame)]
    if not whole:
        raise InputError(where, "has no frame whose shapes are all written down", 'export it as "CVAT for images"')
    frames = {posixpath.splitext(posixpath.basename(image))[0]: image for image in tree.images}
    stems = {frame: f"frame_{frame:06}" for frame in whole}
    if missing := [stem for stem in stems.values() if stem not in frames]:
        fix = 'export "CVAT for video" with its images, or as "CVAT for images"'
        raise InputError(where, f"image {missing[0]} is no image below {tree.top}", fix)
    return [Picture(tree.top / frames[stems[frame]], paints[frame], split_of(name)) for frame in whole]


def parse(content: bytes, where: str) -> Element:
    """An XML document in UTF-8 without a document type, so that no entity can grow or name a file."""
    refuse_other(content, where)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise InputError(where, "has a document type, which could name other files or grow without end", "remove it")
    # another encoding could hide one, and a byte order mark chooses it whatever the parser is asked for
    if b"\0" in content:
        raise InputError(where, "is not UTF-8 text", "save it as UTF-8, or export it again")
    parser = XMLParser(encoding="utf-8")
    try:
        parser.feed(content)
        return parser.close()
    except (ParseError, ValueError, RecursionError) as error:
        raise InputError(where, f"is no XML ({error})", "export it again") from None


def _paint(shape: Element, where: str, label: str | None = None) -> Paint | None:
    """What a shape paints, of its own label or that of its track; None for lines and points."""
    name = _get(shape, "label", where) if label is None else label
    level = int(_number(shape, "z_order", where, "0"))
    if shape.tag == "polygon":
        points = [point.split(",") for point in _get(shape, "points", where).split(";")]
        return Polygon(
            name, [read_ring([[_float(part, where) for part in point] for point in points], where)], where, level
        )
    if shape.tag in ("box", "ellipse"):
        keys = ("xtl", "ytl", "xbr", "ybr") if shape.tag == "box" else ("cx", "cy", "rx", "ry")
        a, b, c, d = (_number(shape, key, where) for key in keys)
        ring = box(a, b, c, d, where) if shape.tag == "box" else ellipse((a, b), (c, d), where)
        return Polygon(name, [turn(ring, _number(shape, "rotation", where, "0"))], where, level)
    if shape.tag == "mask":
        left, top, width, height = (int(_number(shape, key, where)) for key in ("left", "top", "width", "height"))
        runs = [int(_float(run, where)) for run in _get(shape, "rle", where).split(",")]
        if width < 1 or height < 1:
            raise InputError(where, f"a mask of {width} x {height} pixels", "export it again")
        read = partial(decode_runs, runs, height, width, where)
        return Mask(name, read, where, left, top, sum(runs[1::2]), level)
    return None


def _get(element: Element, key: str, where: str, default: str | None = None) -> str:
    value = element.get(key, default)
    if value is None:
        raise InputError(where, f"a {element.tag} without {key}", "export it again")
    return value


def _number(element: Element, key: str, where: str, default: str | None = None) -> float:
    return _float(_get(element, key, where, default), where)


def _count(element: Element, key: str, where: str) -> int:
    return int(_number(element, key, where))


def _float(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e12:
        raise InputError(where, f"{text[:40]!r} is no number", "export it again")
    return value
