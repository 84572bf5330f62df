"""Which files a data set has: list files and folders, checked before the first image is read."""

import dataclasses
import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ccnet_cli import config
from ccnet_cli.datasets.source import Samples, Source
from ccnet_cli.errors import InputError
from ccnet_cli.media.images import IMAGE_SUFFIXES, read_bytes

# IMAGE, LABEL or None, NAME, LINE; paths relative to the root
Row = tuple[str, str | None, str, int]

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
# one of these is somewhere in a text with an entry that is absolute or has an empty, . or .. part
UNTIDY = ("\n/", " /", "\t/", "//", "./", ".\n", ".\r", ". ", ".\t")


def folder(path: Path, expected: str) -> Path:
    """The path, if it is a folder; InputError says what was expected there."""
    if not path.is_dir():
        why = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"folder {path}", why, f"expected {expected}; check data.root and the split's name")
    return path


def find_list(data: config.Data, root: Path, split: str) -> Path | None:
    """The split's list file, if one is set: relative to the data root or, where it is not there, the working folder."""
    name = {"train": data.train_list, "val": data.val_list, "test": data.test_list}.get(split)
    if name is None:
        return None
    inside = root / name
    return inside if inside.exists() or not Path(name).exists() else Path(name)


def folder_name(data: config.Data, split: str) -> str:
    """What the folders of a split are called: data.train_split, data.val_split, and any other split by its own name."""
    return {"train": data.train_split, "val": data.val_split}.get(split, split)


def home(root: Path, holds: str, below: Sequence[str]) -> Path:
    """The root, or the first of its folders `below` where it lacks what they hold; the root where all do."""
    return next((place for place in (root, *(root / name for name in below)) if (place / holds).exists()), root)


def read_list(path: Path, root: Path, unique: bool, labels_required: bool) -> Samples:
    """Samples of a list file, a line each: IMAGE LABEL or, without labels, IMAGE.

    Columns are separated by blanks, or by tabs alone where names hold blanks. InputError opens with the list and line.
    unique refuses an image that comes twice: it would count twice.
    """
    text = _text(path)
    # lists can be long: most need no look at the single entry
    untidy = any(mark in f"\n{text}\n" for mark in UNTIDY)
    top = posixpath.normpath(root.absolute()).rstrip("/") + "/"
    first: dict[str, int] = {}
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        columns = [part for column in line.split("\t" if "\t" in line else " ") if (part := column.strip(" \r"))]
        if not columns:
            continue
        if len(columns) > 2 or (labels_required and len(columns) < 2):
            short = "write IMAGE LABEL (ccnet eval --split test does without labels)"
            fix = "separate them by a tab if names hold blanks" if len(columns) > 2 else short
            raise InputError(f"{path} line {number}", f"two columns expected, found {len(columns)}", fix)
        if untidy:
            columns = [_inside(entry, top, f"{path} line {number}") for entry in columns]
        image = columns[0]
        name = posixpath.splitext(image)[0]
        if unique and first.setdefault(name, number) != number:
            why = f"names {name} again (line {first[name]}): it would count twice"
            raise InputError(f"{path} line {number}", why, "remove one of the lines")
        rows.append((image, columns[1] if len(columns) == 2 else None, name, number))
    if not rows:
        raise InputError(f"list {path}", "names no image", "write a line IMAGE LABEL for each")
    return Samples(root, rows)


def lists_train_ids(listing: Path, samples: Samples) -> bool:
    """Whether the label files of a list are named labelTrainIds; InputError where some are and some are not."""
    kinds = {"labelTrainIds" in label for _, label, _, _ in samples.rows if label is not None}
    if len(kinds) == 2:
        raise InputError(f"list {listing}", "names labelTrainIds files and others", "list one kind of label")
    return kinds == {True}


def read_names(path: Path, unique: bool) -> list[tuple[str, int]]:
    """The bare names in a list, one a line, each with its line number; unique refuses one that comes twice."""
    first: dict[str, int] = {}
    names: list[tuple[str, int]] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not (name := line.strip()):
            continue
        if "/" in name or name in (".", ".."):
            raise InputError(f"{path} line {number}", f"a name expected, found {name}", "write names without folders")
        if first.setdefault(name, number) != number and unique:
            why = f"names {name} again (line {first[name]}): it would count twice"
            raise InputError(f"{path} line {number}", why, "remove one of the lines")
        names.append((name, number))
    if not names:
        raise InputError(f"list {path}", "names no image", "write a name on each line")
    return names


def named(names: Sequence[tuple[str, int]], images: Path, labels: Sequence[Path]) -> Samples:
    """Samples of the JPEGs of these names below a folder, with these labels."""
    top = os.fspath(images.absolute())
    rows = [
        (f"{top}/{name}.jpg", os.fspath(label.absolute()), name, line)
        for (name, line), label in zip(names, labels, strict=True)
    ]
    return Samples(Path("/"), rows)


def _text(path: Path) -> str:
    """A list file's text; bytes that are not UTF-8 stay what they are, as the names of files may hold them."""
    content = read_bytes(path, "list")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"list {path}", "is UTF-16 text", "save it as UTF-8")
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if wrong := CONTROL.search(text):
        number = text.count("\n", 0, wrong.start()) + 1
        raise InputError(f"{path} line {number}", f"holds the character {wrong[0]!r}", "save it as plain UTF-8 text")
    return text


def _inside(entry: str, top: str, where: str) -> str:
    """The entry relative to the root (top, with a slash at its end); one that leads out of it is refused."""
    tidy = posixpath.normpath(posixpath.join(top, entry))
    if not tidy.startswith(top):
        raise InputError(where, f"{entry} lies outside the data root {top}", "use paths inside it")
    return tidy[len(top) :]


def scan(top: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
    """Sorted relative paths of the files below a folder that end in a suffix, in any case; hidden ones are left out."""
    endings = tuple(suffix.lower() for suffix in suffixes)
    found: list[str] = []
    seen: set[str] = set()
    for base, folders, files in os.walk(top, followlinks=True):
        real = os.path.realpath(base)
        # a link may lead back up
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(base).relative_to(top)
        found += [
            (below / name).as_posix() for name in files if name.lower().endswith(endings) and not name.startswith(".")
        ]
    return sorted(found)


def beside(image: str) -> str:
    """The label's relative path where it is the image's, as a PNG."""
    return f"{posixpath.splitext(image)[0]}.png"


def pair(images: Path, labels: Path | None, label_of: Callable[[str], str] = beside) -> Samples:
    """Samples of the images below a folder; label_of gives a label's path below labels from its image's."""
    rows: list[Row] = []
    first: dict[str, str] = {}
    for relative in scan(images):
        name = posixpath.splitext(relative)[0]
        if first.setdefault(name, relative) != relative:
            why = f"has the same name as {first[name]} beside it: their results would overwrite each other"
            raise InputError(f"image {images / relative}", why, "rename or remove one")
        label = None if labels is None else os.fspath((labels / label_of(relative)).absolute())
        rows.append((os.fspath((images / relative).absolute()), label, name, 0))
    if not rows:
        raise InputError(f"folder {images}", "holds no image", f"put {' '.join(IMAGE_SUFFIXES)} files there")
    return Samples(Path("/"), rows)


def fingerprint(source: Source) -> str:
    """sha256 of the names of a split's images and labels in their order, wherever they lie."""
    assert isinstance(source.samples, Samples)
    lines = (f"{name}\t{label and posixpath.basename(label)}\n" for _, label, name, _ in source.samples.rows)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def existing(paths: Iterable[str]) -> Iterator[bool]:
    """For each path whether it exists, each folder listed once: lists may name a million files."""
    contents: dict[str, set[str]] = {}
    for path in paths:
        parent, _, name = path.rpartition("/")
        if parent not in contents:
            try:
                with os.scandir(parent or "/") as entries:
                    contents[parent] = {entry.name for entry in entries}
            except OSError:
                contents[parent] = set()
        yield name in contents[parent]


def complete(source: Source, labels_required: bool) -> Source:
    """The source, once every file is known to exist; without labels_required a label that does not becomes None."""
    samples = source.samples
    assert isinstance(samples, Samples)
    top = os.fspath(samples.root.absolute()).rstrip("/") + "/"
    for index, there in enumerate(existing(_below(top, image) for image, *_ in samples.rows)):
        if not there:
            sample = samples[index]
            raise InputError(f"{source.where(sample)}image {sample.image}", "does not exist", "check data.root")
    rows: list[Row] = []
    labelled = list(existing(_below(top, label or "") for _, label, *_ in samples.rows))
    if all(labelled) and all(label is not None for _, label, *_ in samples.rows):
        return source
    for row, there in zip(samples.rows, labelled, strict=True):
        if row[1] is not None and there:
            rows.append(row)
        elif labels_required:
            sample = samples[len(rows)]
            why = "has no label" if sample.label is None else f"has no label {sample.label}"
            raise InputError(f"{source.where(sample)}image {sample.image}", why, "give a label for every image")
        else:
            rows.append((row[0], None, *row[2:]))
    return dataclasses.replace(source, samples=Samples(samples.root, rows))


def _below(top: str, path: str) -> str:
    # os.path.join, which takes three times as long, does no more for such a top
    return path if path.startswith("/") else top + path
