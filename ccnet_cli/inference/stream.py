"""Segment a stream of images and videos into files: read ahead, score, write behind; and collect what came of each."""

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from ccnet_cli import files
from ccnet_cli.errors import CCNetError, EnvironmentFailure, InputError, notice
from ccnet_cli.inference.bands import OutOfMemory, Region
from ccnet_cli.inference.large import segment_raster
from ccnet_cli.inference.scores import Scores
from ccnet_cli.inference.segmenter import Segmenter
from ccnet_cli.media import images, outputs, rasters, sources, video
from ccnet_cli.media.background import background_writer, prefetch
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.layout import NPZ, Targets
from ccnet_cli.media.video import Video
from ccnet_cli.progress import Progress

# formats whose PNGs hold train ids
ID_FORMATS = ("color", "train-id")


@dataclass(frozen=True)
class Task:
    """A source, by its index in the stream, and its files; again if a process that is gone may have written them."""

    index: int
    source: Path
    targets: Targets
    again: bool = False


@dataclass(frozen=True)
class Area:
    """How many pixels each class has in an image of size (H, W), or in all frames of a video."""

    source: Path
    size: tuple[int, int]
    frames: int
    pixels: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a source: the files written, none if they were complete already; the area asked for; or an error."""

    index: int
    source: Path
    files: tuple[Path, ...] = ()
    area: Area | None = None
    error: CCNetError | None = None


@dataclass(frozen=True)
class Keep:
    """What becomes of outputs that exist: kept where complete, replaced, or else the source is an error.

    Where areas are wanted, complete outputs are kept if these can be read from them. Of damaged images, what is left is
    read with tolerate_damage.
    """

    complete: bool = False
    overwrite: bool = False
    areas: bool = False
    tolerate_damage: bool = False


@dataclass(frozen=True)
class _Loaded:
    """A task with its image and the network's input, or with its video; or its outcome, and nothing is to be done.

    A large image comes without either, and is read when its turn comes.
    """

    task: Task
    image: np.ndarray | None = None
    input: Tensor | None = None
    film: Video | None = None
    outcome: Outcome | None = None


class _Stopped(Exception):
    """A signal came while a video was segmented."""


@dataclass(frozen=True)
class StreamSegmenter:
    """Segments tasks into files, until stop_signal gives a signal's number: then what is in progress is finished.

    report gets each outcome once its files are written, perhaps on another thread. frame_progress shows a video's.
    working, by a task's index, is entered while the task is read, scored or written, not while it waits for that.
    """

    segmenter: Segmenter
    classes: Classes
    keep: Keep
    report: Callable[[Outcome], None]
    stop_signal: Callable[[], int] = int
    frame_progress: Callable[[int], Progress] | None = None
    working: Callable[[int], AbstractContextManager[object]] = nullcontext

    def run(self, tasks: Iterable[Task | None], ahead: int = 2) -> None:
        """Segment tasks in order, reading up to `ahead` of them ahead, see prefetch.

        A video, and a TIFF read by windows, in progress is given up at a signal.
        """
        with closing(prefetch(self._load, tasks, ahead)) as loaded, background_writer() as submit:
            for item in loaded:
                if self.stop_signal():
                    return
                task = item.task
                if item.outcome is not None:
                    self.report(item.outcome)
                elif item.film is not None:
                    self._attempt(task, self._segment_video, item.film)
                elif rasters.is_raster(next(iter(task.targets.values()))):
                    self._attempt(task, self._segment_raster)
                else:
                    try:
                        with self.working(task.index):
                            image, ids, scores = self._segment(item)
                    except (InputError, EnvironmentFailure) as error:
                        # too large for the memory, where another may not be
                        self.report(Outcome(task.index, task.source, error=error))
                        continue
                    submit(self._attempt, task, self._write, image, ids, scores)

    def _load(self, task: Task) -> _Loaded:
        with self.working(task.index):
            return self._read(task)

    def _read(self, task: Task) -> _Loaded:
        try:
            outcome = self._look(task)
            if outcome is not None:
                return _Loaded(task, outcome=outcome)
            if rasters.is_raster(next(iter(task.targets.values()))):
                return _Loaded(task)
            if sources.is_video(task.source):
                return _Loaded(task, film=_inspect(task.source))
            image = self._read_image(task)
            if self._sees_bands(task, image):
                return _Loaded(task)
            return _Loaded(task, image, self.segmenter.load(image))
        except (InputError, EnvironmentFailure) as error:
            return _Loaded(task, outcome=Outcome(task.index, task.source, error=error))

    def _read_image(self, task: Task) -> np.ndarray:
        return images.read_image(task.source, exif=True, tolerate=self.keep.tolerate_damage)

    def _sees_bands(self, task: Task, image: np.ndarray) -> bool:
        return NPZ not in task.targets and self.segmenter.sees_bands((image.shape[0], image.shape[1]))

    def _segment(self, item: _Loaded) -> tuple[np.ndarray, np.ndarray, Scores | None]:
        """The image, the class of each pixel and, unless it is seen in bands, the scores."""
        if item.image is not None and item.input is not None:
            scores = self.segmenter.score(item.input)
            return item.image, self.segmenter.predict(scores), scores
        image = self._read_image(item.task)
        size = (image.shape[0], image.shape[1])
        ids, top = np.empty(size, np.uint8), 0
        for region, part in self.segmenter.predict_bands(size, lambda top, end: Region(image[top:end])):
            ids[top : top + len(part)] = part
            top += len(region.image)
        return image, ids, None

    def _look(self, task: Task) -> Outcome | None:
        """The outcome of a task whose files are complete; InputError for files that must stay as they are."""
        if self.keep.complete or task.again:
            if is_done(task.targets, self.keep.areas):
                area = read_area(task, self.classes) if self.keep.areas else None
                return Outcome(task.index, task.source, area=area)
        elif not self.keep.overwrite:
            files.refuse_outputs(task.targets.values(), overwrite=False)
        return None

    def _attempt(self, task: Task, work: Callable[..., Area], *arguments: object) -> None:
        """Report what comes of a task's work; a name that cannot be written is the task's own failure."""
        try:
            with self.working(task.index):
                area = work(task, *arguments)
            written = tuple(task.targets.values())
            outcome = Outcome(task.index, task.source, written, area if self.keep.areas else None)
        except (InputError, OutOfMemory) as error:
            outcome = Outcome(task.index, task.source, error=error)
        except _Stopped:
            return
        self.report(outcome)

    def _write(self, task: Task, image: np.ndarray, ids: np.ndarray, scores: Scores | None) -> Area:
        for format, path in task.targets.items():
            if format == NPZ:
                assert scores is not None
                outputs.write_probabilities(path, scores.probabilities(), self.classes)
            else:
                outputs.write(path, format, ids, image, self.classes)
        return _area(task.source, ids, self.classes)

    def _segment_raster(self, task: Task) -> Area:
        """Write the files of a TIFF that is read by windows; nothing is left of them after an error or a signal."""

        def after_rows(_: int) -> None:
            if self.stop_signal():
                raise _Stopped

        size, pixels = segment_raster(self.segmenter, self.classes, task.source, task.targets, after_rows)
        return Area(task.source, size, 1, tuple(pixels.tolist()))

    def _segment_video(self, task: Task, film: Video) -> Area:
        """Write a video's files; nothing is left of them after an error or a signal."""
        pixels = np.zeros(len(self.classes), np.int64)
        count = 0
        frames = iter(video.frames(film.path))

        def read(_: int) -> tuple[np.ndarray, Tensor] | None:
            frame = next(frames, None)
            return None if frame is None else (frame, self.segmenter.load(frame))

        with ExitStack() as stack:
            progress = self.frame_progress(film.frames) if self.frame_progress else None
            if progress is not None:
                stack.enter_context(closing(progress))
            writers = {
                format: stack.enter_context(video.open_writer(path, film.rate, film.size, film))
                for format, path in task.targets.items()
            }

            def write(frame: np.ndarray, ids: np.ndarray) -> None:
                for format, append in writers.items():
                    append(outputs.draw(format, ids, frame, self.classes))

            # leaves before the writers close, when all frames are written
            submit = stack.enter_context(background_writer())
            loaded = stack.enter_context(closing(prefetch(read, itertools.count())))
            scored = self.segmenter.score_video(iter(loaded.__next__, None))
            for count, (frame, scores) in enumerate(scored, start=1):
                if self.stop_signal():
                    raise _Stopped
                ids = self.segmenter.predict(scores)
                pixels += np.bincount(ids.ravel(), minlength=len(self.classes))
                submit(write, frame, ids)
                if progress is not None:
                    progress.show(count, "segmented")
            if count != film.frames:
                raise InputError(f"video {film.path}", "changed while it was read", "run again when it stays as it is")
        return Area(film.path, film.size, count, tuple(pixels.tolist()))


@dataclass
class Collector:
    """Puts outcomes, from any thread, into the order of the stream: deliver gets each once all before it are there.

    progress counts them as they come. Where strict, the first error is raised.
    """

    deliver: Callable[[Outcome], None]
    progress: Progress
    strict: bool = False
    done: int = 0
    next: int = 0
    waiting: list[tuple[int, Outcome]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: Outcome) -> None:
        """Add one outcome."""
        if self.strict and outcome.error is not None:
            raise outcome.error
        with self.lock:
            if outcome.error is None:
                self.done += 1
                self.progress.show(self.done, "segmented")
            heapq.heappush(self.waiting, (outcome.index, outcome))
            while self.waiting and self.waiting[0][0] == self.next:
                self.next += 1
                self.deliver(heapq.heappop(self.waiting)[1])


def is_done(targets: Targets, areas: bool) -> bool:
    """Whether a source's files are complete and, if areas are asked for, hold them."""
    return all(outputs.is_complete(path) for path in targets.values()) and not (areas and _ids_file(targets) is None)


def _ids_file(targets: Targets) -> Path | None:
    """The file from which a source's train ids can be read."""
    return next((path for name, path in targets.items() if name in ID_FORMATS and path.suffix == ".png"), None)


def read_area(task: Task, classes: Classes) -> Area:
    """The area of a source whose masks are complete, from one that holds train ids."""
    path = _ids_file(task.targets)
    assert path is not None
    ids = images.read_label(path)
    if ids.max() >= len(classes):
        fix = "segment again with --overwrite"
        raise InputError(path, f"holds {ids.max()}, which is no class of this checkpoint", fix)
    return _area(task.source, ids, classes)


def _area(source: Path, ids: np.ndarray, classes: Classes) -> Area:
    counts = np.bincount(ids.ravel(), minlength=len(classes))
    return Area(source, (ids.shape[0], ids.shape[1]), 1, tuple(counts.tolist()))


def _inspect(path: Path) -> Video:
    """A complete video; a notice says what its masks will lack."""
    film = video.inspect(path)
    height, width = film.size
    if height % 2 or width % 2:
        grown = f"{width + width % 2}x{height + height % 2}"
        notice(f"{path}: {width}x{height} pixels become {grown}, as encoders need even sizes")
    return film
