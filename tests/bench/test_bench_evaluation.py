"""What the benchmark of an evaluation says, and that its ways are the same evaluation; never how fast they are."""

import json
import math
import mmap

import numpy as np
import pytest
import torch

from ccnet_cli import cli
from ccnet_cli.bench import evaluation as bench
from ccnet_cli.bench.request import Run
from ccnet_cli.inference import scores

SIZES = [(40, 56), (24, 90)]
SMALL = {"sizes": SIZES, "run": Run("cpu", threads=1, repeats=2), "classes": 5, "tile": (32, 32)}


def test_every_way_has_a_row_for_every_size_and_mode():
    threads = torch.get_num_threads()
    report = bench.measure(**SMALL)
    assert torch.get_num_threads() == threads
    rows = report.values["rows"]
    keys = [(row["size"], row["mode"], row["name"]) for row in rows]
    ways = ["official", "torch", "numba"]
    assert keys == [(size, mode, way) for size in SIZES for mode in bench.MODES for way in ways]
    for index, row in enumerate(rows):
        assert 0 < row["least"] <= row["median"] <= row["greatest"] < math.inf
        assert row["memory"] is None or row["memory"] >= 0
        official = rows[index - index % 3]
        assert row["ratio"] == pytest.approx(official["median"] / row["median"])
    assert (report.values["threads"], report.values["repeats"]) == (1, 2)


@pytest.mark.parametrize("tile", [None, (24, 32)])
def test_the_official_way_counts_every_valid_pixel_once(tile):
    label = np.random.default_rng(0).integers(0, 3, (41, 57), dtype=np.uint8)
    label[:5] = 255
    network = bench.FixedScores(3)
    with torch.inference_mode():
        counts = bench.official(network, torch.zeros(1, 3, 41, 57), label, 3, tile)
    assert counts.sum(1).tolist() == [int((label == value).sum()) for value in range(3)]
    assert (counts.sum(0) > 0).all()


def test_a_way_that_counts_otherwise_is_not_timed(monkeypatch):
    compared = scores.Scores.compare

    def wrong(self, label, *rest):
        return compared(self, np.roll(label, 1), *rest)

    monkeypatch.setattr(scores.Scores, "compare", wrong)
    with pytest.raises(RuntimeError, match="torch counts otherwise"):
        bench.measure(**SMALL)


def test_memory_is_what_the_process_has_at_the_peak():
    """64 MiB that are there during the call alone; None where the system does not say."""

    def touch():
        # not from the heap, which may have as much to spare
        np.frombuffer(mmap.mmap(-1, 64 << 20), np.uint8)[:] = 1

    added = bench.resident(touch)
    assert added is None or 60 < added < 100


def test_the_command_prints_a_table_or_json(capsys):
    words = ["bench", "eval", "--sizes", "40x56", "--tile", "32x32", "--classes", "3", "--repeats", "1"]
    with pytest.raises(SystemExit, match="0"):
        cli.main(words)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("official", "numba", "sliding", "whole", "ratio"))
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--json", "-"])
    report = json.loads(capsys.readouterr().out)
    assert report["rows"][0].keys() == {"size", "mode", "name", "median", "least", "greatest", "ratio", "memory"}
    assert report["rows"][3]["size"] == [40, 56] and report["tile"] == [32, 32]
