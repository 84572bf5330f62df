"""All that changes while training: the model, its optimiser, and how one step changes them."""

import copy
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ccnet_cli import checkpoint, config, distributed, loading
from ccnet_cli import model as models
from ccnet_cli.datasets import Classes
from ccnet_cli.errors import InputError, NonFiniteError, notice
from ccnet_cli.model import CCNet


@dataclass
class Trainer:
    """All that changes while training; `state` and `restore` name every part of it."""

    preset: config.Preset
    model: CCNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: CCNet | None
    device: torch.device
    origin: str = ""
    step: int = 0
    best: float = -1.0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def inference_model(self) -> CCNet:
        """The model to evaluate and to keep: the weights' moving average where there is one."""
        return self.averaged or self.model

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def update(self, loss: float) -> None:
        """Step the optimiser with the gradients at hand; NonFiniteError before it unless they and loss are finite."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        # with fp16 the scaler itself skips the step and lowers its scale
        if not self.scaler.is_enabled() and not (math.isfinite(loss) and math.isfinite(norm)):
            why = f"loss {loss}, gradient norm {float(norm)}"
            raise NonFiniteError(f"step {self.step + 1}", why, "lower schedule.lr and resume")
        if self.preset.train.clip_norm:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.preset.train.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.averaged is not None:
            # a short memory at first: the first weights are noise
            _average(self.averaged, self.model, min(self.preset.train.ema, (1 + self.step) / (10 + self.step)))

    def state(self, classes: Classes) -> dict[str, Any]:
        """The content of a checkpoint; every rank must call it."""
        return {
            "format": checkpoint.FORMAT,
            "model": self.inference_model.state_dict(),
            "preset": config.to_mapping(self.preset),
            "classes": classes.to_mapping(),
            "step": self.step,
            "metrics": self.metrics,
            "origin": self.origin,
            "training": {
                "model": self.model.state_dict() if self.averaged else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "best": self.best,
                "random": distributed.gather(_random_state(self.device)),
            },
        }

    def restore(self, content: dict[str, Any], path: Path) -> None:
        """Continue from a checkpoint's content; InputError where it does not fit this run."""
        training = content["training"]
        changed = config.differences(self.preset, config.from_mapping(content["preset"]))
        if changed and distributed.rank() == 0:
            notice(f"warning: resumed with other values of {', '.join(changed)} than before")
        loading.load_weights(self.inference_model, content["model"], path)
        if self.averaged:
            loading.load_weights(self.model, training["model"] or content["model"], path)
        try:
            self.optimizer.load_state_dict(training["optimizer"])
            self.scaler.load_state_dict(training["scaler"])
        except (ValueError, KeyError, RuntimeError) as error:
            why = f"its optimiser state does not fit ({error})"
            raise InputError(path, why, "resume with the preset that it was trained with") from None
        self.step, self.metrics, self.best = content["step"], content["metrics"], training["best"]
        self.origin = content.get("origin", "")
        states = training["random"]
        if len(states) == distributed.world():
            _set_random_state(states[distributed.rank()], self.device)
        elif distributed.rank() == 0:
            notice(
                f"warning: resumed on {distributed.world()} processes, was {len(states)}: same images, other dropout"
            )


def build(
    preset: config.Preset, classes: int, device: torch.device, weights: Path | None = None, partial: bool = False
) -> Trainer:
    """Model, optimiser and the rest at step 0; weights is a file to begin with, partial as loading.begin takes it."""
    train = preset.train
    model = models.build(preset.model, classes, train.checkpoint_activations)
    origin = loading.begin(model, weights, preset.model, partial) if weights else ""
    if train.sync_bn and device.type == "cuda" and distributed.world() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device)
    if train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(model).eval().requires_grad_(False) if train.ema else None
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
    return Trainer(preset, model, _optimizer(model, preset), scaler, averaged, device, origin)


def _optimizer(model: nn.Module, preset: config.Preset) -> torch.optim.Optimizer:
    train, lr = preset.train, preset.schedule.lr
    if train.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr, train.momentum, weight_decay=train.weight_decay)
    # AdamW's decay would pull norms, biases and the attention's gamma towards 0 at full strength
    plain = [p for p in model.parameters() if p.dim() <= 1]
    decayed = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr, betas=(train.momentum, 0.999))


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
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
