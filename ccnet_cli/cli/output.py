"""What commands print and write: tables for people, JSON for programs, files whole or not at all."""

import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from ccnet_cli.bench.report import Report

# also as wide characters, which spreadsheets take for the same
FORMULA_SIGNS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
# what - stands for
STDOUT = Path("/dev/stdout")


def write(path: Path, content: bytes | Callable[[Any], None]) -> None:
    """Write an output, its content or what a function writes into it, whole or not at all; - is standard output."""
    fill = content if callable(content) else lambda file: file.write(content)
    try:
        files.write_output(STDOUT if str(path) == "-" else path, fill)
    except OSError as error:
        # it was writable when the command began
        why = f"not written ({error.strerror})"
        raise EnvironmentFailure(path, why, "make room, or choose another place") from None


def write_json(value: object, path: Path | None) -> bool:
    """Write a result as JSON to a file, if any; True for stdout (-), where nothing else may be printed."""
    if path is None:
        return False
    text = files.to_json(value, 2)
    if str(path) != "-":
        write(path, f"{text}\n".encode())
        return False
    print(text)
    return True


class JsonLines:
    """The list under a key of a JSON mapping, which waits in a temporary file, so that memory stays flat."""

    def __init__(self, key: str, file: Any) -> None:
        self.key = key
        self.file = file
        self.count = 0

    def add(self, value: object) -> None:
        """Add an item to the list."""
        text = textwrap.indent(files.to_json(value, 2), "    ")
        self.file.write(f"{',' * (self.count > 0)}\n{text}".encode())
        self.count += 1

    def write(self, path: Path, before: dict[str, object]) -> None:
        """As write_json, with the list as the last item of the mapping."""
        start = files.to_json(before | {self.key: []}, 2).removesuffix("]\n}")
        end = ("\n  " if self.count else "") + "]\n}\n"

        def fill(file: Any) -> None:
            file.write(start.encode())
            self.file.seek(0)
            while block := self.file.read(1 << 20):
                file.write(block)
            file.write(end.encode())

        if str(path) != "-":
            write(path, fill)
            return
        sys.stdout.flush()
        fill(sys.stdout.buffer)


def print_names(*names: object) -> None:
    """Print files or folders, each in one line, whatever characters are in its name."""
    for name in names:
        print(one_line(name))


def quote_field(text: str) -> str:
    """One text in a CSV file, in one line; an apostrophe before what would be a formula makes it text there."""
    text = one_line(text)
    if text.lstrip()[:1] in FORMULA_SIGNS and not _is_number(text):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',;"') else text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def percent(value: float | None) -> str:
    """A fraction in percent; - for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    sections: Sequence[int] = (),
    widths: Sequence[int | None] = (),
) -> None:
    """Print a table, numbers to the right; sections are the rows that a rule follows.

    widths are those of the first columns, where the terminal has the room.
    """
    from rich.table import Table
    from rich.text import Text

    # above the table, which would fold it to its own width
    if title is not None:
        print(one_line(title))
    table = Table()
    rows = list(rows)
    for index, name in enumerate(columns):
        numeric = all(
            row[index].replace(",", "").replace(".", "").lstrip("-").isdecimal() for row in rows if row[index]
        )
        width = widths[index] if index < len(widths) else None
        table.add_column(Text(one_line(name)), justify="right" if numeric else "left", overflow="fold", width=width)
    for index, row in enumerate(rows):
        table.add_row(*(Text(one_line(cell)) for cell in row), end_section=index in sections)
    _console().print(table)


def markdown(text: str) -> None:
    """Print Markdown, formatted on a terminal and as it is elsewhere."""
    if not sys.stdout.isatty():
        print(text, end="" if text.endswith("\n") else "\n")
        return
    from rich.markdown import Markdown

    _console().print(Markdown(text))


def block(rows: Iterable[tuple[str, str, str, str]]) -> None:
    """Print rows of state, name, detail and fix as a block of Markdown; a fix gets a line of its own."""
    from rich.text import Text

    console = _console()
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    lines = [Text("```")]
    for state, name, text, fix in rows:
        lines.append(Text.assemble((f"{state:6}", colours[state]), f"{name:15} {one_line(text)}"))
        if fix:
            lines.append(Text(f"{'':22}{one_line(fix)}"))
    for line in [*lines, Text("```")]:
        # not folded: the block is to be pasted
        console.print(line, soft_wrap=True)


def _console() -> "Console":
    """Where tables go: escape codes only on a terminal, and no colours there with NO_COLOR."""
    from rich.console import Console

    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR")
    # wide enough for any table where there is no terminal to ask
    return Console(width=None if sys.stdout.isatty() else 160, color_system=None if plain else "auto")


def show_reports(reports: "list[Report]", json_file: Path | None) -> bool:
    """Print the tables of reports, or all values as JSON (a list where there are several); True for JSON alone."""
    values = [report.to_mapping() for report in reports]
    if write_json(values[0] if len(values) == 1 else values, json_file):
        return True
    for report in reports:
        for sheet in report.sheets():
            table(*sheet)
    return False
