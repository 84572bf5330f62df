"""Workers that fail, hang or are stopped: which error the supervisor raises, and how long that takes."""

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import ended, forked

from ccnet_cli import errors, parts
from ccnet_cli.errors import EnvironmentFailure, InputError, Interrupted, NonFiniteError, PeerLost
from ccnet_cli.models import network as models
from ccnet_cli.parallel import group as groups
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import CPU, Group, Limits, Worker, join_group, share_store
from ccnet_cli.parallel.supervisor import Outcome

pytestmark = pytest.mark.usefixtures("forked_workers")


def run(work, *arguments, processes=2, **options):
    """The answer or error of a supervised run, and the seconds that it took."""
    started = time.monotonic()
    try:
        answer = supervisor.run(work, arguments, processes, **options)
    except Exception as error:
        answer = error
    return answer, time.monotonic() - started


# What a worker gets and returns


def _environment(worker):
    assert worker.is_supervised
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    return [int(os.environ[name]) for name in names], groups.read_launch()


def test_rank_0_answers():
    variables, launch = run(_environment, processes=3)[0]
    assert variables == [0, 0, 3, 3, 0]
    assert (launch.rank, launch.world_size, launch.opens_store) == (0, 3, False)


EXTENSION = """
import sys
from ccnet_cli.parallel.group import CPU, join_group
from ccnet_cli.errors import notice

class Settings:
    answer = 6

def work(worker, settings):
    with join_group(CPU, supervised=worker.is_supervised) as group:
        notice(f"rank {group.rank}")
        return group.gather(group.rank + settings.answer)
"""


def test_spawned_workers_import_the_extensions_before_their_work(tmp_path, spawned_workers, monkeypatch, capfd):
    path = tmp_path / "parts_from_outside.py"
    path.write_text(EXTENSION)
    monkeypatch.setenv(parts.EXTEND, str(path))
    parts.extend_from_environment()
    extension = sys.modules["ccnet_extension_parts_from_outside"]
    assert run(extension.work, extension.Settings())[0] == [6, 7]
    assert capfd.readouterr().err == "ccnet: rank 0\n"


# Errors


def _fail(worker, kind):
    with join_group(CPU, supervised=worker.is_supervised) as group:
        if group.rank == 1:
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "exit":
                os._exit(0)
            if kind == "bug":
                raise ZeroDivisionError("a bug")
            if kind == "input":
                raise InputError("x.png", "missing", "copy it")
            if kind == "stop":
                raise Interrupted("run", "stopped", "continue", 15)
            raise NonFiniteError("step 3", "loss nan", "lower the rate")
        group.barrier()


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("input", InputError, "x.png: missing; copy it"),
        ("nan", NonFiniteError, "step 3: loss nan; lower the rate"),
        ("stop", Interrupted, "run: stopped; continue"),
        ("bug", RuntimeError, "ZeroDivisionError: a bug"),
        ("kill", EnvironmentFailure, "process 1 of this run: killed by SIGKILL; see if memory ran out"),
        ("exit", EnvironmentFailure, "process 1 of this run: ended without a word"),
    ],
)
def test_the_error_of_a_worker_is_raised(kind, error, words):
    answer, seconds = run(_fail, kind)
    assert type(answer) is error and words in str(answer), repr(answer)
    # it does not wait for the 60 s that a run has to end
    assert seconds < 30
    if kind == "stop":
        assert (answer.number, answer.exit_code) == (15, 143)


def _hang(worker, kind):
    with join_group(CPU, Limits(collective=1), worker.is_supervised) as group:
        if group.rank == 1:
            if kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1.5)
            raise InputError("x.png", "missing", "copy it")
        group.barrier()


def test_a_worker_that_does_not_answer_is_named_and_killed():
    answer, seconds = run(_hang, "stop")
    assert str(answer).startswith("process 1 of this run: does not answer; see what held it up"), repr(answer)
    # the time of a collective, and the time that others have for their report
    assert 1.8 < seconds < 30


def test_a_later_error_explains_a_lost_peer():
    answer, seconds = run(_hang, "late")
    assert type(answer) is InputError and seconds < 30, repr(answer)


def worker(rank, exit_code=1, error=None, at=0.0, ready=True):
    """A worker that has ended."""
    process = supervisor._Process(rank, None, SimpleNamespace(exitcode=exit_code))
    process.ready = ready
    if error or exit_code == 0:
        process.outcome, process.error = Outcome(at), error
    return process


BAD, NAN, FULL = InputError("a", "b", "c"), NonFiniteError("a", "b", "c"), EnvironmentFailure("disk", "full", "c")
LOST, LATE = (PeerLost(f"process {rank}", why, "c") for rank, why in ((1, "lost (Closed)"), (2, "lost (Timed out)")))
STOP = Interrupted("run", "stopped", "c", 10)
CAUSES = {
    "the first error": ([worker(0, error=NAN, at=2), worker(1, error=BAD, at=1)], [], 0, BAD),
    "an error before a lost peer": ([worker(0, error=LOST, at=1), worker(1, error=FULL, at=2)], [], 0, FULL),
    "a bug before a lost peer": ([worker(0, error=LOST), worker(1, error=RuntimeError("bug"), at=2)], [], 0, "bug"),
    "a signal before any error": ([worker(0, error=BAD, at=1), worker(1, error=STOP, at=2)], [15], 0, STOP),
    "an error though a signal came": ([worker(0, error=NAN), worker(1)], [15], 0, NAN),
    "a kill before an error": (
        [worker(0, error=BAD), worker(1, -9)],
        [],
        0,
        "process 1 of this run: killed by SIGKILL",
    ),
    "not our own kill": ([worker(0, error=BAD), worker(1, -9)], [], 1, BAD),
    "an end without a report": ([worker(0, error=LOST), worker(1)], [], 0, "process 1 of this run: ended without"),
    "a lost peer alone": ([worker(0, error=LOST, at=2), worker(1, error=LATE, at=3)], [], 0, LOST),
    "a silent worker": ([worker(0, error=LATE), worker(1, -9)], [], 1, "process 1 of this run: does not answer"),
    "a lost peer, others slow": ([worker(0, error=LOST), worker(1, -9)], [], 1, LOST),
    "a signal, nobody ready": ([worker(0, -9, ready=False), worker(1, -9)], [15], 2, "SIGTERM before its first step"),
    "a signal, nobody ends": ([worker(0, 0), worker(1, -9)], [2], 1, "this run: did not end within 7 s of SIGINT"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_of_several_failures_one_is_the_cause(case):
    workers, received, silent, expected = CAUSES[case]
    cause = supervisor._cause(workers, workers[len(workers) - silent :], received, Limits(shutdown=7))
    assert cause is expected or (isinstance(expected, str) and expected in str(cause)), (case, cause)
    if case == "a signal, nobody ready":
        assert type(cause) is Interrupted and cause.exit_code == 143


# Signals


@contextmanager
def signalled(number, *marks):
    """Send this process a signal once all marks exist."""

    def send():
        while not all(mark.exists() for mark in marks):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()


def _wait(worker, folder, ready_ranks, obeys):
    rank = int(os.environ["RANK"])
    group = Group(rank=rank, world_size=2)
    if rank not in ready_ranks:
        (folder / str(rank)).touch()
        time.sleep(60)
    with worker.signals(group) as stop_signal:
        (folder / str(rank)).touch()
        while not (obeys and stop_signal()):
            time.sleep(0.01)
        # a little later than the deadline of a supervisor that does not wait
        time.sleep(0.4)
        raise Interrupted(f"rank {rank}", "saved", "continue", stop_signal())


def stop(tmp_path, ready_ranks, obeys=True, shutdown=20.0, number=signal.SIGTERM):
    with signalled(number, tmp_path / "0", tmp_path / "1"):
        return run(_wait, tmp_path, ready_ranks, obeys, limits=Limits(shutdown=shutdown))


@pytest.mark.parametrize("number", errors.SIGNALS)
def test_workers_that_are_ready_have_time_to_save(tmp_path, number):
    answer, seconds = stop(tmp_path, (0, 1), number=number)
    assert isinstance(answer, Interrupted) and answer.why == "saved", repr(answer)
    assert answer.number == number and seconds < 10


@pytest.mark.parametrize("ready_ranks", [(), (0,), (1,)])
def test_unless_all_workers_are_ready_a_signal_ends_the_run_at_once(tmp_path, ready_ranks):
    """One worker that is ready cannot save: it would wait for the others in a collective."""
    answer, seconds = stop(tmp_path, ready_ranks)
    assert isinstance(answer, Interrupted) and answer.why == "stopped by SIGTERM before its first step", repr(answer)
    assert answer.exit_code == 143
    assert seconds < 5, f"{seconds:.1f} s, but rank {({0, 1} - set(ready_ranks)).pop()} had nothing to save"


def test_workers_that_do_not_obey_are_killed_after_the_time_to_shut_down(tmp_path):
    answer, seconds = stop(tmp_path, (0, 1), obeys=False, shutdown=1.0)
    assert type(answer) is EnvironmentFailure and answer.why == "did not end within 1 s of SIGTERM", repr(answer)
    assert 1 < seconds < 4


def _interrupted_elsewhere(worker, seconds):
    if os.environ["RANK"] == "1":
        raise Interrupted("run", "stopped", "continue", 15)
    time.sleep(seconds)


def test_when_one_worker_was_stopped_the_others_have_time_to_save(monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.2)
    limits = Limits(shutdown=1.5)
    assert 1 < run(_interrupted_elsewhere, 1.0, limits=limits)[1] < 1.5
    assert 1.5 < run(_interrupted_elsewhere, 60.0, limits=limits)[1] < 5


def _signal_myself(supervised, world_size, numbers, seconds):
    """The exit code of a process that gets these signals, that many seconds apart; 0 if it recorded the first."""

    def work():
        worker = Worker()
        worker.pipe = SimpleNamespace(send=lambda _: None) if supervised else None
        with worker.signals(Group(world_size=world_size)) as stop_signal:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(seconds)
            assert stop_signal() == numbers[0], stop_signal()

    return ended(forked(work))


def test_a_second_signal_ends_a_process_at_once_unless_it_is_the_launcher_s_echo():
    both = (signal.SIGUSR1, signal.SIGTERM)
    assert _signal_myself(False, 2, both[:1], 0.0) == 0
    assert _signal_myself(False, 2, both, 0.05) == 0
    for supervised, world_size, seconds in ((False, 2, 0.6), (False, 1, 0.05), (True, 2, 0.05)):
        code = _signal_myself(supervised, world_size, both, seconds)
        assert code == 143, (supervised, world_size, seconds, code)


def test_signals_are_handled_as_before_once_the_context_is_left():
    handlers = [signal.getsignal(number) for number in errors.SIGNALS]
    with Worker().signals(Group()) as stop_signal:
        assert [signal.getsignal(number) for number in errors.SIGNALS] != handlers
        assert stop_signal() == 0
    assert [signal.getsignal(number) for number in errors.SIGNALS] == handlers


def test_outside_the_main_thread_python_handles_no_signals():
    answers = []
    thread = threading.Thread(target=lambda: answers.append(run(_environment)[0]))
    thread.start()
    thread.join()
    assert answers[0][0] == [0, 0, 2, 2, 0]


# Restarts


def _fail_until(worker, attempts, kind):
    with join_group(CPU, supervised=worker.is_supervised) as group:
        if group.attempt < attempts and group.rank == 1:
            _raise(kind)
        group.barrier()
        return group.gather((group.rank, group.attempt))


def _raise(kind):
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise {"full": FULL, "bad": BAD, "bug": RuntimeError("bug")}[kind]


@pytest.mark.parametrize("kind", ["kill", "full"])
def test_a_run_restarts_as_often_as_allowed(kind, capfd):
    answer, _ = run(_fail_until, 2, kind, restarts=2)
    assert answer == [(0, 2), (1, 2)]
    lines = capfd.readouterr().err.splitlines()
    why = "process 1 of this run: killed by SIGKILL" if kind == "kill" else "disk: full"
    assert lines == [f"ccnet: warning: {why}; starting anew, {left} restarts left" for left in (2, 1)]
    assert type(run(_fail_until, 2, kind, restarts=1)[0]) is EnvironmentFailure


@pytest.mark.parametrize("kind", ["bad", "bug"])
def test_an_error_that_would_come_again_restarts_nothing(kind, capfd):
    assert type(run(_fail_until, 1, kind, restarts=2)[0]) is (InputError if kind == "bad" else RuntimeError)
    assert capfd.readouterr().err == ""


def test_a_run_that_was_asked_to_stop_is_not_restarted(tmp_path, capfd):
    with signalled(signal.SIGTERM, tmp_path / "0", tmp_path / "1"):
        answer, _ = run(_wait, tmp_path, (0, 1), False, limits=Limits(shutdown=0.5), restarts=3)
    assert "did not end" in str(answer) and capfd.readouterr().err == ""


# Independent workers


def _take_numbers(worker, count, deadly, kind):
    with share_store(CPU) as group, worker.signals(group):
        numbers = []
        while (number := group.store.add("next", 1)) <= count:
            time.sleep(0.02)
            if number == deadly:
                _raise(kind)
            numbers.append(number)
        return numbers, group.attempt


def test_independent_workers_share_the_work_and_a_dead_one_is_replaced(capfd):
    answers, _ = run(_take_numbers, 40, 7, "kill", restarts=1, independent=True)
    assert sorted(number for numbers, _ in answers for number in numbers) == sorted({*range(1, 41)} - {*_lost(answers)})
    assert 7 in _lost(answers) and sorted(attempt for _, attempt in answers) == [0, 1]
    assert "killed by SIGKILL; replaced" in capfd.readouterr().err


def _lost(answers):
    """What a dead worker did before its end: it told nobody."""
    return {*range(1, 41)} - {number for numbers, _ in answers for number in numbers}


def _die_or_wait(worker, seconds):
    with share_store(CPU) as group, worker.signals(group):
        if group.rank == 0 and group.attempt == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        return group.rank


def test_a_worker_that_dies_after_the_look_for_dead_ones_is_replaced_at_the_next(monkeypatch):
    """Meanwhile the time begins in which all have to end: it is over once nobody has failed."""
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.6)
    replace, missed = supervisor._replace, []

    def look(workers, start, left, limits):
        if not missed and any(worker.has_failed for worker in workers):
            missed.append(True)
            return left
        return replace(workers, start, left, limits)

    monkeypatch.setattr(supervisor, "_replace", look)
    answers, _ = run(_die_or_wait, 1.2, restarts=1, independent=True)
    assert missed and answers == [0, 1], repr(answers)


@pytest.mark.parametrize(("kind", "error"), [("kill", EnvironmentFailure), ("bad", InputError), ("bug", RuntimeError)])
def test_independent_workers_end_with_one_that_may_not_be_replaced(kind, error, capfd):
    assert type(run(_take_numbers, 400, 7, kind, restarts=0 if kind == "kill" else 3, independent=True)[0]) is error
    assert capfd.readouterr().err == ""


def _freeze_or_work(worker):
    with share_store(CPU) as group:
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        with worker.signals(group):
            return group.rank


def test_an_independent_worker_that_never_starts_is_not_waited_for():
    answer, _ = run(_freeze_or_work, limits=Limits(shutdown=1), restarts=1, independent=True)
    assert isinstance(answer, EnvironmentFailure) and "process 1 of this run: did not start" in str(answer)


def test_workers_end_with_their_supervisor(tmp_path, spawned_workers):
    process = forked(lambda: supervisor.run(_leave_id, (tmp_path,), 1))
    while not list(tmp_path.glob("*")):
        time.sleep(0.01)
    (worker,) = (int(path.name) for path in tmp_path.glob("*"))
    os.kill(process, signal.SIGKILL)
    ended(process)
    deadline = time.monotonic() + 5
    # a zombie has ended too: nobody may be there to reap it
    while _alive(worker):
        assert time.monotonic() < deadline, "the worker runs on"
        time.sleep(0.01)


def _leave_id(worker, folder):
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def _alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


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


def test_a_worker_that_dies_while_another_is_replaced_has_its_own_time(monkeypatch):
    """The first one's grace is over when its successor has been started."""
    workers = [SimpleNamespace(rank=rank, alive=True, has_failed=False, is_done=False, ready=True) for rank in (0, 1)]
    for worker in workers:
        worker.process, worker.outcome, worker.error = SimpleNamespace(sentinel=0), None, None
        worker.receive = lambda: None
    clock = iter(range(0, 1000))
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: 0.4 * next(clock))
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 3.0)
    monkeypatch.setattr(supervisor.connection, "wait", lambda *_, **__: None)
    rounds = []

    def replace(members, start, left, limits):
        rounds.append([worker.rank for worker in members if worker.has_failed])
        replaced = [worker for worker in members if worker.has_failed]
        for worker in replaced:
            worker.has_failed, worker.alive = False, True
        # the other one dies as soon as this one is back
        if len(rounds) < 6:
            other = members[len(rounds) % 2]
            other.has_failed, other.alive = True, False
        else:
            for worker in members:
                worker.alive, worker.is_done = False, True
        return left - len(replaced)

    monkeypatch.setattr(supervisor, "_replace", replace)
    for worker in workers:
        worker.process.kill = worker.process.join = lambda: None
    monkeypatch.setattr(supervisor, "_cause", lambda *_: "gave up")
    assert supervisor._watch(workers, [], Limits(), None, 100) is None
    assert len(rounds) >= 6
