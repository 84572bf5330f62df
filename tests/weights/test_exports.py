"""Networks in the layouts of their owners: read and written again, a file is what it was."""

from pathlib import Path

import head_peers
import other_peers
import peers
import pytest
import torch

from ccnet_cli import config
from ccnet_cli.commands.export import export
from ccnet_cli.datasets import classes_of
from ccnet_cli.errors import InputError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.models.network import build
from ccnet_cli.runs import checkpoint

OCNET = {name: "ocnet" for name in other_peers.OTHERS if name.startswith("OCNet")}
OPENSEG = {name: "openseg" for name in other_peers.OTHERS if name.startswith("openseg")}


def check_same(written: dict, state: dict, abn: bool = False) -> None:
    """The same keys, shapes and values, but for the signs of in-place ABN's scales, which it does not use."""
    assert written.keys() == state.keys()
    for key, tensor in state.items():
        assert written[key].shape == tensor.shape and written[key].dtype == tensor.dtype, key
        scale = abn and f"{key.removesuffix('weight')}running_mean" in state and key.endswith("weight")
        if scale:
            torch.testing.assert_close(written[key], tensor.abs(), rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(written[key], tensor), key


@pytest.mark.parametrize("name", [*OCNET, *OPENSEG])
def test_ocnet_s_and_openseg_s_files_come_back(name: str, tmp_path: Path):
    state, layout = other_peers.other(name, 50 if "base" in name else 18), {**OCNET, **OPENSEG}[name]
    torch.save(state, tmp_path / "theirs.pth")
    export(tmp_path / "theirs.pth", tmp_path / "ours.pt")
    for source in ("theirs.pth", "ours.pt"):
        written = torch.load(export(tmp_path / source, tmp_path / "back.pth", layout), weights_only=True)
        check_same(written, state, abn=other_peers.OTHERS[name][7])
    for other in {"ocnet", "openseg", "mmseg", "toolbox"} - {layout}:
        with pytest.raises(InputError, match="the model is no"):
            export(tmp_path / "ours.pt", tmp_path / "other.pth", other)


@pytest.mark.parametrize(("index", "name"), list(enumerate(["CCNet", *head_peers.MMSEG])))
def test_mmsegmentation_s_files_come_back(index: int, name: str, tmp_path: Path):
    align_corners = index % 2 == 1
    own = peers.mmseg(depth=50, width=8, channels=16, classes=5) if name == "CCNet" else head_peers.mmseg(name, 18)
    words = f"align_corners={align_corners}, mode='dot_product', recurrence=1, dilations=(1, 6, 12, 18)"
    text = f"model = dict(decode_head=dict(type='X', {words}))"
    torch.save({"meta": {"config": text}, "state_dict": own}, tmp_path / "theirs.pth")
    export(tmp_path / "theirs.pth", tmp_path / "ours.pt")
    written = export(tmp_path / "ours.pt", tmp_path / "back.pth", "mmseg")
    check_same(torch.load(written, weights_only=True)["state_dict"], own)
    before, after = (load_model(tmp_path / file).preset.model for file in ("theirs.pth", "back.pth"))
    assert before == after and before.align_corners == align_corners
    for other in ("ocnet", "openseg", "torchvision"):
        with pytest.raises(InputError, match="the model is no"):
            export(tmp_path / "ours.pt", tmp_path / "other.pth", other)


@pytest.mark.parametrize(
    "change", ["model.mean=[1.0, 2.0, 3.0]", "model.backbone.pool=ceil", "model.head.order=map_last"]
)
def test_what_mmsegmentation_has_not_is_not_written_as_its_own(change: str, tmp_path: Path):
    torch.save({"state_dict": head_peers.mmseg("PSPNet", 18)}, tmp_path / "theirs.pth")
    with pytest.raises(InputError, match="the model is no network of mmsegmentation's"):
        export(tmp_path / "theirs.pth", tmp_path / "back.pth", "mmseg", overrides=[change])


@pytest.mark.parametrize("name", ["mmseg-psp-r50-voc-512-20k", "mmseg-fcn-r50-voc-512-20k", "mmseg-r50-voc-512-20k"])
def test_a_model_of_a_recipe_is_written_as_its_owner_s(name: str, tmp_path: Path):
    small = ["model.backbone.width=8", "model.head.channels=16", "model.auxiliary.channels=6"]
    preset = config.load(name, small)
    content = {"format": checkpoint.FORMAT, "model": build(preset.model, 21).state_dict(), "step": 0, "metrics": {}}
    content |= {"preset": config.to_mapping(preset), "classes": classes_of(preset.data).to_mapping()}
    path = tmp_path / "own.pt"
    torch.save(content, path)
    written = torch.load(export(path, tmp_path / "back.pth", "mmseg"), weights_only=True)
    own = torch.load(path, weights_only=True)["model"]
    assert sorted(t.numel() for t in written["state_dict"].values()) == sorted(t.numel() for t in own.values())
    again = load_model(tmp_path / "back.pth").network.state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in own.items())
    with pytest.raises(InputError, match="the model is no network of mmsegmentation's"):
        export(path, tmp_path / "other.pth", "mmseg", overrides=["model.backbone.stem=7x7"])
