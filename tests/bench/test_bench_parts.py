"""`bench model` and `bench step` with parts that are not of this package, and that the authors have nothing like."""

import pytest
import torch
from torch import nn

from ccnet_cli import config
from ccnet_cli.bench import meter, model, step
from ccnet_cli.bench.request import Run
from ccnet_cli.losses import LOSSES
from ccnet_cli.models.backbones import BACKBONES
from ccnet_cli.models.heads import HEADS
from ccnet_cli.parts import Part, Section, Term

RUN = Run("cpu", threads=1, repeats=1)


class Settings(Section):
    kind: str


class Strided(nn.Module):
    """Two maps, no batch norm, nothing to recompute."""

    channels, stride = (4, 6), 4

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 6, 3, 1, 1)

    def forward(self, x):
        first = self.first(x).relu()
        return [first, self.second(first).relu()]


class Pooled(nn.Module):
    """A head that looks at both maps and at their means; a batch norm at 1x1, and a branch that starts at 0."""

    def __init__(self, channels, classes):
        super().__init__()
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(sum(channels), 6, 1), nn.BatchNorm2d(6))
        self.scores = nn.Conv2d(sum(channels), classes, 1)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, features):
        x = torch.cat(features, 1)
        return self.scores(x) + self.gate * self.mean(x).mean()


class Dice(Term):
    kind: str = "dice"


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    monkeypatch.setattr(meter, "CONVOLUTION", (8, 9))
    monkeypatch.setitem(BACKBONES, "strided", Part(Settings, lambda settings, recompute=False: Strided()))
    monkeypatch.setitem(HEADS, "pooled", Part(Settings, lambda settings, channels, classes: Pooled(channels, classes)))

    def build(settings, ignore_index, align_corners):
        return lambda outputs, label_BHW: 1 - outputs.main.softmax(1)[:, 0].mean()

    monkeypatch.setitem(LOSSES, "dice", Part(Dice, build))


def preset(*overrides: str) -> config.Preset:
    return config.load("cityscapes-r2-ohem", ["model.backbone={kind: strided}", "model.auxiliary=null", *overrides])


def test_a_head_of_another_kind_is_measured_without_the_authors(capsys):
    chosen = preset("model.head={kind: pooled}", "loss={dice: {weight: 2.0}}")
    report = model.measure(chosen.model, [(32, 48)], RUN, precisions=["fp32"])
    rows = report.values["rows"]
    assert [row["name"] for row in rows] == ["plain", "engine"] and rows[0]["times"] == 1
    assert rows[1]["error"] < 1e-5 and report.values["backbone"] == "strided" and report.values["head"] == "pooled"
    title, _, _ = next(report.sheets())
    assert "strided, pooled, cpu" in title and "times as fast as the plain one" in title
    assert "without official: the authors have no head of kind pooled" in capsys.readouterr().err
    report = step.measure(chosen, [(32, 48)], RUN, classes=3)
    rows = report.values["rows"]
    assert [row["name"] for row in rows] == ["fp32", "bf16"] and rows[0]["ratio"] == 1
    assert "ratio to fp32" in next(report.sheets())[0]
    assert "without official: the authors have no loss term like dice" in capsys.readouterr().err


def test_our_head_on_a_backbone_of_another_kind_is_compared_with_the_authors_way():
    chosen = preset("model.head={kind: rcca, channels: 8}", "loss={ohem: {min_kept: 64}}")
    rows = model.measure(chosen.model, [(32, 48)], RUN, precisions=["fp32"]).values["rows"]
    assert [row["name"] for row in rows] == ["official", "plain", "engine"]
    assert max(row["error"] for row in rows) < 1e-5
    rows = step.measure(chosen, [(32, 48)], RUN, classes=3).values["rows"]
    assert [row["name"] for row in rows] == ["official", "fp32", "bf16"]


def test_a_network_s_branch_that_starts_at_0_is_open(capsys):
    network = model.make_network(preset("model.head={kind: pooled}", "loss={dice: {}}").model)
    assert network.head.gate == 0.5
    assert 0.01 < network(model.make_image(2, (32, 48))).std() < 10
