"""Several machines: which of them train when some fail, leave or come back, and with what weights."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from launched import Train, assert_equal, one_error, weights
from runs import make_horizons

from ccnet_cli.cli.options import nodes_of
from ccnet_cli.errors import InputError
from ccnet_cli.runs import checkpoint

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
