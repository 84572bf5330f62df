"""Make a data set of what an annotation tool exports: images, label PNGs, lists and a preset."""

import os
import posixpath
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccnet_cli import config, files
from ccnet_cli.commands.propose import SMALL, frame
from ccnet_cli.config.text import dump
from ccnet_cli.datasets.annotations import FORMATS, recognise
from ccnet_cli.datasets.annotations.shapes import Polygon, paint
from ccnet_cli.datasets.annotations.tree import BACKGROUND, VOID, Annotations, Picture, Tree
from ccnet_cli.datasets.folder import distinct_colours
from ccnet_cli.datasets.listing import Samples
from ccnet_cli.datasets.parting import part
from ccnet_cli.datasets.settings import IGNORED
from ccnet_cli.datasets.smoothing import Smoothing
from ccnet_cli.errors import EnvironmentFailure, InputError, notice
from ccnet_cli.media.images import Pixels, read_image, read_size, upright_size, write_image, write_label

# pictures that show whether everything is outlined, and the part of their pixels that may be left out then
PROBES, COMPLETE = 24, 0.1
# ways to part images that are tried, so that every class is in both parts
DRAWS = 64
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ConvertRequest:
    """What to convert into which new folder.

    format is one of FORMATS, recognised if None. labels says what the values or colours of masks mean, as data.labels
    does. unlabelled is what pixels mean that nothing covers: background, ignore, or auto, by how many they are.
    fraction, seed and group part images that belong to no split.
    """

    source: Path
    output: Path
    format: str | None = None
    labels: dict[str, str | None] | None = None
    unlabelled: str = "auto"
    fraction: float = 0.2
    seed: int = 0
    group: str | None = None


@dataclass(frozen=True)
class Converted:
    """What was written: the folder, the format it came from, its classes, and images by split."""

    folder: Path
    format: str
    classes: tuple[str, ...]
    images: dict[str, int]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class _Size:
    """A picture's size; turned is whether its EXIF data turn the file's pixels into it."""

    height: int
    width: int
    turned: bool = False


@dataclass(frozen=True)
class _Drawing:
    """How label maps are drawn: the class ids, whether points are corners of pixels, and the id of empty pixels."""

    ids: dict[str, int]
    names: tuple[str, ...]
    corners: bool
    empty: int


def convert(request: ConvertRequest) -> Converted:
    """Write images/, labels/, train.lst, val.lst and preset.yaml into a new folder, all or nothing."""
    if request.format is not None and request.format not in FORMATS:
        raise InputError(f"option --format {request.format}", "unknown", f"choose one of {', '.join(FORMATS)}")
    tree = Tree(request.source, request.labels)
    name = request.format or ("masks" if request.labels else recognise(tree))
    annotations = FORMATS[name].read(tree)
    count = len(annotations.pictures)
    notice(f"{request.source}: {FORMATS[name].title}, {count} image{'s' * (count != 1)}")
    if not annotations.pictures:
        raise InputError(f"folder {request.source}", "its annotations name no image", "export it again")
    if not annotations.maps and not any(picture.paints for picture in annotations.pictures):
        why = f"nothing is outlined in its {len(annotations.pictures)} images"
        raise InputError(f"folder {request.source}", why, "outline something in the program, and export it again")
    _refuse_fractions(annotations, request.source)
    names = _name(tree, annotations.pictures)
    sizes = [_measure(picture) for picture in annotations.pictures]
    drawing = _plan(annotations, request.unlabelled, sizes)
    palette, present, smoothed = _palette(annotations, drawing.names), dict[str, set[int]](), Smoothing()
    with _new_folder(request.output) as folder:
        for index, picture in enumerate(annotations.pictures):
            ids, turned = _draw(annotations, index, drawing, sizes[index])
            stem = posixpath.splitext(names[index])[0]
            own = names[index] = f"{stem}.png" if turned else names[index]
            if annotations.maps:
                smoothed.add(ids)
            present[own] = set(np.flatnonzero(np.bincount(ids.ravel(), minlength=256)[:IGNORED]).tolist())
            write_label(folder / "labels" / f"{stem}.png", ids, palette)
            _copy(picture.image, folder / "images" / own, turned)
        for line in smoothed.judge():
            why, _, fix = line.rpartition("; ")
            raise InputError(f"folder {request.source}", why, fix)
        splits = _part(names, annotations.pictures, request, present)
        _write_lists(folder, splits)
        files.write_bytes(folder / "preset.yaml", _preset(request.output, drawing.names, palette, sizes).encode())
    for count, what in (
        (annotations.skipped, "shapes that outline nothing"),
        (annotations.others, "images without a label"),
    ):
        if count > 0:
            notice(f"{count} {what} were left out")
    counts = {split: len(own) for split, own in splits.items()}
    return Converted(request.output, name, drawing.names, counts)


def _refuse_fractions(annotations: Annotations, source: Path) -> None:
    """InputError where every outline lies in the first pixel, as parts of the sides do."""
    paints = [each for picture in annotations.pictures for each in picture.paints]
    if paints and all(isinstance(each, Polygon) and (np.abs(each.rings[0]) <= 1).all() for each in paints):
        why = f"all points of its {len(paints)} outlines lie between 0 and 1, as parts of the sides"
        raise InputError(f"folder {source}", why, "export them in pixels")


def _name(tree: Tree, pictures: Sequence[Picture]) -> list[str]:
    """The path of each image below its folder; InputError for two that would have one label."""
    names = [picture.image.relative_to(tree.top).as_posix() for picture in pictures]
    first: dict[str, str] = {}
    for name in names:
        stem = posixpath.splitext(name)[0]
        if not name.isprintable():
            raise InputError(f"image {name!r}", "its name has characters that no list can hold", "rename it")
        if stem in first:
            why = "is annotated twice" if first[stem] == name else f"has the same name as {first[stem]} beside it"
            raise InputError(f"image {name}", why, "remove or rename one of them")
        first[stem] = name
    return names


def _plan(annotations: Annotations, unlabelled: str, sizes: Sequence[_Size]) -> _Drawing:
    """Which class has which id, and what pixels are that nothing covers."""
    names = [name for name in annotations.classes if name.lower() not in VOID]
    corners = any(
        each.reaches_corners(size.height, size.width)
        for picture, size in zip(annotations.pictures, sizes, strict=True)
        for each in picture.paints
        if hasattr(each, "reaches_corners")
    )
    background = next((name for name in names if name.lower() in BACKGROUND), None)
    ids = dict.fromkeys(annotations.classes, IGNORED) | {name: index for index, name in enumerate(names)}
    if annotations.maps or unlabelled == "ignore":
        return _Drawing(ids, tuple(names), corners, IGNORED)
    if background is not None:
        return _Drawing(ids, tuple(names), corners, ids[background])
    if unlabelled == "auto":
        part = _empty_part(annotations, sizes, corners)
        if part <= COMPLETE:
            if part:
                notice(f"{part:.1%} of the pixels are covered by nothing: ignored (--unlabelled background changes it)")
            return _Drawing(ids, tuple(names), corners, IGNORED)
        notice(f"{part:.1%} of the pixels are covered by nothing: background (--unlabelled ignore changes it)")
    ids = {name: IGNORED if value == IGNORED else value + 1 for name, value in ids.items()}
    return _Drawing(ids, ("background", *names), corners, 0)


def _empty_part(annotations: Annotations, sizes: Sequence[_Size], corners: bool) -> float:
    """The part of the pixels of some pictures that nothing covers."""
    count = len(annotations.pictures)
    chosen = sorted({index * count // PROBES for index in range(PROBES)}) if count > PROBES else range(count)
    ids = dict.fromkeys(annotations.classes, 1)
    empty = []
    for index in chosen:
        size = sizes[index].height, sizes[index].width
        empty.append(float((paint(annotations.pictures[index].paints, ids, size, corners, 0) == 0).mean()))
    return float(np.mean(empty))


def _measure(picture: Picture) -> _Size:
    """The size of an image as it was annotated; InputError where its annotation has another."""
    size, upright = read_size(picture.image), upright_size(picture.image)
    if upright is not None and picture.size in (None, upright):
        return _Size(*upright, turned=True)
    if picture.size is not None and picture.size != size:
        why = f"is {size[1]} x {size[0]} pixels, its annotation {picture.size[1]} x {picture.size[0]}"
        raise InputError(f"image {picture.image}", why, "give the images that were annotated")
    return _Size(*size)


def _draw(annotations: Annotations, index: int, drawing: _Drawing, size: _Size) -> tuple[Pixels, bool]:
    """The label of a picture, and whether it lies on the image with its EXIF rotation."""
    picture = annotations.pictures[index]
    if not annotations.maps:
        return paint(
            picture.paints, drawing.ids, (size.height, size.width), drawing.corners, drawing.empty
        ), size.turned
    label = annotations.maps[index]()
    height, width = read_size(picture.image)
    if size.turned and label.shape == (height, width) == (size.height, size.width):
        why = "is turned by its EXIF data, and nothing says whether its mask is turned too"
        raise InputError(f"image {picture.image}", why, "save both upright, without EXIF data")
    if label.shape not in ((height, width), (size.height, size.width)):
        why = f"is {label.shape[1]} x {label.shape[0]} pixels, its image {width} x {height}"
        raise InputError(f"mask of {picture.image}", why, "give image and mask of one size")
    return label, label.shape != (height, width)


def _palette(annotations: Annotations, names: Sequence[str]) -> list[tuple[int, int, int]]:
    """The colours of the classes where all have one and all differ; else distinct ones, black for a background."""
    own = [annotations.colours.get(name, (0, 0, 0) if name.lower() in BACKGROUND else None) for name in names]
    if None not in own and len(set(own)) == len(own):
        return [colour for colour in own if colour is not None]
    behind = [(0, 0, 0)] if names[0].lower() in BACKGROUND else []
    return [*behind, *distinct_colours(len(names) - len(behind))]


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yield a folder that gets the name of the output when the block ends, and is deleted if the block raises."""
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        raise InputError(output, "exists and is not an empty folder", "name a new folder")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise InputError(output, "its folder does not exist", f"make {output.parent} first")
    folder = parent / f".tmp-{files.HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        yield folder
        folder.replace(output)
    except OSError as error:
        why, fix = f"not written ({error.strerror})", "make room, or choose another"
        raise EnvironmentFailure(f"folder {output}", why, fix) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(image: Path, copy: Path, turned: bool) -> None:
    """A second name of the image's file, or a copy on another disk; upright pixels where it is turned."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    if turned:
        write_image(copy, read_image(image, exif=True))
        return
    source = image.resolve()
    with suppress(OSError):
        os.link(source, copy)
        return
    shutil.copyfile(source, copy)


def _write_lists(folder: Path, splits: dict[str, list[str]]) -> None:
    for split, names in splits.items():
        lines = [f"images/{name}\tlabels/{posixpath.splitext(name)[0]}.png\n" for name in sorted(names)]
        files.write_bytes(folder / f"{split}.lst", "".join(lines).encode("utf-8", "surrogateescape"))


def _part(
    names: Sequence[str], pictures: Sequence[Picture], request: ConvertRequest, present: Mapping[str, set[int]]
) -> dict[str, list[str]]:
    """The images of each split; what has none is to train on or, where nothing is to validate on, is parted.

    Of several draws, the first by which fewest classes (present, by image) are missing in a part.
    """
    splits: dict[str | None, list[str]] = {split: [] for split in (*SPLITS, None)}
    for name, picture in zip(names, pictures, strict=True):
        splits[picture.split].append(name)
    free = splits.pop(None)
    if splits["val"]:
        splits["train"] += free
    else:
        # an export may have one split alone, whatever it is called
        rest = free + splits["train"] or splits.pop("test")
        samples = Samples(Path(), [(name, None, name, 0) for name in rest])
        draws = (part(samples, request.fraction, request.seed + DRAWS * draw, request.group) for draw in range(DRAWS))
        drawn = [tuple([row[2] for row in own.rows] for own in parts) for parts in draws]

        def missing(parts: Sequence[Sequence[str]]) -> int:
            return -sum(len(set[int]().union(*(present[name] for name in own))) for own in parts)

        splits["train"], splits["val"] = min(drawn, key=missing)
    if not splits["train"]:
        raise InputError(f"folder {request.source}", "has no image to train on", "export the training split too")
    return {split: own for split, own in splits.items() if split is not None and own}


def _preset(output: Path, classes: Sequence[str], palette: Sequence[Sequence[int]], sizes: Sequence[_Size]) -> str:
    """A preset for the new folder: a small network from scratch, which a CPU trains in minutes."""
    count = len(sizes)
    height, width = (int(np.median([getattr(size, side) for size in sizes])) for side in ("height", "width"))
    framing, steps = frame((height, width), SMALL.side), SMALL.steps(count)
    data: dict[str, Any] = {
        "dataset": "folder",
        "root": str(output.absolute()),
        "train_list": "train.lst",
        "val_list": "val.lst",
        "classes": list(classes),
        "palette": [list(colour) for colour in palette],
        **framing,
        "scale_max": 1.5,
    }
    mapping = config.to_mapping(config.load(SMALL.base))
    own = {key: mapping[key] for key in ("model", "train", "loss", "log")}
    own |= {"schedule": {"steps": steps, "lr": 0.002, "warmup": min(50, steps // 10)}, "checkpoint": {"every": 100}}
    title = f"{count} images of your own, {len(classes)} classes"
    named = {"name": output.absolute().name, "description": title, "source": "ccnet data convert"}
    whole = {**named, **own, "data": data, "eval": {"fit": [*framing["fit"]]} if "fit" in framing else {}}
    config.from_mapping(whole)
    return dump(whole)
