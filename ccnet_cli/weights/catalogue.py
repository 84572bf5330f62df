"""The catalogue of public weights: what there is, where it lies, and which of it is in the cache; loads no torch."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError

DRIVE = "https://drive.google.com/uc?export=download&id="
RECORD = "record.json"


@dataclass(frozen=True)
class Entry:
    """One public file: what is published of it, and what ccnet needs to know to load it.

    path continues base; drive is an id of Google Drive; folder is a page that lists the file, for people alone. sha256
    is a prefix, sha1 that of the file inside an archive, md5 the ending of the address of a file that holds it. miou is
    a percentage of one scale, many of several, by setting. unusable says why ccnet cannot load it.
    """

    name: str
    of: str
    layout: str
    licence: str
    source: str
    network: str
    backbone: str
    data: str
    base: str = ""
    path: str = ""
    drive: str = ""
    folder: str = ""
    file: str = ""
    sha256: str | None = None
    sha1: str | None = None
    md5: str | None = None
    mib: float | None = None
    classes: int | None = None
    miou: float | None = None
    many: float | None = None
    top1: float | None = None
    setting: str | None = None
    preset: str | None = None
    recurrence: int | None = None
    align_corners: bool | None = None
    unusable: str | None = None

    @property
    def url(self) -> str | None:
        """Where the file lies; None where only a page lists it."""
        return f"{DRIVE}{self.drive}" if self.drive else self.base + self.path if self.path else None

    @property
    def file_name(self) -> str:
        """The name of the file of weights, which may be packed into another."""
        return PurePosixPath(self.file or self.path).name

    @property
    def remote_name(self) -> str:
        """The name of the file that lies at the address."""
        return PurePosixPath(self.path or self.file).name

    @property
    def hash(self) -> str | None:
        """What is published to check the file by, in words."""
        if self.md5 is not None:
            return f"md5 in {self.remote_name.rpartition('.')[0]}{self.md5}"
        return f"sha256 {self.sha256}" if self.sha256 else f"sha1 {self.sha1}" if self.sha1 else None

    @property
    def cache(self) -> Path:
        """The folder of the cache that holds this file alone: names of files repeat."""
        return files.cache_folder() / "weights" / self.name

    @property
    def meta(self) -> dict[str, Any]:
        """What a file may not say of itself, as layouts look for it beside the weights."""
        if self.recurrence is not None:
            return {"recurrence": self.recurrence}
        if self.align_corners is not None:
            return {"cfg": f"decode_head=dict(align_corners={self.align_corners})"}
        return {}

    def to_mapping(self, settings: Mapping[str, str]) -> dict[str, Any]:
        """All that the catalogue says, and the file's path if it is in the cache."""
        own = ("name", "network", "backbone", "data", "classes", "licence", "layout", "preset", "mib", "unusable")
        score = {"single": self.miou, "several": self.many, "top1": self.top1}
        measured = None if self.setting is None else settings[self.setting]
        return {
            **{key: getattr(self, key) for key in own},
            "url": self.url or self.folder,
            "file": self.file_name,
            "hash": self.hash,
            "score": {**score, "measured": measured},
            "source": self.source,
            "cached": None if (path := find_cached(self)) is None else str(path),
        }


@dataclass(frozen=True)
class Catalogue:
    """The entries by their names, and how scores were measured, by the settings' names."""

    entries: dict[str, Entry]
    settings: dict[str, str]


def read() -> Catalogue:
    """The catalogue that comes with ccnet."""
    content = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    entries = {
        name: Entry(name, **{**content["collections"][own["of"]], **own}) for name, own in content["weights"].items()
    }
    return Catalogue(entries, content["settings"])


def find(name: str) -> Entry:
    """The entry of a name; InputError names the nearest one."""
    entries = read().entries
    if name in entries:
        return entries[name]
    near = nearest(name)
    raise InputError(f"weights {name}", "unknown", f"did you mean {near}?" if near else "see ccnet weights list")


def expand(name: str) -> list[str]:
    """The names of a network's files, an encoder's and a decoder's, by the name without these; otherwise the name."""
    entries = read().entries
    pair = [f"{name}-encoder", f"{name}-decoder"]
    return pair if name not in entries and all(part in entries for part in pair) else [name]


def nearest(name: str) -> str | None:
    """The name that is most like another, if any is."""
    return next(iter(difflib.get_close_matches(name, read().entries, n=1, cutoff=0.6)), None)


def find_cached(entry: Entry) -> Path | None:
    """The entry's file in the cache, not verified; None where it is not there, or was never finished."""
    path = entry.cache / entry.file_name
    return path if path.is_file() and (entry.cache / RECORD).is_file() else None


def require(entry: Entry) -> Path:
    """The entry's file in the cache, verified against what was recorded of it; InputError where it is not there."""
    if entry.unusable is not None:
        raise unusable(entry)
    path = find_cached(entry)
    if path is None:
        raise InputError(f"weights {entry.name}", "not in the cache", f"run ccnet weights get {entry.name}")
    verify(entry, path)
    return path


def unusable(entry: Entry) -> InputError:
    """The error of a file that is known, but that ccnet cannot load."""
    return InputError(f"weights {entry.name}", f"ccnet cannot load it, {entry.unusable}", "see ccnet weights list")


def verify(entry: Entry, path: Path) -> None:
    """InputError unless a file of the cache is what its record says."""
    try:
        expected = json.loads((entry.cache / RECORD).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        expected = None
    if expected != digest(path):
        fix = f"run ccnet weights get {entry.name} --again"
        raise InputError(path, "has changed since it was downloaded", fix)


def entry_of(path: Path) -> Entry | None:
    """The entry whose file of the cache a path is, or whose record lies in its folder."""
    if path.parent.parent != files.cache_folder() / "weights":
        return None
    return read().entries.get(path.parent.name)


def digest(path: Path, algorithm: str = "sha256") -> str:
    """A file's hash, in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise EnvironmentFailure(path, f"cannot be read ({error.strerror})", "check the disk") from None
