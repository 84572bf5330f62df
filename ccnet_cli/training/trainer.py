"""All that changes while training: the model, its optimiser, and how one step changes them."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccnet_cli import config, devices, ops
from ccnet_cli.datasets.source import Source
from ccnet_cli.errors import InputError, notice
from ccnet_cli.losses import objective as objectives
from ccnet_cli.losses.objective import Objective
from ccnet_cli.models import network as models
from ccnet_cli.models.network import CCNet
from ccnet_cli.parallel.group import Group
from ccnet_cli.runs import checkpoint
from ccnet_cli.runs.fields import DamagedError, UnsupportedError
from ccnet_cli.training import state as states
from ccnet_cli.training.early_stop import Patience
from ccnet_cli.training.optimizer import check_optimizer, make_optimizer, rate_factors
from ccnet_cli.weights.load import Start, initialize_from, load_weights, read_facts

# the keys of a preset on which the form of what is saved depends
STATE_KEYS = ("model", "loss", "data", "train")


class LossNetwork(nn.Module):
    """Images and labels -> total loss and its terms: one module, so that gradients are reduced over ranks at once."""

    def __init__(self, model: CCNet, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, image_BCHW: Tensor, label_BHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and each term before its weight by name."""
        losses: tuple[Tensor, dict[str, Tensor]] = self.objective(self.model.outputs(image_BCHW), label_BHW)
        return losses


@dataclass
class Trainer:
    """All that changes while training; `state` and `resume` name every part of it.

    step counts batches, skipped ones too; epoch and offset are where in the data the next batch begins. nonfinite
    counts the skipped steps in a row, failed_saves the checkpoints in a row that the disk refused. losses and norm (of
    the gradient) are those of the last step on this rank; losses are named as in loss_names. accumulation is the
    plan's. unlogged are rank 0's losses of the steps since the last row of the log. patience is that of
    train.early_stop.
    """

    preset: config.Preset
    source: Source
    network: LossNetwork
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: CCNet | None
    group: Group
    choices: ops.Choices
    origin: str = ""
    accumulation: int = 1
    step: int = 0
    epoch: int = 0
    offset: int = 0
    nonfinite: int = 0
    failed_saves: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    norm: float = 0.0
    best: float = -1.0
    best_step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    unlogged: list[dict[str, float]] = field(default_factory=list)
    patience: Patience | None = None
    _buffers: list[Tensor] = field(default_factory=list)

    @property
    def model(self) -> CCNet:
        """The model that is trained."""
        return self.network.model

    @property
    def inference_model(self) -> CCNet:
        """The model to evaluate and to save: the moving average of the weights where there is one."""
        return self.averaged or self.model

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return self.group.device

    @property
    def loss_names(self) -> list[str]:
        """What the losses are called in the log: `loss`, the total, and `loss/NAME`, each term before its weight."""
        return ["loss", *(f"loss/{name}" for name in self.network.objective.terms)]

    @property
    def position(self) -> int:
        """Where the next batch begins in the stream of samples."""
        return self.epoch * len(self.source.samples) + self.offset

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step, the backbone's."""
        for group, factor in zip(self.optimizer.param_groups, rate_factors(self.preset), strict=True):
            group["lr"] = rate * factor

    def copy_buffers(self) -> list[Tensor]:
        """A copy of the network's buffers, for update to put back: a forward pass alone moves the running statistics.

        It lies in the same memory each time.
        """
        buffers = list(self.network.buffers())
        if not self._buffers:
            self._buffers = [torch.empty_like(buffer) for buffer in buffers]
        _copy(buffers, self._buffers)
        return self._buffers

    def update(self, losses: Tensor, buffers: list[Tensor]) -> bool:
        """Step the optimiser with the gradients at hand, unless on any rank these or the loss are not finite.

        losses (1 + terms,) are in the order of loss_names. False for a step that every rank skips: it leaves model,
        moving average and optimiser as they were, and puts the buffers back, but takes its place in the schedule and
        its batch from the data. With fp16 it lowers the scale; as long as that can help it does not count in nonfinite.

        A step waits for the device here alone, and once: losses, norm and the verdict of all ranks come in one piece.
        Read a step later, schedule, moving average and checkpoint would not know of the last step.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        scale_can_fall = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        verdict = torch.maximum(2 * _not_finite(losses[0]), (1 if scale_can_fall else 2) * _not_finite(norm))
        measured = torch.cat([losses, torch.stack([norm, self.group.all_reduce_max(verdict)])])
        *values, self.norm, worst = measured.tolist()
        self.losses = dict(zip(self.loss_names, values, strict=True))
        self.step += 1
        self.epoch, self.offset = divmod(self.position + self.preset.train.batch, len(self.source.samples))
        if worst:
            self.nonfinite += worst == 2
            _copy(buffers, list(self.network.buffers()))
            if self.scaler.is_enabled():
                self.scaler.update()
            return False
        self.nonfinite = 0
        if self.preset.train.clip_norm:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), self.preset.train.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            # a short memory at first: the first weights are noise
            _average(self.averaged, self.model, min(self.preset.train.ema, (1 + self.step) / (10 + self.step)))
        return True

    def state(self) -> dict[str, Any]:
        """The content of a checkpoint; every rank must call it."""
        objective = self.network.objective.state_dict()
        return {
            "format": checkpoint.FORMAT,
            "model": self.inference_model.state_dict(),
            "preset": config.to_mapping(self.preset),
            "classes": self.source.classes.to_mapping(),
            "step": self.step,
            "metrics": self.metrics,
            "origin": self.origin,
            "choices": self.choices.export(),
            "training": {
                "model": self.model.state_dict() if self.averaged else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "best": self.best,
                "best_step": self.best_step,
                "epoch": self.epoch,
                "offset": self.offset,
                "nonfinite": self.nonfinite,
                "unlogged": list(self.unlogged),
                "random": self.group.gather(states.random_state(self.device)),
                "circumstances": self._fingerprint(),
                **({"objective": objective} if objective else {}),
                **({"patience": self.patience.state()} if self.patience else {}),
            },
        }

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint's manifest records beside its size and hash."""
        return {"epoch": self.epoch, "offset": self.offset} | self._fingerprint()

    def _fingerprint(self) -> dict[str, Any]:
        return states.environment_fingerprint(self.preset, self.group, self._list_sha256, self.accumulation)

    @cached_property
    def _list_sha256(self) -> str:
        return self.source.samples.fingerprint()

    def resume(self, content: dict[str, Any], path: Path, strict: bool = False) -> None:
        """Continue from a checkpoint's content; InputError where it does not fit this run.

        DamagedError where it does not fit the preset that it was written with. A notice says what differs from before;
        with strict, that is refused.
        """
        preset = _read_preset(content, path)
        # with what a run began no longer matters
        keys = [key for key in config.differences(self.preset, preset) if key != "train.weights"]
        for difference in self._differences(content, keys):
            if strict:
                raise InputError(path, f"was trained with {difference}", "resume without --strict-resume, or as before")
            notice(f"warning: resumed with {difference}")
        try:
            self._load(content, path)
        except InputError as error:
            # what is asked for may differ from what was written
            kind = InputError if any(key.startswith(STATE_KEYS) for key in keys) else DamagedError
            raise kind(error.what, error.why, error.fix) from None

    def _load(self, content: dict[str, Any], path: Path) -> None:
        training = content["training"]
        load_weights(self.inference_model, content["model"], path)
        if self.averaged:
            load_weights(self.model, training["model"] or content["model"], path)
        for what, load in (("optimiser", self._load_optimizer), ("loss", self._load_objective)):
            try:
                load(training)
            except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, IndexError) as error:
                why = f"its {what} state does not fit ({error})"
                raise InputError(path, why, "resume with the preset that it was trained with") from None
        self.step, self.metrics, self.best = content["step"], content["metrics"], training["best"]
        self.origin = content.get("origin", "")
        self.choices.load(content.get("choices"))
        # the first checkpoints did not save them: they follow from the batch
        position = divmod(self.step * content["preset"]["train"]["batch"], len(self.source.samples))
        self.epoch, self.offset = training.get("epoch", position[0]), training.get("offset", position[1])
        self.nonfinite, self.best_step = training.get("nonfinite", 0), training.get("best_step", -1)
        if self.patience:
            self.patience.load(training.get("patience", {}))
        # with other terms of the loss than before, a row begins anew
        names = set(self.loss_names)
        self.unlogged = [
            each for each in training.get("unlogged", []) if isinstance(each, dict) and each.keys() >= names
        ]
        if len(training["random"]) == self.group.world_size:
            try:
                states.set_random_state(training["random"][self.group.rank], self.device)
            except (ValueError, KeyError, RuntimeError, TypeError, OverflowError) as error:
                why = f"damaged: its field training.random does not fit ({error})"
                raise InputError(path, why, "use an earlier checkpoint") from None

    def _load_optimizer(self, training: dict[str, Any]) -> None:
        check_optimizer(self.optimizer, training["optimizer"])
        self.optimizer.load_state_dict(training["optimizer"])
        # how the passes over the weights are made is this version's choice, not the file's
        for group in self.optimizer.param_groups:
            group["fused"] = self.optimizer.defaults["fused"]
        self.scaler.load_state_dict(training["scaler"])

    def _load_objective(self, training: dict[str, Any]) -> None:
        self.network.objective.load_state_dict(training.get("objective", {}))

    def _differences(self, content: dict[str, Any], keys: Sequence[str]) -> Iterator[str]:
        """What differs between this run and the one that wrote a checkpoint, a phrase each; keys are the preset's."""
        if keys:
            yield f"other values of {', '.join(keys)} than before"
        training = content["training"]
        before = {"world_size": len(training["random"]), **training.get("circumstances", {})}
        yield from states.differences(self._fingerprint(), before)


def _read_preset(content: dict[str, Any], path: Path) -> config.Preset:
    """The preset in a checkpoint's content; DamagedError where it is none."""
    try:
        return read_facts(content, path).preset
    except UnsupportedError:
        raise
    except InputError as error:
        why = error.why if error.what == path else f"its configuration is damaged ({error.what}: {error.why})"
        raise DamagedError(path, why, "use an earlier checkpoint") from None


def build(preset: config.Preset, source: Source, group: Group, start: Start | None = None) -> Trainer:
    """Model, optimiser and the rest at step 0, initialized from a file's weights if given."""
    train, device = preset.train, group.device
    if devices.use_tf32(device, train.tf32) and group.rank == 0:
        notice("products of float32 are rounded to TF32 (train.tf32)")
    choices = _choices(group)
    model = models.build(preset.model, len(source.classes), train.checkpoint_activations)
    model.labelled = preset.data.labelled
    origin = initialize_from(model, start, preset.model) if start else ""
    if train.sync_bn and device.type == "cuda" and group.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device)
    ops.use(model, choices)
    if train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = objectives.build(preset.loss, source.ignore_index, model.align_corners)
    objective.check(model.output_names)
    objective.prepare(len(source.classes), model.feature_channels)
    objective = objective.to(device)
    network = LossNetwork(model, objective)
    averaged = copy.deepcopy(model).eval().requires_grad_(False) if train.ema else None
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
    patience = Patience(train.early_stop) if train.early_stop else None
    optimizer = make_optimizer(network, preset)
    return Trainer(preset, source, network, optimizer, scaler, averaged, group, choices, origin, patience=patience)


def _choices(group: Group) -> ops.Choices:
    """What the attention measures: rank 0's choices hold for all ranks, under the name of its GPU."""
    if group.world_size == 1:
        return ops.Choices()
    name = torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else None
    return ops.Choices(group.broadcast, group.broadcast(name), quiet=group.rank > 0)


def _not_finite(value: Tensor) -> Tensor:
    """1 where a number is not finite, else 0."""
    return (~value.isfinite()).float()


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copy each tensor into its target, all of a type at once."""
    for dtype in {source.dtype for source in sources}:
        indices = [index for index, source in enumerate(sources) if source.dtype == dtype]
        torch._foreach_copy_([targets[index] for index in indices], [sources[index] for index in indices])


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average, weights and running statistics, by 1 - decay towards the model."""
    current = model.state_dict()
    for key, value in averaged.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[key], 1 - decay)
        else:
            value.copy_(current[key])
