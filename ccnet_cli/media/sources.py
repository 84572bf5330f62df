"""Find the images and videos to segment: by name, from a list on standard input, in folders, by globs."""

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ccnet_cli.errors import InputError
from ccnet_cli.media import images, video
from ccnet_cli.media.foreign import SUFFIXES as SUFFIXES
from ccnet_cli.media.foreign import Skipped

# longest list on standard input
BYTE_LIMIT = 1 << 26


def find(sources: Sequence[str | Path], output: Path | None = None, strict: bool = False) -> dict[Path, str]:
    """The images and videos that sources name, each with its output's name without suffix.

    A file's output has its stem as name. A file of a folder (subfolders included, the output excluded) keeps its path
    below that folder, a match of a glob its path below the folders before the first wildcard. "-" reads names from
    standard input, one a line or each ended by a NUL; such a file keeps its path below the working folder, or only
    its stem if it lies elsewhere. InputError if nothing is found.

    In folders and globs, what is hidden, empty or no image is skipped with a notice, and an InputError where strict.
    """
    if not sources:
        raise InputError("sources", "no image given", "name an image, a folder or a glob")
    found: dict[Path, str] = {}
    seen: set[str] = set()
    skipped = Skipped(strict)
    for source in map(str, sources):
        for image, name in (
            _read_list(output, skipped) if source == "-" else _matches(source, output, skipped)
        ).items():
            # a file that two sources name is segmented once
            if (real := os.path.realpath(image)) not in seen:
                seen.add(real)
                found[image] = name.with_suffix("").as_posix()
    skipped.report()
    return found


def is_video(path: Path) -> bool:
    """Whether a source or an output is a video, by its suffix."""
    return path.suffix.lower() in video.SUFFIXES


def _matches(source: str, output: Path | None, skipped: Skipped) -> dict[Path, Path]:
    """Images and videos of one source, each with the path that names its output."""
    if "\0" in source:
        raise InputError(f"source {source}", "a NUL in the name", "correct the name")
    path = Path(source)
    if path.is_dir():
        matches = {image: image.relative_to(path) for image in _walk(path, output, skipped)}
        why = "no image in this folder"
    elif os.path.lexists(path):
        matches, why = {path: Path(path.name)}, ""
    elif glob.has_magic(source):
        root = _glob_root(source)
        matches = {image: image.relative_to(root) for image in _match(source, skipped)}
        why = "no image matches"
    else:
        raise InputError(path, "does not exist", "name an image, a folder or a glob")
    if not matches:
        raise InputError(source, why, f"images end in {', '.join(sorted(images.IMAGE_SUFFIXES))}")
    return matches


def _read_list(output: Path | None, skipped: Skipped) -> dict[Path, Path]:
    """Images and videos listed on standard input, each with the path that names its output."""
    content = sys.stdin.buffer.read(BYTE_LIMIT + 1)
    if len(content) > BYTE_LIMIT:
        raise InputError("standard input", f"longer than {BYTE_LIMIT >> 20} MiB", "list file names, one a line")
    # names that end in a NUL may contain newlines
    lines = content.split(b"\0") if b"\0" in content else [line.removesuffix(b"\r") for line in content.split(b"\n")]
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        raise InputError("standard input", "names no image", "list file names, one a line")
    here = Path.cwd()
    found: dict[Path, Path] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            found |= _matches(name, output, skipped)
        elif os.path.lexists(path):
            whole = Path(os.path.normpath(here / path))
            found[path] = whole.relative_to(here) if whole.is_relative_to(here) else Path(path.name)
        else:
            raise InputError(f"standard input: {name}", "does not exist", "list files that exist, one a line")
    return found


def _walk(root: Path, output: Path | None, skipped: Skipped) -> list[Path]:
    """Images and videos below root in order, without linked folders and without an output folder inside root."""
    excluded = None if output is None else os.path.realpath(output)
    if excluded == os.path.realpath(root):
        excluded = None
    found = []
    for folder, below, names in os.walk(root):
        own = (Path(folder, name) for name in sorted(below))
        below[:] = [path.name for path in own if os.path.realpath(path) != excluded and skipped.is_searched(path)]
        found += [path for name in sorted(names) if skipped.is_source(path := Path(folder, name))]
    return found


def _match(pattern: str, skipped: Skipped) -> list[Path]:
    # sorted, since a glob has the order of the disk
    paths = (Path(name) for name in sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    return [path for path in paths if not path.is_dir() and skipped.is_source(path)]


def _glob_root(pattern: str) -> Path:
    """The folders before the first wildcard of a glob."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])
