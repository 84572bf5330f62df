"""Who is to blame for a task, which process counts as frozen, and who may join."""

import socket
import threading
import time
from contextlib import contextmanager
from multiprocessing.connection import Client

import pytest

from ccnet_cli.inference import dispatch, task_queue
from ccnet_cli.inference.dispatch import Dispatcher
from ccnet_cli.inference.task_queue import TaskQueue


class Process:
    """A process as the dispatcher sees it: what it was handed, and what it says."""

    def __init__(self, dispatcher):
        self.pipe = Client(dispatcher.address, authkey=dispatcher.key)
        self.say(name="process")

    def say(self, **message):
        task_queue.send(self.pipe, message)

    def take(self, count):
        tasks = []
        while len(tasks) < count:
            assert self.pipe.poll(10), tasks
            message = task_queue.json.loads(self.pipe.recv_bytes())
            tasks += [message] if "index" in message else []
        assert all(task.get("retried", False) or not task.get("again") for task in tasks)
        return [(task["index"], task.get("again", False)) for task in tasks]

    def die(self, *busy, done=()):
        for index in busy:
            self.say(begin=index)
        for index in done:
            self.say(begin=index)
            self.say(end=index)
        self.pipe.close()


@contextmanager
def dispatching(count, **options):
    results = []
    tasks = iter([{"index": index} for index in range(count)])
    dispatcher = Dispatcher(tasks, lambda task, result: results.append((task["index"], result is None)), **options)
    dispatcher.start()
    try:
        yield dispatcher, results
    finally:
        dispatcher.stop()
        dispatcher.close()


def wait_for(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_dead_process_only_held_is_not_to_blame():
    with dispatching(3) as (dispatcher, results):
        first = Process(dispatcher)
        assert first.take(3) == [(0, False), (1, False), (2, False)]
        # it works on 0; 1 is read and waits
        first.die(0, done=[1])
        second = Process(dispatcher)
        assert second.take(1) == [(0, True)]
        # before it has begun
        second.die()
        third = Process(dispatcher)
        assert third.take(1) == [(0, True)]
        assert results == []
        third.die(0)
        fourth = Process(dispatcher)
        assert fourth.take(2) == [(1, False), (2, False)]
        assert results == [(0, True)]
        fourth.say(index=1)
        fourth.say(index=2)
        fourth.say(left=True)
        wait_for(lambda: len(results) == 3)
        assert results[1:] == [(1, False), (2, False)]


@pytest.mark.parametrize("remote", [False, True])
def test_strangers_that_connect_and_say_nothing_keep_nobody_waiting(remote):
    with dispatching(1, remote=remote) as (dispatcher, results):
        address = ("127.0.0.1", dispatcher.address[1]) if remote else dispatcher.address
        strangers = [socket.socket(socket.AF_INET if remote else socket.AF_UNIX) for _ in range(3)]
        for stranger in strangers:
            stranger.connect(address)
        # one that stops in the middle of a message
        strangers[0].send(b"\0\0")
        joined = []
        thread = threading.Thread(target=lambda: joined.append(TaskQueue(address, dispatcher.key, "x")), daemon=True)
        thread.start()
        thread.join(8)
        assert joined
        (run,) = (next(run) for run in [joined[0].runs(int)])
        (task,) = ([each, joined[0].send({"index": 0})][0] for each in run)
        assert task == {"index": 0}
        wait_for(lambda: results == [(0, False)])
        joined[0].send({"left": True})
        for stranger in strangers:
            stranger.close()


def test_a_stranger_with_another_key_is_sent_away():
    with dispatching(1) as (dispatcher, _), pytest.raises(dispatch.AuthenticationError):
        TaskQueue(dispatcher.address, b"another", "x")


def test_a_process_that_loads_for_longer_than_an_image_may_take_is_not_frozen(capfd):
    with dispatching(1, task_seconds=0.2) as (dispatcher, results):
        process = Process(dispatcher)
        assert process.take(1) == [(0, False)]
        time.sleep(0.7)
        process.say(begin=0)
        process.say(index=0)
        process.say(left=True)
        wait_for(lambda: results == [(0, False)])
    assert capfd.readouterr().err == ""


def test_time_in_which_the_dispatcher_itself_stood_still_does_not_count(monkeypatch, capfd):
    monkeypatch.setattr(dispatch, "SILENCE_SECONDS", 2.0)
    paused = []

    def tasks():
        yield {"index": 0}
        # the next source takes long to come
        time.sleep(4)
        paused.append(True)
        yield {"index": 1}

    results = []
    dispatcher = Dispatcher(tasks(), lambda task, result: results.append(task["index"]))
    dispatcher.start()
    process = Process(dispatcher)
    assert process.take(2) == [(0, False), (1, False)] and paused
    process.say(index=0)
    process.say(index=1)
    process.say(left=True)
    dispatcher.close()
    assert results == [0, 1] and "sign of life" not in capfd.readouterr().err
