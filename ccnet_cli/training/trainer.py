"""All that changes while training: the model, its optimiser, and how one step changes them."""

import copy
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccnet_cli import config, ops
from ccnet_cli.datasets.source import Source
from ccnet_cli.errors import InputError, notice
from ccnet_cli.losses import objective as objectives
from ccnet_cli.losses.objective import Objective
from ccnet_cli.models import network as models
from ccnet_cli.models.network import CCNet
from ccnet_cli.parallel.group import Group
from ccnet_cli.runs import checkpoint
from ccnet_cli.weights import load as loading

# the samples of a step stay the same however they are shared; the order in which numbers are added up does not
SHARES = ("world_size", "global_batch")


class Network(nn.Module):
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
    """All that changes while training; `state` and `restore` name every part of it.

    step counts batches, those skipped too; epoch and offset are where in the data the next batch begins. nonfinite
    counts the skipped steps in a row, failed_saves the checkpoints that the disk refused in a row. losses are those of
    the last step on this rank: `loss`, and each term before its weight as `loss/NAME`.
    """

    preset: config.Preset
    source: Source
    network: Network
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: CCNet | None
    group: Group
    choices: ops.Choices
    origin: str = ""
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
    before: list[Tensor] = field(default_factory=list)

    @property
    def model(self) -> CCNet:
        """The model that is trained."""
        return self.network.model

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return self.group.device

    @property
    def inference_model(self) -> CCNet:
        """The model to evaluate and to keep: the weights' moving average where there is one."""
        return self.averaged or self.model

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def seen(self) -> int:
        """The position of the next batch in the stream of samples."""
        return self.epoch * len(self.source.samples) + self.offset

    def buffers(self) -> list[Tensor]:
        """A copy of the network's buffers, for update to put back: a forward pass alone moves the running statistics.

        It lies in the same memory each time.
        """
        buffers = list(self.network.buffers())
        if not self.before:
            self.before = [torch.empty_like(buffer) for buffer in buffers]
        _copy(buffers, self.before)
        return self.before

    @property
    def loss_names(self) -> list[str]:
        """The names of the total loss and of its terms, as they are logged."""
        return ["loss", *(f"loss/{name}" for name in self.network.objective.terms)]

    def update(self, losses: Tensor, buffers: list[Tensor]) -> bool:
        """Step the optimiser with the gradients at hand, unless on any rank these or the loss are not finite.

        losses (1 + terms,) are the total and its terms, as in loss_names.

        False for a step that every rank skipped: it leaves the model, its buffers as given, the moving average and the
        optimiser as they were, but takes its place in the schedule and its batch from the data. With fp16 it lowers the
        scale; as long as that can help it does not count in nonfinite.

        A step waits for the device here alone, and once: losses, norm and the verdict of all ranks come in one piece.
        Read a step later, schedule, moving average and checkpoint would not know of the last step.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        lowers = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        verdict = torch.maximum(2 * _unsound(losses[0]), (1 if lowers else 2) * _unsound(norm))
        measured = torch.cat([losses, torch.stack([norm, self.group.all_reduce_max(verdict)])])
        *values, self.norm, bad = measured.tolist()
        self.losses = dict(zip(self.loss_names, values, strict=True))
        self.step += 1
        self.epoch, self.offset = divmod(self.seen + self.preset.train.batch, len(self.source.samples))
        if bad:
            self.nonfinite += bad == 2
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
                "random": self.group.gather(_random_state(self.device)),
                "circumstances": self.circumstances(),
            }
            | ({"objective": objective} if objective else {}),
        }

    def facts(self) -> dict[str, Any]:
        """What a checkpoint's manifest tells of it beside its size and hash."""
        return {"epoch": self.epoch, "offset": self.offset} | self.circumstances()

    def circumstances(self) -> dict[str, Any]:
        """What else the bits of the next steps hang on, beside the state and the preset's keys."""
        mapping = config.to_mapping(self.preset)
        cudnn = torch.backends.cudnn
        return {
            "world_size": self.group.world_size,
            "global_batch": self.preset.train.batch,
            "num_threads": torch.get_num_threads(),
            "precision": self.preset.train.precision,
            "device": self.device.type,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "float32_matmul": torch.get_float32_matmul_precision(),
            "cudnn": [cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic],
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
            "numpy": np.__version__,
            "config_sha256": hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest(),
            "list_sha256": self._list_sha256,
        }

    @cached_property
    def _list_sha256(self) -> str:
        return self.source.samples.fingerprint()

    def restore(self, content: dict[str, Any], path: Path, strict: bool = False) -> None:
        """Continue from a checkpoint's content; InputError where it does not fit this run.

        What differs from before is told in a line; with strict it is refused.
        """
        training = content["training"]
        for what in self._differences(content):
            if strict:
                raise InputError(path, f"was trained with {what}", "resume without --strict-resume, or as before")
            notice(f"warning: resumed with {what}")
        loading.load_weights(self.inference_model, content["model"], path)
        if self.averaged:
            loading.load_weights(self.model, training["model"] or content["model"], path)
        try:
            self.network.objective.load_state_dict(training.get("objective", {}))
            self.optimizer.load_state_dict(training["optimizer"])
            # how the passes are made is this version's to say, not the file's
            for group in self.optimizer.param_groups:
                group["fused"] = self.optimizer.defaults["fused"]
            self.scaler.load_state_dict(training["scaler"])
        except (ValueError, KeyError, RuntimeError) as error:
            why = f"its optimiser state does not fit ({error})"
            raise InputError(path, why, "resume with the preset that it was trained with") from None
        self.step, self.metrics, self.best = content["step"], content["metrics"], training["best"]
        self.origin = content.get("origin", "")
        self.choices.load(content.get("choices"))
        # before they were saved, a batch told them
        position = divmod(self.step * content["preset"]["train"]["batch"], len(self.source.samples))
        self.epoch, self.offset = training.get("epoch", position[0]), training.get("offset", position[1])
        self.nonfinite, self.best_step = training.get("nonfinite", 0), training.get("best_step", -1)
        states = training["random"]
        if len(states) == self.group.world_size:
            _set_random_state(states[self.group.rank], self.device)

    def _differences(self, content: dict[str, Any]) -> Iterator[str]:
        """What a run that continues from a checkpoint's content would do otherwise than before, a phrase each."""
        keys = config.differences(self.preset, config.from_mapping(content["preset"]))
        if keys:
            yield f"other values of {', '.join(keys)} than before"
        now, before = self.circumstances(), content["training"].get("circumstances", {})
        before = {"world_size": len(content["training"]["random"])} | before
        shares = [f"{key} {now[key]}, was {before[key]}" for key in SHARES if now[key] != before.get(key, now[key])]
        if shares:
            yield f"{', '.join(shares)}: sample-exact, not bit-exact"
        others = [key for key in now if key not in (*SHARES, "config_sha256") and now[key] != before.get(key, now[key])]
        if "list_sha256" in others:
            others.remove("list_sha256")
            yield "another list of training images than before: other samples will come"
        if others:
            yield ", ".join(f"{key} {now[key]}, was {before[key]}" for key in others) + ": not bit-exact"


def build(
    preset: config.Preset,
    source: Source,
    group: Group,
    weights: Path | None = None,
    partial: bool = False,
) -> Trainer:
    """Model, optimiser and the rest at step 0; weights is a file to begin with, partial as read_start takes it."""
    train, device = preset.train, group.device
    choices = _choices(group)
    model = models.build(preset.model, len(source.classes), train.checkpoint_activations)
    origin = loading.initialize_from(model, loading.read_start(weights, partial), preset.model) if weights else ""
    if train.sync_bn and device.type == "cuda" and group.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device)
    ops.use(model, choices)
    if train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    objective = objectives.build(preset.loss, source.ignore_index, model.align_corners).to(device)
    objective.check(model.output_names)
    network = Network(model, objective)
    averaged = copy.deepcopy(model).eval().requires_grad_(False) if train.ema else None
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
    return Trainer(preset, source, network, make_optimizer(network, preset), scaler, averaged, group, choices, origin)


def _choices(group: Group) -> ops.Choices:
    """What the attention measures: rank 0's choices hold for all ranks, under the name of its GPU."""
    if group.world_size == 1:
        return ops.Choices()
    name = torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else None
    return ops.Choices(group.broadcast, group.broadcast(name), quiet=group.rank > 0)


def make_optimizer(model: nn.Module, preset: config.Preset) -> torch.optim.Optimizer:
    """The preset's optimiser of a module's parameters."""
    train, lr = preset.train, preset.schedule.lr
    if train.optimizer == "sgd":
        # fused: one pass over the weights in place of five
        return torch.optim.SGD(model.parameters(), lr, train.momentum, weight_decay=train.weight_decay, fused=True)
    # AdamW's decay would pull norms, biases and the attention's gamma towards 0 at full strength
    plain = [p for p in model.parameters() if p.dim() <= 1]
    decayed = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr, betas=(train.momentum, 0.999))


def _unsound(value: Tensor) -> Tensor:
    """1 where a number is not finite, else 0."""
    return (~value.isfinite()).float()


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copy each into its target, all of a type at once."""
    for dtype in {source.dtype for source in sources}:
        chosen = [index for index, source in enumerate(sources) if source.dtype == dtype]
        torch._foreach_copy_([targets[index] for index in chosen], [sources[index] for index in chosen])


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    new = model.state_dict()
    for key, value in averaged.state_dict().items():
        if value.is_floating_point():
            value.lerp_(new[key], 1 - decay)
        else:
            value.copy_(new[key])


def _random_state(device: torch.device) -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    # a numpy array would not be read back
    kind, keys, *rest = np.random.get_state(legacy=True)
    own = {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}
    return own | {"numpy": [str(kind), keys.tolist(), *rest]}


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
    if "numpy" in state:
        np.random.set_state(tuple(state["numpy"]))
