"""`ccnet train --dry-run`: what a run would be, for every preset, without data."""

from pathlib import Path

import pytest
import tiny
import yaml

from ccnet_cli import cli, config
from ccnet_cli.errors import InputError
from ccnet_cli.training.outline import outline
from ccnet_cli.training.request import TrainRequest

SOME = [name for name in config.names() if name.endswith("-r50-voc-512-20k")]
SOME += ["toolbox-psp", "ocnet-asp", "danet", "csail-r18-ppm", "csail-r50-upernet"]


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    return stopped.value.code


@pytest.mark.parametrize(
    "names", [pytest.param(SOME, id="some"), pytest.param(config.names(), id="all", marks=pytest.mark.slow)]
)
def test_every_preset_can_be_trained(names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in names:
        preset = config.load(name)
        plan = outline(TrainRequest(preset, device="cpu"))
        assert (plan["preset"], plan["published"]) == (name, preset.published)
        assert plan["images_at_once"] * plan["accumulation"] == plan["batch"] == preset.train.batch
        assert plan["parameters"]["all"] > plan["parameters"]["head"] > 0
    assert not list(tmp_path.iterdir())


def test_the_command_prints_it_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert call("train", "--preset", "danet", "--dry-run", "--device", "cpu", "-s", "train.micro_batch=2") == 0
    plan = yaml.safe_load(capsys.readouterr().out)
    assert (plan["images_at_once"], plan["accumulation"], plan["steps"]) == (2, 4, 89040)
    assert plan["lr"] == {"backbone": 0.003, "others": 0.03, "minimum": 0.0}
    assert (round(plan["parameters"]["head"] / 1e6, 3), [*plan["loss"]]) == (23.955, ["cross_entropy", "pam", "cam"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="19 classes"):
        outline(TrainRequest(config.load("danet", ["loss.cross_entropy.class_weights=[1, 2]"]), device="cpu"))
    capsys.readouterr()
    assert (
        call("train", "--preset", "quickstart", "--dry-run", "-s", "loss.more.kind=dice", "-s", "loss.more.output=x")
        == 2
    )
    assert capsys.readouterr().err.count("\n") == 1


def test_epochs_are_steps_of_the_images_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tiny.make_camvid(tmp_path, [(24, 32)] * 10, "train")
    words = ("train", "--preset", "camvid", "--data", str(root), "--dry-run", "--device", "cpu", "-s", "train.batch=4")
    assert call(*words, "--epochs", "20") == 0
    output = capsys.readouterr()
    # 20 x 10 / 4
    assert yaml.safe_load(output.out)["steps"] == 50
    assert "20 epochs of 10 images: 50 steps, 3 of them warm-up" in output.err
    assert call(*words, "--epochs", "20", "-s", "schedule.steps=30") == 2
    assert "option --epochs 20: schedule.steps is set too; give one of them" in capsys.readouterr().err
