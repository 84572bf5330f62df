"""Draw what the network attends to from points of an image, after each pass, as a figure."""

import difflib
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccnet_cli import config, devices, files
from ccnet_cli.datasets.clips import frames_around
from ccnet_cli.datasets.settings import Clip
from ccnet_cli.errors import InputError, notice
from ccnet_cli.figures.attention import ModelMaps, Point, encode_figure
from ccnet_cli.figures.clips import ClipPoint, encode_clip_figure
from ccnet_cli.figures.sheet import FORMATS, Print, check_print
from ccnet_cli.inference.artifact import Artifact
from ccnet_cli.inference.attention import ImageAttention, attend, attend_clip, load_attentive
from ccnet_cli.media import images, sources, video
from ccnet_cli.models.dense import ChannelPass
from ccnet_cli.models.network import CCNet
from ccnet_cli.weights.find import find_artifact, sample_image
from ccnet_cli.weights.pairs import list_files

# H, W the image; h, w the grid of cells on which the network attends; points and cells are (x, y)

MAX_POINTS = 24


@dataclass(frozen=True)
class VisualizeRequest:
    """The points (x, y) of an image, or of the packaged sample, from which to draw the attention, and what to write.

    Weights above the clip-th percentile (see clip_limit) share the brightest colour. maps also writes an npz file of
    the raw float64 arrays r1, r2, ... (n, h, w), points (n, 2) and image_size (H, W); of a second model compared_r1,
    compared_r2, ... preset and overrides are those of
    load_model. compare, a second checkpoint, adds its maps beside the first's. drawn_class is the class for which
    channel attention is drawn, that of each point if None. tolerate_damage reads what is left of a damaged image.
    others are files that the caller is going to write. Where the network takes clips, image may be a video: frame is
    then the labelled one, 0 the first and None the last; around an image, the clip is that of the frames beside it.
    """

    image: Path | None
    points: tuple[tuple[int, int], ...]
    output: Path
    checkpoint: Path | None = None
    compare: Path | None = None
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    clip: float = 99.0
    maps: Path | None = None
    overwrite: bool = False
    tolerate_damage: bool = False
    others: tuple[Path, ...] = ()
    drawn_class: str | None = None
    frame: int | None = None
    # inches across, dots per inch, and whether the maps of a row share a scale
    width: float | None = None
    dpi: int | None = None
    one_scale: bool = False

    @property
    def how(self) -> Print:
        """How the figure is made; a stream gets a PNG."""
        suffix = self.output.suffix.lower().removeprefix(".")
        return Print(suffix if suffix in FORMATS else "png", self.width, self.dpi, self.one_scale)


@dataclass(frozen=True)
class Summary:
    """What was drawn; size is (H, W) of the image, grid (h, w) of the maps, compared the second model's summary.

    recurrence is how many maps each point has, names what they are.
    """

    figure: str
    image: str
    checkpoint: str
    recurrence: int
    gamma: float | None
    size: tuple[int, int]
    grid: tuple[int, int]
    points: tuple[Point, ...]
    compared: "Summary | None" = None
    names: tuple[str, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON; each point has its class and a mapping r1, r2, ... of fractions."""
        points = [
            {"point": list(p.point), "cell": list(p.cell), "class": p.name}
            | {f"r{r}": fractions.to_mapping() for r, fractions in enumerate(p.fractions, start=1)}
            for p in self.points
        ]
        compared = None if self.compared is None else self.compared.to_mapping()
        changed = {"size": list(self.size), "grid": list(self.grid), "points": points, "compared": compared}
        return asdict(self) | changed | {"names": list(self.names)}


def visualize(request: VisualizeRequest) -> "Summary | ClipSummary":
    """Write a PNG, PDF or SVG with a row for each point: the image, and the R = 1, R = 2, ... attention over it.

    Of a network of clips, each point has a row of the clip's frames for each pass.

    InputError for a point outside the image and for a model without attention.
    """
    if not 1 <= len(request.points) <= MAX_POINTS:
        fix = f"give 1 to {MAX_POINTS}, such as --point 300,400"
        raise InputError("points", f"{len(request.points)} given", fix)
    check_clip(request.clip)
    check_print(request.how)
    inputs = [request.image, *list_inputs(request.checkpoint, request.compare, request.preset)]
    _refuse_outputs(request, inputs)
    device = devices.device(request.device)
    path = find_artifact(request.checkpoint)
    _refuse_outputs(request, list_files(path))
    artifacts = [load_attentive(path, request.preset, request.overrides)]
    if request.compare is not None:
        artifacts.append(load_attentive(request.compare))
    if clip := _agree_on_clip(artifacts):
        return _visualize_clip(request, artifacts, clip, device)
    if request.frame is not None:
        raise InputError("option --frame", "the network takes images", "leave it out")
    image = request.image or find_sample()
    picture = images.read_image(image, exif=True, tolerate=request.tolerate_damage)
    check_inside(request.points, picture)

    seen = [attend(artifact, picture, device) for artifact in artifacts]
    drawn = [_drawn_class(attention, request.drawn_class) for attention in seen]
    if request.drawn_class is not None and drawn == [None] * len(drawn):
        why = "no attention over channels, whose maps are of a class"
        raise InputError(f"class {request.drawn_class}", why, "leave --class out, or draw a head such as danet")
    models = [attention.maps(request.points, one) for attention, one in zip(seen, drawn, strict=True)]
    summary = None
    for attention, maps in reversed([*zip(seen, models, strict=True)]):
        summary = _summarize(request.output, image, attention, maps, summary)
    files.write_bytes(request.output, encode_figure(picture, models, request.clip, request.how))
    if request.maps is not None:
        files.write_bytes(request.maps, _npz(request.points, [each.maps for each in models], seen[0].size))
    assert summary is not None
    return summary


@dataclass(frozen=True)
class ClipSummary:
    """What was drawn of a clip; place is the labelled frame's in the clip, 0 the first."""

    figure: str
    image: str
    checkpoint: str
    recurrence: int
    gamma: float | None
    size: tuple[int, int]
    grid: tuple[int, int]
    frames: int
    place: int
    points: tuple[ClipPoint, ...]
    compared: "ClipSummary | None" = None

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON; each point has its class and a mapping r1, r2, ... of shares."""
        points = [
            {"point": list(p.point), "cell": list(p.cell), "class": p.name}
            | {f"r{r}": asdict(shares) for r, shares in enumerate(p.shares, start=1)}
            for p in self.points
        ]
        compared = None if self.compared is None else self.compared.to_mapping()
        return vars(self) | {"size": list(self.size), "grid": list(self.grid), "points": points, "compared": compared}


def _agree_on_clip(artifacts: Sequence[Artifact[CCNet]]) -> Clip | None:
    """The clip that the networks see, None for images; InputError where they do not see the same frames."""
    first, *others = [artifact.clip and artifact.clip.model_copy(update={"shuffle": False}) for artifact in artifacts]
    for artifact, clip in zip(artifacts[1:], others, strict=True):
        if clip != first:
            seen = [f"clips ({each.frames} frames)" if each else "images" for each in (first, clip)]
            why = f"its network takes {seen[1]}, that of {artifacts[0].path} {seen[0]}"
            why = why if seen[0] != seen[1] else "its clips have another stride, labelled frame or folder"
            raise InputError(f"option --compare {artifact.path}", why, "compare networks that see the same frames")
    return first


def _visualize_clip(
    request: VisualizeRequest, artifacts: Sequence[Artifact[CCNet]], clip: Clip, device: torch.device
) -> ClipSummary:
    if request.drawn_class is not None:
        raise InputError("option --class", "not for a network of clips", "leave it out")
    image = request.image or find_sample()
    frames = read_clip(image, clip, request.frame, request.tolerate_damage)
    check_inside(request.points, frames[clip.place])
    seen = [attend_clip(artifact, frames, device) for artifact in artifacts]
    models = [attention.maps(request.points) for attention in seen]
    # each point by one model, then by the other
    points = [
        replace(point, model="/".join(artifact.path.parts[-2:]) if len(artifacts) > 1 else "")
        for of_point in zip(*models, strict=True)
        for artifact, point in zip(artifacts, of_point, strict=True)
    ]
    align_corners = artifacts[0].network.align_corners
    figure = encode_clip_figure(frames, clip.place, points, align_corners, request.clip, request.how)
    files.write_bytes(request.output, figure)
    size = frames[0].shape[0], frames[0].shape[1]
    if request.maps is not None:
        maps = [[point.maps for point in own] for own in models]
        files.write_bytes(request.maps, _npz(request.points, maps, size))
    summary: ClipSummary | None = None
    for artifact, attention, own in reversed([*zip(artifacts, seen, models, strict=True)]):
        head = artifact.network.head
        summary = ClipSummary(
            figure=str(request.output),
            image=str(image),
            checkpoint=str(artifact.path),
            recurrence=int(head.recurrence),
            gamma=float(head.gamma),
            size=size,
            grid=attention.grid,
            frames=clip.frames,
            place=clip.place,
            points=tuple(own),
            compared=summary,
        )
    assert summary is not None
    return summary


def read_clip(source: Path, clip: Clip, number: int | None, tolerate: bool = False) -> list[images.Pixels]:
    """The clip around a frame of a video, by default the last, or around an image, of the frames beside it.

    Frames beyond a video's ends repeat its first or last.
    """
    if not sources.is_video(source):
        if number is not None:
            raise InputError("option --frame", f"{source} is an image", "leave it out, or name a video")
        read = {path: images.read_image(path, exif=True, tolerate=tolerate) for path in frames_around(source, clip)}
        if len({each.shape for each in read.values()}) > 1:
            raise InputError(source, "the frames beside it are of other sizes", "give the frames of a clip one size")
        return [read[path] for path in frames_around(source, clip)]
    count = video.inspect(source).frames
    own = count - 1 if number is None else number
    if own >= count:
        raise InputError(f"option --frame {own}", f"{source} has {count} frames", f"give 0 to {count - 1}")
    wanted = [min(max(own + (place - clip.place) * clip.stride, 0), count - 1) for place in range(clip.frames)]
    frames = {index: each for index, each in enumerate(video.frames(source)) if index in wanted}
    return [frames[index] for index in wanted]


def _summarize(
    output: Path, image: Path, attention: ImageAttention, maps: ModelMaps, compared: Summary | None
) -> Summary:
    h, w = attention.cells.shape
    return Summary(
        figure=str(output),
        image=str(image),
        checkpoint=str(attention.artifact.path),
        recurrence=len(attention.passes),
        gamma=attention.gamma,
        size=attention.size,
        grid=(h, w),
        points=tuple(maps.points),
        compared=compared,
        names=attention.names,
    )


def _drawn_class(attention: ImageAttention, name: str | None) -> int | None:
    """The index of the class of that name; None without a name or without attention over channels."""
    if name is None or not any(isinstance(each, ChannelPass) for each in attention.passes):
        return None
    names = attention.artifact.classes.names
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        fix = f"did you mean {near[0]}?" if near else f"its classes are {', '.join(names)}"
        raise InputError(f"class {name}", f"not a class of {attention.artifact.path}", fix)
    return names.index(name)


def _npz(
    points: Sequence[tuple[int, int]], models: Sequence[Sequence[Sequence[np.ndarray]]], size: tuple[int, int]
) -> bytes:
    """The maps r1, r2, ... of the first model, and compared_r1, ... of a second one."""
    arrays: dict[str, Any] = {
        f"{prefix}r{r}": np.stack(of_points)
        for prefix, maps in zip(("", "compared_"), models, strict=False)
        for r, of_points in enumerate(zip(*maps, strict=True), 1)
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays, points=np.array(points, np.int64), image_size=np.array(size, np.int64))
    return content.getvalue()


def find_sample() -> Path:
    """The packaged sample image, announced."""
    notice("drawing the sample image that comes with ccnet: name another one to see its attention")
    return sample_image()


def check_clip(clip: float) -> None:
    """InputError unless it is a percentile that leaves something below it."""
    if not 0 < clip <= 100:
        raise InputError(f"clip {clip}", "not a percentile", "give a number above 0, up to 100")


def check_inside(points: Sequence[tuple[int, int]], picture: np.ndarray) -> None:
    """InputError for a point outside the picture (H, W, 3)."""
    H, W = picture.shape[:2]
    for x, y in points:
        if not (0 <= x < W and 0 <= y < H):
            why = f"outside the image of {W}x{H} pixels"
            raise InputError(f"point {x},{y}", why, f"x must lie in 0 to {W - 1}, y in 0 to {H - 1}")


def _refuse_outputs(request: VisualizeRequest, inputs: Sequence[Path | None]) -> None:
    figure, maps = request.output, [] if request.maps is None else [request.maps]
    formats = [f".{name}" for name in FORMATS]
    for path, suffixes in [(figure, formats), *((path, [".npz"]) for path in maps)]:
        if path.suffix.lower() not in suffixes and not files.is_stream(path):
            known = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}" if len(suffixes) > 1 else suffixes[0]
            raise InputError(f"output {path}", f"does not end in {known}", f"give it a name that ends in {suffixes[0]}")
    files.refuse_outputs([figure, *maps, *request.others], inputs)
    files.refuse_outputs([figure, *maps], overwrite=request.overwrite)


def list_inputs(checkpoint: Path | None, compare: Path | None, preset: str | None) -> Iterator[Path]:
    """The files of the models that are named, and of the preset."""
    for path in filter(None, (checkpoint, compare)):
        yield from list_files(find_artifact(path))
    if preset is not None:
        yield config.find(preset)
