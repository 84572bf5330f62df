"""What a training run is going to do, settled and checked before anything is written."""

import os
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from ccnet_cli import config
from ccnet_cli.errors import EnvironmentFailure, InputError, notice
from ccnet_cli.models.network import computes_bf16, share
from ccnet_cli.runs import checkpoint

# where torch's loader workers hand over their batches, by shared memory
SHARED = Path("/dev/shm")
# batches that each worker holds ready, and that a process has in hand
AHEAD, IN_HAND = 2, 2


@dataclass(frozen=True)
class Plan:
    """What every process of a run needs to know; resume is where to continue, weights where to begin.

    device is that of a run of one process; of several on CUDA, each takes its own. partial is read_start's, strict
    Trainer.restore's.
    """

    preset: config.Preset
    run: Path
    processes: int
    device: torch.device
    resume: Path | None
    weights: Path | None
    partial: bool
    strict: bool = False

    @property
    def micro_batch(self) -> int:
        """Images that one process computes at once; InputError where the global batch does not divide."""
        train = self.preset.train
        local, rest = divmod(train.batch, self.processes)
        if rest or not local:
            why = f"does not divide among {self.processes} processes"
            raise InputError(f"preset key train.batch: {train.batch}", why, "choose a multiple")
        micro = min(train.micro_batch or local, local)
        if local % micro:
            why = f"does not divide the {local} images of a process"
            raise InputError(f"preset key train.micro_batch: {micro}", why, "choose a divisor")
        return micro

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step."""
        return self.preset.train.batch // (self.processes * self.micro_batch)


def make(
    preset: config.Preset,
    run: Path | None,
    resume: str | None,
    gpus: int | None,
    processes: int,
    weights: Path | None,
    device: str,
    partial: bool = False,
    strict: bool = False,
    machines: int = 1,
    started: int | None = None,
    again: Path | None = None,
) -> Plan:
    """The plan that train's arguments ask for; InputError for what cannot run here.

    started is how many processes there are already, again the run folder of processes that were started anew.
    """
    place = share(gpus, processes, device)
    preset = _resolved(preset, place)
    if preset.train.precision == "fp16" and place.type == "cpu":
        raise InputError("preset key train.precision: fp16", "needs a GPU", "use bf16 or fp32")
    if preset.train.batch == 1:
        raise InputError("preset key train.batch: 1", "batch normalisation needs 2 images or more", "use 2 or more")
    if preset.log.tensorboard and find_spec("tensorboard") is None:
        raise InputError("preset key log.tensorboard", "not installed", "run pip install 'ccnet-cli[tensorboard]'")
    if weights and resume:
        raise InputError("option --weights", "--resume is given too", "give one of them")
    if strict and not resume:
        raise InputError("option --strict-resume", "there is nothing to resume", "add --resume")
    if partial and not weights:
        raise InputError("option --allow-partial", "there are no weights to take in part", "add --weights FILE")
    found = None
    if again is not None:
        run = again
    if resume == "auto":
        run = run or _newest_run(preset.name)
        found = _resumable(run) if run else None
        if found is None:
            notice(f"nothing to resume{f' in {run}' if run else ''}: starting a new run")
    elif resume is not None:
        found = Path(resume)
        if not checkpoint.is_resumable(checkpoint.read(found)):
            raise InputError(found, "holds weights alone, not a run's state", "use --weights to start from it")
        if checkpoint.STEP.fullmatch(found.stem) and not found.with_suffix(".json").is_file():
            raise InputError(found, "has no manifest: it counts as never written", "resume from an earlier one")
        run = run or (found.parent.parent if found.parent.name == "checkpoints" else found.parent)
    elif again is None and run is not None and run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(run, "is not an empty folder", "continue it with --resume, or choose another --run")
    run = run or Path("runs") / f"{preset.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    count = started or (gpus or processes) * machines
    plan = Plan(preset, run, count, place, found, weights, partial, strict)
    _check_shared_memory(plan)
    if plan.micro_batch == 1:
        notice("warning: batch normalisation sees one image at a time (micro batch 1)")
    return plan


def _check_shared_memory(plan: Plan) -> None:
    """EnvironmentFailure where the workers' batches have no room: a worker that fails to hand one over hangs."""
    data = plan.preset.data
    height, width = data.crop
    # an image of 3 float32 and a label of one int64 for each pixel
    batch = plan.micro_batch * height * width * (3 * 4 + 8)
    needed = plan.processes * (data.workers * AHEAD + IN_HAND) * batch
    if not data.workers or not SHARED.is_dir():
        return
    space = os.statvfs(SHARED)
    free = space.f_bavail * space.f_frsize
    if free < needed:
        why = f"{free >> 20} MiB free, the data workers need {-(-needed >> 20)}"
        raise EnvironmentFailure(SHARED, why, "make it larger (docker run --shm-size), or set data.workers=0")


def _resolved(preset: config.Preset, device: torch.device) -> config.Preset:
    """The preset as the run folder keeps it: no automatic choice left, and data that are found from any folder."""
    train, data = preset.train, preset.data
    if train.precision == "auto":
        train = train.model_copy(update={"precision": "bf16" if computes_bf16(device) else "fp32"})
    if data.root is not None:
        data = data.model_copy(update={"root": str(Path(data.root).expanduser().resolve())})
    return preset.model_copy(update={"train": train, "data": data})


def _newest_run(name: str) -> Path | None:
    folders = (run / "checkpoints" for run in Path("runs").glob(f"{name}-*"))
    newest = [paths[0] for folder in folders if (paths := checkpoint.list_checkpoints(folder))]
    return max(newest, key=lambda path: path.stat().st_mtime).parent.parent if newest else None


def _resumable(run: Path) -> Path | None:
    newest = checkpoint.read_newest(run / "checkpoints")
    return newest[0] if newest else None
