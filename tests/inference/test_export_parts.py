"""Networks with heads from outside as ONNX files and programs: whatever torch can trace is written, read and run."""

import re
from typing import Literal

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

from ccnet_cli import cli, config
from ccnet_cli.commands.export import export
from ccnet_cli.datasets import classes_of
from ccnet_cli.errors import InputError
from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.inference.artifact import load_model, open_artifact
from ccnet_cli.models.heads import HEADS
from ccnet_cli.models.network import build
from ccnet_cli.parts import Part, Section
from ccnet_cli.runs import checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Settings(Section):
    kind: Literal["odd"] = "odd"
    way: str = "context"


class Head(nn.Module):
    """Class scores by one of many ways."""

    def __init__(self, channels, classes, way):
        super().__init__()
        self.norm, self.group = nn.BatchNorm2d(channels), nn.GroupNorm(2, channels)
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.layer = nn.LayerNorm(channels)
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.classify = nn.Conv2d(channels, classes, 1)
        self.way = getattr(self, way)

    def forward(self, features):
        return self.classify(self.way(features[-1]))

    def context(self, x):
        """Pyramid pooling, a gate by global pooling, and a norm that follows no convolution."""
        sums = [F.adaptive_avg_pool2d(x, size) for size in (1, 2, 3, 6)]
        pools = [F.interpolate(each, size=x.shape[2:], mode="bilinear", align_corners=True) for each in sums]
        return self.norm(self.group(sum(pools) + F.silu(x)) * torch.sigmoid(x.mean((2, 3), keepdim=True)))

    def tokens(self, x):
        """Attention over all pixels."""
        tokens = x.flatten(2).transpose(1, 2)
        found, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return F.gelu(self.layer(tokens + found)).transpose(1, 2).reshape(x.shape)

    def fine(self, x):
        """Finer than the features; normalised, clamped and padded."""
        x = F.pad(F.normalize(self.up(x), dim=1).clamp(-1, 1), (1, 1, 1, 1), mode="reflect")
        return F.interpolate(F.avg_pool2d(x, 3, stride=1) + x.amax(1, keepdim=True)[:, :, 1:-1, 1:-1], scale_factor=2.0)

    def random(self, x):
        return x + torch.randn_like(x)

    def data(self, x):
        return x if x.sum() > 0 else -x

    def unknown(self, x):
        return torch.linalg.inv(x[:, :, :1, :1] + 1) * x

    def traced_size(self, x):
        return x + torch.zeros(x.shape[0], 1, int(x.shape[2]), x.shape[3]).masked_fill(x[:, :1] > 0, 1)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Checkpoints of networks with a head that goes a way."""
    monkeypatch.setitem(
        HEADS, "odd", Part(Settings, lambda settings, channels, classes: Head(channels[-1], classes, settings.way))
    )

    def save(way):
        head = ["model.head.kind=odd", f"model.head.way={way}", "model.auxiliary=false"]
        preset = config.load("camvid", [*tiny.OVERRIDES[:2], *head])
        torch.manual_seed(3)
        network = build(preset.model, 11).eval()
        tiny.stir(network)
        content = {"format": checkpoint.FORMAT, "model": network.state_dict(), "preset": config.to_mapping(preset)}
        facts = {"classes": classes_of(preset.data).to_mapping(), "step": 1, "metrics": {}}
        return checkpoint.save(tmp_path / way, 1, content | facts, keep=2)

    return save


@pytest.mark.parametrize("way", ["context", "tokens", "fine"])
def test_scores_of_files_are_those_of_the_network(saved, tmp_path, way):
    file = saved(way)
    written = export(file, tmp_path / "model.onnx", "onnx")
    ours, theirs = load_model(file).network, open_artifact(written).network
    for shape in ((1, 3, 65, 97), (3, 3, 40, 56), (1, 3, 9, 130)):
        x = torch.randn(shape)
        with torch.inference_mode():
            wanted, got = ours(x), theirs(x)
        assert got.shape == wanted.shape and (got - wanted).abs().max() < 1e-4 * wanted.std()
    assert export(file, tmp_path / "model.pt2", "torch-export").stat().st_size > 1000


@pytest.mark.parametrize(
    ("way", "format", "reason"),
    [
        ("data", "onnx", r"network: torch.export cannot trace it \(.*\); write its parts in operators"),
        ("data", "torch-export", r"network: torch.export cannot trace it \(.*\); write its parts in operators"),
        ("unknown", "onnx", r"network: torch cannot write it \(.*\); use --format torch-export"),
        ("random", "onnx", r"ONNX: it needs operators that are not read back \(Random\w+\); use --format torch-export"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(saved, tmp_path, capsys, way, format, reason):
    output = tmp_path / ("model.onnx" if format == "onnx" else "model.pt2")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(saved(way)), "--format", format, "-o", str(output)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and re.search(reason, error), error
    assert not output.exists()


@pytest.mark.parametrize("name", ["If", "Loop", "Scan", "SequenceMap", "StringNormalizer", "RandomNormal", "Optional"])
def test_operators_that_do_more_than_compute_are_not_on_the_list(name):
    assert name not in onnxfile.OPERATORS.split()


def test_every_operator_on_the_list_exists_and_takes_no_graph_text_or_sequence():
    for name in onnxfile.OPERATORS.split():
        schema = onnx.defs.get_schema(name, onnxfile.OPSET)
        kinds = {attribute.type for attribute in schema.attributes.values()}
        assert not kinds & {onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS}, name
        tensors = [*schema.inputs, *schema.outputs]
        assert not any(
            kind.startswith(("seq", "optional", "map")) for each in tensors for kind in each.types
        ) or name in {"Identity"}, name


def test_an_onnx_file_knows_its_stride(saved, tmp_path):
    written = export(saved("fine"), tmp_path / "model.onnx", "onnx")
    assert open_artifact(written).network.stride == 8
    with pytest.raises(InputError, match="neither attention maps nor weights"):
        load_model(written)
