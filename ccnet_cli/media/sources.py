"""Find the images and videos to segment, one after the other: by name, in folders, by globs, on standard input."""

import glob
import hashlib
import itertools
import json
import os
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.media import READ_SUFFIXES, video
from ccnet_cli.media.foreign import SUFFIXES as SUFFIXES
from ccnet_cli.media.foreign import Skipped

Item = TypeVar("Item")

# names that are sorted at a time: a larger folder comes in pieces, in the order of the disk
PIECE = 1 << 14
# bytes read of standard input at a time, and of the longest name there
BLOCK = 1 << 16


class Collision(InputError):
    """Two sources have one output."""


class Source(NamedTuple):
    """An image or video, the name of its output without suffix, and why it cannot be segmented, if that is known."""

    path: Path
    name: str
    error: InputError | None = None


def find(sources: Sequence[str | Path], output: Path | None = None, strict: bool = False) -> Iterator[Source]:
    """The images and videos that sources name, one after the other: no list of them is ever held.

    A file's output has its stem as name. A file of a folder (subfolders included, the output excluded) keeps its path
    below that folder, a match of a glob its path below the folders before the first wildcard. "-" reads names from
    standard input, one a line or each ended by a NUL; such a file keeps its path below the working folder, or only
    its stem if it lies elsewhere. A file that two sources name comes once.

    InputError, before the first, for a source that is no file, folder or glob. What is wrong with one later comes as
    its error: a folder or a list that names no image, a listed name without a file, a second source of one output.
    In folders and globs, what is hidden, empty or no image is skipped with a notice, and an InputError where strict.
    """
    if not sources:
        raise InputError("sources", "no image given", "name an image, a folder or a glob")
    names = [str(source) for source in sources]
    for name in names:
        if "\0" in name:
            raise InputError(f"source {name}", "a NUL in the name", "correct the name")
        if name != "-" and not os.path.lexists(name) and not glob.has_magic(name):
            raise InputError(name, "does not exist", "name an image, a folder or a glob")
    return _without_repeats(names, None if output is None else os.path.realpath(output), Skipped(strict))


def is_video(path: Path) -> bool:
    """Whether a source or an output is a video, by its suffix."""
    return path.suffix.lower() in video.SUFFIXES


class _Ledger:
    """The files and outputs so far, in a temporary database on the disk: memory stays flat whatever their number.

    It takes about 150 bytes for each image, where SQLite puts its temporary files ($SQLITE_TMPDIR, or /var/tmp). rest
    are sources that wait there for their turn.
    """

    def __init__(self) -> None:
        # an empty name is a file that disappears with the connection
        self.database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for table in ("files (key BLOB PRIMARY KEY)", "outputs (key BLOB PRIMARY KEY, source BLOB)"):
            self.database.execute(f"CREATE TABLE {table} WITHOUT ROWID")
        self.database.execute("CREATE TABLE rest (line BLOB)")
        for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -16384"):
            self.database.execute(f"PRAGMA {setting}")
        self.database.execute("BEGIN")
        self.folder = self.real_folder = ""

    def close(self) -> None:
        """Delete the database."""
        self.database.close()

    def is_new(self, path: Path) -> bool:
        """Whether a file, by whatever name, comes for the first time."""
        folder, name = os.path.split(path)
        if folder != self.folder or not self.real_folder:
            self.folder, self.real_folder = folder, os.path.realpath(folder)
        real = os.path.realpath(path) if path.is_symlink() else f"{self.real_folder}/{name}"
        return self.insert("files VALUES (?)", _digest(real))

    def holds(self, path: Path) -> bool:
        """Whether the file to which a name leads is among those so far."""
        found = self.database.execute("SELECT 1 FROM files WHERE key = ?", (_digest(os.path.realpath(path)),))
        return found.fetchone() is not None

    def owner(self, output: str, source: Path) -> Path | None:
        """The source that has this output already; None, and it belongs to this source from now on."""
        key = _digest(output)
        if self.insert("outputs VALUES (?, ?)", key, os.fsencode(source)):
            return None
        (owner,) = self.database.execute("SELECT source FROM outputs WHERE key = ?", (key,)).fetchone()
        return Path(os.fsdecode(owner))

    def insert(self, row: str, *values: bytes) -> bool:
        """Insert a row; False if its key is there already."""
        try:
            return self.database.execute(f"INSERT OR IGNORE INTO {row}", values).rowcount == 1
        except sqlite3.OperationalError as error:
            fix = "make room where temporary files lie, or set SQLITE_TMPDIR to another folder"
            raise EnvironmentFailure("list of the sources", f"not written ({error})", fix) from None


class Listing:
    """Sources of a stream, read to its end onto the disk, so that it is known which files are among them."""

    def __init__(self, first: Iterable[Source], rest: Iterable[Source]) -> None:
        self._ledger = _Ledger()
        for source in first:
            self._ledger.is_new(source.path)
        for source in rest:
            self._ledger.is_new(source.path)
            error = source.error and [isinstance(source.error, Collision), *map(str, source.error.args)]
            self._ledger.insert("rest VALUES (?)", json.dumps([str(source.path), source.name, error]).encode())

    def __iter__(self) -> Iterator[Source]:
        for (line,) in self._ledger.database.execute("SELECT line FROM rest ORDER BY rowid"):
            path, name, error = json.loads(line)
            yield Source(Path(path), name, error and (Collision if error[0] else InputError)(*error[1:]))

    def holds(self, path: Path) -> bool:
        """Whether a file, by whatever name, is a source."""
        return self._ledger.holds(path)

    def close(self) -> None:
        """Delete what lies on the disk."""
        self._ledger.close()


def _digest(name: str) -> bytes:
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()


def _without_repeats(names: list[str], output: str | None, skipped: Skipped) -> Iterator[Source]:
    with closing(_Ledger()) as ledger:
        for name in names:
            for source in _read_list(output, skipped) if name == "-" else _matches(name, output, skipped):
                if source.error is not None:
                    yield source
                elif ledger.is_new(source.path):
                    own = source.name + (".mp4" if is_video(source.path) else ".png")
                    owner = ledger.owner(own, source.path)
                    if owner is not None:
                        what, why = f"{owner} and {source.path}", f"both would be written to {own}"
                        source = source._replace(error=Collision(what, why, "segment them apart"))
                    yield source
    skipped.report()


def _matches(name: str, output: str | None, skipped: Skipped) -> Iterator[Source]:
    """Images and videos of one source."""
    path = Path(name)
    if path.is_dir():
        root, found, why = path, _walk(path, output, skipped), "no image in this folder"
    elif os.path.lexists(path):
        root, found, why = path.parent, iter([path]), ""
    else:
        root, found, why = _glob_root(name), _match(name, skipped), "no image matches"
    is_empty = True
    for each in found:
        is_empty = False
        yield each if isinstance(each, Source) else Source(each, each.relative_to(root).with_suffix("").as_posix())
    if is_empty:
        fix = f"images end in {', '.join(sorted(READ_SUFFIXES))}"
        yield Source(path, name, InputError(name, why, fix))


def _read_list(output: str | None, skipped: Skipped) -> Iterator[Source]:
    """Images and videos listed on standard input."""
    here, is_empty = Path.cwd(), True
    for name in _read_names():
        path, is_empty = Path(name), False
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except (OSError, ValueError):
            is_folder = False
            if not os.path.lexists(name):
                error = InputError(f"standard input: {name}", "does not exist", "list files that exist, one a line")
                yield Source(path, name, error)
                continue
        if is_folder:
            yield from _matches(name, output, skipped)
        else:
            whole = Path(os.path.normpath(here / path))
            own = whole.relative_to(here) if whole.is_relative_to(here) else Path(path.name)
            yield Source(path, own.with_suffix("").as_posix())
    if is_empty:
        error = InputError("standard input", "names no image", "list file names, one a line")
        yield Source(Path("-"), "-", error)


def _read_names() -> Iterator[str]:
    """Names on standard input that end in a newline or, if the first block holds one, in a NUL."""
    fix = "list file names, one a line"
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise InputError("standard input", "is closed", fix)
    rest, end = b"", b""
    try:
        # the first block whole: names that end in a NUL may contain newlines
        while block := stream.read1(BLOCK) if end else stream.read(BLOCK):
            end = end or (b"\0" if b"\0" in block else b"\n")
            *whole, rest = (rest + block).split(end)
            if len(rest) > BLOCK:
                raise InputError("standard input", f"a name is longer than {BLOCK} bytes", fix)
            yield from (os.fsdecode(line.removesuffix(b"\r")) for line in whole if line.strip())
    except (OSError, ValueError) as error:
        why = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise InputError("standard input", why, fix) from None
    if rest.strip():
        yield os.fsdecode(rest.removesuffix(b"\r"))


def _walk(root: Path, output: str | None, skipped: Skipped) -> Iterator[Path | Source]:
    """Images and videos below root in order, without linked folders and without an output folder inside root."""
    excluded = None if output == os.path.realpath(root) else output
    folders = [root]
    while folders:
        folder, below = folders.pop(), []
        try:
            with os.scandir(folder) as entries:
                for entry in _sort_pieces(entries, key=lambda entry: entry.name):
                    path = folder / entry.name
                    if not _is_folder(entry):
                        if skipped.is_source(path):
                            yield path
                    elif not entry.is_symlink() and os.path.realpath(path) != excluded and skipped.is_searched(path):
                        below.append(path)
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
            yield Source(folder, str(folder), InputError(f"folder {folder}", why, "check its permissions"))
        folders += sorted(below, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # a loop of links: reading it says so
        return False


def _match(pattern: str, skipped: Skipped) -> Iterator[Path]:
    for name in _sort_pieces(glob.iglob(pattern, recursive=True), key=str):  # noqa: PTH207
        path = Path(name)
        if not path.is_dir() and skipped.is_source(path):
            yield path


def _sort_pieces(items: Iterable[Item], key: Callable[[Item], str]) -> Iterator[Item]:
    """Sort PIECE items at a time."""
    whole = iter(items)
    while piece := list(itertools.islice(whole, PIECE)):
        yield from sorted(piece, key=key)


def _glob_root(pattern: str) -> Path:
    """The folders before the first wildcard of a glob."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])
