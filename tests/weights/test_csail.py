"""MIT CSAIL's pairs of files: a folder or ENCODER,DECODER; every tensor lands, and scores are a second rendering's."""

from pathlib import Path

import pytest
import torch
from csail_peers import csail, csail_forward

import ccnet_cli
from ccnet_cli import cli
from ccnet_cli.errors import InputError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.weights.load import read_start
from ccnet_cli.weights.pairs import list_files

ARCHS = [("c1", 50), ("c1_deepsup", 18), ("ppm", 101), ("ppm_deepsup", 18), ("ppm_deepsup", 50), ("upernet", 50)]


def call(words: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    return stopped.value.code


def save(parts, folder: Path, names=("encoder_epoch_20.pth", "decoder_epoch_20.pth")) -> Path:
    folder.mkdir(exist_ok=True)
    for state, name in zip(parts, names, strict=True):
        torch.save(state, folder / name)
    return folder


@pytest.mark.parametrize(("arch", "depth"), ARCHS)
def test_every_tensor_lands(arch: str, depth: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parts = csail(arch, depth)
    model = ccnet_cli.load(save(parts, tmp_path / "ade20k"))
    said = capsys.readouterr().err
    name = {"c": "C1", "p": "PPM", "u": "UPerNet"}[arch[0]]
    assert said.count("\n") == 1 and f"MIT CSAIL's {name}, resnet{depth}, 5 classes" in said
    landed = list(model.state_dict().values())
    wanted = [t for part in parts for key, t in part.items() if "_running_iter" not in key and "_tmp_" not in key]
    assert len(wanted) == len(landed)
    assert all(any(t.numel() == own.numel() and torch.equal(t, own) for own in landed) for t in wanted)
    n = model.normalisation
    assert (n.channel_order, n.mean, model.align_corners) == ("rgb", (123.675, 116.28, 103.53), False)
    for size in ((65, 97), (48, 40)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            outputs = model.outputs(x)
        scores = csail_forward(arch, parts, x)
        own = (outputs.main, *outputs.auxiliary.values())
        assert len(scores) == len(own)
        for mine, theirs in zip(own, scores, strict=True):
            assert mine.shape == theirs.shape
            assert float((mine - theirs).abs().max() / theirs.std()) < 1e-4


def test_a_pair_is_a_folder_or_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parts = csail("c1_deepsup", 18)
    folder = save(parts, tmp_path / "a,b", ("encoder_epoch_20.pth", "decoder_epoch_20.pth"))
    save(parts, folder, ("more_encoder.bin", "readme.txt"))
    save(parts, tmp_path, ("e.pth", "d.pth"))
    monkeypatch.chdir(tmp_path)
    one, other = load_model(folder).network, load_model(Path("e.pth,./d.pth")).network
    assert all(torch.equal(t, other.state_dict()[key]) for key, t in one.state_dict().items())
    assert list_files(Path("e.pth,d.pth")) == [Path("e.pth"), Path("d.pth")]
    assert list_files(folder) == [folder / "encoder_epoch_20.pth", folder / "decoder_epoch_20.pth"]
    # to begin a training with, too
    assert read_start(Path("e.pth,d.pth")).foreign.classes == 5
    # names of the catalogue are looked for in the cache
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "cache"))
    name = "csail-ade20k-resnet50dilated-ppm-deepsup"
    with pytest.raises(InputError, match=f"not in the cache; run ccnet weights get {name}-encoder"):
        load_model(Path(f"{name}-encoder,{name}-decoder"))
    # a file whose name has a comma stays one file
    torch.save({"x": torch.ones(1)}, "e.pth,d.pth")
    with pytest.raises(InputError, match="no network known here"):
        load_model(Path("e.pth,d.pth"))


def test_a_damaged_or_foreign_pair_is_refused_in_one_line(tmp_path: Path):
    encoder, decoder = csail("ppm_deepsup", 18)
    without = {key: t for key, t in decoder.items() if key != "conv_last.4.weight"}
    shorter = decoder | {"conv_last.1.bias": decoder["conv_last.1.bias"][:-1]}
    more = decoder | {"cls.weight": torch.ones(3)}
    other = {key: t for key, t in encoder.items() if not key.startswith("layer4.1.")}
    cases = [
        ((encoder, without), "decoder.conv_last.4.weight is missing"),
        ((encoder, shorter), "decoder.conv_last.1.bias is (15,)"),
        ((encoder, more), "has no place in the model"),
        ((other, decoder), "a residual network"),
        ((decoder, encoder), "give ENCODER.pth,DECODER.pth in this order"),
        ((encoder, {"y": 3}), "no state dict of tensors"),
    ]
    for index, (parts, why) in enumerate(cases):
        with pytest.raises(InputError) as refused:
            load_model(save(parts, tmp_path / f"pair{index}"))
        assert why in str(refused.value) and "\n" not in str(refused.value)
    folder = save((encoder, decoder), tmp_path / "two")
    save((encoder, decoder), folder, ("encoder_epoch_30.pth", "decoder_epoch_30.pth"))
    with pytest.raises(InputError, match="holds 2 files of a part; name the two"):
        load_model(folder)
    (folder / "decoder_epoch_20.pth").unlink()
    (folder / "decoder_epoch_30.pth").unlink()
    with pytest.raises(InputError, match=r"a folder without best\.pt"):
        load_model(folder)


def test_commands_take_a_pair_and_do_not_write_over_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = save(csail("c1", 18), tmp_path / "pair")
    assert call(["export", str(folder), "-o", str(tmp_path / "ours.pt")]) == 0
    own = load_model(tmp_path / "ours.pt").network.state_dict()
    assert all(torch.equal(t, own[key]) for key, t in load_model(folder).network.state_dict().items())
    capsys.readouterr()
    encoder = folder / "encoder_epoch_20.pth"
    before = encoder.read_bytes()
    assert call(["export", str(folder), "-o", str(encoder), "--overwrite"]) == 2
    assert encoder.read_bytes() == before and capsys.readouterr().err.count("\n") == 1
    assert call(["weights", "show", str(folder)]) == 0
    assert "MIT CSAIL's C1" in capsys.readouterr().out


@pytest.mark.parametrize(("arch", "depth"), ARCHS[1:])
def test_a_pair_comes_back_as_it_was(arch: str, depth: int, tmp_path: Path):
    parts = csail(arch, depth)
    parts = [{key: t for key, t in part.items() if "_running_iter" not in key and "_tmp_" not in key} for part in parts]
    folder = save(parts, tmp_path / "pair")
    assert call(["export", str(folder), "-o", str(tmp_path / "ours.pt")]) == 0
    names = [tmp_path / name for name in ("encoder.pth", "decoder.pth")]
    words = ["export", str(tmp_path / "ours.pt"), "--format", "csail", "-o"]
    assert call([*words, str(tmp_path / "one.pth")]) == 2
    assert call([*words, ",".join(map(str, names))]) == 0
    for name, part in zip(names, parts, strict=True):
        written = torch.load(name, weights_only=True)
        assert written.keys() == part.keys() and all(torch.equal(t, part[key]) for key, t in written.items())
    # another file is not overwritten unasked, nor is another network written
    assert call([*words, ",".join(map(str, names))]) == 2
    assert call([*words, f"{tmp_path / 'e.pth'},{tmp_path / 'd.pth'}", "-s", "model.backbone.pool=ceil"]) == 2
    assert not (tmp_path / "e.pth").exists() and not (tmp_path / "one.pth").exists()
