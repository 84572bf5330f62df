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

from ccnet_cli import checkpoint, images

ROOT = Path(__file__).parent.parent
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
        command = [*before, MISHAP, "train", "--preset", "quickstart", "--data", data, "-o", self.run]
        environment = {name: value for name, value in os.environ.items() if name != "CCNET_CHECKPOINT"} | {
            "PYTHONPATH": str(ROOT),
            "CCNET_MISHAP": mishap,
            "CCNET_MARK": str(self.mark),
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
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
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
    (path, *_) = checkpoint.committed(run / "checkpoints")
    return checkpoint.read(path)["step"]


def weights(run):
    return checkpoint.read(checkpoint.committed(run / "checkpoints")[0])["model"]


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


SIGNALS = [
    (phase, target, launcher)
    for launcher in ("ccnet", "torchrun")
    for phase in PHASES
    for target in ("parent", "rank", "group")
]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "target", "launcher"), SIGNALS)
def test_a_signal_at_any_moment_leaves_a_checkpoint(data, tmp_path, phase, target, launcher):
    code, told, seconds, run = interrupted(data, tmp_path, phase, target, launcher)
    # torchrun answers 1 whatever its processes do
    assert code == (143 if launcher == "ccnet" else 1), told
    (step,) = map(int, re.findall(r"stopped by SIGTERM at step (\d+), checkpoint written", told))
    assert saved(run) == step >= max(logged(run), default=0), told
    assert seconds < 10, told
    if launcher == "ccnet":
        one_error(told)
