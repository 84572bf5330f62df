"""Every head as an ONNX file, its gates open: those that training begins with, zero, would hide attention."""

import pytest
import tiny
import torch

from ccnet_cli import cli, config
from ccnet_cli.commands.export import export
from ccnet_cli.datasets import classes_of
from ccnet_cli.inference.artifact import open_artifact
from ccnet_cli.models.blocks import BLOCKS
from ccnet_cli.models.heads import HEADS
from ccnet_cli.models.network import build
from ccnet_cli.runs import checkpoint

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

# one attention over crosses, one over positions and channels
FAST = ("rcca", "danet")
SLOW = pytest.mark.slow
KINDS = [*(kind for kind in HEADS if kind not in ("rcca3d", "wrapped")), *(f"wrapped {block}" for block in BLOCKS)]


def save(folder, kind):
    """A checkpoint of a network with this head, and how far its scores of noise are from those with closed gates."""
    kind, _, block = kind.partition(" ")
    head = [f"model.head.kind={kind}", *([f"model.head.block={block}"] if block else [])]
    preset = config.load("camvid", [*tiny.OVERRIDES[:2], *head, "model.auxiliary=false"])
    torch.manual_seed(3)
    network = build(preset.model, 11).eval()
    tiny.stir(network)
    random = torch.Generator().manual_seed(4)
    noise = torch.randn((1, 3, 65, 97), generator=random)
    with torch.inference_mode():
        closed = network(noise)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.copy_(0.3 + torch.rand(weight.shape, generator=random))
    with torch.inference_mode():
        moved = (network(noise) - closed).abs().max() / closed.std()
    content = {"format": checkpoint.FORMAT, "model": network.state_dict(), "preset": config.to_mapping(preset)}
    facts = {"classes": classes_of(preset.data).to_mapping(), "step": 1, "metrics": {}}
    return checkpoint.save(folder, 1, content | facts, keep=2), float(moved)


@pytest.mark.parametrize("kind", [kind if kind in FAST else pytest.param(kind, marks=SLOW) for kind in KINDS])
def test_every_head_answers_as_torch_does(kind, tmp_path):
    file, moved = save(tmp_path / "run", kind)
    assert kind not in FAST or moved > 0.01
    export(file, tmp_path / "plain.onnx", "onnx")
    ours, theirs = open_artifact(file).network, open_artifact(tmp_path / "plain.onnx").network
    for seed, shape in enumerate([(2, 3, 40, 56), (1, 3, 33, 130)]):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            wanted, got = ours(x), theirs(x)
        assert (got - wanted).abs().max() <= 1e-3 * wanted.std()
        assert (got.argmax(1) == wanted.argmax(1)).float().mean() >= 0.999


@pytest.mark.parametrize("output", ["a.onnx", "a.xml"])
def test_a_head_of_clips_is_refused_in_one_line(output, tmp_path, capsys):
    if output == "a.xml":
        pytest.importorskip("openvino")
    file, _ = save(tmp_path / "run", "rcca3d")
    with pytest.raises(SystemExit) as stopped:
        cli.main(
            ["export", str(file), "--format", "openvino" if "xml" in output else "onnx", "-o", str(tmp_path / output)]
        )
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and "its head takes clips" in error
    assert not (tmp_path / output).exists()
