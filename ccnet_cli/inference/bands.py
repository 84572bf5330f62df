"""The scores of a picture of any size, band by band: nothing is held but the rows that later tiles still change."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ccnet_cli.errors import EnvironmentFailure, out_of_memory
from ccnet_cli.inference.artifact import Network
from ccnet_cli.inference.scores import Scores, Tile
from ccnet_cli.inference.views import Grid, Views, host_input
from ccnet_cli.media.images import Pixels
from ccnet_cli.media.rasters import Region as Region

# smaller ones are read ahead and scored at once
MIN_PIXELS_OF_BANDS = 1 << 22


class OutOfMemory(EnvironmentFailure):
    """A picture's tiles take more memory than there is, where another picture's may not."""


class Band(NamedTuple):
    """Rows from `top` on that no later tile changes; scores is None where no pixel counts."""

    top: int
    region: Region
    scores: Scores | None


# the region between two rows of a picture, asked for in order, each once
Read = Callable[[int, int], Region]


@dataclass(frozen=True)
class _Placed:
    """A tile at (y, x), of the picture or of its mirror image."""

    key: tuple[bool, int, int]
    tile: Tile


@dataclass(frozen=True)
class _Painter:
    network: Network
    views: Views
    device: torch.device
    grid: Grid

    def score(self, top: int, region: Region) -> Iterator[_Placed]:
        """The tiles of the region, a row of tiles that begins at `top`, in which any pixel counts."""
        keys = [
            (flipped, top, x)
            for flipped in (False, True)[: 1 + self.views.flip]
            for x in self.grid.columns.starts
            if region.valid is None or region.valid[:, self._columns(flipped, x)].any()
        ]
        batch = self.views.batch_of(self.grid)
        for begin in range(0, len(keys), batch):
            several = keys[begin : begin + batch]
            answer = self.network(self._stack(region.image, several).to(self.device, non_blocking=True)).float()
            for key, logits in zip(several, answer, strict=True):
                yield _Placed(key, self.grid.place(logits, *key))

    def _stack(self, image: Pixels, keys: Sequence[tuple[bool, int, int]]) -> Tensor:
        """The tiles at these places, for the CPU laid out as the engine wants them: a copy more takes memory."""
        parts = [self._cut(image, flipped, x) for flipped, _, x in keys]
        stacked = torch.cat(parts) if len(parts) > 1 else parts[0]
        return stacked.contiguous(memory_format=torch.channels_last) if self.device.type == "cpu" else stacked

    def _columns(self, flipped: bool, x: int) -> slice:
        width, tile = self.grid.columns.length, self.grid.columns.tile
        return slice(max(width - x - tile, 0), width - x) if flipped else slice(x, x + tile)

    def _cut(self, image: Pixels, flipped: bool, x: int) -> Tensor:
        part = image[:, self._columns(flipped, x)]
        cut = host_input(part[:, ::-1] if flipped else part, self.network.normalisation, self.device)
        missing = (0, self.grid.columns.tile - cut.shape[-1], 0, self.grid.rows.tile - cut.shape[-2])
        return F.pad(cut, missing) if any(missing) else cut


def suits(views: Views) -> bool:
    """Whether a picture can be seen in bands: as it is, at no other scale."""
    return views.scales == (1.0,) and views.fit is None


@torch.inference_mode()
def score_bands(
    network: Network, read: Read, size: tuple[int, int], views: Views, device: torch.device
) -> Iterator[Band]:
    """The bands of a picture of `size` in order, with the bits of batch_scores; OutOfMemory."""
    height, width = size
    grid = views.grid(size, size, bool(network.align_corners))
    painter = _Painter(network, views, device, grid)
    region, end = read(0, min(grid.rows.tile, height)), min(grid.rows.tile, height)
    placed: list[_Placed] = []
    starts = grid.rows.starts
    for top, following in zip(starts, [*starts[1:], height], strict=True):
        try:
            placed += painter.score(top, region)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            what, fix = f"an image of {width}x{height} pixels", "use smaller tiles, or a smaller --memory"
            raise OutOfMemory(what, "not enough memory for a row of its tiles", fix) from None
        # in the order in which batch_scores adds them
        placed.sort(key=lambda each: each.key)
        tiles = [Tile(tile.logits, tile.rows.cut(top, following), tile.columns) for tile in (p.tile for p in placed)]
        yield Band(top, region.rows(0, following - top), Scores((following - top, width), tiles) if tiles else None)
        placed = [each for each in placed if each.key[1] + grid.rows.tile > following]
        if following < height:
            bottom = min(following + grid.rows.tile, height)
            region, end = region.rows(following - top, end - top).above(read(end, bottom)), bottom
