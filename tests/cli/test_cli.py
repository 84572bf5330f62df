"""The command line: help, exit codes, and mistakes told in one line before anything is written."""

import csv
import errno
import inspect
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from bad_inputs import jpeg, photograph, png

from ccnet_cli import cli, config, errors, version
from ccnet_cli.cli import entry, options
from ccnet_cli.errors import EnvironmentFailure, InputError, NonFiniteError

if TYPE_CHECKING:
    from ccnet_cli.commands.evaluate import EvaluateRequest

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


def tree(command=None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    command = command or typer.main.get_command(cli.app)
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from tree(inner, (*path, name))


COMMANDS = dict(tree())


def call(*words: str) -> int:
    """The exit code of a command run in this process."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    return stopped.value.code


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a bad command leaves on stderr; nothing is printed or written beside it."""
    before = sorted(Path.cwd().rglob("*"))
    assert call(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("ccnet: error: ")
    assert sorted(Path.cwd().rglob("*")) == before
    return line.removeprefix("ccnet: error: ")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCNET_CHECKPOINT", raising=False)
    # each command sets it
    monkeypatch.setenv(errors.VERBOSITY, "")
    return tmp_path


def test_the_promised_commands_are_there():
    promised = {("train",), ("eval",), ("predict",), ("visualize",), ("doctor",), ("guide",)}
    names = ("attention", "growth", "model", "cost", "eval", "loss", "step", "data", "kernels", "gpu")
    promised |= {("bench", name) for name in names}
    promised |= {("presets", name) for name in ("list", "show", "copy", "diff")}
    promised |= {("data", name) for name in ("make", "check", "sample")}
    assert promised <= COMMANDS.keys()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_ends_with_examples_that_parse(path: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]):
    assert call(*path, flag) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    before, _, examples = printed.out.partition("Examples:\n")
    assert "Options:" in before
    lines = [line.strip() for line in examples.strip().splitlines()]
    assert lines and all(line.startswith("ccnet ") for line in lines)
    assert any(line.split()[1 : 1 + len(path)] == list(path) for line in lines)


@pytest.mark.parametrize("path", [(), ("bench",), ("presets",), ("data",)])
def test_a_list_of_commands_says_of_each_in_one_whole_line_what_it_does(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    assert call(*path, "--help") == 0
    _, _, listed = capsys.readouterr().out.partition("Commands:\n")
    lines = listed.partition("\n\n")[0].splitlines()
    assert len(lines) > 2 and all(line.endswith(".") and not line.endswith("..") for line in lines)


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom ccnet_cli import cli\n"
        "try: cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numba', 'cv2', 'scipy', 'numpy', 'yaml'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--preset", "nope"),
        ("visualize",),
        ("visualize", "a.png", "b.png", "--point", "1,1"),
        ("eval", "--scales", "a"),
        ("eval", "--mode", "tiles"),
        ("predict", "a.png"),
        ("predict", "a.png", "-o", "b.png", "--format", "gif"),
        ("fly",),
    ],
)
def test_a_mistake_is_told_before_torch_is_loaded(words: tuple[str, ...]):
    code = (
        f"import sys\nfrom ccnet_cli import cli\ntry: cli.main({list(words)!r})\n"
        "except SystemExit as stop: assert stop.code == 2\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("path", [(), ("bench",), ("presets",), ("data",)])
def test_a_group_alone_shows_its_help(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert call(*path) == 0
    assert "Examples:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert call("--version") == 0
    assert capsys.readouterr().out == f"{version.describe()}\n"


def test_the_version_is_told_before_torch_is_loaded():
    code = "import sys\nfrom ccnet_cli import cli\ntry: cli.main(['--version'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "torch " in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "--preset", "quickstart", "--overide", "x"), "option --overide: unknown; see ccnet train --help"),
        (("train", "--prset", "quickstart"), "option --prset: unknown; did you mean --preset?"),
        (("eval", "--scale", "1"), "option --scale: unknown; did you mean --scales?"),
        (("train",), "option --preset: missing; see ccnet train --help"),
        (("train", "--preset"), "option --preset: "),
        (("train", "--preset", "quickstart", "--processes", "0"), "option --processes: "),
        (("train", "--preset", "quickstart", "--gpus", "two"), "option --gpus: must be a valid integer"),
        (("predict",), "argument SOURCE: missing; see ccnet predict --help"),
        (("predict", "a.png"), "option --output: missing; see ccnet predict --help"),
        (("eval", "--quite"), "option --quite: unknown; did you mean --quiet?"),
        (("eval", "--extnd", "a.py"), "option --extnd: unknown; did you mean --extend?"),
        (("presets", "list", "-q", "-v"), "option --quiet: --verbose is given too; give one of them"),
        (("presets", "diff", "camvid"), "argument NAME|FILE: missing; see ccnet presets diff --help"),
        (("presets", "diff", "camvid", "camvit"), "preset camvit: unknown; did you mean camvid?"),
        (("visualize", "--point", "1,1", "--json", "no/where.json"), "no/where.json: its folder does not exist"),
        (("doctor", "--json", "no/where.json"), "no/where.json: its folder does not exist"),
        (("trian",), "command trian: unknown; did you mean train?"),
        (("fly",), "command fly: unknown; see ccnet --help"),
        (("presets", "shwo"), "command shwo: unknown; did you mean show?"),
        (("eval", "a", "b"), "ccnet eval: Got unexpected extra argument(s) (b); see ccnet eval --help"),
        (("visualize", "--point", "300"), "option --point 300: not a pixel; write X,Y, such as --point 300,400"),
        (("visualize", "--point", "3,4,5"), "option --point 3,4,5: not a pixel"),
        (("visualize", "--point", "-3,4"), "option --point -3,4: not a pixel"),
        (("visualize",), "option --point: missing"),
        (("visualize", "a.png", "b.png", "--point", "1,1"), "2 images: only with --html; add --html DIR"),
        (("visualize", "--point", "1,1", "--label", "a.png"), "option --label: only with --html; add --html FILE"),
        (("visualize", "--html", "a.html", "-o", "a.png"), "option --output: is for the figure, not for --html"),
        (("visualize", "--html", "a.html", "--maps", "a.npz"), "option --maps: is for the figure"),
        (("visualize", "--html", "a.html", "--class", "b"), "option --class: is for the figure"),
        (("eval", "--scales", "1,,2"), "option --scales 1,,2: not a list of at most 32 scales"),
        (("eval", "--mode", "tiles"), "option --mode: 'tiles' is not one of 'whole', 'sliding'; "),
        (("predict", "a.png", "-o", "b.png", "--format", "gif"), "option --format: "),
        (("eval", "--scales", "nan"), "option --scales nan: not a list of at most 32 scales"),
        (("eval", "a.pt", "--checkpoint", "b.pt"), "checkpoint b.pt: a.pt is given too; give one of them"),
        (("eval", "--json", "no/where.json"), "no/where.json: its folder does not exist"),
        (("eval", "--csv", "."), ".: is a folder"),
        (("bench", "attention", "--size", "97"), "option --size 97: not a size"),
        (("bench", "attention", "--size", "0x5"), "option --size 0x5: not a size"),
        (("bench", "cost", "--size", "97,97"), "option --size 97,97: not a size"),
        (("bench", "model", "--size", "97x"), "option --size 97x: not a size"),
        (("bench", "model", "--precision", "int4"), "precision int4: unknown"),
        (("eval", "--precision", "fp8"), "option --precision: 'fp8' is not one of 'auto', 'fp32', 'bf16', 'int8'; "),
        (("predict", "a.png", "-o", "b.png", "--compile", "yes"), "option --compile: 'yes' is not one of "),
        (("bench", "cost", "--json", "no/where.json"), "no/where.json: its folder does not exist"),
        (("data", "make", "cityscapes", "x"), "data set cityscapes: cannot be made"),
        (("data", "check", "."), "folder .: holds no data set"),
        (("data", "check", ".", "--dataset", "cityscape"), "preset key data.dataset: "),
        (("presets", "copy", "quickstart", "no/where.yaml"), "no/where.yaml: its folder does not exist"),
        (("presets", "show", "quikstart"), "preset quikstart: unknown; did you mean quickstart?"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]):
    assert refused(capsys, *words).startswith(told)


@pytest.mark.parametrize(
    "override",
    [
        "schedule.lr=-1",
        "schedule.lr=nan",
        "schedule.lr=inf",
        "schedule.lr=fast",
        "learing_rate=1e-2",
        "data.crop=769",
        "data.crop=0,0",
        "data.crop=-1,5",
        "data.crop=768,768,3",
        "train.batch=0",
        "data.workers=-1",
        "data.workers=9999",
        "name=!!python/object/apply:os.system ['touch pwned']",
        "name=" + "[" * 5000,
        "seed",
    ],
)
@pytest.mark.parametrize("command", [("train", "--preset"), ("presets", "show")])
def test_a_bad_override_is_one_line(command: tuple[str, ...], override: str, capsys: pytest.CaptureFixture[str]):
    refused(capsys, *command, "quickstart", "--set", override)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("name: x\n\tseed: 1\n", "bad.yaml:2:1"),
        ("name: x\n  seed: 1\n", "bad.yaml:2:7"),
        ("name: x\n---\nname: y\n", "bad.yaml:2:1"),
        ("", "bad.yaml:1:1"),
        ("- x\n", "bad.yaml:1:1"),
        ("name: x\nname: y\n", "bad.yaml:2:1"),
        ("x: !!python/object/apply:os.system ['touch pwned']\n", "bad.yaml:1:4"),
        ("name: " + "[" * 5000, "bad.yaml:1:"),
        ("learing_rate: 1\n", "preset key learing_rate: unknown; did you mean schedule.lr?"),
    ],
)
def test_a_bad_preset_file_is_one_line(folder: Path, content: str, place: str, capsys: pytest.CaptureFixture[str]):
    (folder / "bad.yaml").write_text(content)
    assert place in refused(capsys, "train", "--preset", "bad.yaml")


@pytest.mark.parametrize("device", ["tpu", "cuda:77", "cpu:1", ""])
def test_a_device_that_is_not_here_is_one_line(device: str, capsys: pytest.CaptureFixture[str]):
    assert "device" in refused(capsys, "train", "--preset", "quickstart", "--device", device)


def test_an_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(config, "describe", lambda: [][0])
    assert call("presets", "list") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("a", "b", "c"), 2),
        (EnvironmentFailure("a", "b", "c"), 3),
        (NonFiniteError("a", "b", "c"), 4),
        (OSError(errno.ENOSPC, "No space left on device", "x.pt"), 3),
        (OSError(errno.ENOSPC, "No space left on device"), 3),
        (PermissionError(errno.EACCES, "Permission denied", "x.pt"), 2),
        (MemoryError(), 3),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 3),
    ],
)
def test_errors_end_with_their_exit_code_and_one_line(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail() -> list[str]:
        raise error

    monkeypatch.setattr(config, "describe", fail)
    assert call("presets", "list") == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert call("presets", "list", "--debug") == code
    assert "Traceback" in capsys.readouterr().err


def test_torch_running_out_of_memory_is_told(monkeypatch: pytest.MonkeyPatch):
    import torch

    def fail() -> list[str]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(config, "describe", fail)
    assert call("presets", "list") == 3


def test_an_interrupt_ends_quietly_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupt() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "describe", interrupt)
    assert call("presets", "list") == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", ["presets list", "presets show quickstart", "presets list --json -"])
def test_a_reader_that_leaves_early_is_no_error(words: str):
    # the reading end is closed before ccnet writes a word
    command = f"({sys.executable} -m ccnet_cli.cli {words}; echo $? >&2) | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() in ("0", "141")


@pytest.mark.parametrize("closed", [">&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_error(closed: str):
    command = f"{sys.executable} -m ccnet_cli.cli presets list {closed}; echo code $? >&2"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == "code 0\n"


def test_an_ascii_terminal_is_no_error(monkeypatch: pytest.MonkeyPatch, ccnet: Run):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = ccnet("presets", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "quickstart" in done.stdout


def test_a_name_that_is_not_utf8_is_told_not_crashed_on(ccnet: Run, folder: Path):
    done = ccnet("presets", "show", b"\xff.yaml".decode("utf-8", "surrogateescape"))
    assert done.returncode == 2
    assert done.stderr.startswith("ccnet: error: preset \\udcff.yaml: does not exist; ")
    assert len(done.stderr.splitlines()) == 1


def test_presets_are_listed_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str]):
    assert call("presets", "list") == 0
    table = capsys.readouterr().out
    assert call("presets", "list", "--json", "-") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [preset["name"] for preset in listed] == config.names()
    assert all(name in table for name in config.names())
    # cells are folded between words, none of which is broken
    for preset in listed:
        assert all(word in table for word in f"{preset['published'] or ''} {preset['source']}".split())
    assert any("mIoU 76.17 on val" in line and "mmseg-r50-voc-512-20k" in line for line in table.splitlines())
    assert {preset["published"] for preset in listed} >= {None, config.load("mmseg-r50-voc-512-20k").published}
    assert max(map(len, table.splitlines())) <= 160
    assert call("presets", "list", "psp", "voc", "--json", "-") == 0
    some = [preset["name"] for preset in json.loads(capsys.readouterr().out)]
    assert some == [name for name in config.names() if "psp" in name and "voc" in name] and len(some) == 4
    assert call("presets", "list", "psp", "zzz") == 2
    assert "none has these words" in capsys.readouterr().err


def test_a_data_set_of_any_kind_is_checked(folder: Path, capsys: pytest.CaptureFixture[str]):
    for split, side in (("train", "left"), ("val", "right")):
        for name, content in (
            (f"{split}_images/a.jpg", jpeg(photograph(4, 5))),
            (f"{split}_segmentations/a.png", png(np.full((4, 5), 18 if side == "left" else 19))),
        ):
            (folder / "LIP" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "LIP" / name).write_bytes(content)
    assert call("data", "check", "LIP", "--json", "-") == 0
    reports = json.loads(capsys.readouterr().out)
    assert reports["train"]["dataset"] == "lip"
    assert [reports[split]["pixels"][f"{side} shoe"] for split, side in (("train", "left"), ("val", "right"))] == [
        20,
        20,
    ]


def test_show_prints_what_would_run(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert call("presets", "show", "camvid", "-s", "model.recurrence=1", "-s", "schedule.lr=1e-4") == 0
    (folder / "shown.yaml").write_text(capsys.readouterr().out)
    assert config.load("shown.yaml") == config.load("camvid", ["model.recurrence=1", "schedule.lr=1e-4"])


def test_show_writes_json_beside_the_text(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert call("presets", "show", "camvid", "--json", "camvid.json") == 0
    assert capsys.readouterr().out.startswith("name: camvid\n")
    assert json.loads((folder / "camvid.json").read_text()) == config.to_mapping(config.load("camvid"))
    assert [path.name for path in folder.iterdir()] == ["camvid.json"]


def test_copy_keeps_the_file_and_refuses_to_overwrite(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert call("presets", "copy", "camvid", "mine.yaml") == 0
    assert capsys.readouterr().out == "mine.yaml\n"
    assert (folder / "mine.yaml").read_bytes() == (config.folder() / "camvid.yaml").read_bytes()
    (folder / "mine.yaml").write_text("changed")
    assert refused(capsys, "presets", "copy", "camvid", "mine.yaml").startswith("mine.yaml: exists;")
    assert (folder / "mine.yaml").read_text() == "changed"
    assert call("presets", "copy", "camvid", "mine.yaml", "--overwrite") == 0
    assert call("presets", "copy", "camvid", ".") == 0
    assert config.load("camvid.yaml") == config.load("mine.yaml") == config.load("camvid")


def test_diff_tells_both_values_of_every_key_that_differs(folder: Path, capsys: pytest.CaptureFixture[str]):
    text = (config.folder() / "camvid.yaml").read_text()
    changed = text.replace("name: camvid\n", "name: mine\n")
    (folder / "mine.yaml").write_text(changed)
    ours, mine = (config.to_mapping(config.load(name)) for name in ("camvid", "mine.yaml"))
    mine["model"]["head"]["recurrence"] = 3
    mine["data"]["crop"] = [11, 12]
    mine["data"]["classes"] = None
    mine["eval"]["scales"] = [0.5, 1.0]
    (folder / "mine.yaml").write_text(config.dump(config.from_mapping(mine)))
    expected = {
        "name": ["camvid", "mine"],
        "model.head.recurrence": [ours["model"]["head"]["recurrence"], 3],
        "data.crop": [ours["data"]["crop"], [11, 12]],
        "eval.scales": [ours["eval"]["scales"], [0.5, 1.0]],
    }
    assert call("presets", "diff", "camvid", "mine.yaml", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == {"presets": ["camvid", "mine.yaml"], "differences": expected}
    assert call("presets", "diff", "camvid", "mine.yaml") == 0
    rows = [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert ["key", "camvid", "mine.yaml"] in rows
    assert ["name", "camvid", "mine"] in rows
    assert ["data.crop", json.dumps(ours["data"]["crop"]), "[11, 12]"] in rows
    assert sum(len(row) == 3 for row in rows) == 1 + len(expected)


def test_diff_of_a_preset_with_itself_says_so(capsys: pytest.CaptureFixture[str]):
    assert call("presets", "diff", "camvid", "camvid") == 0
    assert capsys.readouterr().out == "camvid and camvid are the same\n"
    assert call("presets", "diff", "camvid", "camvid", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["differences"] == {}


def test_every_command_that_prints_a_table_writes_json_too():
    printing = {
        path
        for path, command in COMMANDS.items()
        if command.callback and re.search(r"\b(table|block|_?show|show_reports)\(", inspect.getsource(command.callback))
    }
    assert printing >= {("eval",), ("visualize",), ("doctor",), ("presets", "list"), ("bench", "cost")}
    assert [path for path in printing if all("--json" not in each.opts for each in COMMANDS[path].params)] == []


def test_visualize_makes_one_request_and_prints_its_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from ccnet_cli.commands import visualize
    from ccnet_cli.figures.attention import Fractions, Point

    fractions = (Fractions(0.5, 1.0, 0.0), Fractions(0.75, 0.25, 0.75))
    point = Point((3, 4), (0, 0), "car", fractions)
    summary = visualize.Summary("a.png", "b.png", "c.pt", 2, 0.5, (8, 16), (1, 2), (point,))
    requests: list[visualize.VisualizeRequest] = []
    monkeypatch.setattr(visualize, "visualize", lambda request: requests.append(request) or summary)
    assert call("visualize", "--point", "3,4", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == summary.to_mapping()
    words = "visualize i.png --point 3,4 --point 5,6 -o o.png --checkpoint a.pt --compare b.pt --clip 98 --maps m.npz"
    assert call(*words.split(), "--device", "cpu", "--overwrite", "--preset", "p", "-s", "seed=1") == 0
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["3,4", "car", "R=1", "50.00", "100.00", "0.00"] in cells
    assert requests == [
        visualize.VisualizeRequest(None, ((3, 4),), Path("attention.png")),
        visualize.VisualizeRequest(
            image=Path("i.png"),
            points=((3, 4), (5, 6)),
            output=Path("o.png"),
            checkpoint=Path("a.pt"),
            compare=Path("b.pt"),
            preset="p",
            overrides=("seed=1",),
            device="cpu",
            clip=98,
            maps=Path("m.npz"),
            overwrite=True,
        ),
    ]


def test_visualize_names_the_model_of_each_row_where_two_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from ccnet_cli.commands import visualize
    from ccnet_cli.figures.attention import Fractions, Point

    second, first = (
        visualize.Summary("a.png", "b.png", name, r, 0.5, (8, 16), (1, 2), (Point((3, 4), (0, 0), "car", (one,) * r),))
        for name, r, one in (("two.pt", 2, Fractions(0.5, 0.75, 0.25)), ("one.pt", 1, Fractions(0.25, 1.0, 0.0)))
    )
    summary = visualize.Summary(**{**vars(first), "compared": second})
    monkeypatch.setattr(visualize, "visualize", lambda request: summary)
    assert call("visualize", "--point", "3,4") == 0
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row[1:] for row in cells if len(row) == 7]
    assert rows[:1] == [["one.pt", "car", "R=1", "25.00", "100.00", "0.00"]]
    assert [row[2] for row in rows] == ["R=1", "R=1", "R=2"] and rows[1][0] == rows[2][0] == "two.pt"


def test_visualize_makes_one_request_of_a_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from ccnet_cli.commands import explore

    requests: list[explore.ExploreRequest] = []
    monkeypatch.setattr(explore, "explore", lambda request: requests.append(request) or [Path("v.html")])
    words = "visualize i.png --html v.html --point 3,4 --label l.png --checkpoint a.pt --clip 98 --overwrite -s seed=1"
    assert call(*words.split()) == 0
    assert capsys.readouterr().out == "v.html\n"
    assert requests == [
        explore.ExploreRequest(
            images=(Path("i.png"),),
            output=Path("v.html"),
            points=((3, 4),),
            label=Path("l.png"),
            checkpoint=Path("a.pt"),
            overrides=("seed=1",),
            clip=98,
            overwrite=True,
        )
    ]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list["EvaluateRequest"]:
    """Put an evaluation with known figures in place of the real one, and return the requests that it gets."""
    from ccnet_cli.commands import evaluate

    requests: list[EvaluateRequest] = []
    figures = evaluate.Result(0.5, 0.75, 0.625, {"road": 0.5, 'a "b", c': None}, 2, 7, "x.pt", {"mode": "whole"})
    monkeypatch.setattr(evaluate, "evaluate", lambda request: requests.append(request) or figures)
    return requests


def test_eval_prints_a_table(scored: list["EvaluateRequest"], capsys: pytest.CaptureFixture[str]):
    assert call("eval", "x.pt") == 0
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in capsys.readouterr().out.splitlines()]
    for row in (["road", "50.00"], ['a "b", c', "-"], ["mIoU", "50.00"], ["pixel accuracy", "75.00"]):
        assert row in cells


def test_eval_prints_json_alone(scored: list["EvaluateRequest"], capsys: pytest.CaptureFixture[str]):
    assert call("eval", "x.pt", "--json", "-") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["classes"] == {"road": 0.5, 'a "b", c': None}
    assert (figures["miou"], figures["images"], figures["checkpoint"]) == (0.5, 2, "x.pt")


def test_eval_writes_csv_that_reads_back(scored: list["EvaluateRequest"], folder: Path):
    assert call("eval", "--csv", "scores.csv", "--json", "scores.json") == 0
    with (folder / "scores.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["class", "iou"], ["road", "0.5"], ['a "b", c', ""], ["mIoU", "0.5"]]
    assert json.loads((folder / "scores.json").read_text())["pixels"] == 7
    assert {path.name for path in folder.iterdir()} == {"scores.csv", "scores.json"}


def test_eval_makes_one_request_of_its_options(scored: list["EvaluateRequest"]):
    from ccnet_cli.commands.evaluate import EvaluateRequest
    from ccnet_cli.inference.runtime import Runtime

    words = "--checkpoint a.pt --data D --split train --mode sliding --scales 0.5,1 --flip --limit 3 --device cpu"
    words += " -s eval.tile=64,64 --list my:list --save out --format label-id --precision bf16 --compile auto"
    words += " --preset camvid --gpus 2 --processes 4 --confusion c.png --overwrite"
    assert call("eval", *words.split()) == 0
    views = ('eval.mode="sliding"', "eval.scales=[0.5, 1.0]", "eval.flip=true")
    assert scored == [
        EvaluateRequest(
            checkpoint=Path("a.pt"),
            preset="camvid",
            overrides=("eval.tile=64,64", 'data.train_list="my:list"', 'data.root="D"', *views),
            runtime=Runtime("cpu", "bf16", "auto"),
            gpus=2,
            processes=4,
            split="train",
            limit=3,
            confusion=Path("c.png"),
            save=Path("out"),
            formats=("label-id",),
            overwrite=True,
        )
    ]


def test_eval_leaves_to_the_checkpoint_what_was_not_asked(scored: list["EvaluateRequest"]):
    from ccnet_cli.commands.evaluate import EvaluateRequest

    assert call("eval") == 0
    assert scored == [EvaluateRequest()]


def test_predict_makes_one_request_of_its_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from ccnet_cli.commands import predict
    from ccnet_cli.inference.runtime import Runtime
    from ccnet_cli.media.classes import Classes

    classes = Classes(("road",), ((0, 0, 0),), (7,))
    requests: list[predict.PredictRequest] = []

    def answer(request: predict.PredictRequest, on_outcome: predict.OnOutcome) -> predict.Prediction:
        requests.append(request)
        prediction = predict.Prediction(Path("a.pt"), classes)
        area = predict.Area(Path("x"), (1, 4), 2, (6,))
        on_outcome(predict.Outcome(0, Path("x"), (Path("m.png"),), area), prediction)
        return prediction

    monkeypatch.setattr(predict, "predict", answer)
    assert call("predict", "x", "y", "-o", "m") == 0
    assert capsys.readouterr().out == "m.png\n"
    words = "predict x -o m --checkpoint a.pt --format overlay --format color --legend l.png --probabilities npz"
    words += " --json - --continue --device cpu --mode whole --scales 2 --precision auto --preset p -s seed=1"
    words += " --processes 3 --shard 2/5 --fan-out 1 --strict"
    assert call(*words.split()) == 0
    # six pixels in two frames of four
    share = {"pixels": 6, "share": 0.75}
    source = {"source": "x", "width": 4, "height": 1, "frames": 2, "classes": {"road": share}}
    assert json.loads(capsys.readouterr().out) == {"checkpoint": "a.pt", "sources": [source]}
    assert requests == [
        predict.PredictRequest(("x", "y"), Path("m")),
        predict.PredictRequest(
            sources=("x",),
            output=Path("m"),
            checkpoint=Path("a.pt"),
            preset="p",
            overrides=("seed=1", 'eval.mode="whole"', "eval.scales=[2.0]"),
            runtime=Runtime("cpu", "auto", "off"),
            formats=("overlay", "color"),
            probabilities=True,
            legend=Path("l.png"),
            areas=True,
            skip_complete=True,
            strict=True,
            shard=(2, 5),
            fan_out=1,
            processes=3,
        ),
    ]


@pytest.mark.parametrize(
    "shard", ["0/4", "5/4", "4", "1/0", "-1/4", "a/b", "1/4/4", "1.0/4", "/", "1/99999999999999999999"]
)
def test_a_shard_that_is_none_is_refused(shard: str, capsys: pytest.CaptureFixture[str]):
    assert call("predict", "x", "-o", "m", "--shard", shard) == 2
    assert f"option --shard {shard}: not a part" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["D", "odd: [name], # here", 'a "b" \\ c', "gr\u00f6\u00dfe", "\U0001f4c1"])
def test_a_path_of_any_characters_reaches_its_key(name: str):
    assert config.load("camvid", options.path_override("data.root", Path(name))).data.root == name


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ((None, None, None), ("whole", (1.0,), False)),
        (("sliding", [0.01, 8.0, 0.75], True), ("sliding", (0.01, 8.0, 0.75), True)),
    ],
)
def test_views_reach_their_keys(chosen: tuple[object, ...], expected: tuple[object, ...]):
    settings = config.load("camvid", options.view_overrides(*chosen)).eval
    assert (settings.mode, tuple(settings.scales), settings.flip) == expected


def test_train_hands_on_what_was_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from ccnet_cli.commands import train
    from ccnet_cli.parallel.elastic import Nodes
    from ccnet_cli.parallel.group import Limits
    from ccnet_cli.training.request import TrainRequest

    requests: list[TrainRequest] = []
    monkeypatch.setattr(train, "train", lambda request: requests.append(request) or Path("runs/new"))
    data = "odd: [name], # here"
    words = ["--data", data, "--seed", "7", "-s", "seed=3", "-o", "r", "--resume", "auto", "--gpus", "2"]
    words += ["--strict-resume", "--nodes", "1:3", "--run-id", "b", "--rendezvous", "a:1", "--max-restarts", "2"]
    words += ["--join-timeout", "4", "--timeout", "5", "--shutdown-timeout", "6"]
    assert call("train", "--preset", "camvid", *words, "--weights", "w.pth", "--processes", "4") == 0
    assert capsys.readouterr().out == "runs/new\n"
    (request,) = requests
    preset = request.preset
    assert (preset.name, preset.data.root, preset.seed) == ("camvid", data, 7)
    assert request == TrainRequest(
        preset,
        run=Path("r"),
        resume="auto",
        strict=True,
        weights=Path("w.pth"),
        gpus=2,
        processes=4,
        nodes=Nodes(1, 3, "a", 1, "b"),
        restarts=2,
        limits=Limits(join=4, collective=5, shutdown=6),
    )


def test_a_run_is_resumed_by_its_folder_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from ccnet_cli import config
    from ccnet_cli.commands import train
    from ccnet_cli.training.request import TrainRequest

    requests: list[TrainRequest] = []
    monkeypatch.setattr(train, "train", lambda request: requests.append(request))
    (folder / "runs/my run/checkpoints").mkdir(parents=True)
    assert "without the preset.yaml" in refused(capsys, "train", "--resume", "runs/my run")
    preset = config.load("camvid", ["schedule.steps=77", "schedule.warmup=3"])
    (folder / "runs/my run/preset.yaml").write_text(config.dump(preset))
    for words, resume in (
        (("--resume", "runs/my run"), "auto"),
        (("--resume", "-o", "runs/my run"), "auto"),
        (("--resume", "runs/my run", "-o", str(folder / "runs/my run")), "auto"),
    ):
        assert call("train", *words) == 0
        assert requests[-1] == TrainRequest(preset, run=Path("runs/my run"), resume=resume)
    for file in ("runs/my run/last.pt", "runs/my run/checkpoints/step_00000003.pt"):
        assert call("train", "--resume", file, "-s", "schedule.steps=99") == 0
        assert requests[-1].resume == file and requests[-1].preset.schedule.steps == 99
    assert call("train", "--resume", "runs/my run", "--preset", "quickstart") == 0
    assert requests[-1].preset.name == "quickstart"
    assert "--resume names another run" in refused(capsys, "train", "--resume", "runs/my run", "-o", "runs/other")
    assert refused(capsys, "train", "--resume") == "option --preset: missing; see ccnet train --help"


def test_the_built_in_data_is_made_and_passes_its_check(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert call("data", "make", "toyscapes", "toys", "--train", "1", "--val", "2") == 0
    assert capsys.readouterr().out == f"{folder / 'toys'}\n"
    assert call("data", "check", "toys", "--dataset", "toyscapes", "--json", "-") == 0
    reports = json.loads(capsys.readouterr().out)
    assert [reports[split]["images"] for split in ("train", "val")] == [1, 2]
    assert "is not empty" in refused(capsys, "data", "make", "toyscapes", "toys")


def test_a_data_set_with_a_missing_label_fails_its_check(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert call("data", "make", "toyscapes", "toys", "--train", "1", "--val", "2") == 0
    labels = sorted((folder / "toys").rglob("*_labelIds.png"))
    labels[-1].unlink()
    capsys.readouterr()
    assert call("data", "check", "toys", "--dataset", "toyscapes") == 2
    printed = capsys.readouterr()
    assert labels[-1].name in printed.out
    assert printed.err == "ccnet: error: toys: 1 problem found; correct what the report names\n"


def test_resume_may_stand_without_a_value():
    assert entry.resume_alone(["train", "--resume"]) == ["train", "--resume", "auto"]
    assert entry.resume_alone(["train", "--resume", "-o", "run"]) == ["train", "--resume", "auto", "-o", "run"]
    assert entry.resume_alone(["train", "--resume", "a.pt"]) == ["train", "--resume", "a.pt"]


def test_a_figure_without_a_name_takes_the_next_free_one(tmp_path: Path):
    assert options.free_name(tmp_path / "a.png") == tmp_path / "a.png"
    (tmp_path / "a.png").touch()
    (tmp_path / "a-2.png").touch()
    assert options.free_name(tmp_path / "a.png") == tmp_path / "a-3.png"


@pytest.mark.parametrize(
    ("words", "rest", "flags", "files"),
    [
        ("-q train --preset x", "train --preset x", {"quiet"}, []),
        ("train --quiet --preset x --debug", "train --preset x", {"quiet", "debug"}, []),
        ("eval a.pt -v", "eval a.pt", {"verbose"}, []),
        ("predict -v -o b -- -q --extend a.py", "predict -o b -- -q --extend a.py", {"verbose"}, []),
        ("eval -qv", "eval -qv", set(), []),
        ("--extend a.py eval --extend=b=c.py x.pt", "eval x.pt", set(), ["a.py", "b=c.py"]),
        ("--extend --debug eval", "eval", set(), ["--debug"]),
        # a value is missing: for typer to refuse
        ("eval --extend", "eval --extend", set(), []),
    ],
)
def test_some_options_may_stand_anywhere(words: str, rest: str, flags: set[str], files: list[str]):
    assert entry.take_common(words.split()) == (rest.split(), flags, files)


@pytest.fixture
def parts_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a file for --extend that appends its name to the file `imported`; later files begin anew."""
    monkeypatch.setenv("CCNET_EXTEND", "")

    def make(name: str) -> Path:
        path = folder / f"{name}.py"
        path.write_text(
            "with open(__file__.rpartition('/')[0] + '/imported', 'a') as file:\n    file.write(f'{__name__}\\n')\n"
        )
        return path

    yield make
    for name in [name for name in sys.modules if name.startswith("ccnet_extension_")]:
        del sys.modules[name]


def imported(folder: Path) -> list[str]:
    lines = (folder / "imported").read_text().splitlines() if (folder / "imported").exists() else []
    return [line.removeprefix("ccnet_extension_") for line in lines]


def test_files_of_parts_are_imported_once_before_the_command(
    parts_file: Callable[[str], Path], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    one, two, three = map(parts_file, ("one", "two", "three"))
    monkeypatch.setenv("CCNET_EXTEND", os.pathsep.join([str(one), "two.py"]))
    seen = []
    monkeypatch.setattr(config, "describe", lambda: seen.append(imported(folder)) or {})
    assert call("--extend", "two.py", "presets", "list", "--extend=three.py", "--extend", "three.py") == 0
    assert seen[0] == imported(folder) == ["one", "two", "three"]
    # what a command starts, wherever, imports the same
    assert os.environ["CCNET_EXTEND"] == os.pathsep.join(map(str, (one, two, three)))


@pytest.mark.parametrize("words", [(), ("--help",), ("train", "-h"), ("--version",)])
def test_help_imports_no_parts(words: tuple[str, ...], parts_file: Callable[[str], Path], folder: Path):
    parts_file("one")
    assert call("--extend", "one.py", *words) == 0
    assert imported(folder) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "option --extend bad.py: not a Python file; "),
        ("1 / 0", "option --extend bad.py: cannot be imported (ZeroDivisionError: division by zero); correct the file"),
        ("def (:", "option --extend bad.py: cannot be imported (SyntaxError: "),
        ("import nothing_like_it", "option --extend bad.py: cannot be imported (ModuleNotFoundError: "),
    ],
)
def test_parts_that_cannot_be_imported_are_one_line(
    content: str | None, told: str, parts_file: object, folder: Path, capsys: pytest.CaptureFixture[str]
):
    if content is not None:
        (folder / "bad.py").write_text(content)
    line = refused(capsys, "presets", "list", "--extend", "bad.py")
    assert line.replace(f"{folder}/", "").startswith(told)


def test_an_extend_without_a_file_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert refused(capsys, "presets", "list", "--extend").startswith("option --extend: ")


def test_guides_are_listed_and_shown(capsys: pytest.CaptureFixture[str]):
    assert call("guide") == 0
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert "extending" in [name for name, _ in listed] and all(title for _, title in listed)
    for name, title in listed:
        assert call("guide", name) == 0
        text = capsys.readouterr().out
        assert text == (ROOT / "ccnet_cli" / "guides" / f"{name}.md").read_text()
        assert text.startswith(f"# {title}\n")
    assert refused(capsys, "guide", "extendin") == "guide extendin: unknown; did you mean extending?"
    assert refused(capsys, "guide", "../cli") == "guide ../cli: unknown; see ccnet guide"


def test_a_guide_is_formatted_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = pty.openpty()
    code = "from ccnet_cli.cli import output\noutput.markdown('# Title\\n\\nSome *words*, `code`.\\n')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, check=True)
    printed = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert "Title" in printed and "words" in printed and "*" not in printed and "# " not in printed


@pytest.mark.parametrize(
    ("words", "told"), [((), ["noticed"]), (("-q",), []), (("--verbose",), ["noticed", "done in"])]
)
@pytest.mark.parametrize("before", [True, False])
def test_quiet_and_verbose_change_what_is_told_but_no_result(
    words: tuple[str, ...],
    told: list[str],
    before: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def describe() -> dict[str, dict[str, str]]:
        errors.notice("noticed")
        return {"quickstart": {"description": "", "published": "", "source": ""}}

    monkeypatch.setattr(config, "describe", describe)
    assert call(*(words if before else ()), "presets", "list", *(() if before else words)) == 0
    printed = capsys.readouterr()
    assert "quickstart" in printed.out
    assert [line.removeprefix("ccnet: ")[:7] for line in printed.err.splitlines()] == told


def test_an_error_is_told_however_quiet_and_no_command_stays_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert refused(capsys, "-q", "presets", "show", "quikstart").startswith("preset quikstart: unknown")
    assert errors.is_quiet()
    assert call("presets", "list") == 0
    assert not errors.is_quiet()


def test_a_process_that_a_command_starts_is_as_quiet(monkeypatch: pytest.MonkeyPatch):
    told = []

    def describe() -> dict[str, dict[str, str]]:
        code = "from ccnet_cli import errors; errors.notice('noticed')"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        told.append(done.stderr)
        return {}

    monkeypatch.setattr(config, "describe", describe)
    for words in (("-q",), ()):
        assert call("presets", "list", *words) == 0
    assert told == ["", "ccnet: noticed\n"]


def test_verbose_tells_what_was_recognised_and_read(folder: Path, capsys: pytest.CaptureFixture[str]):
    from ccnet_cli.datasets import toyscapes

    toyscapes.make(folder / "toys", train=2, val=1)
    assert call("data", "check", "toys", "-v") == 0
    told = capsys.readouterr().err
    assert "ccnet: toys: the folders of toyscapes\n" in told
    assert "ccnet: 2 images of toyscapes in train, 19 classes\n" in told
    assert "ccnet: 1 images of toyscapes in val, 19 classes\n" in told


PRINTING = (("presets", "list"), ("presets", "diff", "camvid", "quickstart"), ("--help",), ("train", "-h"), ("fly",))


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_no_escape_codes_go_through_a_pipe(words: tuple[str, ...], ccnet: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    done = ccnet(*words)
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(("no_color", "colours"), [("", True), ("1", False)])
def test_colours_are_for_terminals_that_want_them(no_color: str, colours: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    ours, theirs = pty.openpty()
    code = "from ccnet_cli.cli import output\noutput.table('t', ('a', 'b'), [('1', 'x')])\n"
    code += "output.block([('ok', 'x', 'found', ''), ('fail', 'y', 'lost', 'mend')])"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, check=True)
    printed = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert "found" in printed and "mend" in printed
    assert ("\x1b" in printed) == colours


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ccnet presets show cam", ["camvid", "camvid-clips", "camvid-strong"]),
        ("ccnet presets diff camvid quick", ["quickstart"]),
        ("ccnet train --preset mmseg-r50-voc-512-2", ["mmseg-r50-voc-512-20k"]),
        ("ccnet eval --preset quick", ["quickstart"]),
        ("ccnet doc", ["doctor"]),
        ("ccnet guide ext", ["extending"]),
        ("ccnet presets show nothing-like-it", []),
    ],
)
def test_a_shell_completes_commands_and_presets(
    line: str, expected: list[str], ccnet: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("_CCNET_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    done = ccnet()
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, expected, "")


def test_completing_loads_nothing_heavy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_CCNET_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "ccnet presets show qu")
    monkeypatch.setenv("COMP_CWORD", "3")
    code = "import sys\nfrom ccnet_cli import cli\ntry: cli.main([])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numba', 'cv2', 'scipy', 'numpy', 'rich'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "quickstart"


def test_compiled_code_is_kept_in_the_user_s_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with pytest.raises(SystemExit):
        cli.main(["presets", "show", "quickstart"])
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
