"""What annotations draw: polygons and run-length masks, painted into a label map."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ccnet_cli.errors import InputError
from ccnet_cli.media.images import PIXEL_LIMIT, Pixels, cv2

# how far a polygon may reach out of its picture, as a part of its side: it is cut off there
OUTSIDE = 0.25
Bits = npt.NDArray[np.bool_]
Ring = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Polygon:
    """Rings of points (N, 2), x and y in pixels: the first outlines an area, further ones its holes."""

    name: str
    rings: Sequence[Ring]
    where: str
    level: int = 0

    @property
    def area(self) -> float:
        """The area within the outline."""
        x, y = self.rings[0].T
        return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)

    def reaches_corners(self, height: int, width: int) -> bool:
        """Whether its points are corners of pixels, from 0 to the picture's width; else they are centres."""
        beyond = self.rings[0] - (width, height)
        # further out, an outline is drawn carelessly
        return bool(((beyond > -0.5) & (beyond < 0.5)).any())

    def draw(self, height: int, width: int, corners: bool) -> tuple[int, int, Bits]:
        """Top, left, and the pixels inside; InputError for a polygon outside of the picture."""
        size, low, high = (width, height), self.rings[0].min(0), self.rings[0].max(0)
        margin = OUTSIDE * np.array(size)
        if (high < 0).any() or (low > size).any() or (low < -margin).any() or (high > size + margin).any():
            extent = f"from {low[0]:.0f},{low[1]:.0f} to {high[0]:.0f},{high[1]:.0f}"
            why = f"a polygon of {self.name}, {extent}, lies outside of the picture ({width} x {height})"
            raise InputError(self.where, why, "correct it, or export again")
        left, top = np.clip(np.floor(low).astype(int), 0, (width - 1, height - 1)).tolist()
        right, bottom = np.clip(np.ceil(high).astype(int) + 1, 1, size).tolist()
        inner = [ring - (left, top) for ring in self.rings]
        if corners:
            return top, left, fill_between_corners(inner, bottom - top, right - left)
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [np.rint(ring).astype(np.int32) for ring in inner], 1)
        return top, left, mask.astype(bool)


@dataclass(frozen=True)
class Mask:
    """Pixels at a location, read when they are painted; area orders them."""

    name: str
    read: Callable[[], Bits]
    where: str
    left: int = 0
    top: int = 0
    area: float = 0
    level: int = 0

    def draw(self, height: int, width: int, corners: bool) -> tuple[int, int, Bits]:
        """Top, left, and the pixels; InputError where they do not fit into the picture."""
        bits = self.read()
        fits = 0 <= self.top <= height - bits.shape[0] and 0 <= self.left <= width - bits.shape[1]
        if not fits:
            extent = f"{bits.shape[1]} x {bits.shape[0]}"
            why = f"a mask of {self.name}, {extent}, lies outside of the picture ({width} x {height})"
            raise InputError(self.where, why, "correct it, or export again")
        return self.top, self.left, bits


Paint = Polygon | Mask


def paint(paints: Sequence[Paint], ids: dict[str, int], size: tuple[int, int], corners: bool, empty: int) -> Pixels:
    """The label map (H, W) of paints by their classes' ids, empty elsewhere.

    By level, and within one the larger first, so that what is small stays visible; equal ones in their order.
    """
    label = np.full(size, empty, np.uint8)
    for each in sorted(paints, key=lambda each: (each.level, -each.area)):
        top, left, bits = each.draw(*size, corners)
        label[top : top + bits.shape[0], left : left + bits.shape[1]][bits] = ids[each.name]
    return label


def fill_between_corners(rings: Sequence[Ring], height: int, width: int) -> Bits:
    """The pixels whose centre lies inside an odd number of rings, whose points are corners of pixels."""
    crossings = np.zeros((height, width + 1), np.int32)
    for ring in rings:
        (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, 0).T
        first, last = (np.clip(np.ceil(edge(y0, y1) - 0.5), 0, height).astype(int) for edge in (np.minimum, np.maximum))
        edges = np.repeat(np.arange(len(ring)), last - first)
        start = np.repeat(np.cumsum(last - first) - (last - first), last - first)
        rows = np.arange(len(edges)) - start + first[edges]
        slope = (x1 - x0)[edges] / (y1 - y0)[edges]
        x = x0[edges] + (rows + 0.5 - y0[edges]) * slope
        np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return np.asarray(crossings.cumsum(1)[:, :width] % 2 == 1)


def read_ring(points: Sequence[Sequence[float]], where: str) -> Ring:
    """Points [x, y] as an array (N, 2); InputError for fewer than three, or absurd ones."""
    if len(points) < 3 or any(len(point) != 2 for point in points):
        raise InputError(where, f"a polygon of {len(points)} points", "three points [x, y] at least make one")
    ring = np.asarray(points, np.float64)
    if not (np.abs(ring) < 1e6).all():
        raise InputError(where, "a polygon leads far out of the picture", "correct it, or export again")
    return ring


def box(left: float, top: float, right: float, bottom: float, where: str) -> Ring:
    """The ring of a rectangle."""
    return read_ring([(left, top), (right, top), (right, bottom), (left, bottom)], where)


def ellipse(middle: tuple[float, float], radii: tuple[float, float], where: str) -> Ring:
    """The ring of an ellipse around a point (x, y), with its radii across and down."""
    angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    ring = np.array(middle) + np.array(radii) * np.stack([np.cos(angles), np.sin(angles)], 1)
    return read_ring(ring.tolist(), where)


def turn(ring: Ring, degrees: float, about: tuple[float, float] | None = None) -> Ring:
    """A ring turned clockwise about a point, or about the middle of its extent."""
    middle = (ring.min(0) + ring.max(0)) / 2 if about is None else np.array(about)
    angle = np.deg2rad(degrees)
    across, down = (ring - middle).T
    turned = (across * np.cos(angle) - down * np.sin(angle), across * np.sin(angle) + down * np.cos(angle))
    return np.asarray(middle + np.stack(turned, 1))


def decode_runs(runs: Sequence[int], height: int, width: int, where: str, columns: bool = False) -> Bits:
    """Pixels of runs, off and on in turn, along rows or along columns; InputError unless they fill the picture."""
    if height * width > PIXEL_LIMIT:
        raise InputError(where, f"a mask of {width} x {height} pixels", "export it again")
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise InputError(where, f"a mask whose runs do not fill {width} x {height} pixels", "export it again")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, np.asarray(runs, np.int64))
    return flat.reshape(width, height).T if columns else flat.reshape(height, width)
