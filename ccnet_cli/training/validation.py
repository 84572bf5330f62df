"""Scores of the model in training on the validation split, and the report of a finished run."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ccnet_cli.datasets.listing import Sample
from ccnet_cli.datasets.source import Source
from ccnet_cli.errors import EnvironmentFailure, InputError, notice
from ccnet_cli.figures import report
from ccnet_cli.figures.charts import confusion_matrix
from ccnet_cli.figures.report import MAX_EXAMPLES, Example, WorstImages, merge_worst
from ccnet_cli.inference.details import find_hardest
from ccnet_cli.inference.metrics import Confusion
from ccnet_cli.inference.scoring import score_network
from ccnet_cli.inference.views import Views
from ccnet_cli.training.record import Record
from ccnet_cli.training.trainer import Trainer


@dataclass(frozen=True)
class Scores:
    """A confusion matrix over the validation split, and the images with the lowest scores where they were asked for."""

    confusion: Confusion
    examples: list[Example]

    @property
    def metrics(self) -> dict[str, float]:
        """mIoU, pixel accuracy and mean accuracy."""
        matrix = self.confusion
        return {
            "miou": matrix.miou(),
            "pixel_accuracy": matrix.pixel_accuracy(),
            "mean_accuracy": matrix.mean_accuracy(),
        }

    def class_ious(self, names: tuple[str, ...]) -> dict[str, float | None]:
        """The IoU of each class, None where it neither occurs nor is predicted."""
        ious = self.confusion.iou().tolist()
        return {name: iou if math.isfinite(iou) else None for name, iou in zip(names, ious, strict=True)}


def validate(trainer: Trainer, source: Source, stop_signal: Callable[[], int], examples: bool) -> Scores:
    """Score the model on all ranks; Interrupted on each once stop_signal gives a number on one."""
    trainer.group.share_buffers(trainer.inference_model)
    worst = WorstImages(MAX_EXAMPLES, source.classes.palette, source.ignore_index)
    see = find_hardest(worst, len(source.classes))

    def add(sample: Sample, image: Any, prediction: Any, label: Any) -> None:
        if label is not None:
            see(sample.name, image, prediction, label)

    views = Views.of(trainer.preset.eval, source.classes)
    on_image = add if examples else None
    confusion = score_network(trainer.inference_model, source, views, trainer.group, on_image, stop_signal)
    return Scores(confusion, merge_worst(trainer.group.gather(worst), MAX_EXAMPLES) if examples else [])


def show_pictures(record: Record, source: Source, scores: Scores, step: int) -> None:
    """Give the trackers, where there are any, the confusion matrix and the hardest images."""
    if not record.trackers.active:
        return
    record.trackers.picture(step, "confusion", confusion_matrix(scores.confusion.matrix.numpy(), source.classes.names))
    for number, example in enumerate(scores.examples, start=1):
        record.trackers.picture(step, f"hardest {number}", example.picture)


def write_report(record: Record, source: Source, scores: Scores) -> None:
    """Write report.html from the files of the run folder; a disk that refuses it does not end the run."""
    folder, classes = record.folder, source.classes
    preset = (folder / "preset.yaml").read_text(encoding="utf-8")
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    counts = scores.confusion.matrix.numpy()
    try:
        path = folder / "report.html"
        report.write_report(path, preset, environment, record.rows, classes, counts, scores.examples)
    except (InputError, EnvironmentFailure) as error:
        notice(f"warning: {error}; training goes on without it")
