"""The README's commands exist, with the options it gives them."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from ccnet_cli import cli, config
from ccnet_cli.cli import entry

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)


def commands() -> list[str]:
    """Every `ccnet ...` of the README: in its shell blocks, and in code spans."""
    lines = [part.strip() for block in BLOCKS for line in block.splitlines() for part in line.split("&&")]
    return [line for line in [*lines, *re.findall(r"`(ccnet [^`\n]+)`", README)] if line.startswith("ccnet ")]


def parse(line: str) -> tuple[str, dict[str, object]]:
    """The command's name and its arguments' values; raises where the command or an option does not exist."""
    words = entry.resume_alone(shlex.split(line)[1:])
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    # a bare name is how the text speaks of a command
    return command.name, command.make_context(command.name, words).params if words else {}


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_exists(line: str):
    name, values = parse(line)
    if name == "train" and values and not str(values["preset"]).endswith(".yaml"):
        assert config.load(str(values["preset"]), values["overrides"] or ())


@pytest.mark.parametrize("line", ["ccnet fly", "ccnet train --preset x --fast", "ccnet eval a b", "ccnet train -o x"])
def test_the_check_refuses_what_does_not_exist(line: str):
    with pytest.raises((typer.exceptions.TyperException, KeyError)):
        parse(line)


def test_the_readme_shows_the_promised_lines():
    assert {
        "ccnet train --preset quickstart",
        "ccnet eval",
        "ccnet predict img.png -o mask.png",
        "ccnet visualize --point 300,400",
    } <= set(commands())


def test_both_one_line_commands_pin_torch():
    one_liners = [block for block in BLOCKS if "venv" in block]
    assert len(one_liners) == 2
    for block in one_liners:
        assert len(block.splitlines()) == 1
        assert "pip install torch==2.13.0 " in block
    assert one_liners[1].rstrip().endswith("&& pytest")


def test_the_ten_lines_for_own_data_are_a_preset(tmp_path: Path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```", README, re.M | re.S)
    assert len(block.splitlines()) <= 10
    path = tmp_path / "mine.yaml"
    path.write_text(block)
    assert config.load(str(path)).data.dataset == "folder"
