"""What the network's benchmark says and how it counts; never how fast anything is."""

import json
import math

import pytest
import torch
from torch import nn
from variants import variant

from ccnet_cli import config
from ccnet_cli.bench import measure
from ccnet_cli.bench import model as bench
from ccnet_cli.bench.alternatives import OfficialNetwork
from ccnet_cli.errors import InputError
from ccnet_cli.inference import engine
from ccnet_cli.models import network as models

PAPER = config.load("cityscapes-r2").model
SMALL = variant(PAPER, **{"width": 8, "channels": 16, "query_channels": None, "auxiliary_channels": 8})
CALL = {"sizes": [(41, 57), (33, 33)], "backbone": "resnet18", "repeats": 2, "threads": 1, "settings": SMALL}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(measure, "CONVOLVED", (8, 9))


def test_every_network_is_there_with_positive_figures():
    threads = torch.get_num_threads()
    report = bench.model(**CALL, batch=2, device="cpu", precisions=["fp32", "bf16"])
    assert torch.get_num_threads() == threads
    rows = [("official", "fp32"), ("plain", "fp32"), ("engine", "fp32"), ("engine", "bf16")]
    assert [(row.name, row.precision, row.size) for row in report.rows] == [
        (*row, size) for size in CALL["sizes"] for row in rows
    ]
    assert list(report.rates) == ["fp32", "bf16"] and min(report.rates.values()) > 0
    for row, official in zip(report.rows, [report.rows[0]] * 4 + [report.rows[4]] * 4, strict=True):
        assert 0 < row.forward.least <= row.forward.median <= row.forward.greatest < math.inf
        assert row.times == pytest.approx(official.forward.median / row.forward.median)
        assert row.rate * row.forward.median == pytest.approx(1000 * row.gflop)
        assert row.gflop < official.gflop or row is official
        needed = report.rows[1 if row.size == (41, 57) else 5].gflop
        assert row.fraction * row.forward.median * report.rates[row.precision] == pytest.approx(1000 * needed)
        assert row.error < (1e-5 if row.precision == "fp32" else 0.1)
        assert row.agreement > (0.999 if row.precision == "fp32" else 0.8)
    assert report.rows[1].error == 0 < report.rows[3].error
    mapping = json.loads(json.dumps(report.to_mapping(), allow_nan=False))
    assert mapping["threads"] == 1 and mapping["rows"][0]["size"] == [41, 57]
    assert set(mapping["rows"][0]["forward"]) == {"median", "least", "greatest"}


@pytest.mark.parametrize("recurrence", [0, 2])
@torch.no_grad()
def test_the_official_network_answers_as_ours_with_both_heads(recurrence):
    network = bench._network(variant(SMALL, **{"backbone": "resnet18", "recurrence": recurrence}))
    x = bench._image(2, (41, 57))
    main, auxiliary = OfficialNetwork(network)(x)
    main, named, _ = network.outputs(x)
    expected = main, named["auxiliary"]
    assert expected[0].std() > 0.1
    torch.testing.assert_close(main, expected[0])
    torch.testing.assert_close(auxiliary, expected[1])
    names = [name for name, module in OfficialNetwork(network).named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(names) == len([m for m in network.modules() if isinstance(m, nn.BatchNorm2d)])


def test_operations_are_counted_without_computing():
    """FACTS: 1396 GFLOP of the authors' network at 769x769; without the auxiliary head's two convolutions the rest."""
    needed, official = bench._gflop(PAPER, (769, 769), 1)
    assert round(official) == 1396
    auxiliary = 2 * 97**2 * (9 * 1024 * 512 + 512 * 19) / 1e9
    assert official - needed == pytest.approx(auxiliary)
    assert bench._gflop(PAPER, (769, 769), 2) == pytest.approx((2 * needed, 2 * official))


def test_bfloat16_is_measured_where_the_device_has_it(monkeypatch):
    once = CALL | {"sizes": [(33, 33)], "repeats": 1, "backbone": "tiny"}
    for native in (True, False):
        monkeypatch.setattr(models, "computes_bf16", lambda device, native=native: native)
        rows = bench.model(**once, device="cpu").rows
        assert [row.precision for row in rows if row.name == "engine"] == ["fp32", "bf16"][: 1 + native]


def test_compiled_code_is_measured_where_asked(monkeypatch):
    """torch.compile is replaced: what it is given runs."""
    seen = []
    monkeypatch.setattr(bench.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(torch, "compile", lambda network, **options: seen.append(options) or network)
    once = CALL | {"sizes": [(33, 33)], "repeats": 1, "backbone": "tiny", "precisions": ["bf16"]}
    rows = bench.model(**once, device="cpu", compiled=True).rows
    assert [(row.name, row.precision) for row in rows[2:]] == [("engine", "bf16"), ("compiled", "bf16")]
    assert seen == [{"dynamic": False, "options": {"freezing": True}}]
    # autocast's rounding is there, and not the engine's
    assert rows[3].error > 0 and rows[3].error != rows[2].error
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"option --compiled: .*C\+\+ compiler") as caught:
        bench.model(**once, device="cpu", compiled=True)
    assert "\n" not in str(caught.value)


def test_onnx_runtime_runs_beside_where_asked(monkeypatch):
    once = CALL | {"sizes": [(33, 41)], "repeats": 1, "backbone": "tiny", "precisions": ["fp32"], "device": "cpu"}
    monkeypatch.setattr(bench.onnxfile, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnxruntime not installed; run pip install 'ccnet-cli\[onnx\]'"):
        bench.model(**once, runtime=True)
    monkeypatch.undo()
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    rows = bench.model(**once, runtime=True).rows
    assert [row.name for row in rows] == ["official", "plain", "engine", "onnxruntime"]
    assert rows[-1].error < 1e-5 and rows[-1].agreement == 1 and rows[-1].forward.median > 0


def test_what_cannot_be_measured_is_refused_in_one_line():
    for changes, word in (({"precisions": ["int8"]}, "int8"), ({"device": "tpu"}, "tpu")):
        with pytest.raises(InputError, match=word) as caught:
            bench.model(**CALL | changes)
        assert "\n" not in str(caught.value)


def test_the_engine_of_the_benchmark_is_that_of_the_commands(monkeypatch):
    seen = []
    prepare = engine.prepare
    monkeypatch.setattr(engine, "prepare", lambda *given: seen.append(given[2]) or prepare(*given))
    bench.model(**CALL | {"sizes": [(33, 33)], "repeats": 1, "backbone": "tiny", "precisions": ["bf16", "fp32"]})
    assert seen == ["bf16", "fp32"]
