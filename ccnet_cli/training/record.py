"""What a run writes beside its checkpoints: preset, environment, log, table, curves and a look at the first batch."""

import csv
import io
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, notice
from ccnet_cli.figures.charts import training_curves
from ccnet_cli.media import images
from ccnet_cli.models.network import Normalisation
from ccnet_cli.training.trackers import Trackers

COLUMNS = (
    *("step", "epoch", "loss", "lr", "images_per_second", "stall", "seconds"),
    *("miou", "pixel_accuracy", "mean_accuracy"),
)
# of a row, what trackers do not plot
NOT_PLOTTED = {"step", "epoch", "seconds", "classes"}
PACKAGES = (
    "ccnet-cli",
    "torch",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "scipy",
    "numba",
    "numba-cuda",
    "typer",
)
MAX_BATCH_IMAGES = 8
# a drawing takes as long as some steps of a small network
SECONDS_BETWEEN_DRAWINGS = 30.0


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """What the run runs on: versions, machine, device, threads, command line."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpus": os.cpu_count(),
        "processes": processes,
        "threads": torch.get_num_threads(),
    }


class Record:
    """The log of one run folder; rows of earlier attempts after `step` are dropped, since they are run again.

    losses are the names of the loss and its terms; the table has a column for each, and for those of earlier rows. A
    full disk is reported once and stops no run: what could not be written follows when there is space again.
    """

    def __init__(self, folder: Path, step: int = 0, losses: Sequence[str] = ()) -> None:
        self.folder = folder
        # none until a run gives it some
        self.trackers = Trackers(folder)
        self.rows = [row for row in read_log(folder / "log.jsonl") if row["step"] <= step]
        earlier = [key for row in self.rows for key in row if key.startswith("loss/")]
        self.columns = tuple(dict.fromkeys([*COLUMNS, *earlier, *losses]))
        self.incomplete = False
        self.next_drawing = 0.0
        self._rewrite()

    def add(self, numbers: Mapping[str, float], classes: Mapping[str, float | None] | None = None) -> None:
        """Append one row of numbers by their columns; every row has its step, and what is not finite is left out.

        classes, the IoU of each, goes into the log alone.
        """
        row: dict[str, Any] = {column: value for column, value in numbers.items() if math.isfinite(value)}
        if classes is not None:
            row["classes"] = dict(classes)
        self._append(row)
        self.trackers.numbers(row["step"], {name: row[name] for name in row if name not in NOT_PLOTTED})

    def skip(self, step: int, samples: list[str]) -> None:
        """Append the row of a step that was skipped, with the samples of its batch."""
        self._append({"step": step, "skipped": samples})

    def stop(self, step: int, best: Mapping[str, float]) -> None:
        """Append the row of the step after which a run ended early, with what it waited for."""
        self._append({"step": step, "early_stop": dict(best)})

    def draw(self, at_once: bool = True) -> None:
        """Write curves.png from all rows so far; unless at_once, only if it was written some time ago."""
        if at_once or time.monotonic() >= self.next_drawing:
            with self._tolerate_full_disk():
                images.write_image(self.folder / "curves.png", training_curves(self.rows))
            self.next_drawing = time.monotonic() + SECONDS_BETWEEN_DRAWINGS

    @contextmanager
    def _tolerate_full_disk(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EnvironmentFailure) as error:
            if not self.incomplete:
                notice(f"warning: {self.folder}: log not written ({error}); training goes on")
            self.incomplete = True

    def _append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self._tolerate_full_disk():
            if self.incomplete:
                self._rewrite()
                self.incomplete = False
                return
            with _append_to(self.folder / "log.jsonl") as file:
                file.write(files.to_json(row) + "\n")
            with _append_to(self.folder / "metrics.csv") as file:
                csv.writer(file).writerow([row.get(column, "") for column in self.columns])

    def _rewrite(self) -> None:
        lines = "".join(files.to_json(row) + "\n" for row in self.rows)
        files.write_bytes(self.folder / "log.jsonl", lines.encode())
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(self.columns)
        writer.writerows([row.get(column, "") for column in self.columns] for row in self.rows)
        files.write_bytes(self.folder / "metrics.csv", table.getvalue().encode())


def _append_to(path: Path) -> TextIO:
    """A file opened at its end; OSError for a link, which could lead anywhere."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8", newline="")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's log; none where there is no log."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        # a crash can cut the last line short
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int) and all(map(_is_cell, row.items())):
                # what is not finite cannot be written again
                files.to_json(row)
                rows.append(row)
    return rows


def _is_cell(cell: tuple[str, Any]) -> bool:
    """Whether a value of a row is of the type that its column has."""
    name, value = cell
    return isinstance(value, {"classes": dict, "skipped": list, "early_stop": dict}.get(name, int | float))


def mosaic(
    image_BCHW: Tensor, label_BHW: Tensor, normalisation: Normalisation, palette: images.Palette
) -> images.Pixels:
    """Up to 8 images of a batch as the network gets them, each above its label, BGR uint8; ignored pixels black."""
    mean, std = np.array(normalisation.mean), np.array(normalisation.std)
    columns = []
    for image, label in list(zip(image_BCHW, label_BHW, strict=True))[:MAX_BATCH_IMAGES]:
        pixels = image.float().cpu().numpy().transpose(1, 2, 0) * std + mean
        pixels = pixels.round().clip(0, 255).astype(np.uint8)
        pixels = pixels[..., ::-1] if normalisation.channel_order == "rgb" else pixels
        columns.append(np.vstack([pixels, images.colorize(label.cpu().numpy().astype(np.uint8), palette)]))
    return np.hstack(columns)
