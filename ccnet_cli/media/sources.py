"""Find the images and videos to segment: by name, from a list on standard input, in folders, by globs."""

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ccnet_cli import files
from ccnet_cli.errors import InputError
from ccnet_cli.media import images, video

SUFFIXES = (*images.IMAGE_SUFFIXES, *video.SUFFIXES)
# longest list on standard input
BYTE_LIMIT = 1 << 26


def find(sources: Sequence[str | Path], output: Path | None = None) -> dict[Path, str]:
    """The images and videos that sources name, each with its output's name without suffix.

    A file's output has its stem as name. A file of a folder (subfolders included, the output excluded) keeps its path
    below that folder, a match of a glob its path below the folders before the first wildcard. "-" reads names from
    standard input, one a line or each ended by a NUL; such a file keeps its path below the working folder, or only
    its stem if it lies elsewhere. InputError if nothing is found.
    """
    if not sources:
        raise InputError("sources", "no image given", "name an image, a folder or a glob")
    found: dict[Path, str] = {}
    seen: set[str] = set()
    for source in map(str, sources):
        for image, name in (_read_list(output) if source == "-" else _matches(source, output)).items():
            # a file that two sources name is segmented once
            if (real := os.path.realpath(image)) not in seen:
                seen.add(real)
                found[image] = name.with_suffix("").as_posix()
    return found


def is_video(path: Path) -> bool:
    """Whether a source or an output is a video, by its suffix."""
    return path.suffix.lower() in video.SUFFIXES


def _matches(source: str, output: Path | None) -> dict[Path, Path]:
    """Images and videos of one source, each with the path that names its output."""
    if "\0" in source:
        raise InputError(f"source {source}", "a NUL in the name", "correct the name")
    path = Path(source)
    if path.is_dir():
        matches = {image: image.relative_to(path) for image in _walk(path, output)}
        why = "no image in this folder"
    elif os.path.lexists(path):
        matches, why = {path: Path(path.name)}, ""
    elif glob.has_magic(source):
        root = _glob_root(source)
        matches = {image: image.relative_to(root) for image in _match(source)}
        why = "no image matches"
    else:
        raise InputError(path, "does not exist", "name an image, a folder or a glob")
    if not matches:
        raise InputError(source, why, f"images end in {', '.join(sorted(images.IMAGE_SUFFIXES))}")
    return matches


def _read_list(output: Path | None) -> dict[Path, Path]:
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
            found |= _matches(name, output)
        elif os.path.lexists(path):
            whole = Path(os.path.normpath(here / path))
            found[path] = whole.relative_to(here) if whole.is_relative_to(here) else Path(path.name)
        else:
            raise InputError(f"standard input: {name}", "does not exist", "list files that exist, one a line")
    return found


def _walk(root: Path, output: Path | None) -> list[Path]:
    """Images and videos below root in order, without linked folders and without an output folder inside root."""
    skipped = None if output is None else os.path.realpath(output)
    if skipped == os.path.realpath(root):
        skipped = None
    found = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if os.path.realpath(Path(folder, name)) != skipped)
        found += [Path(folder, name) for name in sorted(names) if _is_source(name)]
    return found


def _match(pattern: str) -> list[Path]:
    # sorted, since a glob has the order of the disk
    paths = (Path(name) for name in sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    return [path for path in paths if _is_source(path.name) and not path.is_dir()]


def _glob_root(pattern: str) -> Path:
    """The folders before the first wildcard of a glob."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])


def _is_source(name: str) -> bool:
    # not the unfinished video of a killed process
    return Path(name).suffix.lower() in SUFFIXES and not files.is_temporary(name)
