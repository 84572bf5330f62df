"""The report of a finished run, or of an evaluation: results, curves, classes and hardest images on one HTML page."""

import heapq
import itertools
import math
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccnet_cli import files
from ccnet_cli.errors import one_line
from ccnet_cli.figures import pages
from ccnet_cli.figures.curves import Plot
from ccnet_cli.figures.matrix import draw_matrix
from ccnet_cli.media import images
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import Pixels, cv2

# pixels of an example's longer side, and between its pictures
SIDE, GAP = 420, 4
# images that a report shows
MAX_EXAMPLES = 8
# pixels of the line of a class
LINE_WIDTH, LINE_HEIGHT = 260, 26

MEASURES = {"dice": "Dice", "precision": "precision", "recall": "recall", "boundary_iou": "boundary IoU"}

Row = Mapping[str, Any]
Counts = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Example:
    """A validation image with a low mIoU of its own, its name, and image, label and prediction side by side."""

    miou: float
    name: str
    picture: Pixels


@dataclass(frozen=True)
class Table:
    """The classes: headings beside their names, and for each its name, colour, numbers and, of a run, line."""

    headings: Sequence[str]
    rows: Sequence[Mapping[str, Any]]


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
    counts_KK: Counts,
    examples: Sequence[Example],
) -> None:
    """Write the page of a run: preset is YAML, rows those of the log, counts_KK the confusion matrix.

    Rows of evaluations have `miou` and `classes`, a mapping from class names.
    """
    scored = [row for row in rows if "miou" in row]
    table = Table(
        ("IoU %", "best %", "over the steps") if len(scored) > 1 else ("IoU %",),
        [_class_row(scored, *entry) for entry in zip(classes.names, classes.palette, strict=True)],
    )
    curves = [plot.render() for plot in _plots(rows)]
    _write(path, environment, _facts(rows, scored), table, (counts_KK, examples), curves=curves, preset=preset)


def write_evaluation(
    path: Path,
    title: str,
    result: Mapping[str, Any],
    environment: Mapping[str, Any],
    classes: Classes,
    mistakes: tuple[Counts, Sequence[Example]],
) -> None:
    """Write the page of an evaluation: result is what `ccnet eval --json` writes, mistakes the last of write_report."""
    facts = {
        "mIoU": _percent(result["miou"], " %"),
        "pixel accuracy": _percent(result["pixel_accuracy"], " %"),
        "mean accuracy": _percent(result["mean_accuracy"], " %"),
        "images": f"{result['images']:,}",
        "pixels": f"{result['pixels']:,}",
    }
    if result.get("calibration_error") is not None:
        facts["calibration error"] = _percent(result["calibration_error"], " %")
    measures = result["measures"]
    rows = [
        {
            "name": name,
            "colour": _colour(colour),
            "numbers": [_percent(result["classes"][name]), *(_percent(each[name]) for each in measures.values())],
        }
        for name, colour in zip(classes.names, classes.palette, strict=True)
    ]
    table = Table(("IoU %", *(f"{MEASURES[name]} %" for name in measures)), rows)
    settings = files.to_json(result["settings"], 1)
    _write(path, environment, facts, table, mistakes, title=title, preset=settings)


def _write(
    path: Path,
    environment: Mapping[str, Any],
    facts: Mapping[str, str],
    table: Table,
    mistakes: tuple[Counts, Sequence[Example]],
    title: str | None = None,
    curves: Sequence[str] = (),
    preset: str = "",
) -> None:
    counts_KK, examples = mistakes
    page = pages.render(
        "report.html",
        style=(pages.FOLDER / "report.css").read_text(encoding="utf-8"),
        title=one_line(path.parent.name if title is None else title),
        started=environment.get("started", ""),
        device=environment.get("device", ""),
        command=_command_line([*map(str, environment.get("command", []))]),
        facts=facts,
        curves=curves,
        headings=table.headings,
        classes=table.rows,
        width=LINE_WIDTH,
        height=LINE_HEIGHT,
        matrix=draw_matrix(counts_KK, [row["name"] for row in table.rows]),
        examples=[(f"{one_line(one.name)}: mIoU {100 * one.miou:.1f} %", pages.png(one.picture)) for one in examples],
        preset=preset,
        environment=files.to_json(dict(environment), 1),
    )
    files.write_bytes(path, page.encode())


def _command_line(words: Sequence[str]) -> str:
    """The command as it is typed, wherever its program lies."""
    program = ["ccnet" if Path(word).name in ("ccnet", "__main__.py") else word for word in words[:1]]
    return shlex.join([*program, *words[1:]])


def _plots(rows: Sequence[Row]) -> list[Plot]:
    """Scores first, then what was logged while training."""

    def line(key: str, factor: float = 1) -> list[tuple[float, float]]:
        return [(row["step"], factor * row[key]) for row in rows if key in row]

    names = dict.fromkeys(key for row in rows for key in row if key == "loss" or key.startswith("loss/"))
    # one term is the loss itself
    terms = ["loss"] if len(names) == 2 else sorted(names)
    percent = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}
    return [
        Plot("Validation, %", {name: line(key, 100) for key, name in percent.items()}, marked=True),
        Plot("Training loss", {name: line(name) for name in terms}),
        Plot("Learning rate", {"learning rate": line("lr")}),
        Plot("Gamma", {"gamma": line("gamma")}),
        Plot("Step time, ms", {"step time": [(step, 1000 * seconds) for step, seconds in _step_times(rows)]}),
    ]


def _step_times(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Step and mean seconds of the steps since the row before; a resumed run counts its seconds anew."""
    timed = [(row["step"], row["seconds"]) for row in rows if "seconds" in row]
    pairs = itertools.pairwise(timed)
    return [(s, (late - early) / (s - first)) for (first, early), (s, late) in pairs if late > early and s > first]


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
    facts |= {"last loss": f"{losses[-1]:.4f}"} if losses else {}
    times = [seconds for _, seconds in _step_times(rows)]
    return facts | ({"median step": f"{1000 * statistics.median(times):.0f} ms"} if times else {})


def _class_row(scored: Sequence[Row], name: str, colour: tuple[int, int, int]) -> dict[str, Any]:
    """A class in the table: its last and, of several evaluations, its best IoU, and its line over the steps."""
    history = [(row["step"], row.get("classes", {}).get(name)) for row in scored]
    points = [(step, value) for step, value in history if value is not None]
    last, best = history[-1][1] if history else None, max((value for _, value in points), default=None)
    row = {"name": name, "colour": _colour(colour), "numbers": [_percent(last)]}
    if len(scored) < 2:
        return row
    row |= {"numbers": [_percent(last), _percent(best)], "line": _line(points)}
    if points:
        begin, end = points[0][1], points[-1][1]
        row["label"] = f"IoU of {name} from {100 * begin:.1f} to {100 * end:.1f} percent"
    return row


def _colour(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def _percent(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{100 * value:.2f}{unit}"


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
