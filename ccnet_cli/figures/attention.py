"""The attention figure: a row for each point, with the image and the maps over it, of R = 1, 2, ... or by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ccnet_cli.figures import charts
from ccnet_cli.figures.sheet import CLOSE, COLOURS, FAINT, NO_BREAK, Print, Sheet, mark_lines, mark_ring
from ccnet_cli.media.images import Pixels, cv2
from ccnet_cli.media.resampling import interpolation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# H, W the image; h, w the grid of cells on which the network attends; points and cells are (x, y)

Map = npt.NDArray[np.floating[Any]]

# in pixels of a figure on a screen, which is the whole zoomed for print
PANEL_HEIGHT, PANEL_WIDTH, MIN_COLUMN = 400, 600, 360
MARGIN, GAP = 28, 18
# inset: cells around the peak, shown enlarged if they hold half of the weight
INSET_CELLS, INSET_ZOOM = 4, 3
# lines of text that an inset is high at least, to have one in it
INSET_LINES = 3
# distance of the greys below a map: too small to see, and it halves the file
GREY_STEP = 20
# below a map, a photograph's lightness times this, and the least that is left of it at night
DIMMED, DARKEST = 0.4, 24


@dataclass(frozen=True)
class Fractions:
    """Fractions of a map's weight: on cells predicted as the point's class, and on and off the point's cross.

    A map of channel attention is that of a channel, drawn for a class; the first fraction is on cells of that class,
    and there is no cross.
    """

    own_class: float
    on_cross: float | None
    off_cross: float | None
    channel: int | None = None
    drawn_class: str | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Plain types; channel and class of a map of channel attention alone."""
        cross = {"own_class": self.own_class, "on_cross": self.on_cross, "off_cross": self.off_cross}
        own = {} if self.channel is None else {"channel": self.channel, "drawn_class": self.drawn_class}
        return cross | own


@dataclass(frozen=True)
class Point:
    """A pixel of the image, its cell, its predicted class, and the fractions of each of its maps."""

    point: tuple[int, int]
    cell: tuple[int, int]
    name: str
    fractions: tuple[Fractions, ...]


@dataclass(frozen=True)
class ModelMaps:
    """The maps (h, w) of one model for each of its points, of R = 1, 2, ... unless named; title names the model."""

    points: Sequence[Point]
    maps: Sequence[Sequence[Map]]
    align_corners: bool = True
    title: str = ""
    names: Sequence[str] = ()


def draw_figure(image_bgr: Pixels, models: Sequence[ModelMaps], clip: float = 99.0) -> Pixels:
    """The figure as a BGR picture."""
    with charts.style():
        return _draw(image_bgr, models, clip, Print()).to_pixels()


def encode_figure(
    image_bgr: Pixels, models: Sequence[ModelMaps], clip: float = 99.0, how: Print | None = None
) -> bytes:
    """The figure as a file: for each point a row of the image and its maps over the dimmed image.

    The models, which share their points, stand side by side; if there are several, each has its title above its maps.
    Weights above a percentile, clip, of a map's or of a row's share the brightest colour (see clip_limit).
    """
    with charts.style():
        return _draw(image_bgr, models, clip, how or Print()).encode()


def _draw(image_bgr: Pixels, models: Sequence[ModelMaps], clip: float, how: Print) -> Sheet:
    layout = Layout.of(image_bgr, models, how, clip)
    sheet = Sheet(layout.size, how, layout.natural)
    small = resize(image_bgr, layout.panel)
    several, points = len(models) > 1, models[0].points
    left, note = layout.margin, layout.note
    sheet.write("input", (left, layout.header - 0.6 * sheet.line), layout.column, 1.2)
    for row, point in enumerate(points):
        pixel = layout.pixel(point)
        top = layout.top(row)
        mark_point(sheet.picture(small, (left, top)), pixel, sheet.marks, lines=True)
        place = f"({point.point[0]}, {point.point[1]})  {'' if several else point.name}"
        sheet.write(place, (left, top + layout.panel[0] + 0.8 * sheet.line), layout.column)
    for model in models:
        if several:
            room = len(model.maps[0]) * (layout.column + layout.gap) - layout.gap
            start = left + layout.column + layout.gap, 1.1 * sheet.line
            sheet.write(model.title, start, room, 1.2)
            sheet.rule((start[0], start[1] + 0.3 * sheet.line), room)
        for number in range(len(model.maps[0])):
            left += layout.column + layout.gap
            name = model.names[number] if model.names else f"R = {number + 1}"
            sheet.write(name, (left, layout.header - 0.6 * sheet.line), layout.column, 1.2)
            for row, (point, maps) in enumerate(zip(model.points, model.maps, strict=True)):
                limit = layout.limits[row] or clip_limit(maps[number], point.cell, clip)
                corner = left, layout.top(row)
                if _panel(sheet, corner, small, maps[number], limit, layout.pixel(point), model.align_corners):
                    note = f"{layout.note} Insets: {INSET_ZOOM}×."
                below = corner[1] + layout.panel[0]
                bar = sheet.bar_lines(layout.column)
                sheet.colour_bar((left, below), limit, layout.column, bar)
                lines = sheet.wrap(_caption(point, number, several), layout.column)
                for index, text in enumerate(lines, bar):
                    line = left, below + (0.95 + CLOSE * index) * sheet.line
                    sheet.write(text, line, layout.column, layout.caption)
    foot = layout.margin, layout.size[1] - 0.5 * sheet.line
    sheet.write(note, foot, layout.size[0] - 2 * layout.margin, 0.85, FAINT)
    return sheet


@dataclass(frozen=True)
class Layout:
    """Where everything lies on the sheet, in its pixels; panel is (height, width).

    limits are the brightest weights of rows that share one, None where each map has its own; note says which.
    caption is the size, in text sizes, of all captions.
    """

    size: tuple[int, int]
    panel: tuple[int, int]
    column: int
    header: float
    row: float
    margin: int
    gap: int
    natural: int
    zoom: float
    limits: tuple[float | None, ...]
    note: str
    caption: float

    @classmethod
    def of(cls, image_bgr: Pixels, models: Sequence[ModelMaps], how: Print, clip: float) -> "Layout":
        """The layout of a figure, whose captions take as many lines as the longest needs."""
        H, W = image_bgr.shape[:2]
        natural_zoom = min(PANEL_HEIGHT / H, PANEL_WIDTH / W)
        # captions need their width even below a narrow picture
        natural_column = max(round(natural_zoom * W), MIN_COLUMN)
        count = 1 + sum(len(model.maps[0]) for model in models)
        natural = 2 * MARGIN + count * natural_column + (count - 1) * GAP
        zoom = how.zoom(natural)
        panel = max(round(zoom * natural_zoom * H), 1), max(round(zoom * natural_zoom * W), 1)
        margin, gap, column = (round(zoom * length) for length in (MARGIN, GAP, natural_column))
        # only to measure texts
        sheet = Sheet((1, 1), how, natural)
        several = len(models) > 1
        captions = [
            sheet.wrap(_caption(point, number, several), column)
            for model in models
            for point in model.points
            for number in range(len(model.maps[0]))
        ]
        lines = sheet.bar_lines(column) + max(map(len, captions), default=1)
        below = (0.75 + CLOSE * lines) * sheet.line
        header, row = (3.4 if several else 1.8) * sheet.line, panel[0] + below
        rows = len(models[0].points)
        height = round(header + rows * row + 1.2 * sheet.line)
        limits = [_row_limit(models, index, clip) if how.one_scale else None for index in range(rows)]
        scale = "one scale for the maps of a row" if how.one_scale else "each map has its own scale"
        note = f"Colours: {scale}, up to percentile {clip:g} of its weights."
        # what was rounded is taken from the right margin
        width = round(zoom * natural)
        whole = zoom * natural_zoom
        widest = max((sheet.text_width(line, sheet.points) for lines in captions for line in lines), default=1.0)
        caption = min(1.0, column / widest)
        return cls(
            (width, height), panel, column, header, row, margin, gap, natural, whole, tuple(limits), note, caption
        )

    def top(self, row: int) -> int:
        """Where a row's panels begin."""
        return round(self.header + row * self.row)

    def pixel(self, point: Point) -> tuple[int, int]:
        """The pixel (x, y) of a panel where a point lies."""
        x, y = (int((value + 0.5) * self.zoom) for value in point.point)
        return min(x, self.panel[1] - 1), min(y, self.panel[0] - 1)


def _row_limit(models: Sequence[ModelMaps], row: int, clip: float) -> float:
    """The brightest weight of all of a row's maps."""
    weights = np.concatenate([np.ravel(map_hw) for model in models for map_hw in model.maps[row]])
    limit = float(np.percentile(weights[weights > 0], clip)) if (weights > 0).any() else 1.0
    return max(limit, float(weights.max(initial=0)) / 100)


def _panel(
    sheet: Sheet,
    corner: tuple[float, float],
    small_bgr: Pixels,
    map_hw: Map,
    limit: float,
    pixel: tuple[int, int],
    align_corners: bool,
) -> bool:
    """A map over a panel's image, with marks at the point, at the ends of its cross and at the largest weight.

    Returns whether it has an inset that is too small to say how much larger it is.
    """
    size = small_bgr.shape[0], small_bgr.shape[1]
    coloured = overlay(small_bgr, enlarge(map_hw / limit, size, align_corners))
    peak = _argmax(enlarge(map_hw / map_hw.max(), size, align_corners))
    rows, columns = (slice(max(index - INSET_CELLS, 0), index + INSET_CELLS + 1) for index in _argmax(map_hw))
    inset = None
    if map_hw[rows, columns].sum() >= 0.5 * map_hw.sum():
        coloured, inset = add_inset(coloured, peak, pixel, map_hw.shape)
    axes = sheet.picture(coloured, corner)
    mark_cross_ends(axes, pixel, size, sheet.marks)
    mark_point(axes, pixel, sheet.marks)
    # a thin ring, as the largest weight may be a single cell
    mark_ring(axes, peak[::-1], 1.9 * sheet.marks, "white", outline=False)
    if inset is None:
        return False
    left, top, side = inset
    frame = [left, left + side, left + side, left, left], [top, top, top + side, top + side, top]
    axes.plot(*frame, color="white", linewidth=0.12 * sheet.marks)
    if side < INSET_LINES * sheet.line:
        return True
    sheet.label(axes, f"{INSET_ZOOM}×", (left + 0.06 * side, top + 0.94 * side))
    return False


def clip_limit(map_hw: Map, cell: tuple[int, int], clip: float) -> float:
    """The weight that gets the brightest colour: the clip-th percentile of the weights off the cell's cross.

    If those are 0, that of the weights on it; never below a hundredth of the largest weight.
    """
    # after two passes half of the weight may still lie on the cross: scaled by it, the rest would be black
    cross = cross_mask(map_hw.shape, cell)
    limits = [float(np.percentile(part, clip)) for part in (map_hw[~cross], map_hw[cross]) if part.size]
    limit = next((limit for limit in limits if limit > 0), 1.0)
    # with all weight in a few cells, the percentile is close to 0 and the map would show noise
    return max(limit, float(map_hw.max()) / 100)


def cross_mask(size: tuple[int, ...], cell: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The cells of a grid (h, w) in the row or the column of the cell (x, y)."""
    x, y = cell
    cross = np.zeros(size, bool)
    cross[y] = cross[:, x] = True
    return cross


def enlarge(map_hw: Map, size: tuple[int, int], align_corners: bool) -> npt.NDArray[np.float32]:
    """A map clipped to 0..1 at a panel's size (height, width), enlarged as the network enlarges its scores."""
    rows, columns = (
        interpolation(pixels, cells, align_corners).numpy() for pixels, cells in zip(size, map_hw.shape, strict=True)
    )
    return np.asarray(rows @ np.clip(map_hw, 0, 1).astype(np.float32) @ columns.T)


def overlay(image_bgr: Pixels, weight_HW: Map) -> Pixels:
    """Weights in 0..1 as colours over the dimmed grey image, more opaque where they are larger; nowhere black."""
    lightness = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)
    grey = DARKEST + DIMMED * cv2.cvtColor(lightness // GREY_STEP * GREY_STEP, cv2.COLOR_GRAY2BGR)
    opacity = np.sqrt(weight_HW)[..., None]
    colours = cv2.applyColorMap(np.round(255 * weight_HW).astype(np.uint8), COLOURS)
    return np.asarray(np.round(grey * (1 - opacity) + colours * opacity), np.uint8)


def resize(picture_bgr: Pixels, size: tuple[int, int]) -> Pixels:
    """A picture at a panel's size (height, width)."""
    how = cv2.INTER_AREA if size[0] < picture_bgr.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture_bgr, size[::-1], interpolation=how), np.uint8)


def mark_point(axes: "Axes", pixel: tuple[int, int], points: float, lines: bool = False) -> None:
    """A ring around the pixel (x, y), and with lines its row and column drawn faintly."""
    if lines:
        axes.axvline(pixel[0], color="white", alpha=0.65, linewidth=0.08 * points)
        axes.axhline(pixel[1], color="white", alpha=0.65, linewidth=0.08 * points)
    mark_ring(axes, pixel, 1.1 * points)


def mark_cross_ends(axes: "Axes", pixel: tuple[int, int], size: tuple[int, int], points: float) -> None:
    """Ticks at the edges, at the row and column of the pixel (x, y); lines would hide the map."""
    (x, y), (height, width) = pixel, size
    length = 0.03 * max(height, width)
    across = [((0, y), (length, y)), ((width - 1 - length, y), (width - 1, y))]
    down = [((x, 0), (x, length)), ((x, height - 1 - length), (x, height - 1))]
    mark_lines(axes, [*across, *down], 0.14 * points)


def add_inset(
    coloured_bgr: Pixels, peak: tuple[int, int], pixel: tuple[int, int], grid: tuple[int, ...]
) -> tuple[Pixels, tuple[int, int, int] | None]:
    """A copy with the surroundings of peak (y, x) enlarged in a corner, and that corner's left, top and side.

    The corner is the one farthest from both the peak and the pixel (x, y) of the point; None if there is no room.
    """
    height, width = coloured_bgr.shape[:2]
    reach = round((INSET_CELLS + 0.5) * max(height / grid[0], width / grid[1]))
    side = 2 * reach * INSET_ZOOM
    if side > min(height, width) // 2 or 2 * reach >= min(height, width):
        return coloured_bgr, None
    y, x = (min(max(index, reach), length - reach) for index, length in zip(peak, (height, width), strict=True))
    part = coloured_bgr[y - reach : y + reach, x - reach : x + reach]

    def distance(corner: tuple[int, int]) -> float:
        middle = np.array(corner) + side / 2
        return min(float(np.hypot(*(middle - target))) for target in ((x, y), pixel))

    edge = round(0.03 * min(height, width)) + 4
    corners = [(left, top) for top in (edge, height - side - edge) for left in (edge, width - side - edge)]
    left, top = max(corners, key=distance)
    panel = coloured_bgr.copy()
    panel[top : top + side, left : left + side] = cv2.resize(part, (side, side), interpolation=cv2.INTER_CUBIC)
    return panel, (left, top, side)


def _argmax(values_HW: Map) -> tuple[int, int]:
    """Row and column of the largest value."""
    row, column = np.unravel_index(values_HW.argmax(), values_HW.shape)
    return int(row), int(column)


def _caption(point: Point, number: int, several: bool) -> str:
    """A map's fractions in words, which break between them alone."""
    fractions = point.fractions[number]
    if fractions.channel is not None:
        drawn = fractions.drawn_class
        return f"channel {fractions.channel}, adds most to {drawn}; on {drawn} {fractions.own_class:.0%}"
    name = point.name if several else "own class"
    parts = [
        f"on cross {fractions.on_cross:.0%}",
        f"off {fractions.off_cross:.0%}",
        f"{name} {fractions.own_class:.0%}",
    ]
    return ", ".join(part.replace(" ", NO_BREAK) for part in parts)
