"""The attention figure: a row for each point, with the image and the maps over it, of R = 1, 2, ... or by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ccnet_cli.media.images import Pixels, ascii_text, cv2
from ccnet_cli.media.resampling import interpolation

# H, W the image; h, w the grid of cells on which the network attends; points and cells are (x, y)

Map = npt.NDArray[np.floating[Any]]

# in pixels of the figure; printed 17 cm wide, its captions have the height of a footnote
PANEL_HEIGHT, PANEL_WIDTH, MIN_COLUMN = 400, 600, 360
MARGIN, GAP, HEADER, MODELS, CAPTION, LINE = 28, 18, 46, 40, 80, 30
TITLE, TEXT = 1.0, 0.8
INK, FAINT, MARK = (35, 35, 35), (90, 90, 90), (120, 255, 60)
FONT = cv2.FONT_HERSHEY_SIMPLEX
# inset: cells around the peak, shown enlarged if they hold half of the weight
INSET_CELLS, INSET_ZOOM = 4, 3
# distance of the greys below a map: too small to see, and it halves the file
GREY_STEP = 20


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
    """A BGR picture: for each point a row of the image and its maps over the dimmed image (see clip_limit for clip).

    The models, which share their points, stand side by side; if there are several, each has its title above its maps.
    """
    several = len(models) > 1
    points = models[0].points
    H, W = image_bgr.shape[:2]
    zoom = min(PANEL_HEIGHT / H, PANEL_WIDTH / W)
    height, width = max(round(zoom * H), 1), max(round(zoom * W), 1)
    # captions need their width even below a narrow picture
    column = max(width, MIN_COLUMN)
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    small = np.asarray(cv2.resize(image_bgr, (width, height), interpolation=how), np.uint8)
    header = HEADER + (MODELS if several else 0)
    tops = [header + row * (height + CAPTION) for row in range(len(points))]
    count = 1 + sum(len(model.maps[0]) for model in models)
    size = header + len(points) * (height + CAPTION) + MARGIN // 2, 2 * MARGIN + count * column + (count - 1) * GAP
    canvas = np.full((*size, 3), 255, np.uint8)
    write_text(canvas, "input", (MARGIN, header - 14), TITLE, INK, column)
    for top, point in zip(tops, points, strict=True):
        paste(canvas, mark_point(small, _panel_pixel(point, zoom, small), lines=True), (MARGIN, top))
        caption = f"({point.point[0]}, {point.point[1]})  {'' if several else point.name}"
        write_text(canvas, caption, (MARGIN, top + height + LINE), TEXT, INK, column)
    left = MARGIN
    for model in models:
        passes = len(model.maps[0])
        if several:
            x, y, room = left + column + GAP, header - HEADER - 4, passes * (column + GAP) - GAP
            write_text(canvas, model.title, (x, y), TITLE, INK, room)
            cv2.line(canvas, (x, y + 10), (x + room, y + 10), FAINT, 1)
        for r in range(1, passes + 1):
            left += column + GAP
            name = model.names[r - 1] if model.names else f"R = {r}"
            write_text(canvas, name, (left, header - 14), TITLE, INK, column)
            for top, point, maps in zip(tops, model.points, model.maps, strict=True):
                limit = clip_limit(maps[r - 1], point.cell, clip)
                pixel = _panel_pixel(point, zoom, small)
                paste(canvas, _panel(small, maps[r - 1], limit, pixel, model.align_corners), (left, top))
                name = point.name if several else "own class"
                _caption(canvas, (left, top + height), limit, point.fractions[r - 1], name, column)
    return canvas


def _panel(small_bgr: Pixels, map_hw: Map, limit: float, pixel: tuple[int, int], align_corners: bool) -> Pixels:
    """A map over a panel's image, with marks at the point, at the ends of its cross and at the largest weight."""
    size = small_bgr.shape[0], small_bgr.shape[1]
    coloured = overlay(small_bgr, enlarge(map_hw / limit, size, align_corners))
    brightness = enlarge(map_hw / map_hw.max(), size, align_corners)
    panel = mark_peak(mark_point(mark_cross_ends(coloured, pixel), pixel), brightness)
    rows, columns = (slice(max(index - INSET_CELLS, 0), index + INSET_CELLS + 1) for index in _argmax(map_hw))
    if map_hw[rows, columns].sum() < 0.5 * map_hw.sum():
        return panel
    return add_inset(panel, coloured, _argmax(brightness), pixel, map_hw.shape)


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
    """Weights in 0..1 as colours over the dimmed grey image, more opaque where they are larger."""
    lightness = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)
    grey = cv2.cvtColor(lightness // GREY_STEP * GREY_STEP, cv2.COLOR_GRAY2BGR)
    opacity = np.sqrt(weight_HW)[..., None]
    colours = cv2.applyColorMap(np.round(255 * weight_HW).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.asarray(np.round(0.45 * grey * (1 - opacity) + colours * opacity), np.uint8)


def mark_point(panel_bgr: Pixels, pixel: tuple[int, int], lines: bool = False) -> Pixels:
    """A copy with a ring around the pixel (x, y), and with lines its row and column drawn faintly."""
    panel = panel_bgr.copy()
    x, y = pixel
    if lines:
        for line in (panel[y], panel[:, x]):
            line[:] = (line * 0.35 + 255 * 0.65).astype(np.uint8)
    for colour, thickness in (((0, 0, 0), 5), (MARK, 2)):
        cv2.circle(panel, pixel, 9, colour, thickness, cv2.LINE_AA)
    return panel


def mark_cross_ends(panel_bgr: Pixels, pixel: tuple[int, int]) -> Pixels:
    """A copy with ticks at the edges, at the row and column of the pixel (x, y); lines would hide the map."""
    panel = panel_bgr.copy()
    (x, y), (height, width) = pixel, panel.shape[:2]
    ticks = [
        ((0, y), (12, y)),
        ((width - 13, y), (width - 1, y)),
        ((x, 0), (x, 12)),
        ((x, height - 13), (x, height - 1)),
    ]
    for colour, thickness in (((0, 0, 0), 4), (MARK, 2)):
        for begin, end in ticks:
            cv2.line(panel, begin, end, colour, thickness)
    return panel


def mark_peak(panel_bgr: Pixels, weight_HW: Map) -> Pixels:
    """A copy with a thin white ring around the largest weight, which may be a single cell."""
    panel = panel_bgr.copy()
    y, x = _argmax(weight_HW)
    cv2.circle(panel, (x, y), 16, (255, 255, 255), 2, cv2.LINE_AA)
    return panel


def add_inset(
    panel_bgr: Pixels, coloured_bgr: Pixels, peak: tuple[int, int], pixel: tuple[int, int], grid: tuple[int, ...]
) -> Pixels:
    """A copy with the surroundings of peak (y, x) enlarged in a corner; the panel itself if that has no room.

    The corner is the one farthest from both the peak and the pixel (x, y) of the point.
    """
    height, width = panel_bgr.shape[:2]
    reach = round((INSET_CELLS + 0.5) * max(height / grid[0], width / grid[1]))
    side = 2 * reach * INSET_ZOOM
    if side > min(height, width) // 2 or 2 * reach >= min(height, width):
        return panel_bgr
    y, x = (min(max(index, reach), length - reach) for index, length in zip(peak, (height, width), strict=True))
    part = coloured_bgr[y - reach : y + reach, x - reach : x + reach]
    large = np.asarray(cv2.resize(part, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)
    cv2.rectangle(large, (0, 0), (side - 1, side - 1), (255, 255, 255), 2)
    write_text(large, f"{INSET_ZOOM}x", (8, side - 10), TEXT, (255, 255, 255), side)

    def distance(corner: tuple[int, int]) -> float:
        middle = np.array(corner) + side / 2
        return min(float(np.hypot(*(middle - target))) for target in ((x, y), pixel))

    edge = 16
    corners = [(left, top) for top in (edge, height - side - edge) for left in (edge, width - side - edge)]
    panel = panel_bgr.copy()
    paste(panel, large, max(corners, key=distance))
    return panel


def _argmax(values_HW: Map) -> tuple[int, int]:
    """Row and column of the largest value."""
    row, column = np.unravel_index(values_HW.argmax(), values_HW.shape)
    return int(row), int(column)


def _panel_pixel(point: Point, zoom: float, panel: Pixels) -> tuple[int, int]:
    """The pixel (x, y) of a panel where a point lies."""
    x, y = (int((value + 0.5) * zoom) for value in point.point)
    return min(x, panel.shape[1] - 1), min(y, panel.shape[0] - 1)


def _caption(
    canvas: Pixels, corner: tuple[int, int], limit: float, fractions: Fractions, name: str, width: int
) -> None:
    """A colour bar from 0 to the clipped weight, and the fractions."""
    left, top = corner
    bar = cv2.applyColorMap(np.tile(np.linspace(0, 255, 150).astype(np.uint8), (16, 1)), cv2.COLORMAP_INFERNO)
    write_text(canvas, "0", (left, top + LINE), TEXT, FAINT, 20)
    paste(canvas, np.asarray(bar, np.uint8), (left + 24, top + LINE - 15))
    write_text(canvas, f">= {limit:.2g}", (left + 184, top + LINE), TEXT, FAINT, width - 184)
    if fractions.channel is not None:
        drawn = fractions.drawn_class
        text = f"channel {fractions.channel}, adds most to {drawn}; on {drawn} {fractions.own_class:.0%}"
    else:
        text = f"on cross {fractions.on_cross:.0%}, off {fractions.off_cross:.0%}, {name} {fractions.own_class:.0%}"
    write_text(canvas, text, (left, top + 2 * LINE), TEXT, INK, width)


def write_text(
    canvas: Pixels, text: str, start: tuple[int, int], size: float, colour: tuple[int, int, int], room: int
) -> None:
    """Write a text to the right of start, in a smaller size if it is wider than `room` pixels."""
    plain = ascii_text(text)
    wide = cv2.getTextSize(plain, FONT, size, 1)[0][0]
    cv2.putText(canvas, plain, start, FONT, size * min(1, room / max(wide, 1)), colour, 1, cv2.LINE_AA)


def paste(canvas: Pixels, part: Pixels, corner: tuple[int, int]) -> None:
    """Put a picture onto another, its top left corner at (x, y)."""
    left, top = corner
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
