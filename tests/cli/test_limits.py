"""Numbers that nobody means, in every key and every option: refused in one line before memory grows."""

import os
import resource
from pathlib import Path

import pytest
import torch
import typer

from ccnet_cli import cli, config, errors
from ccnet_cli.cli import entry
from ccnet_cli.errors import InputError
from ccnet_cli.inference.views import Views, batch_scores
from ccnet_cli.losses import LOSSES
from ccnet_cli.models.backbones import BACKBONES
from ccnet_cli.models.heads import HEADS
from ccnet_cli.models.network import build

ABSURD = ("inf", "nan", ".inf", "1e300", "-1e300", "-1", "1" + "0" * 40)
CHOICES = [
    "seed=0",
    *(f"model.head.kind={kind}" for kind in HEADS),
    *(f"model.backbone.kind={kind}" for kind in BACKBONES),
    *(f"loss.{kind}.kind={kind}" for kind in LOSSES),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(errors.VERBOSITY, "")
    return tmp_path


def load(*overrides):
    try:
        return config.load("quickstart", overrides)
    except InputError as error:
        assert str(error).isprintable()
        return None


def is_text(value):
    return isinstance(value, str) or (isinstance(value, list) and any(map(is_text, value)))


@pytest.mark.parametrize("choice", CHOICES)
def test_no_key_takes_an_absurd_number(choice):
    preset = load(choice) or load()
    keys = config.keys(preset)
    if choice != "seed=0":
        # the part's own
        keys = [key for key in keys if key.startswith(choice.partition("kind")[0])]
    for key in keys:
        before = config.value(preset, key)
        for number in ABSURD:
            word = f"[{', '.join([number] * len(before))}]" if isinstance(before, list) else number
            changed = load(choice, f"{key}={word}")
            assert changed is None or is_text(config.value(changed, key)), f"{key}={word}"


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.scale_step=1e-9"],
        ["data.scale_step=1e-300"],
        ["data.scale_step=9e-4", "data.scale_min=0.1", "data.scale_max=8"],
        ["data.scale_min=1e-9"],
        ["data.crop=16384,16384"],
        ["data.crop=1000000,1000000"],
        ["eval.tile=16384,16384"],
        ["eval.scales=[1e-9]"],
        ["eval.scales=[" + ",".join(["1"] * 33) + "]"],
        ["train.batch=1000000000"],
        ["model.std=[1e-300,1,1]"],
        ["model.mean=[1e30,0,0]"],
    ],
)
def test_keys_that_would_take_a_billion_steps_are_refused(overrides):
    assert load(*overrides) is None
    assert load("data.scale_step=0.001", "data.scale_min=0.5", "data.scale_max=2", "data.crop=2048,4096") is not None


def test_a_long_list_of_scales_in_a_file_is_refused(folder):
    text = config.dump(config.load("quickstart")).replace("scales: [1.0]", "scales: [" + "1.0, " * 20_000 + "1.0]")
    Path("long.yaml").write_text(text)
    with pytest.raises(InputError, match="too many values") as error:
        config.load("long.yaml")
    assert len(str(error.value)) < 300


def test_a_network_of_more_weights_than_memory_holds_is_refused():
    settings = config.load("cityscapes-r2", ["model.head.channels=16384", "model.head.query_channels=16384"]).model
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="its channels make"):
        build(settings, 19)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_an_image_that_a_scale_would_make_huge_is_refused():
    class Never(torch.nn.Module):
        stride, align_corners = 8, True

    image = torch.zeros(1, 3, 1, 1).expand(1, 3, 8192, 8192)
    with pytest.raises(InputError, match="8192x8192 pixels at scale 8"):
        batch_scores(Never(), image, Views(scales=(8.0,)), torch.device("cpu"))


def parameters():
    """(words of the command, option, whether it takes numbers) of every option with a value."""

    def walk(command, path):
        for parameter in getattr(command, "params", ()):
            if parameter.param_type_name == "option" and not parameter.is_flag and not parameter.hidden:
                yield path, parameter
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*path, name))

    return list(walk(typer.main.get_command(cli.app), ()))


SIZES = ("--size", "--crop", "--tile", "--point", "--scales", "--workers")
OPTIONS = [
    (" ".join(path), parameter.opts[0])
    for path, parameter in parameters()
    if parameter.type_descriptor.annotation in (int, float) or parameter.opts[0] in SIZES
]
NUMBERS = ("inf", "nan", "-inf", "1e300", "-1", "1" + "0" * 30, "1e12", "1" + "0" * 400, "")
SIZE_WORDS = ("1000000x1000000", "0x0", "-1x5", "infxinf", "1e300x1", "1" + "0" * 400 + "x1", "1e-9")
# what each command needs before its options are looked at
NEEDED = {
    ("train",): ("--preset", "quickstart"),
    ("predict",): ("a.png", "-o", "out"),
    ("visualize",): ("a.png", "--point", "1,1"),
    ("data", "make"): ("toyscapes", "toys"),
    ("bench", "gpu"): ("-o", "report.json"),
}


def test_the_options_with_numbers_are_all_found():
    assert len(OPTIONS) > 50
    assert {("train", "--timeout"), ("visualize", "--clip"), ("bench attention", "--repeats")} <= set(OPTIONS)


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_no_option_takes_an_absurd_number(command, option, capfd):
    path = tuple(command.split())
    for word in [*NUMBERS, *([*SIZE_WORDS, ",".join(["1"] * 2000)] if option in SIZES else [])]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*path, *NEEDED.get(path, ()), f"{option}={word}"])
        printed = capfd.readouterr()
        assert stop.value.code == 2, word
        (line,) = printed.err.splitlines()
        assert option in line, word
        assert len(line) < 800
        assert printed.out == ""
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("attention", "--size", "4096x4096", "--batch", "1024"),
        ("attention", "--size", "4096x4096", "--channels", "16384"),
        ("cost", "--size", "4096x4096"),
        ("growth", "--size", "4096x4096"),
        ("model", "--size", "4096x4096", "--batch", "1024"),
        ("loss", "--size", "4096x4096", "--classes", "255"),
        ("step", "--size", "4096x4096", "--batch", "1024"),
        ("eval", "--size", "4096x4096", "--classes", "255"),
        ("data", "--size", "4096x4096", "--batch", "1024"),
    ],
    ids=" ".join,
)
def test_a_benchmark_of_more_than_memory_holds_is_refused(words, capfd):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *words])
    assert stop.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "4096x4096" in line


@pytest.mark.parametrize(
    ("kernel", "asked"), [("always [madvise] never", "1"), ("[always] madvise never", None), (None, None)]
)
def test_huge_pages_are_asked_for_only_where_linux_waits_for_that(tmp_path, monkeypatch, kernel, asked):
    name = "THP_MEM_ALLOC_ENABLE"
    monkeypatch.setenv(name, "0")
    monkeypatch.delenv(name)
    if kernel is not None:
        (tmp_path / "enabled").write_text(kernel + "\n")
    entry._use_huge_pages(tmp_path / "enabled")
    assert os.environ.get(name) == asked
    monkeypatch.setenv(name, "0")
    entry._use_huge_pages(tmp_path / "enabled")
    assert os.environ[name] == "0"
