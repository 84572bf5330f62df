"""Beginning a training with a file, and using other people's weights through the commands."""

import json
from pathlib import Path

import peers
import pytest
import tiny
import torch
from calls import evaluate
from runs import train

from ccnet_cli import cli, config
from ccnet_cli.commands.export import export
from ccnet_cli.errors import InputError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.models.network import build
from ccnet_cli.runs import checkpoint
from ccnet_cli.weights import load as loading
from ccnet_cli.weights.layouts import Foreign

SMALL = ["model.backbone=resnet50", "model.width=8", "model.channels=16", "model.query_channels=2"]
SMALL += ["model.auxiliary_channels=16"]


def settings(*more):
    return config.load("cityscapes-r2", [*SMALL, *more])


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "CS_scenes.pth"
    torch.save(peers.authors(width=8, channels=16, depth=50), path)
    return path


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50-imagenet.pth"
    torch.save(peers.backbone("mit", width=8), path)
    return path


def begun(path, preset, partial=False, classes=19):
    torch.manual_seed(0)
    fresh = build(preset.model, classes)
    torch.manual_seed(0)
    model = build(preset.model, classes)
    told = loading.initialize_from(model, loading.read_start(path, partial), preset.model)
    kept = [key for key, tensor in fresh.state_dict().items() if torch.equal(tensor, model.state_dict()[key])]
    return model.state_dict(), kept, told


def test_a_whole_network_begins_a_training(official):
    state, _, told = begun(official, settings())
    wanted = load_model(official).network.state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in state.items())
    assert "the authors' CCNet" in told


def test_an_imagenet_backbone_begins_a_training_and_the_head_stays_new(imagenet, capsys):
    state, kept, _ = begun(imagenet, settings())
    theirs = peers.backbone("mit", width=8)
    for key, tensor in theirs.items():
        if not key.startswith("fc."):
            assert torch.equal(state[f"backbone.{key}"], tensor), key
    assert {key.partition(".")[0] for key in kept if "num_batches" not in key} == {"head", "auxiliary"}
    # the authors begin with this very file although its mean is two levels off theirs
    assert capsys.readouterr().err == ""


def test_what_weights_cannot_make_up_for_is_told(tmp_path, capsys):
    torch.save(peers.backbone("torchvision", width=8), tmp_path / "tv.pth")
    begun(tmp_path / "tv.pth", settings("model.stem=7x7"))
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "model.channel_order, model.std, model.mean" in told and "dilation" not in told
    with pytest.raises(InputError, match=r"conv1.weight is \(8, 3, 7, 7\), the model's is \(8, 3, 3, 3\)") as refused:
        begun(tmp_path / "tv.pth", settings("model.backbone=resnet18"))
    assert "; set model.backbone.kind=resnet50, model.backbone.stem=7x7" in str(refused.value)
    torch.save(peers.authors(width=8, channels=16, depth=50, port=True), tmp_path / "port.pth")
    begun(tmp_path / "port.pth", settings())
    assert "model.head.activation" in capsys.readouterr().err


def test_another_number_of_classes_is_refused_unless_part_will_do(official):
    with pytest.raises(InputError, match=r"head.bottleneck.3.weight is \(19, 16, 1, 1\)") as refused:
        begun(official, settings(), classes=7)
    assert ": 4 weights do not fit" in str(refused.value) and "--allow-partial" in str(refused.value)
    state, kept, _ = begun(official, settings(), partial=True, classes=7)
    parts = ("head.bottleneck.4", "auxiliary.4")
    assert [key for key in kept if "num_batches" not in key] == [
        f"{p}.{kind}" for p in parts for kind in ("weight", "bias")
    ]
    assert torch.equal(
        state["head.conva.0.weight"], peers.authors(width=8, channels=16, depth=50)["head.conva.0.weight"]
    )


def test_part_of_a_backbone_is_too_little(official):
    with pytest.raises(InputError, match="do not fit") as refused:
        begun(official, settings("model.width=4"), partial=True)
    assert "--allow-partial" not in str(refused.value)


def test_parts_that_the_model_leaves_out_may_be_left_over(official):
    state, _, _ = begun(official, settings("model.recurrence=0", "model.auxiliary=false"))
    assert not [key for key in state if "rcca" in key or key.startswith("auxiliary")]
    with pytest.raises(InputError, match="has no place"):
        more = Foreign("", {}, {"backbone.a": torch.ones(1), "c.d": torch.ones(1)})
        loading.fitting_weights({"backbone.a": torch.ones(1)}, loading.Start(Path("f"), more, partial=False))


@pytest.fixture
def street(tmp_path):
    return tiny.make_camvid(tmp_path / "street", [(33, 41), (40, 24)], "train"), tiny.make_camvid(
        tmp_path / "street", [(33, 41), (24, 40)]
    )


def test_a_run_begun_with_other_weights_remembers_them(street, imagenet, tmp_path, capsys):
    few = [*SMALL, "model.dropout=0", "data.crop=24,32", "data.workers=0", "train.batch=2", "schedule.steps=1"]
    preset = config.load("camvid", [*few, "schedule.warmup=0", f"data.root={street[0]}", "train.precision=fp32"])
    run = train(preset, tmp_path / "run", weights=imagenet)
    assert "beginning with" in capsys.readouterr().err
    content = checkpoint.read(run / "last.pt")
    assert content["origin"].startswith("resnet50-imagenet.pth: MIT's resnet50")
    # continued, it is still remembered
    mapping = config.to_mapping(preset)
    config.override(mapping, "schedule.steps=2")
    train(config.from_mapping(mapping), run, resume="auto")
    assert checkpoint.read(run / "last.pt")["origin"] == content["origin"]
    assert load_model(run / "last.pt").step == 2


def test_eval_scores_other_people_s_weights(street, tmp_path):
    state = peers.authors(width=8, channels=16, depth=50, classes=11)
    torch.save({"state_dict": state}, tmp_path / "camvid.pth")
    result = evaluate(tmp_path / "camvid.pth", str(street[1]), device="cpu")
    ours = export(tmp_path / "camvid.pth", tmp_path / "ours.pt")
    again = evaluate(ours, str(street[1]), device="cpu")
    assert result.miou == again.miou and result.settings["dataset"] == "camvid" and result.images == 2
    # another number of passes is another network
    once = evaluate(tmp_path / "camvid.pth", str(street[1]), device="cpu", overrides=["model.recurrence=0"])
    assert once.classes != result.classes


def test_the_command_line_takes_other_people_s_weights(street, official, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    torch.save(peers.authors(width=8, channels=16, depth=50, classes=11), "camvid.pth")
    picture = tiny.write(tmp_path / "img.png", tiny.picture(40, 56, 1))

    def run(*words):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(word) for word in words])
        assert not stopped.value.code, capfd.readouterr().err
        return capfd.readouterr()

    score = run("eval", "camvid.pth", "--data", street[1], "--json", "-")
    assert json.loads(score.out)["images"] == 2 and "the authors' CCNet" in score.err
    run("predict", picture, "-o", "mask.png", "--checkpoint", official, "-s", "model.recurrence=1")
    run("visualize", picture, "--point", "20,20", "--checkpoint", official)
    run("export", official, "--format", "official", "-o", "back.pth")
    run("export", "back.pth", "-o", "ours.pt")
    assert checkpoint.read(Path("ours.pt"))["origin"].startswith("back.pth")


def test_choices_of_the_command_line_change_a_checkpoint_of_ours_too(tmp_path):
    saved = tiny.save_checkpoint(tmp_path)
    assert load_model(saved, overrides=["model.recurrence=1"]).network.recurrence == 1
    assert load_model(saved, overrides=["eval.flip=true"]).preset.eval.flip
    with pytest.raises(InputError, match="do not fit"):
        load_model(saved, overrides=["model.channels=16"])
    with pytest.raises(InputError, match="do not fit"):
        load_model(saved, "camvid")
