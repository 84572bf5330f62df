"""Parts from outside the package: CONTRIBUTING's examples, through every command."""

import ast
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ccnet_cli import parts
from ccnet_cli.errors import InputError

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = {name: body for _, name, body in re.findall(r"```(python|yaml)\n# (\S+)\n(.*?)```", TEXT, re.S)}
PARTS = ("pooled.py", "strided.py", "dice.py", "blocks.py", "flat.py", "halves.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The examples' files, and a data set of theirs: a block whose colour is not that of the ground."""
    place = tmp_path_factory.mktemp("stranger")
    for name, body in EXAMPLES.items():
        (place / name).write_text(body)
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for index in range(count):
            label = np.zeros((56, 72), np.uint8)
            y, x = random.integers(4, 24, 2)
            label[y : y + 24, x : x + 32] = 1
            image = np.where(label[..., None] == 1, (40, 40, 200), (90, 120, 60)) + random.integers(
                -20, 20, (56, 72, 3)
            )
            for kind, pixels in (("images", image.astype(np.uint8)), ("masks", label)):
                path = place / "data" / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pixels)
    return place


@pytest.fixture(scope="module")
def trained(folder, module_ccnet):
    """A run of four of its six steps, resumed to its end."""
    begun = module_ccnet("train", "--preset", "mine.yaml", "--data", "data", "-o", "run", "-s", "schedule.steps=4")
    assert begun.returncode == 0, begun.stderr
    resumed = module_ccnet("train", "--preset", "mine.yaml", "--data", "data", "-o", "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def module_ccnet(folder, run_ccnet):
    """The command line in the stranger's folder, with all parts that the examples add."""
    options = [word for name in PARTS for word in ("--extend", name)]

    def run(*arguments, extend=True, **environment):
        return run_ccnet(*(options if extend else ()), *arguments, cwd=folder, **environment)

    return run


def test_each_example_is_short():
    assert set(EXAMPLES) == {*PARTS, "mine.yaml"}
    for name, body in EXAMPLES.items():
        lines = [line for line in body.splitlines() if line.strip()]
        assert len(lines) <= 30, name


def test_a_run_with_parts_from_outside_is_resumed_and_logs_each_term(trained):
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    for row in steps:
        assert row["loss"] == pytest.approx(row["loss/cross_entropy"] + 0.5 * row["loss/soft_dice"], rel=1e-5)
        assert 0 < row["loss/soft_dice"] < 1
    assert (trained / "best.pt").is_file() and (trained / "report.html").is_file()


def test_it_is_scored_and_segments_photographs(trained, module_ccnet, folder):
    scored = module_ccnet("eval", "run", "--json", "-")
    assert scored.returncode == 0, scored.stderr
    assert set(json.loads(scored.stdout)["classes"]) == {"ground", "block"}
    done = module_ccnet("predict", "data/images/val", "-o", "masks", "--checkpoint", "run", "--precision", "bf16")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / "masks").iterdir()) == ["0.png", "1.png", "2.png"]


def test_onnx_runtime_answers_as_the_network_does(trained, module_ccnet, folder):
    pytest.importorskip("onnxruntime")
    written = module_ccnet("export", "run", "--format", "onnx", "-o", "blocks.onnx")
    assert written.returncode == 0, written.stderr
    ours, theirs = (module_ccnet("eval", name, "--data", "data", "--json", "-") for name in ("run", "blocks.onnx"))
    assert theirs.returncode == 0, theirs.stderr
    assert json.loads(theirs.stdout)["miou"] == pytest.approx(json.loads(ours.stdout)["miou"], abs=1e-3)


def test_its_weights_go_out_and_come_back_in_a_layout_from_outside(trained, module_ccnet, folder):
    written = module_ccnet("export", "run", "--format", "flat", "-o", "flat.pth")
    assert written.returncode == 0, written.stderr
    state = torch.load(folder / "flat.pth", weights_only=True)
    assert all(key.startswith("net/") for key in state)
    read = module_ccnet("eval", "flat.pth", "--preset", "mine.yaml", "--data", "data", "--json", "-")
    assert read.returncode == 0, read.stderr
    scored = module_ccnet("eval", "run", "--json", "-")
    assert json.loads(read.stdout)["miou"] == json.loads(scored.stdout)["miou"]
    begun = module_ccnet(
        *("train", "--preset", "mine.yaml", "--data", "data", "-o", "again", "-s", "schedule.steps=1"),
        *("--weights", "flat.pth"),
    )
    assert begun.returncode == 0, begun.stderr


def test_it_is_measured(trained, module_ccnet):
    measured = module_ccnet(
        *("bench", "step", "--preset", "mine.yaml", "--size", "48x64", "--batch", "2", "--repeats", "1", "--json", "-")
    )
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["rows"]


def test_a_head_without_attention_says_so(trained, module_ccnet):
    drawn = module_ccnet("visualize", "data/images/val/0.png", "--point", "3,4", "--checkpoint", "run", "-o", "a.png")
    assert drawn.returncode == 2
    assert "no attention" in drawn.stderr and "Traceback" not in drawn.stderr


def test_a_checkpoint_names_the_part_that_is_missing_and_how_to_give_it(trained, module_ccnet, folder):
    for words in (("eval", "run"), ("predict", "data/images/val/0.png", "-o", "m.png", "--checkpoint", "run")):
        done = module_ccnet(*words, extend=False)
        assert done.returncode == 2, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if "error" in line]
        assert "best.pt" in line and "strided" in line and "--extend" in line
    assert module_ccnet("eval", "run", extend=False, CCNET_EXTEND=":".join(PARTS)).returncode == 0


def test_the_attention_takes_an_implementation_from_outside(module_ccnet):
    words = ("train", "--preset", "quickstart", "-s", "model.head.implementation=halves", "-s", "schedule.steps=2")
    small = ("-s", "schedule.warmup=0", "-s", "data.workers=0", "-s", "model.backbone.width=8", "-s", "eval.every=0")
    done = module_ccnet(*words, *small, "-o", "halves", "-s", "data.crop=64,64", "-s", "train.batch=2")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [("1 +", "SyntaxError"), ("raise ValueError('no')", "ValueError"), (None, "not a Python file")],
)
def test_a_file_that_cannot_be_imported_is_refused_in_one_line(content, words, ccnet, tmp_path):
    if content is not None:
        (tmp_path / "part.py").write_text(content)
    done = ccnet("--extend", "part.py", "presets", "list")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line and "part.py" in line


def test_nothing_outside_the_rooms_names_the_built_in_parts():
    """A new head must not touch other rooms: no module above models asks for a part by its type."""
    parts = {"RCCAHead", "FCNHead", "ResNet", "Tiny", "BasicBlock", "Bottleneck"}
    for path in (ROOT / "ccnet_cli").rglob("*.py"):
        room = path.relative_to(ROOT / "ccnet_cli").parts[0]
        if room in ("models", "bench", "weights"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asked = {
            ast.unparse(node.args[1])
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        }
        assert not {name.rpartition(".")[2] for name in asked} & parts, path


def test_a_file_of_parts_is_imported_once_and_another_of_its_name_too(tmp_path):
    """Each import leaves a line; files are known by their paths."""
    files = [tmp_path / folder / "same_stem_of_parts.py" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text(
            f"from pathlib import Path\nwith Path({str(tmp_path / 'lines')!r}).open('a') as lines:\n"
            f"    lines.write({file.parent.name!r} + '\\n')\n"
        )
    parts.extend([files[0], files[0]])
    parts.extend([files[0]])
    assert (tmp_path / "lines").read_text() == "one\n"
    parts.extend([files[1]])
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"


def test_a_file_of_parts_that_failed_is_tried_again(tmp_path):
    file = tmp_path / "failing_parts.py"
    file.write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"cannot be imported \(ZeroDivisionError: division by zero\)"):
            parts.extend([file])
    file.write_text("answer = 6\n")
    parts.extend([file])
