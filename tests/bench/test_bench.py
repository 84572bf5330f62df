"""What the benchmark says and how it counts; never how fast anything is."""

import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ccnet_cli import ops
from ccnet_cli.bench import alternatives, meter
from ccnet_cli.bench import attention as bench
from ccnet_cli.bench.report import Report
from ccnet_cli.bench.request import Run, Work
from ccnet_cli.errors import InputError
from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross
from ccnet_cli.ops import reference

WORK, RUN = Work((5, 7), 16, 2, 2), Run("cpu", threads=1, repeats=2)


def measured(work: Work = WORK, run: Run = RUN, **more) -> Report:
    return bench.measure(work, run, **more)


def shared(channels: int = 16) -> CrissCrossAttention:
    torch.manual_seed(0)
    attention = CrissCrossAttention(channels).double()
    attention.gamma.data.fill_(0.7)
    return attention


def test_every_row_is_there_with_positive_figures():
    threads = torch.get_num_threads()
    report = measured()
    assert torch.get_num_threads() == threads
    rows = {row["name"]: row for row in report.values["rows"]}
    assert "numba" in bench.names("cuda")
    assert tuple(rows) == bench.names() == (*ops.implementations(), "official", "non-local", "floor")
    for row in rows.values():
        for timing in (row["forward"], row["both"]):
            assert 0 < timing.least <= timing.median <= timing.greatest < math.inf
        for part in ("forward", "both"):
            assert row[f"{part}_ratio"] == pytest.approx(row[part].median / rows["reference"][part].median)
        assert row["what"] == bench.DESCRIPTIONS[row["name"]]
        # the formula counts biases and each position once; torch the products that ran, both arms whole
        assert row["counted"] > 0 and 0.8 < row["gflop"] / row["counted"] < 1.2
        assert 0 < row["forward_memory"] <= row["both_memory"]
        assert row["bandwidth"] * row["forward"].median == pytest.approx(1000 * row["gbytes"])
        assert row["rate"] * row["forward"].median == pytest.approx(row["gflop"])
        work = WORK.non_local() if row["name"] == "non-local" else WORK
        assert (row["gflop"], row["gbytes"]) == (work.gflop, work.gbytes(4))
    assert report.values["copy"] > 0 and report.values["product"] > 0
    # at least the result itself, and all the gradients
    assert rows["gemm"]["forward_memory"] * 2**20 >= 2 * 16 * 35 * 4
    mapping = json.loads(json.dumps(report.to_mapping(), allow_nan=False))
    expected = {"size": [5, 7], "channels": 16, "recurrence": 2, "batch": 2, "repeats": 2, "device": "cpu"}
    expected |= {"threads": 1, "torch": torch.__version__, "precision": "fp32", "inputs": 1}
    assert mapping.items() >= expected.items() and mapping.keys() - expected.keys() == {"copy", "product", "rows"}
    assert set(mapping["rows"][0]["forward"]) == {"median", "least", "greatest"}


def test_rows_can_be_chosen_and_the_reference_stays():
    report = measured(Work((5, 7), 16, 1), implementations=["floor", "gemm"])
    assert [row["name"] for row in report.values["rows"]] == ["reference", "gemm", "floor"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_measured_as_in_training(precision, monkeypatch):
    seen = []
    whole = RecurrentCrissCross.forward
    monkeypatch.setattr(
        RecurrentCrissCross,
        "forward",
        lambda self, x: seen.append((x.dtype, torch.is_autocast_enabled("cpu"))) or whole(self, x),
    )
    rows = measured(precision=precision).values["rows"]
    assert set(seen) == {(bench.PRECISIONS[precision], True)}
    assert [row["name"] for row in rows] == list(bench.names("cpu", precision))
    assert rows[1]["gbytes"] == WORK.gbytes(2) < WORK.gbytes(4)


def test_inputs_take_turns_where_a_cache_would_hold_them(monkeypatch):
    """A second-level cache of 3 inputs' size: each call meets another input than the 3 before it."""
    seen = []
    whole = RecurrentCrissCross.forward
    monkeypatch.setattr(
        RecurrentCrissCross,
        "forward",
        lambda self, x: seen.append((torch.is_grad_enabled(), x.data_ptr())) or whole(self, x),
    )
    monkeypatch.setattr(meter.Meter, "cache_bytes", lambda self: 3 * 4 * 2 * 16 * 35)
    report = measured(run=Run("cpu", 1, 6), implementations=["floor"])
    assert report.values["inputs"] == 4
    for gradients in (False, True):
        pointers = [pointer for wanted, pointer in seen if wanted == gradients]
        assert all(len(set(pointers[at : at + 4])) == 4 for at in range(len(pointers) - 3)) and len(pointers) > 6


@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 7), (7, 1), (5, 6)])
@torch.no_grad()
def test_the_official_formulation_is_criss_cross_attention(H, W, recurrence):
    attention, x = shared(), torch.randn(2, 16, H, W, dtype=torch.float64)
    expected = RecurrentCrissCross(attention, recurrence)(x)
    assert (alternatives.Official(attention, recurrence)(x) - expected).abs().max() < 1e-12
    assert (expected - x).abs().max() > 1e-2


@torch.no_grad()
def test_the_non_local_block_attends_to_every_pixel():
    attention, x = shared(), torch.randn(2, 16, 3, 4, dtype=torch.float64)
    query, key, value = attention.project(x)
    weights = torch.einsum("bchw,bcyx->bhwyx", query, key).flatten(3).softmax(-1).view(2, 3, 4, 3, 4)
    expected = 0.7 * torch.einsum("bhwyx,bcyx->bchw", weights, value) + x
    torch.testing.assert_close(alternatives.NonLocal(attention)(x), expected)


def test_the_floor_computes_the_products_and_no_more():
    floor = alternatives.Floor(Work((5, 7), 16, 1, 2), torch.device("cpu"))
    out = floor.forward()
    projected = (floor.x_BHWC @ floor.weight[:, :, 0, 0].T).permute(0, 3, 1, 2)
    query, key, value = projected.split([2, 2, 16], dim=1)
    expected = reference.aggregate(reference.affinity(query, key, False), value)
    torch.testing.assert_close(out.permute(0, 3, 1, 2), expected)
    with FlopCounterMode(display=False) as forward:
        floor.forward()
    with FlopCounterMode(display=False) as both:
        floor.both()
    assert forward.get_total_flops() == 2 * 2 * 35 * (16 * 20 + 12 * 18)
    assert both.get_total_flops() == 3 * forward.get_total_flops()


def test_the_floor_s_backward_products_are_the_gradients_without_a_softmax():
    floor = alternatives.Floor(Work((3, 4), 8, 1, 2), torch.device("cpu"))
    out = floor.forward().clone().permute(0, 3, 1, 2)
    floor.both()
    projected = (floor.x_BHWC @ floor.weight[:, :, 0, 0].T).permute(0, 3, 1, 2)
    query, key, value = projected.split([1, 1, 8], dim=1)
    pull = reference.affinity(out, value, False)
    expected = reference.aggregate(pull, key), reference.scatter(pull, query), reference.scatter(pull, out)
    got = floor.gradient.permute(0, 3, 1, 2).split([1, 1, 8], dim=1)
    torch.testing.assert_close(tuple(got), expected, rtol=1e-4, atol=0)


def test_a_wrong_formulation_is_not_timed(monkeypatch):
    wrong = alternatives.Official.forward
    monkeypatch.setattr(alternatives.Official, "forward", lambda self, x: wrong(self, x) * 1.01)
    with pytest.raises(RuntimeError, match="official differs from the reference"):
        measured()


def test_results_are_compared_each_on_its_own_scale():
    large, small = torch.tensor([1.0, -1000.0]), torch.tensor([1.0, 2.0])
    meter.require_equal("same", [large + 0.1, small + 1e-4], [large, small], 1e-3)
    for got in ([large * 1.01, small], [large, small * 1.01], [large, small * float("nan")]):
        with pytest.raises(RuntimeError, match="differs"):
            meter.require_equal("other", got, [large, small], 1e-3)


def test_what_cannot_be_measured_is_refused_in_one_line():
    with pytest.raises(InputError, match="fastest") as caught:
        measured(implementations=["fastest"])
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="non-local block needs") as caught:
        measured(Work((4000, 4000), 16))
    assert "--implementation gemm" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="tpu"):
        measured(run=Run("tpu"))
