"""From an image to its class scores: whole, sliding, multi-scale, flip.

Everything between a tile's logits and the image is linear and separable: upsampling, averaging where tiles overlap,
resizing a scaled picture back. So an image keeps only each tile's logits and, for both axes, how they make the pixels
below the tile: no upsampled copy of the logits and no map of counts ever exists.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ccnet_cli import config
from ccnet_cli.errors import EnvironmentFailure, InputError, out_of_memory
from ccnet_cli.inference.artifact import Network
from ccnet_cli.inference.scores import Scores, Taps, Tile
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.pixels import normalise, scaled_size, swap_pairs
from ccnet_cli.media.resampling import interpolation, neighbours
from ccnet_cli.models.network import Normalisation

# K classes, H and W the image

MODES = ("whole", "sliding")
# as many as an image file may have
MAX_SCALED_PIXELS = 1 << 27
# pixels by which the tiles of a picture overlap that is too large to be seen as a whole
OVERLAP = 48

Limit = Callable[["Views", tuple[int, int]], "Views"]


@dataclass(frozen=True)
class Views:
    """The pictures and tiles of an image that the network sees, and how many of them it sees at once (`batch`).

    whole: each scaled picture as it is; sliding: tiles (height, width) of it, which overlap by a third. The sizes are
    round(scale * size), at least 1, of the image or of what fits into `fit` (longer side, shorter side). mirrored holds
    the pairs of classes that swap places in a flipped view. The network sees at most max_pixels at once, or one tile: a
    larger picture is cut into a few large tiles in whole mode too. limit gives the views of an image of one size.
    """

    mode: str = "whole"
    tile: tuple[int, int] = (769, 769)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fit: tuple[int, int] | None = None
    batch: int = 1
    mirrored: tuple[tuple[int, int], ...] = ()
    max_pixels: int | None = None
    limit: Limit | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be whole or sliding, not {self.mode}")

    @classmethod
    def of(cls, settings: config.Eval, classes: Classes, limit: Limit | None = None) -> "Views":
        """The views of a preset's eval section."""
        s = settings
        return cls(s.mode, s.tile, tuple(s.scales), s.flip, s.fit, s.batch, classes.mirrored, limit=limit)

    def fit_to(self, size: tuple[int, int]) -> "Views":
        """The views of an image of size (H, W)."""
        return self if self.limit is None else self.limit(self, size)

    def grid(self, size: tuple[int, int], scaled: tuple[int, int], align_corners: bool) -> "Grid":
        """How the picture of an image of that size is cut."""
        tile = scaled
        strides: tuple[int | None, int | None] = (None, None)
        if self.mode == "sliding":
            tile, strides = self.tile, (tile_stride(self.tile[0]), tile_stride(self.tile[1]))
        elif self.max_pixels is not None and scaled[0] * scaled[1] > self.max_pixels:
            tile, overlap = plan_tile(scaled, self.max_pixels)
            strides = tile[0] - overlap, tile[1] - overlap
        rows, columns = map(Axis, size, scaled, tile, strides)
        return Grid(rows, columns, align_corners, 1 / (len(self.scales) * (1 + self.flip)), self.mirrored)

    def batch_of(self, grid: "Grid") -> int:
        """How many tiles the network sees at once."""
        most = self.batch if self.max_pixels is None else self.max_pixels // (grid.rows.tile * grid.columns.tile)
        return max(1, min(self.batch, most))


def to_input(image_bgr: np.ndarray, normalisation: Normalisation, device: torch.device | str) -> Tensor:
    """The network's input (1, 3, H, W), float32, of a uint8 BGR image (H, W, 3)."""
    return host_input(image_bgr, normalisation, device).to(device, non_blocking=True)


def host_input(image_bgr: np.ndarray, normalisation: Normalisation, device: torch.device | str) -> Tensor:
    """The network's input still on the CPU, in pinned memory where `device` is a GPU."""
    n = normalisation
    image = torch.from_numpy(normalise(image_bgr, n.channel_order, n.mean, n.std))[None]
    return image.pin_memory() if torch.device(device).type == "cuda" else image


def batch_scores(network: Network, images_BCHW: Tensor, views: Views, device: torch.device) -> list[Scores]:
    """The scores of each of some images of one size: logits averaged over scales, tiles and flips.

    Clips (B, T, 3, H, W) have the scores of one frame each.

    Short of memory, the cache is emptied, then the network sees one view at a time, then logits are kept on the CPU;
    EnvironmentFailure if all that is not enough. The mode and the tile never change by themselves.
    """
    views = views.fit_to((images_BCHW.shape[-2], images_BCHW.shape[-1]))
    one = replace(views, batch=1)
    # twice on the device, the second time with its cache emptied
    attempts = [(views, device)] * 2 + [(one, device)] * (views.batch > 1)
    for attempt, store in attempts + [(one, torch.device("cpu"))] * (device.type != "cpu"):
        if rewind := getattr(network, "rewind", None):
            # it counts the views of an image
            rewind()
        try:
            return _score_views(network, images_BCHW.to(device, non_blocking=True), attempt, store)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
    height, width = images_BCHW.shape[-2:]
    whole = views.mode == "whole"
    fix = "use sliding mode with tiles smaller than the image" if whole else "use smaller tiles or scales"
    raise EnvironmentFailure(f"an image of {width}x{height} pixels", f"not enough memory for {views.mode} mode", fix)


def upsample(logits_Khw: Tensor, size: tuple[int, int], align_corners: bool) -> Scores:
    """The scores of a picture of that size from the logits of all of it."""
    rows, columns = (
        Taps.of(interpolation(pixels, logits, align_corners))
        for pixels, logits in zip(size, logits_Khw.shape[1:], strict=True)
    )
    return Scores(size, [Tile(logits_Khw.float(), rows, columns)])


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin so that they cover length; the last one ends on the edge."""
    last = max(length - tile, 0)
    return [*range(0, last, stride), last]


def tile_stride(tile: int) -> int:
    """The distance between tiles that overlap by a third: two thirds of the tile, rounded up."""
    return -(-2 * tile // 3)


def plan_tile(size: tuple[int, int], max_pixels: int) -> tuple[tuple[int, int], int]:
    """The tiles of at most max_pixels that cover a picture with the fewest pixels in all, and their overlap."""
    overlap = min(OVERLAP, max(1, math.isqrt(max_pixels) // 3))
    best, fewest = size, math.inf
    for down in itertools.count(1):
        rows = _divide(size[0], down, overlap)
        if down > 1 and rows <= 2 * overlap:
            return best, overlap
        most = max_pixels // rows
        if most > min(2 * overlap, size[1] - 1):
            across = 1 if most >= size[1] else -(-(size[1] - overlap) // (most - overlap))
            columns = _divide(size[1], across, overlap)
            if down * across * rows * columns < fewest:
                best, fewest = (rows, columns), down * across * rows * columns
    raise AssertionError


def _divide(length: int, count: int, overlap: int) -> int:
    """The length of each of a number of tiles that overlap and cover an axis."""
    return min(length, -(-(length + (count - 1) * overlap) // count))


@dataclass(frozen=True)
class Axis:
    """One axis of a picture that the network sees: `scaled` pixels, cut into tiles, for `length` pixels of the image.

    stride is None when one tile is the whole picture; a tile longer than the picture is padded with zeros.
    """

    length: int
    scaled: int
    tile: int
    stride: int | None

    @property
    def starts(self) -> list[int]:
        """Where tiles begin."""
        return [0] if self.stride is None else tile_starts(self.scaled, self.tile, self.stride)


@lru_cache(maxsize=256)
def tile_taps(axis: Axis, start: int, logits: int, align_corners: bool) -> Taps:
    """How the logits of the tile at start make the image's pixels; where tiles overlap, each weighs the same."""
    if axis.stride is None:
        return Taps.of(interpolation(axis.length, logits, align_corners))
    counts = torch.zeros(axis.scaled)
    for begin in axis.starts:
        counts[begin : begin + axis.tile] += 1
    # what reaches past the picture is padding
    tile = interpolation(axis.tile, logits, align_corners)[: axis.scaled - start]
    end = start + len(tile)
    tile = tile * (1 / counts[start:end, None])
    if axis.scaled == axis.length:
        return Taps.of(tile, start)
    low, high, fraction = neighbours(axis.length, axis.scaled, align_corners)
    covered = ((high >= start) & (low < end)).nonzero().flatten()
    # the zero row at either end stands for the neighbour that belongs to another tile
    padded = F.pad(tile, (0, 0, 1, 1))
    low, high, fraction = low[covered] - start + 1, high[covered] - start + 1, fraction[covered, None]
    return Taps.of(padded[low].lerp(padded[high], fraction), int(covered[0]) if len(covered) else 0)


@dataclass(frozen=True)
class Grid:
    """How a picture is cut, and what its tiles make of the image; the scores of all its views weigh `weight` each."""

    rows: Axis
    columns: Axis
    align_corners: bool
    weight: float
    mirrored: tuple[tuple[int, int], ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the picture is its only tile."""
        return self.rows.stride is None

    def place(self, logits: Tensor, flipped: bool, y: int, x: int) -> Tile:
        """The tile at (y, x) of the picture, or of its mirror image, from its logits (K, h, w)."""
        rows = tile_taps(self.rows, y, logits.shape[1], self.align_corners).scale(self.weight)
        columns = tile_taps(self.columns, x, logits.shape[2], self.align_corners)
        if flipped:
            columns = columns.mirror(self.columns.length)
            if self.mirrored:
                logits = logits[swap_pairs(len(logits), self.mirrored).tolist()]
        return Tile(logits, rows, columns)


@dataclass(frozen=True)
class _Pictures:
    """Some images at one scale, (B, 3, h, w), or clips, and how each is cut."""

    images_BChw: Tensor
    grid: Grid

    def tiles(self, flip: bool) -> Iterator[tuple[int, bool, int, int]]:
        """Image, whether flipped, top and left of every tile, image by image: no sum depends on the others."""
        for number in range(len(self.images_BChw)):
            for flipped in (False, True)[: 1 + flip]:
                for y in self.grid.rows.starts:
                    for x in self.grid.columns.starts:
                        yield number, flipped, y, x

    def cut(self, number: int, flipped: bool, y: int, x: int) -> Tensor:
        """A tile of an image or of its mirror image, (3, tile height, tile width), with zeros past the edges."""
        picture, height, width = self.images_BChw[number], self.grid.rows.tile, self.grid.columns.tile
        if flipped:
            # cut out before it is flipped, so that only the tile is copied
            right = picture.shape[-1] - x
            part = picture[..., y : y + height, max(right - width, 0) : right].flip(-1)
        else:
            part = picture[..., y : y + height, x : x + width]
        missing = (0, width - part.shape[-1], 0, height - part.shape[-2])
        return F.pad(part, missing) if any(missing) else part


@torch.inference_mode()
def _score_views(network: Network, images_BCHW: Tensor, views: Views, store: torch.device) -> list[Scores]:
    """batch_scores in one attempt, with the logits kept on the device `store`."""
    height, width = images_BCHW.shape[-2:]
    kept: list[list[Tile]] = [[] for _ in images_BCHW]
    for scale in views.scales:
        pictures = _scale(images_BCHW, scale, views, bool(network.align_corners))
        tiles = list(pictures.tiles(views.flip))
        batch = views.batch_of(pictures.grid)
        for begin in range(0, len(tiles), batch):
            several = tiles[begin : begin + batch]
            parts = [pictures.cut(*tile) for tile in several]
            answer = network(torch.stack(parts) if len(parts) > 1 else parts[0][None])
            # autocast, where the caller wants it, is for the network alone
            for (number, flipped, y, x), logits in zip(several, answer.float().to(store), strict=True):
                kept[number].append(pictures.grid.place(logits, flipped, y, x))
    return [Scores((height, width), tiles) for tiles in kept]


def _scale(images_BCHW: Tensor, scale: float, views: Views, align_corners: bool) -> _Pictures:
    """The images at their scaled size, bilinear, and the tiles of their axes."""
    height, width = images_BCHW.shape[-2:]
    rows, columns = size = scaled_size((height, width), scale, views.fit)
    if rows * columns > MAX_SCALED_PIXELS:
        what, fix = f"{width}x{height} pixels at scale {scale:g}", "use smaller scales, or a smaller image"
        raise InputError(what, f"more than {MAX_SCALED_PIXELS:,} pixels", fix)
    if size != (height, width):
        pictures = images_BCHW.flatten(0, -4)
        pictures = F.interpolate(pictures, size=size, mode="bilinear", align_corners=align_corners)
        images_BCHW = pictures.view(*images_BCHW.shape[:-2], *size)
    return _Pictures(images_BCHW, views.grid((height, width), size, align_corners))
