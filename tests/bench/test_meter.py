"""What a call costs, by formula and as it is counted, against figures from elsewhere."""

import time
from itertools import cycle

import pytest
import torch

from ccnet_cli import ops
from ccnet_cli.bench import meter
from ccnet_cli.bench.meter import Meter
from ccnet_cli.bench.request import Run, Work

CPU = torch.device("cpu")


def test_the_formula_gives_the_paper_s_figures():
    assert round(Work(recurrence=1).gflop, 2) == 8.27
    assert round(Work().gflop, 1) == 16.5
    assert Work().non_local() == Work((97, 97), 512, 1, 1, keys=97 * 97)
    assert round(Work().non_local().gflop, 1) == 108.2
    assert Work(batch=4).gflop == 4 * Work().gflop


def test_peak_memory_counts_what_lives_at_once_and_what_custom_operators_use():
    megabyte = 2**20

    def one_after_the_other():
        for _ in range(3):
            torch.empty(megabyte, dtype=torch.uint8)

    def at_once():
        return [torch.empty(megabyte, dtype=torch.uint8) for _ in range(3)]

    assert meter.peak_bytes(one_after_the_other, CPU) == megabyte and Meter(CPU).peak(one_after_the_other) == 1
    assert meter.peak_bytes(at_once, CPU) == 3 * megabyte
    x = torch.randn(1, 8, 16, 16)
    # the custom operator's result alone would be 8 kB; its attention has 32 entries for each pixel
    assert meter.peak_bytes(lambda: ops.criss_cross(x, x, x, "gemm"), CPU) >= 256 * (8 + 32) * 4


def test_bytes_are_those_of_every_tensor_of_a_pass():
    B, C, c, H, W = 2, 16, 2, 5, 7
    pixels = B * H * W
    x = out = value = pixels * C
    query = key = pixels * c
    # projections in and out, energies out, softmax in, aggregation in, residual in, result out
    entries = x + (query + key + value) + (query + key) + value + x + out
    assert Work((H, W), C, 1, B).gbytes(4) * 1e9 == pytest.approx(4 * (entries + 2 * pixels * (H + W)))
    assert Work((H, W), C, 3, B).gbytes(2) * 1e9 == pytest.approx(3 * (2 * entries + 8 * pixels * (H + W)))
    # every pixel's weights are written and read
    more = 2 * 4 * pixels * (H * W - H - W)
    assert Work((H, W), C, 3, B).non_local().gbytes(4) * 1e9 == pytest.approx(
        Work((H, W), C, 1, B).gbytes(4) * 1e9 + more
    )


@pytest.mark.parametrize(
    ("size", "cache", "expected"), [(10, 0, 1), (10, 1, 2), (10, 10, 2), (10, 11, 3), (10, 95, 11), (100, 1, 2)]
)
def test_between_two_uses_of_an_input_the_others_fill_the_cache(size, cache, expected):
    count = meter.count_inputs(size, cache)
    assert count == expected and (count - 1) * size >= cache


def test_rates_are_work_over_typical_time(monkeypatch):
    times = cycle([1.0, 8.0, 2.0, 3.0, 2.0])
    calls = []

    def time_call(self, call):
        calls.append(call())
        return next(times)

    monkeypatch.setattr(Meter, "time_call", time_call)
    monkeypatch.setattr(meter, "COPY_BYTES", (4000, 0))
    monkeypatch.setattr(meter, "PRODUCT_SIDE", (10, 0))
    assert Meter(CPU).copy_rate() == pytest.approx(2 * 4000 / 2e-3 / 1e9)
    assert Meter(CPU).product_rate(torch.bfloat16) == pytest.approx(2000 / 2e-3 / 1e12)
    assert [x.dtype for x in calls] == [torch.float32] * 5 + [torch.bfloat16] * 5


def test_the_cpu_has_a_clock_and_no_cache_to_avoid():
    assert Meter(CPU).cache_bytes() == 0
    assert 5 <= Meter(CPU).time_call(lambda: time.sleep(0.005)) < 60_000


@pytest.mark.gpu
def test_a_gpu_tells_time_by_its_own_events():
    gpu = Meter(torch.device("cuda"))
    assert gpu.cache_bytes() > 0
    # asynchronous: the clock of the host would see none of it
    assert gpu.time_call(lambda: torch.cuda._sleep(50_000_000)) > 5
    assert gpu.copy_rate() > 10 and gpu.product_rate(torch.float32) > 0.1


def test_torch_has_its_threads_again_whatever_came_between():
    before = torch.get_num_threads()
    with meter.open_meter(Run("cpu", threads=before + 2)) as made:
        assert made.threads == torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), meter.open_meter(Run("cpu", threads=before + 1)):
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_convolution_s_rate_is_what_it_computes_in_its_time(monkeypatch):
    monkeypatch.setattr(meter, "CONVOLUTION", (8, 5))
    monkeypatch.setattr(Meter, "rate", lambda self, call, work: (call(), 500 * work)[1])
    counted = meter.count_operations(lambda: Meter(CPU).convolution_rate(torch.bfloat16))
    assert Meter(CPU).convolution_rate(torch.float32) == counted / 2e9 > 0


def test_calls_take_turns_and_the_first_rounds_do_not_count(monkeypatch):
    order, clock = [], iter(range(100))
    monkeypatch.setattr(Meter, "time_call", lambda self, call: (call(), float(next(clock)))[1])
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    first, second = Meter(CPU, repeats=3).alternate(calls).values()
    assert order == ["a", "b"] * 4
    assert (first.median, first.least, first.greatest) == (4, 2, 6)
    assert (second.median, second.least, second.greatest) == (5, 3, 7)


def test_a_short_call_is_made_as_often_as_fills_a_turn_and_counts_once(monkeypatch):
    made = []
    counts = []

    def time_call(self, call):
        before = len(made)
        call()
        counts.append(len(made) - before)
        # a call takes 2 ms
        return 2.0 * counts[-1]

    monkeypatch.setattr(Meter, "time_call", time_call)
    (timing,) = Meter(CPU, repeats=3).alternate({"a": lambda: made.append(0)}, 25.0).values()
    # the first, the one that tells how often, and three turns of 26 ms
    assert counts == [1, 1, 13, 13, 13]
    assert (timing.median, timing.least, timing.greatest) == (2, 2, 2)
