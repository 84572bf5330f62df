"""The batch of a run at every number of processes: what each computes at once, accumulates, and what is refused."""

import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import arguments, ended, forked, make_horizons, plan_of, preset, train

from ccnet_cli import cli, files
from ccnet_cli.datasets.source import open_source
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.parallel.group import Group
from ccnet_cli.runs import checkpoint
from ccnet_cli.training.loader import make_loader

pytestmark = pytest.mark.usefixtures("forked_workers")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("batch", "processes", "earlier", "micro", "accumulation"),
    [
        # without a run before, all at once
        (12, 4, None, 3, 1),
        (12, 1, None, 12, 1),
        # fewer processes: as many at once as before, or the next number that divides
        (12, 2, 3, 3, 2),
        (12, 1, 3, 3, 4),
        (12, 3, 3, 2, 2),
        (14, 1, 3, 2, 7),
        # more processes
        (12, 12, 3, 1, 1),
        (12, 4, 6, 3, 1),
    ],
)
def test_a_process_computes_no_more_images_at_once_than_before(
    data, tmp_path, batch, processes, earlier, micro, accumulation
):
    made = preset(data, f"train.batch={batch}")
    plan = replace(plan_of(made, tmp_path / "run"), processes=processes, earlier_micro=earlier)
    assert (plan.micro_batch, plan.accumulation) == (micro, accumulation)
    assert plan.micro_batch * plan.accumulation * processes == batch


def test_the_samples_of_a_step_are_the_same_at_every_world_size(data, tmp_path):
    made = preset(data, "train.batch=6", "schedule.steps=5")
    source = open_source(made.data, "train")
    seen = set()
    for size in (1, 2, 3, 6):
        plan = replace(plan_of(made, tmp_path / "run"), processes=size, earlier_micro=2)
        loaders = [make_loader(plan, source, Group(rank=rank, world_size=size)) for rank in range(size)]
        names = [[name for batch in loader for name in batch.names] for loader in loaders]
        local = 6 // size
        seen.add(tuple(tuple(name for each in names for name in each[step * local :][:local]) for step in range(5)))
    assert len(seen) == 1


@pytest.mark.parametrize("processes", [3, 5, 24])
def test_a_world_size_that_does_not_divide_is_refused_with_those_that_do(data, tmp_path, processes):
    plan = replace(plan_of(preset(data, "train.batch=8"), tmp_path / "run"), processes=processes)
    words = rf"train.batch: 8: does not divide among {processes} processes; use 1, 2, 4, 8 processes"
    with pytest.raises(InputError, match=words):
        _ = plan.micro_batch


def test_a_run_that_shrinks_says_so_and_ends_as_one_that_was_planned_so(data, tmp_path, capfd):
    made = preset(data, "schedule.steps=4", "checkpoint.every=2", "eval.every=0")
    first = train(made, tmp_path / "first", processes=2)
    start = str(first / "checkpoints" / "step_00000002.pt")
    capfd.readouterr()
    shrunk = train(made, tmp_path / "shrunk", resume=start)
    output = capfd.readouterr().err
    assert "global batch 4 = 1 process x 2 images x 2 accumulated" in output
    assert "accumulation 2, was 1, world_size 1, was 2: sample-exact, not bit-exact" in output
    content = checkpoint.read(shrunk / "last.pt")
    # the learning rate is that of the step, whatever the world size
    rates = [
        checkpoint.read(run / "last.pt")["training"]["optimizer"]["param_groups"][0]["lr"] for run in (first, shrunk)
    ]
    assert rates[0] == rates[1]
    # a process that may be killed and resumed again goes on in the same way
    again = train(made, tmp_path / "again", resume=start)
    weights = checkpoint.read(again / "last.pt")["model"]
    assert all(torch.equal(weights[key], tensor) for key, tensor in content["model"].items())
    assert content["training"]["circumstances"]["accumulation"] == 2


def test_files_that_a_process_may_not_open_are_missed_before_it_starts():
    def work():
        soft = len([*Path("/dev/fd").iterdir()]) + 10
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft + 100))
        files.reserve_handles(50)
        # raised as far as needed
        assert soft < resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= soft + 100
        with pytest.raises(EnvironmentFailure, match=r"open files: \d+ allowed, \d+ needed; raise the limit"):
            files.reserve_handles(500)

    assert ended(forked(work)) == 0


@pytest.mark.parametrize("options", [["-s", "data.workers=2"], ["--processes", "2"]])
def test_few_file_handles_end_a_run_with_one_line(data, tmp_path, options):
    def work():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        cli.main(["-q", *arguments(data, tmp_path / "run", *options)])

    output = tmp_path / "output"
    assert _code(work, output) == 3
    (line,) = output.read_text().splitlines()
    assert line.startswith("ccnet: error: open files: 40 allowed")


def _code(work, output):
    """The exit code of work in a process of its own, whose stderr goes to a file."""

    def run():
        with output.open("w", buffering=1) as sys.stderr:
            try:
                work()
            except SystemExit as stop:
                sys.stderr.flush()
                os._exit(stop.code)

    return ended(forked(run))


@pytest.mark.parametrize("option", ["--timeout", "--join-timeout", "--shutdown-timeout"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "-inf", "0", "1e-300"])
def test_times_that_no_clock_counts_are_refused(option, value, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--preset", "quickstart", f"{option}={value}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith(f"ccnet: error: option {option}") and "from 1 to" in line


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["--nodes", "2", "--node-rank", "0", "--rendezvous", "a:1"],
            "option --node-rank: the machines number themselves",
        ),
        (["--nodes", "2", "--rendezvous", "127.0.0.1:1"], "option --run: missing"),
        (
            ["--nodes", "2:3", "--rendezvous", "127.0.0.1:1", "-o", "x", "-s", "train.batch=4"],
            "among 3 processes; use 1, 2, 4",
        ),
        (
            ["--nodes", "1:2", "--rendezvous", "a..b:1", "-o", "x", "-s", "train.batch=4"],
            "meeting point a..b:1: no such host",
        ),
    ],
)
def test_machines_that_cannot_train_learn_why(words, error, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--preset", "quickstart", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code in (2, 3) and error in line and line.startswith("ccnet: error: ")
