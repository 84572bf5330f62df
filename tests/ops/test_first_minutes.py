"""The script for the first minutes on a card: what it names exists, and without a card it walks through."""

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import typer
from kernels import ROOT, compiles

from ccnet_cli.bench import gpu
from ccnet_cli.cli.commands import app
from ccnet_cli.ops.cuda import launch, plan

FOLDER = ROOT / ".ci" / "gpu"
SCRIPT = (FOLDER / "first_minutes.sh").read_text().replace("\\\n", " ")
COMMANDS = re.findall(r"^ *ccnet \S+ \d+ (.*)$", SCRIPT, re.MULTILINE)


def load(name):
    spec = spec_from_file_location(name, FOLDER / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_every_name_that_a_part_takes_from_a_module_exists(path):
    tree, modules = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                modules[name] = getattr(module, name, None) or importlib.import_module(f"{node.module}.{name}")
        elif isinstance(node, ast.Import):
            modules |= {alias.name: importlib.import_module(alias.name) for alias in node.names}
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    pairs = [(node.value.id, node.attr) for node in used if node.value.id in modules]
    assert [(name, attribute) for name, attribute in pairs if not hasattr(modules[name], attribute)] == []
    assert len(pairs) > 1


def test_every_file_command_and_option_of_the_script_exists():
    paths = re.findall(r"tests/\S+\.py", SCRIPT) + [f".ci/gpu/{x}" for x in re.findall(r"\$here/(\S+\.py)", SCRIPT)]
    assert [path for path in paths if not (ROOT / path).is_file()] == [] and len(paths) >= 5
    assert len(COMMANDS) == 5
    for line in COMMANDS:
        command, words = typer.main.get_command(app), shlex.split(line)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= options, line


def test_the_kernels_of_every_shape_and_type_are_compiled(monkeypatch):
    monkeypatch.setattr(launch, "run", launch.run)
    part = load("compile_kernels")
    kernels = part.list_kernels(part.list_shapes())
    assert len(kernels) == len(set(kernels))
    forms = {(kernel.form, kernel.dtype, kernel.aligned) for kernel in kernels}
    for dtype in ("float32", "float16", "bfloat16"):
        fused = {("fused", dtype, True), ("fused_residual", dtype, False), ("fused_backward", dtype, True)}
        assert fused | {("fused_delta", dtype, True), ("tn", dtype, False)} <= forms
    assert {kernel.copies for kernel in kernels if kernel.form == "fused_backward"} == {*plan.COPIES}
    # in blocks too
    assert {kernel.sizes[2] for kernel in kernels if kernel.form == "fused"} == {0, 1}
    assert ("tensor", "bfloat16", True) in forms and ("softmax_backward", "float32", True) in forms


def test_images_take_the_names_of_the_machine_that_runs_them(monkeypatch, tmp_path):
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path))
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    mine, other = f"nn-8x8-float32-sm_90-{launch._sources()}", "nn-8x8-float32-sm_90-0123456789abcdef"
    (kernels / f"{mine}ffffffff.cubin").write_bytes(b"image")
    (kernels / f"{other}ffffffff.cubin").write_bytes(b"old")
    load("compile_kernels").adopt()
    assert {path.name for path in kernels.iterdir()} == {
        f"nn-8x8-float32-sm_90-{launch._version()}.cubin",
        f"{other}ffffffff.cubin",
    }


def test_a_report_has_every_step_and_what_failed(tmp_path):
    (tmp_path / "log.txt").write_text("=== small\nFAILED one\n")
    (tmp_path / "steps.tsv").write_text("small\texit 1\t3\ntests\tskipped: no time\t0\n")
    row = {"size": [2, 512, 97, 97], "precision": "bf16", "name": "numba", "error": 3e-3, "both": {"median": 0.25}}
    checks = [{"name": "parity", "passed": False, "found": "9.9"}, {"name": "capture", "passed": True, "found": ""}]
    values = {"checks": checks, "passes": [row, {"failed": "out of memory"}]}
    (tmp_path / "bench-gpu.json").write_text(json.dumps(values))
    (tmp_path / "bench-model.json").write_text("{cut off")
    (tmp_path / "train-auto.jsonl").write_text('{"step": 1}\n' * 9)
    load("report").main(tmp_path)
    whole, text = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.md").read_text()
    assert [step["outcome"] for step in whole["steps"]] == ["exit 1", "skipped: no time"]
    assert "missing" in whole["bench-model"] and len(whole["train-auto"]) == 4
    assert "| small | exit 1 | 3 |" in text and "FAILED: parity (9.9)" in text and "capture" not in text
    assert "| 2x512x97x97 | bf16 | numba |  |  | 0.250 | 3.0e-03 |" in text


def test_small_maps_that_are_wrong_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "check_parity", lambda tensors, name: (tensors[2].shape[1] != 7, ""))
    assert load("check_small").main("cpu", "gemm") == 3
    assert capsys.readouterr().out.count("FAILED") == 3


@compiles
@pytest.mark.slow
def test_without_a_card_it_walks_through(tmp_path):
    own = {"FIRST_DRY": "1", "FIRST_FOLDER": str(tmp_path / "gpu"), "OUT": str(tmp_path / "report")}
    own["PY"] = sys.executable
    for mode in ("prepare", "run"):
        done = subprocess.run(
            ["bash", ".ci/gpu/first_minutes.sh", mode],
            cwd=ROOT,
            env=os.environ | own,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {step["outcome"] for step in whole["steps"]} == {"ok"} and len(whole["steps"]) >= 8
