"""What a run would be, without its data and without a step."""

from typing import Any

import torch

from ccnet_cli.datasets import classes_of
from ccnet_cli.losses import objective as objectives
from ccnet_cli.models.network import build
from ccnet_cli.training.plan import make_plan
from ccnet_cli.training.request import TrainRequest
from ccnet_cli.training.start import begin


def outline(request: TrainRequest) -> dict[str, Any]:
    """Network, loss, batch, schedule and first weights of the run as plain types; InputError for what cannot run."""
    plan, start = begin(*make_plan(request))
    preset, classes = plan.preset, len(classes_of(plan.preset.data))
    with torch.device("meta"):
        network = build(preset.model, classes)
        objective = objectives.build(preset.loss, preset.data.ignore_index, preset.model.align_corners)
        objective.check(network.output_names)
        objective.prepare(classes, network.feature_channels)
    parts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in network.named_children()}
    train, schedule = preset.train, preset.schedule
    return {
        "preset": preset.name,
        "published": preset.published,
        "run": str(plan.run),
        "begins_with": str(start.path) if start else None,
        "resumes": str(plan.resume) if plan.resume else None,
        "parameters": {"all": sum(parts.values()), **parts},
        "classes": classes,
        "loss": {name: {"kind": t.kind, "output": t.output, "weight": t.weight} for name, t in preset.loss.items()},
        "batch": train.batch,
        "processes": plan.processes,
        "images_at_once": plan.micro_batch,
        "accumulation": plan.accumulation,
        "precision": train.precision,
        "steps": schedule.steps,
        "lr": {"backbone": schedule.lr, "others": schedule.lr * schedule.head_lr_factor, "minimum": schedule.minimum},
    }
