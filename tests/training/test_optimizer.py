"""The optimiser's groups: what learns faster than the backbone, and what is not pulled towards 0."""

from collections import Counter

import pytest
import torch

from ccnet_cli import config
from ccnet_cli.losses import objective as objectives
from ccnet_cli.models.network import build
from ccnet_cli.training.optimizer import make_optimizer, rate_factors
from ccnet_cli.training.trainer import LossNetwork

SMALL = ["model.backbone.width=4", "model.head.channels=8", "model.head.query_channels=2"]


def network_of(preset: config.Preset) -> LossNetwork:
    objective = objectives.build(preset.loss, 255, True)
    model = build(preset.model, 19)
    objective.prepare(19, model.feature_channels)
    return LossNetwork(model, objective)


def preset_of(*overrides: str) -> config.Preset:
    return config.load("quickstart", [*SMALL, "loss.category_consistent.weight=1.0", *overrides])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("decay", ["null", "true", "false"])
@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_every_weight_is_in_one_group_of_its_own_rate_and_decay(kind: str, decay: str, factor: float):
    preset = preset_of(f"train.optimizer={kind}", f"train.decay_vectors={decay}", f"schedule.head_lr_factor={factor}")
    network = network_of(preset)
    optimizer = make_optimizer(network, preset)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert Counter(id(p) for group in optimizer.param_groups for p in group["params"]) == Counter(list(names))
    vectors = decay == "true" or (decay == "null" and kind == "sgd")
    for group, rate in zip(optimizer.param_groups, rate_factors(preset), strict=True):
        for parameter in group["params"]:
            # the loss's own convolution is new as well
            head = not names[id(parameter)].startswith("model.backbone.")
            assert rate == (factor if head else 1.0)
            assert group["weight_decay"] == (0.01 if vectors or parameter.dim() > 1 else 0.0)
    assert len(optimizer.param_groups) == (1 if vectors else 2) * (1 if factor == 1 else 2)


def test_a_step_moves_the_head_as_far_as_its_factor_says():
    preset = preset_of(
        "train.optimizer=sgd", "train.decay_vectors=false", "schedule.head_lr_factor=10.0", "train.weight_decay=0.5"
    )
    network = network_of(preset)
    optimizer = make_optimizer(network, preset)
    for group, factor in zip(optimizer.param_groups, rate_factors(preset), strict=True):
        group["lr"] = 0.01 * factor
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        decayed = 0.5 * before[name] if parameter.dim() > 1 else 0.0
        expected = before[name] - (0.01 if name.startswith("model.backbone.") else 0.1) * (1 + decayed)
        torch.testing.assert_close(parameter.detach(), expected)
