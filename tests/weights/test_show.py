"""What `ccnet weights show` says of a file."""

import hashlib
import json

import peers
import pytest
import torch

from ccnet_cli.commands.export import export
from ccnet_cli.weights import catalogue
from ccnet_cli.weights.download import get
from ccnet_cli.weights.show import describe


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "cache"))


def test_other_people_s_file_and_ours(tmp_path):
    torch.save(state := peers.authors(width=8, channels=16, depth=50), path := tmp_path / "a.pth")
    facts = describe(path)
    assert facts["what"].startswith("the authors' CCNet, resnet50, 19 classes")
    assert (facts["bytes"], facts["classes"], facts["data"]) == (path.stat().st_size, 19, "cityscapes")
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and facts["catalogue"] is None
    assert facts["backbone"]["kind"] == "resnet50" and facts["head"]["recurrence"] == 2
    assert facts["input"]["channel_order"] == "bgr" and facts["input"]["align_corners"] is True
    assert facts["weights"] == sum(tensor.numel() for tensor in state.values())
    ours = describe(export(path, tmp_path / "ours.safetensors"))
    assert ours["what"] == "a checkpoint of inferred, step 0" and "the authors' CCNet" in ours["origin"]
    assert ours["backbone"] == {**ours["backbone"], **facts["backbone"]} and ours["input"] == facts["input"]


def test_a_backbone_under_its_name(tmp_path, ccnet):
    torch.save(peers.backbone("mit 2019", depth=18, width=8), path := tmp_path / "r.pth")
    name = "mit-resnet18-imagenet"
    cached = get(catalogue.find(name), str(path))
    shown = json.loads(ccnet("weights", "show", name, "--json", "-", CCNET_CACHE=str(tmp_path / "cache")).stdout)
    assert shown["cached"] == shown["file"] == str(cached) and shown["catalogue"] == shown["name"] == name
    assert shown["licence"] == "BSD-3-Clause" and shown["input"]["channel_order"] == "rgb"
    assert "red first" in shown["what"] and shown["classes"] is None and shown["head"] is None
    table = ccnet("weights", "show", str(path)).stdout
    assert "backbone.stem" in table and "deep" in table and "for pixels of unit deviation" in table


def test_what_is_no_file_of_weights(tmp_path, ccnet):
    (tmp_path / "a.txt").write_text("hello")
    for name, words in (("a.txt", "not a file that torch.save wrote"), ("b.pth", "does not exist"), (".", "a folder")):
        result = ccnet("weights", "show", name)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1) and words in result.stderr
