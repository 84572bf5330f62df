"""The attention figure of a clip: for each point a row of its frames for each pass, with the maps over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ccnet_cli.figures import charts
from ccnet_cli.figures.attention import GAP, MARGIN, Map, enlarge, mark_point, overlay, resize
from ccnet_cli.figures.sheet import FAINT, INK, Print, Sheet
from ccnet_cli.media.images import Pixels

# T frames, H and W of a frame, h and w the grid of cells; points and cells are (x, y)

PANEL_HEIGHT, PANEL_WIDTH, MIN_COLUMN = 220, 330, 200


@dataclass(frozen=True)
class Shares:
    """Fractions of a map's weight: in each frame, and on and off the point's cross in time and space."""

    frames: tuple[float, ...]
    on_cross: float
    off_cross: float

    @classmethod
    def of(cls, map_Thw: Map, place: int, cell: tuple[int, int]) -> "Shares":
        """Those of a map that sums to 1, of the cell in the frame at `place`."""
        cross = cross_mask(map_Thw.shape, place, cell)
        frames = tuple(float(each) for each in map_Thw.sum(axis=(1, 2)))
        return cls(frames, float(map_Thw[cross].sum()), float(map_Thw[~cross].sum()))


@dataclass(frozen=True, eq=False)
class ClipPoint:
    """A pixel of the labelled frame, its cell and predicted class, and each pass's map (T, h, w) and shares.

    model is what the model is called beside another one.
    """

    point: tuple[int, int]
    cell: tuple[int, int]
    name: str
    maps: tuple[Map, ...]
    shares: tuple[Shares, ...]
    model: str = ""


def cross_mask(size: tuple[int, ...], place: int, cell: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The cells (T, h, w) that share two of their three coordinates with the cell (x, y) of the frame at `place`."""
    own = [np.arange(length) == index for length, index in zip(size, (place, cell[1], cell[0]), strict=True)]
    t, y, x = own[0][:, None, None], own[1][:, None], own[2]
    return np.asarray((t & y) | (t & x) | (y & x))


def draw_clip_figure(
    frames_bgr: Sequence[Pixels], place: int, points: Sequence[ClipPoint], align_corners: bool, clip: float = 99.0
) -> Pixels:
    """The figure as a BGR picture."""
    with charts.style():
        return _draw(frames_bgr, place, points, align_corners, clip, Print()).to_pixels()


def encode_clip_figure(
    frames_bgr: Sequence[Pixels],
    place: int,
    points: Sequence[ClipPoint],
    align_corners: bool,
    clip: float = 99.0,
    how: Print | None = None,
) -> bytes:
    """The figure as a file: for each point and pass a row of the frames, dimmed, with the map and its share below.

    Weights above the clip-th percentile of those above 0, of a row or of all rows of a point, share the brightest
    colour.
    """
    with charts.style():
        return _draw(frames_bgr, place, points, align_corners, clip, how or Print()).encode()


def _draw(
    frames_bgr: Sequence[Pixels],
    place: int,
    points: Sequence[ClipPoint],
    align_corners: bool,
    clip: float,
    how: Print,
) -> Sheet:
    H, W = frames_bgr[0].shape[:2]
    count, rows = len(frames_bgr), [(point, number) for point in points for number in range(len(point.maps))]
    natural_zoom = min(PANEL_HEIGHT / H, PANEL_WIDTH / W)
    natural_column = max(round(natural_zoom * W), MIN_COLUMN)
    natural = 2 * MARGIN + count * natural_column + (count - 1) * GAP
    zoom = how.zoom(natural)
    size = max(round(zoom * natural_zoom * H), 1), max(round(zoom * natural_zoom * W), 1)
    margin, gap, column = (round(zoom * length) for length in (MARGIN, GAP, natural_column))
    line = Sheet((1, 1), how, natural).line
    # a title above, a share below, and once the colours
    row = size[0] + round(4.4 * line)
    # what was rounded is taken from the right margin
    width = round(zoom * natural)
    sheet = Sheet((width, len(rows) * row + round(1.4 * line)), how, natural)
    small = [resize(frame, size) for frame in frames_bgr]
    for index, (point, number) in enumerate(rows):
        top = index * row + round(1.8 * line)
        title = f"R = {number + 1}   ({point.point[0]}, {point.point[1]})  {point.name}  {point.model}".rstrip()
        sheet.write(title, (margin, top - 0.5 * line), width - 2 * margin, 1.2)
        limit = clip_limit(point.maps if how.one_scale else [point.maps[number]], clip)
        pixel = tuple(
            int(min(zoom * natural_zoom * at, most - 1)) for at, most in zip(point.point, size[::-1], strict=True)
        )
        for time, frame in enumerate(small):
            left = margin + time * (column + gap)
            axes = sheet.picture(
                overlay(frame, enlarge(point.maps[number][time] / limit, size, align_corners)), (left, top)
            )
            if time == place:
                mark_point(axes, (pixel[0], pixel[1]), sheet.marks)
            when = "labelled" if time == place else write_offset(time - place)
            caption = f"{when}: {point.shares[number].frames[time]:.0%}"
            ink = INK if time == place else FAINT
            sheet.write(caption, (left, top + size[0] + 0.95 * line), column, 1, ink)
        sheet.colour_bar((margin, top + size[0] + round(1.1 * line)), limit, max(column, round(0.25 * width)))
    scale = "one scale for the passes of a point" if how.one_scale else "each row has its own scale"
    note = f"Colours: {scale}, up to percentile {clip:g} of its weights above 0."
    sheet.write(note, (margin, sheet.height - 0.5 * line), width - 2 * margin, 0.85, FAINT)
    return sheet


def clip_limit(maps_Thw: Sequence[Map], clip: float) -> float:
    """The weight that gets the brightest colour in all of these maps."""
    weights = np.concatenate([np.ravel(each) for each in maps_Thw])
    return max(float(np.percentile(weights[weights > 0], clip)), float(weights.max()) / 100)


def write_offset(frames: int) -> str:
    """Frames from the labelled one, with a proper sign."""
    return f"{'−' if frames < 0 else '+'}{abs(frames)}"
