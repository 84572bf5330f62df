"""YOLO's outlines: a text file for each image, lines of a class and x, y in parts of its sides; data.yaml has names."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from ccnet_cli.datasets.annotations.masks import read_table
from ccnet_cli.datasets.annotations.shapes import Paint, Polygon, read_ring
from ccnet_cli.datasets.annotations.tree import Annotations, Picture, Tree, pairs, require_classes, split_of
from ccnet_cli.errors import InputError
from ccnet_cli.media.images import read_bytes, read_size, upright_size

# a class, and four numbers of a box or six and more of an outline
LINE = re.compile(r"\d+(?:\s+-?\d*\.?\d+(?:[eE][-+]?\d+)?){4,}\s*")
NAMES = re.compile(r"^names:[ \t]*(\[[^\]]*\]|\{[^}]*\}|(?:\n[ \t]*(?:-|\d+:)[^\n]*)+)", re.MULTILINE)
NAME = re.compile(r"""(?:(\d+):\s*|-\s+|(?<=[\[,])(?!\s*\d+:)\s*)('[^']*'|"[^"]*"|[^,\[\]{}\n'"]+)""")


def recognise(tree: Tree) -> bool:
    """Whether a text file with the name of an image has such lines."""
    first = next((text for _, text in _pair(tree) if (tree.top / text).stat().st_size), None)
    return first is not None and _lines(tree, first) is not None


def _pair(tree: Tree) -> Iterator[tuple[str, str]]:
    """Each image, and the text file of its name: beside it, or in labels/ where it is in images/."""
    texts = set(tree.ending(".txt"))
    for image in tree.images:
        stem = posixpath.splitext(image)[0]
        for path in (re.sub(r"(^|.*/)images/", r"\1labels/", stem), stem):
            if f"{path}.txt" in texts:
                yield image, f"{path}.txt"
                break


def _lines(tree: Tree, text: str) -> list[str] | None:
    """The lines of a text file; None where one of them is no outline and no box."""
    lines = read_bytes(tree.top / text, "file").decode("utf-8-sig", "replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    return lines if all(map(LINE.fullmatch, lines)) else None


def read(tree: Tree) -> Annotations:
    """Every image that has a text file; boxes are skipped."""
    names = _read_names(tree)
    pictures: list[Picture] = []
    skipped = 0
    for image, text in _pair(tree):
        where, size = f"file {tree.top / text}", _size(tree.top / image)
        # an image without objects may have an empty file
        lines = _lines(tree, text) if (tree.top / text).stat().st_size else []
        if lines is None:
            raise InputError(where, "has a line that is no class and numbers", "export it again")
        paints = [_paint(line, names, size, f"{where} line {number}") for number, line in enumerate(lines, 1)]
        skipped += paints.count(None)
        pictures.append(Picture(tree.top / image, [each for each in paints if each], split_of(image), size))
    others = len(tree.images) - len(pictures)
    if skipped and not any(picture.paints for picture in pictures):
        raise InputError(f"folder {tree.top}", "its text files have boxes alone", "export outlines (segmentation)")
    return Annotations(require_classes(list(names.values()), f"folder {tree.top}"), pictures, {}, (), skipped, others)


def _size(image: Path) -> tuple[int, int]:
    return upright_size(image) or read_size(image)


def _read_names(tree: Tree) -> dict[int, str]:
    for path in tree.ending(".yaml", ".yml"):
        text = read_bytes(tree.top / path, "file").decode("utf-8-sig", "replace")
        if match := NAMES.search(text):
            found = NAME.findall(match[1])
            return {int(key or index): name.strip(" '\"\r") for index, (key, name) in enumerate(found)}
    table, _ = read_table(tree)
    if table is None:
        fix = "put the data.yaml of the export there, or a classes.txt with a name on each line"
        raise InputError(f"folder {tree.top}", "holds no data.yaml that names the classes", fix)
    return {int(key): name or "void" for key, name in table.items() if key.isdecimal()}


def _paint(line: str, names: dict[int, str], size: tuple[int, int], where: str) -> Paint | None:
    kind, *numbers = line.split()
    if int(kind) not in names:
        raise InputError(where, f"class {kind} has no name", "correct data.yaml, or export it again")
    if len(numbers) == 4:
        return None
    if len(numbers) % 2:
        raise InputError(where, f"an outline of {len(numbers)} numbers", "x and y alternate")
    height, width = size
    ring = [(x * width, y * height) for x, y in pairs([float(number) for number in numbers])]
    return Polygon(names[int(kind)], [read_ring(ring, where)], where)
