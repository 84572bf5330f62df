"""A confusion matrix as inline SVG for a page, whose style sheet gives it the colours of its theme."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ccnet_cli.errors import one_line

# pixels of a cell, beside a name, and the most that a letter takes
CELL, GAP, LETTER = 26, 6, 7.4
# from the middle of a row to the line that its letters stand on
BASELINE = 4
# letters of a name; the rest of it is in its title
MAX_LETTERS = 20
# the least part of a class's pixels that is written into its cell
LEAST = 0.005


def draw_matrix(counts_KK: npt.NDArray[Any], names: Sequence[str]) -> Markup:
    """Each row is a true class, in percent of its pixels, and grey if it has none; columns are predicted classes.

    The rows' names are a drawing of their own, which stays while the matrix is moved beneath it.
    """
    names = [one_line(name) for name in names]
    counts = np.asarray(counts_KK, np.float64)
    totals = counts.sum(1)
    margin = round(max(_width(_shorten(name)) for name in names)) + 2 * GAP
    side = len(names) * CELL
    at_right = f'x="{margin - GAP}" y="{{}}" text-anchor="end"'
    above = f'transform="translate({{}} {margin - GAP})rotate(-90)"'
    places = [(i * CELL + CELL // 2 + BASELINE, name) for i, name in enumerate(names)]
    rows = [_name(name, at_right.format(margin + place)) for place, name in places]
    columns = [_name(name, above.format(place)) for place, name in places]
    empty = [_rectangle('class="none"', 0, margin + i * CELL, side) for i in range(len(names)) if not totals[i]]
    cells = [
        _cell(i, j, margin, counts[i, j] / totals[i], f"{names[i]}, seen as {names[j]}: ", int(counts[i, j]))
        for i, j in np.argwhere(counts).tolist()
    ]
    right = ", ".join(f"{name} {100 * counts[i, i] / totals[i]:.0f}" for i, name in enumerate(names) if totals[i])
    label = Markup('class="matrix" role="img" aria-label="percent of each class that is right: {}"').format(right)
    left = _drawing(margin, margin + side, 'class="matrix names" aria-hidden="true"', rows)
    ground = Markup(f'<path class="ground" d="M0 {margin}H{side}V{margin + side}H0Z"/>')
    return left + _drawing(side, margin + side, label, [ground, *columns, *empty, *cells])


def _drawing(width: int, height: int, attributes: str, parts: Sequence[Markup]) -> Markup:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return Markup(f"<svg {size} {attributes}>") + Markup("").join(parts) + Markup("</svg>")


def _name(name: str, place: str) -> Markup:
    return Markup(f"<text {place}><title>{{}}</title>{{}}</text>").format(name, _shorten(name))


def _cell(row: int, column: int, margin: int, fraction: float, name: str, pixels: int) -> Markup:
    x, y, percent = column * CELL, margin + row * CELL, 100 * fraction
    title = Markup("<title>{}{:.2f} % ({:,} pixels)</title>").format(name, percent, pixels)
    square = _rectangle(f'class="cell" fill-opacity="{fraction:.3f}"', x, y, CELL)
    middle = f'x="{x + CELL // 2}" y="{y + CELL // 2 + BASELINE}" text-anchor="middle"'
    number = Markup(f"<text {middle}>{percent:.0f}</text>" if fraction >= LEAST else "")
    return Markup("<g>") + title + square + number + Markup("</g>")


def _rectangle(attributes: str, x: int, y: int, width: int) -> Markup:
    return Markup(f'<rect {attributes} x="{x}" y="{y}" width="{width - 1}" height="{CELL - 1}"/>')


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"


def _width(text: str) -> float:
    """At most, in pixels; letters of the far east are twice as wide."""
    return LETTER * sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
