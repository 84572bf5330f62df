"""What `ccnet bench data` compares, and that it does; never how fast anything is."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bad_inputs import photograph
from runs import make_horizons, preset

from ccnet_cli import cli
from ccnet_cli.bench import data as bench
from ccnet_cli.bench.request import Run
from ccnet_cli.datasets import transforms
from ccnet_cli.datasets.training import Item, collate, to_device
from ccnet_cli.media import pixels

RUN = Run("cpu", threads=1, repeats=2)
SMALL = {"crop": (33, 49), "workers": (0, 1), "batch": 2}


def test_every_way_is_timed_for_every_size():
    threads = torch.get_num_threads()
    report = bench.measure(None, ((40, 64), (20, 30)), RUN, **SMALL)
    assert torch.get_num_threads() == threads
    tables = report.values["tables"]
    assert [table["size"] for table in tables] == [(40, 64), (20, 30)] and report.values["crop"] == (33, 49)
    for table in tables:
        assert [row["name"] for row in table["rows"]] == ["official", "whole", "sample", "arrived", "decoding"]
        official = table["rows"][0]["time"].median
        for row in table["rows"]:
            time = row["time"]
            assert 0 < time.least <= time.median <= time.greatest < math.inf
            assert row["ratio"] == pytest.approx(time.median / official)
            assert row["what"] == bench.DESCRIPTIONS[row["name"]]
        assert [rate["workers"] for rate in table["rates"]] == [0, 1]
        assert all(0 < rate["least"] <= rate["median"] <= rate["greatest"] < math.inf for rate in table["rates"])
        assert table["bytes"] > 100
    mapping = json.loads(json.dumps(report.to_mapping(), allow_nan=False))
    assert mapping["threads"] == 1 and mapping["tables"][1]["size"] == [20, 30]


def test_a_preset_s_own_data_are_measured(tmp_path, monkeypatch):
    given = preset(make_horizons(tmp_path / "data"), "data.fit=[80, 60]", "data.photometric=true")
    monkeypatch.setattr(bench, "make_photograph", None)
    values = bench.measure(given, [(20, 30)], RUN, workers=(0,), batch=2).values
    (table,) = values["tables"]
    assert table["size"] == (40, 56) and values["crop"] == (32, 48) and values["preset"] == given.name
    first = [tmp_path / f"data/{kind}/train/{index}.png" for kind in ("images", "labels") for index in range(3)]
    assert table["bytes"] == pytest.approx(sum(path.stat().st_size for path in first) / 3)


def test_rates_are_of_the_batches_after_the_first_ones(monkeypatch):
    """A loader that starts slowly, then takes a second for each batch: with workers, several batches come together."""

    def arrivals():
        now = 0.0
        for index in itertools.count():
            now += 1.0 if index >= 2 * max(workers, 1) else 100.0
            yield now

    for workers in (0, 2):
        clock = arrivals()
        monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda clock=clock: next(clock)))
        values = bench.measure(None, [(40, 64)], RUN, **SMALL | {"workers": (workers,)}).values
        assert values["tables"][0]["rates"] == [{"workers": workers, "median": 2, "least": 2, "greatest": 2}]


@pytest.mark.parametrize("crop", [(16, 20), (40, 50)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_authors_way_is_ours_where_sizes_come_out_even(scale, crop, tmp_path):
    image, mean = photograph(24, 30), (10.0, 20.0, 30.5)
    label = np.random.default_rng(0).integers(0, 19, (24, 30)).astype(np.uint8)
    for seed in range(8):
        random = np.random.default_rng(seed)
        got, ids = bench.official(image, label, scale, crop, random, mean)
        random = np.random.default_rng(seed)
        size = pixels.scaled_size(label.shape, scale)
        part, expected = transforms.cut(image, label, size, crop, random)
        height, width = expected.shape
        left = 0
        if random.integers(2):
            part, expected = transforms.mirror(part, expected)
            left = crop[1] - width
        part, expected = transforms.pad(part, expected, crop, left, 255)
        item = Item(part, expected, (height, left, left + width), "")
        wanted, _, _ = next(to_device([collate([item])], mean, (1, 1, 1), torch.device("cpu")))
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_allclose(got, wanted[0], atol=1e-4)


@pytest.mark.parametrize("what", ["image", "label"])
def test_a_wrong_crop_is_not_timed(what, monkeypatch):
    right = getattr(transforms, f"{what}_part")

    def wrong(source, size, *window):
        # what is not scaled is not wrong: as if each part began a pixel early
        return right(source, size, *window) if size == source.shape[:2] else np.roll(right(source, size, *window), 1, 0)

    monkeypatch.setattr(transforms, f"{what}_part", wrong)
    with pytest.raises(RuntimeError, match="not timed"):
        bench.measure(None, [(40, 64)], RUN, **SMALL | {"workers": ()})


def test_made_pictures_are_as_large_as_a_street_s():
    """A PNG of 1024x2048 pixels from Cityscapes has 1.8 to 2.9 MB."""
    from ccnet_cli.media import images

    image, label = bench.make_photograph(np.random.default_rng(0), (256, 512))
    assert image.shape == (256, 512, 3) and label.shape == (256, 512)
    assert 0.8 < len(images.encode_png(image)) / (256 * 512) < 1.6
    assert len(np.unique(label)) > 10 and 5 < image.std() < 90


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--workers", "0,x"), "option --workers 0,x: not a list"),
        (("--workers", "65"), "option --workers 65"),
        (("--sizes", "10x20,7"), "option --size 7: not a size"),
        (("--data", "somewhere"), "option --data: needs a preset"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "data", *options])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_the_table_and_its_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "data", "--sizes", "24x32", "--crop", "16x20", "--workers", "0", "--repeats", "1", "--batch", "1"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--json", "data.json"])
    assert stopped.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "24x32" in printed and "official" in printed and "images/s" in printed
    assert json.loads((tmp_path / "data.json").read_text())["crop"] == [16, 20]
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]
