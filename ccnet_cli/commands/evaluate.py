"""Score a checkpoint on labelled images: one confusion matrix over every valid pixel."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccnet_cli import config, devices, files
from ccnet_cli.datasets import open_source
from ccnet_cli.datasets.listing import Sample
from ccnet_cli.datasets.report import warn_of_dead_labels
from ccnet_cli.datasets.source import Source, load_label
from ccnet_cli.errors import InputError, notice
from ccnet_cli.figures import charts
from ccnet_cli.figures.report import MAX_EXAMPLES, WorstImages, merge_worst, write_evaluation
from ccnet_cli.inference.artifact import Artifact, Network, default_device, open_artifact
from ccnet_cli.inference.details import Details, find_hardest
from ccnet_cli.inference.dispatch import read_launch_alone
from ccnet_cli.inference.metrics import Calibration, Confusion
from ccnet_cli.inference.runtime import CALIBRATION_IMAGES, Runtime
from ccnet_cli.inference.scoring import OnImage, score_network
from ccnet_cli.inference.views import Views
from ccnet_cli.media import images, outputs
from ccnet_cli.media.background import background_writer
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import Group, Worker, join_group
from ccnet_cli.training.record import environment
from ccnet_cli.weights.find import find_artifact
from ccnet_cli.weights.pairs import list_files

# images between two lines of progress
PROGRESS_IMAGES = 20
# splits that are there to be learnt from and scored: a missing label is a mistake
LABELLED = ("train", "val")


@dataclass(frozen=True)
class EvaluateRequest:
    """What to score, on which images, and what to write.

    checkpoint may be anybody's (see find_artifact); preset (a name or file) replaces the one that it holds or suggests,
    overrides ("key=value") its keys. limit scores the first images only. confusion draws the matrix as a PNG, report
    writes all figures as an HTML page; save writes one PNG per image and format into a folder, where existing files are
    refused unless overwrite.
    tolerate_damage reads what is left of damaged images, strict refuses a runtime's file that others have changed.
    others are files that the caller is going to write. per_image
    asks for the figures of each image, boundary for those of outlines, calibration_error for whether the probabilities
    are right. tf32 lets products of float32 be rounded, on GPUs with TF32.
    """

    checkpoint: Path | None = None
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    runtime: Runtime = field(default_factory=Runtime)
    gpus: int | None = None
    processes: int = 1
    split: str = "val"
    limit: int | None = None
    confusion: Path | None = None
    report: Path | None = None
    save: Path | None = None
    formats: tuple[str, ...] = ("color",)
    overwrite: bool = False
    tolerate_damage: bool = False
    strict: bool = False
    others: tuple[Path, ...] = ()
    per_image: bool = False
    boundary: bool = False
    calibration_error: bool = False
    tf32: bool = False


@dataclass(frozen=True)
class Result:
    """The figures of an evaluation: fractions in 0..1, None where there was nothing to measure."""

    miou: float | None
    pixel_accuracy: float | None
    mean_accuracy: float | None
    classes: dict[str, float | None]
    images: int
    pixels: int
    checkpoint: str
    settings: dict[str, Any]
    # by class: dice (F1), precision, recall and, where it was asked for, boundary_iou
    measures: dict[str, dict[str, float | None]] = field(default_factory=dict)
    # a row for each image, where they were asked for
    per_image: list[dict[str, Any]] = field(default_factory=list)
    # expected calibration error, where it was asked for
    calibration_error: float | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON."""
        return asdict(self)


def evaluate(request: EvaluateRequest) -> Result | None:
    """Score a checkpoint, with several processes if asked; None on all but the first of torchrun's or SLURM's.

    Of the splits train and val every image needs a label. Any other may come without labels: then its images are saved
    and nothing is scored. A split where some images have labels and others none is refused: a part's score would pass
    for that of the whole.
    """
    launch, count = read_launch_alone(request.gpus, request.processes), request.gpus or request.processes
    path = find_artifact(request.checkpoint)
    device = devices.local_device(request.gpus, request.processes, default_device(request.runtime.device, path))
    request = replace(request, checkpoint=path, runtime=replace(request.runtime, device=str(device)))
    if launch is None and count > 1:
        with supervisor.fork(0 if request.gpus else count) as forked:
            result: Result = supervisor.run(_evaluate_in_worker, (request,), count, forked=forked)
        return result
    result = _evaluate_in_worker(Worker(), request)
    return result if launch is None or launch.rank == 0 else None


def _evaluate_in_worker(worker: Worker, request: EvaluateRequest) -> Result:
    with join_group(torch.device(request.runtime.device), supervised=worker.is_supervised) as group:
        return evaluate_in_group(request, group)


def evaluate_in_group(request: EvaluateRequest, group: Group) -> Result:
    """Score this process's share of the images; every process returns the figures of all."""
    path = find_artifact(request.checkpoint)
    runtime = replace(request.runtime, device=str(group.device)).resolve(path, group.world_size)
    rounds = devices.use_tf32(group.device, request.tf32)
    if request.tf32 and group.rank == 0:
        notice("products of float32 are rounded to TF32 (--tf32)" if rounds else f"--tf32: {group.device} has no TF32")
    # the same on all, as it decides how an image is seen
    runtime = replace(runtime, memory=-group.largest(-runtime.memory))
    request = replace(request, formats=outputs.check_formats(request.formats))
    for path_asked, suffix, what in (
        (request.confusion, ".png", "the confusion matrix is drawn as a PNG"),
        (request.report, ".html", "the report is an HTML page"),
    ):
        if path_asked is not None and path_asked.suffix.lower() != suffix and not files.is_stream(path_asked):
            raise InputError(path_asked, what, f"end the name in {suffix}")
    artifact = open_artifact(path, request.preset, request.overrides, request.strict)
    source, labelled = _open_split(request, artifact)
    plan = {} if request.save is None else _plan(request, request.save, source, group)
    _refuse_outputs(request, plan, [*list_files(path), *source.samples.files()])
    if not labelled:
        notice(f"split {request.split} has no labels: its images are segmented into {request.save}, not scored")
    elif group.rank == 0:
        # what is wrong with a label is raised where it is scored, on every process
        with suppress(InputError):
            warn_of_dead_labels(source, request.split)
    rows = range(0, len(source.samples), max(1, len(source.samples) // CALIBRATION_IMAGES))
    samples = {sample.image: sample for sample in (source.samples[row] for row in rows)}
    runtime = runtime.calibrate(samples)
    network = runtime.prepare(artifact, len(source.samples), partial(_read_label, source, samples))
    views = Views.of(artifact.preset.eval, source.classes, runtime.budget(artifact, network).fit)
    details = Details(len(source.classes), source.ignore_index, request.boundary)
    wanted = details if request.per_image or request.boundary else None
    calibration = Calibration() if request.calibration_error and labelled else None
    worst = WorstImages(MAX_EXAMPLES if request.report else 0, source.classes.palette, source.ignore_index)
    with _save_and_report(plan, source, group, wanted, worst) as on_image:
        confusion = score_network(network, source, views, group, on_image, calibration=calibration)
    if labelled and not confusion.matrix.any():
        notice(f"the labels of split {request.split} are all void: there is no score")
    if wanted:
        wanted.merge(group.gather(wanted))
    result = _result(confusion, source, path, _settings(request, artifact.preset, runtime, source), details)
    result = replace(result, calibration_error=_finite(calibration.error())) if calibration else result
    _draw(request, result, confusion, source, group, worst)
    return result


def _draw(
    request: EvaluateRequest, result: Result, confusion: Confusion, source: Source, group: Group, worst: WorstImages
) -> None:
    """Write the confusion matrix and the report that were asked for, on one process; worst are each process's own."""
    examples = merge_worst(group.gather(worst), MAX_EXAMPLES) if request.report else []
    if group.rank or not (request.confusion or request.report):
        return
    counts = confusion.matrix.numpy()
    if request.confusion is not None:
        images.write_image(request.confusion, charts.confusion_matrix(counts, source.classes.names))
    if request.report is not None:
        around, figures = environment(group.device, group.world_size), result.to_mapping()
        name = Path(result.checkpoint).name
        write_evaluation(request.report, name, figures, around, source.classes, (counts, examples))


def _read_label(source: Source, samples: Mapping[Path, Sample], path: Path) -> images.Pixels | None:
    sample = samples.get(path)
    return None if sample is None or sample.label is None else load_label(source, sample)


def _open_split(request: EvaluateRequest, artifact: Artifact[Network]) -> tuple[Source, bool]:
    """The images to score, of the classes that the checkpoint knows, and whether they have labels."""
    source = open_source(artifact.preset.data, request.split, labels_required=request.split in LABELLED)
    fix = "choose another --split, or the data set that the checkpoint was trained on"
    if not source.samples:
        raise InputError(f"data set {source.dataset}", "has no image in this split", fix)
    if source.classes.names != artifact.classes.names:
        ours, theirs = len(artifact.classes), len(source.classes)
        why = f"has {theirs} classes, the checkpoint {ours}" if ours != theirs else "names its classes differently"
        raise InputError(f"data set {source.dataset}", why, fix)
    labelled = _has_labels(source, request)
    samples = source.samples[: request.limit]
    return replace(source, samples=samples, tolerate_damage=request.tolerate_damage), labelled


def _has_labels(source: Source, request: EvaluateRequest) -> bool:
    """Whether every image has a label; InputError if only some have one, or none has one and nothing is saved."""
    missing = [sample for sample in source.samples if sample.label is None]
    if not missing:
        return True
    count, first = len(source.samples), missing[0]
    if len(missing) < count:
        why = f"has no label, as {len(missing)} of {count} images of split {request.split}"
        fix = "label every image or none; --list FILE can name those with a label"
        raise InputError(f"{source.samples.where(first)}image {first.image}", why, fix)
    if request.save is None:
        why = "has no labels, so there is nothing to score"
        fix = "add --save DIR to segment its images, or choose a split with labels"
        raise InputError(f"split {request.split}", why, fix)
    return False


def _plan(request: EvaluateRequest, folder: Path, source: Source, group: Group) -> dict[str, dict[str, Path]]:
    """The files of each image of this process, by its name; InputError if one leaves the folder or replaces a file."""
    if folder.exists() and not folder.is_dir():
        raise InputError(folder, "is a file, not a folder", "name another folder to save to")
    names = [sample.name for sample in source.samples]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"image name {twice}", "stands for two images", "rename one of them")
    own = [names[index] for index in group.shard(len(names))]
    return {name: outputs.destinations(folder, name, request.formats) for name in own}


def _refuse_outputs(request: EvaluateRequest, plan: dict[str, dict[str, Path]], read: Iterable[Path]) -> None:
    """InputError for a file to be written that is read, exists or is another one; result files replace others."""
    saved = [path for paths in plan.values() for path in paths.values()]
    results = [path for path in (request.confusion, request.report, *request.others) if path is not None]
    inputs = [*read, *([] if request.preset is None else [config.find(request.preset)])]
    files.refuse_outputs([*results, *saved], inputs)
    files.refuse_outputs(saved, overwrite=request.overwrite)


@contextmanager
def _save_and_report(
    plan: dict[str, dict[str, Path]], source: Source, group: Group, details: Details | None, worst: WorstImages
) -> Iterator[OnImage]:
    """Yield a function that writes an image's prediction in the background, and prints a line of progress."""
    done, total = 0, len(group.shard(len(source.samples)))
    see = find_hardest(worst, len(source.classes))

    def write(sample: Sample, image: np.ndarray, prediction: np.ndarray) -> None:
        for format, path in plan[sample.name].items():
            outputs.write(path, format, prediction, image, source.classes)

    with background_writer() as submit:

        def on_image(sample: Sample, image: np.ndarray, prediction: np.ndarray, label: np.ndarray | None) -> None:
            nonlocal done
            done += 1
            if details is not None and label is not None:
                details.add(sample.name, prediction, label)
            if worst.count and label is not None:
                see(sample.name, image, prediction, label)
            if plan:
                submit(write, sample, image, prediction)
            if done % PROGRESS_IMAGES == 0 and done < total:
                notice(f"{done} of {total} images evaluated")

        yield on_image


def _settings(request: EvaluateRequest, preset: config.Preset, runtime: Runtime, source: Source) -> dict[str, Any]:
    """What the figures depend on besides the checkpoint."""
    return {
        **preset.eval.model_dump(mode="json", include={"mode", "tile", "fit", "scales", "flip", "batch"}),
        "precision": runtime.precision,
        **({"tf32": True} if request.tf32 else {}),
        "dataset": preset.data.dataset,
        "data": preset.data.root,
        "split": request.split,
        "list": None if source.samples.listing is None else str(source.samples.listing),
        "limit": request.limit,
    }


def _result(
    confusion: Confusion, source: Source, checkpoint: Path, settings: dict[str, Any], details: Details
) -> Result:
    def by_class(figures: list[float]) -> dict[str, float | None]:
        return {name: _finite(figure) for name, figure in zip(source.classes.names, figures, strict=True)}

    measures = {name: getattr(confusion, name)().tolist() for name in ("dice", "precision", "recall")}
    if details.outlines:
        measures["boundary_iou"] = details.boundary_iou()
    rows = ({key: _plain(value) for key, value in row._asdict().items()} for row in details.images)
    return Result(
        miou=_finite(confusion.miou()),
        pixel_accuracy=_finite(confusion.pixel_accuracy()),
        mean_accuracy=_finite(confusion.mean_accuracy()),
        classes=by_class(confusion.iou().tolist()),
        images=len(source.samples),
        pixels=int(confusion.matrix.sum()),
        checkpoint=str(checkpoint),
        settings=settings,
        measures={name: by_class(figures) for name, figures in measures.items()},
        per_image=[*rows],
    )


def _plain(value: str | float) -> str | float | None:
    return value if isinstance(value, str) else _finite(value)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
