"""Write a page for each image in which to explore what the network attends to, from any point and after each pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ccnet_cli import devices, files
from ccnet_cli.commands.visualize import MAX_POINTS, check_clip, check_inside, find_sample, list_inputs
from ccnet_cli.errors import InputError
from ccnet_cli.figures import viewer
from ccnet_cli.figures.attention import draw_figure
from ccnet_cli.figures.viewer import payload
from ccnet_cli.inference.artifact import Artifact
from ccnet_cli.inference.attention import ImageAttention, attend, load_attentive
from ccnet_cli.inference.views import upsample
from ccnet_cli.media import images
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import cv2
from ccnet_cli.models.dense import ChannelPass, DensePass
from ccnet_cli.models.network import CCNet

# H, W the image; h, w the grid of cells on which the network attends; points are (x, y) of the image

# scale of the figure that a page shows where JavaScript is off
STILL_SCALE = 0.5
# train id of a label's values that are no class
VOID = 255


@dataclass(frozen=True)
class ExploreRequest:
    """The images to explore, or the packaged sample, and what to write.

    output ends in .html for one image, else it is a folder that gets NAME.html for each image and index.html, which
    lists them. points are pinned at first. label is one image's label map, of the data set's own ids, or of train ids
    where its name says so (TrainIds). preset and overrides are those of load_model, clip is that of clip_limit.
    """

    images: tuple[Path, ...]
    output: Path
    points: tuple[tuple[int, int], ...] = ()
    label: Path | None = None
    checkpoint: Path | None = None
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    clip: float = 99.0
    overwrite: bool = False
    tolerate_damage: bool = False


def explore(request: ExploreRequest) -> list[Path]:
    """Write the pages, and return the files written."""
    check_clip(request.clip)
    plan, index = _plan(request)
    written = [*plan, *([] if index is None else [index])]
    inputs = [*request.images, request.label, *list_inputs(request.checkpoint, None, request.preset)]
    files.refuse_outputs(written, inputs, request.overwrite)
    device = devices.device(request.device)
    artifact = load_attentive(request.checkpoint, request.preset, request.overrides)
    if artifact.clip is not None:
        why = "its network takes clips, of which a page shows none"
        raise InputError(artifact.path, why, "draw it by ccnet visualize -o FILE.png")
    entries = {}
    for path, image in plan.items():
        image = image or find_sample()
        picture = images.read_image(image, exif=True, tolerate=request.tolerate_damage)
        check_inside(request.points, picture)
        size = (picture.shape[0], picture.shape[1])
        label = None if request.label is None else _read_label(request.label, size, artifact.classes)
        attention = attend(artifact, picture, device)
        if len({isinstance(each, Tensor) for each in attention.passes}) > 1:
            why = "some of its attention is over crosses and some is not, and a page holds one of the two"
            raise InputError(artifact.path, why, "draw it by ccnet visualize -o FILE.png")
        files.write_bytes(path, viewer.render_page(_content(request, attention, image, picture, label)).encode())
        entries[path.name] = (image.name, picture)
    if index is not None:
        files.write_bytes(index, viewer.render_index(entries, _source(artifact)).encode())
    return written


def _plan(request: ExploreRequest) -> tuple[dict[Path, Path | None], Path | None]:
    """The image of each page, None for the sample, and the page that lists them, if there is one."""
    output, count = request.output, len(request.images)
    if len(request.points) > MAX_POINTS:
        raise InputError("points", f"{len(request.points)} given", f"give up to {MAX_POINTS}")
    single = files.is_stream(output) or (output.suffix.lower() in (".html", ".htm") and not output.is_dir())
    if single and count > 1:
        raise InputError(output, f"one file for {count} images", "name a folder, without .html")
    if request.label is not None and count > 1:
        raise InputError(f"label {request.label}", f"one label for {count} images", "give it with its image alone")
    if single:
        return {output: request.images[0] if request.images else None}, None
    return _pages(request.images or [None], output), output / "index.html"


def _pages(sources: Sequence[Path | None], output: Path) -> dict[Path, Path | None]:
    """The page of each image in a folder; InputError where two would be one."""
    pages: dict[Path, Path | None] = {}
    for image in sources:
        name = "sample" if image is None else image.stem
        path = output / f"{name}.html"
        if path in pages or name.lower() == "index":
            why = "would be the list of pages" if name.lower() == "index" else f"{pages[path]} is called so too"
            raise InputError(f"image {image}", f"its page {path.name} {why}", "rename it, or choose another folder")
        pages[path] = image
    return pages


def _read_label(path: Path, size: tuple[int, int], classes: Classes) -> np.ndarray:
    """Train ids (H, W) of a label map; what is no class is VOID."""
    values = images.read_label(path)
    if values.shape != size:
        why = f"{values.shape[1]}x{values.shape[0]} pixels, its image {size[1]}x{size[0]}"
        raise InputError(f"label {path}", why, "give the label of this image")
    known = range(len(classes)) if "trainids" in path.stem.lower() else classes.label_ids
    table = np.full(65536, VOID, np.uint8)
    table[list(known)] = np.arange(len(classes))
    return np.asarray(table[values])


def _content(
    request: ExploreRequest, attention: ImageAttention, image: Path, picture: np.ndarray, label: np.ndarray | None
) -> viewer.PageContent:
    """What a page shows of an image."""
    artifact, cells, (H, W) = attention.artifact, attention.cells, attention.size
    weights = [_weights(each) for each in attention.passes if isinstance(each, Tensor)]
    pairs = attention.projections if weights and _projections_are_smaller(attention) else []
    maps = attention.maps(request.points[:1] or [(W // 2, H // 2)])
    figure = draw_figure(picture, [maps], request.clip)
    still = cv2.resize(figure, None, fx=STILL_SCALE, fy=STILL_SCALE, interpolation=cv2.INTER_AREA)
    align_corners = artifact.network.align_corners
    prediction = upsample(attention.scores, attention.size, align_corners).predict()
    return viewer.PageContent(
        name=image.name,
        image_bgr=picture,
        classes=artifact.classes,
        cells=cells.astype(np.uint8),
        prediction=prediction,
        label=label,
        weights_NP=[] if pairs else weights,
        projections_CN=[(_flat(query), _flat(key)) for query, key in pairs],
        recurrence=len(attention.passes),
        gamma=attention.gamma,
        align_corners=align_corners,
        points=request.points,
        clip=request.clip,
        still_bgr=np.asarray(still, np.uint8),
        source=_source(artifact),
        others=[_other(each, prediction) for each in attention.passes if not isinstance(each, Tensor)],
        names=attention.names,
        composed=attention.composed,
    )


def _other(attention: DensePass | ChannelPass, prediction: np.ndarray) -> payload.DensePass | payload.ClassMaps:
    """A pass as a page holds it; of channel attention, the maps of the classes that are predicted."""
    if isinstance(attention, ChannelPass):
        maps = {index: attention.of_class(index) for index in np.unique(prediction).tolist()}
        return payload.ClassMaps({index: (c, part.flatten().cpu().numpy()) for index, (c, part) in maps.items()})
    query, key = (part.T.double().cpu().numpy() for part in (attention.queries_PC, attention.keys_MC))
    groups = [
        np.zeros(each.shape[1], np.int64) if group is None else group.cpu().numpy()
        for each, group in ((query, attention.group_P), (key, attention.group_M))
    ]
    return payload.DensePass(attention.scale * query, key, attention.key_P.cpu().numpy(), *groups)


def _projections_are_smaller(attention: ImageAttention) -> bool:
    """Whether a page holds query and key, in 16 bits, instead of the weights, in somewhat more than 8.

    They can be made coarser where there are many of them, so a large grid needs them.
    """
    cells = attention.cells
    large = cells.size > viewer.CELLS
    if not attention.projections:
        if large:
            why = f"a page holds the weights of at most {viewer.CELLS} cells, these are {cells.size}"
            raise InputError(f"image of {attention.size[1]}x{attention.size[0]} pixels", why, "make it smaller")
        return False
    channels = attention.projections[0][0].shape[1]
    return large or 4 * channels <= sum(cells.shape)


def _source(artifact: Artifact[CCNet]) -> str:
    return f"model {artifact.path.name}"


def _weights(attention_BPHW: Tensor) -> np.ndarray:
    return attention_BPHW[0].flatten(1).T.cpu().numpy()


def _flat(projection: Tensor) -> np.ndarray:
    return projection[0].flatten(1).double().cpu().numpy()
