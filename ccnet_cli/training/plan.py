"""What a training run is going to do, decided and checked before anything is written."""

import glob
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ccnet_cli import config, files
from ccnet_cli.devices import computes_bf16, local_device
from ccnet_cli.errors import EnvironmentFailure, InputError, notice
from ccnet_cli.runs import checkpoint
from ccnet_cli.runs.fields import check_resumable
from ccnet_cli.runs.folder import uncount_refusal
from ccnet_cli.runs.lease import Lease
from ccnet_cli.training.request import TrainRequest

# through which torch's loader workers pass their batches
SHARED_MEMORY = Path("/dev/shm")
# batches that wait for each worker, and that a process holds itself
PREFETCHED, HELD = 2, 2
# where runs without a folder of their own lie; with the time behind it, a name must fit into 255 bytes
RUNS = Path("runs")
MAX_NAME_BYTES = 200
# that a process opens while it trains, and for each of its workers
OWN_FILES, FILES_PER_WORKER = 24, 8
# of a process: more than 1 GiB of pixels as float32, and a hundred times that as maps
MAX_MICRO_BATCH_PIXELS = 1 << 27


@dataclass(frozen=True)
class Plan:
    """What every process of a run needs to know: the resolved preset, the run folder, the checkpoint to resume from.

    device is that of a run of one process; of several on CUDA, each takes its own. earlier_micro is the
    micro-batch that the run had before it was resumed. lease is the right to write into the folder, once there is one.
    """

    request: TrainRequest
    preset: config.Preset
    run: Path
    processes: int
    device: torch.device
    resume: Path | None = None
    earlier_micro: int | None = None
    lease: Lease | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.run / "checkpoints"

    @property
    def counted(self) -> Path | None:
        """The checkpoint whose resumes are counted: one that was not named is not tried for ever."""
        return self.resume if self.request.resume in (None, "auto") else None

    @property
    def micro_batch(self) -> int:
        """Images that one process computes at once: after a resume no more than before, so that memory suffices.

        InputError where the global batch does not divide.
        """
        train = self.preset.train
        check_world_sizes(train.batch, [self.processes])
        local = train.batch // self.processes
        if train.micro_batch:
            micro = min(train.micro_batch, local)
            if local % micro:
                why = f"does not divide the {local} images of a process"
                raise InputError(f"preset key train.micro_batch: {micro}", why, "choose a divisor")
            return micro
        return max(size for size in divisors(local) if size <= max(self.earlier_micro or local, 1))

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step."""
        return self.preset.train.batch // (self.processes * self.micro_batch)


def divisors(number: int) -> list[int]:
    """What divides a number, the smallest first."""
    return [size for size in range(1, number + 1) if number % size == 0]


def check_world_sizes(batch: int, sizes: Sequence[int]) -> None:
    """InputError where the global batch does not divide among one of these numbers of processes."""
    possible = divisors(batch)
    for size in sizes:
        if size not in possible:
            fix = f"use {', '.join(map(str, possible[:20]))} processes, or another batch"
            raise InputError(f"preset key train.batch: {batch}", f"does not divide among {size} processes", fix)


def make_plan(
    request: TrainRequest,
    processes: int | None = None,
    run: Path | None = None,
    claim: Callable[[Path], Lease] | None = None,
) -> tuple[Plan, dict[str, Any] | None]:
    """The plan of a request, and the content of the checkpoint to resume from; InputError for what cannot run here.

    processes is the number over all nodes, that of one node if None; run the folder that the processes had before they
    were restarted. claim takes a folder's lease, before its checkpoints are read.
    """
    device = local_device(request.gpus, request.processes, request.device)
    preset = resolve(request.preset, device)
    _check(request, preset, device)
    restarted = run is not None
    run, lease = run or request.run or _default_run(request, preset.name), None
    if claim and run.is_dir() and (request.resume == "auto" or restarted):
        lease = claim(run)
    resume, content = _resume_from(request, run, restarted, counted=lease is not None)
    with uncount_refusal(resume if lease else None):
        micro = _earlier_micro_batch(content, preset.train.batch) if content else None
        plan = Plan(request, preset, run, processes or request.local_processes, device, resume, micro, lease)
        _check_micro_batch(plan)
        _check_shared_memory(plan)
        files.reserve_handles(OWN_FILES + FILES_PER_WORKER * preset.data.workers)
        if plan.micro_batch == 1:
            notice("warning: batch normalisation sees one image at a time (micro batch 1)")
    return plan, content


def resolve(preset: config.Preset, device: torch.device) -> config.Preset:
    """The preset as the run folder keeps it: no automatic choice left, and data that are found from any folder."""
    train, data = preset.train, preset.data
    if train.precision == "auto":
        train = train.model_copy(update={"precision": "bf16" if computes_bf16(device) else "fp32"})
    if data.root is not None:
        data = data.model_copy(update={"root": str(Path(data.root).expanduser().resolve())})
    return preset.model_copy(update={"train": train, "data": data})


def _check(request: TrainRequest, preset: config.Preset, device: torch.device) -> None:
    """InputError for settings that no run here can have, and options that contradict each other."""
    if preset.train.precision == "fp16" and device.type == "cpu":
        raise InputError("preset key train.precision: fp16", "needs a GPU", "use bf16 or fp32")
    if preset.train.batch == 1:
        raise InputError("preset key train.batch: 1", "batch normalisation needs 2 images or more", "use 2 or more")
    for name in preset.log.trackers:
        if find_spec(name) is None:
            raise InputError(f"preset key log.{name}", "not installed", f"run pip install 'ccnet-cli[{name}]'")
    if request.weights and request.resume:
        raise InputError("option --weights", "--resume is given too", "give one of them")
    if request.strict and not request.resume:
        raise InputError("option --strict-resume", "there is nothing to resume", "add --resume")
    if request.take_over and not request.resume:
        raise InputError("option --take-over", "there is nothing to resume", "add --resume")
    if request.partial and not request.weights:
        raise InputError("option --allow-partial", "there are no weights to take in part", "add --weights FILE")


def _default_run(request: TrainRequest, name: str) -> Path:
    """The folder of the file to resume from, of the preset's newest run if any is to be resumed, or a new one."""
    if request.resume not in (None, "auto"):
        parent = Path(request.resume or "").parent
        return parent.parent if parent.name == "checkpoints" else parent
    is_plain = Path(name).name == name and name not in ("", "..") and "\0" not in name
    if not is_plain or len(os.fsencode(name)) > MAX_NAME_BYTES:
        why = "cannot name a folder below ./runs"
        raise InputError(f"preset key name: {name[:40] or '(empty)'}", why, "choose another name, or add --run DIR")
    newest = _newest_run(name) if request.resume else None
    return newest or RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _resume_from(
    request: TrainRequest, run: Path, restarted: bool, counted: bool
) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint to resume from with its content, if there is one; restarted if the run began before."""
    if request.resume == "auto" or restarted:
        newest = checkpoint.read_newest(run / "checkpoints", counted, check_resumable)
        if newest is not None:
            return newest
        if not restarted:
            notice(f"nothing to resume{f' in {run}' if run.exists() else ''}: starting a new run")
    if request.resume not in (None, "auto"):
        path = Path(request.resume or "")
        return path, _read_resumable(path)
    if run.exists() and not run.is_dir():
        raise InputError(run, "is not a folder", "choose another --run")
    if request.resume is None and not restarted and run.exists() and any(run.iterdir()):
        raise InputError(run, "is not an empty folder", "continue it with --resume, or choose another --run")
    return None, None


def _earlier_micro_batch(content: dict[str, Any], batch: int) -> int | None:
    """The micro-batch of the run that wrote a checkpoint, if it had the same global batch."""
    before = content["training"].get("circumstances", {})
    if not isinstance(before, dict) or before.get("global_batch") != batch:
        return None
    size, accumulation = before.get("world_size"), before.get("accumulation")
    return batch // (size * accumulation) if size and accumulation else None


def _check_micro_batch(plan: Plan) -> None:
    """InputError for images that no machine has the memory to train on at once."""
    height, width = plan.preset.data.crop
    frames = plan.preset.data.frames
    if plan.micro_batch * frames * height * width > MAX_MICRO_BATCH_PIXELS:
        what = f"{plan.micro_batch} crops of {f'{frames}x' if frames > 1 else ''}{height}x{width}"
        fix = "set train.micro_batch, or a smaller data.crop"
        raise InputError(what, f"more than {MAX_MICRO_BATCH_PIXELS} pixels at once", fix)


def _read_resumable(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; InputError if no run can be resumed from it."""
    content = checkpoint.read(path)
    if not checkpoint.is_resumable(content):
        raise InputError(path, "holds weights alone, not a run's state", "use --weights to start from it")
    if checkpoint.STEP.fullmatch(path.stem) and not path.with_suffix(".json").is_file():
        raise InputError(path, "has no manifest: it counts as never written", "resume from an earlier one")
    check_resumable(content, path)
    return content


def _newest_run(name: str) -> Path | None:
    """The run of a preset below ./runs that wrote a checkpoint last."""
    folders = (run / "checkpoints" for run in RUNS.glob(f"{glob.escape(name)}-*"))
    newest = [paths[0] for folder in folders if (paths := checkpoint.list_checkpoints(folder))]
    return max(newest, key=lambda path: path.stat().st_mtime).parent.parent if newest else None


def _check_shared_memory(plan: Plan) -> None:
    """EnvironmentFailure where the workers' batches have no room: a worker that cannot pass one on hangs."""
    data = plan.preset.data
    height, width = data.crop
    # an image of 3 float32 and a label of one int64 for each pixel
    batch = plan.micro_batch * height * width * (data.frames * 3 * 4 + 8)
    needed = plan.processes * (data.workers * PREFETCHED + HELD) * batch
    if not data.workers or not SHARED_MEMORY.is_dir():
        return
    space = os.statvfs(SHARED_MEMORY)
    free = space.f_bavail * space.f_frsize
    if free < needed:
        why = f"{free >> 20} MiB free, the data workers need {-(-needed >> 20)}"
        raise EnvironmentFailure(SHARED_MEMORY, why, "make it larger (docker run --shm-size), or set data.workers=0")
