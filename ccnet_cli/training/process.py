"""One process of a run: it opens the data, builds the trainer or resumes it, and runs the loop."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ccnet_cli import config, files
from ccnet_cli.datasets.report import count_pixels, warn_of_dead_labels, warn_of_shared_images
from ccnet_cli.datasets.source import Source, open_source
from ccnet_cli.datasets.training import watch_workers
from ccnet_cli.errors import InputError, notice
from ccnet_cli.parallel.group import Group, Worker, join_group
from ccnet_cli.runs import checkpoint
from ccnet_cli.runs import folder as runfolder
from ccnet_cli.runs.fields import DamagedError, check_resumable
from ccnet_cli.runs.lease import Lease, hold
from ccnet_cli.training import trainer as trainers
from ccnet_cli.training.loop import Loop, is_over, name_checkpoint, score_due
from ccnet_cli.training.plan import Plan, make_plan
from ccnet_cli.training.record import Record, environment
from ccnet_cli.training.request import TrainRequest
from ccnet_cli.training.start import begin
from ccnet_cli.training.state import seed_rank
from ccnet_cli.training.trackers import Trackers
from ccnet_cli.weights.load import Start, read_start


@dataclass
class Inputs:
    """What `prepare` has read, so that a run of one process reads nothing twice; content is that of a checkpoint."""

    source: Source | None = None
    start: Start | None = None
    content: dict[str, Any] | None = None


def prepare(request: TrainRequest, group: Group, resources: ExitStack) -> tuple[Plan, Inputs]:
    """Build, validate and announce the plan, and read its inputs; after a restart, reuse the run folder.

    resources keeps the run folder for this run.
    """
    # a SLURM job that was requeued recalls nothing
    earlier = group.recall("run") or (request.run if group.attempt else None)
    processes = group.world_size if group.world_size > 1 else None

    def claim(run: Path) -> Lease:
        runfolder.check(run)
        return resources.enter_context(hold(run, request.take_over, group.recall("lease")))

    plan, content = make_plan(request, processes, Path(earlier) if earlier else None, claim)
    group.remember("run", str(plan.run))
    with runfolder.uncount_refusal(plan.counted if plan.lease else None):
        plan, start = begin(plan, content)
        preset = plan.preset
        splits, tolerate = ("train", "val"), request.tolerate_damage
        opened = {split: replace(open_source(preset.data, split), tolerate_damage=tolerate) for split in splits}
        for split, each in opened.items():
            warn_of_dead_labels(each, split)
        warn_of_shared_images(opened["train"], opened["val"])
        resources.enter_context(_run_folder(plan))
    plan = plan if plan.lease else replace(plan, lease=claim(plan.run))
    assert plan.lease is not None
    group.remember("lease", plan.lease.token)
    count = f"{plan.processes} process{'es' if plan.processes > 1 else ''}"
    batch = f"global batch {preset.train.batch} = {count} x {plan.micro_batch} images"
    length = f"{preset.schedule.steps} steps, {preset.train.precision}"
    notice(f"{plan.run}: {batch} x {plan.accumulation} accumulated, {length}")
    return plan, Inputs(opened["train"], start, content)


def _read_start(request: TrainRequest) -> Start | None:
    return read_start(request.weights, request.partial) if request.weights else None


@contextmanager
def _run_folder(plan: Plan) -> Iterator[None]:
    """Make the run folder; remove it again if bad input stops the run before its first checkpoint."""
    plan.run.parent.mkdir(parents=True, exist_ok=True)
    existed = True
    with suppress(FileExistsError):
        plan.run.mkdir()
        existed = False
    try:
        yield
    except InputError:
        if not existed and not checkpoint.list_checkpoints(plan.checkpoints):
            shutil.rmtree(plan.run)
        raise


def run(
    worker: Worker, request: TrainRequest, device: torch.device, plan: Plan | None = None, inputs: Inputs | None = None
) -> Path | None:
    """Train in this process, by the plan given or by one that rank 0 makes and broadcasts; the run folder.

    In the second case all ranks but the first return None.
    """
    inputs = inputs or Inputs()
    with join_group(device, request.limits, worker.is_supervised) as group, worker.signals(group) as stop_signal:
        with ExitStack() as resources:
            own = plan or group.decide_on_rank0(lambda: prepare(request, group, resources)[0])
            # of a plan made before processes were restarted
            if plan and group.attempt:
                own = replace(own, resume=group.decide_on_rank0(lambda: _newest(own)) or own.resume)
            _train(own, inputs, group, stop_signal)
        return own.run if plan or group.rank == 0 else None


def _train(plan: Plan, inputs: Inputs, group: Group, stop_signal: Callable[[], int]) -> None:
    preset = plan.preset
    with _uncount_refusal(plan, group):
        group.decide_on_rank0(lambda: _clear_folder(plan))
        trainer = _make_trainer(plan, inputs, group)
    plan = _resume(trainer, plan, inputs.content, group)
    # their weights would take memory for as long as the run lasts
    inputs.start = inputs.content = None
    with _uncount_refusal(plan, group):
        record = None
        if group.rank == 0:
            record = Record(plan.run, trainer.step, trainer.loss_names)
        score_first = group.broadcast(record is not None and _is_unscored(plan, trainer.step, record))
        if is_over(plan, trainer) and not score_first:
            if record:
                if plan.counted:
                    runfolder.forget_attempts(plan.counted)
                early = trainer.step < preset.schedule.steps and trainer.patience
                why = f", {early.describe()}" if early else ""
                notice(f"nothing to do: {plan.run} has done {trainer.step} of {preset.schedule.steps} steps{why}")
            return
        if record:
            # not before the checkpoint is known to fit: a resume that is refused leaves the run as it was
            files.write_bytes(plan.run / "preset.yaml", config.dump(preset).encode())
            text = files.to_json(environment(group.device, plan.processes), 1)
            files.write_bytes(plan.run / "environment.json", text.encode())
            record.trackers = Trackers(plan.run, preset.log.trackers, config.dump(preset))
        with watch_workers():
            Loop(plan, trainer, record, stop_signal).run(score_first)
        files.failpoint("at_exit")


def _newest(plan: Plan, before: Path | None = None) -> Path | None:
    """The run's newest sound checkpoint, of those before one, if there is any."""
    newest = checkpoint.read_newest(plan.checkpoints, True, check_resumable, before)
    return newest[0] if newest else None


def _uncount_refusal(plan: Plan, group: Group) -> AbstractContextManager[None]:
    return runfolder.uncount_refusal(plan.counted if group.rank == 0 else None)


def _clear_folder(plan: Plan) -> None:
    """Delete what dead processes left in the run folder, if it still is this run's."""
    if plan.lease is not None:
        plan.lease.confirm()
    files.sweep(plan.run)
    checkpoint.delete_leftovers(plan.checkpoints)


def _make_trainer(plan: Plan, inputs: Inputs, group: Group) -> trainers.Trainer:
    """The trainer at the start of the run, with the same weights on all ranks."""
    preset, request = plan.preset, plan.request
    torch.manual_seed(preset.seed)
    source = group.run_on_all_ranks(lambda: inputs.source or open_source(preset.data, "train"))
    source = replace(source, tolerate_damage=request.tolerate_damage)

    def build() -> trainers.Trainer:
        return trainers.build(preset, source, group, inputs.start or _read_start(request))

    trainer = group.run_on_all_ranks(build)
    trainer.accumulation = plan.accumulation
    seed_rank(preset.seed, group.rank)
    objective = trainer.network.objective
    if objective.needs_pixels and not plan.resume:
        objective.weigh(group.decide_on_rank0(lambda: count_pixels(source)))
    return trainer


def _resume(trainer: trainers.Trainer, plan: Plan, content: dict[str, Any] | None, group: Group) -> Plan:
    """Continue from the plan's checkpoint, if it has one; where its values are damaged, from the newest before it.

    The plan with the checkpoint that was taken.
    """
    resume, strict = plan.resume, plan.request.strict
    if resume is None:
        return plan
    with _uncount_refusal(plan, group):
        try:
            group.run_on_all_ranks(lambda: trainer.resume(content or checkpoint.read(resume), resume, strict))
            if group.rank == 0 and resume.parent == plan.checkpoints:
                # a kill may have come between the checkpoint and its names
                name_checkpoint(plan, trainer, resume)
            return plan
        except DamagedError as error:
            # one that was named is refused
            older = group.decide_on_rank0(lambda: _newest(plan, before=resume)) if plan.counted else None
            if older is None:
                raise
            notice(f"warning: skipped {error}")
    if group.rank == 0:
        runfolder.count_attempt(resume, -1)
    return _resume(trainer, replace(plan, resume=older), None, group)


def _is_unscored(plan: Plan, step: int, record: Record) -> bool:
    """Whether a signal or a crash kept the run from scoring the checkpoint that it now continues from."""
    resume = plan.resume
    own = resume is not None and plan.run in (resume.parent, resume.parent.parent)
    return own and score_due(plan, step) and not any("miou" in row for row in record.rows if row["step"] == step)
