"""Which files a data set has: list files and folders, checked before the first image is read."""

import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from ccnet_cli.errors import InputError
from ccnet_cli.media import LABEL_SUFFIXES, READ_SUFFIXES

# IMAGE, LABEL or None, NAME, LINE; paths relative to the root
Row = tuple[str, str | None, str, int]

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
# a text holds one of these if any of its entries is absolute or has an empty, . or .. part
UNTIDY = ("\n/", " /", "\t/", "//", "./", ".\n", ".\r", ". ", ".\t")


@dataclass(frozen=True)
class Sample:
    """An image and its label map; name is relative, without suffix and unique; line is that in a list file, or 0."""

    image: Path
    label: Path | None
    name: str
    line: int = 0


class Samples(Sequence[Sample]):
    """Rows (IMAGE, LABEL or None, NAME, LINE) of paths below a root, from a list file if listing names one.

    Samples are made on access only, as lists can be long.
    """

    def __init__(self, root: Path, rows: Sequence[Row], listing: Path | None = None) -> None:
        self.root = root
        self.rows = rows
        self.listing = listing

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return Samples(self.root, self.rows[index], self.listing)
        image, label, name, line = self.rows[index]
        return Sample(self.root / image, None if label is None else self.root / label, name, line)

    def where(self, sample: Sample) -> str:
        """ "LIST line N: " for a sample of a list file, else nothing."""
        return f"{self.listing} line {sample.line}: " if self.listing and sample.line else ""

    def files(self) -> Iterator[Path]:
        """All files that are read: the list, images, labels."""
        if self.listing is not None:
            yield self.listing
        for row in self.rows:
            yield from (self.root / name for name in row[:2] if name is not None)

    def fingerprint(self) -> str:
        """sha256 of the names of images and labels in their order, whatever their folders."""
        lines = (f"{name}\t{label and posixpath.basename(label)}\n" for _, label, name, _ in self.rows)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def require_folder(path: Path, expected: str) -> Path:
    """The path, if it is a folder; InputError names the layout that was expected."""
    if not path.is_dir():
        why = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"folder {path}", why, f"expected {expected}; check data.root and the split's name")
    return path


def find_home(root: Path, name: str, folders: Sequence[str]) -> Path:
    """The root or the first of its folders that holds a file or folder of this name; the root if none does."""
    return next((home for home in (root, *(root / each for each in folders)) if (home / name).exists()), root)


def read_list(path: Path, root: Path, unique: bool, labels_required: bool) -> Samples:
    """The samples of a list file, whose lines are IMAGE LABEL or, if labels are not required, IMAGE.

    Columns are separated by blanks, or by tabs alone where names hold blanks. InputError opens with the list and line.
    unique refuses an image that comes twice.
    """
    text = _read_text(path)
    # lists can be long, and few need a check of every entry
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
            columns = [_relative_to_root(entry, top, f"{path} line {number}") for entry in columns]
        image = columns[0]
        name = posixpath.splitext(image)[0]
        if unique:
            _require_first(name, number, first, path)
        rows.append((image, columns[1] if len(columns) == 2 else None, name, number))
    if not rows:
        raise InputError(f"list {path}", "names no image", "write a line IMAGE LABEL for each")
    return Samples(root, rows, path)


def holds_train_ids(samples: Samples) -> bool:
    """Whether the label files are named labelTrainIds; InputError if only some of a list are."""
    # in a list, the folders' names count too
    labels = (label if samples.listing else posixpath.basename(label) for _, label, *_ in samples.rows if label)
    kinds = {"labelTrainIds" in label for label in labels}
    if len(kinds) == 2 and samples.listing:
        raise InputError(f"list {samples.listing}", "names labelTrainIds files and others", "list one kind of label")
    return kinds == {True}


def read_names(path: Path, unique: bool) -> list[tuple[str, int]]:
    """The names in a list, one a line, each with its line number; unique refuses one that comes twice."""
    first: dict[str, int] = {}
    names: list[tuple[str, int]] = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not (name := line.strip()):
            continue
        if "/" in name or name in (".", ".."):
            raise InputError(f"{path} line {number}", f"a name expected, found {name}", "write names without folders")
        if unique:
            _require_first(name, number, first, path)
        names.append((name, number))
    if not names:
        raise InputError(f"list {path}", "names no image", "write a name on each line")
    return names


def _require_first(name: str, number: int, first: dict[str, int], path: Path) -> None:
    """Note the line that a name comes first in; InputError at its second one."""
    if first.setdefault(name, number) != number:
        why = f"names {name} again (line {first[name]}): it would count twice"
        raise InputError(f"{path} line {number}", why, "remove one of the lines")


def name_pairs(
    names: Sequence[tuple[str, int]], images: Path, labels: Sequence[Path], listing: Path | None = None
) -> Samples:
    """Samples of the JPEGs of these names (and line numbers) below a folder, with these labels."""
    top = os.fspath(images.absolute())
    rows = [
        (f"{top}/{name}.jpg", os.fspath(label.absolute()), name, line)
        for (name, line), label in zip(names, labels, strict=True)
    ]
    return Samples(Path("/"), rows, listing)


def _read_text(path: Path) -> str:
    """A list file's text; bytes that are not UTF-8 are preserved, as the names of files may hold them."""
    # it loads OpenCV, which reading a preset must not
    from ccnet_cli.media.images import read_bytes

    content = read_bytes(path, "list")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"list {path}", "is UTF-16 text", "save it as UTF-8")
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if match := CONTROL.search(text):
        number = text.count("\n", 0, match.start()) + 1
        raise InputError(f"{path} line {number}", f"holds the character {match[0]!r}", "save it as plain UTF-8 text")
    return text


def _relative_to_root(entry: str, top: str, where: str) -> str:
    """The entry relative to the root (top, with a slash at its end); InputError if it leads out of it."""
    path = posixpath.normpath(posixpath.join(top, entry))
    if not path.startswith(top):
        raise InputError(where, f"{entry} lies outside the data root {top}", "use paths inside it")
    return path[len(top) :]


def scan(top: Path, suffixes: Sequence[str] = READ_SUFFIXES) -> list[str]:
    """Sorted relative paths of the files below a folder that end in a suffix, in any case, without hidden files."""
    endings = tuple(suffix.lower() for suffix in suffixes)
    paths: list[str] = []
    seen: set[str] = set()
    for base, folders, files in os.walk(top, followlinks=True):
        real = os.path.realpath(base)
        # a link may lead back to a parent
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(base).relative_to(top)
        paths += [
            (below / name).as_posix() for name in files if name.lower().endswith(endings) and not name.startswith(".")
        ]
    return sorted(paths)


def label_suffix(labels: Path, published: str, converted: str) -> str:
    """The suffix of the label files below a folder: converted if all that end in one of the two end in it."""
    names = scan(labels, (published, converted))
    return converted if names and all(name.endswith(converted) for name in names) else published


def pair(images: Path, labels: Path, label_of: Callable[[str], str] = "{}.png".format) -> Samples:
    """Samples of all images below a folder; label_of makes a label's path of its image's, both relative, no suffix."""
    return make_samples(
        images, ((images / path, labels / label_of(posixpath.splitext(path)[0])) for path in scan(images))
    )


def pair_by_suffix(images: Path, labels: Path, suffix: str) -> Samples:
    """As pair, with labels named STEM + suffix, perhaps beside the images.

    A label of another suffix counts where the right one does not exist: reading it says what is wrong with it.
    """
    paths, ending, tail = scan(images), suffix.lower(), suffix.rpartition(".")[0]
    if os.path.realpath(images) == os.path.realpath(labels):
        own = [path for path in paths if not path.lower().endswith(ending)]
        # PNGs alone are no labels of others
        paths = own if own or tail else paths
    elif labels.absolute().is_relative_to(images.absolute()):
        inner = labels.absolute().relative_to(images.absolute()).as_posix() + "/"
        paths = [path for path in paths if not path.startswith(inner)]
    exact = set(scan(labels, (ending,)))
    others = {posixpath.splitext(path)[0]: path for path in scan(labels, LABEL_SUFFIXES)}

    def find(stem: str) -> Path:
        wanted = stem + suffix
        return labels / (wanted if wanted in exact else others.get(stem + tail, wanted))

    return make_samples(images, ((images / path, find(posixpath.splitext(path)[0])) for path in paths))


def make_samples(images: Path, pairs: Iterable[tuple[Path, Path | None]]) -> Samples:
    """Samples of images below a folder, each with its label or None; InputError for two of one name, or for none."""
    top = os.fspath(images.absolute()) + "/"
    rows: list[Row] = []
    first: dict[str, str] = {}
    for image, label in pairs:
        path = os.fspath(image.absolute())
        relative = path.removeprefix(top)
        name = posixpath.splitext(relative)[0]
        if first.setdefault(name, relative) != relative:
            why = f"has the same name as {first[name]} beside it: their results would overwrite each other"
            raise InputError(f"image {image}", why, "rename or remove one")
        rows.append((path, None if label is None else os.fspath(label.absolute()), name, 0))
    if not rows:
        raise InputError(f"folder {images}", "holds no image", f"put {' '.join(READ_SUFFIXES)} files there")
    return Samples(Path("/"), rows)


def existing(paths: Iterable[str]) -> Iterator[bool]:
    """For each path whether it exists; every folder is listed once, as lists may name a million files."""
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


def labelled_ones(samples: Samples) -> Samples:
    """The samples whose label exists; all of them if none does."""
    top = os.fspath(samples.root.absolute()).rstrip("/") + "/"
    labelled = existing(_below(top, label or "") for _, label, *_ in samples.rows)
    rows = [row for row, exists in zip(samples.rows, labelled, strict=True) if exists]
    return Samples(samples.root, rows or samples.rows, samples.listing)


def require_files(samples: Samples, labels_required: bool) -> Samples:
    """The samples if all their files exist, else InputError; without labels_required a missing label becomes None."""
    top = os.fspath(samples.root.absolute()).rstrip("/") + "/"
    for index, exists in enumerate(existing(_below(top, image) for image, *_ in samples.rows)):
        if not exists:
            sample = samples[index]
            raise InputError(f"{samples.where(sample)}image {sample.image}", "does not exist", "check data.root")
    labelled = list(existing(_below(top, label or "") for _, label, *_ in samples.rows))
    if all(labelled) and all(label is not None for _, label, *_ in samples.rows):
        return samples
    rows: list[Row] = []
    for index, ((image, label, name, line), exists) in enumerate(zip(samples.rows, labelled, strict=True)):
        if labels_required and (label is None or not exists):
            sample = samples[index]
            why = "has no label" if label is None else f"has no label {sample.label}"
            raise InputError(f"{samples.where(sample)}image {sample.image}", why, "give a label for every image")
        rows.append((image, label if exists else None, name, line))
    return Samples(samples.root, rows, samples.listing)


def _below(top: str, path: str) -> str:
    # a third of the time of os.path.join
    return path if path.startswith("/") else top + path
