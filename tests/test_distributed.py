"""Several processes: what each gets, and what they agree on."""

import os
import signal

import pytest
import torch

from ccnet_cli import distributed, launch
from ccnet_cli.errors import EnvironmentFailure, InputError, NonFiniteError


def test_every_item_falls_in_exactly_one_part():
    for count in range(0, 201):
        for parts in range(1, 17):
            ranges = [distributed.part(count, number, parts) for number in range(parts)]
            assert [item for part in ranges for item in part] == list(range(count))
            assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_alone_everything_is_this_process():
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert distributed.shard(5) == range(5)
    assert distributed.gather("a") == ["a"] and distributed.broadcast("b") == "b"
    assert distributed.largest(3, torch.device("cpu")) == 3


def test_alone_the_device_is_the_one_asked_for():
    with distributed.joined(torch.device("cuda", 1)) as device:
        assert device == torch.device("cuda", 1)


def _agree(start):
    with distributed.joined(torch.device("cpu")) as device:
        rank = distributed.rank()
        counts = torch.tensor([2**40 + rank, len(distributed.shard(5))])
        return (
            distributed.all_reduce_sum(counts).tolist(),
            distributed.largest(start + rank, device),
            distributed.gather(rank * 10),
            distributed.broadcast(f"from {rank}"),
        )


def test_two_processes_agree():
    assert launch.run(_agree, (7,), 2) == ([2**41 + 1, 5], 8, [0, 10], "from 0")


def _fail(kind):
    with distributed.joined(torch.device("cpu")):
        if distributed.rank() == 1:
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "bug":
                raise ZeroDivisionError("a bug")
            if kind == "input":
                raise InputError("x.png", "missing", "copy it")
            raise NonFiniteError("step 3", "loss nan", "lower the rate")
        distributed.barrier()


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("input", InputError, "x.png: missing; copy it"),
        ("nan", NonFiniteError, "step 3: loss nan"),
        ("bug", RuntimeError, "ZeroDivisionError: a bug"),
        ("kill", EnvironmentFailure, "process 1 of this run: killed by SIGKILL"),
    ],
)
def test_the_first_failure_is_the_one_told(kind, error, words):
    with pytest.raises(error, match=words):
        launch.run(_fail, (kind,), 2)
