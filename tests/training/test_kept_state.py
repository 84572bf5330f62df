"""What a run keeps beside the network's weights: the best score, a loss term's own parameters, where it stopped."""

import json
import math
import shutil
from typing import Literal

import numpy as np
import pytest
import torch
from runs import make_horizons, outcome, preset, steps, train
from torch import nn
from torch.nn import functional as F

from ccnet_cli.datasets import open_source
from ccnet_cli.figures.report import GAP
from ccnet_cli.inference.metrics import Confusion
from ccnet_cli.losses import LOSSES
from ccnet_cli.media import images
from ccnet_cli.parts import Part, Term
from ccnet_cli.runs import checkpoint
from ccnet_cli.training import loop
from ccnet_cli.training.validation import Scores

EVERY = ("checkpoint.every=1", "checkpoint.keep=9", "eval.every=0", "train.optimizer=sgd", "train.momentum=0.0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("horizons") / "data")


def content(run, step):
    return checkpoint.read(run / f"checkpoints/step_{step:08d}.pt")


def scored(*pixels):
    """Scores of two classes whose confusion is these four counts."""
    confusion = Confusion(2)
    confusion.matrix += torch.tensor(pixels).view(2, 2)
    return Scores(confusion, [])


def test_of_equal_scores_the_first_is_the_best(data, tmp_path, monkeypatch):
    """Scores 1/2, 3/4, 3/4, 1/4 after steps 1 to 4; and the second is still the best after a resume from the third."""
    answers = iter([scored(2, 1, 1, 2), scored(3, 1, 0, 3), scored(3, 1, 0, 3), scored(1, 2, 1, 1)])
    monkeypatch.setattr(loop, "validate", lambda *_, **__: next(answers))
    made = preset(data, *EVERY, "eval.every=1", "schedule.steps=4")
    run = train(made, run=tmp_path / "run")
    steps = [content(run, step)["training"]["best_step"] for step in (1, 2, 3, 4)]
    assert steps == [1, 2, 2, 2], f"the best step after each of four scores is {steps}"
    assert checkpoint.read(run / "best.pt")["step"] == 2
    for path in (run / "checkpoints").glob("step_00000004.*"):
        path.unlink()
    answers = iter([scored(2, 1, 1, 3)])
    again = train(made, run=run, resume="auto")
    state = content(again, 4)["training"]
    assert (state["best"], state["best_step"]) == (0.75, 2)
    assert checkpoint.read(run / "best.pt")["step"] == 2


def test_the_last_step_is_saved_though_it_is_neither_due_nor_the_best(data, tmp_path, monkeypatch):
    answers = iter([scored(3, 1, 0, 3), scored(2, 1, 1, 2), scored(1, 2, 1, 1)])
    monkeypatch.setattr(loop, "validate", lambda *_, **__: next(answers))
    made = preset(data, *EVERY, "checkpoint.every=4", "eval.every=2", "schedule.steps=5")
    run = train(made, run=tmp_path / "run")
    assert steps(run) == [5, 4, 2]
    assert [checkpoint.read(run / name)["step"] for name in ("last.pt", "best.pt")] == [5, 2]


class Scaled(nn.Module):
    """Cross entropy of an uncertainty that is learnt along: exp(-s) CE + s."""

    def __init__(self, ignore_index):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.ignore_index = ignore_index

    def forward(self, outputs, label):
        large = F.interpolate(outputs.main.float(), label.shape[1:], mode="bilinear", align_corners=True)
        plain = F.cross_entropy(large, label, ignore_index=self.ignore_index)
        return (-self.log_scale).exp() * plain + self.log_scale


class ScaledSettings(Term):
    kind: Literal["scaled"] = "scaled"


@pytest.fixture
def scaled(monkeypatch, data):
    monkeypatch.setitem(LOSSES, "scaled", Part(ScaledSettings, lambda _, ignore_index, __: Scaled(ignore_index)))
    loss = ("loss.scaled.kind=scaled", "loss.ohem=null")
    return lambda *more: preset(data, *EVERY, *loss, "train.weight_decay=0.0", "schedule.steps=4", *more)


def log_scale(run, step):
    (value,) = content(run, step)["training"]["objective"].values()
    return value.item()


def test_a_loss_term_s_parameters_are_trained_saved_and_resumed(scaled, tmp_path):
    """s of exp(-s) CE + s: the first step moves it by the rate times CE - 1, by hand."""
    made = scaled("train.clip_norm=null", "schedule.lr=0.1")
    run = train(made, run=tmp_path / "run")
    first = json.loads((run / "log.jsonl").read_text().splitlines()[0])["loss"]
    assert log_scale(run, 1) == pytest.approx(0.1 * (first - 1), rel=1e-4)
    values = [log_scale(run, step) for step in (1, 2, 3, 4)]
    assert len(set(values)) == 4, f"the parameter stands still: {values}"
    middle = str(run / "checkpoints/step_00000002.pt")
    second = train(made, run=tmp_path / "second", resume=middle, strict=True)
    assert log_scale(second, 4) == values[3], f"{log_scale(second, 4)} after a resume, {values[3]} without"
    assert outcome(second, after=2) == outcome(run, after=2)


@pytest.mark.parametrize(("clip", "rate", "weight"), [(1e-3, 10.0, 1.0), (2.0, 1e-3, 1000.0)])
def test_the_clipped_norm_is_that_of_network_and_loss_together(scaled, tmp_path, clip, rate, weight):
    """Without momentum and decay a step's length is the rate times the largest norm allowed, here a far smaller one."""
    options = (f"train.clip_norm={clip}", f"schedule.lr={rate}", "schedule.power=0.0", f"loss.scaled.weight={weight}")
    run = train(scaled(*options), run=tmp_path / "run")
    before, after = content(run, 2), content(run, 3)
    weights = {key: value for key, value in before["model"].items() if is_weight(key)}
    moved = sum((after["model"][key] - value).square().sum().item() for key, value in weights.items())
    moved += (log_scale(run, 3) - log_scale(run, 2)) ** 2
    assert math.sqrt(moved) == pytest.approx(clip * rate, rel=1e-2)


def is_weight(key):
    return "running" not in key and "tracked" not in key


def test_where_a_run_began_is_known_after_a_resume(data, tmp_path):
    """The file that the weights came from is in the first checkpoint, and in those after a resume."""
    made = preset(data, *EVERY, "schedule.steps=2")
    first = train(made, run=tmp_path / "first")
    second = train(made, run=tmp_path / "second", weights=first / "last.pt")
    third = train(made, run=tmp_path / "third", resume=str(second / "checkpoints/step_00000001.pt"))
    origins = [content(run, 2)["origin"] for run in (first, second, third)]
    assert origins == ["", "last.pt: a checkpoint of quickstart", "last.pt: a checkpoint of quickstart"]


def test_the_average_is_one_of_running_statistics_too(data, tmp_path):
    """Of every number that the network holds: decay times the average before, 1 - decay times the network's."""
    run = train(preset(data, *EVERY, "train.ema=0.28", "schedule.steps=3"), run=tmp_path / "run")
    # a short memory at first: 3/12, then the limit, as 4/13 is above it
    before = content(run, 1)["model"]
    for step, decay in ((2, 3 / 12), (3, 0.28)):
        state = content(run, step)
        for key, value in state["training"]["model"].items():
            wanted = decay * before[key] + (1 - decay) * value if value.is_floating_point() else value
            worst = (state["model"][key] - wanted).abs().max().item()
            assert worst <= 1e-5 * (1 + wanted.abs().max()), f"step {step}, {key}: the average is {worst:.1e} off"
        before = state["model"]


def test_a_report_shows_image_label_and_prediction_in_this_order(data, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(loop, "write_report", lambda record, source, scores: shown.extend(scores.examples))
    made = preset(data, *EVERY, "schedule.steps=1")
    train(made, run=tmp_path / "run")
    assert len(shown) == 4
    palette = open_source(made.data, "val").classes.palette
    for example in shown:
        image = images.read_image(data / f"images/val/{example.name}.png")
        label = images.read_label(data / f"labels/val/{example.name}.png")
        width = image.shape[1]
        panels = [example.picture[:, start : start + width] for start in range(0, 3 * width, width + GAP)]
        assert (panels[0] == image).all() and (panels[1] == images.colorize(label, palette)).all(), example.name
        assert (panels[2] != panels[1]).any(), "an untrained network is not right everywhere"


def test_a_row_of_the_log_is_the_mean_since_the_row_before_though_the_run_was_resumed(data, tmp_path):
    """A row every second step; resumed from the first, the row at the second is the mean of both all the same."""
    single = logged_losses(train(preset(data, *EVERY, "schedule.steps=4", "log.every=1"), run=tmp_path / "single"))
    made = preset(data, *EVERY, "schedule.steps=4", "log.every=2")
    whole = train(made, run=tmp_path / "whole")
    resumed = train(made, run=tmp_path / "resumed", resume=str(whole / "checkpoints/step_00000001.pt"))
    expected = {2: (single[1] + single[2]) / 2, 4: (single[3] + single[4]) / 2}
    assert logged_losses(whole) == pytest.approx(expected, rel=1e-6)
    assert logged_losses(resumed) == pytest.approx(expected, rel=1e-6)


def logged_losses(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_automatic_weights_are_those_of_the_training_set_s_pixels(data, tmp_path):
    """ENet's 1 / ln(1.02 + share) with mean 1, counted here; a resume keeps them though the labels have changed."""
    counts = np.zeros(2)
    for path in (data / "labels/train").iterdir():
        counts += np.bincount(images.read_label(path).ravel(), minlength=2)
    weights = 1 / np.log(1.02 + counts / counts.sum())
    expected = (weights / weights.mean()).tolist()
    assert abs(expected[0] - expected[1]) > 0.01
    loss = ("loss.ohem=null", "loss.plain.kind=cross_entropy", "loss.plain.class_weights=auto", "schedule.steps=2")
    run = train(preset(data, *EVERY, *loss), run=tmp_path / "run")
    changed = shutil.copytree(data, tmp_path / "changed")
    for path in (changed / "labels/train").iterdir():
        images.write_label(path, np.zeros((40, 56), np.uint8))
    middle = str(run / "checkpoints/step_00000001.pt")
    again = train(preset(changed, *EVERY, *loss), run=tmp_path / "again", resume=middle)
    for folder in (run, again):
        (saved,) = content(folder, 2)["training"]["objective"].values()
        assert saved.tolist() == pytest.approx(expected, rel=1e-6)
