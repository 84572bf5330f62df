"""The attention viewer: one HTML file that holds its data, its script and its style."""

import bisect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from ccnet_cli.errors import one_line
from ccnet_cli.figures import pages
from ccnet_cli.figures.curves import write_number
from ccnet_cli.figures.sheet import COLOURS as COLOURS_OF_FIGURES
from ccnet_cli.figures.viewer import payload
from ccnet_cli.media.classes import Classes
from ccnet_cli.media.images import Pixels, cv2

# H, W the image; h, w the grid of cells on which the network attends; points are (x, y) of the image

FOLDER = Path(__file__).parent
SCRIPTS = ("attention.js", "drawing.js", "view.js", "page.js", "viewer.js")
# the page begins with the figures' own; each grows lighter from end to end, so that no colour blindness confuses it
COLOURS = {
    "inferno": COLOURS_OF_FIGURES,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "cividis": cv2.COLORMAP_CIVIDIS,
    "grey": None,
}
# cells of a 769x769 image; a page with at most that many stays below the first size, a larger one below the second
CELLS = 97 * 97
PAGE_BYTES, LARGE_PAGE_BYTES = 4_900_000, 7_900_000
# pixels at which a page's maps are compared with the network's
COMPARED_PIXELS = 16
# the longer side of the picture in the page, and of a thumbnail
LONGEST_SIDE, THUMBNAIL = 2048, 320
# of a frame of a clip, of whose frames the whole has about the pixels of one picture
LEAST_SIDE = 640


@dataclass(frozen=True)
class ModelContent:
    """What one model computed for a page's image or clip.

    The attention is either weights_NP, (h w, h + w) of each pass, or projections_CN, query and key of each pass,
    (C', h w), of a clip (C', T h w), which is required for more than CELLS cells and for clips, or others, where it is
    not over crosses. composed says whether a pass works on what the one before it made. prediction are classes (H, W)
    or (T, H, W), cells those of the grid (h, w) or (T, h, w).
    """

    cells: Pixels
    prediction: Pixels
    recurrence: int
    gamma: float | None
    align_corners: bool
    title: str = ""
    weights_NP: Sequence[npt.NDArray[Any]] = ()
    projections_CN: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = ()
    others: Sequence[payload.DensePass | payload.ClassMaps] = ()
    names: Sequence[str] = ()
    composed: bool = True

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, height and width in cells."""
        T, h, w = self.cells.reshape(-1, *self.cells.shape[-2:]).shape
        return T, h, w

    @property
    def summary(self) -> str:
        """Grid, passes and gamma."""
        T, h, w = self.grid
        frames = f"{T} frames of " if T > 1 else ""
        passes = f"R = {self.recurrence}" if self.composed else f"attention over {' and '.join(self.names)}"
        gamma = "" if self.gamma is None else f", gamma {write_number(self.gamma)}"
        return f"{frames}{w}x{h} cells, {passes}{gamma}"


@dataclass(frozen=True)
class PageContent:
    """An image or a clip, what models of the same classes computed for it, and how the page first draws the maps.

    place is that of the clip's labelled frame, from which points look. label holds this frame's classes (H, W).
    """

    name: str
    frames_bgr: Sequence[Pixels]
    place: int
    classes: Classes
    label: Pixels | None
    models: Sequence[ModelContent]
    points: Sequence[tuple[int, int]]
    clip: float
    still_bgr: Pixels
    source: str


def render_page(content: PageContent) -> str:
    """The HTML of one image's viewer, which states how exactly it holds the attention."""
    H, W = content.frames_bgr[0].shape[:2]
    longest = max(round(LONGEST_SIDE / len(content.frames_bgr) ** 0.5), LEAST_SIDE)
    pictures = [pages.shrink(frame, longest) for frame in content.frames_bgr]
    size = pictures[0].shape[1], pictures[0].shape[0]
    shared = {"tables": np.concatenate([_colour_table(number) for number in COLOURS.values()])}
    if content.label is not None:
        shared["label"] = _resize(content.label, size)
    for number, model in enumerate(content.models):
        shared |= {f"{number}/cells": model.cells, f"{number}/prediction": _resize(model.prediction, size)}
    point = content.points[0] if content.points else (W // 2, H // 2)
    still, photographs = pages.png(content.still_bgr, smallest=True), [pages.jpeg(each) for each in pictures]
    style, script = _read("viewer.css"), "(() => {\n" + "\n".join(map(_read, SCRIPTS)) + "})();\n"
    limit = PAGE_BYTES if sum(model.cells.size for model in content.models) <= CELLS else LARGE_PAGE_BYTES
    room = limit - sum(map(len, (still, *photographs, payload.pack(shared)[1], style, script)))
    models, notes = [], []
    for number, model in enumerate(content.models):
        form, arrays, precision = _encode_attention(model, room // len(content.models))
        shared |= {f"{number}/{name}": array for name, array in arrays.items()}
        models.append(_model_facts(model) | form)
        title = f"{one_line(model.title)}: " if len(content.models) > 1 else ""
        notes.append(f"{title}{model.summary}. This file holds {precision}.")
    directory, packed = payload.pack(shared)
    facts = {
        "name": one_line(content.name),
        "image": {"width": W, "height": H},
        "frames": len(pictures),
        "place": content.place,
        "classes_size": {"width": size[0], "height": size[1]},
        "names": [one_line(name) for name in content.classes.names],
        "palette": [list(colour) for colour in content.classes.palette],
        "point": dict(zip("xy", point, strict=True)),
        "pins": [dict(zip("xy", pin, strict=True)) for pin in content.points],
        "clip": max(content.clip, 50.0),
        "colours": list(COLOURS),
        "pictures": photographs,
        "arrays": directory,
        "models": models,
    }
    return pages.render(
        "viewer/viewer.html",
        style,
        script,
        name=one_line(content.name),
        summary=content.source,
        about=f"{W}x{H} pixels; {' '.join(notes)}",
        x=point[0],
        y=point[1],
        still=still,
        page=facts,
        payload=packed,
    )


def _model_facts(model: ModelContent) -> dict[str, Any]:
    T, h, w = model.grid
    return {
        "title": one_line(model.title),
        "grid": {"frames": T, "height": h, "width": w},
        "align": model.align_corners,
        "recurrence": model.recurrence,
        "titles": list(model.names) or [f"R = {r + 1}" for r in range(model.recurrence)],
        "composed": model.composed,
        "gamma": model.gamma,
    }


def _resize(ids: Pixels, size: tuple[int, int]) -> Pixels:
    """Classes (H, W), or (T, H, W), at the size (width, height) of the page's pictures."""
    frames = ids.reshape(-1, *ids.shape[-2:])
    return np.stack([np.asarray(cv2.resize(each, size, interpolation=cv2.INTER_NEAREST), np.uint8) for each in frames])


def render_index(entries: Mapping[str, tuple[str, Pixels]], source: str) -> str:
    """The HTML of a list of pages: file name -> (image name, BGR image), each with a thumbnail."""
    # ./ so that a name such as a:b.html is not a scheme
    links = [
        (f"./{quote(os.fsencode(file))}", pages.jpeg(pages.shrink(image, THUMBNAIL)), one_line(name))
        for file, (name, image) in entries.items()
    ]
    return pages.render("viewer/index.html", _read("viewer.css"), about=source, links=links)


def _encode_attention(content: ModelContent, room: int) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]], str]:
    """The attention in `room` characters of base64: keys for the script, arrays, and their precision in words."""
    pixels = np.random.default_rng(0).integers(content.cells.size, size=COMPARED_PIXELS).tolist()
    size = content.cells.shape
    if content.others:
        return _encode_others(content, pixels, room)
    if content.projections_CN:
        steps = _finest(lambda steps: payload.projections(content.projections_CN, steps)[0], room)
        arrays, sizes = payload.projections(content.projections_CN, steps)
        error = payload.map_error(content.projections_CN, arrays, sizes, size, pixels)
        precision = (
            f"query and key of each pass in {steps} steps, and the softmax is done here: at {COMPARED_PIXELS} points, "
            f"maps differ from the network's by up to {write_number(float(f'{error:.1g}'))} of their largest weight"
        )
        return {"form": "projections", "steps": sizes}, arrays, precision
    for levels in payload.LEVELS:
        arrays = payload.weights(content.weights_NP, size, levels)
        if len(payload.pack(arrays)[1]) <= room:
            break
    precision = f"the weights of each pass in {levels} steps of their square root"
    return {"form": "weights", "levels": levels}, arrays, precision


def _encode_others(
    content: ModelContent, pixels: Sequence[int], room: int
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]], str]:
    """The same of attention over all positions and over channels."""
    passes = [each.reduce() if isinstance(each, payload.DensePass) else each for each in content.others]
    steps = _finest(lambda steps: payload.dense(passes, steps)[0], room)
    arrays, sizes = payload.dense(passes, steps)
    held = []
    if any(isinstance(each, payload.DensePass) for each in passes):
        error = payload.dense_error(content.others, arrays, sizes, content.composed, pixels)
        held.append(
            f"query and key in {steps} steps, and the softmax is done here: at {len(pixels)} points, "
            f"maps differ from the network's by up to {write_number(float(f'{error:.1g}'))} of their largest weight"
        )
    if any(isinstance(each, payload.ClassMaps) for each in passes):
        held.append("for each predicted class the map of the channel that adds most to its scores, in 65535 steps")
    return {"form": "others", "steps": sizes}, arrays, "; ".join(held)


def _finest(encode: Callable[[int], Mapping[str, npt.NDArray[Any]]], room: int) -> int:
    """The most of payload.STEPS with which the encoded arrays fit in `room` characters, or the fewest."""
    fits = bisect.bisect_left(payload.STEPS, True, key=lambda steps: len(payload.pack(encode(steps))[1]) <= room)
    return (*payload.STEPS, payload.STEPS[-1])[fits]


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _colour_table(colours: int | None) -> Pixels:
    """The 256 RGB colours of one of OpenCV's colour maps, or of grey, (256, 3)."""
    shades = np.arange(256, dtype=np.uint8)[:, None]
    if colours is None:
        return np.repeat(shades, 3, axis=1)
    return np.ascontiguousarray(np.asarray(cv2.applyColorMap(shades, colours), np.uint8)[:, 0, ::-1])
