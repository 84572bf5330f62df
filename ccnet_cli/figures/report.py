"""The report of a finished run: its results, curves, classes and worst images on one HTML page."""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccnet_cli import files
from ccnet_cli.errors import one_line
from ccnet_cli.figures import pages
from ccnet_cli.media import images
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import Pixels, cv2

# pixels of an example's longer side, and between its pictures
SIDE, GAP = 420, 4
# pixels of the line of a class
LINE_WIDTH, LINE_HEIGHT = 260, 26

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Example:
    """A validation image with a low mIoU of its own, its name, and image, label and prediction side by side."""

    miou: float
    name: str
    picture: Pixels


class WorstImages:
    """The images of an evaluation with the lowest mIoU of their own, at most `count`, as small pictures."""

    def __init__(self, count: int, palette: images.Palette, ignore_index: int) -> None:
        self.count = count
        self.palette = palette
        self.ignore_index = ignore_index
        # a heap, whose first entry is the best of the worst
        self.entries: list[tuple[float, str, Pixels]] = []

    def add(self, name: str, miou: float, image_bgr: Pixels, label_HW: Pixels, prediction_HW: Pixels) -> None:
        """Consider one image, its label and prediction as train ids; skip it if its mIoU is nan: no valid pixel."""
        if math.isnan(miou) or (len(self.entries) == self.count and -miou <= self.entries[0][0]):
            return
        # ignored pixels are black in both pictures, so that they differ by mistakes only
        ids = np.where(label_HW == self.ignore_index, self.ignore_index, prediction_HW).astype(np.uint8)
        label, prediction = (images.colorize(values, self.palette) for values in (label_HW, ids))
        classes = [pages.shrink(part, SIDE, cv2.INTER_NEAREST) for part in (label, prediction)]
        parts = [pages.shrink(image_bgr, SIDE), *classes]
        white = np.full((parts[0].shape[0], GAP, 3), 255, np.uint8)
        entry = (-miou, name, np.hstack([parts[0], white, parts[1], white, parts[2]]))
        (heapq.heappush if len(self.entries) < self.count else heapq.heapreplace)(self.entries, entry)


def merge_worst(parts: Iterable[WorstImages], count: int) -> list[Example]:
    """The worst images of several processes, the worst first, at most `count`."""
    entries = sorted((-negative, name, picture) for part in parts for negative, name, picture in part.entries)
    return [Example(miou, name, picture) for miou, name, picture in entries[:count]]


def write_report(
    path: Path,
    preset: str,
    environment: Mapping[str, Any],
    rows: Sequence[Row],
    classes: Classes,
    matrix_bgr: Pixels,
    examples: Sequence[Example],
) -> None:
    """Write the page of a run: preset is YAML, rows those of the log, matrix_bgr the chart of the confusion matrix.

    Rows of evaluations have `miou` and `classes`, a mapping from class names. curves.png beside path is put in.
    """
    scored = [row for row in rows if "miou" in row]
    curves = path.with_name("curves.png")
    page = pages.render(
        "report.html",
        style=(pages.FOLDER / "report.css").read_text(encoding="utf-8"),
        title=one_line(path.parent.name),
        started=environment.get("started", ""),
        device=environment.get("device", ""),
        facts=_facts(rows, scored),
        curves=pages.png_bytes(curves.read_bytes()) if curves.is_file() else None,
        classes=[_class_row(scored, *entry) for entry in zip(classes.names, classes.palette, strict=True)],
        width=LINE_WIDTH,
        height=LINE_HEIGHT,
        matrix=pages.png(matrix_bgr),
        examples=[(f"{one_line(one.name)}: mIoU {100 * one.miou:.1f} %", pages.png(one.picture)) for one in examples],
        preset=preset,
        environment=files.to_json(dict(environment), 1),
    )
    files.write_bytes(path, page.encode())


def _facts(rows: Sequence[Row], scored: Sequence[Row]) -> dict[str, str]:
    """The figures at the top of the page, by name."""
    facts = {"steps": f"{rows[-1]['step']:,}" if rows else "-"}
    if scored:
        best = max(scored, key=lambda row: float(row["miou"]))
        facts |= {
            "mIoU": f"{100 * scored[-1]['miou']:.2f} %",
            "best mIoU": f"{100 * best['miou']:.2f} % at step {best['step']:,}",
            "pixel accuracy": f"{100 * scored[-1].get('pixel_accuracy', math.nan):.2f} %",
        }
    losses = [row["loss"] for row in rows if "loss" in row]
    return facts | ({"last loss": f"{losses[-1]:.4f}"} if losses else {})


def _class_row(scored: Sequence[Row], name: str, colour: tuple[int, int, int]) -> dict[str, str]:
    """A class in the table: its last and its best IoU, and its line over the steps."""
    history = [(row["step"], row.get("classes", {}).get(name)) for row in scored]
    points = [(step, value) for step, value in history if value is not None]
    row = {
        "name": name,
        "colour": "#{:02x}{:02x}{:02x}".format(*colour),
        "last": _percent(history[-1][1] if history else None),
        "best": _percent(max((value for _, value in points), default=None)),
        "line": _line(points),
    }
    if points:
        first, last = points[0][1], points[-1][1]
        row["label"] = f"IoU of {name} from {100 * first:.1f} to {100 * last:.1f} percent"
    return row


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _line(points: Sequence[tuple[int, float]]) -> str:
    """The points of an SVG polyline for values in 0..1 over the steps; one value is a level line."""
    if not points:
        return ""
    first, last = points[0][0], points[-1][0]
    span = max(last - first, 1)
    corners = [
        (2 + (step - first) / span * (LINE_WIDTH - 4), 2 + (1 - value) * (LINE_HEIGHT - 4)) for step, value in points
    ]
    if len(corners) == 1:
        corners.append((LINE_WIDTH - 2.0, corners[0][1]))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
