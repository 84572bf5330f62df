"""Runs of several processes that meet with an accident: what is lost, what is told, and how long it takes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ccnet_cli.media import images
from ccnet_cli.runs import checkpoint

ROOT = Path(__file__).parents[2]
MISHAP = ROOT / "tests" / "mishap.py"
SETTINGS = (
    *("model.width=8", "model.channels=16", "model.auxiliary_channels=8", "model.dropout=0.3"),
    *("data.dataset=folder", "data.classes=[sky, road]", "data.crop=32,48", "data.workers=0"),
    *("train.batch=4", "train.precision=fp32", "schedule.steps=8", "schedule.warmup=0"),
    *("checkpoint.every=2", "eval.every=0", "log.every=1"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures of a horizon, sky above road."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for index in range(count):
            label = np.zeros((40, 56), np.uint8)
            label[random.integers(10, 30) :] = 1
            picture = np.where(label[..., None] == 1, 60, 200) + random.integers(-30, 30, (40, 56, 3))
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
            images.write_image(folder / f"images/{split}/{index}.png", picture.astype(np.uint8))
            images.write_label(folder / f"labels/{split}/{index}.png", label)
    return folder


class Train:
    """`ccnet train` on its way in a process group of its own, with a mishap or none."""

    def __init__(self, data, folder, *options, settings=(), mishap="", before=(sys.executable,), **variables):
        self.run = folder / "run"
        self.mark = folder / "mark"
        words = [item for setting in (*SETTINGS, *settings) for item in ("-s", setting)]
        program = [MISHAP] if mishap else ["-m", "ccnet_cli.cli"]
        command = [*before, *program, "train", "--preset", "quickstart", "--data", data, "-o", self.run]
        environment = {name: value for name, value in os.environ.items() if name != "CCNET_CHECKPOINT"} | {
            "PYTHONPATH": str(ROOT),
            "CCNET_MISHAP": mishap,
            "CCNET_MARK": str(self.mark),
            # the command sets it before it imports torch, which a mishap does first
            **({"TORCH_CPP_LOG_LEVEL": "ERROR"} if mishap else {}),
            **variables,
        }
        self.process = subprocess.Popen(
            [str(word) for word in (*command, *options, *words)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def until(self, ready, seconds=90):
        """Wait until ready() is true."""
        end = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.02)

    def ends(self, seconds=90):
        """Its exit code, what it said, and how long that took; whatever becomes of it, nothing stays behind."""
        started = time.monotonic()
        try:
            _, told = self.process.communicate(timeout=seconds)
        finally:
            # torchrun's processes are no part of its group
            for child in self.children():
                os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process.stderr.close()
        return self.process.returncode, told, time.monotonic() - started

    def children(self):
        """Ids of its processes, by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (folder / "environ").read_bytes().decode().split("\0")
            except (OSError, ValueError):
                continue
            if parent == self.process.pid and (ranks := [v[5:] for v in variables if v.startswith("RANK=")]):
                found[int(ranks[0])] = int(folder.name)
        return [found[rank] for rank in sorted(found)]


def logged(run):
    """Steps that the log says were done."""
    path = run / "log.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.is_file() else []


def saved(run):
    """The step of the newest checkpoint, read back whole."""
    (path, *_) = checkpoint.list_checkpoints(run / "checkpoints")
    return checkpoint.read(path)["step"]


def weights(run):
    return checkpoint.read(checkpoint.list_checkpoints(run / "checkpoints")[0])["model"]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def one_error(told):
    """The one line of the error; nothing else looks like one."""
    assert "Traceback" not in told and "[W" not in told and "[E" not in told, told
    (line,) = [line for line in told.splitlines() if line.startswith("ccnet: error: ")]
    return line


PHASES = ("train", "eval", "save", "first batch", "loader")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def interrupted(data, folder, phase, target, launcher, number=signal.SIGTERM, processes=2, **variables):
    """Signal a run in one of its phases; (exit code, what it told, seconds to the end, run folder)."""
    settings = ["schedule.steps=1000", "eval.every=3", "data.workers=2"]
    options = ["--processes", processes] if launcher == "ccnet" else []
    before = [sys.executable] if launcher == "ccnet" else [*TORCHRUN, free_port()]
    train = Train(data, folder, *options, settings=settings, mishap=phase, before=before, **variables)
    train.until(train.mark.exists)
    if target == "group":
        os.killpg(train.process.pid, number)
    elif target == "rank":
        os.kill(ranks_of(train, launcher)[1], number)
    else:
        train.process.send_signal(number)
    code, told, seconds = train.ends(40)
    return code, told, seconds, train.run


def ranks_of(train, launcher):
    """Process ids in order of rank; torchrun's are told apart by their variables."""
    if launcher == "torchrun":
        return train.children()
    context = Path(f"/proc/{train.process.pid}/task/{train.process.pid}/children").read_text().split()
    # the first child is multiprocessing's resource tracker
    return [int(child) for child in context][1:]


TARGETS = ("parent", "rank", "group")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ccnet", "torchrun"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_signal_at_any_moment_leaves_a_checkpoint(data, tmp_path, phase, target, launcher):
    code, told, seconds, run = interrupted(data, tmp_path, phase, target, launcher)
    # torchrun answers 1 whatever its processes do
    assert code == (143 if launcher == "ccnet" else 1), told
    (step,) = map(int, re.findall(r"stopped by SIGTERM at step (\d+), checkpoint written", told))
    assert saved(run) == step >= max(logged(run), default=0), told
    assert seconds < 10, told
    if launcher == "ccnet":
        one_error(told)


@pytest.mark.parametrize(
    ("phase", "target", "number"),
    [("eval", "rank", signal.SIGTERM), pytest.param("save", "group", signal.SIGUSR1, marks=pytest.mark.slow)],
)
def test_a_signal_leaves_a_checkpoint_and_the_scores_that_it_cut_short_are_made_up_for(
    data, tmp_path, phase, target, number
):
    code, told, seconds, run = interrupted(data, tmp_path, phase, target, "ccnet", number)
    assert code == 128 + number and f"stopped by {signal.Signals(number).name}" in one_error(told)
    step = saved(run)
    assert step >= max(logged(run)) and seconds < 10
    settings = [f"schedule.steps={step + 1}", "eval.every=3"]
    train = Train(data, tmp_path, "--resume", "--processes", 2, settings=settings)
    assert train.ends()[0] == 0
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "miou" in row] == [*range(3, step + 1, 3), step + 1]
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, step + 2)]


def test_a_run_that_does_not_note_signals_loses_what_it_did(data, tmp_path):
    """The twin of the tests above."""
    train = Train(data, tmp_path, settings=["checkpoint.every=100"], mishap="train", CCNET_WITHOUT="signals")
    train.until(train.mark.exists)
    train.process.terminate()
    train.ends()
    assert logged(train.run) and not checkpoint.list_checkpoints(train.run / "checkpoints")


def test_workers_that_hear_a_signal_to_the_group_take_the_run_with_them(data, tmp_path):
    """The twin of the tests above, with workers that a signal ends as it would any process."""
    code, told, *_ = interrupted(data, tmp_path, "train", "group", "ccnet", CCNET_WITHOUT="deaf workers", processes=1)
    assert code != 143 and "worker" in one_error(told), told


def test_a_second_signal_ends_a_run_at_once(data, tmp_path):
    train = Train(data, tmp_path, "--processes", 2, settings=["schedule.steps=1000"], mishap="save")
    train.until(train.mark.exists)
    train.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    train.process.send_signal(signal.SIGINT)
    code, told, seconds = train.ends()
    assert code == 130 and "Traceback" not in told and seconds < 5


def faulty_worker(data, folder, kind, workers, **variables):
    settings = [f"data.workers={workers}", "data.timeout=5", "schedule.steps=50"]
    train = Train(data, folder, settings=settings, mishap=f"worker {kind}", **variables)
    train.until(train.mark.exists)
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
def test_a_worker_that_fails_ends_the_run_in_one_line(data, tmp_path, kind, workers):
    code, told, seconds = faulty_worker(data, tmp_path, kind, workers).ends()
    assert code == 3 and seconds < 10, told
    line = one_error(told)
    if kind == "raise":
        assert "images/train/3.png" in line and "ZeroDivisionError" in line
    else:
        assert "a loader's worker" in line


@pytest.mark.slow
def test_a_worker_that_hangs_would_hold_the_run_for_ever(data, tmp_path):
    """The twin of the test above: without the timeout nothing ends it."""
    train = faulty_worker(data, tmp_path, "hang", 1, CCNET_WITHOUT="loader timeout")
    with pytest.raises(subprocess.TimeoutExpired):
        train.ends(10)


def stopped(data, folder, timeout):
    options = ["--processes", 2, "--timeout", timeout, "--shutdown-timeout", 5]
    train = Train(data, folder, *options, settings=["schedule.steps=1000"], mishap="stop")
    train.until(train.mark.exists)
    return train


@pytest.mark.parametrize("attempt", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2))])
def test_a_process_that_stands_still_ends_the_run(data, tmp_path, attempt):
    train = stopped(data, tmp_path, 5)
    code, told, seconds = train.ends()
    assert code == 3 and seconds < 20, told
    assert "process 1 of this run: does not answer" in one_error(told)
    assert saved(train.run) == 2


@pytest.mark.slow
def test_without_a_timeout_a_process_that_stands_still_would_hold_the_run(data, tmp_path):
    """The twin of the test above."""
    with pytest.raises(subprocess.TimeoutExpired):
        stopped(data, tmp_path, 600).ends(12)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    train = Train(data, tmp_path_factory.mktemp("undisturbed"), "--processes", 2)
    assert train.ends()[0] == 0
    return weights(train.run)


KILLS = ["3,5,6", "1,4,8", "2,3,7", "1,2,3", "6,7,8", "4,5,6", "2,5,8", "1,5,7", "3,4,8", "2,6,7"]


@pytest.mark.parametrize("steps", ["5", *(pytest.param(steps, marks=pytest.mark.slow) for steps in KILLS)])
def test_a_run_goes_on_by_itself_when_processes_are_killed(data, tmp_path, undisturbed, steps):
    train = Train(data, tmp_path, "--processes", 2, "--max-restarts", 3, mishap="kill", CCNET_STEPS=steps)
    code, told, _ = train.ends(180)
    assert code == 0, told
    assert told.count("killed by SIGKILL; starting anew") == len(steps.split(","))
    assert_equal(weights(train.run), undisturbed)


def test_without_restarts_a_killed_process_ends_the_run(data, tmp_path):
    train = Train(data, tmp_path, "--processes", 2, mishap="kill", CCNET_STEPS="5")
    code, told, _ = train.ends()
    assert code == 3 and "process 1 of this run: killed by SIGKILL" in one_error(told)
    assert saved(train.run) == 4


def test_all_continue_from_rank_0_s_checkpoint_or_none_does(data, tmp_path):
    assert Train(data, tmp_path, "--processes", 2, settings=["schedule.steps=2"]).ends()[0] == 0
    train = Train(data, tmp_path, "--processes", 2, "--resume", mishap="elsewhere")
    code, told, _ = train.ends(60)
    assert code == 2 and "elsewhere.pt" in one_error(told)


FALSE_STARTS = [
    ({"RANK": "0"}, 2, "WORLD_SIZE: missing"),
    ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29571"}, 2, "process 2: there are 2"),
    ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29571"}, 2, "RANK: missing"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "TAKEN"}, 3, "Address already in use"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "FREE"}, 3, "not all came within 2 s"),
    ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "FREE"}, 3, "nobody answers"),
    ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}, 2, "SLURM_NODELIST: missing"),
]


@pytest.mark.parametrize(("variables", "code", "words"), FALSE_STARTS)
def test_a_false_start_is_told_in_one_line(data, tmp_path, variables, code, words):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ports = {"TAKEN": str(taken.getsockname()[1]), "FREE": str(free_port())}
        variables = {name: ports.get(value, value) for name, value in variables.items()}
        train = Train(data, tmp_path, "--join-timeout", 2, **variables)
        started = time.monotonic()
        found, told, _ = train.ends()
    assert found == code and words in one_error(told), told
    assert not train.run.exists() and time.monotonic() - started < 30


@pytest.fixture
def namespaces():
    """Two machines: network namespaces that see each other alone, 10.97.0.1 and 10.97.0.2."""
    names = [f"ccnet-{os.getpid()}-{number}" for number in range(2)]

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)

    try:
        made = ip("netns", "add", names[0])
    except FileNotFoundError:
        pytest.skip("no ip command here")
    if made.returncode:
        pytest.skip(f"ip netns is not permitted here: {made.stderr.strip()}")
    try:
        ends = [f"ccn{os.getpid()}x{number}" for number in range(2)]
        steps = [
            ("netns", "add", names[1]),
            ("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1]),
        ]
        for number, (name, end) in enumerate(zip(names, ends, strict=True)):
            steps += [
                ("-n", name, "addr", "add", f"10.97.0.{number + 1}/24", "dev", end),
                ("-n", name, "link", "set", end, "up"),
                ("-n", name, "link", "set", "lo", "up"),
            ]
        for step in steps:
            done = ip(*step)
            assert done.returncode == 0, done.stderr
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def on_two_machines(data, folder, namespaces, *options, **variables):
    runs = []
    for number, name in enumerate(namespaces):
        where = ("--nodes", 2, "--node-rank", number, "--rendezvous", "10.97.0.1:29400", "--join-timeout", 60)
        before = ("ip", "netns", "exec", name, sys.executable)
        runs.append(Train(data, folder, *where, *options, before=before, **variables))
    return runs


def test_two_machines_lose_one_and_end_where_one_would(data, tmp_path, undisturbed, namespaces):
    both = on_two_machines(data, tmp_path, namespaces, mishap="kill", CCNET_STEPS="5")
    for train in both:
        code, told, _ = train.ends()
        assert code == 3 and "process 1 of this run: killed by SIGKILL" in one_error(told)
    assert saved(both[0].run) == 4
    both = on_two_machines(data, tmp_path, namespaces, "--resume")
    assert [train.ends()[0] for train in both] == [0, 0]
    assert_equal(weights(both[0].run), undisturbed)


@pytest.mark.slow
def test_two_machines_go_on_by_themselves(data, tmp_path, undisturbed, namespaces):
    both = on_two_machines(data, tmp_path, namespaces, "--max-restarts", 2, mishap="kill", CCNET_STEPS="3,6")
    ended = [train.ends(180) for train in both]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert_equal(weights(both[0].run), undisturbed)


@pytest.mark.slow
def test_a_signal_to_one_machine_stops_both(data, tmp_path, namespaces):
    both = on_two_machines(data, tmp_path, namespaces, settings=["schedule.steps=1000"], mishap="train")
    both[0].until(both[0].mark.exists)
    both[1].process.terminate()
    ended = [train.ends() for train in both]
    assert [code for code, _, _ in ended] == [143, 143], ended
    assert saved(both[0].run) == max(logged(both[0].run))
