"""Segment photographs: files, folders and globs to masks."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ccnet_cli import checkpoint as checkpoints
from ccnet_cli import images, loading, outputs
from ccnet_cli import model as models
from ccnet_cli.errors import InputError, notice
from ccnet_cli.evaluate import network, with_choices
from ccnet_cli.inference import check_precision, segment

# images between two lines of progress
EVERY = 20


def predict(
    sources: Sequence[str | Path],
    output: Path,
    checkpoint: Path | None = None,
    formats: Sequence[str] = ("color",),
    overwrite: bool = False,
    legend: Path | None = None,
    device: str = "auto",
    mode: str | None = None,
    tile: tuple[int, int] | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    precision: str = "fp32",
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Segment every image of the sources and return the files written, the legend last.

    output ends in .png for one image, else it is a folder that mirrors the sources' names. Left out, mode, tile, scales
    and flip are those of the checkpoint; preset and overrides are those of loading.restore. InputError before the first
    image where names collide or files exist already.
    """
    formats = outputs.check_formats(formats)
    found = find_images(sources, output)
    plan = plan_outputs(found, output, formats)
    written = [path for targets in plan.values() for path in targets.values()]
    if legend is not None:
        if legend in written or legend.suffix.lower() not in images.IMAGE_SUFFIXES:
            why = "is also the name of a mask" if legend in written else "has no image suffix"
            raise InputError(f"legend {legend}", why, "give it another name, such as legend.png")
        written.append(legend)
    _refuse_inputs(found, written)
    outputs.refuse_existing(written, overwrite)
    check_precision(precision)
    place = models.device(device)

    restored = loading.restore(checkpoints.find(checkpoint), preset, overrides)
    s = with_choices(restored.preset, mode=mode, tile=tile, scales=scales, flip=flip).eval
    mirrored = restored.classes.mirrored
    model = network(restored, place)
    for count, (source, targets) in enumerate(plan.items(), start=1):
        image = images.read_image(source, exif=True)
        ids = segment(model, image, place, s.mode, s.tile, s.scales, s.flip, precision, s.fit, mirrored)
        for format, path in targets.items():
            outputs.write(path, format, ids, image, restored.classes)
        if count % EVERY == 0 and count < len(plan):
            notice(f"{count} of {len(plan)} images segmented")
    if legend is not None:
        images.write_image(legend, images.legend(restored.classes.names, restored.classes.palette))
    return written


def find_images(sources: Sequence[str | Path], output: Path | None = None) -> dict[Path, str]:
    """The images that sources name, each with its name for the output, without suffix.

    A file is called by its stem. What a folder holds (its subfolders too, the output left out) keeps its path below
    that folder, what a glob matches its path below the glob's part without wildcards. InputError for no image at all.
    """
    if not sources:
        raise InputError("sources", "no image given", "name an image, a folder or a glob")
    found: dict[Path, str] = {}
    known: set[str] = set()
    for source in map(str, sources):
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
        for image, name in matches.items():
            # the same file named twice, by two sources, is segmented once
            if (real := _real(image)) not in known:
                known.add(real)
                found[image] = name.with_suffix("").as_posix()
    return found


def plan_outputs(found: dict[Path, str], output: Path, formats: Sequence[str]) -> dict[Path, dict[str, Path]]:
    """For each image the file of each format; InputError where two images would be written to one file."""
    suffix = output.suffix.lower()
    if suffix in images.IMAGE_SUFFIXES and not output.is_dir():
        if suffix != ".png":
            raise InputError(output, f"masks are PNG files, not {suffix}", "end the name in .png, or name a folder")
        if len(found) > 1 or len(formats) > 1:
            what = f"{len(found)} images" if len(found) > 1 else f"{len(formats)} formats"
            raise InputError(output, f"one file for {what}", "name a folder, without .png")
        return {image: {formats[0]: output} for image in found}
    if output.exists() and not output.is_dir():
        raise InputError(output, "is a file, not a folder", "name a folder, or end the name in .png")
    plan: dict[Path, dict[str, Path]] = {}
    owner: dict[Path, Path] = {}
    for image, name in found.items():
        plan[image] = outputs.destinations(output, name, formats)
        for path in plan[image].values():
            if path in owner:
                raise InputError(f"{owner[path]} and {image}", f"both would be written to {path}", "segment them apart")
            owner[path] = image
    return plan


def _refuse_inputs(found: dict[Path, str], written: list[Path]) -> None:
    """InputError where a mask would replace one of the images."""
    originals = {_real(image) for image in found}
    for path in written:
        if _real(path) in originals:
            raise InputError(path, "is one of the images to segment", "choose another output")


def _walk(root: Path, output: Path | None) -> list[Path]:
    """Images below root in order, linked folders not followed; an output folder inside root is passed over."""
    skipped = None if output is None or _real(output) == _real(root) else _real(output)
    found = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if _real(Path(folder, name)) != skipped)
        found += [Path(folder, name) for name in sorted(names) if _is_image(name)]
    return found


def _match(pattern: str) -> list[Path]:
    # sorted, for a glob's order is the disk's
    paths = (Path(name) for name in sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    return [path for path in paths if _is_image(path.name) and not path.is_dir()]


def _glob_root(pattern: str) -> Path:
    """The folders of a glob before its first wildcard."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in images.IMAGE_SUFFIXES


def _real(path: Path) -> str:
    return os.path.realpath(path)
