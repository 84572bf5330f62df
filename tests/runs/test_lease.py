"""A run folder is one run's, on whatever host; whoever dies holds nothing, and a copy is a run of its own."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from runs import (
    arguments,
    ended,
    forked,
    kill_three_times,
    make_horizons,
    outcome,
    preset,
    start,
    steps,
    train,
    wait_until,
)

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError, TakenOver
from ccnet_cli.runs import folder as runfolder
from ccnet_cli.runs import lease
from ccnet_cli.runs.lease import hold
from ccnet_cli.training.loop import Loop
from ccnet_cli.training.trainer import Trainer

MOMENT = 0.3


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in {"BEAT_SECONDS": 0.05, "SILENCE_SECONDS": MOMENT, "ORPHAN_SECONDS": MOMENT}.items():
        monkeypatch.setattr(lease, name, value)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("horizons") / "data")


def owner(run):
    return json.loads((run / "lock").read_text())


def leave(run, **changes):
    """The lock of a process that died, with changes to what it says."""

    def die():
        with hold(run):
            os._exit(0)

    assert ended(forked(die)) == 0
    (run / "lock").write_text(json.dumps(owner(run) | changes).ljust(lease.FILE_BYTES))


def without_kernel_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def beating(run):
    """Beat as a process on another machine does; a function that ends it."""
    path, stop = run / "lock", threading.Event()
    content = owner(run)

    def beat():
        count = 0
        while not stop.wait(0.05):
            count += 1
            # in place, as a run does: a file cut to nothing for a moment would say nothing of its owner
            with path.open("r+") as file:
                file.write(json.dumps(content | {"beat": f"{count:012d}"}).ljust(lease.FILE_BYTES))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    return lambda: (stop.set(), thread.join(30))


def test_a_live_run_keeps_others_out_and_its_file_keeps_its_size(tmp_path):
    with hold(tmp_path) as own:
        first = owner(tmp_path)
        assert (first["pid"], first["host"], first["token"]) == (os.getpid(), files.HOST, own.token)
        with pytest.raises(InputError) as refused, hold(tmp_path):
            pass
        assert str(refused.value).startswith(f"{tmp_path}: in use by process {os.getpid()} on {files.HOST}; ")
        assert "--take-over" in refused.value.fix
        deadline = time.monotonic() + 30
        while owner(tmp_path)["beat"] <= first["beat"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (tmp_path / "lock").stat().st_size == lease.FILE_BYTES
        own.confirm()
    assert list(tmp_path.iterdir()) == []


# what a dead run may have left: how the folder's next run finds out
DEAD = {
    "on this host": {},
    "under another host name": {"host": "elsewhere"},
    "its number given again": {"pid": os.getppid(), "birth": "1"},
    "on another machine": {"host": "elsewhere", "boot": "another"},
    "in another container": {"host": "elsewhere", "space": 1},
    "before this machine started again": {"boot": "earlier"},
}


@pytest.mark.parametrize("kernel", [True, False], ids=["locks", "no locks"])
@pytest.mark.parametrize("changes", DEAD.values(), ids=DEAD)
def test_a_dead_run_holds_nothing(tmp_path, monkeypatch, capsys, changes, kernel):
    leave(tmp_path, **changes)
    if not kernel:
        without_kernel_locks(monkeypatch)
    with hold(tmp_path) as own:
        assert owner(tmp_path)["token"] == own.token
    # only of another machine, or of another container without locks, nothing is known but silence
    is_known = "boot" not in changes and (kernel or "space" not in changes)
    assert ("for a sign of life" in capsys.readouterr().err) != is_known


@pytest.mark.parametrize("changes", [{"host": "elsewhere", "boot": "another"}, {"boot": "another"}], ids=str)
def test_a_sign_of_life_from_another_machine_is_enough(tmp_path, monkeypatch, changes):
    monkeypatch.setattr(lease, "SILENCE_SECONDS", 30.0)
    leave(tmp_path, **changes)
    stop = beating(tmp_path)
    try:
        with pytest.raises(InputError, match="in use by process"), hold(tmp_path):
            pass
    finally:
        stop()
    assert owner(tmp_path)["boot"] == "another"


@pytest.mark.parametrize("kernel", [True, False], ids=["locks", "no locks"])
def test_a_live_process_of_this_machine_is_enough(tmp_path, monkeypatch, kernel):
    if not kernel:
        without_kernel_locks(monkeypatch)
    with hold(tmp_path):
        # also when it says that it was another host's
        (tmp_path / "lock").write_text(json.dumps(owner(tmp_path) | {"host": "elsewhere"}))
        with pytest.raises(InputError, match=r"in use by process .* on elsewhere"), hold(tmp_path):
            pass


def test_the_children_of_a_dead_process_hold_nothing(tmp_path):
    def work():
        with hold(tmp_path):
            child = os.fork()
            if child == 0:
                time.sleep(60)
            (tmp_path / "child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(forked(work)) == -signal.SIGKILL
    child = int((tmp_path / "child").read_text())
    try:
        with hold(tmp_path) as own:
            own.confirm()
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("known", [False, True], ids=["by force", "by an attempt of the same run"])
def test_who_was_taken_over_notices_and_leaves_the_lock_alone(tmp_path, known):
    with hold(tmp_path) as first:
        with hold(tmp_path, take_over=not known, known=first.token if known else None) as second:
            with pytest.raises(TakenOver, match=f"taken over by process {os.getpid()}"):
                first.confirm()
            second.confirm()
            time.sleep(0.2)
            assert owner(tmp_path)["token"] == second.token
        with pytest.raises(TakenOver, match="its lock was deleted"):
            first.confirm()
    assert TakenOver.exit_code == 3 and not issubclass(TakenOver, EnvironmentFailure)


@pytest.mark.parametrize("how", [shutil.copytree, lambda run, copy: shutil.copytree(run, copy, copy_function=os.link)])
def test_a_copy_is_a_run_of_its_own_while_the_first_lives(tmp_path, how):
    run = tmp_path / "run"
    run.mkdir()
    with hold(run) as first:
        how(run, tmp_path / "copy")
        with hold(tmp_path / "copy") as second:
            time.sleep(0.2)
            first.confirm()
            second.confirm()
        first.confirm()
        with pytest.raises(InputError, match="in use"), hold(run):
            pass


OLD = {
    "a living process": (lambda: {"pid": os.getppid(), "host": files.HOST}, False),
    "another host": (lambda: {"pid": 1, "host": "elsewhere"}, False),
    "its number given again": (lambda: {"pid": os.getppid(), "host": files.HOST, "birth": "1"}, True),
    "nothing": (lambda: {}, True),
}


@pytest.mark.parametrize(("make", "is_free"), OLD.values(), ids=OLD)
def test_locks_of_the_first_version(tmp_path, make, is_free):
    (tmp_path / "lock").write_text(json.dumps(make()))
    if is_free:
        with hold(tmp_path) as own:
            own.confirm()
    else:
        with pytest.raises(InputError, match="in use by process"), hold(tmp_path):
            pass
        with hold(tmp_path, take_over=True) as own:
            own.confirm()


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 5000, b"[" * 5000, b"\xff\xfe", b'{"pid": "x", "boot": 3}'])
def test_a_lock_of_garbage_holds_nothing(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    with hold(tmp_path) as own:
        own.confirm()


def test_a_lock_that_the_disk_refuses_is_told(tmp_path, monkeypatch):
    def refusing(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refusing)
    with pytest.raises(EnvironmentFailure, match=r"lock: not written \(No space"), hold(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_of_many_that_want_the_folder_one_gets_it(tmp_path, monkeypatch):
    """All take their time between reading a stale lock and writing their own."""
    leave(tmp_path)
    decide = lease._patience
    monkeypatch.setattr(lease, "_patience", lambda *arguments: time.sleep(0.1) or decide(*arguments))
    monkeypatch.setattr(lease, "ORPHAN_SECONDS", 30.0)

    def work():
        try:
            with hold(tmp_path):
                time.sleep(3)
        except InputError:
            os._exit(2)

    assert sorted(ended(process) for process in [forked(work) for _ in range(4)]) == [0, 2, 2, 2]


# runs


def test_a_run_whose_folder_is_taken_stops_without_writing(data, tmp_path, monkeypatch):
    run, update, others = tmp_path / "run", Trainer.update, ExitStack()

    def take(trainer, *arguments):
        done = update(trainer, *arguments)
        if trainer.step == 3:
            others.enter_context(hold(run, take_over=True))
            (run / "theirs").write_text("")
        return done

    monkeypatch.setattr(Trainer, "update", take)
    with others, pytest.raises(TakenOver, match="taken over by process"):
        train(preset(data, "checkpoint.every=1"), run)
    assert steps(run) == [2, 1]
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert (run / "theirs").exists()


def test_a_run_can_be_taken_over_and_refuses_to_be_resumed_twice(data, tmp_path):
    run = train(preset(data, "schedule.steps=2"), tmp_path / "run")
    longer = preset(data, "schedule.steps=3")
    with hold(run) as first:
        with pytest.raises(InputError, match="add --take-over"):
            train(longer, run, resume="auto")
        with pytest.raises(InputError, match="there is nothing to resume"):
            train(longer, run, take_over=True)
        assert train(longer, run, resume="auto", take_over=True) == run
        assert steps(run)[0] == 3 and first.is_lost()


@pytest.mark.parametrize("content", [b"", b'{"pid": 1, "tok', b"\0" * 512])
def test_half_a_beat_or_a_disk_that_does_not_answer_is_no_loss(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 60.0)
    with hold(tmp_path) as own:
        whole = (tmp_path / "lock").read_bytes()
        (tmp_path / "lock").write_bytes(content)
        own.confirm()
        (tmp_path / "lock").write_bytes(whole)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files")))
            own.confirm()


def test_all_processes_of_a_run_stop_when_its_folder_is_taken(data, tmp_path, forked_workers):
    """No restart follows, as the other run goes on."""
    run, made = tmp_path / "run", preset(data, "schedule.steps=100000", "eval.every=0", "log.every=1")

    def work():
        try:
            train(made, run, processes=2, restarts=3, device="cpu")
        except TakenOver:
            os._exit(3)

    process = forked(work)
    deadline = time.monotonic() + 60
    while not steps(run):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with hold(run, take_over=True):
        assert ended(process) == 3
        done, rows = steps(run), (run / "log.jsonl").read_bytes()
    time.sleep(0.2)
    assert steps(run) == done and (run / "log.jsonl").read_bytes() == rows


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("kind", ["file", "fifo", "device"])
def test_a_run_folder_is_a_folder(data, tmp_path, kind, resume):
    place = tmp_path / "place"
    if kind == "device":
        place.symlink_to("/dev/null")
    else:
        place.touch() if kind == "file" else os.mkfifo(place)
    with pytest.raises(InputError, match="is not a"):
        train(preset(data), place, resume=resume)


def rows_of(run):
    times = ("images_per_second", "stall", "seconds")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


@pytest.mark.parametrize("every", [(3, 5), (5, 3), (4, 7), (20, 3)], ids=str)
def test_the_rows_of_a_resumed_run_are_those_of_an_undisturbed_one(data, tmp_path, monkeypatch, every):
    """A row is the mean of the steps since the one before, whoever did them."""
    log, save = every
    made = preset(data, "schedule.steps=14", f"log.every={log}", f"checkpoint.every={save}", "eval.every=7")
    train(made, tmp_path / "whole")
    run, step, deaths = tmp_path / "run", Loop._step, [13, 8, 4]

    def die(loop):
        if loop.trainer.step == deaths[-1]:
            raise KeyboardInterrupt
        step(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", die)
        while deaths:
            with pytest.raises(KeyboardInterrupt):
                train(made, run, resume="auto")
            deaths.pop()
    train(made, run, resume="auto")
    assert rows_of(run) == rows_of(tmp_path / "whole")
    assert (run / "metrics.csv").read_text().count("\n") == (tmp_path / "whole/metrics.csv").read_text().count("\n")


def disturbed(data):
    """Rows of the log and checkpoints fall on different steps."""
    return preset(data, "schedule.steps=24", "checkpoint.every=5", "log.every=3", "eval.every=12", "data.workers=1")


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory, forked_workers):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    return outcome(train(disturbed(data), run, processes=2, device="cpu"))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_three_kills_of_two_processes_change_nothing(data, tmp_path, undisturbed, seed):
    """Weights, optimiser and random numbers to the last bit, and every row of the log but for times."""
    assert kill_three_times(disturbed(data), tmp_path / "run", seed) == undisturbed


@pytest.mark.slow
def test_a_resume_in_a_name_space_with_another_host_name(data, tmp_path, run_ccnet):
    run = tmp_path / "run"
    words = arguments(data, run, "schedule.steps=100000", "eval.every=0")
    with start(words) as first:
        wait_until(lambda: steps(run), first)
        first.kill()
        first.communicate()
    done = steps(run)[0]
    words = arguments(data, run, f"schedule.steps={done + 2}", "eval.every=0", "--resume")
    script = 'hostname elsewhere && exec "$@"'
    command = ["unshare", "-u", "sh", "-c", script, "sh", sys.executable, "-m"]
    other = subprocess.run(
        [*command, "ccnet_cli.cli", *words], capture_output=True, text=True, timeout=120, check=False
    )
    if "unshare" in other.stderr:
        pytest.skip("no name spaces here")
    assert other.returncode == 0, other.stderr
    assert steps(run)[0] == done + 2


# what lies in the place of a run's files


PLACES = ("lock", "checkpoints", "checkpoints/attempts.json", "log.jsonl", "preset.yaml", "metrics.csv", "last.pt")
PLACES += ("environment.json", "curves.png", "report.html", "best.json", "checkpoints/step_00000002.json")


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder"])
@pytest.mark.parametrize("name", PLACES)
def test_no_other_thing_takes_the_place_of_a_file(whole, tmp_path, name, kind):
    run, target = shutil.copytree(whole[0], tmp_path / "run"), tmp_path / "target"
    path = run / name
    if kind == "folder" and name == "checkpoints":
        pytest.skip("is one")
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
        if kind == "link":
            target.mkdir() if name == "checkpoints" else target.write_text("theirs")
    with pytest.raises(InputError) as refused:
        train(whole[1], run, resume="auto")
    assert name in str(refused.value)
    assert not target.exists() or target.is_dir() or target.read_text() == "theirs"
    assert not (target.is_dir() and list(target.iterdir()))


GARBAGE = [
    b"",
    b"\0\xff" * 50,
    b"[" * 5000,
    b"null",
    b'{"step": "x"}\n{"step": 1, "loss": "?"}',
    b'{"step_00000002": []}',
]


@pytest.mark.parametrize("name", ["lock", "checkpoints/attempts.json", "log.jsonl", "metrics.csv", "preset.yaml"])
def test_garbage_in_a_file_of_the_run_does_not_end_it(whole, tmp_path, name):
    for index, content in enumerate(GARBAGE):
        run = shutil.copytree(whole[0], tmp_path / f"run-{index}")
        (run / name).write_bytes(content)
        train(whole[1], run, resume="auto")
        assert steps(run)[0] == 3
        rows = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
        assert rows[-1] == 3


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of two steps, and the preset of one step more."""
    run = train(preset(data, "schedule.steps=2"), tmp_path_factory.mktemp("short") / "run")
    return run, preset(data, "schedule.steps=3", "eval.every=0")


def test_a_link_to_a_run_folder_is_that_folder(whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "link").symlink_to(run)
    train(whole[1], tmp_path / "link", resume="auto")
    assert steps(run)[0] == 3
    runfolder.check(run)


@pytest.mark.parametrize("name", ["../x", "a/b", "/abs", "..", ".", "", "n" * 300, "a\0b"])
def test_a_name_that_is_no_folder_below_runs_is_refused(data, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    made = preset(data, "schedule.steps=1").model_copy(update={"name": name})
    for resume in (None, "auto"):
        with pytest.raises(InputError, match="preset key name"):
            train(made, None, resume=resume)
    assert list(tmp_path.iterdir()) == []
    train(made, tmp_path / "run")


def test_a_name_of_a_pattern_is_no_pattern(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(preset(data, "schedule.steps=1"), tmp_path / "runs/other-1")
    made = preset(data, "schedule.steps=1").model_copy(update={"name": "*"})
    assert train(made, None, resume="auto").name.startswith("*-")
