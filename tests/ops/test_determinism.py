"""The same seed gives the same weights; other numbers of threads give nearly the same; no operator is random."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

ROOT = Path(__file__).parents[2]
RUN = """
import sys, torch
from ccnet_cli import cli
torch.set_num_threads(int(sys.argv[2]))
torch.use_deterministic_algorithms(sys.argv[3] == "deterministic")
words = ["train", "--preset", "camvid", "--data", "data", "-o", sys.argv[1]]
for key in sys.argv[4:]:
    words += ["-s", key]
try:
    cli.main(words)
except SystemExit as stopped:
    assert stopped.code == 0
"""
SETTINGS = [*tiny.OVERRIDES, "data.crop=24,40", "data.workers=0", "train.batch=4", "train.precision=fp32"]
SETTINGS += ["schedule.warmup=0", "eval.every=0", "checkpoint.every=100"]


def weights(folder, name, *more, threads=1, kind="ordinary"):
    words = [name, str(threads), kind, *SETTINGS, *more]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / name / "last.pt", weights_only=True)["model"]


@pytest.mark.slow
def test_one_seed_is_one_result(tmp_path):
    tiny.make_camvid(tmp_path / "data", [(32, 48), (40, 40)], "train")
    tiny.make_camvid(tmp_path / "data", [(32, 48)], "val")
    # Adam would make full steps of the rounding that is all the gradient of a bias before a batch norm
    length = ("schedule.steps=20", "schedule.lr=1e-3", "train.optimizer=sgd")
    one = weights(tmp_path, "one", *length)
    # deterministic algorithms alone: an operator without one would raise
    again = weights(tmp_path, "again", *length, kind="deterministic")
    assert all(torch.equal(one[key], again[key]) for key in one)
    two = weights(tmp_path, "two", *length, threads=2)
    # batch norms' variances run into the thousands: beside the largest of a tensor
    furthest = max(
        ((one[key].double() - two[key].double()).abs().max() / one[key].abs().max().clamp(min=1)).item() for key in one
    )
    print(f"20 steps, 1 and 2 threads: {furthest:.1e} apart")
    assert furthest <= 1e-5
    other = weights(tmp_path, "other", *length, "seed=1")
    assert any(not torch.equal(one[key], other[key]) for key in one)
