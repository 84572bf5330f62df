"""A comparison of heads: the same for all but the head, resumed cell by cell, and no more said than the seeds allow."""

import csv
import json
import re
import statistics
from unittest import mock

import numpy as np
import pytest
import torch
from accessible import find_faults
from runs import SETTINGS, ended, forked, make_horizons, preset

from ccnet_cli import cli, config, files
from ccnet_cli.commands import compare as commands
from ccnet_cli.commands.compare import CompareRequest, compare
from ccnet_cli.errors import InputError, NonFiniteError
from ccnet_cli.figures import charts, comparison, pages
from ccnet_cli.models import network as models
from ccnet_cli.runs import checkpoint
from ccnet_cli.runs.lease import hold
from ccnet_cli.training import cells, record, validation

SHORT = ("schedule.steps=3", "checkpoint.every=1", "eval.every=0", "train.optimizer=sgd", "schedule.lr=0.1")
ROWS = ("none", "rcca", "gc")


def measure(rows, crop, classes, device):
    costs = [{"head": row, **dict.fromkeys(comparison.COSTS, float(at))} for at, row in enumerate(rows)]
    return {"heads": costs, "size": (4, 6), "device": device, "threads": 1, "torch": torch.__version__}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("horizons") / "data")


@pytest.fixture(scope="module", autouse=True)
def blank_charts():
    """Charts take longer than these runs."""
    blank = np.zeros((4, 4, 3), np.uint8)
    with (
        mock.patch.object(record, "training_curves", lambda *_: blank),
        mock.patch.object(validation, "confusion_matrix", lambda *_: blank),
    ):
        yield


def request(data, output, *overrides, heads=ROWS, seeds=2, **options):
    return CompareRequest(preset(data, *SHORT, *overrides), output, heads, seeds, device="cpu", **options)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A comparison of three rows and two seeds: its folder and its values."""
    output = tmp_path_factory.mktemp("whole") / "compare"
    return output, compare(request(data, output), measure)


def without_times(values):
    """Values without what a clock or the folder said."""
    if isinstance(values, dict):
        return {key: without_times(value) for key, value in values.items() if not key.endswith("_ms")}
    return [without_times(value) for value in values] if isinstance(values, list) else values


def read_csv(output):
    return list(csv.DictReader((output / "compare.csv").read_text().splitlines()))


def last_score(output, row, seed):
    rows = [json.loads(line) for line in (output / f"cells/{row}/seed-{seed}/log.jsonl").read_text().splitlines()]
    return next(each for each in rows if each["step"] == 3 and "miou" in each)


def test_the_table_is_that_of_the_last_scores(whole):
    output, values = whole
    assert json.loads((output / "compare.json").read_text()) == values
    assert ([row["head"] for row in values["rows"]], values["seeds"], values["missing"]) == (list(ROWS), [0, 1], [])
    base = [last_score(output, "none", seed)["miou"] for seed in (0, 1)]
    for row in values["rows"]:
        mious = [last_score(output, row["head"], seed)["miou"] for seed in (0, 1)]
        assert row["seeds"] == {"0": mious[0], "1": mious[1]}
        assert (row["n"], row["mean"], row["min"], row["max"]) == (2, statistics.fmean(mious), min(mious), max(mious))
        if row["head"] != "none":
            above = [one - other for one, other in zip(mious, base, strict=True)]
            assert row["from_none"] == {"n": 2, "mean": sum(above) / 2, "min": min(above), "max": max(above)}
        sky = [last_score(output, row["head"], seed)["classes"]["sky"] for seed in (0, 1)]
        assert row["classes"]["sky"] == {"n": 2, "mean": sum(sky) / 2, "min": min(sky), "max": max(sky)}
    assert values["rows"][0]["from_none"] is None


def test_the_gates_are_the_weights_that_began_at_zero(whole):
    output, values = whole
    none, rcca, gc = values["rows"]
    assert none["gates"] == {"0": {}, "1": {}}
    for seed in ("0", "1"):
        weights = {row: checkpoint.read(output / f"cells/{row}/seed-{seed}/last.pt")["model"] for row in ("rcca", "gc")}
        gamma = weights["rcca"]["head.rcca.attention.gamma"]
        assert rcca["gates"][seed] == {"rcca.attention.gamma": gamma.item()} and gamma.item() != 0
        last = weights["gc"]["head.block.transform.3.weight"]
        assert gc["gates"][seed] == {"block.transform.3.weight": pytest.approx(last.norm().item())} and last.any()


def test_rows_of_a_seed_see_the_same_data_from_the_same_backbone(whole, data):
    output, _ = whole
    for seed in (0, 1):
        first = [(output / f"cells/{row}/seed-{seed}/batch.jpg").read_bytes() for row in ROWS]
        assert first[0] == first[1] == first[2]
        backbones = []
        for row in ROWS:
            made = config.load(str(output / f"cells/{row}/seed-{seed}/preset.yaml"))
            assert made.seed == seed
            torch.manual_seed(seed)
            backbones.append(models.build(made.model, 2).backbone.state_dict())
        for other in backbones[1:]:
            assert all(torch.equal(value, other[key]) for key, value in backbones[0].items())
    assert (output / "cells/none/seed-0/batch.jpg").read_bytes() != (
        output / "cells/none/seed-1/batch.jpg"
    ).read_bytes()


def test_killed_twice_and_resumed_the_table_is_the_same(whole, data, tmp_path):
    output, values = whole
    for passage in (2, 5):

        def die(passage=passage):
            files.POINT, files.PASSAGE = "after_manifest", str(passage)
            compare(request(data, tmp_path / "cut"), measure)

        assert ended(forked(die)) == 137
    # the first was killed within the first cell, the second within the third
    assert not (tmp_path / "cut/cells/none/seed-1").exists()
    begun = [tmp_path / f"cut/cells/{row}/seed-0/batch.jpg" for row in ROWS]
    times = [path.stat().st_mtime_ns for path in begun]
    resumed = compare(request(data, tmp_path / "cut"), measure)
    assert without_times(resumed) == without_times(values) | {"version": resumed["version"]}
    # none of them began anew
    assert [path.stat().st_mtime_ns for path in begun] == times
    lines = [read_csv(folder) for folder in (output, tmp_path / "cut")]
    assert without_times(lines[0]) == without_times(lines[1])


def test_what_is_finished_is_not_done_again_and_more_rows_and_seeds_are_added(whole, data, tmp_path, monkeypatch):
    made = []
    real = cells.finish
    monkeypatch.setattr(cells, "finish", lambda cell, *rest: made.append(str(cell)) or real(cell, *rest))
    one = compare(request(data, tmp_path / "more", heads=("none",), seeds=1), measure)
    assert one["rows"][0]["not_separated"] == [] and one["rows"][0]["n"] == 1
    two = compare(request(data, tmp_path / "more", heads=("none", "rcca"), seeds=2), measure)
    assert made == ["none, seed 0", "rcca, seed 0", "none, seed 1", "rcca, seed 1"]
    whole_rows = {row["head"]: row["seeds"] for row in whole[1]["rows"]}
    assert {row["head"]: row["seeds"] for row in two["rows"]} == {row: whole_rows[row] for row in ("none", "rcca")}


def test_the_costs_are_measured_once_for_the_rows(data, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "_work", lambda *_: [])
    asked = []

    def record(*arguments):
        asked.append(list(arguments[0]))
        return measure(*arguments)

    for heads in (("none",), ("none",), ("none", "gc")):
        values = compare(request(data, tmp_path / "costs", heads=heads, seeds=1), record)
        assert values["missing"] == [[row, 0] for row in heads]
    assert asked == [["none"], ["none", "gc"]]


def test_a_cell_that_another_has_in_hand_is_left_to_it_and_missing(data, tmp_path):
    output = tmp_path / "shared"
    locked = output / "locks/rcca-seed-0"
    compare(request(data, output, heads=("none",), seeds=1), measure)
    files.make_folder(locked)
    with hold(locked):
        values = compare(request(data, output, heads=("none", "rcca"), seeds=1), measure)
    assert values["missing"] == [["rcca", 0]]
    row = values["rows"][1]
    assert (row["n"], row["mean"], row["seeds"], row["from_none"]) == (0, None, {"0": None}, None)
    lines = read_csv(output)
    assert [(line["head"], line["state"], line["miou"] == "") for line in lines] == [
        ("none", "scored", False),
        ("rcca", "missing", True),
    ]
    assert "Missing: rcca, seed 0" in (output / "report.html").read_text()
    assert compare(request(data, output, heads=("none", "rcca"), seeds=1), measure)["missing"] == []


def test_a_cell_that_diverges_is_missing_and_reported_after_the_others(data, tmp_path, monkeypatch, capsys):
    real = cells.finish

    def finish(cell, *rest):
        if cell.row == "rcca":
            raise NonFiniteError("step 2", "loss nan", "lower schedule.lr and resume")
        return real(cell, *rest)

    monkeypatch.setattr(cells, "finish", finish)
    with pytest.raises(NonFiniteError, match="rcca, seed 0: loss nan"):
        compare(request(data, tmp_path / "nan", heads=("rcca", "none"), seeds=1), measure)
    assert json.loads((tmp_path / "nan/compare.json").read_text())["missing"] == [["rcca", 0]]


def test_several_processes_share_the_cells(whole, data, tmp_path, forked_workers):
    values = compare(request(data, tmp_path / "two", processes=2), measure)
    assert without_times(values) == without_times(whole[1])


def test_every_run_begins_with_the_weights(whole, data, tmp_path):
    weights = whole[0] / "cells/none/seed-1/last.pt"
    compare(request(data, tmp_path / "warm", heads=("none",), seeds=1, weights=weights), measure)
    assert checkpoint.read(tmp_path / "warm/cells/none/seed-0/last.pt")["origin"] != ""
    assert checkpoint.read(weights)["origin"] == ""


def test_another_recipe_or_another_folder_is_refused(whole, data, tmp_path):
    output, _ = whole
    with pytest.raises(InputError, match=r"other values of schedule\.lr; compare as before"):
        compare(request(data, output, "schedule.lr=0.2"), measure)
    with pytest.raises(InputError, match=r"cells/none/seed-0: was .* values of model\.head\.query_channels"):
        compare(request(data, output, "model.head.query_channels=3"), measure)
    with pytest.raises(InputError, match="other values of --weights"):
        compare(request(data, output, weights=output / "cells/none/seed-0/last.pt"), measure)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not an empty folder"):
        compare(request(data, tmp_path / "full"), measure)
    with pytest.raises(InputError, match="is not a folder"):
        compare(request(data, tmp_path / "full/thesis.tex"), measure)
    with pytest.raises(InputError, match="has the folder of psp"):
        compare(request(data, tmp_path / "new", heads=("psp,bins=[1, 2]", "psp,bins=[1,2]")), measure)
    assert not (tmp_path / "new").exists()


def scores(**rows):
    return {
        row: {
            seed: None
            if miou is None
            else {"miou": miou, "classes": {"sky": miou}, "gates": {}, "step_ms": 1.0, "device": "cpu"}
            for seed, miou in enumerate(mious)
        }
        for row, mious in rows.items()
    }


def test_rows_whose_ranges_overlap_or_that_have_one_seed_are_not_separated():
    found = scores(
        none=[0.1, 0.2], low=[0.2, 0.3], high=[0.5, 0.9], one=[0.6, None], inside=[0.6, 0.7], no=[None, None]
    )
    rows = {row["head"]: row for row in comparison.summarise(found, "none")}
    assert {row: set(values["not_separated"]) for row, values in rows.items()} == {
        "none": {"low", "one"},
        "low": {"none", "one"},
        "high": {"one", "inside"},
        "one": {"none", "low", "high", "inside"},
        "inside": {"one", "high"},
        "no": set(),
    }
    assert rows["one"]["from_none"] == {"n": 1, "mean": 0.5, "min": 0.5, "max": 0.5}
    assert rows["no"]["classes"] == {} and rows["no"]["mean"] is None


def test_one_seed_has_no_range(whole):
    """Nor columns for one, where no row has more than one."""
    _, values = whole
    ranges = ("least", "greatest") * 2
    several = scores(none=[0.25, 0.75], low=[0.5, None], high=[0.5, 0.9])
    for found, columns in ((scores(none=[0.25], low=[0.5]), ()), (several, ranges)):
        costs = dict.fromkeys(comparison.COSTS, 1.0)
        rows = [row | {"cost": costs} for row in comparison.summarise(found, "none")]
        made = {**values, "rows": rows, "seeds": [*found["none"]]}
        (_, headings, cells), _ = comparison.sheets(made)
        assert tuple(name for name in headings if name in ranges) == columns
        low = dict(zip(headings, cells[1], strict=True))
        assert (low["mIoU %"], low["above none"], low["not separated from"]) == ("50.00", "25.00", "any: one seed")
        assert low.get("least", "") == low.get("greatest", "") == ""
        page = comparison._page(made)
        assert ("(25.0 to 75.0)" in page) == bool(columns) and '<td class="number">50.0</td>' in page
        assert ("mean and range" in page) == bool(columns)


def test_times_of_two_devices_are_not_compared():
    found = scores(none=[0.1, 0.2], head=[0.3, 0.4])
    assert [row["step_ms"] for row in comparison.summarise(found, "none")] == [1.0, 1.0]
    found["head"][1]["device"] = "another"
    assert [row["step_ms"] for row in comparison.summarise(found, "none")] == [None, None]


def test_differences_are_those_of_equal_seeds():
    rows = comparison.summarise(scores(none=[0.1, None, 0.3], head=[None, 0.5, 0.4]), "none")
    assert rows[1]["from_none"] == {
        "n": 1,
        "mean": pytest.approx(0.1),
        "min": pytest.approx(0.1),
        "max": pytest.approx(0.1),
    }
    assert comparison.summarise(scores(head=[0.5]), "none")[0]["from_none"] is None


def test_the_page_is_one_file_that_shows_every_row(whole):
    page = (whole[0] / "report.html").read_text()
    assert find_faults(page) == []
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert all(f'<th scope="row">{row}</th>' in page for row in ROWS)
    assert "not separated from" in page and "schedule" in page


def test_the_plot_has_a_point_and_a_range_for_each_row():
    panel = charts.Scatter("t", {"a": (1.0, [2.0, 8.0]), "b": (3.0, [])}, "x")
    drawn = charts.scatter_charts([panel])
    blue = (drawn == [0xB2, 0x72, 0x00]).all(2)
    rows = blue.nonzero()[0]
    # the range is a line as high as the panel's values
    assert rows.max() - rows.min() > charts.PANEL_HEIGHT / 2
    assert not (drawn == [0x00, 0x5E, 0xD5]).all(2).any()
    assert pages.png(drawn).startswith("data:image/png")


def test_the_names_of_points_at_one_place_stand_above_one_another(monkeypatch):
    marks = []
    real = charts._write_labels
    monkeypatch.setattr(charts, "_write_labels", lambda axes, labels: real(axes, labels) or marks.extend(axes.texts))
    charts.scatter_charts([charts.Scatter("t", {"a": (1.0, [2.0]), "b": (1.0, [2.0]), "c": (0.0, [2.0])}, "x")])
    heights = {mark.get_text(): mark.xyann[1] for mark in marks}
    assert heights["b"] - heights["a"] >= 72 / charts.DPI * charts.LABEL_HEIGHT
    assert heights["c"] == heights["a"]
    sides = {mark.get_text(): mark.get_ha() for mark in marks}
    assert sides == {"a": "right", "b": "right", "c": "left"}


def test_the_command_prints_the_tables_and_writes_the_files(data, tmp_path, capsys):
    words = [word for setting in (f"data.root={data}", *sorted(SETTINGS), *SHORT) for word in ("-s", setting)]
    output = tmp_path / "toys"
    heads = ["--head", "none", "--head", "rcca,recurrence=1", "--seeds", "1"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", "--preset", "quickstart", *words, *heads, "-o", str(output), "--device", "cpu"])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    assert "rcca,recurrence=1" in captured.out and captured.out.endswith("report.html\n")
    assert sorted(path.name for path in output.iterdir()) == [
        *("cells", "compare.csv", "compare.json", "cost.json", "locks", "recipe.yaml", "report.html")
    ]
    values = json.loads((output / "compare.json").read_text())
    assert [row["cost"]["head_gflop"] > 0 for row in values["rows"]] == [True, True]
    assert values["rows"][1]["settings"]["recurrence"] == 1
    assert values["cost"]["size"] == [4, 6]
