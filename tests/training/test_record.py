"""The log of a run, its curves and its look at the first batch."""

import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import make_horizons, preset, train

from ccnet_cli.models.network import Normalisation
from ccnet_cli.training.loop import mean_losses
from ccnet_cli.training.record import Record, mosaic


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
    record = Record(tmp_path)
    for step in range(1, 5):
        record.add({"step": step, "loss": 1.0 / step, "lr": 0.1})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    again = Record(tmp_path, step=2)
    again.add({"step": 3, "loss": 0.25, "lr": 0.1})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()] == [
        "step",
        "1",
        "2",
        "3",
    ]


def test_every_term_of_the_loss_has_a_column(tmp_path):
    """Behind the fixed ones; a folder of before gets them when it is resumed, and keeps those of a term that went."""
    fixed = "step,epoch,loss,lr,images_per_second,stall,seconds,miou,pixel_accuracy,mean_accuracy"
    record = Record(tmp_path)
    record.add({"step": 1, "loss": 1.5, "lr": 0.1})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [fixed, "1,,1.5,0.1,,,,,,"]
    record = Record(tmp_path, step=1, losses=["loss", "loss/ohem"])
    record.add({"step": 2, "loss": 1.25, "loss/ohem": 1.0})
    record = Record(tmp_path, step=2, losses=["loss", "loss/plain"])
    record.add({"step": 3, "loss": 0.5, "loss/plain": 0.25})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        f"{fixed},loss/ohem,loss/plain",
        "1,,1.5,0.1,,,,,,,,",
        "2,,1.25,,,,,,,,1.0,",
        "3,,0.5,,,,,,,,,0.25",
    ]


def test_a_full_disk_is_told_once_and_made_up_for(tmp_path, monkeypatch, capsys):
    record = Record(tmp_path)
    record.add({"step": 1, "loss": 1.0})

    def refusing(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refusing)
        record.add({"step": 2, "loss": 0.5})
        record.skip(3, ["a", "b"])
        record.draw()
    assert capsys.readouterr().err.count("log not written") == 1
    record.add({"step": 4, "loss": 0.25})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "skipped": ["a", "b"]},
        {"step": 4, "loss": 0.25},
    ]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 5


def test_the_mosaic_shows_image_and_label_as_they_were():
    mean, std = (10.0, 20.0, 30.0), (2.0, 3.0, 4.0)
    rgb = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5)).astype(np.float32)
    batch = (torch.from_numpy(rgb) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    label = torch.tensor([0, 1, 255]).repeat(2, 4, 2)[:, :, :5]
    picture = mosaic(batch, label, Normalisation("rgb", mean, std), [(1, 2, 3), (4, 5, 6)])
    assert picture.shape == (8, 10, 3)
    assert (picture[:4, 5:, ::-1].transpose(2, 0, 1) == rgb[1]).all()
    assert picture[4, :3].tolist() == [[3, 2, 1], [6, 5, 4], [0, 0, 0]]


def test_the_mosaic_shows_eight_images_at_most():
    for count, columns in ((1, 1), (8, 8), (11, 8)):
        images, labels = torch.zeros(count, 3, 4, 5), torch.zeros(count, 4, 5, dtype=torch.long)
        picture = mosaic(images, labels, Normalisation("bgr", (1, 2, 3), (1, 1, 1)), [(1, 2, 3)])
        assert picture.shape == (8, 5 * columns, 3)


def test_curves_are_drawn_now_and_then(tmp_path, monkeypatch):
    """At once where that is asked for, else once in a while: they take as long as some steps."""
    clock, drawn = [100.0], []
    monkeypatch.setattr("ccnet_cli.training.record.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("ccnet_cli.training.record.training_curves", lambda rows: np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr("ccnet_cli.training.record.images.write_image", lambda *_: drawn.append(clock[0]))
    record = Record(tmp_path)
    for seconds, at_once in ((0, False), (10, False), (25, False), (5, False), (1, True), (29, False), (1, False)):
        clock[0] += seconds
        record.draw(at_once)
    assert drawn == [100.0, 135.0, 141.0, 171.0]


def test_logged_losses_are_means_over_the_steps_that_were_not_skipped():
    """By hand: of totals 3, nan and 1 the mean is 2; of a skipped step no term counts either."""
    steps = [{"loss": 3.0, "loss/a": 2.0}, {"loss": math.nan, "loss/a": 100.0}, {"loss": 1.0, "loss/a": 0.5}]
    assert mean_losses(steps, ["loss", "loss/a"]) == {"loss": 2.0, "loss/a": 1.25}
    none = mean_losses(steps[1:2], ["loss"])
    assert math.isnan(none["loss"])


def test_images_per_second_are_those_of_whole_batches(tmp_path):
    """Rate times seconds is what was trained on between two lines: 2 steps of 4 images, in micro-batches of 2."""
    data = make_horizons(tmp_path / "data")
    options = ("log.every=2", "train.micro_batch=2", "eval.every=0", "schedule.steps=5")
    run = train(preset(data, *options), run=tmp_path / "run")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    # the epoch of the next image: of six, 8, 16 and 20 have been seen
    assert [(row["step"], row["epoch"]) for row in rows] == [(2, 1), (4, 2), (5, 3)]
    seconds = np.diff([0.0, *(row["seconds"] for row in rows)])
    images = [row["images_per_second"] * spent for row, spent in zip(rows, seconds, strict=True)]
    assert images == pytest.approx([8, 8, 4])
