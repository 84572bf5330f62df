"""Train a model: one self-contained, resumable run folder."""

import ctypes
import functools
import json
import math
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ccnet_cli import config, datasets, files
from ccnet_cli.errors import EnvironmentFailure, InputError, Interrupted, NonFiniteError, notice
from ccnet_cli.figures import charts, report
from ccnet_cli.figures.report import Example, Worst, worst_of
from ccnet_cli.inference.scoring import score_network
from ccnet_cli.inference.views import Views
from ccnet_cli.media import images
from ccnet_cli.models.network import share
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import Group, Limits, joined, read_launch
from ccnet_cli.parallel.supervisor import Nodes, Worker
from ccnet_cli.progress import Progress
from ccnet_cli.runs import checkpoint
from ccnet_cli.runs import folder as runfolder
from ccnet_cli.training import plan as plans
from ccnet_cli.training import trainer as trainers
from ccnet_cli.training.plan import Plan
from ccnet_cli.training.record import Record, environment, mosaic
from ccnet_cli.training.schedule import learning_rate
from ccnet_cli.training.trainer import Trainer
from ccnet_cli.weights import load as loading

# periodic checkpoints in a row that the disk may refuse before the run ends
FAILED_SAVES = 3
# validation images that the report shows
WORST = 8
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    preset: config.Preset,
    run: Path | None = None,
    resume: str | None = None,
    gpus: int | None = None,
    processes: int = 1,
    weights: Path | None = None,
    device: str = "auto",
    partial: bool = False,
    strict: bool = False,
    nodes: Nodes | None = None,
    restarts: int = 0,
    limits: Limits | None = None,
) -> Path | None:
    """Train as the preset says and return the run folder, made below ./runs unless given.

    resume is "auto" (the run's newest sound checkpoint; a fresh start where there is none) or a checkpoint file.
    weights is a checkpoint or other people's weights to begin with; with partial, where most of the backbone fits.
    gpus and processes start that many processes on CUDA or the CPU of each of the machines; those that torchrun or
    SLURM started train together. All but the first machine or process return None. The global batch stays the
    preset's. Where the machine fails all start anew up to `restarts` times, from the newest checkpoint. With strict, a
    resume under other settings, data, threads or processes than before is refused. Raises InputError before anything is
    written, NonFiniteError before the step that would spoil the weights, and Interrupted after a signal, its checkpoint
    written.
    """
    nodes, limits = nodes or Nodes(), limits or Limits()
    launch = read_launch() if nodes.count == 1 else None
    if launch is not None and (gpus or processes > 1 or restarts):
        option = "--gpus" if gpus else "--processes" if processes > 1 else "--max-restarts"
        why = f"{launch.world_size} processes are started already, by torchrun or SLURM"
        raise InputError(f"option {option}", why, "leave it to them")
    make = functools.partial(
        *(plans.make, preset, run, resume, gpus, processes, weights, device, partial, strict),
        machines=nodes.count,
        started=launch.world_size if launch else None,
    )
    if launch is not None:
        return _work(Worker(), make, share(gpus, processes, device), limits)
    if nodes.count > 1:
        kind = share(gpus, processes, device)
        folder: Path | None = supervisor.run(_work, (make, kind, limits), gpus or processes, nodes, restarts, limits)
        return folder
    plan, source = _prepared(make, Group())
    with _folder(plan):
        if plan.processes > 1 or restarts:
            supervisor.run(_work, (plan, plan.device, limits), plan.processes, restarts=restarts, limits=limits)
        else:
            _work(Worker(), plan, plan.device, limits, source)
    return plan.run


def _prepared(make: Callable[..., Plan], group: Group) -> tuple[Plan, datasets.Source]:
    """The plan, checked and told, with its training data; of processes that were started anew, the plan of before."""
    before = group.recall("run")
    plan = make(again=Path(before) if before else None)
    group.remember("run", str(plan.run))
    preset = plan.preset
    if plan.weights:
        start = loading.read_start(plan.weights, plan.partial)
        loading.check_start(start, preset.model, len(datasets.classes_of(preset.data)))
    source, _ = (datasets.open_source(preset.data, split) for split in ("train", "val"))
    processes = f"{plan.processes} process{'es' if plan.processes > 1 else ''}"
    batch = f"global batch {preset.train.batch} = {processes} x {plan.micro_batch} images"
    length = f"{preset.schedule.steps} steps, {preset.train.precision}"
    notice(f"{plan.run}: {batch} x {plan.accumulation} accumulated, {length}")
    return plan, source


@contextmanager
def _folder(plan: Plan) -> Iterator[None]:
    """The run folder; one that the data ended before the first checkpoint leaves nothing worth keeping."""
    plan.run.parent.mkdir(parents=True, exist_ok=True)
    existed = True
    with suppress(FileExistsError):
        plan.run.mkdir()
        existed = False
    try:
        yield
    except InputError:
        if not existed and not checkpoint.list_checkpoints(plan.run / "checkpoints"):
            shutil.rmtree(plan.run)
        raise


def _work(
    worker: Worker,
    given: Plan | Callable[..., Plan],
    device: torch.device,
    limits: Limits,
    source: datasets.Source | None = None,
) -> Path | None:
    """One process of a run: of a plan, with its training data if they are open already, or of one by rank 0 for all."""
    with joined(device, limits, worker.supervised) as group, worker.signals(group) as asked:
        main = group.rank == 0
        if isinstance(given, Plan):
            _train(given, group, asked, source)
            return given.run
        plan = group.decide_on_rank0(lambda: _prepared(given, group)[0])
        with _folder(plan) if main else nullcontext():
            _train(plan, group, asked)
        return plan.run if main else None


def _train(plan: Plan, group: Group, asked: Callable[[], int], opened: datasets.Source | None = None) -> None:
    preset = plan.preset
    main = group.rank == 0
    resume = group.decide_on_rank0(lambda: _beginning(plan, group))
    with ExitStack() as held:
        group.decide_on_rank0(lambda: _alone(plan, resume, held))
        torch.manual_seed(preset.seed)
        source = group.run_on_all_ranks(lambda: opened or datasets.open_source(preset.data, "train"))
        trainer = group.run_on_all_ranks(lambda: trainers.build(preset, source, group, plan.weights, plan.partial))
        seed = preset.seed * 1000 + group.rank + 1
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if resume:
            group.run_on_all_ranks(lambda: trainer.restore(checkpoint.read(resume), resume, plan.strict))
            if main and resume.parent == plan.run / "checkpoints":
                # a kill may have come between the checkpoint and its names
                _name(plan, trainer, resume)
        record = Record(plan.run, trainer.step, preset.log.tensorboard, trainer.loss_names) if main else None
        owed = group.broadcast(record is not None and _owed(plan, resume, trainer.step, record))
        if trainer.step >= preset.schedule.steps and not owed:
            if main:
                notice(f"nothing to do: {plan.run} has done {trainer.step} of {preset.schedule.steps} steps")
            return
        if main:
            # not before the checkpoint is known to fit: a refused resume leaves the run as it was
            files.write_bytes(plan.run / "preset.yaml", config.dump(preset).encode())
            text = json.dumps(environment(group.device, plan.processes), indent=1)
            files.write_bytes(plan.run / "environment.json", text.encode())
        with datasets.watch_workers():
            _loop(plan, trainer, source, asked, record, owed)
        files.failpoint("at_exit")


def _alone(plan: Plan, resume: Path | None, held: ExitStack) -> None:
    """Hold the run folder, clear it of what dead processes left, and count the resume as an attempt."""
    folder = plan.run / "checkpoints"
    held.enter_context(runfolder.lock(plan.run))
    files.sweep(plan.run)
    checkpoint.delete_leftovers(folder)
    if resume is not None and resume.parent == folder:
        held.enter_context(runfolder.count_attempt(resume))


def _beginning(plan: Plan, group: Group) -> Path | None:
    """The checkpoint to continue from: processes that were started anew take the newest, if there is one by now."""
    newest = checkpoint.read_newest(plan.run / "checkpoints") if group.attempt else None
    return newest[0] if newest else plan.resume


def _due(preset: config.Preset, step: int) -> bool:
    """Whether the model is scored after this step."""
    return step == preset.schedule.steps or bool(step and preset.eval.every and step % preset.eval.every == 0)


def _owed(plan: Plan, resume: Path | None, step: int, record: Record) -> bool:
    """Whether a signal or a crash kept a run from scoring the checkpoint that it now continues from."""
    own = resume is not None and plan.run in (resume.parent, resume.parent.parent)
    return own and _due(plan.preset, step) and not any("miou" in row for row in record.rows if row["step"] == step)


class _Waited:
    """The same batches, and the seconds that they were waited for."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        started = time.monotonic()
        try:
            return next(self.batches)
        finally:
            self.seconds += time.monotonic() - started

    def spent(self) -> float:
        """The seconds since this was last asked."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def _loop(
    plan: Plan,
    trainer: Trainer,
    source: datasets.Source,
    asked: Callable[[], int],
    record: Record | None,
    owed: bool,
) -> None:
    preset, model = plan.preset, trainer.model
    steps = preset.schedule.steps
    network = trainer.group.replicate(trainer.network)
    arrived = datasets.to_device(
        datasets.raise_worker_errors(_loader(plan, source, trainer.group, trainer.step, trainer.seen)),
        model.normalisation.mean,
        model.normalisation.std,
        trainer.device,
        preset.train.channels_last,
    )
    batches = _Waited(arrived)
    progress = Progress(steps, trainer.step)
    val = datasets.open_source(preset.data, "val")
    model.train()
    losses: list[dict[str, float]] = []
    busy = logged = 0.0
    try:
        number = trainer.group.largest(asked())
        if owed and not number:
            number, better = _evaluate(trainer, val, record, asked)
            model.train()
            if better or not number:
                _save(plan, trainer, last=True)
        if number:
            if not checkpoint.list_checkpoints(plan.run / "checkpoints"):
                _save(plan, trainer, last=True)
            _stop(plan, trainer.step, number)
        while trainer.step < steps:
            started = time.monotonic()
            losses.append(_step(plan, trainer, network, batches, record))
            busy += time.monotonic() - started
            if record and (trainer.step % preset.log.every == 0 or trainer.step == steps):
                rate = len(losses) * preset.train.batch / (busy - logged)
                stall = batches.spent() / (busy - logged)
                means = _means(losses, trainer.loss_names)
                lr, epoch = trainer.optimizer.param_groups[0]["lr"], trainer.epoch
                speed = {"images_per_second": rate, "stall": stall}
                record.add(step=trainer.step, epoch=epoch, **means, lr=lr, seconds=busy, **speed)
                text = f"loss {means['loss']:.4f}  lr {lr:.2e}  {rate:.1f} images/s, {stall:.0%} of it waiting for data"
                progress.show(trainer.step, text)
                losses, logged = [], busy
            number = trainer.group.largest(asked())
            better, best = False, (trainer.best, trainer.best_step)
            if not number and _due(preset, trainer.step):
                progress.close()
                number, better = _evaluate(trainer, val, record, asked)
                model.train()
            if number or better or trainer.step == steps or trainer.step % preset.checkpoint.every == 0:
                if not _save(plan, trainer, bool(number) or trainer.step == steps):
                    # best.pt is still that of before
                    trainer.best, trainer.best_step = best
                if record:
                    record.draw()
            if number:
                _stop(plan, trainer.step, number)
    finally:
        progress.close()


def _means(losses: list[dict[str, float]], names: list[str]) -> dict[str, float]:
    """The mean of each loss over the steps that were not skipped for it; nan where all were."""
    finite = [each for each in losses if math.isfinite(each["loss"])]
    return {name: sum(each[name] for each in finite) / len(finite) if finite else math.nan for name in names}


def _step(
    plan: Plan, trainer: Trainer, network: nn.Module, batches: Iterator[Any], record: Record | None
) -> dict[str, float]:
    """One optimiser step over all its micro-batches; its losses. With a record, a run's first batch is drawn."""
    train, schedule = plan.preset.train, plan.preset.schedule
    trainer.set_rate(
        learning_rate(trainer.step, schedule.steps, schedule.lr, schedule.power, schedule.warmup, schedule.minimum)
    )
    trainer.optimizer.zero_grad(set_to_none=True)
    buffers, samples = trainer.buffers(), []
    losses = torch.zeros(len(trainer.loss_names), device=trainer.device)
    for index in range(plan.accumulation):
        image, label, names = next(batches)
        samples += names
        if record and trainer.step == 0 and index == 0:
            n = trainer.model.normalisation
            picture = mosaic(image, label, n.mean, n.std, n.channel_order, trainer.source.classes.palette)
            images.write_image(plan.run / "batch.jpg", picture)
        # gradients meet once per step, with the last micro-batch
        apart = index + 1 < plan.accumulation and trainer.group.world_size > 1
        with network.no_sync() if apart else nullcontext():
            with torch.autocast(trainer.device.type, DTYPES.get(train.precision), train.precision in DTYPES):
                loss, terms = network(image, label)
                loss = loss / plan.accumulation
            trainer.scaler.scale(loss).backward()
        losses += torch.stack([loss.detach(), *(term / plan.accumulation for term in terms.values())])
    if not trainer.update(losses, buffers):
        _skipped(plan, trainer, samples, record)
    return trainer.losses


def _skipped(plan: Plan, trainer: Trainer, samples: list[str], record: Record | None) -> None:
    """Tell of a step that was skipped; NonFiniteError where too many were in a row, or a run would end on several."""
    ranks = [
        {"loss": str(loss), "gradient_norm": str(norm), "samples": names}
        for loss, norm, names in trainer.group.gather((trainer.losses["loss"], trainer.norm, samples))
    ]
    worst = next((each for each in ranks if not math.isfinite(float(each["loss"]))), ranks[0])
    why = f"loss {worst['loss']}, gradient norm {worst['gradient_norm']}"
    number, row = trainer.step, trainer.nonfinite
    if record:
        names = [name for each in ranks for name in each["samples"]]
        record.skip(number, names)
        notice(f"warning: step {number} skipped ({why}), {row} in a row, images {', '.join(names)}")
    ending = row > 1 and number == plan.preset.schedule.steps
    if row >= plan.preset.train.max_nonfinite or ending:
        path = plan.run / f"nonfinite_step_{number}.json"
        if record:
            told = {"step": number, "in_a_row": row, "ranks": ranks}
            files.write_bytes(path, json.dumps(told, indent=1).encode())
        fix = f"see {path}, lower schedule.lr and resume"
        raise NonFiniteError(f"step {number}", f"{why}, {row} steps in a row", fix)


def _loader(plan: Plan, source: datasets.Source, group: Group, start: int, first: int | None = None) -> DataLoader[Any]:
    """The batches of the steps from `start` on, from the position `first` of the stream of samples."""
    preset = plan.preset
    batches = datasets.Batches(
        len(source.samples),
        preset.train.batch,
        preset.seed,
        rank=group.rank,
        world_size=group.world_size,
        start_step=start,
        steps=preset.schedule.steps,
        first=first,
    )
    micro = plan.micro_batch
    data = preset.data
    augmentation = datasets.Augmentation.from_settings(data)
    training = datasets.TrainingSet(source, augmentation, preset.model.channel_order, preset.seed)
    return DataLoader(
        training,
        batch_sampler=(batch[at : at + micro] for batch in batches for at in range(0, len(batch), micro)),
        num_workers=data.workers,
        collate_fn=datasets.collate,
        pin_memory=plan.device.type == "cuda",
        worker_init_fn=_quiet_worker if data.workers else None,
        timeout=data.timeout if data.workers else 0,
        # a process that was spawned would spawn its workers too: slowly, and not deaf to signals until they run
        multiprocessing_context="fork" if data.workers and sys.platform == "linux" else None,
        # its own: the loader's start would draw from the generator that dropout uses
        generator=torch.Generator(),
    )


def _quiet_worker(_: int) -> None:
    # a signal to the whole group is the main process's to answer
    for number in supervisor.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # what kills it the process tells in one line: neither torch nor a thread of the worker has to
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE):
        signal.signal(number, signal.SIG_DFL)
    sys.excepthook = lambda *_: None
    # one that hangs would outlive a process that was killed: PR_SET_PDEATHSIG, where there is such a thing
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # the workers are the parallelism; OpenCV's setting does not reach those that were spawned
    torch.set_num_threads(1)
    images.cv2.setNumThreads(0)


def _evaluate(
    trainer: Trainer, val: datasets.Source, record: Record | None, asked: Callable[[], int]
) -> tuple[int, bool]:
    """Score the model on the validation split; the signal that cut it short, or 0, and whether it is the best yet."""
    started = time.monotonic()
    trainer.group.share_buffers(trainer.inference_model)
    worst = Worst(WORST, val.classes.palette, val.ignore_index)

    def look(sample: datasets.Sample, image: np.ndarray, ids: np.ndarray, label: np.ndarray | None) -> None:
        if label is not None:
            worst.add(sample.name, image, label, ids)

    final = trainer.step == trainer.preset.schedule.steps
    try:
        views = Views.of(trainer.preset.eval, val.classes)
        on_image = look if final else None
        confusion = score_network(trainer.inference_model, val, views, trainer.group, on_image, asked)
    except Interrupted as stop:
        return stop.number, False
    miou, accuracy, mean = confusion.miou(), confusion.pixel_accuracy(), confusion.mean_accuracy()
    trainer.metrics = {"miou": miou, "pixel_accuracy": accuracy, "mean_accuracy": mean}
    if record:
        ious = confusion.iou().tolist()
        classes = {name: iou if math.isfinite(iou) else None for name, iou in zip(val.classes.names, ious, strict=True)}
        record.add(classes, step=trainer.step, **trainer.metrics)
        notice(f"step {trainer.step}: validation mIoU {miou:.4f} ({time.monotonic() - started:.0f} s)")
    better = miou > trainer.best
    if better:
        trainer.best, trainer.best_step = miou, trainer.step
    if final:
        kept = trainer.group.gather(worst)
        if record:
            record.draw()
            matrix = charts.confusion_matrix(confusion.matrix.numpy(), val.classes.names)
            _report(record, val.classes, matrix, worst_of(kept, WORST))
    return 0, better


def _report(record: Record, classes: datasets.Classes, matrix: images.Pixels, examples: list[Example]) -> None:
    """Write report.html from what lies in the run folder; a disk that refuses it does not end the run."""
    folder = record.folder
    preset = (folder / "preset.yaml").read_text(encoding="utf-8")
    found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    try:
        path = folder / "report.html"
        report.write(path, preset, found, record.rows, classes.names, classes.palette, matrix, examples)
    except (InputError, EnvironmentFailure) as error:
        notice(f"warning: {error}; training goes on without it")


def _save(plan: Plan, trainer: Trainer, last: bool) -> bool:
    """Write a checkpoint; False where the disk refused it, which the run survives twice in a row before its end."""
    state = trainer.state()
    if trainer.group.rank == 0:
        run = plan.run
        try:
            keep = plan.preset.checkpoint.keep
            path = checkpoint.save(run / "checkpoints", trainer.step, state, keep, trainer.facts())
            _name(plan, trainer, path)
            trainer.failed_saves = 0
        except EnvironmentFailure as error:
            trainer.failed_saves += 1
            if last or trainer.failed_saves == FAILED_SAVES:
                raise
            notice(f"warning: {error}; training goes on without it")
    return not trainer.group.broadcast(trainer.failed_saves)


def _name(plan: Plan, trainer: Trainer, path: Path) -> None:
    """Give the checkpoint of the step just done the names that are its due."""
    checkpoint.add_name(path, plan.run / "last.pt")
    if trainer.best_step == trainer.step:
        checkpoint.add_name(path, plan.run / "best.pt")


def _stop(plan: Plan, step: int, number: int) -> None:
    name = signal.Signals(number).name
    fix = f"continue with --run {plan.run} --resume"
    raise Interrupted(plan.run, f"stopped by {name} at step {step}, checkpoint written", fix, number)
