"""What lies in a folder of images and is none: hidden files, a system's files, empty files."""

import stat
from collections import Counter
from pathlib import Path

from ccnet_cli import files
from ccnet_cli.errors import InputError, notice
from ccnet_cli.media import READ_SUFFIXES, video

SUFFIXES = (*READ_SUFFIXES, *video.SUFFIXES)
# what Windows, macOS and network stores leave in folders, in lower case
SYSTEM = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}
SYSTEM |= {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}


class Skipped:
    """Counts what is skipped in folders and globs, by kind; where strict, the first of them is an InputError."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()

    def is_source(self, path: Path) -> bool:
        """Whether a file of a folder is an image or a video; a hidden, a system's or an empty one is counted."""
        # the unfinished file of a killed process is nobody's, and texts may lie beside images
        if files.is_temporary(path.name) or not self._accept(path, _kind_of_name(path.name, "file")):
            return False
        return path.suffix.lower() in SUFFIXES and self._accept(path, "empty file" if _is_empty(path) else None)

    def is_searched(self, folder: Path) -> bool:
        """Whether a folder within a folder is searched; one that is not is counted."""
        return self._accept(folder, _kind_of_name(folder.name, "folder"))

    def report(self) -> None:
        """Say in one notice how many of each kind were skipped, if any."""
        if self.counts:
            kinds = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in sorted(self.counts.items())]
            notice(f"skipped {', '.join(kinds)} in the folders given")

    def _accept(self, path: Path, kind: str | None) -> bool:
        if kind is None:
            return True
        if self.strict:
            article = "an" if kind[0] in "aeiou" else "a"
            raise InputError(path, f"{article} {kind} among the images", "remove it, or leave out --strict")
        self.counts[kind] += 1
        return False


def _kind_of_name(name: str, what: str) -> str | None:
    if name.startswith("."):
        return f"hidden {what}"
    return f"system {what}" if name.lower() in SYSTEM else None


def _is_empty(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        # reading it says why it cannot be read
        return False
    return stat.S_ISREG(status.st_mode) and not status.st_size
