"""Charts as pictures, BGR uint8 (H, W, 3): curves, confusion matrix, growth; the only user of matplotlib.

matplotlib draws ticks, legends and names in any alphabet; loading it takes half a second, a chart a tenth of one.
It is used through its objects, never pyplot, and a user's own style is set aside: the same numbers, the same pixels.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ccnet_cli.errors import one_line
from ccnet_cli.media.images import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Sequence[tuple[float, float]]

DPI = 100
# pixels of a panel of lines and of a cell of the confusion matrix
PANEL_WIDTH, PANEL_HEIGHT, CELL = 480, 360, 44
# lines of at most that many points have dots
MAX_DOTS = 40
FONT_SIZE = 9.0
# colours that colour-blind eyes tell apart (Okabe and Ito, 2008)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# pixels from a label to one above it
LABEL_HEIGHT = 14
INK, EDGE, MISSING = "#333333", "#bbbbbb", "#e1e1e1"
STYLE = {
    "text.parse_math": False,
    "font.size": FONT_SIZE,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": EDGE,
    "xtick.color": EDGE,
    "ytick.color": EDGE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#eeeeee",
    "axes.axisbelow": True,
    "legend.frameon": False,
    # text of PDF and SVG stays text, in fonts that are embedded
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    # the same figure is the same file
    "svg.hashsalt": "ccnet",
}


@dataclass(frozen=True)
class Panel:
    """A plot of named lines of (x, y) points; not finite ones are skipped, and log makes both axes logarithmic."""

    title: str
    lines: Mapping[str, Line]
    x_label: str = "step"
    log: bool = False


@dataclass(frozen=True)
class Scatter:
    """A plot of named points: x, and the values over it, drawn as their mean between the least and the greatest."""

    title: str
    points: Mapping[str, tuple[float, Sequence[float]]]
    x_label: str


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Pixels:
    """Training loss with its terms, learning rate and validation mIoU of a log's rows, side by side."""
    losses = sorted({key for row in rows for key in row if key == "loss" or key.startswith("loss/")})
    columns = {"training loss": losses or ["loss"], "learning rate": ["lr"], "validation mIoU": ["miou"]}
    return line_charts(
        [
            Panel(title, {key: [(row["step"], row[key]) for row in rows if key in row] for key in keys})
            for title, keys in columns.items()
        ]
    )


def line_charts(panels: Sequence[Panel]) -> Pixels:
    """Panels side by side; a panel of several lines has a legend, and the last value of one line stands beside it."""
    with style():
        figure = _figure(PANEL_WIDTH * len(panels), PANEL_HEIGHT, layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_panel(axes, panel)
        return pixels_of(figure)


def scatter_charts(panels: Sequence[Scatter]) -> Pixels:
    """Panels side by side, each name beside its point."""
    with style():
        figure = _figure(PANEL_WIDTH * len(panels), PANEL_HEIGHT, layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            axes.set_title(panel.title)
            axes.set_xlabel(panel.x_label)
            axes.margins(x=0.12, y=0.12)
            labels = []
            for index, (name, (x, values)) in enumerate((n, p) for n, p in panel.points.items() if len(p[1])):
                colour, mean = COLOURS[index % len(COLOURS)], sum(values) / len(values)
                axes.plot([x, x], [min(values), max(values)], color=colour, linewidth=1)
                axes.plot(x, mean, color=colour, marker="o", markersize=5)
                labels.append((mean, x, one_line(name), colour))
            _write_labels(axes, sorted(labels))
        return pixels_of(figure)


def _write_labels(axes: "Axes", labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Names, (y, x, name, colour) from below, each towards the middle from its point and above those in its way."""
    point = 72 / DPI
    rows: list[tuple[float, float, float]] = []
    axes.autoscale_view()
    for y, x, name, colour in labels:
        across, up = axes.transData.transform((x, y))
        to_left = across > axes.bbox.x0 + axes.bbox.width / 2
        start, width = across + 7, 0.65 * FONT_SIZE / point * len(name)
        start = across - 7 - width if to_left else start
        bottom = up + 5
        while any(
            abs(bottom - other) < LABEL_HEIGHT and start < right and left < start + width for left, right, other in rows
        ):
            bottom += LABEL_HEIGHT / 4
        rows.append((start, start + width, bottom))
        offset = (-7 * point if to_left else 7 * point, (bottom - up) * point)
        side = "right" if to_left else "left"
        axes.annotate(name, (x, y), xytext=offset, textcoords="offset points", color=colour, ha=side)


def confusion_matrix(counts_KK: npt.NDArray[Any], names: Sequence[str]) -> Pixels:
    """Each row is a true class, in percent of its pixels, and grey if it has none; columns are predicted classes."""
    import matplotlib

    names = [one_line(name) for name in names]
    counts = np.asarray(counts_KK, np.float64)
    total = counts.sum(1, keepdims=True)
    fraction = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    count = len(names)
    with style():
        side, margin = count * CELL, round(max(text_width(name, FONT_SIZE) for name in names)) + 40
        size = side + margin + 10
        figure = _figure(size, size)
        axes = figure.add_axes((margin / size, 10 / size, side / size, side / size))
        colours = matplotlib.colormaps["Blues"].with_extremes(bad=MISSING)
        cells = np.ma.masked_invalid(fraction)
        axes.pcolormesh(cells, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1)
        axes.invert_yaxis()
        axes.xaxis.set_label_position("top")
        axes.set(xlabel="prediction", ylabel="truth")
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set_xticks(np.arange(count) + 0.5, names, rotation=90)
        axes.set_yticks(np.arange(count) + 0.5, names)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        for row, column in np.argwhere(fraction >= 0.005):
            value = fraction[row, column]
            # on blue of 0.72 both inks have a contrast of 4.5
            ink = "white" if value > 0.72 else "black"
            axes.text(column + 0.5, row + 0.5, f"{100 * value:.0f}", ha="center", va="center", color=ink)
        return pixels_of(figure)


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.margins(x=0.02)
    if panel.log:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
    last: list[float] = []
    for name, line in panel.lines.items():
        points = np.array(line, np.float64).reshape(-1, 2)
        x, y = points[np.isfinite(points).all(1)].T
        if len(y):
            colour = COLOURS[len(last) % len(COLOURS)]
            axes.plot(x, y, color=colour, label=name, marker="o" if len(y) <= MAX_DOTS else "", markersize=4)
            last.append(y[-1])
    if not last:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
    elif len(last) == 1:
        axes.set_title(f"last {last[0]:.4g}", loc="right", fontsize="medium")
    else:
        axes.legend()


@contextmanager
def style() -> Iterator[None]:
    """Our style, and none of matplotlib's messages (a font cache is built, a font lacks a letter)."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from matplotlib import style

            with style.context(["default", STYLE]):
                yield
    finally:
        logger.setLevel(level)


def _figure(width: int, height: int, layout: Any = None) -> "Figure":
    return new_figure(width, height, DPI, layout)


def new_figure(width: int, height: int, dpi: int, layout: Any = None) -> "Figure":
    """A figure of this many pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # a little more: what is rounded down must not lose a pixel
    figure = Figure(((width + 0.01) / dpi, (height + 0.01) / dpi), dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def text_width(text: str, points: float) -> float:
    """Pixels of a text, at DPI."""
    from matplotlib.font_manager import FontProperties

    renderer = _figure(1, 1).canvas.get_renderer()  # type: ignore[attr-defined]
    width: float = renderer.get_text_width_height_descent(text, FontProperties(size=points), False)[0]
    return width


def font_file() -> str:
    """The file of the font that all is written in."""
    from matplotlib.font_manager import FontProperties, findfont

    return str(findfont(FontProperties()))


def pixels_of(figure: "Figure") -> Pixels:
    """A figure as a BGR picture."""
    figure.canvas.draw()
    rgba = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    return np.ascontiguousarray(rgba[..., 2::-1])
