"""What a benchmark reports: values, which are its JSON, and tables of them for people."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

# what JSON holds of one line of a table
Row = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of what the rounds measured; formatted, it is its median."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The spread of at least one value."""
        values = sorted(values)
        return cls(statistics.median(values), values[0], values[-1])

    def __format__(self, form: str) -> str:
        return format(self.median, form)


@dataclass(frozen=True)
class Column:
    """One column of a table: its heading, the key of its value in a row, and how the value is printed.

    value may be `key.attribute` too, or a function of the row. The value is divided by unit, then formatted; a size is
    printed as HxW, and None as an empty cell.
    """

    heading: str
    value: str | Callable[[Row], Any]
    form: str = ""
    unit: float | None = None

    def cell(self, row: Row) -> str:
        """What is printed of a row."""
        if callable(self.value):
            value = self.value(row)
        else:
            key, _, attribute = self.value.partition(".")
            value = attrgetter(attribute)(row[key]) if attribute else row[key]
        if value is None:
            return ""
        if isinstance(value, tuple):
            return "x".join(map(str, value))
        return format(value / self.unit if self.unit else value, self.form)


def spread_columns(key: str, form: str, heading: str = "ms") -> list[Column]:
    """Columns of the median, under that heading, least and greatest of a Spread, or of a row's own for no key."""
    names = {heading: "median", "least": "least", "greatest": "greatest"}
    return [Column(text, f"{key}.{name}" if key else name, form) for text, name in names.items()]


@dataclass(frozen=True)
class Table:
    """Rows, how they are printed, and what stands above them."""

    title: str | None
    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Report:
    """All that a benchmark measured."""

    values: Mapping[str, Any]
    tables: Sequence[Table]

    def to_mapping(self) -> dict[str, Any]:
        """The values in plain types, fit for JSON."""
        return {key: _plain(value) for key, value in self.values.items()}

    def sheets(self) -> Iterator[tuple[str | None, list[str], list[list[str]]]]:
        """Title, headings and cells of each table."""
        for table in self.tables:
            headings = [column.heading for column in table.columns]
            yield table.title, headings, [[column.cell(row) for column in table.columns] for row in table.rows]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return asdict(value) if isinstance(value, Spread) else value
