"""The training loop: steps, and what is logged, scored and saved after them."""

import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccnet_cli import files
from ccnet_cli.datasets.source import open_source
from ccnet_cli.devices import PRECISIONS
from ccnet_cli.errors import EnvironmentFailure, InputError, Interrupted, NonFiniteError, notice
from ccnet_cli.media import images
from ccnet_cli.progress import Progress
from ccnet_cli.runs import checkpoint
from ccnet_cli.runs.folder import forget_attempts
from ccnet_cli.training.early_stop import Patience
from ccnet_cli.training.loader import micro_batches
from ccnet_cli.training.plan import Plan
from ccnet_cli.training.record import Record, mosaic
from ccnet_cli.training.schedule import learning_rate
from ccnet_cli.training.trainer import Trainer
from ccnet_cli.training.validation import show_pictures, validate, write_report

# in place of a signal's number: the run folder is another run's
LOST = 1 << 16
# periodic checkpoints in a row that the disk may refuse before the run ends
MAX_FAILED_SAVES = 3
# how torch's message of a batch norm without a variance begins
ONE_VALUE = "Expected more than 1 value per channel"


class Loop:
    """The steps of one process from the trainer's to the schedule's end.

    The record is rank 0's, None elsewhere. stop_signal gives the number of the signal that asked the run to stop, or 0.
    """

    def __init__(self, plan: Plan, trainer: Trainer, record: Record | None, stop_signal: Callable[[], int]) -> None:
        self.plan = plan
        self.preset = plan.preset
        self.trainer = trainer
        self.group = trainer.group
        self.record = record
        self.stop_signal = stop_signal
        self.network: Any = self.group.replicate(trainer.network)
        source, model = trainer.source, trainer.model
        self.batches = micro_batches(plan, source, self.group, model.normalisation, trainer.step, trainer.position)
        self.progress = Progress(self.preset.schedule.steps, trainer.step)
        val = open_source(self.preset.data, "val")
        self.val = replace(val, tolerate_damage=plan.request.tolerate_damage)
        # of the steps since the start, of those before the last row of the log; how many there were since that row
        self.seconds = self.logged_seconds = 0.0
        self.timed = 0

    def run(self, score_first: bool) -> None:
        """Train to the end; score_first where the checkpoint that the run continues from was to be scored yet.

        Interrupted after a signal, with a checkpoint written; NonFiniteError before the weights are spoilt.
        """
        self.trainer.model.train()
        try:
            self._begin(score_first)
            while not self._at_end():
                started = time.monotonic()
                self._step()
                self.seconds += time.monotonic() - started
                number = self._asked_to_stop()
                self._log()
                self._finish_step(number)
        finally:
            self.progress.close()
            if self.record:
                self.record.trackers.close()

    def _at_end(self) -> bool:
        return is_over(self.plan, self.trainer)

    def _asked_to_stop(self) -> int:
        """The signal that asks for the end on any rank, or 0; TakenOver on all where the folder is another run's."""
        lease = self.plan.lease
        is_lost = self.record is not None and lease is not None and lease.is_lost()
        number = self.group.largest(LOST if is_lost else self.stop_signal())
        if number == LOST and lease is not None:
            raise lease.loss()
        return number

    def _begin(self, score_first: bool) -> None:
        number = self._asked_to_stop()
        if score_first and not number:
            number = self._evaluate()
            if not number:
                self._save(required=True)
        if number:
            if not checkpoint.list_checkpoints(self.plan.checkpoints):
                self._save(required=True)
            raise self._interruption(number)

    def _step(self) -> None:
        """One optimiser step over all its micro-batches, or a skipped one."""
        trainer, s, accumulation = self.trainer, self.preset.schedule, self.plan.accumulation
        trainer.set_rate(learning_rate(trainer.step, s.steps, s.lr, s.power, s.warmup, s.minimum))
        trainer.optimizer.zero_grad(set_to_none=True)
        buffers, samples = trainer.copy_buffers(), []
        losses = torch.zeros(len(trainer.loss_names), device=trainer.device)
        for index in range(accumulation):
            image, label, names = next(self.batches)
            samples += names
            if trainer.step == 0 and index == 0:
                self._draw_batch(image, label)
            losses += self._backward(image, label, last=index + 1 == accumulation)
        if not trainer.update(losses, buffers):
            self._skip(samples)
        if self.record:
            trainer.unlogged.append(trainer.losses)
            if not self.seconds and not trainer.nonfinite and self.plan.counted:
                # the first step is done
                forget_attempts(self.plan.counted)
            self.timed += 1

    def _backward(self, image_BCHW: Tensor, label_BHW: Tensor, last: bool) -> Tensor:
        """Add a micro-batch's part to the gradients; its part of the step's losses, in the order of loss_names."""
        accumulation, precision = self.plan.accumulation, self.preset.train.precision
        # gradients are reduced over the ranks once per step, with the last micro-batch
        synced = last or self.group.world_size == 1
        with nullcontext() if synced else self.network.no_sync():
            with torch.autocast(self.trainer.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
                with self._explain_single_values():
                    total, terms = self.network(image_BCHW, label_BHW)
                total = total / accumulation
            self.trainer.scaler.scale(total).backward()
        return torch.stack([total.detach(), *(term / accumulation for term in terms.values())])

    @contextmanager
    def _explain_single_values(self) -> Iterator[None]:
        """InputError where a batch norm has one value per channel: a map pooled to one cell, of one image."""
        try:
            yield
        except ValueError as error:
            if not str(error).startswith(ONE_VALUE):
                raise
            head: Any = self.preset.model.head
            why = f"the head {head.kind} pools maps to one cell, of which batch normalisation needs two images or more"
            fix = "let a process compute 2 at once by train.batch or train.micro_batch, or take another head"
            raise InputError("micro batch 1", why, fix) from None

    def _draw_batch(self, image_BCHW: Tensor, label_BHW: Tensor) -> None:
        if self.record:
            normalisation, palette = self.trainer.model.normalisation, self.trainer.source.classes.palette
            if image_BCHW.dim() == 5:
                image_BCHW = image_BCHW[:, self.trainer.model.labelled]
            picture = mosaic(image_BCHW, label_BHW, normalisation, palette)
            images.write_image(self.plan.run / "batch.jpg", picture)
            self.record.trackers.picture(0, "first batch", picture)

    def _skip(self, samples: list[str]) -> None:
        """Report a skipped step; NonFiniteError if there are too many in a row, or the run would end on several."""
        trainer = self.trainer
        ranks = [
            {"loss": str(loss), "gradient_norm": str(norm), "samples": names}
            for loss, norm, names in self.group.gather((trainer.losses["loss"], trainer.norm, samples))
        ]
        worst = next((rank for rank in ranks if not math.isfinite(float(str(rank["loss"])))), ranks[0])
        why = f"loss {worst['loss']}, gradient norm {worst['gradient_norm']}"
        step, in_a_row = trainer.step, trainer.nonfinite
        if self.record:
            names = [name for rank in ranks for name in rank["samples"]]
            self.record.skip(step, names)
            notice(f"warning: step {step} skipped ({why}), {in_a_row} in a row, images {', '.join(names)}")
        if in_a_row >= self.preset.train.max_nonfinite or (in_a_row > 1 and self._at_end()):
            path = self.plan.run / f"nonfinite_step_{step}.json"
            if self.record:
                content = {"step": step, "in_a_row": in_a_row, "ranks": ranks}
                files.write_bytes(path, files.to_json(content, 1).encode())
            fix = f"see {path}, lower schedule.lr and resume"
            raise NonFiniteError(f"step {step}", f"{why}, {in_a_row} steps in a row", fix)

    def _log(self) -> None:
        trainer = self.trainer
        if self.record is None or (trainer.step % self.preset.log.every and not self._at_end()):
            return
        seconds = self.seconds - self.logged_seconds
        rate = self.timed * self.preset.train.batch / seconds
        stall = self.batches.take_seconds() / seconds
        means = mean_losses(trainer.unlogged, trainer.loss_names)
        lr = trainer.optimizer.param_groups[0]["lr"]
        row = {"step": trainer.step, "epoch": trainer.epoch, **means, "lr": lr, "seconds": self.seconds}
        gamma = getattr(trainer.model.head, "gamma", None)
        row |= {} if gamma is None else {"gamma": float(gamma)}
        self.record.add(row | {"images_per_second": rate, "stall": stall})
        text = f"loss {means['loss']:.4f}  lr {lr:.2e}  {rate:.1f} images/s, {stall:.0%} of it waiting for data"
        self.progress.show(trainer.step, text)
        trainer.unlogged.clear()
        self.timed, self.logged_seconds = 0, self.seconds

    def _finish_step(self, number: int) -> None:
        """Score and save the model where that is due; Interrupted where a signal of this number asks for the end."""
        trainer, best = self.trainer, (self.trainer.best, self.trainer.best_step)
        if not number and score_due(self.plan, trainer.step):
            self.progress.close()
            number = self._evaluate()
        improved, periodic = trainer.best_step == trainer.step, trainer.step % self.preset.checkpoint.every == 0
        if number or improved or periodic or self._at_end():
            if not self._save(required=bool(number) or self._at_end()):
                # best.pt is still the earlier one
                trainer.best, trainer.best_step = best
            if self.record:
                self.record.draw(at_once=bool(number))
        if number:
            raise self._interruption(number)

    def _evaluate(self) -> int:
        """Score the model on the validation split and keep its figures; the signal that cut it short, or 0."""
        started = time.monotonic()
        trainer, patience = self.trainer, self.trainer.patience
        try:
            may_be_last = self._at_end() or (patience is not None and patience.ends_next)
            shown = may_be_last or bool(self.preset.log.trackers)
            scores = validate(trainer, self.val, self.stop_signal, examples=shown)
        except Interrupted as stop:
            return stop.number
        self._confirm()
        trainer.metrics = scores.metrics
        miou = trainer.metrics["miou"]
        if self.record:
            self.record.add({"step": trainer.step} | trainer.metrics, scores.class_ious(self.val.classes.names))
            show_pictures(self.record, self.val, scores, trainer.step)
            notice(f"step {trainer.step}: validation mIoU {miou:.4f} ({time.monotonic() - started:.0f} s)")
        if miou > trainer.best:
            trainer.best, trainer.best_step = miou, trainer.step
        if patience:
            patience.add(trainer.step, trainer.metrics)
            self._report_early_end(patience)
        if self.record and self._at_end():
            self.record.draw()
            write_report(self.record, self.val, scores)
        return 0

    def _report_early_end(self, patience: Patience) -> None:
        step = self.trainer.step
        if self.record and patience.is_over and step < self.preset.schedule.steps:
            self.record.stop(step, patience.state())
            notice(f"step {step}: {patience.describe()}")

    def _save(self, required: bool) -> bool:
        """Write a checkpoint; False if the disk refuses it, which is an error if required or too often in a row."""
        trainer, content = self.trainer, self.trainer.state()
        self._confirm()
        if self.group.rank == 0:
            try:
                keep = self.preset.checkpoint.keep
                path = checkpoint.save(self.plan.checkpoints, trainer.step, content, keep, trainer.manifest())
                name_checkpoint(self.plan, trainer, path)
                trainer.failed_saves = 0
            except EnvironmentFailure as error:
                trainer.failed_saves += 1
                if required or trainer.failed_saves == MAX_FAILED_SAVES:
                    raise
                notice(f"warning: {error}; training goes on without it")
        return not self.group.broadcast(trainer.failed_saves)

    def _confirm(self) -> None:
        """TakenOver, before anything is written, where the folder is another run's."""
        if self.record and self.plan.lease is not None:
            self.plan.lease.confirm()

    def _interruption(self, number: int) -> Interrupted:
        why = f"stopped by {signal.Signals(number).name} at step {self.trainer.step}, checkpoint written"
        return Interrupted(
            self.plan.run, why, f"continue with ccnet train --resume {shlex.quote(str(self.plan.run))}", number
        )


def is_over(plan: Plan, trainer: Trainer) -> bool:
    """Whether the run has done its steps, or no longer gets better."""
    early = trainer.patience is not None and trainer.patience.is_over
    return early or trainer.step >= plan.preset.schedule.steps


def score_due(plan: Plan, step: int) -> bool:
    """Whether the model is scored after this step."""
    every = plan.preset.eval.every
    return step == plan.preset.schedule.steps or bool(step and every and step % every == 0)


def name_checkpoint(plan: Plan, trainer: Trainer, path: Path) -> None:
    """Give the checkpoint of the step just done the name last.pt, and best.pt if it has the best score so far."""
    checkpoint.add_name(path, plan.run / "last.pt")
    if trainer.best_step == trainer.step:
        checkpoint.add_name(path, plan.run / "best.pt")


def mean_losses(losses: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """The mean of each loss over the steps with a finite total; nan where there is none."""
    finite = [each for each in losses if math.isfinite(each["loss"])]
    return {name: sum(each[name] for each in finite) / len(finite) if finite else math.nan for name in names}
