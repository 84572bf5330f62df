"""Reading ahead and writing behind: order, bounds, and what becomes of an error on either side."""

import threading
import time

import pytest

from ccnet_cli.media.background import background_writer, prefetch


def test_items_are_loaded_in_order_and_no_more_than_allowed_before_they_are_wanted():
    loaded = []

    def load(item):
        loaded.append(item)
        return item * 10

    items = prefetch(load, range(8), 2)
    assert next(items) == 0
    time.sleep(0.05)
    assert loaded == [0, 1, 2]
    assert list(items) == [10, 20, 30, 40, 50, 60, 70]
    assert list(prefetch(load, [])) == []


def test_an_error_in_loading_comes_in_its_turn_and_nothing_is_loaded_for_one_who_left():
    loaded = []

    def load(item):
        loaded.append(item)
        return 1 // (item - 3)

    items = prefetch(load, range(9), 1)
    with pytest.raises(ZeroDivisionError):
        for _ in items:
            pass
    assert max(loaded) <= 4
    items = prefetch(loaded.append, range(100, 200), 1)
    next(items)
    items.close()
    assert max(loaded) <= 101


def test_calls_are_made_in_order_by_another_thread_before_the_block_ends():
    made = []
    with background_writer() as submit:
        for number in range(20):
            submit(lambda n: made.append((n, threading.get_ident())), number)
    assert [number for number, _ in made] == list(range(20))
    assert {thread for _, thread in made}.isdisjoint({threading.get_ident()})


def test_no_more_than_allowed_wait():
    gate, handed = threading.Event(), []

    def produce():
        with background_writer(2) as submit:
            for number in range(5):
                submit(gate.wait, 10)
                handed.append(number)

    thread = threading.Thread(target=produce)
    thread.start()
    time.sleep(0.1)
    assert handed == [0, 1]
    gate.set()
    thread.join()
    assert handed == list(range(5))


@pytest.mark.parametrize("late", [False, True], ids=["met by the next", "met at the end"])
def test_nothing_is_written_after_what_failed(late):
    made = []

    def write(number):
        if number == 2:
            raise OSError("full")
        made.append(number)

    with pytest.raises(OSError, match="full"), background_writer() as submit:
        for number in range(3 if late else 50):
            submit(write, number)
    assert made == [0, 1]


def test_an_error_of_the_block_waits_for_what_was_handed_over_and_yields_to_an_earlier_one():
    made = []

    def write(number):
        time.sleep(0.02)
        made.append(number)

    with pytest.raises(KeyError), background_writer(9) as submit:
        for number in range(4):
            submit(write, number)
        raise KeyError("the fifth cannot be read")
    assert made == [0, 1, 2, 3]

    def full():
        raise OSError("full")

    with pytest.raises(OSError, match="full"), background_writer() as submit:
        submit(full)
        raise KeyError("the next cannot be read")


def test_a_second_signal_gives_up_what_waits():
    made, gate = [], threading.Event()
    with pytest.raises(KeyboardInterrupt), background_writer(9) as submit:
        submit(gate.wait, 10)
        for number in range(5):
            submit(made.append, number)
        threading.Timer(0.05, gate.set).start()
        raise KeyboardInterrupt
    assert made == []
