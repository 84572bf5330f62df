"""Several processes: what each gets, and what they agree on."""

import os
import signal

import pytest
import torch

from ccnet_cli.errors import EnvironmentFailure, InputError, NonFiniteError, notice
from ccnet_cli.models import network as models
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import Group, first_node, joined
from ccnet_cli.parallel.supervisor import Nodes, parse_nodes


def test_every_item_falls_in_exactly_one_part():
    for count in range(0, 201):
        for parts in range(1, 17):
            ranges = [Group(rank=rank, world_size=parts).shard(count) for rank in range(parts)]
            assert [item for part in ranges for item in part] == list(range(count))
            assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_alone_everything_is_this_process():
    group = Group()
    assert (group.rank, group.world_size) == (0, 1)
    assert group.shard(5) == range(5)
    assert group.gather("a") == ["a"] and group.broadcast("b") == "b"
    assert group.largest(3) == 3


def test_alone_the_device_is_the_one_asked_for():
    with joined(torch.device("cuda", 1)) as group:
        assert group.device == torch.device("cuda", 1)


def _agree(worker, start):
    with joined(torch.device("cpu"), supervised=worker.supervised) as group:
        notice(f"rank {group.rank}")
        counts = torch.tensor([2**40 + group.rank, len(group.shard(5))])
        return (
            group.all_reduce_sum(counts).tolist(),
            group.largest(start + group.rank),
            group.gather(group.rank * 10),
            group.broadcast(f"from {group.rank}"),
        )


def test_two_processes_agree_and_rank_0_alone_prints(capfd):
    assert supervisor.run(_agree, (7,), 2) == ([2**41 + 1, 5], 8, [0, 10], "from 0")
    assert capfd.readouterr().err == "ccnet: rank 0\n"


def _fail(worker, kind):
    with joined(torch.device("cpu"), supervised=worker.supervised) as group:
        if group.rank == 1:
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "bug":
                raise ZeroDivisionError("a bug")
            if kind == "input":
                raise InputError("x.png", "missing", "copy it")
            raise NonFiniteError("step 3", "loss nan", "lower the rate")
        group.barrier()


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
        supervisor.run(_fail, (kind,), 2)


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
    assert first_node(nodes) == first


def test_a_list_without_a_node_is_refused():
    with pytest.raises(InputError, match=r"SLURM_NODELIST.*MASTER_ADDR"):
        first_node("[1-3]")


def test_machines_are_what_the_options_say():
    assert parse_nodes(None, None, None) == parse_nodes(1, 0, None) == Nodes()
    assert parse_nodes(3, 2, "10.0.0.1:29500") == Nodes(3, 2, "10.0.0.1", 29500)
    assert parse_nodes(2, 0, "::1:80").address == "::1"


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
        parse_nodes(*options)
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
