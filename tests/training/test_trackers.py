"""Trackers: what TensorBoard, Weights & Biases and MLflow are given, by modules that stand in for them."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from runs import make_horizons, preset, train

from ccnet_cli.training.record import Record
from ccnet_cli.training.trackers import TRACKERS, Trackers

# a picture whose first pixel is pure blue, as BGR
PICTURE = np.array([[[255, 0, 0], [1, 2, 3]]], np.uint8)


class Calls:
    """Keeps the calls of every method, by its name."""

    def __init__(self, **answers):
        self.kept, self.answers = [], answers

    def __getattr__(self, name):
        def call(*values, **named):
            self.kept.append((name, values, named))
            return self.answers.get(name, self)

        return call

    def named(self, name):
        return [(values, named) for own, values, named in self.kept if own == name]


@pytest.fixture
def calls(monkeypatch):
    """What the modules are called with, once they are installed in name."""
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    stand_in = Calls()
    modules = {
        "torch.utils.tensorboard": SimpleNamespace(SummaryWriter=stand_in.SummaryWriter),
        "wandb": SimpleNamespace(init=stand_in.init, Image=lambda rgb: ("image", rgb)),
        "mlflow": stand_in,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return stand_in


def test_each_gets_numbers_and_pictures_over_the_steps(calls, tmp_path):
    trackers = Trackers(tmp_path / "run", tuple(TRACKERS), "name: mine")
    trackers.numbers(3, {"loss": 0.5, "loss/ohem": 0.1})
    trackers.picture(4, "confusion", PICTURE)
    trackers.close()
    assert calls.named("add_scalar") == [(("loss", 0.5, 3), {}), (("loss/ohem", 0.1, 3), {})]
    assert calls.named("log_metrics") == [(({"loss": 0.5, "loss.ohem": 0.1},), {"step": 3})]
    (numbers, named), (picture, _) = calls.named("log")
    assert (numbers, named) == (({"loss": 0.5, "loss/ohem": 0.1},), {"step": 3})
    shown = [
        calls.named("add_image")[0][0][1],
        calls.named("log_image")[0][0][0],
        picture[0]["confusion"][1],
    ]
    assert all(rgb.tolist() == [[[0, 0, 255], [3, 2, 1]]] for rgb in shown)
    assert calls.named("log_image")[0][0][1] == "confusion/00000004.png"
    assert calls.named("init")[0][1]["name"] == calls.named("start_run")[0][1]["run_name"] == "run"
    assert calls.named("log_text") == [(("name: mine", "preset.yaml"), {})]
    assert [len(calls.named(name)) for name in ("close", "finish", "end_run")] == [1, 1, 1]


def test_a_record_gives_them_its_numbers_but_not_step_epoch_and_seconds(calls, tmp_path):
    record = Record(tmp_path)
    record.trackers = Trackers(tmp_path, ["tensorboard"])
    record.add({"step": 3, "epoch": 1, "seconds": 9.0, "loss": 0.5, "lr": 0.1, "stall": math.nan})
    record.add({"step": 4, "miou": 0.25}, {"road": 0.25})
    record.skip(5, ["a"])
    assert sorted(values for values, _ in calls.named("add_scalar")) == [
        ("loss", 0.5, 3),
        ("lr", 0.1, 3),
        ("miou", 0.25, 4),
    ]


def test_one_that_fails_is_reported_once_and_the_others_go_on(calls, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    trackers = Trackers(tmp_path, ["tensorboard", "wandb", "mlflow"])
    calls.answers["log_metrics"] = None
    monkeypatch.setattr(calls, "log_metrics", refuse, raising=False)
    for step in (1, 2):
        trackers.numbers(step, {"loss": 1.0})
    assert len(calls.named("add_scalar")) == 2
    err = capsys.readouterr().err
    assert err.count("log.wandb: no route") == err.count("log.mlflow: no route") == 1


def test_a_run_shows_its_first_batch_its_confusion_and_its_hardest_images(calls, tmp_path, monkeypatch):
    monkeypatch.setattr("ccnet_cli.training.plan.find_spec", lambda name: name)
    data = make_horizons(tmp_path / "data")
    train(preset(data, "log.mlflow=true", "schedule.steps=2", "eval.every=1", "log.every=1"), run=tmp_path / "run")
    names = [values[1] for values, _ in calls.named("log_image")]
    assert names[0] == "first batch/00000000.png"
    assert {"confusion/00000001.png", "confusion/00000002.png", "hardest 1/00000001.png"} <= set(names)
    logged = [values[0] for values, _ in calls.named("log_metrics")]
    assert {"loss", "gamma"} <= set(logged[0]) and any("miou" in each for each in logged)
    assert len(calls.named("end_run")) == 1
