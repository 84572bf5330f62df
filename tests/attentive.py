"""A checkpoint whose attention is clearly uneven, for tests of what is drawn of it."""

from pathlib import Path

import torch
from variants import variant

from ccnet_cli import config
from ccnet_cli.media.classes import Classes
from ccnet_cli.models.network import build
from ccnet_cli.runs import checkpoint as checkpoints

CLASSES = Classes(("road", "sky", "Tür"), ((128, 64, 128), (70, 130, 180), (1, 2, 3)), (7, 23, 9))


def saved(
    folder: Path,
    recurrence: int = 2,
    gamma: float = 0.5,
    poison: bool = False,
    strength: float = 3.0,
    classes: Classes = CLASSES,
    **model: object,
) -> Path:
    """A checkpoint of a random tiny network with clearly uneven attention."""
    preset = config.load("toyscapes-r2", [f"model.recurrence={recurrence}", "model.width=8", "model.channels=16"])
    preset = preset.model_copy(update={"model": variant(preset.model, **model)})
    torch.manual_seed(0)
    network = build(preset.model, len(classes))
    if recurrence:
        network.head.rcca.attention.gamma.data.fill_(gamma)
        network.head.rcca.attention.query_conv.weight.data.mul_(strength)
        if poison:
            for conv in (network.head.rcca.attention.query_conv, network.head.rcca.attention.key_conv):
                conv.weight.data.mul_(1e30)
    state = {
        "format": checkpoints.FORMAT,
        "model": network.state_dict(),
        "preset": config.to_mapping(preset),
        "classes": classes.to_mapping(),
        "step": 1,
        "metrics": {},
    }
    return checkpoints.save(folder, 1, state, keep=2)
