"""Train a model: one self-contained, resumable run folder."""

import copy
import json
import math
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ccnet_cli import checkpoint, config, datasets, distributed, images
from ccnet_cli.errors import InputError, Interrupted, NonFiniteError, notice
from ccnet_cli.evaluate import evaluate_model
from ccnet_cli.loss import Objective
from ccnet_cli.model import CCNet, build
from ccnet_cli.model import device as find_device
from ccnet_cli.progress import Progress
from ccnet_cli.record import Record, environment, mosaic
from ccnet_cli.schedule import learning_rate

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """What every process of a run needs to know; state is where to continue, weights where to begin."""

    preset: config.Preset
    run: Path
    processes: int
    cuda: bool
    resume: Path | None
    weights: Path | None

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


def train(
    preset: config.Preset,
    run: Path | None = None,
    resume: str | None = None,
    gpus: int | None = None,
    processes: int = 1,
    weights: Path | None = None,
    device: str = "auto",
) -> Path:
    """Train as the preset says and return the run folder, made below ./runs unless given.

    resume is "auto" (the run's newest sound checkpoint; a fresh start where there is none) or a checkpoint file.
    gpus and processes start that many processes of this machine on CUDA or the CPU. The global batch stays the
    preset's. Raises InputError before anything is written, NonFiniteError before the step that would spoil the
    weights, and Interrupted after a signal, its checkpoint written.
    """
    plan = _plan(preset, run, resume, gpus, processes, weights, device)
    data = preset.data
    for split in ("train", "val"):
        datasets.open_source(data, split)
    per_step = f"{plan.processes} processes x {plan.micro_batch} images x {plan.accumulation} accumulated"
    notice(f"{plan.run}: global batch {preset.train.batch} = {per_step}, {preset.schedule.steps} steps")
    plan.run.mkdir(parents=True, exist_ok=True)
    images.write_bytes(plan.run / "preset.yaml", config.dump(preset).encode())
    if plan.processes > 1:
        distributed.launch(_work, (plan,), plan.processes)
    else:
        _work(plan)
    return plan.run


def _plan(
    preset: config.Preset,
    run: Path | None,
    resume: str | None,
    gpus: int | None,
    processes: int,
    weights: Path | None,
    device: str,
) -> Plan:
    if gpus and processes > 1:
        raise InputError("option --processes", "--gpus is given too", "give one of them")
    if gpus and gpus > torch.cuda.device_count():
        raise InputError(
            f"option --gpus {gpus}", f"this machine has {torch.cuda.device_count()}", "use fewer, or --processes"
        )
    place = find_device("cuda" if gpus else "cpu" if processes > 1 else device)
    if preset.train.precision == "fp16" and place.type == "cpu":
        raise InputError("preset key train.precision: fp16", "needs a GPU", "use bf16 or fp32")
    if preset.train.batch == 1:
        raise InputError("preset key train.batch: 1", "batch normalisation needs 2 images or more", "use 2 or more")
    if weights and resume:
        raise InputError("option --weights", "--resume is given too", "give one of them")
    found = None
    if resume == "auto":
        run = run or _newest_run(preset.name)
        found = _resumable(run) if run else None
        if found is None:
            notice("nothing to resume: starting a new run")
    elif resume is not None:
        found = Path(resume)
        if "training" not in checkpoint.read(found):
            raise InputError(found, "holds weights alone, not a run's state", "use --weights to start from it")
        run = run or (found.parent.parent if found.parent.name == "checkpoints" else found.parent)
    elif run is not None and run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(run, "is not an empty folder", "continue it with --resume auto, or choose another --run")
    if weights:
        checkpoint.read(weights)
    run = run or Path("runs") / f"{preset.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    plan = Plan(preset, run, gpus or processes, place.type == "cuda", found, weights)
    if plan.micro_batch == 1:
        notice("warning: batch normalisation sees one image at a time (micro batch 1)")
    return plan


def _newest_run(name: str) -> Path | None:
    runs = [path for path in Path("runs").glob(f"{name}-*") if checkpoint.committed(path / "checkpoints")]
    return max(runs, key=lambda path: checkpoint.committed(path / "checkpoints")[0].stat().st_mtime, default=None)


def _resumable(run: Path) -> Path | None:
    newest = checkpoint.newest(run / "checkpoints")
    return newest[0] if newest else None


@dataclass
class Trainer:
    """All that changes while training; `state` and `restore` name every part of it."""

    plan: Plan
    model: CCNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: CCNet | None
    device: torch.device
    step: int = 0
    best: float = -1.0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def inference_model(self) -> CCNet:
        """The model to evaluate and to keep: the weights' moving average where there is one."""
        return self.averaged or self.model

    def state(self, classes: datasets.Classes) -> dict[str, Any]:
        """The content of a checkpoint; every rank must call it."""
        return {
            "format": checkpoint.FORMAT,
            "model": self.inference_model.state_dict(),
            "preset": config.to_mapping(self.plan.preset),
            "classes": classes.to_mapping(),
            "step": self.step,
            "metrics": self.metrics,
            "training": {
                "model": self.model.state_dict() if self.averaged else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "best": self.best,
                "random": distributed.gather(_random_state(self.device)),
            },
        }

    def restore(self, content: dict[str, Any], path: Path) -> None:
        """Continue from a checkpoint's content."""
        training = content["training"]
        checkpoint.load_weights(self.inference_model, content["model"], path)
        if self.averaged:
            checkpoint.load_weights(self.model, training["model"] or content["model"], path)
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        self.step, self.metrics, self.best = content["step"], content["metrics"], training["best"]
        states = training["random"]
        if len(states) == distributed.world():
            _set_random_state(states[distributed.rank()], self.device)
        elif distributed.rank() == 0:
            notice(
                f"warning: resumed on {distributed.world()} processes, was {len(states)}: same images, other dropout"
            )


def _work(plan: Plan) -> None:
    """One process of a run."""
    with distributed.joined(plan.cuda) as device, _signals() as asked:
        preset = plan.preset
        main = distributed.rank() == 0
        torch.manual_seed(preset.seed)
        source = datasets.open_source(preset.data, "train")
        trainer = _trainer(plan, len(source.classes), device)
        torch.manual_seed(preset.seed * 1000 + distributed.rank() + 1)
        if plan.resume:
            trainer.restore(checkpoint.read(plan.resume), plan.resume)
        if main:
            text = json.dumps(environment(device, plan.processes), indent=1)
            images.write_bytes(plan.run / "environment.json", text.encode())
        if trainer.step >= preset.schedule.steps:
            if main:
                notice(f"nothing to do: {plan.run} has done {trainer.step} of {preset.schedule.steps} steps")
            return
        _loop(trainer, source, asked, Record(plan.run, trainer.step, preset.log.tensorboard) if main else None)


def _trainer(plan: Plan, classes: int, device: torch.device) -> Trainer:
    train = plan.preset.train
    model = build(plan.preset.model, classes, train.checkpoint_activations)
    if plan.weights:
        checkpoint.load_weights(model, checkpoint.read(plan.weights)["model"], plan.weights)
    if train.sync_bn and plan.cuda and plan.processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device)
    if train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(model).eval().requires_grad_(False) if train.ema else None
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
    return Trainer(plan, model, _optimizer(model, plan.preset), scaler, averaged, device)


def _optimizer(model: nn.Module, preset: config.Preset) -> torch.optim.Optimizer:
    train, lr = preset.train, preset.schedule.lr
    if train.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr, train.momentum, weight_decay=train.weight_decay)
    # AdamW's decay would pull norms, biases and the attention's gamma towards 0 at full strength
    plain = [p for p in model.parameters() if p.dim() <= 1]
    decayed = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr, betas=(train.momentum, 0.999))


class _Network(nn.Module):
    """Images and labels -> loss: one module, so that the processes' gradients meet in one place."""

    def __init__(self, model: CCNet, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, image_BCHW: Tensor, label_BHW: Tensor) -> Tensor:
        loss: Tensor = self.objective(*self.model.with_auxiliary(image_BCHW), label_BHW)
        return loss


def _loop(trainer: Trainer, source: datasets.Source, asked: list[int], record: Record | None) -> None:
    plan, preset, model = trainer.plan, trainer.plan.preset, trainer.model
    steps, ohem = preset.schedule.steps, preset.loss.ohem
    objective = Objective(
        ohem.enabled, ohem.threshold, ohem.min_kept, preset.loss.auxiliary, source.ignore_index, model.align_corners
    )
    network = distributed.replicate(_Network(model, objective), trainer.device)
    batches = datasets.delivered(_loader(plan, source, trainer.step))
    progress = Progress(steps, trainer.step)
    val = datasets.open_source(preset.data, "val")
    model.train()
    losses: list[float] = []
    busy = logged = 0.0
    try:
        while trainer.step < steps:
            started = time.monotonic()
            losses.append(_step(trainer, network, batches, source if record and trainer.step == 0 else None))
            busy += time.monotonic() - started
            if record and (trainer.step % preset.log.every == 0 or trainer.step == steps):
                rate = len(losses) * preset.train.batch / (busy - logged)
                loss, lr = sum(losses) / len(losses), trainer.optimizer.param_groups[0]["lr"]
                epoch = trainer.step * preset.train.batch // len(source.samples)
                record.add(step=trainer.step, epoch=epoch, loss=loss, lr=lr, images_per_second=rate, seconds=busy)
                progress.show(trainer.step, f"loss {loss:.4f}  lr {lr:.2e}  {rate:.1f} images/s")
                losses, logged = [], busy
            number = distributed.largest(asked[0] if asked else 0, trainer.device)
            due = preset.eval.every and trainer.step % preset.eval.every == 0
            better = False
            if not number and (due or trainer.step == steps):
                progress.close()
                better = _evaluate(trainer, val, record)
                model.train()
            if number or better or trainer.step == steps or trainer.step % preset.checkpoint.every == 0:
                _save(trainer, source.classes, better)
                if record:
                    record.draw()
            if number:
                _stop(plan, trainer.step, number)
    finally:
        progress.close()


def _step(trainer: Trainer, network: nn.Module, batches: Iterator[Any], shown: datasets.Source | None) -> float:
    """One optimiser step over all its micro-batches; the mean loss. With `shown`, the first batch is drawn."""
    plan, train = trainer.plan, trainer.plan.preset.train
    schedule = trainer.plan.preset.schedule
    rate = learning_rate(trainer.step, schedule.steps, schedule.lr, schedule.power, schedule.warmup, schedule.minimum)
    for group in trainer.optimizer.param_groups:
        group["lr"] = rate
    trainer.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=trainer.device)
    for index in range(plan.accumulation):
        image, label, _ = next(batches)
        if shown and index == 0:
            n = trainer.model.normalisation
            picture = mosaic(image, label, n.mean, n.std, n.channel_order, shown.classes.palette)
            images.write_image(plan.run / "batch.jpg", picture)
        image = image.to(trainer.device, non_blocking=True)
        label = label.to(trainer.device, non_blocking=True)
        if train.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        # gradients meet once per step, with the last micro-batch
        apart = index + 1 < plan.accumulation and distributed.world() > 1
        with network.no_sync() if apart else nullcontext():
            with torch.autocast(trainer.device.type, DTYPES.get(train.precision), train.precision in DTYPES):
                loss = network(image, label) / plan.accumulation
            trainer.scaler.scale(loss).backward()
        total += loss.detach()
    _update(trainer, total)
    return float(total)


def _update(trainer: Trainer, loss: Tensor) -> None:
    """Step the optimiser, unless loss or gradients are not finite."""
    train = trainer.plan.preset.train
    trainer.scaler.unscale_(trainer.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None])
    # with fp16 the scaler itself skips the step and lowers its scale
    if not trainer.scaler.is_enabled() and not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"step {trainer.step + 1}"
        raise NonFiniteError(what, f"loss {float(loss)}, gradient norm {float(norm)}", "lower schedule.lr and resume")
    if train.clip_norm:
        nn.utils.clip_grads_with_norm_(trainer.model.parameters(), train.clip_norm, norm)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.step += 1
    if trainer.averaged is not None:
        # a short memory at first: the first weights are noise
        decay = min(train.ema, (1 + trainer.step) / (10 + trainer.step))
        with torch.no_grad():
            own = trainer.model.state_dict()
            for key, value in trainer.averaged.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(own[key], 1 - decay)
                else:
                    value.copy_(own[key])


def _loader(plan: Plan, source: datasets.Source, start: int) -> DataLoader[Any]:
    preset = plan.preset
    batches = datasets.Batches(
        len(source.samples),
        preset.train.batch,
        preset.seed,
        rank=distributed.rank(),
        world=distributed.world(),
        start_step=start,
        steps=preset.schedule.steps,
    )
    micro = plan.micro_batch
    data, model = preset.data, preset.model
    training = datasets.Training(
        source,
        data.crop,
        data.scale_min,
        data.scale_max,
        data.scale_step,
        data.mirror,
        model.channel_order,
        model.mean,
        model.std,
        preset.seed,
    )
    return DataLoader(
        training,
        batch_sampler=[batch[at : at + micro] for batch in batches for at in range(0, len(batch), micro)],
        num_workers=data.workers,
        collate_fn=datasets.collate,
        pin_memory=plan.cuda,
        worker_init_fn=_quiet_worker if data.workers else None,
        timeout=300 if data.workers else 0,
        # its own: the loader's start would draw from the generator that dropout uses
        generator=torch.Generator(),
    )


def _quiet_worker(_: int) -> None:
    # a signal to the whole group is the main process's to answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


def _evaluate(trainer: Trainer, val: datasets.Source, record: Record | None) -> bool:
    """Score the model on the validation split; whether it is the best so far."""
    started = time.monotonic()
    distributed.share_buffers(trainer.inference_model)
    confusion = evaluate_model(trainer.inference_model, val, trainer.plan.preset.eval, trainer.device)
    miou, accuracy, mean = confusion.miou(), confusion.pixel_accuracy(), confusion.mean_accuracy()
    trainer.metrics = {"miou": miou, "pixel_accuracy": accuracy, "mean_accuracy": mean}
    if record:
        record.add(step=trainer.step, **trainer.metrics)
        notice(f"step {trainer.step}: validation mIoU {miou:.4f} ({time.monotonic() - started:.0f} s)")
    better = miou > trainer.best
    trainer.best = max(trainer.best, miou)
    return better


def _save(trainer: Trainer, classes: datasets.Classes, better: bool) -> None:
    state = trainer.state(classes)
    if distributed.rank() == 0:
        run = trainer.plan.run
        path = checkpoint.save(run / "checkpoints", trainer.step, state, trainer.plan.preset.checkpoint.keep)
        checkpoint.name(path, run / "last.pt")
        if better:
            checkpoint.name(path, run / "best.pt")
    distributed.barrier()


def _stop(plan: Plan, step: int, number: int) -> None:
    name = signal.Signals(number).name
    fix = f"continue with --run {plan.run} --resume auto"
    raise Interrupted(plan.run, f"stopped by {name} at step {step}, checkpoint written", fix, number)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one ends the process at once."""
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _random_state(device: torch.device) -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
