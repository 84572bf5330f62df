"""Segment photographs and videos: files, folders, globs and lists to masks."""

import itertools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccnet_cli import files
from ccnet_cli.errors import InputError, Interrupted, notice
from ccnet_cli.inference.artifact import is_onnx, open_artifact
from ccnet_cli.inference.runtime import Runtime
from ccnet_cli.inference.scores import Scores
from ccnet_cli.inference.segmenter import Segmenter
from ccnet_cli.inference.views import Views
from ccnet_cli.media import images, outputs, sources, video
from ccnet_cli.media.background import background_writer, prefetch
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.video import Video
from ccnet_cli.progress import Progress
from ccnet_cli.weights.find import find_artifact

# images, or frames, between two lines of progress where there is no terminal
PROGRESS_IMAGES = 20
# formats whose PNGs hold train ids
ID_FORMATS = ("color", "train-id")
NPZ = "npz"

# the file of each format
Targets = dict[str, Path]


@dataclass(frozen=True)
class PredictRequest:
    """What to segment, with which checkpoint, and what to write.

    sources are names of images, videos, folders or globs, see sources.find; a first one that ends in .onnx is the
    checkpoint. output ends in .png for one image and in .mp4 or .webm for one video, else it is a folder that mirrors
    the sources' names. probabilities writes those of the classes beside each mask, legend a picture of their colours.
    preset (a name or file) replaces the one that the checkpoint holds or suggests, overrides ("key=value") its keys.
    skip_complete leaves out sources whose outputs are complete; with areas these are read from the masks, or the source
    is segmented again where the masks do not hold them. strict refuses folders with hidden or empty files.
    """

    sources: tuple[str, ...]
    output: Path
    checkpoint: Path | None = None
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    runtime: Runtime = field(default_factory=Runtime)
    formats: tuple[str, ...] = ("color",)
    probabilities: bool = False
    legend: Path | None = None
    areas: bool = False
    overwrite: bool = False
    skip_complete: bool = False
    strict: bool = False


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
        """Plain types, fit for JSON; a class's share is the fraction of the source's pixels."""
        return {"checkpoint": str(self.checkpoint), "sources": [self._source(area) for area in self.areas]}

    def _source(self, area: Area) -> dict[str, Any]:
        height, width = area.size
        total = area.frames * height * width
        counts = zip(self.classes.names, area.pixels, strict=True)
        classes = {name: {"pixels": count, "share": count / total} for name, count in counts}
        return {"source": str(area.source), "width": width, "height": height, "frames": area.frames, "classes": classes}


def predict(request: PredictRequest) -> Prediction:
    """Segment every image and video that the sources name.

    InputError before the first image where names collide, files exist already or a video is damaged. After a signal the
    image in progress is finished, the video in progress given up, and Interrupted raised.
    """
    request = _check(request)
    found = sources.find(request.sources, request.output, request.strict)
    plan = plan_outputs(found, request.output, request.formats, request.probabilities)
    folders = {path.parent for path in _check_outputs(request, plan)}
    path = find_artifact(request.checkpoint)
    runtime = request.runtime.resolve(path)
    for folder in folders:
        files.sweep(folder)
    skipped = {source for source, targets in plan.items() if request.skip_complete and _is_done(targets, request.areas)}
    if request.skip_complete:
        notice(f"{len(skipped)} of {len(plan)} are there already and stay as they are")
    videos = _inspect(source for source in plan if source not in skipped and sources.is_video(source))

    with _record_signals() as signals:
        artifact = open_artifact(path, request.preset, request.overrides)
        count = sum(videos[source].frames if source in videos else 1 for source in plan if source not in skipped)
        network = runtime.prepare(artifact, count, len(skipped))
        views = Views.of(artifact.preset.eval, artifact.classes)
        segmenter = Segmenter(network, views, torch.device(runtime.device))
        job = _Job(plan, skipped, videos, segmenter, artifact.classes, signals)
        job.run(again="run the same again" if request.overwrite else "run the same with --continue for the others")
    result = Prediction(path, artifact.classes, [path for targets in job.todo.values() for path in targets.values()])
    if request.areas:
        job.areas |= {source: _read_area(source, plan[source], artifact.classes) for source in skipped}
        result.areas += [job.areas[source] for source in plan]
    if request.legend is not None:
        images.write_image(request.legend, images.draw_legend(artifact.classes.names, artifact.classes.palette))
        result.files.append(request.legend)
    return result


def _check(request: PredictRequest) -> PredictRequest:
    """The request with its checkpoint and its formats; InputError where options contradict each other."""
    if request.skip_complete and request.overwrite:
        raise InputError("--continue", "--overwrite is given too", "give one of them")
    request = replace(request, formats=outputs.check_formats(request.formats))
    if not (request.sources and is_onnx(Path(request.sources[0]))):
        return request
    first, *others = request.sources
    if request.checkpoint is not None:
        raise InputError(f"checkpoint {request.checkpoint}", f"{first} is given too", "give one of them")
    return replace(request, checkpoint=Path(first), sources=tuple(others))


def _check_outputs(request: PredictRequest, plan: Mapping[Path, Targets]) -> list[Path]:
    """All files that will be written; InputError for one that must not be."""
    written = [path for targets in plan.values() for path in targets.values()]
    legend = request.legend
    if legend is not None:
        if legend in written or legend.suffix.lower() not in images.IMAGE_SUFFIXES:
            why = "is also the name of a mask" if legend in written else "has no image suffix"
            raise InputError(f"legend {legend}", why, "give it another name, such as legend.png")
        written.append(legend)
    outputs.refuse_inputs(plan, written)
    outputs.refuse_existing(written, request.overwrite or request.skip_complete)
    return written


def plan_outputs(
    found: dict[Path, str], output: Path, formats: Sequence[str], npz: bool = False
) -> dict[Path, Targets]:
    """For each source the file of each format; InputError where two would be written to one file."""
    for source in filter(sources.is_video, found):
        for format in [*formats, *[NPZ] * npz]:
            if format not in outputs.VIDEO_FORMATS:
                fix = f"use {' or '.join(outputs.VIDEO_FORMATS)}, or leave it out"
                raise InputError(f"video {source}", f"cannot be written as {format}", fix)
    if output.suffix.lower() in sources.SUFFIXES and not output.is_dir():
        return _plan_file(found, output, formats, npz)
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


def _plan_file(found: dict[Path, str], output: Path, formats: Sequence[str], npz: bool) -> dict[Path, Targets]:
    """The plan of one source whose output is a file."""
    suffix = output.suffix.lower()
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


def _is_done(targets: Targets, areas: bool) -> bool:
    """Whether a source's files are complete and, if areas are asked for, hold them."""
    return all(outputs.is_complete(path) for path in targets.values()) and not (areas and _ids_file(targets) is None)


def _ids_file(targets: Targets) -> Path | None:
    """The file from which a source's train ids can be read."""
    return next((path for name, path in targets.items() if name in ID_FORMATS and path.suffix == ".png"), None)


def _read_area(source: Path, targets: Targets, classes: Classes) -> Area:
    """The area of a source whose masks are complete, from one that holds train ids."""
    path = _ids_file(targets)
    assert path is not None
    ids = images.read_label(path)
    if ids.max() >= len(classes):
        fix = "segment again with --overwrite"
        raise InputError(path, f"holds {ids.max()}, which is no class of this checkpoint", fix)
    return _area(source, ids, classes)


def _area(source: Path, ids: np.ndarray, classes: Classes) -> Area:
    counts = np.bincount(ids.ravel(), minlength=len(classes))
    return Area(source, (ids.shape[0], ids.shape[1]), 1, tuple(counts.tolist()))


def _inspect(paths: Iterable[Path]) -> dict[Path, Video]:
    """The videos, each known to be complete; notices say what their masks will lack."""
    videos = {path: video.inspect(path) for path in paths}
    if videos:
        notice("sound, if a video has any, is not kept")
    for path, each in videos.items():
        height, width = each.size
        if height % 2 or width % 2:
            grown = f"{width + width % 2}x{height + height % 2}"
            notice(f"{path}: {width}x{height} pixels become {grown}, as encoders need even sizes")
    return videos


@dataclass
class _Job:
    """The segmentation of a plan's sources, but for the skipped ones, and the areas measured so far."""

    plan: dict[Path, Targets]
    skipped: set[Path]
    videos: dict[Path, Video]
    segmenter: Segmenter
    classes: Classes
    signals: list[int]
    areas: dict[Path, Area] = field(default_factory=dict)

    @property
    def todo(self) -> dict[Path, Targets]:
        """The sources to segment, and their files."""
        return {source: targets for source, targets in self.plan.items() if source not in self.skipped}

    def run(self, again: str) -> None:
        """Segment the sources in order; Interrupted, which says how to run again, after a signal."""
        done, total = len(self.skipped), len(self.plan)

        def stop_after_signal() -> None:
            if self.signals:
                number = self.signals[0]
                why = f"stopped by {signal.Signals(number).name} after {done} of {total}, each of them whole"
                raise Interrupted("predict", why, again, number)

        progress = Progress(total, done, "file" if self.videos else "image", PROGRESS_IMAGES)
        photographs = prefetch(self._read, [source for source in self.todo if source not in self.videos])
        with closing(progress), closing(photographs), background_writer() as submit:
            for source, targets in self.todo.items():
                stop_after_signal()
                if source in self.videos:
                    # two bars do not fit on a terminal
                    progress.close()
                    self.areas[source] = self._segment_video(self.videos[source], targets, stop_after_signal)
                else:
                    image, input_1CHW = next(photographs)
                    scores = self.segmenter.score(input_1CHW)
                    submit(self._write, source, image, self.segmenter.predict(scores), scores)
                done += 1
                progress.show(done, "segmented")

    def _read(self, source: Path) -> tuple[np.ndarray, Tensor]:
        image = images.read_image(source, exif=True)
        return image, self.segmenter.load(image)

    def _write(self, source: Path, image: np.ndarray, ids: np.ndarray, scores: Scores) -> None:
        for format, path in self.plan[source].items():
            if format == NPZ:
                outputs.write_probabilities(path, scores.probabilities(), self.classes)
            else:
                outputs.write(path, format, ids, image, self.classes)
        self.areas[source] = _area(source, ids, self.classes)

    def _segment_video(self, film: Video, targets: Targets, stop_after_signal: Callable[[], None]) -> Area:
        """Write a video's files; nothing is left of them after an error or a signal."""
        pixels = np.zeros(len(self.classes), np.int64)
        count = 0
        frames = iter(video.frames(film.path))

        def read(_: int) -> tuple[np.ndarray, Tensor] | None:
            frame = next(frames, None)
            return None if frame is None else (frame, self.segmenter.load(frame))

        with ExitStack() as stack:
            progress = stack.enter_context(closing(Progress(film.frames, unit="frame", every=PROGRESS_IMAGES)))
            writers = {
                format: stack.enter_context(video.open_writer(path, film.rate, film.size))
                for format, path in targets.items()
            }

            def write(frame: np.ndarray, ids: np.ndarray) -> None:
                for format, append in writers.items():
                    append(outputs.draw(format, ids, frame, self.classes))

            # leaves before the writers close, when all frames are written
            submit = stack.enter_context(background_writer())
            loaded = stack.enter_context(closing(prefetch(read, itertools.count())))
            for count, (frame, input_1CHW) in enumerate(iter(loaded.__next__, None), start=1):
                stop_after_signal()
                ids = self.segmenter.predict(self.segmenter.score(input_1CHW))
                pixels += np.bincount(ids.ravel(), minlength=len(self.classes))
                submit(write, frame, ids)
                progress.show(count, "segmented")
            if count != film.frames:
                raise InputError(f"video {film.path}", "changed while it was read", "run again when it stays as it is")
        return Area(film.path, film.size, count, tuple(pixels.tolist()))


@contextmanager
def _record_signals() -> Iterator[list[int]]:
    """Record SIGINT and SIGTERM instead of ending in the middle of a file; a second one ends the process as usual."""
    received: list[int] = []
    handlers: dict[int, Any] = {}

    def record(number: int, _: object) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    # other threads may not set handlers, and no signal reaches them
    if threading.current_thread() is threading.main_thread():
        handlers |= {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        restore()
