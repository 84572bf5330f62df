"""Curves as inline SVG for a page, whose style sheet gives them the colours of its theme."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Line = Sequence[tuple[float, float]]

# of the drawing, in its own units, which a telephone shows a little smaller
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 250, 58, 14, 10, 42
# the widest that a digit of a label is
DIGIT = 9
# of a line; every n-th is drawn of more
MAX_POINTS = 1000
# points of at most that many are marked
MAX_MARKS = 40
COLOURS = 6


@dataclass(frozen=True)
class Plot:
    """Named lines of (step, value) under a title; marked lines have a dot at each value.

    write turns a value into the text of its label.
    """

    title: str
    lines: Mapping[str, Line]
    marked: bool = False
    write: Callable[[float], str] = lambda value: write_number(value)

    def render(self) -> Markup:
        """The drawing with its legend; of one value the number, without any an empty text."""
        lines = {name: [(x, y) for x, y in line if math.isfinite(y)] for name, line in self.lines.items()}
        lines = {name: line for name, line in lines.items() if line}
        if not lines:
            return Markup("")
        title = Markup("<h3>{}</h3>").format(self.title)
        if max(len(line) for line in lines.values()) == 1:
            numbers = [
                Markup('<p><span class="number">{}</span> {}at step {:,}</p>').format(
                    self.write(y), f"{name}, " if len(lines) > 1 else "", x
                )
                for name, ((x, y),) in lines.items()
            ]
            return title + Markup("").join(numbers)
        return title + _legend(lines) + _draw(self, lines)


def write_number(value: float) -> str:
    """A short text with a proper minus."""
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}{f'e{int(exponent)}' if exponent else ''}".replace("-", "−")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, of which the first and the last enclose both."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / (most - 1)))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * (most - 1) >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # whole multiples: sums of steps would not be round
    return [float(f"{index * step:.10g}") for index in range(first, max(last, first + 1) + 1)]


def _legend(lines: Mapping[str, Line]) -> Markup:
    if len(lines) == 1:
        return Markup("")
    keys = [Markup('<span class="key c{}">{}</span>').format(i % COLOURS, name) for i, name in enumerate(lines)]
    return Markup('<p class="legend">') + Markup(" ").join(keys) + Markup("</p>")


def _draw(plot: Plot, lines: Mapping[str, Line]) -> Markup:
    values = [y for line in lines.values() for _, y in line]
    last = max(x for line in lines.values() for x, _ in line)
    up = ticks(min(values), max(values))
    along = [tick for tick in ticks(0, last) if tick <= last and tick.is_integer()]

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / max(last, 1) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (up[-1] - y) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in up:
        _, y = place(0, tick)
        label = escape(plot.write(tick))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick in along:
        x, y = place(tick, up[0])
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{y + 5:.1f}"/>')
        number = f"{tick:,.0f}"
        # the last one stays within the drawing
        middle = min(x, WIDTH - len(number) * DIGIT / 2)
        parts.append(f'<text x="{middle:.1f}" y="{y + 19:.1f}" text-anchor="middle">{number}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{base}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 5}" text-anchor="middle">step</text>')
    for index, line in enumerate(lines.values()):
        thinned = [*line[:: math.ceil(len(line) / MAX_POINTS)], line[-1]] if len(line) > MAX_POINTS else line
        corners = [place(*point) for point in thinned]
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        parts.append(f'<path class="line c{index % COLOURS}" d="M{way}"/>')
        if plot.marked and len(corners) <= MAX_MARKS:
            dots = (f'<circle class="c{index % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in corners)
            parts += dots
    said = "; ".join(_describe(plot, name, line) for name, line in lines.items())
    opening = Markup('<svg class="curves" viewBox="0 0 {} {}" role="img" aria-label="{}: {}">').format(
        WIDTH, HEIGHT, plot.title, said
    )
    return opening + Markup("".join(parts)) + Markup("</svg>")


def _describe(plot: Plot, name: str, line: Line) -> str:
    (first, begin), (last, end) = line[0], line[-1]
    return f"{name} from {plot.write(begin)} at step {first:,} to {plot.write(end)} at step {last:,}"
