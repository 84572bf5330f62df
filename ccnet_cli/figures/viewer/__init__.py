"""The attention viewer: one HTML file that holds its data, its script and its style, and asks for nothing else."""

import base64
import bisect
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ccnet_cli.figures.viewer import payload
from ccnet_cli.media import images
from ccnet_cli.media.images import cv2

# H, W the image; h, w the grid of cells on which the network attends; points are (x, y) of the image

FOLDER = Path(__file__).parent
SCRIPTS = ("attention.js", "drawing.js", "viewer.js")
# the first is the page's choice; each grows lighter from end to end, so that no kind of colour blindness confuses it
COLOURS = {
    "viridis": cv2.COLORMAP_VIRIDIS,
    "cividis": cv2.COLORMAP_CIVIDIS,
    "inferno": cv2.COLORMAP_INFERNO,
    "grey": None,
}
# the page of a 769x769 image, whose grid has so many cells, stays below the first; that of a larger grid the second
CELLS = 97 * 97
PAGE_BYTES, LARGE_PAGE_BYTES = 4_900_000, 7_900_000
# the pixels at which a page's maps are compared with the network's
COMPARED = 16
# the longer side of the picture in the page, and of a thumbnail
LONGEST, THUMBNAIL = 2048, 320


@dataclass(frozen=True)
class Seen:
    """All that a page shows of an image: what the network saw in it, and how the maps are to be drawn at first.

    Of the attention it has either weights_NP, (h w, h + w) of each pass, or projections_CN, the query and the key of
    each, (C', h w), as it must where there are more than CELLS cells. prediction and label are classes (H, W), cells
    those of the grid (h, w).
    """

    name: str
    image_bgr: np.ndarray
    names: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    cells: np.ndarray
    prediction: np.ndarray
    label: np.ndarray | None
    weights_NP: Sequence[np.ndarray]
    projections_CN: Sequence[tuple[np.ndarray, np.ndarray]]
    recurrence: int
    gamma: float
    align_corners: bool
    points: Sequence[tuple[int, int]]
    clip: float
    still_bgr: np.ndarray
    source: str


def page(seen: Seen) -> str:
    """The HTML of one image's viewer, which says how the attention is kept in it."""
    H, W = seen.image_bgr.shape[:2]
    h, w = seen.cells.shape
    zoom = min(LONGEST / max(H, W), 1)
    size = (max(round(zoom * W), 1), max(round(zoom * H), 1))
    picture = cv2.resize(seen.image_bgr, size, interpolation=cv2.INTER_AREA) if zoom < 1 else seen.image_bgr
    shown = {"prediction": seen.prediction} | ({} if seen.label is None else {"label": seen.label})
    shared = {
        "cells": seen.cells,
        **{name: cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST) for name, ids in shown.items()},
        "tables": np.concatenate([_table(number) for number in COLOURS.values()]),
    }
    first = seen.points[0] if seen.points else (W // 2, H // 2)
    still = base64.b64encode(images.encode_png(seen.still_bgr, smallest=True)).decode()
    photograph = base64.b64encode(images.encode_jpeg(picture)).decode()
    most = PAGE_BYTES if h * w <= CELLS else LARGE_PAGE_BYTES
    spent = [still, photograph, payload.pack(shared)[1], *(_file(name) for name in (*SCRIPTS, "viewer.css"))]
    kept, arrays = _kept(seen, (h, w), most - sum(len(part) for part in spent))
    directory, text = payload.pack(shared | arrays)
    facts = {
        "name": seen.name,
        "image": {"width": W, "height": H},
        "grid": {"width": w, "height": h},
        "classes_size": {"width": size[0], "height": size[1]},
        "align": seen.align_corners,
        "recurrence": seen.recurrence,
        "gamma": seen.gamma,
        "names": list(seen.names),
        "palette": [list(colour) for colour in seen.palette],
        "point": dict(zip("xy", first, strict=True)),
        "pins": [dict(zip("xy", point, strict=True)) for point in seen.points],
        "clip": max(seen.clip, 50.0),
        "colours": list(COLOURS),
        "picture": f"data:image/jpeg;base64,{photograph}",
        "arrays": directory,
        **{key: value for key, value in kept.items() if key != "told"},
    }
    about = (
        f"{W}x{H} pixels, {w}x{h} cells, R = {seen.recurrence}, gamma {seen.gamma:.3g}; {seen.source}. "
        f"This file holds {kept['told']}."
    )
    script = "(() => {\n" + "\n".join(_file(name) for name in SCRIPTS) + "})();\n"
    values = {
        "name": html.escape(seen.name),
        "about": html.escape(about),
        "alt": html.escape(f"{seen.name} with a point at {first[0]}, {first[1]}, and the attention maps of each pass"),
        "x": str(first[0]),
        "y": str(first[1]),
        "still": still,
        # no name of a file or a class may end the script element
        "page": json.dumps(facts).replace("<", "\\u003c"),
        "payload": text,
    }
    return _assembled("viewer.html", values, script)


def index(entries: Mapping[str, tuple[str, np.ndarray]], source: str) -> str:
    """The HTML of a list of pages: file name -> (image name, BGR image), each with a thumbnail."""
    drawn = []
    for file, (name, image_bgr) in entries.items():
        H, W = image_bgr.shape[:2]
        zoom = min(THUMBNAIL / max(H, W), 1)
        small = cv2.resize(image_bgr, (max(round(zoom * W), 1), max(round(zoom * H), 1)), interpolation=cv2.INTER_AREA)
        data = base64.b64encode(images.encode_jpeg(small)).decode()
        # ./ so that a name such as a:b.html is not taken for a scheme
        link = html.escape("./" + quote(file))
        text = html.escape(name)
        drawn.append(f'    <li><a href="{link}"><img alt="" src="data:image/jpeg;base64,{data}">{text}</a></li>')
    values = {"count": str(len(drawn)), "about": html.escape(source), "entries": "\n".join(drawn)}
    return _assembled("index.html", values, "")


def _kept(seen: Seen, size: tuple[int, int], room: int) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """What is embedded of the attention, in so many characters of base64: facts for the page, and its arrays."""
    if seen.projections_CN:

        def fits(steps: int) -> bool:
            return len(payload.pack(payload.projections(seen.projections_CN, steps)[0])[1]) <= room

        # the finest that fit; the coarsest where none do
        steps = (*payload.STEPS, payload.STEPS[-1])[bisect.bisect_left(payload.STEPS, True, key=fits)]
        arrays, worth = payload.projections(seen.projections_CN, steps)
        pixels = np.random.default_rng(0).integers(size[0] * size[1], size=COMPARED).tolist()
        error = payload.departure(seen.projections_CN, arrays, worth, size, pixels)
        told = (
            f"query and key of each pass in {steps} steps, and the softmax is done here: at {COMPARED} points, maps "
            f"differ from the network's by up to {error:.1g} of their largest weight"
        )
        return {"form": "projections", "steps": worth, "told": told}, arrays
    for levels in payload.LEVELS:
        arrays = payload.weights(seen.weights_NP, size, levels)
        if len(payload.pack(arrays)[1]) <= room:
            break
    told = f"the weights of each pass in {levels} steps of their square root"
    return {"form": "weights", "levels": levels, "told": told}, arrays


def _assembled(template: str, values: Mapping[str, str], script: str) -> str:
    """A template with its {{names}} filled in, and a policy that lets nothing run or load but what is in the file."""
    style = _file("viewer.css")
    allowed = "".join(f"script-src '{_hash(part)}'; " for part in [script] if part)
    policy = f"default-src 'none'; {allowed}style-src '{_hash(style)}'; img-src data: blob:; base-uri 'none'"
    known = {**values, "style": style, "script": script, "policy": policy}
    # in one pass: what is filled in is not looked at again
    return re.sub(r"\{\{(\w+)\}\}", lambda found: known[found[1]], _file(template))


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _table(colours: int | None) -> np.ndarray:
    """The 256 RGB colours of one of OpenCV's colour maps, or of grey, (256, 3) uint8."""
    shades = np.arange(256, dtype=np.uint8)[:, None]
    if colours is None:
        return np.repeat(shades, 3, axis=1)
    return np.ascontiguousarray(cv2.applyColorMap(shades, colours)[:, 0, ::-1])
