"""What a call costs, by formula and as it is counted, against figures from elsewhere."""

import time
from itertools import cycle

import pytest
import torch

from ccnet_cli import ops
from ccnet_cli.bench import measure


def test_the_formula_gives_the_paper_s_figures():
    assert round(measure.formula((97, 97), 512, 1, 1), 2) == 8.27
    assert round(measure.formula((97, 97), 512, 2, 1), 1) == 16.5
    assert round(measure.formula((97, 97), 512, 1, 1, keys=97 * 97), 1) == 108.2
    assert measure.formula((97, 97), 512, 2, 4) == 4 * measure.formula((97, 97), 512, 2, 1)


def test_peak_memory_counts_what_lives_at_once_and_what_custom_operators_use():
    megabyte = 2**20

    def one_after_the_other():
        for _ in range(3):
            torch.empty(megabyte, dtype=torch.uint8)

    def at_once():
        return [torch.empty(megabyte, dtype=torch.uint8) for _ in range(3)]

    cpu = torch.device("cpu")
    assert measure.peak(one_after_the_other, cpu) == megabyte
    assert measure.peak(at_once, cpu) == 3 * megabyte
    x = torch.randn(1, 8, 16, 16)
    # the custom operator's result alone would be 8 kB; its attention has 32 entries for each pixel
    assert measure.peak(lambda: ops.criss_cross(x, x, x, "gemm"), cpu) >= 256 * (8 + 32) * 4


def test_bytes_are_those_of_every_tensor_of_a_pass():
    B, C, c, H, W = 2, 16, 2, 5, 7
    pixels = B * H * W
    x = out = value = pixels * C
    query = key = pixels * c
    # projections in and out, energies out, softmax in, aggregation in, residual in, result out
    entries = x + (query + key + value) + (query + key) + value + x + out
    assert measure.traffic((H, W), C, 1, B) * 1e9 == pytest.approx(4 * (entries + 2 * pixels * (H + W)))
    assert measure.traffic((H, W), C, 3, B, 2) * 1e9 == pytest.approx(3 * (2 * entries + 8 * pixels * (H + W)))
    assert measure.traffic((H, W), C, 1, B, keys=H * W) > measure.traffic((H, W), C, 1, B)


@pytest.mark.parametrize(
    ("size", "cache", "expected"), [(10, 0, 1), (10, 1, 2), (10, 10, 2), (10, 11, 3), (10, 95, 11), (100, 1, 2)]
)
def test_between_two_uses_of_an_input_the_others_fill_the_cache(size, cache, expected):
    count = measure.rotations(size, cache)
    assert count == expected and (count - 1) * size >= cache


def test_rates_are_work_over_typical_time(monkeypatch):
    times = cycle([1.0, 8.0, 2.0, 3.0, 2.0])
    calls = []

    def elapsed(call, device):
        calls.append(call())
        return next(times)

    monkeypatch.setattr(measure, "elapsed", elapsed)
    monkeypatch.setattr(measure, "COPIED", (4000, 0))
    monkeypatch.setattr(measure, "SIDE", (10, 0))
    cpu = torch.device("cpu")
    assert measure.copy_rate(cpu) == pytest.approx(2 * 4000 / 2e-3 / 1e9)
    assert measure.product_rate(cpu, torch.bfloat16) == pytest.approx(2000 / 2e-3 / 1e12)
    assert [x.dtype for x in calls] == [torch.float32] * 5 + [torch.bfloat16] * 5


def test_the_cpu_has_a_clock_and_no_cache_to_avoid():
    cpu = torch.device("cpu")
    assert measure.cache(cpu) == 0
    assert 5 <= measure.elapsed(lambda: time.sleep(0.005), cpu) < 60_000


@pytest.mark.gpu
def test_a_gpu_tells_time_by_its_own_events():
    device = torch.device("cuda")
    assert measure.cache(device) > 0
    # asynchronous: the clock of the host would see none of it
    assert measure.elapsed(lambda: torch.cuda._sleep(50_000_000), device) > 5
    assert measure.copy_rate(device) > 10 and measure.product_rate(device, torch.float32) > 0.1


def test_a_convolution_s_rate_is_what_it_computes_in_its_time(monkeypatch):
    monkeypatch.setattr(measure, "CONVOLVED", (8, 5))
    monkeypatch.setattr(measure, "rate", lambda call, work, device: (call(), 500 * work)[1])
    counted = measure.counted(lambda: measure.convolution_rate(torch.device("cpu"), torch.bfloat16))
    assert measure.convolution_rate(torch.device("cpu"), torch.float32) == counted / 2e9 > 0


def test_calls_take_turns_and_the_first_rounds_do_not_count(monkeypatch):
    order, clock = [], iter(range(100))
    monkeypatch.setattr(measure, "elapsed", lambda call, device: (call(), float(next(clock)))[1])
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    first, second = measure.alternate(calls, 3, torch.device("cpu"))
    assert order == ["a", "b"] * 4
    assert (first.median, first.least, first.greatest) == (4, 2, 6)
    assert (second.median, second.least, second.greatest) == (5, 3, 7)


def test_a_short_call_is_made_as_often_as_fills_a_turn_and_counts_once(monkeypatch):
    made = []
    counts = []

    def elapsed(call, device):
        before = len(made)
        call()
        counts.append(len(made) - before)
        # a call takes 2 ms
        return 2.0 * counts[-1]

    monkeypatch.setattr(measure, "elapsed", elapsed)
    (timing,) = measure.alternate([lambda: made.append(0)], 3, torch.device("cpu"), 25.0)
    # the first, the one that tells how often, and three turns of 26 ms
    assert counts == [1, 1, 13, 13, 13]
    assert (timing.median, timing.least, timing.greatest) == (2, 2, 2)
