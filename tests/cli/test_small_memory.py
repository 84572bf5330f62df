"""Commands under a limit of memory that torch does not fit into: one line and exit code 3, no traceback."""

import subprocess
import sys

import bad_inputs
import pytest

COMMANDS = [
    "--version",
    "presets show quickstart",
    "presets list",
    "data sample sample.png",
    "data check .",
    "predict a.jpg -o mask.png",
    "eval",
    "visualize a.jpg --point 1,1",
    "visualize a.jpg --html page.html",
    "export a.pt -o b.pt",
    "train --preset quickstart",
    "bench cost",
    "bench data",
]
# what a small machine can do without torch
LIGHT = {"--version", "presets list", "presets show quickstart", "data sample sample.png"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_memory_ends_in_one_line(tmp_path, command):
    (tmp_path / "a.jpg").write_bytes(bad_inputs.jpeg())
    limited = f"ulimit -v 300000; exec {sys.executable} -m ccnet_cli.cli {command}"
    done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, check=False)
    if command in LIGHT:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        (line,) = done.stderr.splitlines()
        assert line.startswith("ccnet: error: memory: ")
        assert (done.returncode, done.stdout) == (3, "")
