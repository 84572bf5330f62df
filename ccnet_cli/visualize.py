"""Draw what the network attends to from a point of an image, after each pass."""

import io
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccnet_cli import checkpoint as checkpoints
from ccnet_cli import images, loading, outputs
from ccnet_cli import model as models
from ccnet_cli.attention import attention_map
from ccnet_cli.errors import InputError, NonFiniteError, notice
from ccnet_cli.evaluate import network
from ccnet_cli.images import cv2
from ccnet_cli.inference import interpolation, to_input

# H, W the image; h, w the grid of cells on which the network attends; points and cells are (x, y)

# below this weight of the attended features, gamma, the scores hardly depend on the attention
UNUSED_GAMMA = 1e-3
MOST_POINTS = 24

# the figure, in its pixels
PANEL_HEIGHT, PANEL_WIDTH = 400, 600
MARGIN, GAP, HEADER, CAPTION = 28, 18, 46, 58
INK, FAINT, MARK = (35, 35, 35), (120, 120, 120), (120, 255, 60)
FONT = cv2.FONT_HERSHEY_SIMPLEX


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
class Summary:
    """What was drawn; size is (H, W) of the image and grid (h, w) of the maps."""

    figure: str
    image: str
    checkpoint: str
    recurrence: int
    gamma: float
    size: tuple[int, int]
    grid: tuple[int, int]
    points: tuple[Point, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON; each point has its class and a mapping r1, r2, ... of shares."""
        points = [
            {"point": list(p.point), "cell": list(p.cell), "class": p.name}
            | {f"r{r}": asdict(share) for r, share in enumerate(p.shares, start=1)}
            for p in self.points
        ]
        return asdict(self) | {"size": list(self.size), "grid": list(self.grid), "points": points}


def visualize(
    image: Path | None,
    points: Sequence[tuple[int, int]],
    output: Path,
    checkpoint: Path | None = None,
    clip: float = 99.0,
    maps: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> Summary:
    """Write a PNG with a row for each point (X, Y): the image, and the R = 1, R = 2, ... attention over it.

    Weights above the clip-th percentile (see clip_limit) share the brightest colour. maps also writes an npz file of
    the raw float64 arrays r1, r2, ... (n, h, w), points (n, 2) and image_size (H, W). Without an image, the sample that
    comes with ccnet is drawn. preset and overrides are those of loading.restore. InputError for a point outside the
    image and for a model without attention.
    """
    _check(image, points, output, clip, maps, overwrite)
    place = models.device(device)
    restored = loading.restore(checkpoints.find(checkpoint), preset, overrides)
    recurrence, gamma = restored.model.recurrence, restored.model.gamma
    if recurrence == 0:
        fix = "use a checkpoint with model.recurrence 1 or more"
        raise InputError(restored.path, "the model has no attention (R=0), so there is nothing to draw", fix)
    if image is None:
        image = checkpoints.sample_image()
        notice("drawing the sample image that comes with ccnet: name another one to see its attention")
    picture = images.read_image(image, exif=True)
    _check_inside(points, picture.shape[:2])
    if recurrence == 1:
        notice("the model has one pass (R=1): only its R=1 map is drawn")
    if abs(gamma) < UNUSED_GAMMA:
        notice(f"the attention is hardly used: its weight gamma is {gamma:.1e}; train longer before reading the maps")

    model = network(restored, place)
    with torch.inference_mode():
        scores, passes = model.attend(to_input(picture, model.normalisation, place))
        found = [locate(scores[0], point, picture.shape[:2], model.align_corners) for point in points]
        composed = [
            [attention_map(passes[:count], y, x).cpu().numpy() for count in range(1, recurrence + 1)]
            for (x, y), _ in found
        ]
        classes = scores[0].argmax(dim=0).cpu().numpy()
    if not np.isfinite(composed).all():
        raise NonFiniteError(restored.path, "its attention is not finite", "use a checkpoint whose weights are sound")
    described = tuple(
        Point(point, cell, restored.classes.names[own], tuple(share(map, cell, classes == own) for map in drawn))
        for point, (cell, own), drawn in zip(points, found, composed, strict=True)
    )
    images.write_image(output, figure(picture, described, composed, clip, model.align_corners))
    if maps is not None:
        images.write_bytes(maps, _npz(points, composed, picture.shape[:2]))
    grid = (classes.shape[0], classes.shape[1])
    size = (picture.shape[0], picture.shape[1])
    return Summary(str(output), str(image), str(restored.path), recurrence, gamma, size, grid, described)


def locate(
    scores_Khw: Tensor, point: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> tuple[tuple[int, int], int]:
    """The cell (x, y) whose scores weigh most where the network enlarges them to the image, and the pixel's class.

    With align_corners that is the cell nearest to x (w - 1) / (W - 1), y (h - 1) / (H - 1).
    """
    (x, y), (H, W), (h, w) = point, size, scores_Khw.shape[1:]
    row = interpolation(H, h, align_corners)[y].to(scores_Khw)
    column = interpolation(W, w, align_corners)[x].to(scores_Khw)
    own = torch.einsum("khw,h,w->k", scores_Khw, row, column).argmax()
    return (int(column.argmax()), int(row.argmax())), int(own)


def share(map_hw: np.ndarray, cell: tuple[int, int], own_hw: np.ndarray) -> Share:
    """How much of a map that sums to 1 lies where own is true, and on and off the cross of the cell."""
    cross = _cross(map_hw.shape, cell)
    weights = map_hw.astype(np.float64)
    return Share(*(float(weights[where].sum()) for where in (own_hw, cross, ~cross)))


def figure(
    image_bgr: np.ndarray,
    points: Sequence[Point],
    maps: Sequence[Sequence[np.ndarray]],
    clip: float = 99.0,
    align_corners: bool = True,
) -> np.ndarray:
    """A BGR picture: for each point a row of the image and the maps (h, w) of R = 1, 2, ... over the dimmed image."""
    H, W = image_bgr.shape[:2]
    zoom = min(PANEL_HEIGHT / H, PANEL_WIDTH / W)
    height, width = max(round(zoom * H), 1), max(round(zoom * W), 1)
    # captions need their width even below a narrow picture
    column = max(width, 300)
    small = cv2.resize(image_bgr, (width, height), interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)
    count = 1 + len(maps[0])
    canvas = np.full(
        (HEADER + len(points) * (height + CAPTION) + MARGIN // 2, 2 * MARGIN + count * column + (count - 1) * GAP, 3),
        255,
        np.uint8,
    )
    for index, title in enumerate(["input", *(f"R = {r}" for r in range(1, count))]):
        _write(canvas, title, (MARGIN + index * (column + GAP), HEADER - 14), 0.75, INK)
    for number, (point, drawn) in enumerate(zip(points, maps, strict=True)):
        top = HEADER + number * (height + CAPTION)
        x, y = point.point
        place = min(int((x + 0.5) * zoom), width - 1), min(int((y + 0.5) * zoom), height - 1)
        _paste(canvas, marked(small, place, lines=True), (MARGIN, top))
        _write(canvas, f"({x}, {y})  {point.name}", (MARGIN, top + height + 24), 0.6, INK)
        for index, (map_hw, part) in enumerate(zip(drawn, point.shares, strict=True), start=1):
            left = MARGIN + index * (column + GAP)
            limit = clip_limit(map_hw, point.cell, clip)
            weight_HW = enlarged(map_hw / limit, (height, width), align_corners)
            panel = marked(overlay(small, weight_HW), place)
            _paste(canvas, peaked(panel, enlarged(map_hw / map_hw.max(), (height, width), align_corners)), (left, top))
            _caption(canvas, (left, top + height), limit, part)
    return canvas


def clip_limit(map_hw: np.ndarray, cell: tuple[int, int], clip: float) -> float:
    """The weight that gets the brightest colour: the clip-th percentile of those off the cell's cross.

    Of those on it where the others are all 0. Never below a hundredth of the largest weight.
    """
    # after two passes about half of the attention may still lie on the cross: scaled by it, the rest would be black
    cross = _cross(map_hw.shape, cell)
    limits = [float(np.percentile(part, clip)) for part in (map_hw[~cross], map_hw[cross]) if part.size]
    limit = next((limit for limit in limits if limit > 0), 1.0)
    # a map with all its weight in a few cells has next to nothing at its percentile, and would show noise
    return max(limit, float(map_hw.max()) / 100)


def enlarged(map_hw: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """A map at a panel's size (height, width), enlarged as the network enlarges its scores, in 0 to 1."""
    rows, columns = (
        interpolation(pixels, cells, align_corners).numpy() for pixels, cells in zip(size, map_hw.shape, strict=True)
    )
    return rows @ np.clip(map_hw, 0, 1).astype(np.float32) @ columns.T


def overlay(image_bgr: np.ndarray, weight_HW: np.ndarray) -> np.ndarray:
    """Weights in 0 to 1 as colours over the dimmed grey image, more opaque where they are larger."""
    grey = cv2.cvtColor(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
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
    for colour, thickness in (((0, 0, 0), 4), (MARK, 2)):
        cv2.circle(panel, place, 8, colour, thickness, cv2.LINE_AA)
    return panel


def peaked(panel_bgr: np.ndarray, weight_HW: np.ndarray) -> np.ndarray:
    """A copy with a thin white ring around the largest weight, which may be a single cell."""
    panel = panel_bgr.copy()
    y, x = np.unravel_index(weight_HW.argmax(), weight_HW.shape)
    cv2.circle(panel, (int(x), int(y)), 14, (255, 255, 255), 1, cv2.LINE_AA)
    return panel


def _cross(size: tuple[int, ...], cell: tuple[int, int]) -> np.ndarray:
    """Which cells of a grid (h, w) share their row or column with the cell (x, y)."""
    x, y = cell
    cross = np.zeros(size, bool)
    cross[y] = cross[:, x] = True
    return cross


def _caption(canvas: np.ndarray, corner: tuple[int, int], limit: float, part: Share) -> None:
    """A colour bar from 0 to the clipped weight, and where the attention lies."""
    left, top = corner
    bar = cv2.applyColorMap(np.tile(np.linspace(0, 255, 120).astype(np.uint8), (10, 1)), cv2.COLORMAP_INFERNO)
    _write(canvas, "0", (left, top + 22), 0.45, FAINT)
    _paste(canvas, bar, (left + 16, top + 12))
    _write(canvas, f">= {limit:.2g}", (left + 144, top + 22), 0.45, FAINT)
    text = f"own class {part.own_class:.0%}   on cross {part.on_cross:.0%}   off {part.off_cross:.0%}"
    _write(canvas, text, (left, top + 42), 0.45, INK)


def _write(canvas: np.ndarray, text: str, place: tuple[int, int], size: float, colour: tuple[int, int, int]) -> None:
    # the fonts that every OpenCV has hold ASCII alone
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    cv2.putText(canvas, plain, place, FONT, size, colour, 1, cv2.LINE_AA)


def _paste(canvas: np.ndarray, part: np.ndarray, corner: tuple[int, int]) -> None:
    left, top = corner
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part


def _npz(points: Sequence[tuple[int, int]], maps: Sequence[Sequence[np.ndarray]], size: tuple[int, int]) -> bytes:
    arrays = {f"r{r}": np.stack(of_points) for r, of_points in enumerate(zip(*maps, strict=True), 1)}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays, points=np.array(points, np.int64), image_size=np.array(size, np.int64))
    return content.getvalue()


def _check(
    image: Path | None,
    points: Sequence[tuple[int, int]],
    output: Path,
    clip: float,
    maps: Path | None,
    overwrite: bool,
) -> None:
    if not 1 <= len(points) <= MOST_POINTS:
        raise InputError("points", f"{len(points)} given", f"give 1 to {MOST_POINTS}, such as --point 300,400")
    if not 0 < clip <= 100:
        raise InputError(f"clip {clip}", "not a percentile", "give a number above 0, up to 100")
    for path, suffix in ((output, ".png"), (maps, ".npz")):
        if path is None:
            continue
        if path.suffix.lower() != suffix:
            raise InputError(f"output {path}", f"does not end in {suffix}", f"give it a name that ends in {suffix}")
        if image is not None and path.resolve() == image.resolve():
            raise InputError(f"output {path}", "is the image itself", "choose another name")
    outputs.refuse_existing([path for path in (output, maps) if path is not None], overwrite)


def _check_inside(points: Sequence[tuple[int, int]], size: tuple[int, int]) -> None:
    H, W = size
    for x, y in points:
        if not (0 <= x < W and 0 <= y < H):
            why = f"outside the image of {W}x{H} pixels"
            raise InputError(f"point {x},{y}", why, f"x must lie in 0 to {W - 1}, y in 0 to {H - 1}")
