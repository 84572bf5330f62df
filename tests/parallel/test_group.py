"""Several processes: how each learns its rank, what it gets, and what they decide together."""

import os
import socket
import time

import pytest
import torch
import torch.distributed as dist
from runs import free_port
from torch import nn

from ccnet_cli.devices import Launch, first_node, read_launch, refuse_taken, resolve, wait_for_store
from ccnet_cli.errors import EnvironmentFailure, InputError, NonFiniteError, notice
from ccnet_cli.parallel import group as groups
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import CPU, Group, Limits, join_group

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODELIST": "n[3-6]"}


pytestmark = pytest.mark.usefixtures("forked_workers")


# One process


def test_every_item_falls_into_exactly_one_shard():
    for count in range(0, 201):
        for size in range(1, 17):
            shards = [Group(rank=rank, world_size=size).shard(count) for rank in range(size)]
            assert [item for shard in shards for item in shard] == list(range(count)), (count, size)
            assert max(map(len, shards)) - min(map(len, shards)) <= 1, (count, size, shards)


def test_one_process_is_a_group_that_waits_for_nobody():
    group, module, tensor = Group(), nn.BatchNorm2d(2), torch.tensor([2, -1])
    assert (group.rank, group.world_size, group.local_rank, group.attempt) == (0, 1, 0, 0)
    assert group.shard(5) == range(5)
    assert group.gather("a") == ["a"] and group.broadcast("b") == "b" and group.largest(-3) == -3
    assert group.all_reduce_sum(tensor) is tensor and group.all_reduce_max(tensor) is tensor
    assert tensor.tolist() == [2, -1] and group.replicate(module) is module
    assert group.decide_on_rank0(lambda: 1) == 1 and group.run_on_all_ranks(lambda: None) is None
    group.share_buffers(module)
    group.barrier()
    group.remember("run", "a")
    group.announce_signal(15)
    assert group.recall("run") is None and group.announced_signal() == 0
    for call in (group.decide_on_rank0, group.run_on_all_ranks):
        with pytest.raises(NonFiniteError, match="step 3: loss nan; lower the rate"):
            call(_fail)


def _fail():
    raise NonFiniteError("step 3", "loss nan", "lower the rate")


@pytest.fixture
def unlaunched(monkeypatch):
    """No variable of a launcher is set."""
    for name in [*TORCHRUN, *(name for name in os.environ if name.startswith("SLURM"))]:
        monkeypatch.delenv(name, raising=False)


def test_alone_the_device_is_the_given_one(unlaunched):
    with join_group(torch.device("cuda", 1)) as group:
        assert (group.device, group.world_size) == (torch.device("cuda", 1), 1)


# What launchers say


def test_torchrun_describes_a_launch():
    assert read_launch(TORCHRUN) == Launch(5, 8, 1, 1, "a", 29500, opens_store=False, attempt=0)
    more = TORCHRUN | {"LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "2", "SLURM_PROCID": "9"}
    assert read_launch(more) == Launch(5, 8, 1, 4, "a", 29500, opens_store=False, attempt=2)
    without = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"}
    assert read_launch(without).local_rank == 5


@pytest.mark.parametrize(("rank", "agent", "opens"), [("0", "", True), ("0", "True", False), ("1", "", False)])
def test_rank_0_opens_the_store_unless_the_launcher_keeps_it(rank, agent, opens):
    launch = read_launch(TORCHRUN | {"RANK": rank, "TORCHELASTIC_USE_AGENT_STORE": agent})
    assert launch.opens_store == opens


def test_slurm_describes_a_launch():
    assert read_launch(SLURM) == Launch(5, 8, 1, 1, "n3", 20000, opens_store=False, attempt=0)
    more = SLURM | {"SLURM_JOB_ID": "1234567", "SLURM_NTASKS_PER_NODE": "4", "SLURM_STEP_NODELIST": "m7,n[3-6]"}
    assert read_launch(more) == Launch(5, 8, 1, 4, "m7", 34567, False, run_id="1234567")
    address = SLURM | {"MASTER_ADDR": "b", "MASTER_PORT": "80", "SLURM_JOB_ID": "7"}
    assert (read_launch(address).address, read_launch(address).port) == ("b", 80)
    requeued = read_launch(SLURM | {"SLURM_RESTART_COUNT": "2", "SLURM_JOB_ID": "7"})
    assert (requeued.attempt, requeued.run_id) == (2, "7")
    older = SLURM | {"SLURM_NODELIST": "", "SLURM_JOB_NODELIST": "k1"}
    assert read_launch(older).address == "k1"


def test_other_processes_are_on_their_own():
    # a shell in an allocation, or a single task
    for environment in ({}, {"SLURM_NTASKS": "8"}, SLURM | {"SLURM_NTASKS": "1"}, {"MASTER_PORT": "80"}):
        assert read_launch(environment) is None, environment


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "8"}, "process 8: there are 8, counted from 0"),
        ({"RANK": "-1"}, "variable RANK: -1: not a number from 0"),
        ({"LOCAL_RANK": "x"}, "variable LOCAL_RANK: x: not a number from 0"),
        ({"WORLD_SIZE": ""}, "variable WORLD_SIZE: missing"),
        ({"MASTER_ADDR": ""}, "variable MASTER_ADDR: missing"),
        ({"MASTER_PORT": "0"}, "variable MASTER_PORT 0: not a port"),
        ({"MASTER_PORT": "65536"}, "variable MASTER_PORT 65536: not a port"),
        ({"MASTER_PORT": "http"}, "variable MASTER_PORT: http: not a number from 0"),
        ({"WORLD_SIZE": "9" * 5000}, "variable WORLD_SIZE: 9+: not a number from 0"),
        ({"LOCAL_WORLD_SIZE": "4(x2)"}, "variable LOCAL_WORLD_SIZE: 4.x2.: not a number from 0"),
        ({"TORCHELASTIC_RESTART_COUNT": "nan"}, "variable TORCHELASTIC_RESTART_COUNT: nan: not a number"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(variables, words):
    with pytest.raises(InputError, match=words):
        read_launch(TORCHRUN | variables)
    assert read_launch(TORCHRUN | {"RANK": "7", "MASTER_PORT": "65535"}).rank == 7


@pytest.mark.parametrize(
    "variable", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "MASTER_PORT"]
)
def test_variables_of_slurm_that_are_no_numbers_are_refused(variable):
    with pytest.raises(InputError, match=f"variable {variable}: 1e3: not a number from 0"):
        read_launch(SLURM | {variable: "1e3"})


def test_no_process_shares_a_machine_with_fewer_than_itself():
    assert read_launch(TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}).local_world_size == 1


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
def test_the_first_of_slurm_s_nodes_keeps_the_store(nodes, first):
    assert first_node(nodes) == first


def test_a_list_without_a_node_is_refused():
    with pytest.raises(InputError, match=r"SLURM_NODELIST.*MASTER_ADDR"):
        first_node("[1-3]")


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    launch = Launch(5, 8, 1, 4, "a", 1, opens_store=False)
    assert groups._local_device(launch, torch.device("cuda")) == torch.device("cuda", 1) == taken[0]
    with pytest.raises(InputError, match="process 2 of this machine: this machine has 2 GPUs"):
        groups._local_device(Launch(0, 8, 2, 4, "a", 1, opens_store=False), torch.device("cuda"))


@pytest.mark.parametrize(("processes", "variable", "threads"), [(3, None, [2]), (9, None, [1]), (3, "5", [])])
def test_the_processes_of_a_machine_share_its_cores(monkeypatch, processes, variable, threads):
    found = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    assert groups._local_device(Launch(0, 9, 0, processes, "a", 1, opens_store=True), CPU) == CPU
    assert found == threads


# The store


@pytest.fixture
def store():
    return groups.open_store("127.0.0.1", 0, True, 10)


def test_a_later_attempt_recalls_a_value_and_no_signal(store):
    first, second = (
        Group(rank=1, world_size=2, attempt=attempt, store=dist.PrefixStore(str(attempt), store), memory=store)
        for attempt in (0, 1)
    )
    assert second.recall("run") is None
    first.remember("run", "a/b")
    # the first attempt starts with nothing, even if an older run used the store
    assert first.recall("run") is None and second.recall("run") == "a/b" and second.recall("other") is None
    first.announce_signal(15)
    assert Group(rank=0, world_size=2, store=dist.PrefixStore("0", store)).announced_signal() == 15
    assert second.announced_signal() == 0


def test_a_store_that_nobody_opens_is_waited_for_no_longer_than_asked():
    port, started = free_port(), time.monotonic()
    with pytest.raises(EnvironmentFailure, match=f"meeting point 127.0.0.1:{port}: nobody answers"):
        wait_for_store("127.0.0.1", port, 0.3)
    assert 0.1 <= time.monotonic() - started < 10


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "a" * 70, "ä" * 300, "http://a", ""])
def test_a_host_that_does_not_exist_is_not_waited_for(host):
    with pytest.raises(EnvironmentFailure, match="no such host"):
        resolve(host, 29500)


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentFailure, match=f"port {port}: Address already in use; use another port"):
            refuse_taken(port)
    refuse_taken(free_port())


# Several processes


def _combine(worker, numbers):
    # a process that the system does not let start is named before the tests' own time is over
    with join_group(CPU, Limits(join=60), worker.is_supervised) as group:
        number = numbers[group.rank]
        counts = torch.tensor([2**40 + number, len(group.shard(5))])
        group.barrier()
        return {
            "place": group.gather((group.rank, group.local_rank, group.world_size, group.attempt)),
            "sum": group.gather(group.all_reduce_sum(counts).tolist()),
            "max": group.gather(group.all_reduce_max(torch.tensor([number, -number])).tolist()),
            "largest": group.gather(group.largest(number)),
            "broadcast": group.gather(group.broadcast(f"from {group.rank}")),
        }


def test_processes_combine_their_values():
    assert supervisor.run(_combine, ((7, 9, 5),), 3) == {
        "place": [(0, 0, 3, 0), (1, 1, 3, 0), (2, 2, 3, 0)],
        "sum": [[3 * 2**40 + 21, 5]] * 3,
        "max": [[9, -5]] * 3,
        "largest": [9] * 3,
        "broadcast": ["from 0"] * 3,
    }


def _decide(worker):
    with join_group(CPU, supervised=worker.is_supervised) as group:
        found = [group.decide_on_rank0(lambda: group.rank + 10), group.run_on_all_ranks(lambda: group.rank + 20)]

        def fail_after_rank_0():
            if group.rank:
                raise InputError(f"file {group.rank}", "missing", "copy it")

        for call in (lambda: group.decide_on_rank0(_fail), lambda: group.run_on_all_ranks(fail_after_rank_0)):
            try:
                call()
            except (InputError, NonFiniteError) as error:
                found.append(f"{type(error).__name__} {error.what}")
        return group.gather(found)


def test_rank_0_decides_for_all_and_an_error_is_raised_by_all():
    errors = ["NonFiniteError step 3", "InputError file 1"]
    assert supervisor.run(_decide, (), 3) == [[10, 20 + rank, *errors] for rank in range(3)]


class Scaled(nn.Module):
    """A parameter times the input, and a buffer of this rank's."""

    def __init__(self, rank):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0 + rank, 2.0]))
        self.register_buffer("seen", torch.tensor([rank + 5.0]))

    def forward(self, x):
        return (self.weight * x).sum()


def _backward(network, x):
    # DistributedDataParallel must end before its group
    network(x).backward()


def _train(worker):
    with join_group(CPU, supervised=worker.is_supervised) as group:
        module = Scaled(group.rank)
        _backward(group.replicate(module), torch.tensor([group.rank + 1.0, 10.0]))
        module.seen += group.rank
        before = module.seen.item()
        group.share_buffers(module)
        return group.gather((module.weight.tolist(), module.weight.grad.tolist(), before, module.seen.item()))


def test_replicas_start_from_rank_0_and_average_their_gradients():
    # the gradient of a rank is its input: (1, 10) and (2, 10)
    expected = [([1.0, 2.0], [1.5, 10.0], seen, 5.0) for seen in (5.0, 6.0)]
    assert supervisor.run(_train, (), 2) == expected


@pytest.mark.parametrize("address", ["::1", "[::1]", "localhost"])
def test_processes_meet_at_an_address_of_either_kind(ranks, address):
    def work(rank):
        with join_group(CPU, Limits(join=20)) as group:
            return group.largest(rank)

    assert [answer for answer, _ in ranks(2, work, MASTER_ADDR=address)] == ["1", "1"]


def test_a_second_process_with_a_rank_is_refused_and_the_others_go_on(ranks, tmp_path):
    def work(rank):
        # the last one comes with the rank of another, once all have met
        if rank == 2:
            os.environ["RANK"] = "1"
            while not (tmp_path / "met").exists():
                time.sleep(0.01)
        os.environ["WORLD_SIZE"] = "2"
        with join_group(CPU) as group:
            group.barrier()
            (tmp_path / "met").touch()
            while rank == 0 and not (tmp_path / "2.answer").exists():
                time.sleep(0.01)
            return group.largest(rank)

    answers = [answer for answer, _ in ranks(3, work)]
    assert answers[:2] == ["1", "1"] and "InputError: process 1 of 2: another process has this rank" in answers[2]


def test_another_run_at_the_same_address_and_strangers_are_ignored(ranks, store, tmp_path):
    def work(rank):
        if rank == 2:
            for message in (b"GET / HTTP/1.0\r\n\r\n", bytes(range(256)) * 40, b""):
                with socket.create_connection(("127.0.0.1", store.port)) as stranger:
                    stranger.sendall(message)
        os.environ |= {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "other" if rank == 2 else "own", "RANK": str(rank % 2)}
        with join_group(CPU, Limits(join=1 if rank == 2 else 60)) as group:
            group.barrier()
            while not (tmp_path / "2.answer").exists():
                time.sleep(0.01)
            return group.largest(rank)

    agent = {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    answers = [answer for answer, _ in ranks(3, work, **agent)]
    assert answers[:2] == ["1", "1"] and answers[2].startswith("EnvironmentFailure: meeting of 2 processes"), answers


def test_rank_0_alone_prints(ranks):
    def work(rank):
        with join_group(CPU) as group:
            group.barrier()
            print("result")
            notice(f"notice of rank {group.rank}")

    assert ranks(2, work) == [("None", "result\nccnet: notice of rank 0\n"), ("None", "")]


def test_an_error_of_all_ranks_is_reported_once(ranks, monkeypatch):
    # all of them do report, on a busy machine late
    monkeypatch.setattr(groups, "REPORT_SECONDS", 40.0)

    def work(_):
        with join_group(CPU) as group:
            group.barrier()
            _fail()

    error = "NonFiniteError{}: step 3: loss nan; lower the rate"
    assert [answer for answer, _ in ranks(3, work)] == [error.format(mark) for mark in ("", *[" (silent)"] * 2)]


def test_a_rank_that_lost_another_raises_the_cause(ranks, store):
    def work(failing):
        def run(rank):
            with join_group(CPU) as group:
                if rank == failing:
                    _fail()
                group.barrier()
                os._exit(9)

        return run

    for failing in (0, 1):
        agent = {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": failing}
        answers = [answer for answer, _ in ranks(2, work(failing), **agent)]
        error = "NonFiniteError{}: step 3: loss nan; lower the rate"
        assert answers[failing] == error.format("") and answers[1 - failing] == error.format(" (silent)"), answers


def test_a_collective_that_fails_for_an_unknown_reason_has_lost_a_peer(ranks):
    def work(rank):
        with join_group(CPU) as group:
            # torch's message names neither gloo nor NCCL
            group.replicate(nn.Linear(2, 2, bias=rank == 0))

    for rank, (answer, _) in enumerate(ranks(2, work)):
        assert answer.startswith(("PeerLost: ", "PeerLost (silent): ")) and "lost the other processes" in answer, rank


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("apply", [lambda x: torch.ones(3) @ x, Broken.apply])
def test_a_bug_in_the_network_is_no_lost_peer(ranks, apply):
    class Network(Scaled):
        def forward(self, x):
            return apply(super().forward(x)[None])

    def work(rank):
        with join_group(CPU) as group:
            _backward(group.replicate(Network(rank)), torch.ones(2))

    assert [answer for answer, _ in ranks(2, work)] == [1, 1]


def test_a_bug_is_no_lost_peer(ranks):
    def work(_):
        with join_group(CPU) as group:
            group.barrier()
            raise RuntimeError("shapes differ")

    assert [answer for answer, _ in ranks(2, work)] == [1, 1]


def test_a_rank_that_is_late_for_a_collective_is_given_up(ranks):
    def work(rank):
        started = time.monotonic()
        with join_group(CPU, Limits(join=60, collective=1)) as group:
            if rank == 1:
                time.sleep(2.5)
                os._exit(0)
            try:
                group.barrier()
            finally:
                assert 0.5 < time.monotonic() - started < 2.4

    assert ranks(2, work)[0][0].startswith("PeerLost: process 0: lost the other processes (")


def test_ranks_that_do_not_come_are_given_up(ranks):
    def work(_):
        with join_group(CPU, Limits(join=1, collective=60)):
            os._exit(9)

    started = time.monotonic()
    answer = ranks(1, work, WORLD_SIZE=2)[0][0]
    assert answer.startswith("EnvironmentFailure: meeting of 2 processes at 127.0.0.1:"), answer
    assert "no process 1 came within 1 s" in answer and time.monotonic() - started < 10
