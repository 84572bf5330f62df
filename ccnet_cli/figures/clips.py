"""The attention figure of a clip: for each point a row of its frames for each pass, with the maps over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ccnet_cli.figures.attention import (
    FAINT,
    GAP,
    HEADER,
    INK,
    LINE,
    MARGIN,
    TEXT,
    TITLE,
    Map,
    enlarge,
    mark_point,
    overlay,
    paste,
    write_text,
)
from ccnet_cli.media.images import Pixels, cv2

# T frames, H and W of a frame, h and w the grid of cells; points and cells are (x, y)

PANEL_HEIGHT, PANEL_WIDTH, MIN_COLUMN = 220, 330, 200
CAPTION = LINE + 12


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
    """A pixel of the labelled frame, its cell and predicted class, and each pass's map (T, h, w) and shares."""

    point: tuple[int, int]
    cell: tuple[int, int]
    name: str
    maps: tuple[Map, ...]
    shares: tuple[Shares, ...]


def cross_mask(size: tuple[int, ...], place: int, cell: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The cells (T, h, w) that share two of their three coordinates with the cell (x, y) of the frame at `place`."""
    own = [np.arange(length) == index for length, index in zip(size, (place, cell[1], cell[0]), strict=True)]
    t, y, x = own[0][:, None, None], own[1][:, None], own[2]
    return np.asarray((t & y) | (t & x) | (y & x))


def draw_clip_figure(
    frames_bgr: Sequence[Pixels], place: int, points: Sequence[ClipPoint], align_corners: bool, clip: float = 99.0
) -> Pixels:
    """A BGR picture: for each point and pass a row of the frames, dimmed, with the map over them and shares below.

    Weights above the clip-th percentile of those above 0 share the brightest colour.
    """
    H, W = frames_bgr[0].shape[:2]
    zoom = min(PANEL_HEIGHT / H, PANEL_WIDTH / W)
    size = max(round(zoom * H), 1), max(round(zoom * W), 1)
    column, row = max(size[1], MIN_COLUMN) + GAP, HEADER + size[0] + CAPTION
    small = [np.asarray(cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA), np.uint8) for frame in frames_bgr]
    rows: list[tuple[ClipPoint, int]] = [(point, number) for point in points for number in range(len(point.maps))]
    canvas = np.full((MARGIN + row * len(rows), 2 * MARGIN + column * len(small) - GAP, 3), 255, np.uint8)
    for index, (point, number) in enumerate(rows):
        top = MARGIN // 2 + index * row
        title = f"R = {number + 1}   ({point.point[0]}, {point.point[1]})  {point.name}"
        write_text(canvas, title, (MARGIN, top + HEADER - 14), TITLE, INK, canvas.shape[1] - 2 * MARGIN)
        weights, shares = point.maps[number], point.shares[number]
        limit = max(float(np.percentile(weights[weights > 0], clip)), float(weights.max()) / 100)
        pixel = min(int(zoom * point.point[0]), size[1] - 1), min(int(zoom * point.point[1]), size[0] - 1)
        for time, frame in enumerate(small):
            corner = MARGIN + time * column, top + HEADER
            panel: Any = overlay(frame, enlarge(weights[time] / limit, size, align_corners))
            paste(canvas, mark_point(panel, pixel) if time == place else panel, corner)
            caption = f"{'labelled' if time == place else f'{time - place:+d}'}: {shares.frames[time]:.0%}"
            ink = INK if time == place else FAINT
            write_text(canvas, caption, (corner[0], corner[1] + size[0] + LINE), TEXT, ink, column)
    return canvas
