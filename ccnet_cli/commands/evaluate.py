"""Score a checkpoint on labelled images: one confusion matrix over every valid pixel."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccnet_cli import config
from ccnet_cli.datasets.listing import Sample
from ccnet_cli.datasets.source import Source, open_source
from ccnet_cli.errors import InputError, notice
from ccnet_cli.figures import charts
from ccnet_cli.inference import engine
from ccnet_cli.inference.artifact import Artifact, Network, default_device, default_precision, open_artifact
from ccnet_cli.inference.metrics import Confusion
from ccnet_cli.inference.runtime import runner
from ccnet_cli.inference.scoring import score_network
from ccnet_cli.inference.views import Views
from ccnet_cli.media import images, outputs
from ccnet_cli.media.background import background_writer
from ccnet_cli.models import network as models
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import Group, joined, read_launch
from ccnet_cli.parallel.supervisor import Worker

# images between two lines of progress
EVERY = 20
# splits that are there to be learnt from and scored: a label that is missing is a mistake
LABELLED = ("train", "val")


@dataclass(frozen=True)
class Result:
    """What an evaluation found: shares in 0..1, None where there was nothing to measure; images are those segmented."""

    miou: float | None
    pixel_accuracy: float | None
    mean_accuracy: float | None
    classes: dict[str, float | None]
    images: int
    pixels: int
    checkpoint: str
    settings: dict[str, Any]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON."""
        return asdict(self)


def evaluate(
    checkpoint: Path | None = None,
    data: str | None = None,
    split: str = "val",
    overrides: Sequence[str] = (),
    preset: str | None = None,
    mode: str | None = None,
    tile: tuple[int, int] | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    precision: str = "fp32",
    compile: str = "off",
    device: str = "auto",
    limit: int | None = None,
    confusion: Path | None = None,
    save: Path | None = None,
    save_formats: Sequence[str] = ("color",),
    overwrite: bool = False,
    group: Group | None = None,
) -> Result:
    """Score a checkpoint or other people's weights; of several processes each takes its share, all return the same.

    preset (a name or file) replaces the one that the checkpoint holds or the weights suggest, overrides ("key=value")
    its keys, data its data.root, and mode, tile, scales and flip those of its eval section. limit scores the first
    images only. confusion draws the matrix as a PNG, save writes one PNG per image and format into a folder, where
    existing files are refused unless overwrite.

    Of the splits train and val every image needs a label. Any other may come without labels: then its images are saved
    and nothing is scored. One that has labels for some of its images only is refused, as the figure of a part would
    pass for that of the whole.
    """
    place = models.device(device)
    group = group or Group(place)
    formats = outputs.check_formats(save_formats)
    precision = models.precision(default_precision(precision, checkpoint), place, notice)
    engine.compiles(compile, place, 0)
    if confusion is not None and confusion.suffix.lower() != ".png":
        raise InputError(confusion, "the confusion matrix is drawn as a PNG", "end the name in .png")
    artifact = open_artifact(checkpoint, preset, overrides)
    settled = with_choices(artifact.preset, data, mode=mode, tile=tile, scales=scales, flip=flip)
    source = open_source(settled.data, split, labels_required=split in LABELLED)
    _check(source, artifact)
    scored = _labelled(source, split, save)
    source = replace(source, samples=source.samples[:limit])
    planned = {} if save is None else _plan(source, save, formats, overwrite, group)
    if not scored:
        notice(f"split {split} has no labels: its images are segmented into {save}, not scored")

    shard = len(group.shard(len(source.samples)))
    done = 0

    def write(sample: Sample, image: np.ndarray, ids: np.ndarray) -> None:
        for format, path in planned[sample.name].items():
            outputs.write(path, format, ids, image, source.classes)

    prepared = runner(artifact, place, precision, compile, len(source.samples))
    with background_writer() as submit:

        def on_image(sample: Sample, image: np.ndarray, ids: np.ndarray, _: np.ndarray | None) -> None:
            nonlocal done
            done += 1
            if save is not None:
                submit(write, sample, image, ids)
            if done % EVERY == 0 and done < shard:
                notice(f"{done} of {shard} images evaluated")

        views = Views.of(settled.eval, source.classes)
        matrix = score_network(prepared, source, views, group, on_image)
    if scored and not matrix.matrix.any():
        notice(f"the labels of split {split} are all void: there is no score")
    if confusion is not None and group.rank == 0:
        images.write_image(confusion, charts.confusion_matrix(matrix.matrix.numpy(), source.classes.names))
    settings = {
        **settled.eval.model_dump(mode="json", include={"mode", "tile", "fit", "scales", "flip", "batch"}),
        "precision": precision,
        "dataset": settled.data.dataset,
        "data": settled.data.root,
        "split": split,
        "list": None if source.samples.listing is None else str(source.samples.listing),
        "limit": limit,
    }
    return result(matrix, source, artifact.path, settings)


def score(
    checkpoint: Path | None = None, gpus: int | None = None, processes: int = 1, device: str = "auto", **choices: Any
) -> Result | None:
    """What `evaluate` returns, of so many processes; None on all but the first that torchrun or SLURM started."""
    launch = read_launch()
    if launch is not None and (gpus or processes > 1):
        why = f"{launch.world_size} processes are started already, by torchrun or SLURM"
        raise InputError("option --gpus" if gpus else "option --processes", why, "leave it to them")
    kind = models.share(gpus, processes, default_device(device, checkpoint))
    if launch is None and (gpus or processes) > 1:
        found: Result = supervisor.run(_score, (checkpoint, kind, choices), gpus or processes)
        return found
    found = _score(Worker(), checkpoint, kind, choices)
    return found if launch is None or launch.rank == 0 else None


def _score(worker: Worker, checkpoint: Path | None, device: torch.device, choices: dict[str, Any]) -> Result:
    """One process's part of an evaluation."""
    with joined(device, supervised=worker.supervised) as group:
        return evaluate(checkpoint, device=str(group.device), group=group, **choices)


def result(confusion: Confusion, source: Source, checkpoint: Path, settings: dict[str, Any]) -> Result:
    """The figures of a confusion matrix."""
    return Result(
        miou=_finite(confusion.miou()),
        pixel_accuracy=_finite(confusion.pixel_accuracy()),
        mean_accuracy=_finite(confusion.mean_accuracy()),
        classes={name: _finite(iou) for name, iou in zip(source.classes.names, confusion.iou().tolist(), strict=True)},
        images=len(source.samples),
        pixels=int(confusion.matrix.sum()),
        checkpoint=str(checkpoint),
        settings=settings,
    )


def with_choices(preset: config.Preset, data: str | None = None, **choices: Any) -> config.Preset:
    """The preset with another data root, and those of the eval section's keys that are not None."""
    mapping = config.to_mapping(preset)
    if data is not None:
        mapping["data"]["root"] = data
    mapping["eval"].update({key: value for key, value in choices.items() if value is not None})
    return config.from_mapping(mapping)


def _check(source: Source, artifact: Artifact[Network]) -> None:
    """InputError unless there are images, of the classes that the checkpoint knows."""
    fix = "choose another --split, or the data set that the checkpoint was trained on"
    if not source.samples:
        raise InputError(f"data set {source.dataset}", "has no image in this split", fix)
    if source.classes.names != artifact.classes.names:
        ours, theirs = len(artifact.classes), len(source.classes)
        why = f"has {theirs} classes, the checkpoint {ours}" if ours != theirs else "names its classes differently"
        raise InputError(f"data set {source.dataset}", why, fix)


def _labelled(source: Source, split: str, save: Path | None) -> bool:
    """Whether every image has a label; InputError where some have none, or none has one and nothing is saved either."""
    missing = [sample for sample in source.samples if sample.label is None]
    if not missing:
        return True
    count, first = len(source.samples), missing[0]
    if len(missing) < count:
        why = f"has no label, as {len(missing)} of {count} images of split {split}"
        fix = "label every image or none; --list FILE can name those with a label"
        raise InputError(f"{source.samples.where(first)}image {first.image}", why, fix)
    if save is None:
        why = "has no labels, so there is nothing to score"
        raise InputError(f"split {split}", why, "add --save DIR to segment its images, or choose a split with labels")
    return False


def _plan(
    source: Source, folder: Path, formats: Sequence[str], overwrite: bool, group: Group
) -> dict[str, dict[str, Path]]:
    """The files of each image of this process, by its name; InputError if one leaves the folder or replaces a file."""
    if folder.exists() and not folder.is_dir():
        raise InputError(folder, "is a file, not a folder", "name another folder to save to")
    names = [sample.name for sample in source.samples]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"image name {twice}", "stands for two images", "rename one of them")
    own = [names[index] for index in group.shard(len(names))]
    planned = {name: outputs.destinations(folder, name, formats) for name in own}
    written = [path for paths in planned.values() for path in paths.values()]
    read = [path for sample in source.samples for path in (sample.image, sample.label) if path is not None]
    outputs.refuse_inputs(read, written)
    outputs.refuse_existing(written, overwrite)
    return planned


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
