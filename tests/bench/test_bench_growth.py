"""The table of growth: what it compares, its constants and its picture; never how fast anything is."""

import json

import numpy as np
import pytest
import torch

from ccnet_cli import cli
from ccnet_cli.bench import alternatives, growth
from ccnet_cli.bench.meter import Meter
from ccnet_cli.bench.report import Spread
from ccnet_cli.bench.request import Run
from ccnet_cli.errors import InputError
from ccnet_cli.figures import charts
from ccnet_cli.media import images

SIZES = [(5, 7), (9, 4)]
RUN = Run("cpu", threads=1, repeats=1)


def test_the_non_local_core_is_attention_over_all_pixels():
    query, key, value = (torch.randn(2, n, 3, 5, dtype=torch.float64) for n in (4, 4, 6))
    expected = torch.empty_like(value)
    for b in range(2):
        for y in range(3):
            for x in range(5):
                energy = torch.einsum("c,chw->hw", query[b, :, y, x], key[b])
                expected[b, :, y, x] = (value[b] * (energy.exp() / energy.exp().sum())).sum((1, 2))
    torch.testing.assert_close(alternatives.non_local(query, key, value), expected)


def test_constants_and_ratios_are_of_the_medians(monkeypatch):
    # a round goes through all sizes of one block, then of the other
    spreads = [Spread(median, 1, 9) for median in (2.0, 4.0, 6.0, 12.0)]
    monkeypatch.setattr(Meter, "alternate", lambda self, calls, *_: dict(zip(calls, spreads, strict=True)))
    monkeypatch.setattr(Meter, "peak", lambda self, call: call().numel())
    threads = torch.get_num_threads()
    report = growth.measure(SIZES, RUN, 8)
    assert torch.get_num_threads() == threads and report.values["threads"] == 1
    rows = report.values["rows"]
    assert [(row["size"], row["name"]) for row in rows] == [
        (size, name) for size in SIZES for name in (growth.CRISS_CROSS, growth.NON_LOCAL)
    ]
    for row in rows:
        (H, W), other = row["size"], row["name"] == growth.NON_LOCAL
        pairs = (H * W) ** 2 if other else H * W * (H + W)
        assert row["time"].median == 2 * (3 if other else 1) * (2 if row["size"] == SIZES[1] else 1)
        assert row["constant"] * pairs == pytest.approx(1e6 * row["time"].median)
        # without the output's four bytes a number
        assert row["memory"] == 8 * H * W - 8 * H * W * 4 / 2**20
        assert row["memory_constant"] * pairs == pytest.approx(1e6 * row["memory"])
        assert (row["time_ratio"], row["memory_ratio"]) == ((3, 1) if other else (1, 1))


def test_a_map_too_large_for_a_non_local_block_has_one_row(monkeypatch, capsys):
    def refuse(self, work, fix):
        if work.size == (9, 4):
            raise InputError("size", "needs 9 GiB", "")

    monkeypatch.setattr(Meter, "check_memory", refuse)
    rows = growth.measure(SIZES, RUN, 8).values["rows"]
    assert [row["size"] for row in rows] == [(5, 7), (5, 7), (9, 4)]
    assert "without non-local: needs 9 GiB" in capsys.readouterr().err


def test_the_command_prints_writes_and_draws(tmp_path, capsys):
    picture, mapping = tmp_path / "g.png", tmp_path / "g.json"
    words = ["bench", "growth", "--sizes", "5x7", "--sizes", "12x12", "--channels", "16", "--repeats", "1"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--plot", str(picture), "--json", str(mapping)])
    assert stop.value.code == 0 and "non-local" in capsys.readouterr().out
    assert len(json.loads(mapping.read_text())["rows"]) == 4
    drawn = images.read_image(picture)
    for colour in charts.COLOURS[:2]:
        assert (drawn == np.array(list(bytes.fromhex(colour[1:]))[::-1], np.uint8)).all(2).sum() > 100
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--plot", str(tmp_path / "g.jpg")])
    assert stop.value.code == 2 and "end the name in .png" in capsys.readouterr().err
