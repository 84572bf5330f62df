"""From an image to its class scores: whole, sliding, multi-scale, flip.

Everything between a tile's logits and the image is linear and separable: upsampling, averaging where tiles overlap,
resizing a scaled picture back. What an image keeps until its pixels are asked for is therefore each tile's logits and,
for both axes, how they make the pixels below it: no upsampled copy of the logits and no map of counts ever exists.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccnet_cli.errors import EnvironmentFailure, out_of_memory
from ccnet_cli.inference.scores import Scores, Share, Taps
from ccnet_cli.media.pixels import normalise, scaled_size, swap_pairs
from ccnet_cli.models.network import PRECISIONS

# K classes, H and W the image


def to_input(image_bgr: np.ndarray, normalisation, device: torch.device | str) -> Tensor:
    """The network's input (1, 3, H, W), float32, of a uint8 BGR image (H, W, 3)."""
    return host_input(image_bgr, normalisation, device).to(device, non_blocking=True)


def host_input(image_bgr: np.ndarray, normalisation, device: torch.device | str) -> Tensor:
    """The network's input still on the CPU, in pages that a GPU copies from while the CPU goes on."""
    n = normalisation
    image = torch.from_numpy(normalise(image_bgr, n.channel_order, n.mean, n.std))[None]
    return image.pin_memory() if torch.device(device).type == "cuda" else image


def segment(
    model: nn.Module,
    image_bgr: np.ndarray,
    device: torch.device,
    mode: str = "whole",
    tile: tuple[int, int] = (769, 769),
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    precision: str = "fp32",
    fit: tuple[int, int] | None = None,
    mirrored: Sequence[tuple[int, int]] = (),
    batch: int = 1,
) -> np.ndarray:
    """The class of each pixel, uint8 (H, W), of a uint8 BGR image; the other arguments are those of batch_scores."""
    image = host_input(image_bgr, model.normalisation, device)
    views = (mode, tile, scales, flip, precision, fit, mirrored, batch)
    return batch_scores(model, image, device, *views)[0].labels()


def batch_scores(
    model: nn.Module,
    images_BCHW: Tensor,
    device: torch.device,
    mode: str = "whole",
    tile: tuple[int, int] = (769, 769),
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    precision: str = "fp32",
    fit: tuple[int, int] | None = None,
    mirrored: Sequence[tuple[int, int]] = (),
    batch: int = 1,
) -> list[Scores]:
    """The scores of each of some images' host_input of one size: logits averaged over scales and mirrored views.

    whole: each scaled picture's logits go straight to the image's size. sliding: tiles are averaged at the scaled size
    first. Scaled sizes are round(scale * size), at least 1, the size being what fits within fit, its longer and its
    shorter side, where that is given. mirrored pairs the classes that trade places in a mirrored view. The network,
    whose precision is fp32, bf16 or fp16, sees up to `batch` pictures or tiles at once. Short of memory, the cache is
    cleared, then the network sees one at a time, then logits are kept on the CPU; EnvironmentFailure if all that is not
    enough. The mode and the tile never change by themselves.
    """
    if mode not in ("whole", "sliding"):
        raise ValueError(f"mode must be whole or sliding, not {mode}")
    # twice on the device, the second time after its cache was cleared
    attempts = [(device, batch)] * 2 + [(device, 1)] * (batch > 1)
    for place, together in attempts + [(torch.device("cpu"), 1)] * (device.type != "cpu"):
        try:
            images = images_BCHW.to(device, non_blocking=True)
            tiles = tile if mode == "sliding" else None
            with _autocast(device, precision):
                return _views(model, images, tiles, scales, flip, fit, mirrored, together, place)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
    height, width = images_BCHW.shape[-2:]
    fix = "use sliding mode with tiles smaller than the image" if mode == "whole" else "use smaller tiles or scales"
    raise EnvironmentFailure(f"an image of {width}x{height} pixels", f"not enough memory for {mode} mode", fix)


def class_scores(
    model: nn.Module,
    image_1CHW: Tensor,
    mode: str = "whole",
    tile: tuple[int, int] = (769, 769),
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit: tuple[int, int] | None = None,
    mirrored: Sequence[tuple[int, int]] = (),
    batch: int = 1,
) -> Tensor:
    """All scores of one image of batch_scores, (K, H, W) float32 at the image's size."""
    place = image_1CHW.device
    return batch_scores(model, image_1CHW, place, mode, tile, scales, flip, "fp32", fit, mirrored, batch)[0].dense()


def upsampled(logits_Khw: Tensor, size: tuple[int, int], align_corners: bool) -> Scores:
    """The scores of a picture of that size whose logits these are."""
    rows, columns = (
        Taps.of(interpolation(pixels, logits, align_corners))
        for pixels, logits in zip(size, logits_Khw.shape[1:], strict=True)
    )
    return Scores(size, [Share(logits_Khw.float(), rows, columns)])


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The network's precision inside; fp32 changes nothing."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=PRECISIONS[precision])


def starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin so that they cover length; the last one ends on the edge."""
    last = max(length - tile, 0)
    return [*range(0, last, stride), last]


def stride(tile: int) -> int:
    """How far apart tiles begin so that they overlap by a third: two thirds of the tile, rounded up."""
    return -(-2 * tile // 3)


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
        return [0] if self.stride is None else starts(self.scaled, self.tile, self.stride)


@lru_cache(maxsize=256)
def placement(axis: Axis, start: int, logits: int, align_corners: bool) -> Taps:
    """How the logits of the tile at start make the image's pixels; where tiles overlap each has an equal part."""
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
    reached = ((high >= start) & (low < end)).nonzero().flatten()
    # the zero row at either end stands for the neighbour that belongs to another tile
    padded = F.pad(tile, (0, 0, 1, 1))
    low, high, fraction = low[reached] - start + 1, high[reached] - start + 1, fraction[reached, None]
    return Taps.of(padded[low].lerp(padded[high], fraction), int(reached[0]) if len(reached) else 0)


def neighbours(pixels: int, size: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `pixels` outputs the two of `size` inputs it lies between, and the weight of the second.

    Rounded to float32 where torch's bilinear upsampling rounds, so that the two agree to the last bits.
    """
    scale = (size - 1) / max(pixels - 1, 1) if align_corners else size / pixels
    # the product of two float32 numbers is exact in float64
    exact = torch.tensor(scale, dtype=torch.float32).double()
    place = torch.arange(pixels, dtype=torch.float64)
    place = exact * place if align_corners else (exact * (place + 0.5) - 0.5).clamp(min=0)
    place = place.float()
    low = place.long().clamp(max=size - 1)
    return low, (low + 1).clamp(max=size - 1), (place - low).clamp(0, 1)


def interpolation(pixels: int, size: int, align_corners: bool) -> Tensor:
    """The matrix (pixels, size) of linear interpolation along one axis."""
    low, high, fraction = neighbours(pixels, size, align_corners)
    matrix = torch.zeros(pixels, size)
    matrix.scatter_add_(1, low[:, None], 1 - fraction[:, None])
    return matrix.scatter_add_(1, high[:, None], fraction[:, None])


def _cut(height: int, width: int, picture: Tensor, tile: tuple[int, int] | None) -> tuple[Axis, Axis]:
    """Both axes of a scaled picture; tile None is whole."""
    rows, columns = picture.shape[-2:]
    if tile is None:
        return Axis(height, rows, rows, None), Axis(width, columns, columns, None)
    return Axis(height, rows, tile[0], stride(tile[0])), Axis(width, columns, tile[1], stride(tile[1]))


@torch.inference_mode()
def _views(
    model: nn.Module,
    images_BCHW: Tensor,
    tile: tuple[int, int] | None,
    scales: Sequence[float],
    flip: bool,
    fit: tuple[int, int] | None,
    pairs: Sequence[tuple[int, int]],
    batch: int,
    place: torch.device,
) -> list[Scores]:
    """batch_scores in one attempt, with the logits kept on the device `place`."""
    height, width = images_BCHW.shape[-2:]
    align_corners = bool(model.align_corners)
    weight = 1 / (len(scales) * (1 + flip))
    shares: list[list[Share]] = [[] for _ in images_BCHW]
    for scale in scales:
        pictures = resized(images_BCHW, scale, align_corners, fit)
        rows, columns = _cut(height, width, pictures, tile)
        # of every image one tile after the other: no image's sums depend on what it is seen together with
        tiles = [
            (number, mirrored, y, x)
            for number in range(len(shares))
            for mirrored in range(1 + flip)
            for y in rows.starts
            for x in columns.starts
        ]
        for begin in range(0, len(tiles), batch):
            several = tiles[begin : begin + batch]
            parts = [
                _tile(pictures[number], mirrored, slice(y, y + rows.tile), x, columns.tile)
                for number, mirrored, y, x in several
            ]
            parts = [_padded(part, rows.tile, columns.tile) for part in parts]
            found = model(torch.stack(parts) if len(parts) > 1 else parts[0][None])
            # autocast, where the caller wants it, is for the network alone
            for (number, mirrored, y, x), logits in zip(several, found.float().to(place), strict=True):
                down = placement(rows, y, logits.shape[1], align_corners).weighted(weight)
                across = placement(columns, x, logits.shape[2], align_corners)
                if mirrored:
                    across = across.mirrored(width)
                    if pairs:
                        logits = logits[swap_pairs(len(logits), pairs).tolist()]
                shares[number].append(Share(logits, down, across))
    return [Scores((height, width), own) for own in shares]


def _tile(picture_CHW: Tensor, mirrored: bool, rows: slice, left: int, width: int) -> Tensor:
    """A tile of a picture or, cut out before it is turned, of its mirror image."""
    if not mirrored:
        return picture_CHW[:, rows, left : left + width]
    right = picture_CHW.shape[2] - left
    return picture_CHW[:, rows, max(right - width, 0) : right].flip(-1)


def _padded(part_CHW: Tensor, height: int, width: int) -> Tensor:
    """A tile of that size, zeros below and right of the picture."""
    missing = (0, width - part_CHW.shape[2], 0, height - part_CHW.shape[1])
    return F.pad(part_CHW, missing) if any(missing) else part_CHW


def resized(images_BCHW: Tensor, scale: float, align_corners: bool, fit: tuple[int, int] | None = None) -> Tensor:
    """The images at their scaled size, bilinear."""
    height, width = images_BCHW.shape[-2:]
    size = scaled_size((height, width), scale, fit)
    if size == (height, width):
        return images_BCHW
    return F.interpolate(images_BCHW, size=size, mode="bilinear", align_corners=align_corners)
