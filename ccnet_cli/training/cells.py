"""The cells of a comparison: each is a run of one row and one seed, scored by its last checkpoint."""

import json
import shutil
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ccnet_cli import config, files
from ccnet_cli.datasets import classes_of
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.models import network as models
from ccnet_cli.parallel.group import Group, Worker
from ccnet_cli.runs import checkpoint
from ccnet_cli.runs.lease import hold
from ccnet_cli.training import process
from ccnet_cli.training.record import read_log
from ccnet_cli.training.request import TrainRequest

Score = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A row's name, the preset with its head and its seed, and the folder of its run."""

    row: str
    preset: config.Preset
    run: Path

    @property
    def seed(self) -> int:
        """The seed of weights and data order."""
        return self.preset.seed

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}"

    def score(self) -> Score | None:
        """What the finished cell scored, None before that."""
        path = self.run / "score.json"
        try:
            score: Score = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(path, f"cannot be read ({error})", "delete it, and it is made again") from None
        return score

    def require_recipe(self) -> None:
        """InputError where the run that is there was made with other settings."""
        path = self.run / "preset.yaml"
        if path.is_file() and (keys := config.differences(config.load(str(path)), self.preset)):
            fix = "compare as before, or in another folder"
            raise InputError(self.run, f"was trained with other values of {', '.join(keys)}", fix)

    @contextmanager
    def claim(self, locks: Path) -> Iterator[bool]:
        """Keep others from this cell; False, and no claim, where a live process has it."""
        folder = locks / f"{self.run.parent.name}-{self.run.name}"
        files.make_folder(folder)
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(folder))
                free = True
            except InputError:
                free = False
            yield free


def finish(cell: Cell, worker: Worker, device: torch.device, weights: Path | None) -> Score:
    """Train a cell to its end from where it is, and score it; only its owner may call this."""
    cell.require_recipe()
    resumed = bool(checkpoint.list_checkpoints(cell.run / "checkpoints"))
    if not resumed:
        # what a kill before the first checkpoint left
        shutil.rmtree(cell.run, ignore_errors=True)
    resume, start = ("auto", None) if resumed else (None, weights)
    request = TrainRequest(cell.preset, cell.run, resume, weights=start, device=str(device))
    with ExitStack() as resources:
        plan, inputs = process.prepare(request, Group(device), resources)
        process.run(worker, request, device, plan, inputs)
    score = _score(cell)
    files.write_bytes(cell.run / "score.json", files.to_json(score, 1).encode())
    return score


def _score(cell: Cell) -> Score:
    """The figures of the last checkpoint, as training scored it, and how far the head's gates have opened."""
    steps, batch = cell.preset.schedule.steps, cell.preset.train.batch
    rows = read_log(cell.run / "log.jsonl")
    scored = next((row for row in reversed(rows) if row["step"] == steps and "classes" in row), None)
    if scored is None:
        raise EnvironmentFailure(cell.run, "its log lacks the last score", "delete the folder, and start again")
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    figures = {key: scored.get(key) for key in ("miou", "pixel_accuracy", "mean_accuracy")}
    gates = read_gates(cell.preset, checkpoint.read(cell.run / "last.pt")["model"])
    step_ms = 1000 * batch / statistics.median(rates) if rates else None
    around = json.loads((cell.run / "environment.json").read_text(encoding="utf-8"))
    device = f"{around['device']}, {around['threads']} of {around['cpus']} cores, {around['platform']}"
    counts = {"steps": steps, "samples": steps * batch, "step_ms": step_ms, "device": device}
    return {"row": cell.row, "seed": cell.seed, **figures, "classes": scored["classes"], "gates": gates, **counts}


def read_gates(preset: config.Preset, weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """What a head begins at zero and has opened since: a single number's value, otherwise the norm.

    That is gamma of CCNet and DANet, the last norm's weight of a non-local block, the last convolution of GC and OCNet.
    """
    network = models.build(preset.model, len(classes_of(preset.data)))
    gates = {}
    for name, parameter in network.head.named_parameters():
        if not parameter.any() and not name.endswith("bias"):
            value = weights[f"head.{name}"].float()
            gates[name] = float(value) if value.numel() == 1 else float(value.norm())
    return gates
