"""`ccnet train --data DIR` without a preset: what is proposed for which folder, and that nothing is written over."""

from pathlib import Path

import exports
import numpy as np
import pytest
import torch
import yaml
from runs import make_horizons

from ccnet_cli import config
from ccnet_cli.cli import main
from ccnet_cli.commands import propose
from ccnet_cli.errors import InputError
from ccnet_cli.media import images

CPU = torch.device("cpu")
SMALL = ("model.backbone.width=8", "model.head.channels=16", "model.auxiliary.channels=8", "schedule.steps=2")
QUICK = [word for key in (*SMALL, "train.batch=2", "data.workers=0", "train.precision=fp32") for word in ("-s", key)]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_horizons(tmp_path / "horizons")


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([*words])
    return stop.value.code


def keys(folder, **changes):
    return config.load(propose.propose(folder, CPU).mapping)


def repaint(data, paint):
    """The labels, rewritten as paint says."""
    for path in (data / "labels").rglob("*.png"):
        images.write_image(path, paint(images.read_label(path)))


def test_folders_without_a_preset_are_trained_by_one_that_is_written(data, tmp_path, capsys):
    assert run("train", "--data", "horizons", "-o", "run", "--device", "cpu", *QUICK) == 0
    printed = capsys.readouterr().err.splitlines()[0]
    assert printed.startswith("ccnet: horizons: 6 images of about 56x40, 2 classes, ") and "horizons.yaml" in printed
    assert "8 crops of 56x40, 150 steps" in printed
    written = config.load("horizons.yaml")
    assert written.data.root == str(data) and written.data.crop == (40, 56) and written.data.fit is None
    assert written.data.classes == ["value 0", "value 1"]
    assert written.train.early_stop.patience == 4 and written.eval.every == 15
    assert config.load("run/preset.yaml").data.classes == written.data.classes


def test_no_file_is_written_over(data, tmp_path):
    proposal = propose.propose(data, CPU)
    (tmp_path / "horizons.yaml").write_text("mine: true\n")
    assert propose.write(proposal, tmp_path) == tmp_path / "horizons-2.yaml"
    assert (tmp_path / "horizons.yaml").read_text() == "mine: true\n"
    # the same proposal again needs no other file
    assert propose.write(proposal, tmp_path) == tmp_path / "horizons-2.yaml"
    (tmp_path / "horizons-3.yaml").mkdir()
    (tmp_path / "horizons-2.yaml").write_text("mine: true\n")
    assert propose.write(proposal, tmp_path) == tmp_path / "horizons-4.yaml"


def test_a_dry_run_writes_nothing(data, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run("train", "--data", "horizons", "--dry-run", "--device", "cpu") == 0
    assert yaml.safe_load(capsys.readouterr().out)["steps"] == 150
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_data_convert_has_its_preset(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exports.labelme(tmp_path / "photos", {name: exports.scene(index) for index, name in enumerate("abc")})
    assert run("train", "--data", "photos") == 2
    assert (
        "run ccnet data convert photos photos-labels, then ccnet train --data photos-labels" in capsys.readouterr().err
    )
    assert run("data", "convert", "photos", "photos-labels") == 0
    assert run("train", "--data", "photos-labels", "--dry-run", "--device", "cpu") == 0
    assert "photos-labels: trained by photos-labels/preset.yaml" in capsys.readouterr().err
    assert not (tmp_path / "photos-labels.yaml").exists()


@pytest.mark.parametrize(
    ("paint", "labels"),
    [
        (lambda ids: ids * 255, {"0": "value 0", "255": "value 255"}),
        (lambda ids: ids + 3, {"3": "value 3", "4": "value 4"}),
        (lambda ids: np.where(ids[..., None] == 1, [128, 64, 128], [0, 0, 255]).astype(np.uint8), {
            "#804080": "#804080", "#ff0000": "#ff0000",
        }),
    ],
)  # fmt: skip
def test_values_and_colours_become_classes(data, paint, labels):
    repaint(data, paint)
    made = keys(data)
    assert made.data.labels == labels and set(made.data.classes) == set(labels.values())


def test_names_of_classes_are_read_of_a_file(data):
    (data / "classes.txt").write_text("sky\nroad\n")
    assert keys(data).data.classes == ["sky", "road"]


def test_lists_are_used_and_images_without_a_split_are_parted(data):
    rows = [f"images/train/{index}.png\tlabels/train/{index}.png\n" for index in range(5)]
    (data / "train.lst").write_text("".join(rows))
    made = keys(data).data
    assert made.train_list == "train.lst" and made.val_fraction is None
    (data / "images/val").rename(data / "elsewhere")
    made = keys(data).data
    assert made.train_list == "train.lst" and made.val_fraction == propose.VAL_FRACTION


@pytest.mark.parametrize(("size", "fit"), [((720, 960), (480, 360)), ((360, 480), None)])
def test_published_data_are_known_by_their_folders(tmp_path, size, fit):
    for split in ("train", "val"):
        images.write_image(tmp_path / f"set/{split}/a.png", np.zeros((*size, 3), np.uint8))
        images.write_label(tmp_path / f"set/{split}annot/a.png", np.zeros(size, np.uint8))
    made, recipe = keys(tmp_path / "set"), config.load("camvid-strong")
    assert made.data.dataset == "camvid" and made.data.classes is None
    assert made.data.crop == recipe.data.crop and made.schedule == recipe.schedule and made.loss == recipe.loss
    assert made.data.fit == fit == made.eval.fit
    gpu = propose.propose(tmp_path / "set", torch.device("cuda")).mapping if torch.cuda.is_available() else None
    assert gpu is None or gpu["base"] == "finetune"


def test_a_folder_of_nothing_known_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no data set known by its folders, and no images/ with labels/"):
        propose.propose(tmp_path / "empty", CPU)
    with pytest.raises(InputError, match="does not exist"):
        propose.propose(tmp_path / "nothing", CPU)


@pytest.mark.parametrize(
    ("memory", "processes", "batch"), [(1 << 40, 1, 8), (1 << 40, 2, 8), (1 << 40, 3, 9), (10_000_000, 1, 4), (1, 2, 4)]
)
def test_the_batch_follows_the_memory(memory, processes, batch):
    recipe = propose.Recipe("camvid", 384, 1000, 6, 150, 800)
    made = propose.fit_batch([25, 48], recipe, memory, processes)
    assert made == batch
    assert made == 2 * processes or made // processes * 25 * 48 * 1000 <= memory / 2


def test_each_of_several_processes_would_write_its_own(data, monkeypatch, capsys):
    assert run("train", "--data", "horizons", "--nodes", "2", "--rendezvous", "here:1234") == 2
    assert "missing, and several machines or processes would each write one" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert run("train", "--data", "horizons") == 2
    assert not Path("horizons.yaml").exists()
