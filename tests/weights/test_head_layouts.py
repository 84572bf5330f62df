"""Networks with other heads, of other projects: every tensor lands, and scores are those of a second rendering."""

from pathlib import Path

import head_peers as peers
import other_peers
import pytest
import torch

import ccnet_cli
from ccnet_cli.commands.export import export
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


# the others resize nothing, or are tried without
ALIGNED = [(name, True) for name in ("PSPNet", "DeepLabv3+", "UPerNet")]


@pytest.mark.parametrize(("name", "align_corners"), [*((name, False) for name in peers.MMSEG), *ALIGNED])
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


@pytest.mark.parametrize("name", ["FCN", "GCNet", "DANet", "UPerNet"])
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


@pytest.mark.parametrize("name", other_peers.OTHERS)
def test_networks_of_other_projects(name, tmp_path, capsys):
    state = other_peers.other(name)
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
    model = ccnet_cli.load(save({"state_dict": wrapped, "epoch": 3}, tmp_path / "network.pth"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and name.partition(",")[0] in said and "resnet50, 5 classes" in said
    abn = other_peers.OTHERS[name][7]
    assert ("as in-place ABN does" in said) == abn
    if not abn:
        check_landed(model, state, "pretrained.fc.")
    for size in SIZES:
        x = picture(size)
        wanted = other_peers.other_forward(name, state, x)
        check(model, wanted, x)
    assert len(wanted) == 1 + (model.auxiliary is not None)


@pytest.mark.parametrize("name", other_peers.OTHERS)
def test_a_damaged_file_of_other_projects_is_refused_in_one_line(name, tmp_path):
    prefix = other_peers.OTHERS[name][3] or "layer"
    for part in ("head", "backbone"):
        state = other_peers.other(name)
        keys = [key for key in state if key.endswith("running_var")]
        own = [key for key in keys if key.startswith(prefix) == (part == "backbone") and "layer5" not in key]
        state.pop(own[-1].replace("running_var", "weight") if own else "layer5.1.weight")
        with pytest.raises(InputError) as refused:
            load_model(save(state, tmp_path / f"{part}.pth"))
        assert "\n" not in str(refused.value) and "network.pth" not in str(refused.value)


def test_an_ocnet_whose_query_is_not_its_key_is_refused(tmp_path):
    state = other_peers.other("OCNet's base-oc")
    state["context.2.stages.0.f_query.0.bias"] = state["context.2.stages.0.f_query.0.bias"] + 1
    with pytest.raises(InputError, match="is not its key's"):
        load_model(save(state, tmp_path / "a.pth"))


def test_ocnet_s_input_is_red_first_with_means_of_blue_first(tmp_path):
    n = ccnet_cli.load(save(other_peers.other("OCNet's base-oc"), tmp_path / "a.pth")).normalisation
    assert (n.channel_order, n.mean, n.std) == ("rgb", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))


EXPORTS = {
    "the toolbox's PSPNet,": "toolbox",
    "the toolbox's DeepLabv3 with plain norms": "toolbox",
    "torchvision's FCN": "torchvision",
    "torchvision's DeepLabv3": "torchvision",
    "semseg's PSPNet": "semseg",
    "the authors' DANet": "danet",
    "PyTorch-Encoding's EncNet": "encoding",
    "PyTorch-Encoding's EncNet, lateral": "encoding",
    "OCNet's base-oc": "ocnet",
    "openseg's ISANet": "openseg",
}


@pytest.mark.parametrize("name", EXPORTS)
def test_a_network_is_written_in_its_own_layout_and_no_other(name, tmp_path):
    state = other_peers.other(name)
    path, ours = save(state, tmp_path / "theirs.pth"), tmp_path / "ours.pt"
    export(path, ours)
    written = torch.load(export(ours, tmp_path / "back.pth", EXPORTS[name]), weights_only=True)
    left = {key for key in state if not key.startswith("pretrained.fc.")}
    assert {key for key in written if not key.endswith("num_batches_tracked") or key in left} == left
    x = picture(SIZES[1])
    scores = [other_peers.other_forward(name, each, x) for each in (written, state)]
    for got, wanted in zip(*scores, strict=True):
        assert float((got - wanted).abs().max() / wanted.std()) < 1e-5
    other = "semseg" if EXPORTS[name] != "semseg" else "toolbox"
    with pytest.raises(InputError, match="the model is none of"):
        export(ours, tmp_path / "other.pth", other)
    pool = "ceil" if EXPORTS[name] not in ("toolbox", "ocnet", "openseg") else "floor"
    with pytest.raises(InputError, match="the model is none of"):
        export(ours, tmp_path / "other.pth", EXPORTS[name], overrides=[f"model.backbone.pool={pool}"])
