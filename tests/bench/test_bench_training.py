"""What the benchmarks of loss and step compare and how they count; never how fast anything is."""

import json
import math

import numpy as np
import pytest
import torch
from reference_losses import CASES, SHAPES, authors_rule, case
from torch.nn import functional as F

from ccnet_cli import config
from ccnet_cli.bench import loss as losses
from ccnet_cli.bench import step as steps
from ccnet_cli.bench.meter import Meter
from ccnet_cli.bench.request import Run
from ccnet_cli.losses.objective import Objective

RUN = Run("cpu", threads=1, repeats=2)
SMALL = (
    "model.backbone=resnet18",
    "model.width=4",
    "model.channels=8",
    "model.query_channels=4",
    "model.auxiliary_channels=4",
)


def preset(*more: str) -> config.Preset:
    return config.load("cityscapes-r2-ohem", [*SMALL, *more])


@pytest.mark.parametrize("shape", SHAPES[::3])
@pytest.mark.parametrize("name", [name for name in CASES if name != "all void"])
def test_the_official_loss_is_the_authors_rule(name, shape):
    scores, label = case(name, shape[:2], *shape[2:])
    for min_kept, threshold in ((64, 0.3), (1000, 0.7), (10**6, 0.7)):
        kept = torch.from_numpy(authors_rule(scores.softmax(1).numpy(), label.numpy(), threshold, min_kept)[1])
        expected = F.cross_entropy(scores.double(), label, ignore_index=255, reduction="none")[kept].mean()
        found = losses.official_ohem(scores, label, threshold, min_kept)
        # the authors' mean of no pixel is no number
        assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.fixture
def unmeasured(monkeypatch):
    """What tests of something else need not wait for."""
    monkeypatch.setattr(Meter, "peak", lambda self, call: 7)
    monkeypatch.setattr(Meter, "convolution_rate", lambda self, dtype: 1.0)


def test_every_loss_is_there_with_positive_figures(unmeasured):
    threads = torch.get_num_threads()
    report = losses.measure([(33, 41), (24, 20)], RUN, 2, 5)
    assert torch.get_num_threads() == threads and report.values["threads"] == 1
    rows = report.values["rows"]
    assert [(row["size"], row["name"]) for row in rows] == [
        (size, name) for size in ((33, 41), (24, 20)) for name in losses.DESCRIPTIONS
    ]
    plain = {row["size"]: row["both"].median for row in rows if row["name"] == "plain"}
    for row in rows:
        time, (H, W) = row["both"], row["size"]
        assert 0 < time.least <= time.median <= time.greatest < math.inf
        assert row["memory"] == 7 and row["what"] == losses.DESCRIPTIONS[row["name"]]
        assert row["ratio"] == pytest.approx(time.median / plain[H, W])
        least = 2 * 4 * 2 * 5 * H * W / report.values["copy"] / 1e6
        assert row["floor"] * time.median == pytest.approx(least)
    mapping = json.loads(json.dumps(report.to_mapping(), allow_nan=False))
    assert mapping["rows"][0]["size"] == [33, 41] and mapping["classes"] == 5


@pytest.mark.parametrize(
    ("name", "of"), [("ohem", "ohem_cross_entropy"), ("cross_entropy", "cross_entropy"), ("objective", None)]
)
def test_a_wrong_loss_is_not_timed(monkeypatch, unmeasured, name, of):
    if of is None:
        right = Objective.forward
        monkeypatch.setattr(Objective, "forward", lambda self, *given: (1.1 * right(self, *given)[0], {}))
    else:
        wrong = getattr(losses, of)
        monkeypatch.setattr(losses, of, lambda *given: 1.1 * wrong(*given))
    with pytest.raises(RuntimeError, match=f"{name} differs"):
        losses.measure([(33, 41)], RUN, 1, 3)


def test_every_step_is_there_with_positive_figures(monkeypatch):
    monkeypatch.setattr(Meter, "convolution_rate", lambda self, dtype: 2.0 if dtype == torch.bfloat16 else 3.0)
    report = steps.measure(preset(), [(33, 41)], RUN, classes=5)
    rows = {row["name"]: row for row in report.values["rows"]}
    assert list(rows) == ["official", *steps.OURS] == list(steps.DESCRIPTIONS)
    for name, row in rows.items():
        time = row["step"]
        assert 0 < time.least <= time.median <= time.greatest < math.inf
        assert row["memory"] > 0 and row["tflop"] > 0 and row["size"] == (33, 41)
        assert row["ratio"] == pytest.approx(time.median / rows["official"]["step"].median)
        assert row["rate"] * time.median == pytest.approx(1000 * row["tflop"])
        assert row["floor"] * (2 if "bf16" in name else 3) == pytest.approx(row["rate"])
    # a second forward pass through the backbone, and less to remember
    assert rows["fp32 recomputed"]["tflop"] > 1.1 * rows["fp32"]["tflop"]
    assert rows["fp32 recomputed"]["memory"] < rows["fp32"]["memory"]
    json.dumps(report.to_mapping(), allow_nan=False)


def test_steps_are_measured_as_they_are_named(monkeypatch, unmeasured):
    seen = []
    whole = steps.Way.step

    def note(self, x, label):
        before = [p.detach().clone() for p in self.network.parameters()]
        loss = whole(self, x, label)
        assert all(torch.equal(*pair) for pair in zip(before, self.network.parameters(), strict=True))
        network = self.network
        seen.append((self.precision, self.recompute, network.backbone.recompute, self.optimizer.defaults["fused"]))
        return loss

    monkeypatch.setattr(steps.Way, "step", note)
    steps.measure(preset(), [(25, 25)], RUN, classes=3)
    assert set(seen) == {("fp32", False, False, None), *((*each, each[1], True) for each in steps.OURS.values())}


def test_gradients_are_part_of_a_step_s_memory(monkeypatch, unmeasured):
    """None is there before, or the peak above what was there would not have them."""
    seen = []
    monkeypatch.setattr(
        Meter,
        "peak",
        lambda self, call: seen.append({p.grad for p in call.func.__self__.network.parameters()}) or 1.0,
    )
    steps.measure(preset(), [(25, 25)], RUN, classes=3)
    assert seen == [{None}] * 5


def test_a_wrong_step_is_not_timed(monkeypatch, unmeasured):
    right = Objective.forward
    monkeypatch.setattr(Objective, "forward", lambda self, *given: (right(self, *given)[0] * 1.1, {}))
    with pytest.raises(RuntimeError, match="fp32 differs"):
        steps.measure(preset(), [(33, 41)], RUN, classes=3)


def test_own_probabilities_are_each_pixel_s():
    probability = np.random.default_rng(0).random((1, 3, 1, 3))
    own, valid = losses._own(probability, np.array([[[2, 255, 0]]]))
    assert valid.tolist() == [[[True, False, True]]]
    assert own[0, 0, [0, 2]].tolist() == [probability[0, 2, 0, 0], probability[0, 0, 0, 2]]
