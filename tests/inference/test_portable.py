"""The network in torch's own operators: the same scores, nothing of ours inside, programs that run without ccnet."""

import json
import re
import subprocess
import sys

import pytest
import tiny
import torch
from torch import nn

from ccnet_cli import config
from ccnet_cli.commands.export import deviation, export
from ccnet_cli.inference import portable
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.models.attention import CrissCrossAttention
from ccnet_cli.models.network import build

SMALL = ["model.width=8", "model.channels=16", "model.query_channels=4", "model.auxiliary_channels=8"]


def network(*overrides):
    torch.manual_seed(1)
    model = build(config.load("cityscapes-r2", [*SMALL, *overrides]).model, 5).eval()
    tiny.stir(model)
    if model.head.rcca is not None:
        model.head.rcca.attention.gamma.data.fill_(0.7)
    return model


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (4, 4), (7, 3)], ids=str)
@pytest.mark.parametrize("strength", [1.0, -100.0])
@torch.no_grad()
def test_the_plain_attention_is_the_attention(size, strength):
    """Strong and negative, every energy lies far below 0, where a mask that is not far enough would win."""
    torch.manual_seed(2)
    attention = CrissCrossAttention(8, 4, "reference")
    attention.gamma.fill_(0.7)
    attention.key_conv.weight.copy_(strength * attention.query_conv.weight)
    attention.key_conv.bias.copy_(strength * attention.query_conv.bias)
    x = torch.randn(3, 8, *size, generator=torch.Generator().manual_seed(3))
    plain = attention.portable()
    torch.testing.assert_close(plain(x), attention(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        "backbone=tiny recurrence=0 activation=relu",
        "backbone=resnet18 stem=v1c pool=floor",
        "backbone=resnet50 stem=7x7 dilation=contracted auxiliary=false",
    ],
)
@torch.no_grad()
def test_a_program_has_the_same_scores_and_no_more_than_it_needs(overrides):
    model = network(*(f"model.{setting}" for setting in overrides.split()))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    traced = portable.program(model)
    assert not [node for node in traced.graph.nodes if "norm" in str(node.target)]
    # a kernel and a bias for each convolution, but for those of the auxiliary head
    convolutions = [node for node in traced.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    assert len(traced.state_dict) == 2 * len({node.args[1] for node in convolutions})
    assert deviation(traced.module(), model, (2, 41, 58)) < 1e-6
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], tensor) for key, tensor in before.items())


class Odd(nn.Module):
    """Convolutions and norms that must not be folded into each other, or not as they stand in the module's order."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.shared = nn.BatchNorm2d(8)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        first = self.first(x)
        # what the norm takes is used twice; a norm is used twice; a convolution is used twice; a norm comes first
        x = self.norm(first) + first
        x = self.shared(self.second(x)) + self.shared(x) + self.plain(self.second(x))
        return self.last(self.plain(x))


@torch.no_grad()
def test_only_a_norm_that_alone_follows_a_convolution_is_folded():
    torch.manual_seed(3)
    model = Odd().eval()
    tiny.stir(model.norm), tiny.stir(model.shared)
    model.plain.running_mean.normal_()
    traced = torch.export.export(model, (torch.zeros(2, 3, 9, 9),))
    portable.fold_batch_norms(traced)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(traced.module()(x), model(x), atol=1e-5, rtol=1e-5)


LOAD = """
import sys
sys.modules["ccnet_cli"] = None
import torch
told = {"ccnet.json": ""}
network = torch.export.load(sys.argv[1], extra_files=told).module()
x = torch.load(sys.argv[2], weights_only=True)
torch.save([network(each) for each in x], sys.argv[3])
print(told["ccnet.json"])
"""


def test_a_program_runs_without_ccnet_for_any_batch_and_size(tmp_path):
    checkpoint = tiny.save_checkpoint(tmp_path / "run", stirred=True)
    written = export(checkpoint, tmp_path / "model.pt2", "torch-export")
    x = [torch.randn(shape) for shape in ((1, 3, 65, 97), (3, 3, 9, 9), (2, 3, 100, 17))]
    torch.save(x, tmp_path / "x.pt")
    paths = [str(path) for path in (written, tmp_path / "x.pt", tmp_path / "scores.pt")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *paths], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    restored = load_model(checkpoint)
    for got, image in zip(torch.load(tmp_path / "scores.pt", weights_only=True), x, strict=True):
        wanted = restored.network(image).detach()
        assert (got - wanted).abs().max() <= 1e-4 * (wanted.max() - wanted.min())
    facts = json.loads(done.stdout)
    assert facts["classes"]["names"] == list(restored.classes.names)
    assert facts["preset"]["model"]["align_corners"] is restored.network.align_corners
    # whose machine it was is not told
    assert not re.search(rb"\.py\b|site-packages", written.read_bytes())
