"""What the network's benchmark says and how it counts; never how fast anything is."""

import json
import math

import pytest
import torch
from torch import nn
from variants import variant

from ccnet_cli import config, devices, ops
from ccnet_cli.bench import meter
from ccnet_cli.bench import model as bench
from ccnet_cli.bench.alternatives import Official, official_network
from ccnet_cli.bench.meter import count_operations
from ccnet_cli.bench.request import Run
from ccnet_cli.errors import CCNetError, InputError
from ccnet_cli.inference import engine, int8
from ccnet_cli.models import network as models
from ccnet_cli.models.attention import RecurrentCrissCross

PAPER = config.load("cityscapes-r2").model
SMALL = variant(PAPER, **{"width": 8, "channels": 16, "query_channels": None, "auxiliary_channels": 8})
SIZES = [(41, 57), (33, 33)]
RESNET, TINY = (variant(SMALL, backbone=name) for name in ("resnet18", "tiny"))
RUN = Run("cpu", threads=1, repeats=2)
ONE = {"settings": TINY, "sizes": [(33, 33)], "run": RUN}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(meter, "CONVOLUTION", (8, 9))


def test_every_network_is_there_with_positive_figures():
    threads = torch.get_num_threads()
    report = bench.measure(RESNET, SIZES, RUN, 2, ["fp32", "bf16"])
    assert torch.get_num_threads() == threads
    networks = [("official", "fp32"), ("plain", "fp32"), ("engine", "fp32"), ("engine", "bf16")]
    rows, rates = report.values["rows"], report.values["rates"]
    assert [(row["name"], row["precision"], row["size"]) for row in rows] == [
        (*network, size) for size in SIZES for network in networks
    ]
    assert list(rates) == ["fp32", "bf16"] and min(rates.values()) > 0
    for index, row in enumerate(rows):
        official, plain = rows[index - index % 4], rows[index - index % 4 + 1]
        time, exact = row["forward"], row["precision"] == "fp32"
        assert 0 < time.least <= time.median <= time.greatest < math.inf
        assert row["times"] == pytest.approx(official["forward"].median / time.median)
        assert row["rate"] * time.median == pytest.approx(1000 * row["gflop"])
        assert row["gflop"] < official["gflop"] or row is official
        assert row["fraction"] * time.median * rates[row["precision"]] == pytest.approx(1000 * plain["gflop"])
        assert row["error"] < (1e-5 if exact else 0.1)
        assert row["agreement"] > (0.999 if exact else 0.8)
    assert rows[1]["error"] == 0 < rows[3]["error"]
    mapping = json.loads(json.dumps(report.to_mapping(), allow_nan=False))
    expected = {"backbone": "resnet18", "recurrence": 2, "batch": 2, "repeats": 2, "device": "cpu", "threads": 1}
    assert mapping.items() >= expected.items() and mapping["rows"][0]["size"] == [41, 57]
    assert set(mapping["rows"][0]["forward"]) == {"median", "least", "greatest"}


@pytest.mark.parametrize("recurrence", [0, 2])
@torch.no_grad()
def test_the_official_network_answers_as_ours_with_both_heads(recurrence):
    network = bench.make_network(variant(RESNET, recurrence=recurrence))
    x = bench.make_image(2, (41, 57))
    official = official_network(network, "rcca")
    got, expected = official.outputs(x), network.outputs(x)
    assert 0.1 < expected.main.std() < 10
    torch.testing.assert_close(got.main, expected.main)
    torch.testing.assert_close(got.auxiliary["auxiliary"], expected.auxiliary["auxiliary"])
    kinds = [type(module) for module in official.modules()]
    assert kinds.count(nn.BatchNorm2d) == len([m for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert (Official in kinds) == bool(recurrence) and RecurrentCrissCross not in kinds
    assert {m.implementation for m in official.modules() if isinstance(m, ops.Conv2d)} == {"direct"}


def test_operations_are_counted_without_computing():
    """FACTS: 1396 GFLOP of the authors' network at 769x769; without the auxiliary head's two convolutions the rest."""
    with torch.device("meta"):
        network, x = models.build(PAPER, 19).eval(), torch.empty(1, 3, 769, 769)
    official = count_operations(lambda: official_network(network, "rcca").outputs(x)) / 1e9
    assert round(official) == 1396
    auxiliary = 2 * 97**2 * (9 * 1024 * 512 + 512 * 19) / 1e9
    assert official - count_operations(lambda: network(x)) / 1e9 == pytest.approx(auxiliary)


def test_bfloat16_is_measured_where_the_device_has_it(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(devices, "computes_bf16", lambda device, native=native: native)
        rows = bench.measure(**ONE).values["rows"]
        integers = [int8.INT8] if has_integers() else []
        assert [row["precision"] for row in rows if row["name"] == "engine"] == ["fp32", "bf16"][
            : 1 + native
        ] + integers


def test_compiled_code_is_measured_where_asked(monkeypatch):
    """torch.compile is replaced: what it is given runs."""
    seen = []
    monkeypatch.setattr(bench.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(torch, "compile", lambda network, **options: seen.append(options) or network)
    rows = bench.measure(**ONE, precisions=["bf16"], compiled=True).values["rows"]
    assert [(row["name"], row["precision"]) for row in rows[2:]] == [("engine", "bf16"), ("compiled", "bf16")]
    assert seen == [{"dynamic": False, "options": {"freezing": True}}]
    # autocast's rounding is there, and not the engine's
    assert rows[3]["error"] > 0 and rows[3]["error"] != rows[2]["error"]
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"option --compiled: .*C\+\+ compiler") as caught:
        bench.measure(**ONE, compiled=True)
    assert "\n" not in str(caught.value)


def test_onnx_runtime_runs_beside_where_asked(monkeypatch):
    once = ONE | {"sizes": [(33, 41)], "precisions": ["fp32"]}
    monkeypatch.setattr(bench.onnxfile, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnxruntime not installed; run pip install 'ccnet-cli\[onnx\]'"):
        bench.measure(**once, runtimes=[bench.ONNX])
    monkeypatch.undo()
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    rows = bench.measure(**once, runtimes=[bench.ONNX]).values["rows"]
    assert [row["name"] for row in rows] == ["official", "plain", "engine", "onnxruntime"]
    assert rows[-1]["error"] < 1e-5 and rows[-1]["agreement"] == 1 and rows[-1]["forward"].median > 0


def has_integers():
    try:
        int8.check_support(torch.device("cpu"))
    except CCNetError:
        return False
    return True


def test_installed_runtimes_run_beside_in_integers_too(monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    assert bench.installed_runtimes("cpu") == ["onnxruntime", "openvino"] and bench.installed_runtimes("cuda") == []
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name == "openvino" else name)
    assert bench.installed_runtimes("cpu") == ["onnxruntime"]
    settings = variant(RESNET, width=16, channels=32)
    chosen = {"precisions": [int8.INT8] if has_integers() else ["fp32"], "runtimes": ["onnxruntime", "openvino"]}
    rows = bench.measure(settings, [(65, 65)], RUN, **chosen).values["rows"]
    kinds = ["fp32", *([int8.INT8] if has_integers() else [])]
    got = [(row["name"], row["precision"]) for row in rows[3:]]
    assert got == [(name, kind) for kind in kinds for name in ("onnxruntime", "openvino")]
    for row in rows[3:]:
        assert row["error"] < (1e-4 if row["precision"] == "fp32" else 0.3) and row["forward"].median > 0
        assert (row["error"] > 1e-4) == (row["precision"] == int8.INT8)


def test_what_cannot_be_measured_is_refused_in_one_line():
    for changes, word in (({"precisions": ["int4"]}, "int4"), ({"run": Run("tpu")}, "tpu")):
        with pytest.raises(InputError, match=word) as caught:
            bench.measure(**ONE | changes)
        assert "\n" not in str(caught.value)


def test_the_engine_of_the_benchmark_is_that_of_the_commands(monkeypatch):
    seen = []
    prepare = engine.prepare
    monkeypatch.setattr(engine, "prepare", lambda *given: seen.append(given[2]) or prepare(*given))
    bench.measure(**ONE, precisions=["bf16", "fp32"])
    assert seen == ["bf16", "fp32"]
