"""Models handed on: our file without the training's state, and the authors' layout, there and back."""

import math
import random
from pathlib import Path

import peers
import pytest
import tiny
import torch

import ccnet_cli
from ccnet_cli import cli, config
from ccnet_cli.commands import export as exporting
from ccnet_cli.commands.export import export
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.runs import checkpoint, torchfile
from ccnet_cli.weights.layouts import LAYOUTS, Misfit
from ccnet_cli.weights.layouts.abn import scale_before_abs

WIDTH, CHANNELS = 16, 64


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def picture(size):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(5))


def difference(got, wanted):
    return float((got - wanted).abs().max() / wanted.std())


@torch.no_grad()
def scores(model, x):
    main, named, _ = model.outputs(x)
    return main, named.get("auxiliary")


def test_an_exported_model_is_the_same_without_its_training_state(tmp_path):
    content = checkpoint.read(tiny.save_checkpoint(tmp_path / "run"))
    random_state = {"torch": torch.get_rng_state(), "cuda": None, "python": random.getstate()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(100_000)}}, "param_groups": [{}]}
    training = {"model": None, "optimizer": optimizer, "scaler": {}, "best": -1.0, "random": [random_state]}
    whole = checkpoint.save(tmp_path / "whole", 3, content | {"training": training, "step": 3}, keep=2)
    small = export(whole, tmp_path / "small.pt")
    assert small.stat().st_size < whole.stat().st_size - 400_000
    assert "training" not in checkpoint.read(small)
    wanted = load_model(whole).network.state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in load_model(small).network.state_dict().items())
    with pytest.raises(InputError, match="is read by this command"):
        export(whole, whole)


@pytest.mark.parametrize("counts", [False, True])
def test_official_and_back_is_the_same_file(tmp_path, counts):
    state = peers.authors(width=8, channels=16, counts=counts)
    first = save(state, tmp_path / "official.pth")
    ours = export(first, tmp_path / "ours.pt")
    back = export(ours, tmp_path / "back.pth", "official")
    written = torchfile.read(back)
    assert written.keys() == state.keys()
    scales = [key for key in state if key.replace("weight", "running_mean") in state and key.endswith("weight")]
    assert len(scales) == 110
    for key, tensor in state.items():
        if key in scales:
            # the sign is not to be had back; what the authors' network makes of it is, to the bit
            assert torch.equal(written[key].abs() + 1e-5, tensor.abs() + 1e-5)
        else:
            assert torch.equal(written[key], tensor) and written[key].dtype == tensor.dtype, key
    again = load_model(back).network.state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in load_model(ours).network.state_dict().items())


def test_the_conversion_is_made_once_and_remembered(tmp_path):
    state = peers.authors(width=8, channels=16, depth=50)
    ours = export(save(state, tmp_path / "official.pth"), tmp_path / "ours.pt")
    content = torchfile.read(ours)
    assert torch.equal(content["model"]["backbone.bn1.weight"], state["bn1.weight"].abs() + 1e-5)
    assert "abs(w) + 1e-5" in content["origin"] and "official.pth" in content["origin"]
    again = export(ours, tmp_path / "again.pt")
    assert torch.equal(torchfile.read(again)["model"]["backbone.bn1.weight"], content["model"]["backbone.bn1.weight"])
    assert torchfile.read(again)["origin"] == content["origin"]


def test_scales_that_in_place_abn_cannot_have_move_into_their_convolutions(tmp_path, capsys):
    """A plain norm may have negative and tiny scales: the function of the network must not change."""
    base = export(save(peers.authors(width=WIDTH, channels=CHANNELS, depth=50), tmp_path / "a.pth"), tmp_path / "b.pt")
    content = torchfile.read(base)
    values = torch.tensor([-0.7, 0.0, 3e-6, -2e-7, 1e-5, 1.00001e-5, 0.3, 1.0])
    norms = ("backbone.bn2", "backbone.layer2.0.downsample.1", "backbone.layer3.1.bn2", "head.conva.1", "auxiliary.1")
    for norm in norms:
        content["model"][f"{norm}.weight"][: len(values)] = values
    torch.save(content, tmp_path / "c.pt")
    back = export(tmp_path / "c.pt", tmp_path / "d.pth", "official")
    assert "20 batch-norm scales" in capsys.readouterr().err
    x = picture((65, 97))
    wanted = scores(load_model(tmp_path / "c.pt").network, x)
    for got, expected in zip(peers.authors_forward(torchfile.read(back), x, 2), wanted, strict=True):
        assert difference(got, expected) < 1e-4


def test_without_the_extra_an_onnx_file_is_neither_written_nor_read(tmp_path, monkeypatch, capsys):
    checkpoint = tiny.save_checkpoint(tmp_path / "run")
    (tmp_path / "model.onnx").write_bytes(b"")
    tiny.write(tmp_path / "image.png", tiny.picture(20, 30, 0))
    monkeypatch.setattr(onnxfile, "find_spec", lambda name: None if name.startswith("onnx") else name)
    for words in (
        ["export", checkpoint, "--format", "onnx", "-o", tmp_path / "new.onnx"],
        ["predict", tmp_path / "model.onnx", tmp_path / "image.png", "-o", tmp_path / "mask.png"],
        ["eval", tmp_path / "model.onnx"],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(word) for word in words])
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and told.count("\n") == 1
        assert "onnxruntime not installed; run pip install 'ccnet-cli[onnx]'" in told
    assert not (tmp_path / "new.onnx").exists() and not (tmp_path / "mask.png").exists()


@pytest.mark.parametrize("exponent", range(-8, 3))
def test_a_scale_that_was_converted_finds_its_way_back_to_the_bit(exponent):
    random = 10.0**exponent * (1 + 9 * torch.rand(20000, generator=torch.Generator().manual_seed(exponent + 9)))
    scale = torch.cat([random, torch.zeros(1)]) + 1e-5
    assert torch.equal(scale_before_abs(scale).abs() + 1e-5, scale)
    # of scales that were not, only those of one binade miss, by one bit
    plain = random.clamp(min=1e-5)
    again = scale_before_abs(plain).abs() + 1e-5
    tie = (plain >= 2**-14) & (plain < 2**-13)
    assert torch.equal(again[~tie], plain[~tie])
    assert ((again == plain) | (again == plain.nextafter(again)))[tie].all()


def test_without_attention_the_authors_layout_carries_an_idle_one(tmp_path):
    path = save(peers.authors(width=8, channels=16, depth=50), tmp_path / "a.pth")
    back = torchfile.read(export(path, tmp_path / "b.pth", "official", overrides=["model.recurrence=0"]))
    assert back.keys() == peers.authors(width=8, channels=16, depth=50).keys()
    x = picture((65, 65))
    model = ccnet_cli.load(path, recurrence=0)
    assert model.recurrence == 0
    # even run twice it changes nothing
    assert difference(peers.authors_forward(back, x, 2)[0], scores(model, x)[0]) < 1e-4


@pytest.mark.parametrize(
    "change", ["stem=v1c", "dilation=contracted", "pool=floor", "activation=relu", "backbone=tiny"]
)
def test_what_the_authors_network_is_not_cannot_be_written_as_theirs(change):
    settings = config.load("cityscapes-r2", [f"model.{change}"]).model
    with pytest.raises(Misfit) as refused:
        LAYOUTS["official"].export({}, settings)
    assert refused.value.fix == "use --format weights"


@pytest.mark.parametrize(("worst", "written"), [(0.0, True), (1e-4, True), (1.1e-4, False), (math.nan, False)])
def test_a_network_whose_scores_differ_is_not_written(tmp_path, monkeypatch, worst, written):
    """Of two shapes the worse counts; what is no number is no small one."""
    monkeypatch.setattr(exporting.portable, "program", lambda model, processed: model)
    monkeypatch.setattr(exporting.portable, "save", lambda traced, facts: b"graph")
    monkeypatch.setattr(exporting.portable, "load", lambda content: content)
    answers = iter([worst, 0.0])
    monkeypatch.setattr(exporting, "deviation", lambda *_: next(answers))
    saved, output = tiny.save_checkpoint(tmp_path), tmp_path / "a.pt2"
    if written:
        assert export(saved, output, "torch-export").read_bytes() == b"graph"
    else:
        with pytest.raises(EnvironmentFailure, match="of their range away from the model's"):
            export(saved, output, "torch-export")
        assert not output.exists()
