"""Safetensors, read and written: equal to the tensors, and to what the format's description says byte by byte."""

import json
import struct

import peers
import pytest
import torch

import ccnet_cli
from ccnet_cli.commands.export import export
from ccnet_cli.errors import InputError
from ccnet_cli.runs import safetensors, torchfile


def test_the_bytes_are_those_of_the_format(tmp_path):
    tensors = {"b": torch.tensor([[1.5, -2.0]]), "a": torch.tensor(7), "c": torch.tensor([True, False, True])}
    with (path := tmp_path / "x.safetensors").open("wb") as file:
        safetensors.write(file, tensors)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    assert header == {
        "a": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16]},
        "c": {"dtype": "BOOL", "shape": [3], "data_offsets": [16, 19]},
    }
    assert content[8 + length :] == struct.pack("<qff???", 7, 1.5, -2.0, True, False, True)


@pytest.mark.parametrize("dtype", safetensors.DTYPES.values(), ids=str)
def test_every_type_and_shape_comes_back(tmp_path, dtype):
    whole = torch.arange(-8, 16).reshape(2, 3, 4).to(dtype)
    tensors = {"whole": whole, "turned": whole.transpose(0, 2), "none": whole[:0], "scalar": whole[0, 0, 1]}
    with (path := tmp_path / "x.safetensors").open("wb") as file:
        safetensors.write(file, tensors)
    back = torchfile.read(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == dtype and torch.equal(back[name], tensor), name


def test_a_checkpoint_is_exported_and_loaded_with_its_facts(tmp_path):
    torch.save(peers.authors(width=8, channels=16, depth=50), source := tmp_path / "a.pth")
    path = export(source, tmp_path / "ours.safetensors")
    plain = export(source, tmp_path / "ours.pt")
    one, other = (ccnet_cli.load(each) for each in (path, plain))
    for key, tensor in other.state_dict().items():
        assert torch.equal(one.state_dict()[key], tensor), key
    facts = [{k: v for k, v in torchfile.read(each).items() if k != "model"} for each in (path, plain)]
    assert json.dumps(facts[0]) == json.dumps(facts[1])
    # in the authors' layout, and other people's names
    theirs = export(source, tmp_path / "theirs.safetensors", "official")
    assert "head.cca.gamma" in torchfile.read(theirs)
    for key, tensor in ccnet_cli.load(theirs).state_dict().items():
        assert torch.allclose(tensor.float(), other.state_dict()[key].float(), atol=1e-5), key


def test_paddle_s_files_are_refused_with_a_way_out(tmp_path):
    (path := tmp_path / "model.pdparams").write_bytes(b"\x80\x04\x95")
    with pytest.raises(
        InputError, match=r"PaddlePaddle, whose pickled arrays are not read; write its arrays with torch"
    ):
        torchfile.read(path)
