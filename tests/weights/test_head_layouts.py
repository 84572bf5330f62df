"""Networks with other heads, of other projects: every tensor lands, and scores are those of a second rendering."""

from pathlib import Path

import head_peers as peers
import pytest
import torch

import ccnet_cli
from ccnet_cli.errors import InputError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.weights.recognise import recognise

SIZES = [(65, 97), (48, 40)]


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def picture(size):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(5))


def check(model, wanted, x):
    with torch.no_grad():
        outputs = model.outputs(x)
    got = (outputs.main, outputs.auxiliary["auxiliary"]) if model.auxiliary is not None else (outputs.main,)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.shape == theirs.shape
        assert float((mine - theirs).abs().max() / theirs.std()) < 1e-4


def check_landed(model, state, *left_out):
    """Every tensor of the file is somewhere in the network."""
    landed = list(model.state_dict().values())
    for key, tensor in state.items():
        if not key.endswith("num_batches_tracked") and not key.startswith(left_out):
            assert any(t.numel() == tensor.numel() and torch.equal(t.flatten(), tensor.flatten()) for t in landed), key


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", peers.MMSEG)
def test_mmsegmentation_s_networks(name, align_corners, tmp_path, capsys):
    state = peers.mmseg(name)
    text = f"model = dict(decode_head=dict(type='X', align_corners={align_corners}, dilations=(1, 12, 24, 36)))"
    path = save({"meta": {"config": text}, "state_dict": state}, tmp_path / "network.pth")
    model = ccnet_cli.load(path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"mmsegmentation's {name.partition(',')[0]}, resnet50, 5 classes" in said
    check_landed(model, state)
    for size in SIZES:
        x = picture(size)
        check(model, peers.mmseg_forward(name, state, x, align_corners), x)


@pytest.mark.parametrize(("name", "depth"), [("PSPNet", 18), ("DeepLabv3+", 18), ("UPerNet", 18), ("DANet", 101)])
def test_mmsegmentation_s_networks_of_other_depths(name, depth, tmp_path):
    state = peers.mmseg(name, depth)
    model = ccnet_cli.load(save({"state_dict": state}, tmp_path / "network.pth"))
    x = picture(SIZES[0])
    check(model, peers.mmseg_forward(name, state, x), x)


@pytest.mark.parametrize("name", peers.MMSEG)
def test_a_damaged_file_of_mmsegmentation_is_refused_in_one_line(name, tmp_path):
    for index, spoil in enumerate((lambda s: s.pop("decode_head.conv_seg.weight"), shorten, add)):
        state = peers.mmseg(name)
        spoil(state)
        with pytest.raises(InputError) as refused:
            load_model(save(state, tmp_path / f"{index}.pth"))
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


def shorten(state):
    key = next(key for key in state if key.startswith("decode_head.") and key.endswith("bn.bias"))
    state[key] = state[key][:-1]


def add(state):
    state["decode_head.more.weight"] = torch.ones(2)


def test_dilations_and_modes_are_read_from_the_configuration():
    text = "decode_head=dict(dilations=(1, 6, 12, 18), align_corners=False), auxiliary_head=dict(dilations=(1, 2))"
    head = recognise({"state_dict": peers.mmseg("DeepLabv3"), "meta": {"cfg": text}}, Path("f")).model["head"]
    assert head["dilations"] == [6, 12, 18]
    meta = {"cfg": "decode_head=dict(mode='dot_product')"}
    nonlocal_ = {"state_dict": peers.mmseg("non-local network"), "meta": meta}
    assert recognise(nonlocal_, Path("f")).model["head"]["mode"] == "dot_product"
    nonlocal_["meta"]["cfg"] = "decode_head=dict(mode='concatenation')"
    with pytest.raises(InputError, match="non-local head of mode concatenation"):
        recognise(nonlocal_, Path("f"))
