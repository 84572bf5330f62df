"""With which weights a run begins, and what of its preset follows them."""

from pathlib import Path

import peers
import pytest
import torch
from runs import make_horizons, preset, train

from ccnet_cli import config
from ccnet_cli.errors import InputError
from ccnet_cli.runs import checkpoint
from ccnet_cli.weights import catalogue
from ccnet_cli.weights.download import get

NAME = "mit-resnet18-imagenet"
SMALL = ("model.backbone.kind=resnet18", "model.backbone.width=8", "schedule.steps=1", "schedule.lr=1e-9")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    for kind in ("torchvision", "mit", "mit 2019"):
        torch.save(peers.backbone(kind, depth=18, width=8), folder / f"{kind}.pth")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "cache"))


def model_of(run):
    return config.load(str(run / "preset.yaml")).model


def test_stem_and_input_follow_a_backbone_s_file_and_stay_after_a_resume(data, files, tmp_path, capsys):
    run = train(preset(data, *SMALL), run=tmp_path / "run", weights=files / "torchvision.pth")
    model = model_of(run)
    assert (model.backbone.stem, model.channel_order) == ("7x7", "rgb")
    assert (model.mean[0], model.std[2]) == (123.675, 57.375)
    err = capsys.readouterr().err
    assert "with it come" in err and 'model.backbone.stem="7x7"' in err and "warning" not in err
    first = torch.load(files / "torchvision.pth", weights_only=True)["conv1.weight"]
    assert torch.allclose(checkpoint.read(run / "last.pt")["model"]["backbone.conv1.weight"], first, atol=1e-6)
    # the same command goes on with what followed then
    train(preset(data, *SMALL, "schedule.steps=2"), run=run, resume="auto")
    assert model_of(run) == model and checkpoint.read(run / "last.pt")["step"] == 2
    assert "resumed with other values of schedule.steps than before" in capsys.readouterr().err


def test_the_two_generations_of_mit_s_files_differ_in_their_input(data, files, tmp_path):
    orders = {}
    for kind in ("mit", "mit 2019"):
        run = train(preset(data, *SMALL, "train.batch=2"), run=tmp_path / kind, weights=files / f"{kind}.pth")
        orders[kind] = (model_of(run).channel_order, model_of(run).std[0], model_of(run).backbone.stem)
    assert orders == {"mit": ("bgr", 1.0, "deep"), "mit 2019": ("rgb", 58.395, "deep")}


def test_what_was_chosen_for_a_run_does_not_follow(data, files, tmp_path, capsys):
    made = preset(data, *SMALL, "model.channel_order=bgr", "model.backbone.stem=7x7")
    options = {"weights": files / "torchvision.pth", "chosen": ("model.channel_order", "data.root")}
    run = train(made, run=tmp_path / "run", **options)
    assert model_of(run) == made.model
    assert "was trained with other values of model.channel_order" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"conv1\.weight is"):
        train(preset(data, *SMALL), run=tmp_path / "b", weights=options["weights"], chosen=("model.backbone.stem",))


def test_a_preset_names_the_weights_that_its_recipe_begins_with(data, files, tmp_path, capsys):
    made = preset(data, *SMALL, f"train.weights={NAME}")
    with pytest.raises(InputError, match=f"not in the cache; run ccnet weights get {NAME}"):
        train(made, run=tmp_path / "strict", require_weights=True)
    assert not (tmp_path / "strict").exists()
    run = train(made, run=tmp_path / "scratch")
    lines = [line for line in capsys.readouterr().err.splitlines() if "from scratch" in line]
    assert len(lines) == 1 and f"run ccnet weights get {NAME}" in lines[0]
    assert checkpoint.read(run / "last.pt")["origin"] == ""
    get(catalogue.find(NAME), str(files / "mit.pth"))
    run = train(made, run=tmp_path / "warm", require_weights=True)
    assert "a backbone alone" in checkpoint.read(run / "last.pt")["origin"]
    # those of the command line come first, and null means none
    run = train(made, run=tmp_path / "other", weights=files / "mit 2019.pth")
    assert "2019" in checkpoint.read(run / "last.pt")["origin"]
    capsys.readouterr()
    run = train(preset(data, *SMALL, "train.weights=null"), run=tmp_path / "none")
    assert checkpoint.read(run / "last.pt")["origin"] == "" and "scratch" not in capsys.readouterr().err
    # what does not fit says how to do without
    with pytest.raises(InputError, match=r"begin without the recipe's by -s train\.weights=null"):
        train(preset(data, *SMALL, f"train.weights={NAME}", "model.backbone.width=16"), run=tmp_path / "wide")


def test_a_recipe_s_input_stays_unless_another_generation_of_its_file_came(data, files, tmp_path):
    """OCNet's takes red first with a file for blue first, which is its business."""
    made = preset(data, *SMALL, f"train.weights={NAME}", "model.std=[1,1,1]", "model.channel_order=rgb")
    orders = {}
    for kind in ("mit", "mit 2019"):
        get(catalogue.find(NAME), str(files / f"{kind}.pth"), again=True)
        for given in (None, Path(NAME)):
            run = train(made, run=tmp_path / f"{kind} {given}", weights=given)
            orders.setdefault(kind, set()).add((model_of(run).mean == made.model.mean, model_of(run).std[0]))
    assert orders == {"mit": {(True, 1.0)}, "mit 2019": {(False, 58.395)}}


def test_every_preset_s_weights_are_in_the_catalogue_and_fit_its_stem():
    named = {name: config.load(name) for name in config.names() if config.load(name).train.weights}
    assert {"cityscapes-r2-ohem", "mmseg-r50-voc-512-40k"} <= named.keys()
    for made in named.values():
        entry, backbone = catalogue.find(made.train.weights), made.model.backbone
        assert entry.backbone == f"{backbone.kind}, stem {backbone.stem}"
        assert not Path(made.train.weights).suffix
