"""Compare context heads: every row and seed trained under one recipe, on one machine or shared over processes."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ccnet_cli import config, files
from ccnet_cli.config.rows import COMPARED, NONE, with_heads
from ccnet_cli.datasets import classes_of
from ccnet_cli.datasets.source import open_source
from ccnet_cli.devices import local_device
from ccnet_cli.errors import InputError, Interrupted, NonFiniteError, notice
from ccnet_cli.figures import comparison
from ccnet_cli.models.settings import Model
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import Worker, share_store
from ccnet_cli.training import cells
from ccnet_cli.training.cells import Cell
from ccnet_cli.training.plan import resolve
from ccnet_cli.training.start import choose
from ccnet_cli.version import describe
from ccnet_cli.weights.load import read_start
from ccnet_cli.weights.presets import adopt_input

# what the heads of rows cost on the map of a crop: (models, crop, classes, device) -> the values of a report
Measure = Callable[[Mapping[str, Model], tuple[int, int], int, str], dict[str, Any]]
# variables by which a launcher's processes would train one cell together
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID")


@dataclass(frozen=True)
class CompareRequest:
    """Which heads to compare under a preset, with as many seeds from the preset's on, in which folder.

    heads are rows as `config.rows` has them, all of COMPARED if None. weights, a file, begins every run; gpus or
    processes are the workers that take cells, each by itself.
    """

    preset: config.Preset
    output: Path
    heads: tuple[str, ...] | None = None
    seeds: int = 3
    weights: Path | None = None
    device: str = "auto"
    gpus: int | None = None
    processes: int = 1


@dataclass(frozen=True)
class Job:
    """What every worker knows: the folder, the recipe, its rows' costs, and the cells, seed by seed."""

    output: Path
    recipe: config.Preset
    cost: dict[str, Any]
    cells: list[Cell]
    weights: Path | None

    def write(self) -> dict[str, Any]:
        """Write table, page and JSON of the cells that are finished; their values."""
        while True:
            scores: dict[str, dict[int, Any]] = {}
            for cell in self.cells:
                scores.setdefault(cell.row, {})[cell.seed] = cell.score()
            values = self._values(scores)
            comparison.write(self.output, values, scores)
            # another worker may have finished one meanwhile, and have written before this one
            if all((cell.score() is None) == (scores[cell.row][cell.seed] is None) for cell in self.cells):
                return values

    def _values(self, scores: comparison.Scores) -> dict[str, Any]:
        costs = {row["head"]: row for row in self.cost["heads"]}
        heads = {cell.row: config.value(cell.preset, "model.head") for cell in self.cells}
        rows = [
            {**row, "settings": heads[row["head"]], "cost": {key: costs[row["head"]][key] for key in comparison.COSTS}}
            for row in comparison.summarise(scores, NONE)
        ]
        return {
            "version": describe(),
            "preset": self.recipe.name,
            "seeds": list(next(iter(scores.values()))),
            "missing": [[row, seed] for row, own in scores.items() for seed, score in own.items() if score is None],
            "recipe": config.to_mapping(self.recipe),
            "weights": None if self.weights is None else str(self.weights),
            "rows": rows,
            "cost": {
                key: value
                for key, value in self.cost.items()
                if key not in ("heads", "increments", "settings", "repeats")
            },
        }


def compare(request: CompareRequest, measure: Measure) -> dict[str, Any]:
    """Train and score the cells that are not finished, and no other command has in hand; the values of compare.json.

    Each cell continues where it was. Processes of torchrun or SLURM take cells each for itself. Raises InputError where
    the folder holds something else or another recipe, Interrupted after a signal, its checkpoint written, and
    NonFiniteError for a cell that diverged, once the others are finished.
    """
    device = local_device(request.gpus, request.processes, request.device)
    recipe = resolve(request.preset, device)
    weights = request.weights or choose(recipe)
    if weights is not None:
        recipe = adopt_input(recipe, read_start(weights).foreign.model, source=str(weights))
    job = Job(request.output, recipe, {}, _plan(request, recipe), weights)
    _claim_output(job)
    # the built-in set is drawn once, and what is missing is missed before the first cell
    for split in ("train", "val"):
        open_source(recipe.data, split)
    cost = _measure(job, measure, request.device if request.gpus is None else "cuda")
    job = replace(job, cost=cost)
    job.write()
    count = request.gpus or request.processes
    if count > 1:
        answers = supervisor.run(_work, (job, device), count, restarts=count, independent=True)
    else:
        answers = [_work(Worker(), job, device)]
    values = job.write()
    failures = [failure for answer in answers for failure in answer]
    if failures:
        raise NonFiniteError(*failures[0])
    return values


def _plan(request: CompareRequest, recipe: config.Preset) -> list[Cell]:
    """The cells, all rows of the first seed first: what there is at any time compares all rows."""
    rows = with_heads(recipe, request.heads, COMPARED)
    names = _make_names(rows)
    return [
        Cell(row, preset.model_copy(update={"seed": seed}), request.output / "cells" / names[row] / f"seed-{seed}")
        for seed in range(recipe.seed, recipe.seed + request.seeds)
        for row, preset in rows.items()
    ]


def _make_names(rows: Iterable[str]) -> dict[str, str]:
    """The folders' names of rows; InputError where two would have the same."""
    names = {row: re.sub(r"[^\w=.-]+", "-", row) for row in rows}
    for row, name in names.items():
        if other := next((one for one in names if one != row and names[one] == name), None):
            raise InputError(f"option --head {row}", f"has the folder of {other} too", "write one of them otherwise")
    return names


def _claim_output(job: Job) -> None:
    """Make the folder, or see that it holds this recipe's comparison."""
    output, path = job.output, job.output / "recipe.yaml"
    if output.exists() and not output.is_dir():
        raise InputError(output, "is not a folder", "name another one")
    if path.is_file():
        before = config.load(str(path))
        keys = [key for key in config.differences(before, job.recipe) if not key.startswith("model.head")]
        values = _read(output / "compare.json")
        if values and values["weights"] != (job.weights and str(job.weights)):
            keys.append("--weights")
        if keys:
            why = f"holds a comparison with other values of {', '.join(keys)}"
            raise InputError(output, why, "compare as before, or in another folder")
    elif output.is_dir() and any(not files.is_temporary(each.name) for each in output.iterdir()):
        raise InputError(output, "is not an empty folder, nor one of a comparison", "name a new folder")
    else:
        files.write_bytes(path, config.dump(job.recipe).encode())
    for cell in job.cells:
        cell.require_recipe()


def _measure(job: Job, measure: Measure, device: str) -> dict[str, Any]:
    """The costs of the rows' heads on a map of one crop, measured once for a folder: later, others would be at work."""
    models = {cell.row: cell.preset.model for cell in job.cells}
    data = job.recipe.data
    settings = {row: model.model_dump(mode="json") for row, model in models.items()}
    path = job.output / "cost.json"
    before = _read(path)
    if before and settings.items() <= before["settings"].items() and before["crop"] == list(data.crop):
        return before
    measured = measure(models, data.crop, len(classes_of(data)), device)
    text = files.to_json({**measured, "settings": settings, "crop": data.crop}, 1)
    files.write_bytes(path, text.encode())
    # as a later command reads it
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    """A file of the comparison; empty where there is none yet."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read ({error})", "delete it, and it is made again") from None
    return content


def _work(worker: Worker, job: Job, device: torch.device) -> list[tuple[str, str, str]]:
    """Take cells until none is left that nobody has in hand; what, why and fix of those that diverged."""
    if worker.is_supervised:
        with share_store(device) as group:
            return _take_cells(worker, job, group.device)
    return _take_cells(worker, job, device)


def _take_cells(worker: Worker, job: Job, device: torch.device) -> list[tuple[str, str, str]]:
    for name in LAUNCHED:
        os.environ.pop(name, None)
    failures = []
    for cell in job.cells:
        with cell.claim(job.output / "locks") as free:
            if not free or cell.score() is not None:
                continue
            try:
                score = cells.finish(cell, worker, device, job.weights)
            except NonFiniteError as error:
                notice(f"warning: {cell}: {error}")
                failures.append((str(cell), error.why, error.fix))
                continue
            except Interrupted as stop:
                fix = "start the same command again to go on"
                raise Interrupted(job.output, f"stopped in {cell} ({stop.why})", fix, stop.number) from None
            notice(f"{cell}: mIoU {score['miou']:.4f}" if score["miou"] is not None else f"{cell}: nothing to score")
        job.write()
    return failures
