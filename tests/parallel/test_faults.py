"""Training runs of several processes that meet with a fault: what is lost, what is reported, and how long it takes."""

import json
import os
import re
import signal
import socket
import sys
import time

import failpoints
import pytest
from launched import Train, assert_equal, logged, one_error, saved, weights
from runs import free_port, make_horizons

from ccnet_cli.runs import checkpoint

pytestmark = pytest.mark.usefixtures("forked_workers")

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("data"))


def interrupted(data, folder, phase, target, launcher, number=signal.SIGTERM, processes=2, **variables):
    """Signal a run in one of its phases; its exit code, stderr, seconds to the end, and folder."""
    settings = ["schedule.steps=1000", "eval.every=3", "data.workers=2"]
    options = [] if launcher == "torchrun" else ["--processes", processes]
    before = {"fork": [], "spawn": [sys.executable], "torchrun": [*TORCHRUN, free_port()]}[launcher]
    train = Train(data, folder, *options, settings=settings, fault=phase, launcher=before, **variables)
    train.wait_for_mark()
    if target == "group":
        os.killpg(train.pid, number)
    else:
        os.kill(train.pids()[1] if target == "rank" else train.pid, number)
    code, output, seconds = train.end(40)
    return code, output, seconds, train.run


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["spawn", "torchrun"])
@pytest.mark.parametrize("phase", ["train", "eval", "save", "first batch", "loader"])
@pytest.mark.parametrize("target", ["parent", "rank", "group"])
def test_a_signal_at_any_moment_leaves_a_checkpoint(data, tmp_path, phase, target, launcher):
    code, output, seconds, run = interrupted(data, tmp_path, phase, target, launcher)
    # torchrun answers 1 whatever its processes do
    assert code == (143 if launcher == "spawn" else 1), output
    (step,) = map(int, re.findall(r"stopped by SIGTERM at step (\d+), checkpoint written", output))
    assert saved(run) == step >= max(logged(run), default=0), output
    assert seconds < 10, output
    if launcher == "spawn":
        one_error(output)


@pytest.mark.parametrize(
    ("phase", "target", "number"),
    [("eval", "rank", signal.SIGTERM), pytest.param("save", "group", signal.SIGUSR1, marks=pytest.mark.slow)],
)
def test_a_resumed_run_makes_up_for_the_scores_that_a_signal_prevented(data, tmp_path, phase, target, number):
    code, output, seconds, run = interrupted(data, tmp_path, phase, target, "fork", number)
    assert code == 128 + number and f"stopped by {signal.Signals(number).name}" in one_error(output)
    step = saved(run)
    assert step >= max(logged(run)) and seconds < 10
    settings = [f"schedule.steps={step + 1}", "eval.every=3"]
    train = Train(data, tmp_path, "--resume", "--processes", 2, settings=settings)
    assert train.end()[0] == 0
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "miou" in row] == [*range(3, step + 1, 3), step + 1]
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, step + 2)]


def test_a_run_that_ignores_signals_loses_its_work(data, tmp_path):
    """Proves the tests above: without the guard they would fail."""
    train = Train(data, tmp_path, settings=["checkpoint.every=100"], fault="train", CCNET_WITHOUT="signals")
    train.wait_for_mark()
    os.kill(train.pid, signal.SIGTERM)
    train.end()
    assert logged(train.run) and not checkpoint.list_checkpoints(train.run / "checkpoints")


def test_loader_workers_that_die_of_a_signal_to_the_group_end_the_run(data, tmp_path):
    """Proves the tests above: without the guard they would fail."""
    guard = {"CCNET_WITHOUT": "worker signals"}
    code, output, *_ = interrupted(data, tmp_path, "train", "group", "fork", processes=1, **guard)
    assert code != 143 and "worker" in one_error(output), output


def test_a_second_signal_ends_a_run_at_once(data, tmp_path):
    train = Train(data, tmp_path, "--processes", 2, settings=["schedule.steps=1000"], fault="save")
    train.wait_for_mark()
    os.kill(train.pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(train.pid, signal.SIGINT)
    code, output, seconds = train.end()
    assert code == 130 and "Traceback" not in output and seconds < 5


def faulty_worker(data, folder, kind, workers, **variables):
    settings = [f"data.workers={workers}", "data.timeout=2", "schedule.steps=50"]
    train = Train(data, folder, settings=settings, fault=f"worker {kind}", **variables)
    train.wait_for_mark()
    return train


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("SIGKILL", 1),
        ("raise", 2),
        ("hang", 2),
        *(
            pytest.param(kind, workers, marks=pytest.mark.slow)
            for kind, workers in [("SIGKILL", 2), ("SIGSEGV", 1), ("SIGSEGV", 2), ("raise", 1), ("hang", 1)]
        ),
    ],
)
def test_a_loader_worker_that_fails_ends_the_run_with_one_line(data, tmp_path, kind, workers):
    code, output, seconds = faulty_worker(data, tmp_path, kind, workers).end()
    assert code == 3 and seconds < 10, output
    line = one_error(output)
    if kind == "raise":
        assert "images/train/3.png" in line and "ZeroDivisionError" in line
    else:
        assert "a loader's worker" in line


@pytest.mark.slow
def test_without_a_timeout_a_loader_worker_that_hangs_stops_the_run_for_ever(data, tmp_path):
    """Proves the test above."""
    train = faulty_worker(data, tmp_path, "hang", 1, CCNET_WITHOUT="loader timeout")
    with pytest.raises(TimeoutError):
        train.end(10)


def stopped(data, folder, timeout):
    options = ["--processes", 2, "--timeout", timeout, "--shutdown-timeout", 12]
    train = Train(data, folder, *options, settings=["schedule.steps=1000"], fault="stop")
    train.wait_for_mark()
    return train


def test_a_process_that_hangs_ends_the_run(data, tmp_path):
    train = stopped(data, tmp_path, 3)
    code, output, seconds = train.end()
    # less than --shutdown-timeout
    assert code == 3 and seconds < 12, output
    assert "process 1 of this run: does not answer" in one_error(output)
    assert saved(train.run) == 2


@pytest.mark.slow
def test_without_a_timeout_a_process_that_hangs_stops_the_run_for_ever(data, tmp_path):
    """Proves the test above."""
    with pytest.raises(TimeoutError):
        stopped(data, tmp_path, 600).end(12)


PLACES = [(place, rank) for place in failpoints.PLACES for rank in (0, 1)]
QUICK = [("backward", 0), ("before forward", 1)]


@pytest.mark.parametrize(
    ("place", "rank"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in PLACES if case not in QUICK)]
)
def test_a_process_that_is_stopped_anywhere_is_named(data, tmp_path, place, rank):
    options = ["--processes", 2, "--timeout", 2, "--shutdown-timeout", 12]
    settings = ["schedule.steps=1000", "eval.every=4"]
    train = Train(data, tmp_path, *options, settings=settings, fault=f"stop at {place} {rank}")
    train.wait_for_mark()
    code, output, seconds = train.end()
    assert code == 3 and f"process {rank} of this run: does not answer" in one_error(output), output
    assert seconds < 12


@pytest.fixture(scope="module")
def expected_weights(data, tmp_path_factory):
    train = Train(data, tmp_path_factory.mktemp("expected_weights"), "--processes", 2)
    assert train.end()[0] == 0
    return weights(train.run)


KILLS = ["3,5,6", "1,4,8", "2,3,7", "1,2,3", "6,7,8", "4,5,6", "2,5,8", "1,5,7", "3,4,8", "2,6,7"]


@pytest.mark.parametrize("steps", ["5", *(pytest.param(steps, marks=pytest.mark.slow) for steps in KILLS)])
def test_a_run_restarts_when_processes_are_killed(data, tmp_path, expected_weights, steps):
    train = Train(data, tmp_path, "--processes", 2, "--max-restarts", 3, fault="kill", CCNET_STEPS=steps)
    code, output, _ = train.end(180)
    assert code == 0, output
    assert output.count("killed by SIGKILL; starting anew") == len(steps.split(","))
    assert_equal(weights(train.run), expected_weights)


def test_without_restarts_a_killed_process_ends_the_run(data, tmp_path):
    train = Train(data, tmp_path, "--processes", 2, fault="kill", CCNET_STEPS="5")
    code, output, _ = train.end()
    assert code == 3 and "process 1 of this run: killed by SIGKILL" in one_error(output)
    assert saved(train.run) == 4


def test_all_ranks_resume_from_rank_0_s_checkpoint_or_none_does(data, tmp_path):
    assert Train(data, tmp_path, "--processes", 2, settings=["schedule.steps=2"]).end()[0] == 0
    train = Train(data, tmp_path, "--processes", 2, "--resume", fault="elsewhere")
    code, output, _ = train.end(60)
    assert code == 2 and "elsewhere.pt" in one_error(output)


FAILED_LAUNCHES = [
    ({"RANK": "0"}, 2, "WORLD_SIZE: missing"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "TAKEN"}, 3, "Address already in use"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "FREE"}, 3, "no process 1 came"),
    ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "FREE"}, 3, "nobody answers"),
    ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}, 2, "SLURM_NODELIST: missing"),
]


@pytest.mark.parametrize(("variables", "code", "words"), FAILED_LAUNCHES)
def test_a_launch_that_fails_is_reported_in_one_line(data, tmp_path, variables, code, words):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ports = {"TAKEN": str(taken.getsockname()[1]), "FREE": str(free_port())}
        variables = {name: ports.get(value, value) for name, value in variables.items()}
        train = Train(data, tmp_path, "--join-timeout", 1, **variables)
        started = time.monotonic()
        found, output, _ = train.end()
    assert found == code and words in one_error(output), output
    assert not train.run.exists() and time.monotonic() - started < 30
