"""What a comparison of heads found: means and ranges over seeds, what they allow to say, as JSON, CSV and a page."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccnet_cli import files
from ccnet_cli.errors import one_line
from ccnet_cli.figures import charts, pages

Values = dict[str, Any]
# a row's name -> each seed -> what its cell scored, None where it is missing
Scores = Mapping[str, Mapping[int, Values | None]]

COSTS = (
    *("parameters", "head_parameters", "block_parameters", "head_gflop", "block_gflop"),
    *("inference_mib", "training_mib", "forward_ms", "both_ms"),
)
CELL_COLUMNS = ("head", "seed", "state", "miou", "from_none", "pixel_accuracy", "mean_accuracy", "gates", "step_ms")
QUALITY = (
    *("head", "n", "mIoU %", "least", "greatest", "above none", "least", "greatest", "not separated from"),
    *("gates", "missing seeds"),
)
# columns of words, the others are numbers
WORDS = ("not separated from", "gates", "missing seeds")
COST = ("head", "M", "head M", "block M", "GFLOP", "block GFLOP", "MiB infer", "MiB train", "ms", "ms both", "ms step")
NOTES = (
    "Every row has the same recipe, data in the same order for a seed, backbone with the same initial weights, and "
    "auxiliary head; a head's own further outputs have no loss unless the recipe names them. "
    "The learning rate is tuned for none of them.",
    "Scores are those of the last checkpoint, not of the best.",
    "Rows whose ranges over the seeds overlap are not separated: their order says nothing. One seed has no range.",
    "Gates are what a head begins at zero: those of few steps look like no attention.",
    "GFLOP is 2 per multiply-add of a head's forward pass of one image, memory the peak above its maps and weights.",
)


def summarise(scores: Scores, baseline: str) -> list[Values]:
    """Each row's figures over its seeds, above the baseline's, and the rows from which it is not separated."""
    found = {row: _mious(cells) for row, cells in scores.items()}
    devices = {score["device"] for cells in scores.values() for score in cells.values() if score is not None}
    rows = []
    for row, cells in scores.items():
        paired = [found[row][seed] - found[baseline][seed] for seed in found[row] if seed in found.get(baseline, {})]
        done = {seed: score for seed, score in cells.items() if score is not None}
        names = dict.fromkeys(name for score in done.values() for name in score["classes"])
        rows.append(
            {
                "head": row,
                **(_spread(found[row].values()) or {"n": 0, "mean": None, "min": None, "max": None}),
                "from_none": _spread(paired) if baseline in scores and row != baseline else None,
                "not_separated": [other for other in scores if other != row and _overlap(found[row], found[other])],
                "seeds": {str(seed): found[row].get(seed) for seed in cells},
                "gates": {str(seed): score["gates"] for seed, score in done.items()},
                "classes": {name: _spread(score["classes"].get(name) for score in done.values()) for name in names},
                # times of two devices are not compared
                "step_ms": _median(score["step_ms"] for score in done.values()) if len(devices) == 1 else None,
            }
        )
    return rows


def _mious(cells: Mapping[int, Values | None]) -> dict[int, float]:
    return {seed: score["miou"] for seed, score in cells.items() if score is not None and score["miou"] is not None}


def _spread(values: Iterable[float | None]) -> Values | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"n": len(known), "mean": statistics.fmean(known), "min": min(known), "max": max(known)}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _overlap(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether nothing separates two rows: their ranges overlap, or one has too few seeds for a range."""
    if not one or not other:
        return False
    ours, theirs = one.values(), other.values()
    return min(len(one), len(other)) < 2 or (min(ours) <= max(theirs) and min(theirs) <= max(ours))


def sheets(values: Values) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, headings and cells of the two tables: quality and cost."""
    rows, recipe = values["rows"], values["recipe"]
    steps, batch = recipe["schedule"]["steps"], recipe["train"]["batch"]
    quality = f"{values['preset']}, {steps} steps, {steps * batch:,} samples, seeds {_join(values['seeds'])}"
    measured = values["cost"]
    (height, width), threads = measured["size"], measured["threads"]
    cost = f"maps of 1 x {height}x{width}, {measured['device']}, {threads} thread{'s' if threads != 1 else ''}"
    return [
        (quality, *_drop_empty_ranges(QUALITY, [_quality(row) for row in rows])),
        (f"{cost}, torch {measured['torch']}", COST, [_cost(row) for row in rows]),
    ]


def _drop_empty_ranges(headings: Sequence[str], rows: list[list[str]]) -> tuple[Sequence[str], list[list[str]]]:
    """A table without the columns of ranges that no row has."""
    used = [
        column
        for column, name in enumerate(headings)
        if name not in ("least", "greatest") or any(row[column] for row in rows)
    ]
    return [headings[column] for column in used], [[row[column] for column in used] for row in rows]


def _quality(row: Values) -> list[str]:
    gates = [_gates(gates) for gates in row["gates"].values() if gates]
    missing = [seed for seed, miou in row["seeds"].items() if miou is None]
    alike = {0: "", 1: "any: one seed"}.get(row["n"], _join(row["not_separated"], "; ") or "-")
    return [
        row["head"],
        str(row["n"]),
        *_percents(row),
        *_percents(row["from_none"]),
        alike,
        _join(gates, " | "),
        _join(missing),
    ]


def _percents(spread: Values | None) -> list[str]:
    """Mean, least and greatest; one seed has no range."""
    if spread is None or not spread["n"]:
        return ["", "", ""]
    keys = ("mean", "min", "max")[: 1 if spread["n"] == 1 else 3]
    return [f"{100 * spread[key]:.2f}" for key in keys] + [""] * (3 - len(keys))


def _gates(gates: Mapping[str, float]) -> str:
    return " ".join(f"{value:.3g}" for value in gates.values())


def _cost(row: Values) -> list[str]:
    units = (1e6, 1e6, 1e6, 1, 1, 1, 1, 1, 1)
    cost = [row["cost"].get(key) for key in COSTS]
    cells = ["" if value is None else f"{value / unit:.3g}" for value, unit in zip(cost, units, strict=True)]
    return [row["head"], *cells, "" if row["step_ms"] is None else f"{row['step_ms']:.0f}"]


def _join(values: Iterable[Any], between: str = ", ") -> str:
    return between.join(map(str, values))


def write(folder: Path, values: Values, scores: Scores) -> None:
    """Write compare.json, compare.csv and report.html, each whole or not at all."""
    files.write_bytes(folder / "compare.json", f"{files.to_json(values, 1)}\n".encode())
    files.write_bytes(folder / "compare.csv", _csv(values, scores).encode())
    files.write_bytes(folder / "report.html", _page(values).encode())


def _csv(values: Values, scores: Scores) -> str:
    """One line for each cell, the missing ones too."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [*CELL_COLUMNS, *COSTS], extrasaction="ignore", restval="")
    writer.writeheader()
    base = {seed: miou for row in values["rows"] if row["head"] == "none" for seed, miou in row["seeds"].items()}
    for row in values["rows"]:
        for seed, score in scores[row["head"]].items():
            cell = {"head": row["head"], "seed": seed, "state": "missing" if score is None else "scored", **row["cost"]}
            if score is not None:
                above = None if None in (score["miou"], base.get(str(seed))) else score["miou"] - base[str(seed)]
                cell |= {**score, "from_none": above, "gates": _gates(score["gates"])}
            writer.writerow({key: "" if value is None else value for key, value in cell.items()})
    return table.getvalue()


def _page(values: Values) -> str:
    rows = values["rows"]
    what = "mean and range" if any(row["n"] > 1 for row in rows) else "one seed"
    mious = {row["head"]: [100 * miou for miou in row["seeds"].values() if miou is not None] for row in rows}
    plots = [
        charts.Scatter(title, {row["head"]: (row["cost"][key], mious[row["head"]]) for row in rows}, unit)
        for title, key, unit in (
            (f"mIoU %, {what}", "head_gflop", "GFLOP of the head"),
            (f"mIoU %, {what}", "training_mib", "MiB of the head in training"),
        )
    ]
    names = list(dict.fromkeys(name for row in rows for name in row["classes"]))
    classes = [
        [one_line(name), *(_range(row["classes"].get(name)) for row in rows)] for name in names if _known(rows, name)
    ]
    recipe = {key: value for key, value in values.items() if key not in ("rows", "cost")}
    return pages.render(
        "compare.html",
        style=(pages.FOLDER / "report.css").read_text(encoding="utf-8"),
        title=f"Heads on {values['preset']}",
        version=values["version"],
        notes=NOTES,
        missing=[f"{row}, seed {seed}" for row, seed in values["missing"]],
        plots=[(plot.x_label, pages.png(charts.scatter_charts([plot]))) for plot in plots],
        words=WORDS,
        sheets=[
            *sheets(values),
            (f"IoU % of each class, {what}", ["class", *(row["head"] for row in rows)], classes),
        ],
        recipe=files.to_json(recipe, 1),
    )


def _known(rows: Sequence[Values], name: str) -> bool:
    return any(row["classes"].get(name) for row in rows)


def _range(spread: Values | None) -> str:
    if spread is None:
        return ""
    mean, least, greatest = (f"{100 * spread[key]:.1f}" for key in ("mean", "min", "max"))
    return mean if spread["n"] == 1 else f"{mean} ({least} to {greatest})"
