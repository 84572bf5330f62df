"""Segment photographs and videos: files, folders, globs and lists to masks."""

import itertools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ccnet_cli import files
from ccnet_cli.commands.evaluate import with_choices
from ccnet_cli.errors import InputError, Interrupted, notice
from ccnet_cli.inference import engine
from ccnet_cli.inference.artifact import default_device, default_precision, is_onnx, open_artifact
from ccnet_cli.inference.runtime import runner
from ccnet_cli.inference.scores import Predictor, Scores
from ccnet_cli.inference.views import Views, batch_scores, host_input
from ccnet_cli.media import images, outputs, sources, video
from ccnet_cli.media.background import background_writer, prefetch
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.video import Video
from ccnet_cli.models import network as models
from ccnet_cli.progress import Progress
from ccnet_cli.weights.find import find_artifact

# images, or frames, between two lines of progress where there is no terminal
EVERY = 20
# formats whose files hold train ids
READ_BACK = ("color", "train-id")
NPZ = "npz"

Targets = dict[str, Path]
Predict = Callable[[Tensor], np.ndarray]


@dataclass(frozen=True)
class Area:
    """How many pixels each class has in an image of size (H, W), or in all frames of a video."""

    source: Path
    size: tuple[int, int]
    frames: int
    pixels: tuple[int, ...]


@dataclass
class Prediction:
    """The files written, the legend last, and of each source the area of every class."""

    checkpoint: Path
    classes: Classes
    files: list[Path] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON; a class's share is that of the source's pixels."""
        return {"checkpoint": str(self.checkpoint), "sources": [self._source(area) for area in self.areas]}

    def _source(self, area: Area) -> dict[str, Any]:
        height, width = area.size
        total = area.frames * height * width
        counts = zip(self.classes.names, area.pixels, strict=True)
        classes = {name: {"pixels": count, "share": count / total} for name, count in counts}
        return {"source": str(area.source), "width": width, "height": height, "frames": area.frames, "classes": classes}


def predict(
    names: Sequence[str | Path],
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
    compile: str = "off",
    preset: str | None = None,
    overrides: Sequence[str] = (),
    npz: bool = False,
    areas: bool = False,
    continued: bool = False,
) -> Prediction:
    """Segment every image and video that names name (see sources.find).

    A first name that ends in .onnx is the checkpoint. output ends in .png for one image and in .mp4 or .webm for one
    video, else it is a folder that mirrors the sources' names. npz writes the probabilities of the classes beside each
    mask. Left out, mode, tile, scales and flip are those of the checkpoint; preset and overrides are those of
    open_artifact. continued passes over sources whose outputs are all there, whole; with areas these are read back
    from the masks, or the source is segmented again where they cannot be. InputError before the first image where names
    collide, files exist already or a video is damaged; Interrupted after a signal, the image in progress finished, the
    video in progress given up.
    """
    if continued and overwrite:
        raise InputError("--continue", "--overwrite is given too", "give one of them")
    formats = outputs.check_formats(formats)
    if names and is_onnx(Path(names[0])):
        if checkpoint is not None:
            raise InputError(f"checkpoint {checkpoint}", f"{names[0]} is given too", "give one of them")
        checkpoint, names = Path(names[0]), names[1:]
    found = sources.find(names, output)
    plan = plan_outputs(found, output, formats, npz)
    written = [path for targets in plan.values() for path in targets.values()]
    if legend is not None:
        if legend in written or legend.suffix.lower() not in images.IMAGE_SUFFIXES:
            why = "is also the name of a mask" if legend in written else "has no image suffix"
            raise InputError(f"legend {legend}", why, "give it another name, such as legend.png")
        written.append(legend)
    outputs.refuse_inputs(found, written)
    outputs.refuse_existing(written, overwrite or continued)
    checkpoint = find_artifact(checkpoint)
    place = models.device(default_device(device, checkpoint))
    precision = models.precision(default_precision(precision, checkpoint), place)
    engine.compiles(compile, place, 0)
    for folder in {path.parent for path in written}:
        files.sweep(folder)
    kept = {source for source, targets in plan.items() if continued and _done(targets, areas)}
    if continued:
        notice(f"{len(kept)} of {len(plan)} are there already and stay as they are")
    films = _inspect(source for source in plan if source not in kept and sources.is_video(source))

    with _signals() as asked:
        artifact = open_artifact(checkpoint, preset, overrides)
        settings = with_choices(artifact.preset, mode=mode, tile=tile, scales=scales, flip=flip)
        views, predictor = Views.of(settings.eval, artifact.classes), Predictor()
        count = sum(films[source].frames if source in films else 1 for source in plan if source not in kept)
        model = runner(artifact, place, precision, compile, count, len(kept))
        score = partial(batch_scores, model, views=views, device=place)
        prepare = partial(host_input, normalisation=model.normalisation, device=place)
        result = Prediction(artifact.path, artifact.classes)
        measured: dict[Path, Area] = {}
        done = len(kept)

        def predict_input(input_1CHW: Tensor) -> np.ndarray:
            return predictor.predict(score(input_1CHW)[0])

        def halt() -> None:
            if asked:
                raise _stopped(asked[0], done, len(plan), overwrite)

        def read(source: Path) -> tuple[np.ndarray, Tensor]:
            image = images.read_image(source, exif=True)
            return image, prepare(image)

        def write(source: Path, image: np.ndarray, ids: np.ndarray, scores: Scores) -> None:
            _write(plan[source], image, ids, scores, artifact.classes)
            measured[source] = _area(source, ids, artifact.classes)

        progress = Progress(len(plan), done, "file" if films else "image", EVERY)
        wanted = [source for source in plan if source not in kept]
        photographs = prefetch(read, [source for source in wanted if source not in films])
        with closing(progress), closing(photographs), background_writer() as submit:
            for source in wanted:
                halt()
                if source in films:
                    # two bars do not fit on a terminal
                    progress.close()
                    measured[source] = _film(
                        films[source], plan[source], predict_input, prepare, artifact.classes, halt
                    )
                else:
                    image, input_1CHW = next(photographs)
                    (scores,) = score(input_1CHW)
                    submit(write, source, image, predictor.predict(scores), scores)
                done += 1
                result.files += plan[source].values()
                progress.show(done, "segmented")
    if areas:
        measured |= {source: _kept_area(source, plan[source], artifact.classes) for source in kept}
        result.areas += [measured[source] for source in plan]
    if legend is not None:
        images.write_image(legend, images.draw_legend(artifact.classes.names, artifact.classes.palette))
        result.files.append(legend)
    return result


def plan_outputs(
    found: dict[Path, str], output: Path, formats: Sequence[str], npz: bool = False
) -> dict[Path, Targets]:
    """For each source the file of each format; InputError where two would be written to one file."""
    for source in filter(sources.is_video, found):
        for format in [*formats, *[NPZ] * npz]:
            if format not in outputs.VIDEO_FORMATS:
                fix = f"use {' or '.join(outputs.VIDEO_FORMATS)}, or leave it out"
                raise InputError(f"video {source}", f"cannot be written as {format}", fix)
    suffix = output.suffix.lower()
    if suffix in sources.SUFFIXES and not output.is_dir():
        if len(found) > 1 or len(formats) > 1:
            what = f"{len(found)} images" if len(found) > 1 else f"{len(formats)} formats"
            raise InputError(output, f"one file for {what}", f"name a folder, without {suffix}")
        (source,) = found
        known = tuple(video.ENCODERS) if sources.is_video(source) else (".png",)
        if suffix not in known:
            kinds = "videos are MP4 or WebM files" if sources.is_video(source) else "masks are PNG files"
            fix = f"end the name in {' or '.join(known)}, or name a folder"
            raise InputError(output, f"{kinds}, not {suffix}", fix)
        return {source: {formats[0]: output} | ({NPZ: output.with_suffix(".npz")} if npz else {})}
    if output.exists() and not output.is_dir():
        raise InputError(output, "is a file, not a folder", "name a folder, or end the name in .png")
    plan: dict[Path, Targets] = {}
    owner: dict[Path, Path] = {}
    for source, name in found.items():
        plan[source] = outputs.destinations(output, name, formats, ".mp4" if sources.is_video(source) else ".png")
        if npz:
            # beside the masks, or in a folder of its own where these have theirs
            own = [NPZ, *formats[1:]]
            plan[source][NPZ] = outputs.destinations(output, name, own, ".npz")[NPZ]
        for path in plan[source].values():
            if path in owner:
                raise InputError(
                    f"{owner[path]} and {source}", f"both would be written to {path}", "segment them apart"
                )
            owner[path] = source
    return plan


def _done(targets: Targets, areas: bool) -> bool:
    """Whether a source's files are all there, whole, and tell its areas if these are asked for."""
    return all(outputs.is_complete(path) for path in targets.values()) and not (areas and _ids_file(targets) is None)


def _ids_file(targets: Targets) -> Path | None:
    """The file from which a source's train ids can be read."""
    return next((path for name, path in targets.items() if name in READ_BACK and path.suffix == ".png"), None)


def _kept_area(source: Path, targets: Targets, classes: Classes) -> Area:
    path = _ids_file(targets)
    ids = images.read_label(path)
    if ids.max() >= len(classes):
        fix = "segment again with --overwrite"
        raise InputError(path, f"holds {ids.max()}, which is no class of this checkpoint", fix)
    return _area(source, ids, classes)


def _area(source: Path, ids: np.ndarray, classes: Classes) -> Area:
    counts = np.bincount(ids.ravel(), minlength=len(classes))
    return Area(source, (ids.shape[0], ids.shape[1]), 1, tuple(counts.tolist()))


def _write(targets: Targets, image: np.ndarray, ids: np.ndarray, scores: Scores, classes: Classes) -> None:
    for format, path in targets.items():
        if format == NPZ:
            outputs.write_probabilities(path, scores.probabilities(), classes)
        else:
            outputs.write(path, format, ids, image, classes)


def _inspect(paths: Iterable[Path]) -> dict[Path, Video]:
    """The videos, each known to be whole; notices tell what will not be kept."""
    films = {path: video.inspect(path) for path in paths}
    if films:
        notice("sound, if a video has any, is not kept")
    for path, film in films.items():
        height, width = film.size
        if height % 2 or width % 2:
            grown = f"{width + width % 2}x{height + height % 2}"
            notice(f"{path}: {width}x{height} pixels become {grown}, for encoders know even sizes alone")
    return films


def _film(
    film: Video,
    targets: Targets,
    predict: Predict,
    prepare: Callable[[np.ndarray], Tensor],
    classes: Classes,
    halt: Callable[[], None],
) -> Area:
    """Segment a video and write its files; halt, called before each frame, may raise, and then nothing is left."""
    pixels = np.zeros(len(classes), np.int64)
    count = 0
    frames = iter(video.frames(film.path))

    def read(_: int) -> tuple[np.ndarray, Tensor] | None:
        frame = next(frames, None)
        return None if frame is None else (frame, prepare(frame))

    with ExitStack() as stack:
        progress = stack.enter_context(closing(Progress(film.frames, unit="frame", every=EVERY)))
        writers = {
            format: stack.enter_context(video.open_writer(path, film.rate, film.size))
            for format, path in targets.items()
        }

        def write(frame: np.ndarray, ids: np.ndarray) -> None:
            for format, append in writers.items():
                append(outputs.draw(format, ids, frame, classes))

        # before what has to be written is closed, all is written
        submit = stack.enter_context(background_writer())
        read_ahead = stack.enter_context(closing(prefetch(read, itertools.count())))
        for count, (frame, input_1CHW) in enumerate(iter(read_ahead.__next__, None), start=1):
            halt()
            ids = predict(input_1CHW)
            pixels += np.bincount(ids.ravel(), minlength=len(classes))
            submit(write, frame, ids)
            progress.show(count, "segmented")
        if count != film.frames:
            raise InputError(f"video {film.path}", "changed while it was read", "run again when it stays as it is")
    return Area(film.path, film.size, count, tuple(pixels.tolist()))


def _stopped(number: int, done: int, total: int, overwrite: bool) -> Interrupted:
    why = f"stopped by {signal.Signals(number).name} after {done} of {total}, each of them whole"
    fix = "run the same again" if overwrite else "run the same with --continue for the others"
    return Interrupted("predict", why, fix, number)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of ending in the middle of a file; a second one ends the process as usual."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _: object) -> None:
        asked.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    # other threads may not, and no signal reaches them
    if threading.current_thread() is threading.main_thread():
        before |= {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        restore()
