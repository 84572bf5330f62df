"""Commands, options and keys of the README and the guides exist; pictures are what the commands beside them draw."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer

from ccnet_cli import cli, config
from ccnet_cli.cli import entry
from ccnet_cli.media import images

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "ccnet_cli" / "guides").glob("*.md"))}
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
MANUAL = "\n".join([README, *GUIDES.values(), CONTRIBUTING])


def blocks(text: str) -> list[str]:
    """The shell blocks of a text."""
    return re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)


def commands(text: str = MANUAL) -> list[str]:
    """Every `ccnet ...` of a text: in its shell blocks, and in code spans."""
    lines = [part.strip() for block in blocks(text) for line in block.splitlines() for part in line.split("&&")]
    spans = re.findall(r"`(ccnet [^`\n]+)`", text)
    # a word in capitals stands for any command
    return [line for line in dict.fromkeys([*lines, *spans]) if line.startswith("ccnet ") and "COMMAND" not in line]


def parse(line: str) -> tuple[str, dict[str, object]]:
    """The command's name and its arguments' values; raises where the command or an option does not exist."""
    words = entry.resume_alone(shlex.split(line)[1:])
    command = typer.main.get_command(cli.app)
    if words and words[0] in {option for parameter in command.params for option in parameter.opts}:
        return command.name, {}
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    # a bare name is how the text speaks of a command
    return command.name, command.make_context(command.name, words).params if words else {}


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_manual_exists(line: str):
    name, values = parse(line)
    if name == "train" and values and values["preset"] is None:
        # what a run was made of lies in its folder, and for data one is proposed
        assert values["resume"] or values["data"]
    elif name == "train" and values and not str(values["preset"]).endswith(".yaml"):
        assert config.load(str(values["preset"]), values["overrides"] or ())


@pytest.mark.parametrize("line", ["ccnet fly", "ccnet train --preset x --fast", "ccnet eval a b", "ccnet compare -o x"])
def test_the_check_refuses_what_does_not_exist(line: str):
    with pytest.raises((typer.exceptions.TyperException, KeyError)):
        parse(line)


def test_the_readme_shows_the_promised_lines():
    assert {
        "ccnet train --preset quickstart",
        "ccnet eval",
        "ccnet predict img.png -o mask.png",
        "ccnet visualize --point 300,400",
    } <= set(commands(README))


def test_both_one_line_commands_pin_torch():
    one_liners = [block for block in blocks(README) if "venv" in block]
    assert len(one_liners) == 2
    for block in one_liners:
        assert len(block.splitlines()) == 1
        assert "pip install torch==2.13.0 " in block
    assert one_liners[1].rstrip().endswith("&& pytest")


def test_the_ten_lines_for_own_data_are_a_preset(tmp_path: Path):
    block, *_ = re.findall(r"^```yaml\n(.*?)^```", GUIDES["data"], re.M | re.S)
    assert len(block.splitlines()) <= 10
    path = tmp_path / "mine.yaml"
    path.write_text(block)
    assert config.load(str(path)).data.dataset == "folder"


def test_every_override_of_the_manual_is_a_preset_key():
    overrides = re.findall(r'-s ([\w.]+=[^\s`|"]+)', MANUAL)
    assert len(overrides) > 10
    for override in overrides:
        if override.endswith(("=pooled", "=mine")) or "soft_dice" in override:
            # parts that the reader adds
            continue
        # files that the reader has, and options of pets' own preset
        before = {"data.clip": "model.head.kind=rcca3d", "loss.together.phi": "loss.together.kind=category_consistent"}
        first = [setting for start, setting in before.items() if override.startswith(start)]
        assert config.load("cityscapes-r2-ohem", [*first, override.replace("=FILE", "=val.lst")])


def test_what_stands_beside_the_authors_flags_exists():
    rows = re.findall(r"^\| (`--.*?) \| (.*) \|$", GUIDES["data"], re.M)
    assert len(rows) > 10
    commands = typer.main.get_command(cli.app).commands
    known = {option for name in ("train", "eval") for parameter in commands[name].params for option in parameter.opts}
    ours = [word for _, cell in rows for span in re.findall(r"`([^`]+)`", cell) for word in span.split()]
    assert {word for word in ours if word.startswith("-")} <= known
    keys = [word for word in ours if re.fullmatch(r"(data|model|train)\.\w+", word)]
    assert keys and set(keys) <= set(config.keys(config.load("cityscapes-r2-ohem")))


def test_a_command_beside_each_picture_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pictures = re.findall(r"!\[[^]]*\]\((\S+?)\)", MANUAL)
    assert pictures
    # where no run of the reader's is newer than the demo weights
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCNET_CHECKPOINT", raising=False)
    for name in pictures:
        (command,) = [line for line in commands() if line.endswith(f"-o {name}")]
        (tmp_path / name).parent.mkdir()
        with pytest.raises(SystemExit) as done:
            cli.main(shlex.split(command)[1:])
        assert done.value.code == 0
        kept, drawn = (images.read_image(folder / name).astype(int) for folder in (ROOT, tmp_path))
        assert kept.shape == drawn.shape and (ROOT / name).stat().st_size < 500_000
        # fonts differ between versions of OpenCV, and rounding between processors
        assert np.abs(kept - drawn).mean() < 2


def test_the_readme_is_short_and_links_every_guide():
    assert len(README.splitlines()) <= 220
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert {f"ccnet_cli/guides/{name}.md" for name in GUIDES} <= links
    assert all((ROOT / target).exists() for target in links)


def test_guides_that_the_manual_names_exist():
    named = set(re.findall(r"ccnet guide (\w+)", MANUAL))
    assert named and named <= set(GUIDES)
