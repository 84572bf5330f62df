"""Several processes: what each gets, and what they agree on."""

import os
import signal

import pytest
import torch

from ccnet_cli.errors import EnvironmentFailure, InputError, NonFiniteError
from ccnet_cli.models import network as models
from ccnet_cli.parallel import group as distributed
from ccnet_cli.parallel import supervisor as launch


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


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("a7,b8", "a7"),
        ("rack-2-n[10-12]-ib", "rack-2-n10-ib"),
        ("n[1,3].cluster", "n1.cluster"),
    ],
)
def test_the_first_of_slurm_s_nodes_is_where_all_meet(nodes, first):
    assert distributed.first_node(nodes) == first


def test_a_list_without_a_node_is_refused():
    with pytest.raises(InputError, match=r"SLURM_NODELIST.*MASTER_ADDR"):
        distributed.first_node("[1-3]")


def test_machines_are_what_the_options_say():
    assert launch.machines(None, None, None) == launch.machines(1, 0, None) == launch.Machines()
    assert launch.machines(3, 2, "10.0.0.1:29500") == launch.Machines(3, 2, "10.0.0.1", 29500)
    assert launch.machines(2, 0, "::1:80").address == "::1"


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ((None, 1, None), "--nodes"),
        ((None, None, "a:1"), "--nodes"),
        ((2, None, "a:1"), "--node-rank"),
        ((2, 1, None), "--rendezvous"),
        ((2, 2, "a:1"), "--node-rank"),
        *(((2, 1, place), "--rendezvous") for place in ("a", "a:", ":1", "a:0", "a:65536", "a:1b")),
    ],
)
def test_machines_that_cannot_be_are_refused(options, option):
    with pytest.raises(InputError) as caught:
        launch.machines(*options)
    assert str(caught.value).startswith(f"option {option}")


def test_more_gpus_than_there_are_or_gpus_and_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"--gpus 2: this machine has 1"):
        models.share(2, 1, "auto")
    with pytest.raises(InputError, match=r"--processes: --gpus is given too"):
        models.share(1, 2, "auto")
    assert models.share(1, 1, "cpu") == torch.device("cuda")
    # processes without --gpus are of the CPU, whatever else is here
    assert models.share(None, 2, "auto") == torch.device("cpu")
