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
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, notice
from ccnet_cli.media import images
from ccnet_cli.media.images import cv2

COLUMNS = (
    *("step", "epoch", "loss", "lr", "images_per_second", "stall", "seconds"),
    *("miou", "pixel_accuracy", "mean_accuracy"),
)
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

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False, losses: Sequence[str] = ()) -> None:
        self.folder = folder
        self.rows = [row for row in _read_log(folder / "log.jsonl") if row["step"] <= step]
        before = [key for row in self.rows for key in row if key.startswith("loss/")]
        self.columns = tuple(dict.fromkeys([*COLUMNS, *before, *losses]))
        self.behind = False
        self._rewrite()
        self.board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"))

    def add(self, classes: Mapping[str, float | None] | None = None, **numbers: float) -> None:
        """Append one row, {column: number}; every row has its step, and what is not finite is left out.

        classes, the IoU of each, goes into the log alone.
        """
        row: dict[str, Any] = {column: value for column, value in numbers.items() if math.isfinite(value)}
        if classes is not None:
            row["classes"] = dict(classes)
        self.rows.append(row)
        with self._forbearing():
            self._append(row)
        if self.board is not None:
            for column in set(row) - {"step", "epoch", "seconds", "classes"}:
                self.board.add_scalar(column, row[column], row["step"])

    def skip(self, step: int, samples: list[str]) -> None:
        """Append the row of a step that was skipped, with the samples of its batch."""
        self.rows.append({"step": step, "skipped": samples})
        with self._forbearing():
            self._append(self.rows[-1])

    def draw(self) -> None:
        """Write curves.png from all rows so far."""
        loss = [(row["step"], row["loss"]) for row in self.rows if "loss" in row]
        rate = [(row["step"], row["lr"]) for row in self.rows if "lr" in row]
        miou = [(row["step"], row["miou"]) for row in self.rows if "miou" in row]
        panels = [curve("training loss", loss), curve("learning rate", rate), curve("validation mIoU", miou)]
        with self._forbearing():
            images.write_image(self.folder / "curves.png", np.hstack(panels))

    @contextmanager
    def _forbearing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EnvironmentFailure) as error:
            if not self.behind:
                notice(f"warning: {self.folder}: log not written ({error}); training goes on")
            self.behind = True

    def _append(self, row: dict[str, Any]) -> None:
        if self.behind:
            self._rewrite()
            self.behind = False
            return
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with (self.folder / "metrics.csv").open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow([row.get(column, "") for column in self.columns])

    def _rewrite(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        files.write_bytes(self.folder / "log.jsonl", lines.encode())
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(self.columns)
        writer.writerows([row.get(column, "") for column in self.columns] for row in self.rows)
        files.write_bytes(self.folder / "metrics.csv", table.getvalue().encode())


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            # a crash can cut the last line short
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def curve(title: str, points: list[tuple[float, float]], size: tuple[int, int] = (300, 400)) -> images.Pixels:
    """A line plot of (step, value) points, BGR uint8 of size (H, W), axes labelled with their extremes."""
    H, W = size
    left, right, top, bottom = 62, W - 14, 34, H - 34
    picture = np.full((H, W, 3), 255, np.uint8)
    _write(picture, title, (left, 22), 0.5)
    cv2.rectangle(picture, (left, top), (right, bottom), (190, 190, 190), 1)
    finite = np.array([point for point in points if np.isfinite(point).all()], np.float64).reshape(-1, 2)
    if not len(finite):
        _write(picture, "no data", (W // 2 - 30, H // 2), 0.45)
        return picture
    low, high = finite.min(0), finite.max(0)
    span = np.where(high > low, high - low, 1.0)
    unit = (finite - low) / span
    places = np.stack([left + unit[:, 0] * (right - left), bottom - unit[:, 1] * (bottom - top)], axis=1)
    line = np.rint(places).astype(np.int32)
    cv2.polylines(picture, [line[:, None]], False, (160, 80, 20), 2, cv2.LINE_AA)
    for x, y in line if len(line) < 40 else line[-1:]:
        cv2.circle(picture, (int(x), int(y)), 3, (160, 80, 20), -1, cv2.LINE_AA)
    _write(picture, f"{high[1]:.3g}", (6, top + 6), 0.4)
    _write(picture, f"{low[1]:.3g}", (6, bottom), 0.4)
    _write(picture, f"{low[0]:.0f}", (left, H - 14), 0.4)
    _write(picture, f"step {high[0]:.0f}", (right - 74, H - 14), 0.4)
    _write(picture, f"last {finite[-1, 1]:.4g}", (right - 96, 22), 0.4)
    return picture


def _write(picture: images.Pixels, text: str, at: tuple[int, int], scale: float) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (40, 40, 40), 1, cv2.LINE_AA)


def mosaic(
    batch_BCHW: torch.Tensor,
    label_BHW: torch.Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    channel_order: str,
    palette: images.Palette,
) -> images.Pixels:
    """Up to 8 images of a batch as the network gets them, each above its label, BGR uint8; ignored pixels black."""
    columns = []
    for image, label in list(zip(batch_BCHW, label_BHW, strict=True))[:8]:
        pixels = image.float().cpu().numpy().transpose(1, 2, 0) * np.array(std) + np.array(mean)
        pixels = pixels.round().clip(0, 255).astype(np.uint8)
        shown = pixels[..., ::-1] if channel_order == "rgb" else pixels
        columns.append(np.vstack([shown, images.colorize(label.cpu().numpy().astype(np.uint8), palette)]))
    return np.hstack(columns)
