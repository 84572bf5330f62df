"""What a run needs before it begins: room for its workers' batches, and the run that --resume means."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from runs import make_horizons, plan_of, preset, train

from ccnet_cli.errors import EnvironmentFailure
from ccnet_cli.training import loop, plan


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("horizons") / "data")


def test_workers_need_room_for_the_batches_that_wait(data, tmp_path, monkeypatch):
    """By hand: 2 workers with 2 batches each and 2 in use, of 4 images of 32 x 48 pixels of 20 bytes, twice."""
    needed = 2 * (2 * 2 + 2) * 4 * 32 * 48 * 20
    free = [needed]
    monkeypatch.setattr(plan, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free[0], f_frsize=1))
    made = preset(data, "data.workers=2", "train.batch=8")
    plan_of(made, tmp_path / "run", processes=2)
    free[0] -= 1
    with pytest.raises(EnvironmentFailure, match=r"MiB free, the data workers need 2; make it larger"):
        plan_of(made, tmp_path / "run", processes=2)
    plan_of(preset(data, "data.workers=0", "train.batch=8"), tmp_path / "run", processes=2)


def test_resume_alone_continues_the_run_that_was_saved_last(data, tmp_path, monkeypatch):
    """Whatever the names of the folders; runs of other presets are not looked at."""
    monkeypatch.chdir(tmp_path)
    made = preset(data, "schedule.steps=1", "eval.every=0")
    folders = [f"quickstart-{name}" for name in ("2", "3", "1")]
    for seconds, name in enumerate([*folders, "other-4"]):
        run = train(made, run=tmp_path / "runs" / name)
        for path in (run / "checkpoints").glob("step_*.pt"):
            os.utime(path, (1000 + seconds, 1000 + seconds))
    more = preset(data, "schedule.steps=2", "eval.every=0")
    assert plan_of(more, None, resume="auto").run.name == "quickstart-1"


@pytest.mark.parametrize(("every", "due"), [(3, [3, 6, 7]), (0, [7]), (7, [7]), (1, [1, 2, 3, 4, 5, 6, 7])])
def test_scores_are_due_every_so_often_and_at_the_end(data, tmp_path, every, due):
    made = plan_of(preset(data, f"eval.every={every}", "schedule.steps=7"), tmp_path / "run")
    assert [step for step in range(8) if loop.score_due(made, step)] == due


@pytest.mark.parametrize(
    ("processes", "earlier", "micro", "accumulation"),
    [(1, None, 8, 1), (1, 2, 2, 4), (1, 3, 2, 4), (1, 8, 8, 1), (2, 8, 4, 1), (2, 1, 1, 4), (4, None, 2, 1)],
)
def test_a_resumed_run_computes_no_more_at_once_than_before(data, tmp_path, processes, earlier, micro, accumulation):
    """The largest part of a process's images, of a batch of 8, that is no larger; memory sufficed for that many."""
    made = plan_of(preset(data, "train.batch=8"), tmp_path / "run", processes=processes)
    made = replace(made, earlier_micro=earlier)
    assert (made.micro_batch, made.accumulation) == (micro, accumulation)


@pytest.mark.parametrize(
    ("circumstances", "earlier"),
    [
        ({"global_batch": 8, "world_size": 2, "accumulation": 2}, 2),
        ({"global_batch": 8, "world_size": 1, "accumulation": 1}, 8),
        ({"global_batch": 4, "world_size": 1, "accumulation": 1}, None),
        ({"global_batch": 8, "world_size": 2}, None),
        ({}, None),
    ],
)
def test_what_was_computed_at_once_before_is_in_the_checkpoint(circumstances, earlier):
    """The batch among the processes and their accumulated steps, if it is the same batch."""
    assert plan._earlier_micro_batch({"training": {"circumstances": circumstances}}, 8) == earlier
