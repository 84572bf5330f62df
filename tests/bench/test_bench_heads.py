"""The table of heads: counts against the published structures' own, by hand; what is measured, and how it is shown."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from ccnet_cli import cli, config
from ccnet_cli.bench import heads
from ccnet_cli.bench.meter import Meter
from ccnet_cli.bench.report import Spread
from ccnet_cli.bench.request import Run
from ccnet_cli.config.rows import native_models
from ccnet_cli.figures import charts
from ccnet_cli.media import images
from ccnet_cli.models.heads import HEADS
from ccnet_cli.parts import Part, Section

SIZE = (97, 97)
TINY = ["--preset", "toyscapes-r2", "--size", "7x9", "--repeats", "1", "--classes", "5"]
# millions of parameters in all, of the head and of the block, GFLOP of head and block at 97x97 with 19 classes, all by
# hand from the structures in their authors' files, biases counted as operations; None where a pyramid is no block there
BY_HAND = {
    "none": (70.96, 23.606, 0.0, 444.16, 0.0),
    "fcn": (56.80, 9.448, 0.0, 177.77, 0.0),
    "psp": (70.44, 23.084, None, 355.47, None),
    "aspp": (63.23, 15.873, None, 288.77, None),
    "aspp,form=mmseg": (None, 42.221, None, 774.67, None),
    "aspp,form=torchvision": (None, 16.130, None, 293.61, None),
    "nonlocal": (71.49, 24.132, 0.526, 544.69, 100.53),
    "nonlocal,sub_sample=true": (71.49, 24.132, 0.526, None, 32.08),
    "gc": (71.09, 23.738, 0.132, 444.18, 0.02),
    "danet": (66.58, 23.955, 0.328, 562.55, 108.16 + 9.87),
    "oc": (57.72, 10.369, 0.395, 288.20, 100.54),
    "oc,form=asp": (62.54, 15.188, None, 287.60, None),
    "isa": (59.17, 11.814, 1.841, 231.20, 43.57),
    "gcn,kernel=7": (None, None, 0.550, None, 10.35),
    "wrapped,block=pam": (None, None, 0.328, None, 108.16),
    "wrapped,block=cam": (None, None, 0.0, None, 9.87),
    "rcca,recurrence=1": (71.29, 23.934, 0.328, None, 8.28),
    "rcca": (71.29, 23.934, 0.328, 460.72, 16.56),
    "rcca,recurrence=3": (71.29, 23.934, 0.328, None, 24.84),
}
KEYS = ("parameters", "head_parameters", "block_parameters", "head_gflop", "block_gflop")


@pytest.mark.parametrize("row", BY_HAND)
def test_parameters_and_operations_are_those_of_the_published_structures(row):
    model = native_models(config.load("cityscapes-r2"), [row])[row]
    values = heads.count(model, SIZE).values
    for key, expected in zip(KEYS, BY_HAND[row], strict=True):
        if expected is not None:
            got = values[key] / (1 if "gflop" in key else 1e6)
            # to half a percent, or to the digits that are printed
            assert got == pytest.approx(expected, rel=0.005, abs=0.0051 if "gflop" in key else 0.00051), key


def test_counts_grow_with_the_map_and_the_batch():
    model = native_models(config.load("toyscapes-r2"), ["rcca"])["rcca"]
    one, three = (heads.count(model, (7, 9), 5, batch) for batch in (1, 3))
    assert three.values["head_gflop"] == pytest.approx(3 * one.values["head_gflop"])
    assert [shape[2:] for shape in one.shapes] == [(7, 9), (7, 9)]
    # queries, keys, values, and the products over a position's row and column, twice
    products = 2 * 2 * 63 * (64 * (16 + 16 + 64) + (7 + 9) * (16 + 64))
    assert one.values["block_gflop"] * 1e9 == pytest.approx(products)


def test_a_head_that_names_no_block_has_none_counted(monkeypatch):
    class Mean(nn.Module):
        levels = 1

        def __init__(self, inputs, classes):
            super().__init__()
            self.classify = nn.Conv2d(inputs, classes, 1)

        def forward(self, features):
            return self.classify(features[-1])

    class Settings(Section):
        kind: str = "mean"

    monkeypatch.setitem(HEADS, "mean", Part(Settings, lambda s, channels, classes: Mean(channels[-1], classes)))
    values = heads.count(native_models(config.load("toyscapes-r2"), ["mean"])["mean"], (3, 4), 5).values
    assert (values["block_parameters"], values["block_gflop"]) == (None, None)
    assert values["head_gflop"] * 1e9 == pytest.approx(2 * 12 * 128 * 5)


def test_times_memory_and_increments_are_of_the_row(monkeypatch):
    monkeypatch.setattr(
        Meter, "alternate", lambda self, calls: {key: Spread(at, at, at) for at, key in enumerate(calls)}
    )
    rows = native_models(config.load("toyscapes-r2"), ["fcn", "none", "rcca"])
    report = heads.measure(rows, (7, 9), Run("cpu", 1, 1), 5, 2)
    fcn, none, rcca = report.values["heads"]
    assert [(row["forward_ms"], row["both_ms"]) for row in (fcn, none, rcca)] == [(0, 1), (2, 3), (4, 5)]
    for row in (fcn, none, rcca):
        # the scores at least, float32; the backward pass holds the gradients of the head's weights beside
        assert row["inference_mib"] * 2**20 >= 4 * 2 * 5 * 63
        assert row["training_mib"] > max(row["inference_mib"], 4 * row["head_parameters"] / 2**20)
    above = report.values["increments"]
    assert [row["gflop"] for row in above] == [row["head_gflop"] - none["head_gflop"] for row in (fcn, none, rcca)]
    assert [row["both_ms"] for row in above] == [-2, 0, 2]
    assert {(row["published_gflop"], row["published_mb"]) for row in above} == {(None, None)}
    assert report.values["size"] == (7, 9) and report.values["batch"] == 2


def test_the_published_increments_hold_for_their_size_alone(monkeypatch):
    monkeypatch.setattr(heads, "_make_pass", lambda *_: type("P", (), {"infer": None, "step": None})())
    monkeypatch.setattr(Meter, "peak", lambda self, call: 1.0)
    monkeypatch.setattr(Meter, "alternate", lambda self, calls: {key: Spread(1, 1, 1) for key in calls})
    rows = native_models(config.load("cityscapes-r2"), ["none", "nonlocal", "rcca"])
    for size, expected in ((SIZE, [None, 108, 16.5]), ((97, 98), [None, None, None])):
        above = heads.measure(rows, size, Run("cpu", 1, 1)).values["increments"]
        assert [row["published_gflop"] for row in above] == expected
    assert heads.measure({"rcca": rows["rcca"]}, SIZE, Run("cpu", 1, 1)).values["increments"] == []


def test_a_step_gives_every_output_and_weight_its_gradient(monkeypatch):
    """DANet's further scores too: without them the step would cost less than in training."""
    asked = []
    real = torch.autograd.grad

    def record(outputs, leaves, **options):
        gradients = real(outputs, leaves, **options)
        asked.append((len(outputs), [gradient is not None for gradient in gradients]))
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", record)
    rows = native_models(config.load("toyscapes-r2"), ["danet", "psp"])
    heads.measure(rows, (7, 9), Run("cpu", 1, 1), 5)
    assert {count for count, _ in asked} == {3, 1}
    assert all(all(reached) for _, reached in asked)


def test_the_command_prints_writes_and_draws(tmp_path, capsys):
    picture, mapping = tmp_path / "h.png", tmp_path / "h.json"
    words = [*TINY, "--head", "none", "--head", "gc,ratio=0.5", "--plot", str(picture), "--json", str(mapping)]
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "heads", *words])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and "gc,ratio=0.5" in printed and "paper GFLOP" in printed
    report = json.loads(mapping.read_text())
    assert [row["head"] for row in report["heads"]] == ["none", "gc,ratio=0.5"]
    needed = {"head", *KEYS, "inference_mib", "training_mib", "forward_ms", "both_ms"}
    assert all(row.keys() == needed and None not in row.values() for row in report["heads"])
    assert (report["size"], report["classes"], report["backbone"]) == ([7, 9], 5, "tiny")
    drawn = images.read_image(picture)
    assert drawn.shape == (charts.PANEL_HEIGHT, 2 * charts.PANEL_WIDTH, 3)
    for colour in charts.COLOURS[:2]:
        assert (drawn == np.array(list(bytes.fromhex(colour[1:]))[::-1], np.uint8)).all(2).sum() > 20


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--head", "phs"], "head phs: unknown; did you mean psp?"),
        (["--head", "psp", "--head", "psp"], "given twice"),
        (["--head", "psp,bins"], "bins is not KEY=VALUE"),
        (["--head", "psp,ratio=1"], "preset key model.head.ratio: unknown"),
        (["--plot", "x.jpg"], "end the name in .png"),
        (["--plot", "x.png", "--size", "9x9"], "give one --size"),
    ],
)
def test_the_command_refuses_in_one_line(words, error, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "heads", *TINY, *words])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and error in captured.err and captured.err.count("\n") == 1 and captured.out == ""
