"""Clips: the frames before and after a labelled one, found by the number at the end of its name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccnet_cli.datasets.dataset import DataSet
from ccnet_cli.datasets.films import films_folder
from ccnet_cli.datasets.listing import Sample, Samples
from ccnet_cli.datasets.settings import Clip, Data
from ccnet_cli.errors import InputError, notice
from ccnet_cli.media import READ_SUFFIXES, images
from ccnet_cli.media.images import Pixels

# of a frame's name without suffix: what comes before its number, the number, and Cityscapes' word behind it
Frame = tuple[str, int, str]
NAME = re.compile(r"(.*?)(\d+)(_leftImg8bit)?")
SHUFFLE_SEED = 0


@dataclass(frozen=True, eq=False)
class Clips:
    """The frames of each image's clip, in their order; place is the image's own. missing counts those that repeat."""

    place: int
    frames: dict[Path, tuple[Path, ...]]
    missing: int = 0
    stride: int = 1

    def load(self, sample: Sample, image_HW3: Pixels, tolerate: bool = False) -> list[Pixels]:
        """The frames of a sample's clip, of which the labelled one is read already; InputError where sizes differ."""
        read = {sample.image: image_HW3}
        for path in self.frames[sample.image]:
            if path not in read:
                read[path] = images.read_image(path, tolerate=tolerate)
            if read[path].shape != image_HW3.shape:
                (height, width), (own_height, own_width) = read[path].shape[:2], image_HW3.shape[:2]
                why = f"is {width} x {height} pixels, the labelled one {own_width} x {own_height}"
                raise InputError(f"frame {path}", why, "give the frames of a clip one size")
        return [read[path] for path in self.frames[sample.image]]


def find_clips(data: Data, dataset: DataSet, root: Path, samples: Samples) -> Clips | None:
    """The clips around the images of a split, None where a clip is the image alone.

    A frame that is missing is replaced by the next one towards the labelled, and a notice counts these. InputError
    where no image has any neighbour, though its video goes on there, or the data set has no videos.
    """
    clip = data.clip
    if clip is None or clip.frames == 1:
        return None
    if dataset.frames is None:
        raise InputError("preset key data.clip", f"{data.dataset} has images alone", "set data.clip=null")
    folders: dict[Path, dict[Frame, Path]] = {}
    owns = [dataset.frames(data, root, sample.image) for sample in samples]
    frames, missing = {}, 0
    for sample, own in zip(samples, owns, strict=True):
        if own.parent not in folders:
            folders[own.parent] = _list(own.parent)
        frames[sample.image], gone = _neighbours(sample.image, own, folders[own.parent], clip)
        missing += gone
    total = len(frames) * (clip.frames - 1)
    if missing == total and not all(_is_at_an_end(own, folders[own.parent], clip) for own in owns):
        why = f"none of the frames around {owns[0].stem} lies there"
        raise InputError(f"folder {owns[0].parent}", why, "extract the videos' frames there, or set data.clip=null")
    if missing:
        notice(f"{missing} of {total} neighbouring frames are missing: the next one towards the labelled is repeated")
    return Clips(clip.place, _shuffle(frames, clip.place) if clip.shuffle else frames, missing, clip.stride)


def frames_around(image: Path, clip: Clip) -> tuple[Path, ...]:
    """The clip around an image, of the frames beside it; those that are missing repeat the next one towards it."""
    if _read_name(image) is None:
        return (image,) * clip.frames
    return _neighbours(image, image, _list(image.parent), clip)[0]


def frames_lie_beside(data: Data, dataset: DataSet, root: Path, samples: Samples) -> bool:
    """Whether the images of a split are among the frames: then those without a label are frames alone."""
    first = samples[0].image
    return dataset.frames is not None and dataset.frames(data, root, first) == first


def _neighbours(image: Path, own: Path, known: dict[Frame, Path], clip: Clip) -> tuple[tuple[Path, ...], int]:
    """The frames of a clip, and how many of them repeat another."""
    if (name := _read_name(own)) is None:
        raise InputError(
            f"image {image}", "no number at the end of its name", "name frames by their number in the video"
        )
    before, number, behind = name
    frames, missing = {clip.place: image}, 0
    for places, step in ((range(clip.place - 1, -1, -1), 1), (range(clip.place + 1, clip.frames), -1)):
        for place in places:
            path = known.get((before, number + (place - clip.place) * clip.stride, behind))
            missing += path is None
            frames[place] = path or frames[place + step]
    return tuple(frames[place] for place in range(clip.frames)), missing


def _is_at_an_end(own: Path, known: dict[Frame, Path], clip: Clip) -> bool:
    """Whether all other frames of a clip would lie before or after those of a video; an image alone is no video."""
    name = _read_name(own)
    assert name is not None
    numbers = [number for before, number, behind in known if (before, behind) == (name[0], name[2])]
    places = (place for place in range(clip.frames) if place != clip.place)
    others = (name[1] + (place - clip.place) * clip.stride for place in places)
    is_video = len(numbers) > 1 or films_folder() in own.parents
    return is_video and not any(min(numbers) <= other <= max(numbers) for other in others)


def _list(folder: Path) -> dict[Frame, Path]:
    """The frames in a folder."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    named = ((_read_name(path), path) for path in paths if path.suffix.lower() in READ_SUFFIXES)
    return {name: path for name, path in named if name is not None}


def _read_name(path: Path) -> Frame | None:
    match = NAME.fullmatch(path.stem)
    return None if match is None else (match[1], int(match[2]), match[3] or "")


def _shuffle(frames: dict[Path, tuple[Path, ...]], place: int) -> dict[Path, tuple[Path, ...]]:
    """Each clip with the other frames of another one of its size, the same on every machine."""
    generator = np.random.default_rng(SHUFFLE_SEED)
    donor: dict[Path, tuple[Path, ...]] = {}
    by_size: dict[tuple[int, int], list[Path]] = {}
    for image in frames:
        by_size.setdefault(images.read_size(image, tolerate=True), []).append(image)
    for own in by_size.values():
        if len(own) == 1:
            why = f"no other image has the size of {own[0]}, whose clip needs another one's frames"
            raise InputError("preset key data.clip.shuffle", why, "give two images of each size, or set it to false")
        order: Sequence[int] = generator.permutation(len(own)).tolist()
        # around the circle, no clip gets its own
        donor |= {own[one]: frames[own[other]] for one, other in zip(order, [*order[1:], order[0]], strict=True)}
    return {image: (*donor[image][:place], image, *donor[image][place + 1 :]) for image in frames}
