"""Videos of which some frames are labelled: those frames and their clips as images, decoded once into the cache."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ccnet_cli import files
from ccnet_cli.datasets.listing import Samples, make_samples, scan
from ccnet_cli.datasets.settings import Clip
from ccnet_cli.datasets.toyscapes import fill_new
from ccnet_cli.errors import InputError, notice
from ccnet_cli.media import images, video

# what a label's name adds to its video's: film.mp4 has film_000120.png, of the frame 120, the first being 0
NUMBER = re.compile(r"[_-](\d+)")


@dataclass(frozen=True)
class Film:
    """A video by its path relative to its folder, and the labels of its frames by their numbers."""

    name: str
    labels: Mapping[int, Path]

    def frames(self, clip: Clip) -> dict[int, str]:
        """The frames that are labelled and those in their clips, by number, with the names that they get as images."""
        names = {}
        for number in self.labels:
            for place in range(clip.frames):
                other = number + (place - clip.place) * clip.stride
                if other >= 0:
                    names[other] = f"{self.name.rpartition('.')[0]}_{other:06d}.png"
        return names


def find_films(folder: Path, labels: Path, suffix: str) -> list[Film]:
    """The videos in a folder of which a frame has a label; suffix is what labels' names end in.

    InputError where two videos would have the same labels.
    """
    names = scan(labels, (suffix,))
    films: dict[str, Film] = {}
    for name in scan(folder, video.SUFFIXES):
        stem = name.rpartition(".")[0]
        numbers = {each: NUMBER.fullmatch(each[len(stem) : -len(suffix)]) for each in names if each.startswith(stem)}
        if own := sorted((int(match[1]), labels / each) for each, match in numbers.items() if match):
            if stem in films:
                why = f"label {own[0][1]} could be of {films[stem].name} too"
                raise InputError(f"video {folder / name}", why, "rename or remove one of the two videos")
            films[stem] = Film(name, dict(own))
    return list(films.values())


def list_films(folder: Path, films: Iterable[Film], clip: Clip) -> Samples:
    """The labelled frames of videos; they and the frames in their clips are decoded if they are not in the cache yet.

    InputError for a label of a frame that its video does not have.
    """
    films = list(films)
    states = [(folder / each.name).stat() for each in films]
    facts = [(str(folder.absolute()), each.st_size, each.st_mtime_ns) for each in states]
    wanted = [each.frames(clip) for each in films]
    digest = hashlib.sha256(repr((facts, wanted)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    target = films_folder() / digest
    if not target.is_dir():
        notice(f"decoding {sum(map(len, wanted))} frames of {len(films)} videos into {target}")
        try:
            fill_new(target, lambda root: _decode(root, folder, films, clip))
        except InputError:
            # another process may have been quicker
            if not target.is_dir():
                raise
    own = zip(films, wanted, strict=True)
    return make_samples(
        target, ((target / names[at], label) for film, names in own for at, label in film.labels.items())
    )


def films_folder() -> Path:
    """Where the frames of videos are kept."""
    return files.cache_folder().absolute() / "films"


def _decode(root: Path, folder: Path, films: Iterable[Film], clip: Clip) -> None:
    for film in films:
        names, count = film.frames(clip), 0
        for count, frame in enumerate(video.frames(folder / film.name), 1):
            if count - 1 in names:
                images.write_image(root / names[count - 1], frame)
        for number, label in film.labels.items():
            if number >= count:
                why = f"is of frame {number}, and {folder / film.name} has {count} frames"
                raise InputError(f"label {label}", why, "count frames from 0, or replace the video if it was cut off")
