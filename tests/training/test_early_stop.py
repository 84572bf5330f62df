"""Early stopping: it counts evaluations, says why it ends, and a resume goes on counting."""

import json

import pytest
from runs import make_horizons, preset, train

from ccnet_cli import config
from ccnet_cli.config.schema import EarlyStop
from ccnet_cli.errors import InputError
from ccnet_cli.runs import checkpoint
from ccnet_cli.training.early_stop import Patience

# no evaluation after the first is so much better: the run ends with the third
STOP = ("schedule.steps=40", "eval.every=2", "train.early_stop={patience: 2, min_gain: 0.99}")


@pytest.fixture
def data(tmp_path):
    return make_horizons(tmp_path / "data")


def rows_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def without_checkpoint(run, step):
    """The run as a kill before this step's checkpoint leaves it."""
    for path in (run / "checkpoints").glob(f"step_{step:08d}.*"):
        path.unlink()
    for name in ("last.pt", "last.json", "best.pt", "best.json"):
        (run / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("figures", "patience", "min_gain", "end"),
    [
        ([0.1, 0.2, 0.3, 0.2, 0.3], 2, 0.0, 5),
        ([0.1, 0.2, 0.3, 0.2, 0.31], 2, 0.0, None),
        ([0.5, 0.5], 1, 0.0, 2),
        ([0.1, 0.14, 0.16, 0.2], 2, 0.05, None),
        ([0.1, 0.14, 0.15, 0.2], 2, 0.05, 3),
        ([0.0, 0.0, float("nan")], 2, 0.0, 3),
        ([float("nan"), float("nan"), float("nan"), 0.5], 4, 0.0, None),
        ([0.01, 0.2], 1, 0.5, 2),
    ],
)
def test_a_run_ends_after_evaluations_in_a_row_that_are_no_better(figures, patience, min_gain, end):
    counted = Patience(EarlyStop(patience=patience, min_gain=min_gain))
    ends = []
    for step, figure in enumerate(figures, start=1):
        could_end = counted.ends_next
        counted.add(step, {"miou": figure})
        counted.add(step, {"miou": figure})
        ends += [step] if counted.is_over else []
        assert could_end or not counted.is_over
    assert ends == ([] if end is None else [end])


def test_a_run_that_no_longer_gets_better_ends_and_says_so(data, tmp_path, capsys):
    run = train(preset(data, *STOP), run=tmp_path / "run", charts=True)
    rows = rows_of(run)
    scored = {row["step"]: row["miou"] for row in rows if "miou" in row}
    assert list(scored) == [2, 4, 6]
    assert rows[-1]["early_stop"] == {"best": scored[2], "best_step": 2, "waited": 2, "last_step": 6}
    line = f"step 6: stopped early: 2 evaluations without a better miou; the best, {scored[2]:.4f}, was at step 2"
    assert line in capsys.readouterr().err
    assert checkpoint.read(run / "last.pt")["step"] == 6
    assert (run / "report.html").is_file()
    before = (run / "log.jsonl").read_bytes()
    train(preset(data, *STOP), run=run, resume="auto")
    assert "has done 6 of 40 steps, stopped early: 2 evaluations" in capsys.readouterr().err
    assert (run / "log.jsonl").read_bytes() == before
    # with more patience it goes on, and remembers what it has seen
    train(preset(data, *STOP, "train.early_stop.patience=3"), run=run, resume="auto")
    assert checkpoint.read(run / "last.pt")["step"] == 8


def test_a_resumed_run_goes_on_counting(data, tmp_path):
    run = train(preset(data, *STOP), run=tmp_path / "run")
    rows = rows_of(run)
    without_checkpoint(run, 6)
    train(preset(data, *STOP), run=run, resume="auto")
    assert checkpoint.read(run / "last.pt")["step"] == 6
    kept = ("step", "loss", "miou", "early_stop")
    first, second = ([{key: row.get(key) for key in kept} for row in each] for each in (rows, rows_of(run)))
    assert first == second


def test_an_evaluation_whose_row_is_lost_counts_once(data, tmp_path):
    run = train(preset(data, *STOP), run=tmp_path / "run")
    without_checkpoint(run, 6)
    (run / "log.jsonl").unlink()
    train(preset(data, *STOP), run=run, resume="auto")
    assert checkpoint.read(run / "last.pt")["step"] == 6


def test_two_processes_end_together(data, tmp_path, forked_workers):
    run = train(preset(data, *STOP), run=tmp_path / "run", processes=2)
    assert checkpoint.read(run / "last.pt")["step"] == 6
    assert rows_of(run)[-1]["early_stop"]["best_step"] == 2


def test_early_stopping_needs_evaluations():
    with pytest.raises(InputError, match=r"early_stop needs eval\.every"):
        config.load("camvid", ["train.early_stop.patience=2"])
    made = config.load("camvid", ["train.early_stop.patience=2", "eval.every=100"])
    assert made.train.early_stop == EarlyStop(patience=2)


@pytest.mark.parametrize("group", ["train.early_stop", "data.augment"])
def test_a_group_that_a_preset_has_is_taken_away_by_null_and_comes_back(group, tmp_path):
    path = tmp_path / "without.yaml"
    without = config.load("finetune", [f"{group}=null"])
    assert config.value(without, group) is None
    path.write_text(config.dump(without))
    first = "patience=7" if group.endswith("stop") else "rotate=7.0"
    assert config.value(config.load(str(path), [f"{group}.{first}"]), group) is not None
