"""Draw what the network attends to from a point of an image, after each pass: as a figure, or as a page to explore."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccnet_cli import files
from ccnet_cli.errors import InputError, NonFiniteError, notice
from ccnet_cli.figures import viewer
from ccnet_cli.figures.attention import Fractions, ModelMaps, Point, cross_mask, draw_figure
from ccnet_cli.inference.artifact import Artifact, load_model
from ccnet_cli.inference.runtime import to_device
from ccnet_cli.inference.views import to_input, upsampled
from ccnet_cli.media import images, outputs
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import cv2
from ccnet_cli.media.resampling import interpolation
from ccnet_cli.models import network as models
from ccnet_cli.models.attention import attention_map
from ccnet_cli.weights import find

# H, W the image; h, w the grid of cells on which the network attends; points and cells are (x, y)

# below this weight of the attended features, gamma, the scores hardly depend on the attention
UNUSED_GAMMA = 1e-3
MOST_POINTS = 24
# how large the figure is, beside its own size, that a page shows where JavaScript is off
STILL_SCALE = 0.5
# the label's values that are no class
VOID = 255


@dataclass(frozen=True)
class Summary:
    """What was drawn; size is (H, W) of the image, grid (h, w) of the maps, compared the second model's summary."""

    figure: str
    image: str
    checkpoint: str
    recurrence: int
    gamma: float
    size: tuple[int, int]
    grid: tuple[int, int]
    points: tuple[Point, ...]
    compared: "Summary | None" = None

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON; each point has its class and a mapping r1, r2, ... of shares."""
        points = [
            {"point": list(p.point), "cell": list(p.cell), "class": p.name}
            | {f"r{r}": asdict(share) for r, share in enumerate(p.fractions, start=1)}
            for p in self.points
        ]
        compared = None if self.compared is None else self.compared.to_mapping()
        changed = {"size": list(self.size), "grid": list(self.grid), "points": points, "compared": compared}
        return asdict(self) | changed


@dataclass(frozen=True, eq=False)
class _Sight:
    """A model's run over an image: scores (K, h, w) and the attention of each pass, (1, h + w, h, w)."""

    artifact: Artifact[models.CCNet]
    scores: Tensor
    passes: list[Tensor]

    @property
    def classes(self) -> np.ndarray:
        """The class of each cell, (h, w)."""
        return self.scores.argmax(dim=0).cpu().numpy()


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
    compare: Path | None = None,
) -> Summary:
    """Write a PNG with a row for each point (X, Y): the image, and the R = 1, R = 2, ... attention over it.

    Weights above the clip-th percentile (see clip_limit) share the brightest colour. maps also writes an npz
    file of the raw float64 arrays r1, r2, ... (n, h, w), points (n, 2) and image_size (H, W). Without an image, the
    sample that comes with ccnet is drawn. preset and overrides are those of load_model. compare, a second
    checkpoint, adds its maps beside the first's. InputError for a point outside the image and for a model without
    attention.
    """
    if not 1 <= len(points) <= MOST_POINTS:
        raise InputError("points", f"{len(points)} given", f"give 1 to {MOST_POINTS}, such as --point 300,400")
    _check_clip(clip)
    _check_output(output, ".png", image, overwrite)
    if maps is not None:
        _check_output(maps, ".npz", image, overwrite)
    place = models.device(device)
    artifact = _load_attentive(checkpoint, preset, overrides)
    second = None if compare is None else _load_attentive(compare, None, ())
    image = _sample(image)
    picture = images.read_image(image, exif=True)
    _check_inside(points, picture.shape[:2])

    sight = _look(artifact, picture, place)
    drawn = _attended(sight, points, picture.shape[:2])
    summary = _summary(output, image, sight, drawn, picture.shape[:2])
    beside = None
    if second is not None:
        other = _look(second, picture, place)
        beside = _attended(other, points, picture.shape[:2])
        compared = _summary(output, image, other, beside, picture.shape[:2])
        summary = Summary(**{**vars(summary), "compared": compared})
    canvas = draw_figure(picture, [drawn, *([] if beside is None else [beside])], clip)
    files.write_bytes(output, images.encode_png(canvas, smallest=True))
    if maps is not None:
        files.write_bytes(maps, _npz(points, drawn.maps, picture.shape[:2]))
    return summary


def explore(
    sources: Sequence[Path],
    output: Path,
    points: Sequence[tuple[int, int]] = (),
    checkpoint: Path | None = None,
    clip: float = 99.0,
    label: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Write an HTML page to look around in each image's attention, and return the files written.

    output ends in .html for one image (the sample if none is given), else it is a folder that gets NAME.html for each
    image and index.html, which lists them. points are pinned at first. label is one image's label map, of the data
    set's own ids, or of train ids where its name says so (TrainIds).
    """
    _check_clip(clip)
    if len(points) > MOST_POINTS:
        raise InputError("points", f"{len(points)} given", f"give up to {MOST_POINTS}")
    single = output.suffix.lower() in (".html", ".htm") and not output.is_dir()
    if single and len(sources) > 1:
        raise InputError(output, f"one file for {len(sources)} images", "name a folder, without .html")
    if label is not None and len(sources) > 1:
        raise InputError(f"label {label}", f"one label for {len(sources)} images", "give it with its image alone")
    plan = {output: sources[0] if sources else None} if single else _pages(sources, output)
    listing = None if single else output / "index.html"
    written = [*plan, *([] if listing is None else [listing])]
    outputs.refuse_existing(written, overwrite)
    place = models.device(device)
    artifact = _load_attentive(checkpoint, preset, overrides)
    source = f"model {artifact.path.name}"
    entries = {}
    for path, named in plan.items():
        image = _sample(named)
        picture = images.read_image(image, exif=True)
        _check_inside(points, picture.shape[:2])
        truth = None if label is None else _label(label, picture.shape[:2], artifact.classes)
        page = _page(_look(artifact, picture, place), image.name, picture, truth, points, clip, source, place)
        files.write_bytes(path, page.encode())
        entries[path.name] = (image.name, picture)
    if listing is not None:
        files.write_bytes(listing, viewer.render_index(entries, source).encode())
    return written


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


def share(map_hw: np.ndarray, cell: tuple[int, int], own_hw: np.ndarray) -> Fractions:
    """How much of a map that sums to 1 lies where own is true, and on and off the cross of the cell."""
    cross = cross_mask(map_hw.shape, cell)
    weights = map_hw.astype(np.float64)
    return Fractions(*(float(weights[where].sum()) for where in (own_hw, cross, ~cross)))


def _load_attentive(path: Path | None, preset: str | None, overrides: Sequence[str]) -> Artifact[models.CCNet]:
    """A model that has attention; notices tell where its maps say little."""
    artifact = load_model(path, preset, overrides)
    recurrence, gamma = artifact.network.recurrence, artifact.network.gamma
    if recurrence == 0:
        fix = "use a checkpoint with model.recurrence 1 or more"
        raise InputError(artifact.path, "the model has no attention (R=0), so there is nothing to draw", fix)
    if recurrence == 1:
        notice("the model has one pass (R=1): only its R=1 map is drawn")
    if abs(gamma) < UNUSED_GAMMA:
        notice(f"the attention is hardly used: its weight gamma is {gamma:.1e}; train longer before reading the maps")
    return artifact


def _sample(image: Path | None) -> Path:
    if image is not None:
        return image
    notice("drawing the sample image that comes with ccnet: name another one to see its attention")
    return find.sample_image()


def _look(artifact: Artifact[models.CCNet], picture: np.ndarray, place: torch.device) -> _Sight:
    """Run the model over an image (H, W, 3); NonFiniteError where its attention is nan."""
    model = to_device(artifact, place)
    with torch.inference_mode():
        scores, passes = model.attend(to_input(picture, model.normalisation, place))
    if not all(attention.isfinite().all() for attention in passes):
        raise NonFiniteError(artifact.path, "its attention is not finite", "use a checkpoint whose weights are sound")
    return _Sight(artifact, scores[0], passes)


def _attended(sight: _Sight, points: Sequence[tuple[int, int]], size: tuple[int, int]) -> ModelMaps:
    """The maps of each point and what they say, for a figure."""
    align_corners, classes = sight.artifact.network.align_corners, sight.classes
    described, composed = [], []
    for point in points:
        (x, y), own = locate(sight.scores, point, size, align_corners)
        counts = range(1, len(sight.passes) + 1)
        drawn = [attention_map(sight.passes[:count], y, x).cpu().numpy() for count in counts]
        shares = tuple(share(map_hw, (x, y), classes == own) for map_hw in drawn)
        described.append(Point(point, (x, y), sight.artifact.classes.names[own], shares))
        composed.append(drawn)
    title = "/".join(sight.artifact.path.parts[-2:])
    return ModelMaps(described, composed, align_corners, title)


def _summary(output: Path, image: Path, sight: _Sight, drawn: ModelMaps, size: tuple[int, ...]) -> Summary:
    model, path = sight.artifact.network, str(sight.artifact.path)
    (H, W), (h, w) = size, sight.classes.shape
    return Summary(str(output), str(image), path, model.recurrence, model.gamma, (H, W), (h, w), tuple(drawn.points))


def _page(
    sight: _Sight,
    name: str,
    picture: np.ndarray,
    label: np.ndarray | None,
    points: Sequence[tuple[int, int]],
    clip: float,
    source: str,
    place: torch.device,
) -> str:
    model, classes, size = sight.artifact.network, sight.artifact.classes, picture.shape[:2]
    middle = [(size[1] // 2, size[0] // 2)]
    drawn = _attended(sight, list(points[:1]) or middle, size)
    still = draw_figure(picture, [drawn], clip)
    cells, channels = sight.classes, model.head.attention.query_conv.out_channels
    # query and key in 16 bits, or the weights in somewhat more than 8: what is smaller is kept; query and key can be
    # made coarser where there are many of them
    smaller = 4 * channels <= sum(cells.shape) or cells.size > viewer.CELLS
    return viewer.render_page(
        viewer.PageContent(
            name=name,
            image_bgr=picture,
            classes=classes,
            cells=cells.astype(np.uint8),
            prediction=upsampled(sight.scores, size, model.align_corners).predict(),
            label=label,
            weights_NP=[] if smaller else [attention[0].flatten(1).T.cpu().numpy() for attention in sight.passes],
            projections_CN=_projections(model, picture, place) if smaller else [],
            recurrence=model.recurrence,
            gamma=model.gamma,
            align_corners=model.align_corners,
            points=points,
            clip=clip,
            still_bgr=cv2.resize(still, None, fx=STILL_SCALE, fy=STILL_SCALE, interpolation=cv2.INTER_AREA),
            source=source,
        )
    )


def _projections(model: models.CCNet, picture: np.ndarray, place: torch.device) -> list[tuple[np.ndarray, np.ndarray]]:
    """The query and the key of each pass, each (C', h w)."""
    with torch.inference_mode():
        pairs = model.head.projections(model.backbone(to_input(picture, model.normalisation, place)))
    return [tuple(part[0].flatten(1).double().cpu().numpy() for part in pair) for pair in pairs]


def _label(path: Path, size: tuple[int, int], classes: Classes) -> np.ndarray:
    """Train ids (H, W) of a label map; what is no class is VOID."""
    values = images.read_label(path)
    if values.shape != size:
        why = f"{values.shape[1]}x{values.shape[0]} pixels, its image {size[1]}x{size[0]}"
        raise InputError(f"label {path}", why, "give the label of this image")
    known = range(len(classes)) if "trainids" in path.stem.lower() else classes.label_ids
    table = np.full(65536, VOID, np.uint8)
    table[list(known)] = np.arange(len(classes))
    return table[values]


def _pages(sources: Sequence[Path], output: Path) -> dict[Path, Path | None]:
    """The page of each image in a folder; InputError where two would be one."""
    pages: dict[Path, Path | None] = {}
    for image in sources or [None]:
        name = "sample" if image is None else image.stem
        path = output / f"{name}.html"
        if path in pages or name.lower() == "index":
            why = "would be the list of pages" if name.lower() == "index" else f"{pages[path]} is called so too"
            raise InputError(f"image {image}", f"its page {path.name} {why}", "rename it, or choose another folder")
        pages[path] = image
    return pages


def _npz(points: Sequence[tuple[int, int]], maps: Sequence[Sequence[np.ndarray]], size: tuple[int, int]) -> bytes:
    arrays = {f"r{r}": np.stack(of_points) for r, of_points in enumerate(zip(*maps, strict=True), 1)}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays, points=np.array(points, np.int64), image_size=np.array(size, np.int64))
    return content.getvalue()


def _check_clip(clip: float) -> None:
    if not 0 < clip <= 100:
        raise InputError(f"clip {clip}", "not a percentile", "give a number above 0, up to 100")


def _check_output(path: Path, suffix: str, image: Path | None, overwrite: bool) -> None:
    if path.suffix.lower() != suffix:
        raise InputError(f"output {path}", f"does not end in {suffix}", f"give it a name that ends in {suffix}")
    if image is not None and path.resolve() == image.resolve():
        raise InputError(f"output {path}", "is the image itself", "choose another name")
    outputs.refuse_existing([path], overwrite)


def _check_inside(points: Sequence[tuple[int, int]], size: tuple[int, int]) -> None:
    H, W = size
    for x, y in points:
        if not (0 <= x < W and 0 <= y < H):
            why = f"outside the image of {W}x{H} pixels"
            raise InputError(f"point {x},{y}", why, f"x must lie in 0 to {W - 1}, y in 0 to {H - 1}")
