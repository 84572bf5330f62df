"""Write a page for each image in which to explore what the network attends to, from any point and after each pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ccnet_cli import devices, files
from ccnet_cli.commands.visualize import MAX_POINTS, check_clip, check_inside, find_sample, list_inputs, read_clip
from ccnet_cli.errors import InputError
from ccnet_cli.figures import viewer
from ccnet_cli.figures.attention import draw_figure
from ccnet_cli.figures.clips import draw_clip_figure
from ccnet_cli.figures.viewer import payload
from ccnet_cli.inference.artifact import Artifact
from ccnet_cli.inference.attention import ClipAttention, ImageAttention, attend, attend_clip, load_attentive
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
    where its name says so (TrainIds). preset and overrides are those of load_model, clip is that of clip_limit. compare
    is a second model, shown beside the first. Where the networks take clips, an image may be a video, and frame is the
    labelled one (see VisualizeRequest).
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
    compare: Path | None = None
    frame: int | None = None


def explore(request: ExploreRequest) -> list[Path]:
    """Write the pages, and return the files written."""
    check_clip(request.clip)
    plan, index = _plan(request)
    written = [*plan, *([] if index is None else [index])]
    inputs = [*request.images, request.label, *list_inputs(request.checkpoint, request.compare, request.preset)]
    files.refuse_outputs(written, inputs, request.overwrite)
    device = devices.device(request.device)
    artifacts = _load(request)
    entries = {}
    for path, image in plan.items():
        image = image or find_sample()
        frames, models, still = _explore_source(request, artifacts, image, device)
        place = 0 if len(frames) == 1 else artifacts[0].network.labelled % len(frames)
        size = (frames[0].shape[0], frames[0].shape[1])
        content = viewer.PageContent(
            name=image.name,
            frames_bgr=frames,
            place=place,
            classes=artifacts[0].classes,
            label=None if request.label is None else _read_label(request.label, size, artifacts[0].classes),
            models=models,
            points=request.points,
            clip=request.clip,
            still_bgr=np.asarray(_shrink(still), np.uint8),
            source=_source(artifacts),
        )
        files.write_bytes(path, viewer.render_page(content).encode())
        entries[path.name] = (image.name, frames[place])
    if index is not None:
        files.write_bytes(index, viewer.render_index(entries, _source(artifacts)).encode())
    return written


def _load(request: ExploreRequest) -> list[Artifact[CCNet]]:
    """The models, of the same classes and clips."""
    artifacts = [load_attentive(request.checkpoint, request.preset, request.overrides)]
    if request.compare is not None:
        artifacts.append(load_attentive(request.compare))
    first, last = artifacts[0], artifacts[-1]
    for what, ours, theirs in (("classes", first.classes, last.classes), ("clips", first.clip, last.clip)):
        if ours != theirs:
            why = f"its {what} are not those of {first.path}, and a page holds one set of them"
            raise InputError(last.path, why, "compare models of the same data, or draw them by -o FILE.png")
    if request.frame is not None and first.clip is None:
        raise InputError("option --frame", "the network takes images", "leave it out")
    return artifacts


def _explore_source(
    request: ExploreRequest, artifacts: Sequence[Artifact[CCNet]], source: Path, device: torch.device
) -> tuple[list[images.Pixels], list[viewer.ModelContent], images.Pixels]:
    """The frames of an image or a clip, what each model makes of them, and the figure of the first point."""
    clip = artifacts[0].clip
    if clip is not None:
        frames = read_clip(source, clip, request.frame, request.tolerate_damage)
    else:
        frames = [images.read_image(source, exif=True, tolerate=request.tolerate_damage)]
    H, W = frames[0].shape[:2]
    check_inside(request.points, frames[0])
    points = request.points[:1] or [(W // 2, H // 2)]
    if clip is not None:
        clips = [attend_clip(artifact, frames, device) for artifact in artifacts]
        first = clips[0]
        align_corners = artifacts[0].network.align_corners
        still = draw_clip_figure(frames, first.place, first.maps(points), align_corners, request.clip)
        return frames, [_of_clip(each) for each in clips], still
    seen = [attend(artifact, frames[0], device) for artifact in artifacts]
    still = draw_figure(frames[0], [each.maps(points) for each in seen], request.clip)
    return frames, [_of_image(each) for each in seen], still


def _shrink(figure_bgr: images.Pixels) -> object:
    return cv2.resize(figure_bgr, None, fx=STILL_SCALE, fy=STILL_SCALE, interpolation=cv2.INTER_AREA)


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


def _of_clip(attention: ClipAttention) -> viewer.ModelContent:
    """What a page shows of a clip: the network's scores of every frame, and query and key of each pass."""
    network, scores = attention.artifact.network, attention.frame_scores
    predictions = [upsample(each, attention.size, network.align_corners).predict() for each in scores]
    return viewer.ModelContent(
        cells=scores.argmax(dim=1).byte().cpu().numpy(),
        prediction=np.stack(predictions),
        recurrence=len(attention.passes),
        gamma=network.gamma,
        align_corners=network.align_corners,
        title=_title(attention.artifact),
        projections_CN=[(_flat(query), _flat(key)) for query, key in attention.projections],
    )


def _of_image(attention: ImageAttention) -> viewer.ModelContent:
    """What a page shows of an image."""
    artifact = attention.artifact
    if len({isinstance(each, Tensor) for each in attention.passes}) > 1:
        why = "some of its attention is over crosses and some is not, and a page holds one of the two"
        raise InputError(artifact.path, why, "draw it by ccnet visualize -o FILE.png")
    weights = [_weights(each) for each in attention.passes if isinstance(each, Tensor)]
    pairs = attention.projections if weights and _projections_are_smaller(attention) else []
    align_corners = artifact.network.align_corners
    prediction = upsample(attention.scores, attention.size, align_corners).predict()
    return viewer.ModelContent(
        cells=attention.cells.astype(np.uint8),
        prediction=prediction,
        recurrence=len(attention.passes),
        gamma=attention.gamma,
        align_corners=align_corners,
        title=_title(artifact),
        weights_NP=[] if pairs else weights,
        projections_CN=[(_flat(query), _flat(key)) for query, key in pairs],
        others=[_other(each, prediction) for each in attention.passes if not isinstance(each, Tensor)],
        names=attention.names,
        composed=attention.composed,
    )


def _title(artifact: Artifact[CCNet]) -> str:
    return "/".join(artifact.path.parts[-2:])


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


def _source(artifacts: Sequence[Artifact[CCNet]]) -> str:
    names = [_title(each) if len(artifacts) > 1 else each.path.name for each in artifacts]
    return f"model{'s' if len(names) > 1 else ''} {' and '.join(names)}"


def _weights(attention_BPHW: Tensor) -> np.ndarray:
    return attention_BPHW[0].flatten(1).T.cpu().numpy()


def _flat(projection: Tensor) -> np.ndarray:
    return projection[0].flatten(1).double().cpu().numpy()
