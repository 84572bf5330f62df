"""Several machines: which of them train when some fail, leave or come back, and with what weights."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launched import Train, assert_equal, one_error, weights
from runs import ended, forked, free_port, make_horizons

from ccnet_cli.cli.options import nodes_of
from ccnet_cli.devices import RENDEZVOUS
from ccnet_cli.errors import CCNetError, InputError, Interrupted
from ccnet_cli.parallel import elastic
from ccnet_cli.parallel.elastic import Nodes
from ccnet_cli.parallel.group import CPU, Limits, join_group, open_store
from ccnet_cli.runs import checkpoint

pytestmark = pytest.mark.usefixtures("forked_workers")

KEEP = ("checkpoint.keep=1000", "checkpoint.every=1", "schedule.steps=60", "train.batch=4")


def test_nodes_are_what_the_options_say():
    assert nodes_of(None, None, None) is nodes_of("1", None, None) is None
    assert nodes_of("3", "10.0.0.1:29500", "a.b-1") == (3, 3, "10.0.0.1", 29500, "a.b-1")
    assert nodes_of("1:4", "[::1]:80", None) == nodes_of("1:4", "::1:80", None) == (1, 4, "::1", 80, "")
    assert nodes_of("2", "a:65535", None) == (2, 2, "a", 65535, "")


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ((None, "a:1", None), "--nodes"),
        ((None, None, "first"), "--nodes"),
        (("2", None, None), "--rendezvous"),
        *(
            ((nodes, "a:1", None), "--nodes")
            for nodes in ("0", "2:1", "1:2:3", "x", "", "1:", "-1", "1025", "9" * 5000)
        ),
        *(
            (("2", place, None), "--rendezvous")
            for place in ("a", "a:", ":1", "a:0", "a:65536", "a:1b", "a:" + "9" * 5000)
        ),
        *((("2", "a:1", name), "--run-id") for name in ("a/b", "a b", "", "x" * 101)),
    ],
)
def test_nodes_that_cannot_be_are_refused(options, option):
    with pytest.raises(InputError) as caught:
        nodes_of(*options)
    assert str(caught.value).startswith(f"option {option}")


# One machine as two: the agents' front


def _fail_once(worker, folder, kind):
    with join_group(CPU, Limits(join=30)) as group, worker.signals(group):
        path = folder / f"{group.attempt}-{group.rank}"
        path.write_text(group.recall("run") or "")
        group.barrier()
        group.remember("run", "first")
        if group.attempt == 0 and group.rank == 1:
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise InputError("x.png", "missing", "copy it")
        group.barrier()
        return f"{group.world_size} done"


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """Run work by an agent of its own process with two workers; what it answers or raises, as text."""
    monkeypatch.setattr(elastic, "START_METHOD", "fork")

    def run(work, *arguments, restarts=1, then=lambda pid: None, port=None, run_id="test", join=30):
        def start():
            nodes = Nodes(1, 1, "127.0.0.1", port or free_port(), run_id)
            try:
                answer = elastic.run(work, arguments, 2, nodes, restarts, Limits(join, 30, 20), tmp_path / "agent.log")
            except CCNetError as error:
                answer = f"{'silent ' * error.reported}{type(error).__name__} {error.exit_code}: {error}"
            (tmp_path / f"answer-{run_id}").write_text(answer)

        pid = forked(start)
        then(pid)
        code = ended(pid)
        return (tmp_path / f"answer-{run_id}").read_text() if code == 0 else code

    return run


def test_the_agent_restarts_a_killed_worker_which_recalls_the_run(agent, tmp_path):
    assert agent(_fail_once, tmp_path, "kill") == "2 done"
    assert {path.name: path.read_text() for path in tmp_path.glob("?-?")} == {
        **{"0-0": "", "0-1": ""},
        **{"1-0": "first", "1-1": "first"},
    }
    # torch's own report
    assert "failed (exitcode: -9)" in (tmp_path / "agent.log").read_text()


def test_the_agent_names_a_killed_worker_and_restarts_no_error_of_the_user(agent, tmp_path, capfd):
    killed = agent(_fail_once, tmp_path, "kill", restarts=0)
    assert killed == "EnvironmentFailure 3: process 1 of this run: killed by SIGKILL; see if memory ran out, and resume"
    assert agent(_fail_once, tmp_path, "bad", restarts=3) == "InputError 2: x.png: missing; copy it"
    assert not (tmp_path / "1-0").exists()
    assert capfd.readouterr() == ("", "")


def _wait_for_signal(worker, folder):
    with join_group(CPU, Limits(join=30)) as group, worker.signals(group) as stop_signal:
        (folder / f"{os.getpid()}.pid").touch()
        while not (number := group.largest(stop_signal())):
            time.sleep(0.01)
        raise Interrupted("run", f"stopped by {number}, saved", "continue", number)


def _await_workers(folder):
    while len(workers := [int(path.stem) for path in folder.glob("*.pid")]) < 2:
        time.sleep(0.01)
    return workers


def test_a_signal_to_the_agent_lets_its_workers_save(agent, tmp_path):
    def then(pid):
        _await_workers(tmp_path)
        os.kill(pid, signal.SIGTERM)

    assert agent(_wait_for_signal, tmp_path, then=then) == "Interrupted 143: run: stopped by 15, saved; continue"


def _wait_for_release(worker, folder):
    with join_group(CPU, Limits(join=30)) as group, worker.signals(group):
        (folder / f"{os.getpid()}.pid").touch()
        while not group.largest((folder / "released").exists()):
            time.sleep(0.01)
        return f"{group.world_size} of attempt {group.attempt}"


def _meet(worker, folder):
    with join_group(CPU, Limits(join=30)) as group:
        return f"{group.world_size} met"


@pytest.mark.parametrize("stray", ["bytes", "another run", "a machine too many"])
def test_a_run_does_not_notice_what_comes_to_its_address(agent, tmp_path, stray):
    """Contract row C16."""
    port = free_port()

    def then(pid):
        _await_workers(tmp_path)
        if stray == "bytes":
            for content in (b"", b"GET / HTTP/1.0\r\n\r\n", bytes(range(256)) * 300):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as client:
                    client.sendall(content)
        elif stray == "another run":
            assert agent(_meet, tmp_path, port=port, run_id="other") == "2 met"
        else:
            # it waits for a place until it is killed
            extra = forked(lambda: agent(_meet, tmp_path, port=port, then=lambda pid: time.sleep(3) or os.kill(pid, 9)))
            assert ended(extra) == 0
        (tmp_path / "released").touch()

    assert agent(_wait_for_release, tmp_path, port=port, restarts=0, then=then) == "2 of attempt 0"


def _hang(worker, folder):
    with join_group(CPU, Limits(join=30)) as group, worker.signals(group):
        (folder / f"{os.getpid()}.pid").touch()
        time.sleep(300)


def test_workers_end_with_their_agent(agent, tmp_path):
    def then(pid):
        _await_workers(tmp_path)
        os.kill(pid, signal.SIGKILL)

    assert agent(_hang, tmp_path, then=then) == -9
    # at the latest the system ends them; nobody may be there to reap them
    for worker in _await_workers(tmp_path):
        deadline = time.monotonic() + 30
        while (
            time.monotonic() < deadline
            and Path(f"/proc/{worker}/stat").exists()
            and ") Z " not in Path(f"/proc/{worker}/stat").read_text()
        ):
            time.sleep(0.01)
        assert time.monotonic() < deadline, "a worker runs on"


def test_ranks_whose_agents_count_restarts_differently_meet(ranks):
    """One agent has restarted its workers, the other was added: torch gives both their own counts."""
    store = open_store("127.0.0.1", 0, True, 10)

    def work(rank):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(3 * rank)
        with join_group(CPU, Limits(join=10)) as group:
            group.remember("run", f"of {group.attempt}")
            group.barrier()
            return group.attempt, group.recall("run")

    variables = {RENDEZVOUS: f"127.0.0.1:{store.port}", "TORCHELASTIC_RUN_ID": "first"}
    assert [answer for answer, _ in ranks(2, work, **variables)] == ["(0, None)"] * 2
    assert [answer for answer, _ in ranks(2, work, **variables)] == ["(1, 'of 1')"] * 2
    assert [answer for answer, _ in ranks(2, work, **variables | {"TORCHELASTIC_RUN_ID": "b"})] == ["(0, None)"] * 2


def test_ranks_of_plain_torchrun_whose_agents_count_restarts_differently_meet(ranks, tmp_path):
    """The store that outlasts a round still holds what the processes of the round before asked."""
    keeper = open_store("127.0.0.1", 0, True, 10)
    variables = {"MASTER_PORT": keeper.port, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "plain"}
    variables |= {"LOCAL_WORLD_SIZE": 1}

    def work(counts):
        def meet(rank):
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(counts[rank])
            # the first comes last, and finds what the others ask; or it waits for them
            time.sleep(0.3 * ((rank == 0) == (counts[0] == 0)))
            with join_group(CPU, Limits(join=10)) as group:
                group.remember("run", f"of {group.attempt}")
                group.barrier()
                return group.attempt, group.recall("run")

        return meet

    for counts, expected in (((0, 0), "(0, None)"), ((0, 1), "(1, 'of 1')"), ((1, 1), "(2, 'of 2')")):
        assert [answer for answer, _ in ranks(2, work(counts), **variables)] == [expected] * 2


# Two machines


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("data"))


@pytest.fixture
def namespaces():
    """Two network namespaces that reach only each other, at 10.97.0.1 and 10.97.0.2."""
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


class Node(Train):
    """An agent in a namespace of its own, with one worker; each node marks and reports in a folder of its own."""

    def __init__(self, data, folder, name, *options, nodes="1:2", settings=KEEP, **variables):
        own = folder / name
        own.mkdir(exist_ok=True)
        words = ("-o", folder / "run", "--nodes", nodes, "--rendezvous", "10.97.0.1:29400", "--join-timeout", 60)
        launcher = ("ip", "netns", "exec", name, sys.executable)
        super().__init__(data, own, *words, *options, settings=settings, launcher=launcher, fault="train", **variables)
        self.run = folder / "run"

    def kill(self):
        """What a power cut does: the agent and its worker are gone."""
        for process in (self.pid, *self.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def sizes(run):
    """Step -> number of processes that wrote its checkpoint, from the manifests."""
    manifests = sorted((run / "checkpoints").glob("step_*.json"))
    return {int(path.stem.removeprefix("step_")): json.loads(path.read_text())["world_size"] for path in manifests}


def wait_for(true, *nodes, seconds=90):
    deadline = time.monotonic() + seconds
    while not true():
        for node in nodes:
            assert not node.ended(), node.output.read_text()
        assert time.monotonic() < deadline, [node.output.read_text() for node in nodes]
        time.sleep(0.05)


def reach(run, step, *nodes):
    wait_for(lambda: max(sizes(run), default=0) >= step, *nodes)


def undisturbed(data, folder, run, *settings):
    """The weights of a run on one machine with the same numbers of processes from checkpoint to checkpoint."""
    history, start = sizes(run), None
    steps = sorted(history)
    for count, step in ((history[step], step) for step in steps):
        last = step == steps[-1] or history[step + 1] != count
        if last:
            options = ["--processes", count] if start is None else ["--processes", count, "--resume", start]
            own = folder / f"undisturbed-{step}"
            own.mkdir()
            train = Train(data, own, *options, settings=[*KEEP, *settings])
            code, output, _ = train.end(120)
            assert code == 0, output
            start = train.run / "checkpoints" / f"step_{step:08d}.pt"
    return checkpoint.read(start)["model"]


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_is_killed_is_restarted_on_both_nodes(data, tmp_path, namespaces, which):
    nodes = [Node(data, tmp_path, name) for name in namespaces]
    reach(tmp_path / "run", 5, *nodes)
    os.kill(nodes[which].pids()[-1], signal.SIGKILL)
    for node in nodes:
        code, output, _ = node.end(120)
        assert code == 0 and "Traceback" not in output, output
    assert set(sizes(tmp_path / "run").values()) == {2}
    assert_equal(weights(tmp_path / "run"), undisturbed(data, tmp_path, tmp_path / "run"))


@pytest.mark.slow
def test_a_node_that_is_gone_for_good_leaves_the_other_training(data, tmp_path, namespaces):
    nodes = [Node(data, tmp_path, name) for name in namespaces]
    run = tmp_path / "run"
    reach(run, 5, *nodes)
    nodes[1].kill()
    code, output, _ = nodes[0].end(120)
    assert code == 0 and "Traceback" not in output, output
    assert "accumulation 2, was 1, world_size 1, was 2: sample-exact, not bit-exact" in output
    assert set(sizes(run).values()) == {1, 2}
    assert_equal(weights(run), undisturbed(data, tmp_path, run))


@pytest.mark.slow
def test_a_node_that_comes_back_is_taken_in(data, tmp_path, namespaces):
    nodes = [Node(data, tmp_path, name, settings=[*KEEP, "schedule.steps=150"]) for name in namespaces]
    run = tmp_path / "run"
    reach(run, 5, *nodes)
    nodes[1].kill()
    wait_for(lambda: 1 in sizes(run).values(), nodes[0])
    back = Node(data, tmp_path, namespaces[1], settings=[*KEEP, "schedule.steps=150"])
    for node in (nodes[0], back):
        code, output, _ = node.end(120)
        assert code == 0 and "Traceback" not in output, output
    history = [size for _, size in sorted(sizes(run).items())]
    assert history[-1] == 2 and 1 in history, history
    assert_equal(weights(run), undisturbed(data, tmp_path, run, "schedule.steps=150"))


@pytest.mark.slow
def test_without_the_node_that_keeps_the_store_a_run_ends_with_its_checkpoint(data, tmp_path, namespaces):
    nodes = [Node(data, tmp_path, name) for name in namespaces]
    run = tmp_path / "run"
    reach(run, 5, *nodes)
    nodes[0].kill()
    code, output, _ = nodes[1].end(120)
    assert code == 3 and "rendezvous 10.97.0.1:29400: lost" in one_error(output), output
    assert checkpoint.read_newest(run / "checkpoints")[1]["step"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_sigterm_to_one_agent_leaves_the_other_training_or_ends_the_run(data, tmp_path, namespaces, which):
    nodes = [Node(data, tmp_path, name) for name in namespaces]
    run = tmp_path / "run"
    reach(run, 5, *nodes)
    os.kill(nodes[which].pid, signal.SIGTERM)
    code, output, _ = nodes[which].end(60)
    assert code == 143 and "stopped by SIGTERM at step" in one_error(output), output
    code, output, _ = nodes[1 - which].end(120)
    # without the node that keeps the store there is no further meeting
    assert code == (0 if which else 143), output
    if which:
        assert_equal(weights(run), undisturbed(data, tmp_path, run))


# torch's own launcher, without a front


class Torchrun(Train):
    """An agent of torchrun with one worker; two of them on this machine are two nodes."""

    def __init__(self, data, folder, name, port):
        (folder / name).mkdir()
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", 1]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "one"]
        launcher += ["--rdzv-conf", "last_call_timeout=5,keep_alive_interval=2", "--local-addr", "127.0.0.1"]
        launcher += ["--max-restarts", 3]
        shared = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        super().__init__(
            data, folder / name, "-o", folder / "run", settings=KEEP, launcher=launcher, fault="train", **shared
        )
        self.run = folder / "run"

    def kill(self):
        for process in (self.pid, *self.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_plain_torchrun_shrinks_to_the_node_that_is_left(data, tmp_path):
    port, run = free_port(), tmp_path / "run"
    nodes = [Torchrun(data, tmp_path, "one", port)]
    # the first one keeps the store
    time.sleep(2)
    nodes.append(Torchrun(data, tmp_path, "two", port))
    reach(run, 5, *nodes)
    assert set(sizes(run).values()) == {2}
    nodes[1].kill()
    code, output, _ = nodes[0].end(180)
    assert code == 0, output
    assert "accumulation 2, was 1, world_size 1, was 2: sample-exact, not bit-exact" in output
    assert set(sizes(run).values()) == {1, 2}
    assert_equal(weights(run), undisturbed(data, tmp_path, run))


@pytest.mark.slow
def test_plain_torchrun_restarts_a_killed_worker_on_both_nodes(data, tmp_path):
    port, run = free_port(), tmp_path / "run"
    nodes = [Torchrun(data, tmp_path, "one", port)]
    time.sleep(2)
    nodes.append(Torchrun(data, tmp_path, "two", port))
    reach(run, 5, *nodes)
    os.kill(nodes[1].pids()[-1], signal.SIGKILL)
    for node in nodes:
        code, output, _ = node.end(180)
        assert code == 0, output
    assert set(sizes(run).values()) == {2}
    assert_equal(weights(run), undisturbed(data, tmp_path, run))
