"""Names with control characters, escape sequences and bytes that are not UTF-8, wherever they are printed."""

import csv
import html
import io
import json
import os
import re

import bad_inputs
import numpy as np
import pytest
import tiny

from ccnet_cli import cli, errors, files
from ccnet_cli.cli import output
from ccnet_cli.commands import evaluate as evaluation
from ccnet_cli.errors import one_line
from ccnet_cli.figures import report
from ccnet_cli.media.classes import Classes

NAMES = [
    "new\nline.png",
    "carriage\rreturn.png",
    "\x1b[31mred\x1b[2J.png",
    "bell\x07\x7f.png",
    "eight-bit\x9b2J.png",
    "turned\u202egnp.exe.png",
    "separator\u2028.png",
    os.fsdecode(b"latin-\xe9.png"),
    "=1+1.png",
    "[red]markup[bold].png",
    "back\\slash.png",
    "straße 雪.png",
]


def check(content: bytes, lines: int | None = None) -> str:
    """The text, known to be UTF-8 that moves no cursor, with as many lines."""
    text = content.decode("utf-8")
    assert all(character.isprintable() or character in "\n " for character in text)
    assert lines is None or text.count("\n") == lines
    return text


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("names"))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(bad_inputs.jpeg(tiny.picture(16, 24, number)))
    return folder


def call(capfdbinary, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main([os.fspath(word) for word in words])
    printed = capfdbinary.readouterr()
    return stop.value.code, printed.out, printed.err


@pytest.mark.parametrize("name", NAMES)
def test_one_line_is_printable_and_leaves_ordinary_names(name):
    assert one_line(name).isprintable()
    assert (one_line(name) == name) == name.isprintable()
    one_line(name).encode()


def test_json_is_valid_unicode_and_names_read_back():
    texts = [*NAMES, "\\ud800", "\\\udcff\\", "\ud800\udcff"]
    text = files.to_json({name: name for name in texts})
    assert text.isprintable()
    assert text.isascii()
    for key, value in json.loads(text).items():
        assert key == value
        key.encode()
    for name in [*texts, "𝄞 and 😀"]:
        (read,) = json.loads(files.to_json([name]))
        try:
            name.encode()
        except UnicodeEncodeError:
            read.encode()
        else:
            assert read == name
    assert json.loads(files.to_json([NAMES[7]])) == ["latin-\\udce9.png"]


def test_predict_prints_one_name_a_line(saved, photos, tmp_path, capfdbinary):
    out = tmp_path / "out"
    common = ["--checkpoint", saved, "--device", "cpu"]
    code, printed, _ = call(capfdbinary, "predict", photos, "-o", out, *common)
    assert code == 0
    lines = check(printed, len(NAMES)).splitlines()
    assert sorted(lines) == sorted(one_line(out / name) for name in NAMES)
    code, printed, _ = call(capfdbinary, "predict", photos, "-o", out, "--overwrite", "--json", "-", *common)
    assert code == 0
    sources = [each["source"] for each in json.loads(check(printed))["sources"]]
    assert set(sources) >= {str(photos / name) for name in NAMES if "latin" not in name}


@pytest.mark.parametrize("name", NAMES)
def test_errors_name_a_file_in_one_line(name, saved, tmp_path, capfdbinary):
    (tmp_path / name).write_bytes(b"no image")
    words = ("predict", tmp_path / name, "-o", tmp_path / "out", "--checkpoint", saved, "--device", "cpu")
    code, printed, err = call(capfdbinary, *words)
    assert (code, printed) == (2, b"")
    assert one_line(tmp_path / name) in check(err, 1)


def test_tables_show_names_as_they_are(capsys):
    output.table("a\x1b[2Jb\nc", ("[/x]", "y\n"), [(one_line(name), "1") for name in NAMES])
    text = check(capsys.readouterr().out.encode())
    assert "a\\x1b[2Jb\\nc" in text
    assert "[/x]" in text
    assert "[red]markup[bold].png" in text


@pytest.mark.parametrize("name", ["one\ntwo", "\x1b[2J", "\udcff"])
def test_other_commands_print_names_in_one_line(name, tmp_path, capfdbinary):
    code, printed, _ = call(capfdbinary, "presets", "copy", "quickstart", tmp_path / f"{name}.yaml")
    assert code == 0
    assert check(printed, 1) == f"{one_line(tmp_path / name)}.yaml\n"
    code, printed, _ = call(capfdbinary, "data", "sample", tmp_path / f"{name}.png")
    assert check(printed, 1) == f"{one_line(tmp_path / name)}.png\n"


def test_pages_show_escaped_names(saved, photos, tmp_path, capfdbinary):
    names = NAMES[:1] + NAMES[2:3] + NAMES[7:9]
    pages = tmp_path / "pages"
    words = [*(photos / name for name in names), "--html", pages, "--checkpoint", saved, "--device", "cpu"]
    code, printed, err = call(capfdbinary, "visualize", *words)
    assert code == 0, err
    check(printed, len(names) + 1)
    index = check((pages / "index.html").read_bytes())
    for name in names:
        assert f'">{html.escape(one_line(name))}</a>' in index
        page = check((pages / f"{name.removesuffix('.png')}.html").read_bytes())
        assert f"<cite>{html.escape(one_line(name))}</cite>" in page
        assert json.loads(html.unescape(re.search(r'id="page">(.*?)</script>', page)[1]))["name"] == one_line(name)


def test_a_report_shows_escaped_names(tmp_path):
    folder = tmp_path / os.fsdecode(b"run\n\xff")
    folder.mkdir()
    classes = Classes(("a\x1b[2J", "b\udcff"), ((0, 0, 0), (9, 9, 9)), (0, 1))
    examples = [report.Example(0.5, name, tiny.picture(8, 8, 0)) for name in NAMES]
    environment = {"command": ["ccnet", *NAMES]}
    report.write_report(folder / "report.html", "name: \x9b\n", environment, [], classes, np.eye(2), examples)
    page = check((folder / "report.html").read_bytes())
    assert "<title>run\\n\\udcff</title>" in page
    assert "new\\nline.png: mIoU 50.0 %" in page


@pytest.mark.parametrize(
    "name", ["=1+1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", '=HYPERLINK("x")', "\uff1d1"]
)
def test_a_formula_is_quoted_as_text(name):
    ((cell, number),) = csv.reader(io.StringIO(f"{output.quote_field(name)},0.5\n"))
    assert cell.strip()[0] not in "=+-@\t\r\uff1d"
    assert cell.isprintable()
    assert number == "0.5"


@pytest.mark.parametrize("name", ["road", "-1.5", "+2", "-1e-3", 'a "b", c', "a;b", "traffic-light", ""])
def test_other_cells_stay_as_they_are(name):
    assert next(csv.reader(io.StringIO(f"{output.quote_field(name)},1\n")))[0] == name


def test_eval_quotes_its_classes(tmp_path, monkeypatch, capfdbinary):
    scores = {"=cmd|' /C calc'!A0": 0.5, "-2+3": None, "a\nb": 1.0, "@x": 0.0, "-3": 0.25}
    result = evaluation.Result(0.5, 0.75, 0.625, scores, 2, 7, "x\x1b.pt", {"mode": "whole"})
    monkeypatch.setattr(evaluation, "evaluate", lambda request: result)
    code, printed, _ = call(capfdbinary, "eval", "x.pt", "--csv", tmp_path / "a.csv")
    assert code == 0
    assert "x\\x1b.pt" in check(printed)
    rows = list(csv.reader(io.StringIO(check((tmp_path / "a.csv").read_bytes(), 7))))
    assert [row[0] for row in rows[1:]] == ["'=cmd|' /C calc'!A0", "'-2+3", "a\\nb", "'@x", "-3", "mIoU"]
    assert [row[1] for row in rows[1:]] == ["0.5", "", "1.0", "0.0", "0.25", "0.5"]


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    monkeypatch.setenv(errors.VERBOSITY, "")
