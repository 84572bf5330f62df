"""What version 0.1.0 wrote: a run to resume, a checkpoint, an ONNX file and the authors' layout, still as they were.

tests/data/v0.1.0.tar.xz holds them as that version's train and export wrote them, its scores of the noise below, and
what its run had become two steps later.
"""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import canonical, make_horizons, preset, train

from ccnet_cli.inference.artifact import open_artifact
from ccnet_cli.runs import checkpoint

ARCHIVE = Path(__file__).parents[1] / "data" / "v0.1.0.tar.xz"
# how that run was set, beside what every small run is
SETTINGS = ("model.width=2", "model.channels=8", "model.auxiliary_channels=2", "model.dropout=0.5", "train.ema=0.9")
SETTINGS += ("loss.ohem.min_kept=500", "schedule.steps=4", "checkpoint.every=2", "checkpoint.keep=9", "eval.every=2")


@pytest.fixture
def old(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "v0.1.0"


def machine():
    """What decides the bits."""
    flags = re.findall(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)[:1]
    return f"torch {torch.__version__}, processor {canonical(flags)[:8]}"


@pytest.mark.parametrize("name", ["tiny.pt", "tiny.onnx", "official.pth", "run/last.pt"])
def test_scores_are_those_of_before(old, name):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    wanted = torch.from_numpy(np.load(old / "scores.npz")[name.replace("/", "-")])
    x = torch.randn(2, 3, 33, 49, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        got = open_artifact(old / name).network(x)
    if not name.endswith(".onnx") and json.loads((old / "expected.json").read_text())["machine"] == machine():
        assert torch.equal(got, wanted)
    assert got.shape == wanted.shape and (got - wanted).abs().max() < 1e-5 * wanted.std()


def test_an_old_run_continues_as_it_would_have(old, tmp_path, capsys):
    """To the last bit on the machine that wrote it, nearly so on any other."""
    data = make_horizons(tmp_path / "data")
    run = train(preset(data, *SETTINGS), run=old / "run", resume="auto")
    told = capsys.readouterr().err
    assert re.findall("warning: resumed with (.*)", told)[:1] == ["other values of data.root than before"], told
    content, expected = checkpoint.read(run / "last.pt"), json.loads((old / "expected.json").read_text())
    assert content["step"] == 4
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["step"] > 2 and row.get("loss") is not None]
    assert losses == pytest.approx(expected["losses"], rel=0.01)
    for key, wanted in np.load(old / "resumed.npz").items():
        torch.testing.assert_close(content["model"][key], torch.from_numpy(wanted), atol=1e-3, rtol=1e-3)
    if expected["machine"] == machine():
        parts = content["training"] | {"averaged": content["model"]}
        assert {key: canonical(parts[key]) for key in expected["parts"]} == expected["parts"]
        assert losses == expected["losses"]
