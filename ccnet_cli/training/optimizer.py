"""The optimiser, and whether a saved state is one: torch takes over whatever a file holds, and fails steps later."""

from typing import Any

import torch
from torch import Tensor, nn

from ccnet_cli.config import Preset

# the first words of the backbone's weights in the network that is trained
BACKBONE = "model.backbone."
# what no group may lack; later versions of torch add others
REQUIRED = {"lr", "momentum", "dampening", "betas", "eps", "weight_decay", "params"}
MAX_SETTING = 1e12


def make_optimizer(module: nn.Module, preset: Preset) -> torch.optim.Optimizer:
    """The preset's optimiser of a module's parameters, in groups of one weight decay and one factor of the rate."""
    train, schedule = preset.train, preset.schedule
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {key: [] for key in _groups(preset)}
    for name, parameter in module.named_parameters():
        head = schedule.head_lr_factor != 1 and not name.startswith(BACKBONE)
        groups[head, not _decays_vectors(preset) and parameter.dim() <= 1].append(parameter)
    options: Any = [
        {"params": own, "weight_decay": 0.0 if vectors else train.weight_decay} for (_, vectors), own in groups.items()
    ]
    if train.optimizer == "sgd":
        # fused: one pass over the weights in place of five
        return torch.optim.SGD(options, schedule.lr, train.momentum, fused=True)
    return torch.optim.AdamW(options, schedule.lr, betas=(train.momentum, 0.999))


def rate_factors(preset: Preset) -> list[float]:
    """What each group of the optimiser multiplies the learning rate by."""
    return [preset.schedule.head_lr_factor if head else 1.0 for head, _ in _groups(preset)]


def _groups(preset: Preset) -> list[tuple[bool, bool]]:
    """The optimiser's groups: whether of what is not the backbone, and whether of vectors without weight decay."""
    heads = [False] if preset.schedule.head_lr_factor == 1 else [False, True]
    return [(head, vectors) for head in heads for vectors in ([False] if _decays_vectors(preset) else [False, True])]


def _decays_vectors(preset: Preset) -> bool:
    """Whether weight decay acts on norms, biases and gammas: AdamW's would pull them towards 0 at full strength."""
    chosen = preset.train.decay_vectors
    return preset.train.optimizer == "sgd" if chosen is None else chosen


def check_optimizer(own: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """ValueError, which names the field, unless a saved state has the form of an optimiser's own."""
    groups, states = saved["param_groups"], saved["state"]
    if len(groups) != len(own.param_groups):
        raise ValueError(f"param_groups has {len(groups)} groups, not {len(own.param_groups)}")
    for group, ours in zip(groups, own.param_groups, strict=True):
        for key in ours.keys() & (REQUIRED | group.keys()) - {"params"}:
            if key not in group:
                raise ValueError(f"param_groups.{key} is missing")
            if not _is_alike(group[key], ours[key]):
                raise ValueError(f"param_groups.{key} is no value that it can have")
    parameters = [parameter for group in own.param_groups for parameter in group["params"]]
    for index, state in states.items():
        if not isinstance(index, int) or not 0 <= index < len(parameters) or not isinstance(state, dict):
            raise ValueError("state has an entry that belongs to no weight")
        for key, value in state.items():
            if not _fits(value, parameters[index]):
                raise ValueError(f"state.{index}.{key} does not fit its weight")


def _is_alike(value: Any, ours: Any) -> bool:
    """Whether a setting is of the kind of ours; a number must be one that a training can have."""
    if isinstance(ours, tuple):
        right = isinstance(value, tuple | list) and len(value) == len(ours) and all(map(_is_alike, value, ours))
        return right and max(value) < 1
    if ours is None or isinstance(ours, bool):
        return value is None or isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SETTING


def _fits(value: Any, parameter: Tensor) -> bool:
    if isinstance(value, Tensor):
        return value.shape in (parameter.shape, torch.Size([])) and not value.is_complex()
    return value is None or (isinstance(value, int | float) and 0 <= value <= MAX_SETTING)
