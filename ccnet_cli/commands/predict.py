"""Segment photographs and videos: files, folders, globs and lists to masks, by one process or by many."""

import itertools
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ccnet_cli import config, devices, files
from ccnet_cli.children import Child
from ccnet_cli.commands import live
from ccnet_cli.errors import CCNetError, EnvironmentFailure, InputError, Interrupted, notice
from ccnet_cli.inference import sharing
from ccnet_cli.inference.artifact import Artifact, Network, default_device, is_program
from ccnet_cli.inference.dispatch import TASK_SECONDS, read_launch_alone
from ccnet_cli.inference.runtime import Runtime
from ccnet_cli.inference.sharing import Recipe
from ccnet_cli.inference.stream import Area, Collector, Keep, Outcome, Task
from ccnet_cli.media import films, images, outputs, sources, streams, video
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.layout import Layout, Targets
from ccnet_cli.media.sources import Collision, Listing, Source
from ccnet_cli.media.video import declared_frames
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import share_store
from ccnet_cli.progress import Progress
from ccnet_cli.weights.find import find_artifact
from ccnet_cli.weights.pairs import list_files

# sources that are checked before the first is segmented; the network is made for as many images at most
WINDOW = 10_000
# sources that may be done before the slowest one is: their outcomes wait for its, to be in order
MAX_AHEAD = 8192
# sources without a file after which what has been read is segmented, however long the list of such goes on
MAX_ERRORS_AT_ONCE = 64
# errors that are shown at the end
MAX_SHOWN = 20
# folders in which the temporaries of dead processes are looked for
MAX_SWEPT = 1 << 16


@dataclass(frozen=True)
class PredictRequest:
    """What to segment, with which checkpoint, and what to write.

    sources are names of images, videos, folders or globs, see sources.find; a first one that ends in .onnx or .xml is
    the checkpoint. output ends in .png for one image and in .mp4 or .webm for one video, else it is a folder that
    mirrors the sources' names. probabilities writes those of the classes beside each mask, legend a picture of their
    colours. preset (a name or file) replaces the one that the checkpoint holds or suggests, overrides ("key=value") its
    keys.
    skip_complete leaves out sources whose outputs are complete; with areas these are read from the masks, or the source
    is segmented again where the masks do not hold them. strict refuses folders with hidden or empty files, and stops at
    the first source that cannot be segmented. shard (k, n) takes those sources of n parts that part k from 1 on has.
    fan_out, tiff: see Layout. seconds are for streams. tolerate_damage reads what is left of damaged images. Of several
    processes, one that takes more seconds than timeout for an image is killed. others are files that the caller is
    going to write.
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
    tolerate_damage: bool = False
    shard: tuple[int, int] = (1, 1)
    fan_out: int = 0
    tiff: bool = False
    seconds: float | None = None
    gpus: int | None = None
    processes: int = 1
    timeout: float = TASK_SECONDS
    others: tuple[Path, ...] = ()

    def recipe(self, checkpoint: Path, runtime: Runtime, images: int = 1) -> Recipe:
        """What a process needs of it, with the checkpoint's file and the runtime that auto stands for."""
        keep = Keep(self.skip_complete, self.overwrite, self.areas, self.tolerate_damage)
        return Recipe(checkpoint, self.preset, self.overrides, runtime, keep, images, self.timeout, self.strict)


@dataclass
class Prediction:
    """How many sources there were, and how many could not be segmented; errors holds the first of these."""

    checkpoint: Path
    classes: Classes
    sources: int = 0
    kept: int = 0
    failed: int = 0
    errors: list[CCNetError] = field(default_factory=list)

    def area(self, area: Area) -> dict[str, Any]:
        """An area in plain types, fit for JSON; a class's share is the fraction of the source's pixels."""
        height, width = area.size
        total = area.frames * height * width
        counts = zip(self.classes.names, area.pixels, strict=True)
        classes = {name: {"pixels": count, "share": count / total} for name, count in counts}
        return {"source": str(area.source), "width": width, "height": height, "frames": area.frames, "classes": classes}

    def check(self) -> None:
        """Raise an error that shows why sources were not segmented, if any were not."""
        if not self.failed:
            return
        if self.sources == 1:
            raise self.errors[0]
        machine = next((error for error in self.errors if error.exit_code == EnvironmentFailure.exit_code), None)
        kind = EnvironmentFailure if machine else InputError
        why = f"{self.failed} of {self.sources} sources were not segmented, the others were"
        error = kind("predict", why, "see the next lines, and run the same with --continue")
        for each in self.errors:
            error.add_note(str(each))
        if self.failed > len(self.errors):
            error.add_note(f"and {self.failed - len(self.errors)} more")
        raise error

    def count(self, outcome: Outcome) -> None:
        """Count one source; an error of the machine is never left out of those shown."""
        self.sources += 1
        self.kept += outcome.error is None and not outcome.files
        if outcome.error is not None:
            self.failed += 1
            if len(self.errors) < MAX_SHOWN:
                self.errors.append(outcome.error)
            elif outcome.error.exit_code == EnvironmentFailure.exit_code:
                self.errors[-1] = outcome.error


# gets the outcome of each source in order, and what is known of all so far
OnOutcome = Callable[[Outcome, Prediction], None]


def predict(request: PredictRequest, on_outcome: OnOutcome = lambda *_: None) -> Prediction | None:
    """Segment every image and video that the sources name; None on all processes of torchrun or SLURM but the first.

    InputError before the first image where, among the first WINDOW sources, outputs collide or exist. A later source of
    that kind, and one that cannot be read, is counted, see Prediction.check. After a signal the image in progress is
    finished, the video in progress given up, and Interrupted raised.
    """
    launch = read_launch_alone(request.gpus, request.processes)
    request = _check(request)
    if any(map(streams.is_address, request.sources)):
        return _predict_live(request, on_outcome)
    if launch is None:
        count = request.gpus or request.processes
        with supervisor.fork(0 if request.gpus or count == 1 else count) as forked:
            return _run(request, on_outcome, lambda stream, collector: stream.segment(collector, count, forked))
    path = find_artifact(request.checkpoint)
    with share_store(devices.device(default_device(request.runtime.device, path))) as group:
        if group.attempt and not request.overwrite:
            # an earlier attempt has written files
            request = replace(request, skip_complete=True)
        if group.rank > 0:
            sharing.follow_launch(request.recipe(path, request.runtime), group)
            return None

        def lead(stream: _Stream, collector: Collector) -> int:
            recipe, artifact, tasks = stream.recipe, stream.artifacts.pop(), stream.tasks(collector)
            return sharing.lead_launch(recipe, artifact, tasks, collector, group)

        try:
            return _run(request, on_outcome, lead)
        except InputError as error:
            sharing.refuse_launch(error, group)
            raise


def _predict_live(request: PredictRequest, on_outcome: OnOutcome) -> Prediction:
    live.check(request)
    _announce_codecs(request.output)
    path = find_artifact(request.checkpoint)
    recipe = request.recipe(path, request.runtime.resolve(path), WINDOW)
    artifact = recipe.open()
    prediction = Prediction(path, artifact.classes)
    outcome, number = live.record(request, recipe, artifact)
    prediction.count(outcome)
    on_outcome(outcome, prediction)
    if number:
        raise live.interrupted(request, number)
    return prediction


def _run(request: PredictRequest, on_outcome: OnOutcome, segment: Callable[["_Stream", Collector], int]) -> Prediction:
    stream = _open_stream(request)
    prediction = Prediction(stream.recipe.checkpoint, stream.classes)

    def deliver(outcome: Outcome) -> None:
        prediction.count(outcome)
        on_outcome(outcome, prediction)

    has_videos = any(sources.is_video(source.path) for source in stream.first)
    progress = Progress(stream.total, 0, "file" if has_videos else "image", sharing.PROGRESS_IMAGES)
    collector = Collector(deliver, progress, request.strict)
    with closing(progress), closing(stream.listing) if stream.listing else nullcontext():
        number = segment(stream, collector)
    if number and collector.next != stream.total:
        total = "more" if stream.total is None else stream.total
        why = f"stopped by {signal.Signals(number).name} after {collector.done} of {total}, each of them whole"
        again = "run the same again" if request.overwrite else "run the same with --continue for the others"
        raise Interrupted("predict", why, again, number)
    if request.skip_complete:
        notice(f"{prediction.kept} of {prediction.sources} are there already and stay as they are")
    if request.legend is not None:
        classes = prediction.classes
        images.write_image(request.legend, images.draw_legend(classes.names, classes.palette))
    return prediction


def _check(request: PredictRequest) -> PredictRequest:
    """The request with its checkpoint and its formats; InputError where options contradict each other."""
    if request.skip_complete and request.overwrite:
        raise InputError("--continue", "--overwrite is given too", "give one of them")
    request = replace(request, formats=outputs.check_formats(request.formats))
    if not (request.sources and is_program(Path(request.sources[0]))):
        return request
    first, *others = request.sources
    if request.checkpoint is not None:
        raise InputError(f"checkpoint {request.checkpoint}", f"{first} is given too", "give one of them")
    return replace(request, checkpoint=Path(first), sources=tuple(others))


@dataclass
class _Stream:
    """The sources of a request, of which the first are checked, and what they are segmented with.

    The recipe is the same for every shard; total counts this shard's sources, once it is known. listing holds all
    sources where a file that exists may be replaced, and not all are checked. artifacts holds one, to be taken: its
    weights are not needed beside those of the network that is made of them.
    """

    request: PredictRequest
    layout: Layout
    first: list[Source]
    rest: Iterator[Source]
    total: int | None
    recipe: Recipe
    classes: Classes
    artifacts: list[Artifact[Network]]
    listing: Listing | None = None

    def segment(self, collector: Collector, processes: int, forked: list[Child]) -> int:
        """Segment all in this process, or in others; the number of the signal that stopped it, or 0."""
        if processes == 1 and not self.request.gpus:
            return sharing.segment_here(self.recipe, self.artifacts.pop(), self.tasks(collector), collector)
        return sharing.segment_in_processes(self.recipe, self.tasks(collector), collector, processes, forked)

    def tasks(self, collector: Collector) -> Iterator[Task | None]:
        """The tasks of this shard in order; None where there is none at present."""
        swept: set[Path] = set()
        index = bad = 0
        for path in (*self.request.others, *filter(None, [self.request.legend])):
            if not files.is_stream(path):
                files.sweep(path.parent)
        for source in itertools.chain(self.first, map(self._refuse_beside, self.rest)):
            if not _is_in_shard(source, self.request.shard):
                continue
            while index - collector.next >= MAX_AHEAD:
                time.sleep(0.01)
                yield None
            targets = self._targets(source)
            if isinstance(targets, CCNetError):
                collector.add(Outcome(index, source.path, error=targets))
                bad += 1
                if bad % MAX_ERRORS_AT_ONCE == 0:
                    yield None
            else:
                for folder in {path.parent for path in targets.values()} - swept:
                    if len(swept) < MAX_SWEPT:
                        files.sweep(folder)
                        swept.add(folder)
                yield Task(index, source.path, targets)
            index += 1
        self.total = index

    def _refuse_beside(self, source: Source) -> Source:
        """The source, or its error where its mask could replace an image that is not yet known."""
        if self.request.skip_complete:
            targets = self._targets(source)
            folder = source.path.parent.resolve()
            if not isinstance(targets, CCNetError) and any(
                path.parent.resolve() == folder for path in targets.values()
            ):
                why = f"lies in the folder of the output, among more than {WINDOW} others that it could replace"
                return source._replace(error=InputError(source.path, why, "name another folder for the output"))
        return source

    def _targets(self, source: Source) -> Targets | CCNetError:
        if source.error is not None:
            return source.error
        try:
            targets = self.layout.targets(source.path, source.name)
            _refuse_outputs(self.request, targets.values(), [source.path, self.recipe.checkpoint])
            if self.listing is not None:
                for path in filter(self.listing.holds, targets.values()):
                    why = "is a source of this command too, however far down the list"
                    raise InputError(f"output {path}", why, "name another folder for the output")
            return targets
        except InputError as error:
            return error


def _open_stream(request: PredictRequest) -> _Stream:
    """The sources and the checkpoint; InputError for what can be seen to be wrong before the work begins."""
    layout = Layout(request.output, request.formats, request.probabilities, request.fan_out, request.tiff)
    stream = sources.find(request.sources, request.output, request.strict)
    first = list(itertools.islice(stream, WINDOW))
    is_all = len(first) < WINDOW
    own = [source for source in first if _is_in_shard(source, request.shard)]
    written = _check_first(request, layout, own)
    count = 0
    for source in first:
        count += declared_frames(source.path) if sources.is_video(source.path) and not source.error else 1
        if count >= WINDOW:
            break
    if any(sources.is_video(source.path) for source in own):
        _announce_codecs(request.output)
    path = find_artifact(request.checkpoint)
    _refuse_outputs(request, written, list_files(path))
    device = devices.local_device(request.gpus, request.processes, default_device(request.runtime.device, path))
    name = device.type if request.gpus else str(device)
    pictures = (source.path for source in first if source.error is None and not sources.is_video(source.path))
    runtime = replace(request.runtime, device=name).calibrate(pictures)
    launch = devices.read_launch()
    processes = launch.local_world_size if launch else request.gpus or request.processes
    recipe = request.recipe(path, runtime.resolve(path, processes), min(count, WINDOW))
    artifact = recipe.open()
    if artifact.clip and not all(sources.is_video(source.path) for source in own):
        notice(f"the network takes clips: an image is seen as {artifact.clip.frames} equal frames, a video as itself")
    listing = Listing(first, stream) if request.overwrite and not is_all else None
    total, rest = len(own) if is_all else None, stream if listing is None else iter(listing)
    return _Stream(request, layout, first, rest, total, recipe, artifact.classes, [artifact], listing)


def _announce_codecs(output: Path) -> None:
    """Say what videos lose where they are written by OpenCV alone, or as animations."""
    kept = films.is_installed() and output.suffix.lower() not in video.ANIMATIONS
    if not kept:
        notice("sound, if a video has any, is not kept")
    if not films.is_installed() and output.suffix.lower() not in (".webm", *video.ANIMATIONS):
        notice("browsers do not play the MPEG-4 that OpenCV writes; pip install 'ccnet-cli[video]' for H.264 and sound")


def _check_first(request: PredictRequest, layout: Layout, first: list[Source]) -> list[Path]:
    """The files of the first sources; InputError where one collides with another, exists or must not be written."""
    if layout.is_file and len(first) > 1:
        fix = f"name a folder, without {request.output.suffix}"
        raise InputError(request.output, f"one file for {len(first)} images", fix)
    for source in first:
        if isinstance(source.error, Collision) or (source.error and len(first) == 1):
            raise source.error
    sound = [source for source in first if source.error is None]
    written = [path for source in sound for path in layout.targets(source.path, source.name).values()]
    legend = [] if request.legend is None else [request.legend]
    for path in legend:
        if path.suffix.lower() not in images.IMAGE_SUFFIXES and not files.is_stream(path):
            raise InputError(f"legend {path}", "has no image suffix", "give it another name, such as legend.png")
    _refuse_outputs(request, written, [source.path for source in sound])
    files.refuse_outputs([*written, *legend], overwrite=request.overwrite or request.skip_complete)
    return written


def _refuse_outputs(request: PredictRequest, written: Iterable[Path], read: Iterable[Path]) -> None:
    """InputError for a mask, the legend or another file to be written that is read, or is another one of them."""
    legend = [] if request.legend is None else [request.legend]
    inputs = [*read, request.checkpoint, None if request.preset is None else config.find(request.preset)]
    files.refuse_outputs([*written, *legend, *request.others], inputs)


def _is_in_shard(source: Source, shard: tuple[int, int]) -> bool:
    """Whether a source belongs to part k of n: by its name, so that no part needs to know the order of the others."""
    part, parts = shard
    return zlib.crc32(os.fsencode(source.name)) % parts == part - 1
