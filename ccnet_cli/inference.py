"""From an image to its class scores: whole, sliding, multi-scale, flip.

Everything between a tile's logits and the image is linear and separable: upsampling, averaging where tiles overlap,
resizing a scaled picture back. A tile's share of the scores is therefore rows @ logits @ columns.T, added block by
block to one accumulator; no upsampled copy of the logits and no map of counts ever exists.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccnet_cli.datasets.transforms import exchange, normalise, scaled
from ccnet_cli.errors import EnvironmentFailure, NonFiniteError, out_of_memory
from ccnet_cli.model import PRECISIONS

# K classes, H and W the image; a block of scores holds K x BAND x BLOCK values
BAND = 64
BLOCK = 256


def to_input(image_bgr: np.ndarray, normalisation, device: torch.device | str) -> Tensor:
    """The network's input (1, 3, H, W), float32, of a uint8 BGR image (H, W, 3)."""
    n = normalisation
    return torch.from_numpy(normalise(image_bgr, n.channel_order, n.mean, n.std))[None].to(device)


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
) -> np.ndarray:
    """The class of each pixel, uint8 (H, W), of a uint8 BGR image; the arguments are those of image_scores."""
    return label_map(image_scores(model, image_bgr, device, mode, tile, scales, flip, precision, fit, mirrored))


def image_scores(
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
) -> Tensor:
    """The class_scores of a uint8 BGR image; precision fp32, bf16 or fp16 is the network's."""
    image = to_input(image_bgr, model.normalisation, device)
    with torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32"):
        return class_scores(model, image, mode, tile, scales, flip, fit, mirrored)


def class_scores(
    model: nn.Module,
    image_1CHW: Tensor,
    mode: str = "whole",
    tile: tuple[int, int] = (769, 769),
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit: tuple[int, int] | None = None,
    mirrored: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Logits averaged over scales and mirrored views, (K, H, W) float32 at the image's size.

    whole: each scaled picture's logits go straight to the image's size. sliding: tiles are averaged at the scaled size
    first. Scaled sizes are round(scale * size), at least 1, the size being what fits within fit, its longer and its
    shorter side, where that is given. mirrored pairs the classes that trade places in a mirrored view. Short of memory,
    it clears the cache, then accumulates on the CPU; EnvironmentFailure if neither is enough. The mode and the tile
    never change by themselves.
    """
    if mode not in ("whole", "sliding"):
        raise ValueError(f"mode must be whole or sliding, not {mode}")
    device = image_1CHW.device
    # twice on the device, the second time after its cache was cleared
    for place in [device, device] + [torch.device("cpu")] * (device.type != "cpu"):
        try:
            tiles = tile if mode == "sliding" else None
            return _average(model, image_1CHW, tiles, scales, flip, fit, mirrored, place)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
    height, width = image_1CHW.shape[-2:]
    fix = "use sliding mode with tiles smaller than the image" if mode == "whole" else "use smaller tiles or scales"
    raise EnvironmentFailure(f"an image of {width}x{height} pixels", f"not enough memory for {mode} mode", fix)


def label_map(scores_KHW: Tensor) -> np.ndarray:
    """The best class of each pixel, uint8 (H, W); NonFiniteError where a best score is nan or infinite."""
    labels = torch.empty(scores_KHW.shape[1:], dtype=torch.uint8, device=scores_KHW.device)
    finite = torch.ones((), dtype=torch.bool, device=scores_KHW.device)
    for top in range(0, labels.shape[0], BAND):
        best, index = scores_KHW[:, top : top + BAND].max(dim=0)
        labels[top : top + BAND] = index
        finite &= best.isfinite().all()
    if not finite:
        raise NonFiniteError(
            "class scores", "not finite", "use precision fp32, or a checkpoint whose weights are sound"
        )
    return labels.cpu().numpy()


def probabilities(scores_KHW: Tensor) -> np.ndarray:
    """The softmax of the scores over the classes, float16 (K, H, W)."""
    found = np.empty(tuple(scores_KHW.shape), np.float16)
    # band by band: a float32 copy of all scores may be too much
    for top in range(0, found.shape[1], BAND):
        found[:, top : top + BAND] = scores_KHW[:, top : top + BAND].softmax(dim=0).half().cpu().numpy()
    return found


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

    shares: (scaled,) one over the number of tiles above each pixel, None when one tile is the whole picture.
    """

    length: int
    scaled: int
    tile: int
    starts: list[int]
    shares: Tensor | None

    def placement(self, start: int, logits: int, align_corners: bool) -> tuple[int, Tensor]:
        """The first image pixel that the tile at start reaches, and its matrix (pixels, logits)."""
        if self.shares is None:
            return 0, interpolation(self.length, logits, align_corners)
        # what reaches past the picture is padding
        tile = interpolation(self.tile, logits, align_corners)[: self.scaled - start]
        end = start + len(tile)
        tile = tile * self.shares[start:end, None]
        if self.scaled == self.length:
            return start, tile
        low, high, fraction = neighbours(self.length, self.scaled, align_corners)
        reached = ((high >= start) & (low < end)).nonzero().flatten()
        # the zero row at either end stands for the neighbour that belongs to another tile
        padded = F.pad(tile, (0, 0, 1, 1))
        low, high, fraction = low[reached] - start + 1, high[reached] - start + 1, fraction[reached, None]
        return int(reached[0]) if len(reached) else 0, padded[low].lerp(padded[high], fraction)


def whole(length: int, scaled: int) -> Axis:
    """An axis that is one tile."""
    return Axis(length, scaled, scaled, [0], None)


def sliding(length: int, scaled: int, tile: int, stride: int) -> Axis:
    """An axis cut into tiles that begin every stride pixels; a tile longer than the picture is padded with zeros."""
    begins = starts(scaled, tile, stride)
    counts = torch.zeros(scaled)
    for start in begins:
        counts[start : start + tile] += 1
    return Axis(length, scaled, tile, begins, 1 / counts)


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


def add(scores_KHW: Tensor, logits_Khw: Tensor, rows: Tensor, columns: Tensor, top: int, left: int) -> None:
    """Add rows @ logits @ columns.T to the scores in place, its corner at (top, left)."""
    columns_blocks = list(_blocks(columns, BLOCK, logits_Khw.device))
    for y, used, band in _blocks(rows, BAND, logits_Khw.device):
        part = band @ logits_Khw[:, used]
        for x, kept, block in columns_blocks:
            share = scores_KHW[:, top + y : top + y + len(band), left + x : left + x + len(block)]
            share += part[:, :, kept] @ block.T


def _blocks(matrix: Tensor, size: int, device: torch.device) -> Iterator[tuple[int, slice, Tensor]]:
    """Runs of rows of a banded matrix: where each begins, the columns that it uses, and those entries."""
    for begin in range(0, len(matrix), size):
        run = matrix[begin : begin + size]
        columns = run.any(dim=0).nonzero()
        # all weights may round to nothing, never more than at a run's end
        used = slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 1)
        yield begin, used, run[:, used].to(device)


def _cut(height: int, width: int, picture: Tensor, tile: tuple[int, int] | None) -> tuple[Axis, Axis]:
    """Both axes of a scaled picture; tile None is whole."""
    scaled = picture.shape[-2:]
    if tile is None:
        return whole(height, scaled[0]), whole(width, scaled[1])
    return sliding(height, scaled[0], tile[0], stride(tile[0])), sliding(width, scaled[1], tile[1], stride(tile[1]))


@torch.inference_mode()
def _average(
    model: nn.Module,
    image: Tensor,
    tile: tuple[int, int] | None,
    scales: Sequence[float],
    flip: bool,
    fit: tuple[int, int] | None,
    pairs: Sequence[tuple[int, int]],
    place: torch.device,
) -> Tensor:
    """class_scores in one attempt, with the accumulator on the device `place`."""
    height, width = image.shape[-2:]
    align_corners = bool(model.align_corners)
    weight = 1 / (len(scales) * (1 + flip))
    scores = None
    for scale in scales:
        picture = resized(image, scale, align_corners, fit)
        rows, columns = _cut(height, width, picture, tile)
        for mirrored in (False, True)[: 1 + flip]:
            view = picture.flip(-1) if mirrored else picture
            for y in rows.starts:
                for x in columns.starts:
                    part = view[:, :, y : y + rows.tile, x : x + columns.tile]
                    missing = (0, columns.tile - part.shape[3], 0, rows.tile - part.shape[2])
                    # autocast, where the caller wants it, is for the network alone
                    logits = model(F.pad(part, missing) if any(missing) else part)[0].float().to(place)
                    if scores is None:
                        scores = logits.new_zeros(logits.shape[0], height, width)
                    if mirrored and pairs:
                        logits = logits[exchange(len(logits), pairs).tolist()]
                    top, down = rows.placement(y, logits.shape[1], align_corners)
                    left, across = columns.placement(x, logits.shape[2], align_corners)
                    if mirrored:
                        left, across = width - left - len(across), across.flip(0)
                    with torch.autocast(place.type, enabled=False):
                        add(scores, logits, down * weight, across, top, left)
    return scores


def resized(image_1CHW: Tensor, scale: float, align_corners: bool, fit: tuple[int, int] | None = None) -> Tensor:
    """The image at its scaled size, bilinear."""
    height, width = image_1CHW.shape[-2:]
    size = scaled((height, width), scale, fit)
    if size == (height, width):
        return image_1CHW
    return F.interpolate(image_1CHW, size=size, mode="bilinear", align_corners=align_corners)
