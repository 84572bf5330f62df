"""Training runs small enough to be repeated by the hundred, and how two of them are compared to the last bit."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from ccnet_cli import config, files
from ccnet_cli.commands import train as commands
from ccnet_cli.media import images
from ccnet_cli.runs import checkpoint
from ccnet_cli.training import record, validation
from ccnet_cli.training.plan import Plan, make_plan
from ccnet_cli.training.request import TrainRequest

SETTINGS = {
    "model.width=8",
    "model.channels=16",
    "model.auxiliary_channels=8",
    "data.dataset=folder",
    "data.classes=[sky, road]",
    "data.crop=32,48",
    "data.workers=0",
    "train.batch=4",
    "train.precision=fp32",
    "schedule.steps=6",
    "schedule.warmup=0",
    "checkpoint.every=2",
    "eval.every=3",
    "log.every=1",
}


def make_horizons(folder: Path) -> Path:
    """Ten pictures of a horizon, sky above road: six to train with, four to validate."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for index in range(count):
            label = np.zeros((40, 56), np.uint8)
            label[random.integers(10, 30) :] = 1
            picture = np.where(label[..., None] == 1, 60, 200) + random.integers(-30, 30, (40, 56, 3))
            images.write_image(folder / f"images/{split}/{index}.png", picture.astype(np.uint8))
            images.write_label(folder / f"labels/{split}/{index}.png", label)
    return folder


def preset(data: Path, *more: str) -> config.Preset:
    """The preset of a run on the horizons; more are overrides."""
    return config.load("quickstart", [f"data.root={data}", *sorted(SETTINGS), *more])


def train(made: config.Preset, run: Path, charts: bool = False, **options: Any) -> Path | None:
    """What the command does with a request of these options; charts, which take longer than a run, are blank."""
    blank = np.zeros((4, 4, 3), np.uint8)
    with ExitStack() as stack:
        for owner, name in () if charts else ((record, "training_curves"), (validation, "confusion_matrix")):
            stack.enter_context(mock.patch.object(owner, name, lambda *_: blank))
        return commands.train(TrainRequest(made, run, **options))


def plan_of(made: config.Preset, run: Path, **options: Any) -> Plan:
    """The plan of a run on the CPU."""
    return make_plan(TrainRequest(made, run, device="cpu", **options))[0]


def arguments(data: Path, run: Path, *more: str) -> list[str]:
    """The same run as a command line's arguments; more are overrides and, from the first with a - on, options."""
    at = next((index for index, word in enumerate(more) if word.startswith("-")), len(more))
    settings = [word for setting in (*sorted(SETTINGS), *more[:at]) for word in ("-s", setting)]
    return ["train", "--preset", "quickstart", "--data", str(data), "-o", str(run), *settings, *more[at:]]


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    """The command line, begun in a process group of its own; what it tells comes from its stderr."""
    return subprocess.Popen(
        [sys.executable, "-m", "ccnet_cli.cli", *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def forked(work: Callable[[], Any]) -> int:
    """Start work in a copy of this process, imports and all, and give its number; it ends with 0 or, on an error, 1."""
    with warnings.catch_warnings():
        # from Python 3.12 on: the threads that torch keeps are not copied, and none of them is needed
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def ended(process: int) -> int:
    """Wait for a forked process; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(true: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Look often until something is true; AssertionError, with what the process told, where it ended before."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def steps(run: Path) -> list[int]:
    """The steps of a run's committed checkpoints, newest first."""
    return [int(path.stem.removeprefix("step_")) for path in checkpoint.list_checkpoints(run / "checkpoints")]


def canonical(value: Any) -> str:
    """sha256 of nested containers, numbers and tensors: equal for equal bits, whatever the file they lay in."""
    digest = hashlib.sha256()
    _feed(value, digest)
    return digest.hexdigest()


def _feed(value: Any, digest: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _feed(value[key], digest)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for inner in value:
            _feed(inner, digest)
    else:
        digest.update(repr(value).encode())


def outcome(run: Path, after: int = 0) -> tuple[str, list[tuple[Any, ...]]]:
    """A run's last state, model to random numbers, as one hash, and its log's lines after a step, times left out."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = ("step", "epoch", "loss", "lr", "miou", "skipped")
    lines = [tuple(row.get(key) for key in kept) for row in rows if row["step"] > after]
    return canonical(checkpoint.read(run / "last.pt")), lines


def on_another_host() -> None:
    """What a process sees that was started there, but for the machine."""
    files.HOST = "elsewhere"


def kill_three_times(made: config.Preset, run: Path, seed: int) -> tuple[str, list[tuple[Any, ...]]]:
    """The outcome of a run of two processes, killed three times and resumed, every second time under another host name.

    It is killed within 50 ms of a row of its log, of which the preset writes one every three steps.
    """
    numbers = random.Random(seed)

    def work(other: bool) -> None:
        if other:
            on_another_host()
        os.setsid()
        train(made, run, resume="auto", processes=2, device="cpu")

    for kill, last in enumerate(sorted(numbers.sample(range(3, made.schedule.steps, 3), 3))):
        process = forked(lambda kill=kill: work(bool(kill % 2)))
        deadline = time.monotonic() + 60
        while not (run / "log.jsonl").exists() or f'"step": {last},' not in (run / "log.jsonl").read_text():
            assert os.waitpid(process, os.WNOHANG) == (0, 0) and time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(numbers.uniform(0, 0.05))
        os.killpg(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
    assert ended(forked(lambda: work(True))) == 0
    return outcome(run)
