"""Training: what a run leaves behind, that it continues exactly, and that it stops before harm."""

import json
import os
import re
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from calls import evaluate
from runs import SETTINGS, arguments, ended, forked, make_horizons, plan_of, preset, start, train

from ccnet_cli import cli, config, datasets
from ccnet_cli.errors import InputError, NonFiniteError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.losses import CrossEntropy, Ohem
from ccnet_cli.losses import objective as objectives
from ccnet_cli.losses.objective import Objective
from ccnet_cli.media import images
from ccnet_cli.parallel.group import Group
from ccnet_cli.runs import checkpoint
from ccnet_cli.training import loader, plan
from ccnet_cli.training.loader import make_loader


@pytest.fixture
def data(tmp_path):
    return make_horizons(tmp_path / "data")


def weights(run):
    return checkpoint.read(run / "last.pt")["model"]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_a_run_folder_holds_all_of_the_run(data, tmp_path, capsys):
    run = train(preset(data), run=tmp_path / "run", charts=True)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "miou" in row] == [3, 6]
    table = (run / "metrics.csv").read_text().splitlines()
    assert len(table) == 1 + len(rows) and table[0].startswith("step,epoch,loss,lr")
    assert config.load(str(run / "preset.yaml")) == preset(data)
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"]
    assert cv2.imdecode(np.fromfile(run / "curves.png", np.uint8), cv2.IMREAD_COLOR).shape == (360, 1440, 3)
    assert cv2.imdecode(np.fromfile(run / "batch.jpg", np.uint8), cv2.IMREAD_COLOR).shape == (64, 192, 3)
    names = [path.name for path in checkpoint.list_checkpoints(run / "checkpoints")]
    assert names == ["step_00000006.pt", "step_00000004.pt"]
    best = max(row["miou"] for row in rows if "miou" in row)
    assert load_model(run / "best.pt").metrics["miou"] == best
    restored = load_model(run / "last.pt")
    assert restored.step == 6 and restored.classes.names == ("sky", "road")
    assert "global batch 4 = 1 process x 4 images x 1 accumulated" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("train.ema=0.9", "model.dropout=0.5"), ("train.micro_batch=2",)])
def test_a_resumed_run_ends_with_the_same_weights(data, tmp_path, options):
    """The same six steps in one go, and cut after four by taking the later checkpoints away."""
    whole = train(preset(data, *options), run=tmp_path / "whole")
    cut = train(preset(data, *options), run=tmp_path / "cut")
    for path in (cut / "checkpoints").glob("step_00000006.*"):
        path.unlink()
    for alias in ("last.pt", "last.json", "best.pt", "best.json"):
        (cut / alias).unlink()
    train(preset(data, *options), run=cut, resume="auto")
    assert_equal(weights(whole), weights(cut))
    kept = ("step", "loss", "lr", "miou")
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (whole, cut)]
    first, second = ([{key: row.get(key) for key in kept} for row in log] for log in logs)
    assert first == second


def test_a_resumed_run_needs_its_momentum(data, tmp_path, monkeypatch):
    """The twin of the test above: without the optimiser's state the weights differ, so it would notice."""
    whole = train(preset(data), run=tmp_path / "whole")
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None)
    resumed = train(preset(data), run=tmp_path / "run", resume=str(whole / "checkpoints/step_00000004.pt"))
    with pytest.raises(AssertionError):
        assert_equal(weights(whole), weights(resumed))


def test_another_preset_is_told_or_refused_when_resuming(data, tmp_path, capsys):
    first = train(preset(data), run=tmp_path / "first")
    middle = str(first / "checkpoints/step_00000004.pt")
    train(preset(data, "schedule.lr=1e-3"), run=tmp_path / "second", resume=middle)
    assert "warning: resumed with other values of schedule.lr than before" in capsys.readouterr().err
    with pytest.raises(InputError, match="optimiser state does not fit"):
        train(preset(data, "train.optimizer=sgd"), run=tmp_path / "third", resume=middle)
    with pytest.raises(InputError, match="the model's is"):
        train(preset(data, "model.channels=8"), run=tmp_path / "fourth", resume=middle)
    assert not (tmp_path / "third").exists() and not (tmp_path / "fourth").exists()
    kept = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="optimiser state does not fit"):
        train(preset(data, "train.optimizer=sgd", "schedule.steps=9"), run=first, resume="auto")
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == kept


def test_a_long_schedule_begins_at_once(data, tmp_path):
    """A loader that laid out every batch beforehand would need gigabytes here."""
    made = config.load("quickstart", [f"data.root={data}", *sorted(SETTINGS), "schedule.steps=1000000000"])
    source = datasets.open_source(made.data, "train")
    plan_ = plan_of(made, tmp_path / "run")
    batch = next(iter(make_loader(plan_, source, Group())))
    assert batch.images.shape == (4, 32, 48, 3) and batch.labels.shape == (4, 32, 48)


def test_the_preset_s_augmentation_reaches_the_samples(data, tmp_path):
    keys = ["fit=[80, 60]", "scale_min=0.5", "scale_max=1.5", "scale_step=0", "category_ratio=0.8", "photometric=true"]
    loaded = preset(data, *(f"data.{key}" for key in keys), "seed=4")
    source = datasets.open_source(loaded.data, "train")
    made = make_loader(plan_of(loaded, tmp_path / "run"), source, Group())
    augmentation = datasets.Augmentation(
        crop=(32, 48), scale_min=0.5, scale_max=1.5, scale_step=0, fit=(80, 60), category_ratio=0.8, photometric=True
    )
    expected = datasets.TrainingSet(source, augmentation, seed=4)
    for index in range(6):
        for ours, theirs in zip(made.dataset[2, index], expected[2, index], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert vars(made.dataset) == vars(expected)


def test_a_checkpoint_of_persons_knows_what_a_mirror_exchanges(tmp_path):
    random = np.random.default_rng(1)
    for split in ("train", "val"):
        for index in range(4):
            picture, label = (random.integers(0, top, (30, 20, 3)).astype(np.uint8) for top in (256, 20))
            images.write_image(tmp_path / f"LIP/{split}_images/{index}.jpg", picture)
            images.write_label(tmp_path / f"LIP/{split}_segmentations/{index}.png", label[..., 0])
    keys = ["data.dataset=lip", "data.classes=null", "data.photometric=true", "data.category_ratio=0.75"]
    test = ["eval.flip=true", "eval.fit=[40, 32]", "eval.every=0"]
    run = train(preset(tmp_path / "LIP", *keys, *test, "schedule.steps=1"), run=tmp_path / "run")
    restored = load_model(run / "last.pt")
    assert restored.classes == datasets.lip.CLASSES
    assert evaluate(run / "last.pt", device="cpu").miou == pytest.approx(restored.metrics["miou"])


def test_the_log_tells_how_long_it_waited_for_data(data, tmp_path, capsys, monkeypatch):
    """A clock that only reading batches moves, by 3 seconds each, and steps, by 1: three quarters of the time."""
    clock = [0.0]

    def moved(seconds, call):
        def moving(*given):
            clock[0] += seconds
            return call(*given)

        return moving

    monkeypatch.setattr("ccnet_cli.training.loop.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(loader, "collate", moved(3, loader.collate))
    monkeypatch.setattr(Objective, "forward", moved(1, Objective.forward))
    run = train(preset(data, "log.every=2", "eval.every=0"), run=tmp_path / "run")
    rows = [row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "loss" in row]
    assert [row["stall"] for row in rows] == [0.75] * 3 and [row["images_per_second"] for row in rows] == [1.0] * 3
    assert "1.0 images/s, 75% of it waiting for data" in capsys.readouterr().err
    table = (run / "metrics.csv").read_text().splitlines()
    assert table[1].split(",")[table[0].split(",").index("stall")] == "0.75"


def test_a_damaged_checkpoint_is_passed_over(data, tmp_path, capsys):
    run = train(preset(data), run=tmp_path / "run")
    newest = run / "checkpoints/step_00000006.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    train(preset(data), run=run, resume="auto")
    told = capsys.readouterr().err
    assert "warning: skipped" in told and "step_00000006.pt" in told
    assert load_model(run / "last.pt").step == 6


def test_nothing_to_do_past_the_end(data, tmp_path, capsys):
    run = train(preset(data), run=tmp_path / "run")
    before = weights(run)
    train(preset(data), run=run, resume="auto")
    assert "nothing to do" in capsys.readouterr().err
    assert_equal(before, weights(run))


def test_two_processes_see_the_batch_of_one(data, tmp_path, capfd, forked_workers):
    """Each process takes half of every global batch; both end with the same weights, and evaluation counts all once."""
    run = train(preset(data, "schedule.steps=3"), run=tmp_path / "run", processes=2)
    assert "2 processes x 2 images x 1 accumulated" in capfd.readouterr().err
    restored = load_model(run / "last.pt")
    assert restored.step == 3
    alone = evaluate(run / "last.pt")
    assert alone.miou == pytest.approx(restored.metrics["miou"], abs=1e-12)
    assert alone.images == 4


def test_an_error_in_a_worker_process_is_told_in_its_own_words(data, tmp_path, forked_workers):
    label = data / "labels/train/0.png"
    images.write_label(label, np.full((40, 56), 77, np.uint8))
    with pytest.raises(InputError, match=r"0\.png"):
        train(preset(data), run=tmp_path / "run", processes=2)


def assert_stops(run, number, is_alive, send, finish):
    """Send a signal once a run has begun; its last line names the step of the checkpoint that it leaves."""
    log = run / "log.jsonl"
    deadline = time.monotonic() + 90
    while not (log.is_file() and log.stat().st_size) and is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    send(number)
    code, told = finish()
    assert code == 128 + number, told
    assert "Traceback" not in told and "death signal" not in told and "Warning" not in told
    step = int(re.search(r"at step (\d+)", told.strip().splitlines()[-1]).group(1))
    assert load_model(run / "last.pt").step == step


ENDLESS = ("schedule.steps=100000", "eval.every=0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(data, tmp_path, number):
    def command():
        sys.stderr = (tmp_path / "stderr").open("w", buffering=1)
        try:
            cli.main(arguments(data, tmp_path / "run", *ENDLESS))
        except SystemExit as stop:
            os._exit(stop.code)

    process = forked(command)
    assert_stops(
        tmp_path / "run",
        number,
        is_alive=lambda: True,
        send=lambda number: os.kill(process, number),
        finish=lambda: (ended(process), (tmp_path / "stderr").read_text()),
    )


def test_a_signal_ends_the_processes_of_a_run_with_a_checkpoint(data, tmp_path):
    process = start(arguments(data, tmp_path / "run", *ENDLESS, "--processes", "2"))

    def finish():
        told = process.communicate(timeout=60)[1]
        return process.returncode, told

    assert_stops(tmp_path / "run", signal.SIGTERM, lambda: process.poll() is None, process.send_signal, finish)


@pytest.mark.parametrize(("row", "step"), [(3, 4), (10, 6)])
def test_a_loss_that_is_not_finite_stops_before_the_step(data, tmp_path, row, step):
    """The first step ruins the weights, the others are skipped: three at most, or to the end of the run."""
    options = ("train.optimizer=sgd", "schedule.lr=1e30", "train.clip_norm=null", "eval.every=0")
    with pytest.raises(NonFiniteError, match=f"step {step}: loss"):
        train(preset(data, *options, f"train.max_nonfinite={row}"), run=tmp_path / "run")
    told = json.loads((tmp_path / f"run/nonfinite_step_{step}.json").read_text())
    assert told["step"] == step and told["in_a_row"] == step - 1 and len(told["ranks"][0]["samples"]) == 4
    for path in checkpoint.list_checkpoints(tmp_path / "run/checkpoints"):
        assert all(torch.isfinite(tensor).all() for tensor in checkpoint.read(path)["model"].values())


def test_pixels_without_a_class_train_without_harm(data, tmp_path):
    for path in (data / "labels/train").iterdir():
        images.write_label(path, np.full((40, 56), 255, np.uint8))
    run = train(preset(data, "loss.ohem.enabled=true", "eval.every=0"), run=tmp_path / "run")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {row["loss"] for row in rows if "loss" in row} == {0.0}


def test_the_loss_is_the_preset_s(data, tmp_path, monkeypatch):
    """Its terms are built as it says, and logged by name: the total is their weighted sum."""
    made = []
    build = objectives.build
    monkeypatch.setattr(objectives, "build", lambda *given: made.append(given) or build(*given))
    mining = ("enabled=true", "threshold=0.6", "min_kept=77", "rule=mmseg")
    chosen = ("model.auxiliary=true", "loss.auxiliary=0.3", "loss.average=all", *(f"loss.ohem.{key}" for key in mining))
    run = train(preset(data, "log.every=2", "train.micro_batch=2", *chosen), run=tmp_path / "run")
    ohem = Ohem(threshold=0.6, min_kept=77, rule="mmseg", average="all")
    auxiliary = CrossEntropy(output="auxiliary", weight=0.3, average="all")
    assert made == [({"ohem": ohem, "auxiliary": auxiliary}, 255, True)]
    rows = [row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert list(row)[2:5] == ["loss", "loss/ohem", "loss/auxiliary"] and row["loss/ohem"] != row["loss/auxiliary"]
        assert row["loss"] == pytest.approx(row["loss/ohem"] + 0.3 * row["loss/auxiliary"], rel=1e-6)
    assert (run / "metrics.csv").read_text().splitlines()[0].endswith("mean_accuracy,loss/ohem,loss/auxiliary")


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_precision_auto_takes_what_the_device_has(data, tmp_path, monkeypatch, native, precision):
    monkeypatch.setattr(plan, "computes_bf16", lambda device: native)
    run = train(preset(data, "train.precision=auto", "schedule.steps=1"), run=tmp_path / "run")
    assert config.load(str(run / "preset.yaml")).train.precision == precision
    assert load_model(run / "last.pt").preset.train.precision == precision


def test_a_checkpoint_finds_its_data_from_another_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(preset(Path("data"), "schedule.steps=1"), run=tmp_path / "run")
    monkeypatch.chdir("/")
    assert evaluate(run / "last.pt").images == 4


def test_weights_start_a_run(data, tmp_path):
    first = train(preset(data), run=tmp_path / "first")
    second = train(
        preset(data, "schedule.lr=1e-12", "schedule.steps=1"), run=tmp_path / "second", weights=first / "last.pt"
    )
    for key, tensor in weights(second).items():
        if "running" not in key and "tracked" not in key:
            assert torch.allclose(tensor, weights(first)[key], atol=1e-6), key


@pytest.mark.parametrize("setting", ["train.precision=bf16", "train.checkpoint_activations=true", "model.recurrence=0"])
def test_variants_train(data, tmp_path, setting):
    run = train(preset(data, setting, "schedule.steps=2"), run=tmp_path / "run")
    assert load_model(run / "last.pt").step == 2


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        (["train.batch=5"], {"processes": 2}, "does not divide among 2 processes"),
        (["train.micro_batch=3"], {}, "does not divide the 4 images"),
        (["train.precision=fp16"], {}, "needs a GPU"),
        ([], {"gpus": 9}, "this machine has"),
        ([], {"device": "tpu"}, "unknown"),
        ([], {"gpus": 1, "processes": 2}, "--gpus is given too"),
        ([], {"resume": "missing.pt"}, "does not exist"),
        ([], {"weights": Path("missing.pt")}, "does not exist"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(data, tmp_path, settings, arguments, words):
    with pytest.raises(InputError, match=words):
        train(preset(data, *settings), run=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_written_where_it_is_installed(data, tmp_path):
    if find_spec("tensorboard") is None:
        with pytest.raises(InputError, match="pip install"):
            train(preset(data, "log.tensorboard=true"), run=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    else:
        run = train(preset(data, "log.tensorboard=true", "schedule.steps=1"), run=tmp_path / "run")
        assert list((run / "tensorboard").glob("events*"))


def test_a_folder_in_use_is_not_overwritten(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not an empty folder"):
        train(preset(data), run=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_auto_resume_without_a_run_starts_one(data, tmp_path, capsys):
    run = train(preset(data, "schedule.steps=1"), run=tmp_path / "run", resume="auto")
    assert "nothing to resume" in capsys.readouterr().err
    assert load_model(run / "last.pt").step == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "auto", "fp16"])
def test_a_gpu_trains(data, tmp_path, precision):
    run = train(preset(data, f"train.precision={precision}", "data.workers=1"), run=tmp_path / "run", device="cuda")
    assert load_model(run / "last.pt").step == 6


def test_a_finished_run_has_a_report_and_remembers_each_class(data, tmp_path):
    run = train(preset(data), run=tmp_path / "run", charts=True)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count("<figure>") == 4 and "data.classes" not in text and "classes: [sky, road]" in text
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scored = [row for row in rows if "miou" in row]
    assert [row["step"] for row in scored] == [3, 6]
    for row in scored:
        ious = [value for value in row["classes"].values() if value is not None]
        assert list(row["classes"]) == ["sky", "road"] and sum(ious) / len(ious) == pytest.approx(row["miou"])
    assert "classes" not in (run / "metrics.csv").read_text()
