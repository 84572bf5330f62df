"""The attention figure: a row for each point, the image and beside it the maps of R = 1, 2, ... over it."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccnet_cli.media.images import cv2
from ccnet_cli.media.resampling import interpolation

# H, W the image; h, w the grid of cells on which the network attends; points and cells are (x, y)

# the figure, in its pixels: printed 17 cm wide, its captions are as high as a footnote's
PANEL_HEIGHT, PANEL_WIDTH, NARROWEST = 400, 600, 360
MARGIN, GAP, HEADER, MODELS, CAPTION, LINE = 28, 18, 46, 40, 80, 30
TITLE, TEXT = 1.0, 0.8
INK, FAINT, MARK = (35, 35, 35), (90, 90, 90), (120, 255, 60)
FONT = cv2.FONT_HERSHEY_SIMPLEX
# around a map's largest weight, so many cells each way: where they hold half of it all, they are shown so much larger
CLOSE, CLOSER = 4, 3
# greys below the maps lie so far apart: too little to see, and a file half as large
GREY_STEP = 20


@dataclass(frozen=True)
class Share:
    """What part of a map's attention lies on cells predicted as the point's class, and on and off the point's cross."""

    own_class: float
    on_cross: float
    off_cross: float


@dataclass(frozen=True)
class Point:
    """A pixel of the image, the cell that it falls in, its predicted class, and the shares of R = 1, 2, ..."""

    point: tuple[int, int]
    cell: tuple[int, int]
    name: str
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Attended:
    """What one model sees from the points: for each of them the maps (h, w) of R = 1, 2, ...; title names the model."""

    points: Sequence[Point]
    maps: Sequence[Sequence[np.ndarray]]
    align_corners: bool = True
    title: str = ""


def figure(
    image_bgr: np.ndarray,
    points: Sequence[Point],
    maps: Sequence[Sequence[np.ndarray]],
    clip: float = 99.0,
    align_corners: bool = True,
    title: str = "",
    beside: Attended | None = None,
) -> np.ndarray:
    """A BGR picture: for each point a row of the image and the maps (h, w) of R = 1, 2, ... over the dimmed image.

    beside adds the maps of a second model from the same points, and both models' titles above them.
    """
    models = [Attended(points, maps, align_corners, title), *([] if beside is None else [beside])]
    H, W = image_bgr.shape[:2]
    zoom = min(PANEL_HEIGHT / H, PANEL_WIDTH / W)
    height, width = max(round(zoom * H), 1), max(round(zoom * W), 1)
    # captions need their width even below a narrow picture
    column = max(width, NARROWEST)
    small = cv2.resize(image_bgr, (width, height), interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)
    header = HEADER + (MODELS if beside else 0)
    count = 1 + sum(len(model.maps[0]) for model in models)
    canvas = np.full(
        (header + len(points) * (height + CAPTION) + MARGIN // 2, 2 * MARGIN + count * column + (count - 1) * GAP, 3),
        255,
        np.uint8,
    )
    _write(canvas, "input", (MARGIN, header - 14), TITLE, INK, column)
    for number, point in enumerate(points):
        top = header + number * (height + CAPTION)
        _paste(canvas, marked(small, _place(point, zoom, small), lines=True), (MARGIN, top))
        caption = f"({point.point[0]}, {point.point[1]})  {'' if beside else point.name}"
        _write(canvas, caption, (MARGIN, top + height + LINE), TEXT, INK, column)
    left = MARGIN
    for model in models:
        passes = len(model.maps[0])
        if beside:
            place, room = (left + column + GAP, header - HEADER - 4), passes * (column + GAP) - GAP
            _write(canvas, model.title, place, TITLE, INK, room)
            cv2.line(canvas, (place[0], place[1] + 10), (place[0] + room, place[1] + 10), FAINT, 1)
        for r in range(1, passes + 1):
            left += column + GAP
            _write(canvas, f"R = {r}", (left, header - 14), TITLE, INK, column)
            for number, (point, drawn) in enumerate(zip(model.points, model.maps, strict=True)):
                corner = left, header + number * (height + CAPTION)
                map_hw, place = drawn[r - 1], _place(point, zoom, small)
                limit = clip_limit(map_hw, point.cell, clip)
                _paste(canvas, _panel(small, map_hw, limit, place, model.align_corners), corner)
                name = point.name if beside else "own class"
                _caption(canvas, (corner[0], corner[1] + height), limit, point.shares[r - 1], name, column)
    return canvas


def _panel(
    small_bgr: np.ndarray, map_hw: np.ndarray, limit: float, place: tuple[int, int], align_corners: bool
) -> np.ndarray:
    """A map over a panel's image, the point, its cross and the largest weight marked."""
    size = small_bgr.shape[:2]
    coloured = overlay(small_bgr, enlarged(map_hw / limit, size, align_corners))
    brightest = enlarged(map_hw / map_hw.max(), size, align_corners)
    panel = peaked(marked(ticked(coloured, place), place), brightest)
    y, x = np.unravel_index(map_hw.argmax(), map_hw.shape)
    rows, columns = (slice(max(at - CLOSE, 0), at + CLOSE + 1) for at in (int(y), int(x)))
    if map_hw[rows, columns].sum() < 0.5 * map_hw.sum():
        return panel
    return with_closeup(panel, coloured, np.unravel_index(brightest.argmax(), size), place, map_hw.shape)


def clip_limit(map_hw: np.ndarray, cell: tuple[int, int], clip: float) -> float:
    """The weight that gets the brightest colour: the clip-th percentile of those off the cell's cross.

    Of those on it where the others are all 0. Never below a hundredth of the largest weight.
    """
    # after two passes about half of the attention may still lie on the cross: scaled by it, the rest would be black
    cross = cross_of(map_hw.shape, cell)
    limits = [float(np.percentile(part, clip)) for part in (map_hw[~cross], map_hw[cross]) if part.size]
    limit = next((limit for limit in limits if limit > 0), 1.0)
    # a map with all its weight in a few cells has next to nothing at its percentile, and would show noise
    return max(limit, float(map_hw.max()) / 100)


def cross_of(size: tuple[int, ...], cell: tuple[int, int]) -> np.ndarray:
    """Which cells of a grid (h, w) share their row or column with the cell (x, y)."""
    x, y = cell
    cross = np.zeros(size, bool)
    cross[y] = cross[:, x] = True
    return cross


def enlarged(map_hw: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """A map at a panel's size (height, width), enlarged as the network enlarges its scores, in 0 to 1."""
    rows, columns = (
        interpolation(pixels, cells, align_corners).numpy() for pixels, cells in zip(size, map_hw.shape, strict=True)
    )
    return rows @ np.clip(map_hw, 0, 1).astype(np.float32) @ columns.T


def overlay(image_bgr: np.ndarray, weight_HW: np.ndarray) -> np.ndarray:
    """Weights in 0 to 1 as colours over the dimmed grey image, more opaque where they are larger."""
    lightness = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)
    grey = cv2.cvtColor(lightness // GREY_STEP * GREY_STEP, cv2.COLOR_GRAY2BGR)
    opacity = np.sqrt(weight_HW)[..., None]
    colours = cv2.applyColorMap(np.round(255 * weight_HW).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.round(0.45 * grey * (1 - opacity) + colours * opacity).astype(np.uint8)


def marked(panel_bgr: np.ndarray, place: tuple[int, int], lines: bool = False) -> np.ndarray:
    """A copy with a ring around (x, y), and if asked its row and column drawn faintly."""
    panel = panel_bgr.copy()
    x, y = place
    if lines:
        for line in (panel[y], panel[:, x]):
            line[:] = (line * 0.35 + 255 * 0.65).astype(np.uint8)
    for colour, thickness in (((0, 0, 0), 5), (MARK, 2)):
        cv2.circle(panel, place, 9, colour, thickness, cv2.LINE_AA)
    return panel


def ticked(panel_bgr: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    """A copy with ticks at the edges where the row and the column of (x, y) end: lines would hide what lies on them."""
    panel = panel_bgr.copy()
    (x, y), (height, width) = place, panel.shape[:2]
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


def peaked(panel_bgr: np.ndarray, weight_HW: np.ndarray) -> np.ndarray:
    """A copy with a thin white ring around the largest weight, which may be a single cell."""
    panel = panel_bgr.copy()
    y, x = np.unravel_index(weight_HW.argmax(), weight_HW.shape)
    cv2.circle(panel, (int(x), int(y)), 16, (255, 255, 255), 2, cv2.LINE_AA)
    return panel


def with_closeup(
    panel_bgr: np.ndarray,
    coloured_bgr: np.ndarray,
    peak: tuple[int, ...],
    place: tuple[int, int],
    grid: tuple[int, ...],
) -> np.ndarray:
    """A copy whose emptiest corner shows larger what lies around peak (y, x); the panel itself where there is no room.

    The emptiest corner is the one farthest from both the peak and the point (x, y).
    """
    height, width = panel_bgr.shape[:2]
    reach = round((CLOSE + 0.5) * max(height / grid[0], width / grid[1]))
    side = 2 * reach * CLOSER
    if side > min(height, width) // 2 or 2 * reach >= min(height, width):
        return panel_bgr
    y, x = (min(max(int(at), reach), length - reach) for at, length in zip(peak, (height, width), strict=True))
    part = coloured_bgr[y - reach : y + reach, x - reach : x + reach]
    large = cv2.resize(part, (side, side), interpolation=cv2.INTER_CUBIC)
    cv2.rectangle(large, (0, 0), (side - 1, side - 1), (255, 255, 255), 2)
    _write(large, f"{CLOSER}x", (8, side - 10), TEXT, (255, 255, 255), side)

    def distance(corner: tuple[int, int]) -> float:
        left, top = corner
        middle = left + side / 2, top + side / 2
        return min(float(np.hypot(middle[0] - at[0], middle[1] - at[1])) for at in ((x, y), place))

    edge = 16
    corners = [(left, top) for top in (edge, height - side - edge) for left in (edge, width - side - edge)]
    panel = panel_bgr.copy()
    _paste(panel, large, max(corners, key=distance))
    return panel


def _place(point: Point, zoom: float, panel: np.ndarray) -> tuple[int, int]:
    x, y = (int((value + 0.5) * zoom) for value in point.point)
    return min(x, panel.shape[1] - 1), min(y, panel.shape[0] - 1)


def _caption(canvas: np.ndarray, corner: tuple[int, int], limit: float, part: Share, name: str, width: int) -> None:
    """A colour bar from 0 to the clipped weight, and where the attention lies."""
    left, top = corner
    bar = cv2.applyColorMap(np.tile(np.linspace(0, 255, 150).astype(np.uint8), (16, 1)), cv2.COLORMAP_INFERNO)
    _write(canvas, "0", (left, top + LINE), TEXT, FAINT, 20)
    _paste(canvas, bar, (left + 24, top + LINE - 15))
    _write(canvas, f">= {limit:.2g}", (left + 184, top + LINE), TEXT, FAINT, width - 184)
    text = f"on cross {part.on_cross:.0%}, off {part.off_cross:.0%}, {name} {part.own_class:.0%}"
    _write(canvas, text, (left, top + 2 * LINE), TEXT, INK, width)


def _write(
    canvas: np.ndarray, text: str, place: tuple[int, int], size: float, colour: tuple[int, int, int], room: int
) -> None:
    """Text from a place to the right, smaller where it would not fit into so many pixels."""
    # the fonts that every OpenCV has hold ASCII alone
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    wide = cv2.getTextSize(plain, FONT, size, 1)[0][0]
    cv2.putText(canvas, plain, place, FONT, size * min(1, room / max(wide, 1)), colour, 1, cv2.LINE_AA)


def _paste(canvas: np.ndarray, part: np.ndarray, corner: tuple[int, int]) -> None:
    left, top = corner
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
