"""A finished run on one page: what it was, how it went, where it fails; one HTML file that opens anywhere, offline."""

import base64
import heapq
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccnet_cli import files
from ccnet_cli.inference.metrics import Confusion
from ccnet_cli.media import images
from ccnet_cli.media.images import cv2

# pixels of an example's longer side, and between its pictures
SIDE, GAP = 420, 4
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --faint: #6b6b70; --line: #d9d9de; --paper: #fff; --mark: #2a6fb0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececef; --faint: #a0a0a8; --line: #3a3a40; --paper: #18181b; --mark: #7ab4e8; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1280px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p, figcaption { color: var(--faint); margin: .2rem 0; }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2.4rem; margin: 1rem 0; }
dt { color: var(--faint); font-size: .85rem; } dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); }
th { text-align: left; font-weight: 600; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; } polyline { fill: none; stroke: var(--mark); stroke-width: 1.5; }
img { max-width: 100%; height: auto; background: #fff; } figure { margin: 0 0 1.2rem; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .8rem; font-size: .85rem; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em; border: 1px solid var(--line);
  vertical-align: -.1em; }
"""


@dataclass(frozen=True, eq=False)
class Example:
    """A validation image that came out badly: its own mIoU, its name, and image, label and prediction side by side."""

    miou: float
    name: str
    picture: images.Pixels


class Worst:
    """Keeps the images of an evaluation with the least mIoU of their own, at most `count`, each as a small picture."""

    def __init__(self, count: int, palette: images.Palette, ignore_index: int) -> None:
        self.count = count
        self.palette = palette
        self.ignore_index = ignore_index
        self.kept: list[tuple[float, str, images.Pixels]] = []

    def add(self, name: str, image_bgr: images.Pixels, label_HW: images.Pixels, ids_HW: images.Pixels) -> None:
        """Look at one image, its train ids and those predicted; one without a valid pixel says nothing."""
        confusion = Confusion(len(self.palette))
        confusion.update(torch.from_numpy(ids_HW), torch.from_numpy(label_HW), self.ignore_index)
        miou = confusion.miou()
        if math.isnan(miou) or (len(self.kept) == self.count and -miou <= self.kept[0][0]):
            return
        # what is not to be counted is black in both, so that only mistakes differ
        shown = np.where(label_HW == self.ignore_index, self.ignore_index, ids_HW).astype(np.uint8)
        parts = (image_bgr, images.colorize(label_HW, self.palette), images.colorize(shown, self.palette))
        # a photograph is averaged, classes are not
        ways = (cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_NEAREST)
        small = [_small(part, way) for part, way in zip(parts, ways, strict=True)]
        white = np.full((small[0].shape[0], GAP, 3), 255, np.uint8)
        entry = (-miou, name, np.hstack([small[0], white, small[1], white, small[2]]))
        (heapq.heappush if len(self.kept) < self.count else heapq.heapreplace)(self.kept, entry)


def worst_of(kept: Iterable[Worst], count: int) -> list[Example]:
    """What several processes kept, the worst first, at most `count`."""
    entries = sorted((-negative, name, picture) for worst in kept for negative, name, picture in worst.kept)
    return [Example(miou, name, picture) for miou, name, picture in entries[:count]]


def _small(picture: images.Pixels, way: int) -> images.Pixels:
    height, width = picture.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=way), np.uint8)


def write(
    path: Path,
    preset: str,
    environment: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    palette: images.Palette,
    matrix: images.Pixels,
    examples: Sequence[Example],
) -> None:
    """Write the page of a run: preset is its YAML, rows those of its log, matrix the drawn confusion matrix.

    The rows of evaluations have `miou` and, by class name, `classes`. Beside path lies curves.png, which is put in.
    """
    scored = [row for row in rows if "miou" in row]
    title = path.parent.name
    curves = path.with_name("curves.png")
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(str(environment.get('started', '')))}, {escape(str(environment.get('device', '')))}</p>",
        _figures(rows, scored),
        "<h2>Curves</h2>",
        _image(curves.read_bytes(), "training loss, learning rate and validation mIoU over the steps")
        if curves.is_file()
        else "",
        "<h2>Classes</h2>",
        _classes(scored, names, palette),
        "<h2>Confusion</h2>",
        _image(images.encode_png(matrix), "confusion matrix: each row a true class, in percent of its pixels"),
        "<h2>Worst images</h2>",
        "<p>Image, label, prediction; black is not counted.</p>",
        *(_example(example) for example in examples),
        "<h2>Configuration</h2>",
        f"<pre>{escape(preset)}</pre>",
        "<h2>Environment</h2>",
        f"<pre>{escape(json.dumps(dict(environment), indent=1))}</pre>",
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{chr(10).join(part for part in parts if part)}
</main>
</body>
</html>
"""
    files.write_bytes(path, page.encode())


def _figures(rows: Sequence[Mapping[str, Any]], scored: Sequence[Mapping[str, Any]]) -> str:
    told = {"steps": f"{rows[-1]['step']:,}" if rows else "-"}
    if scored:
        best = max(scored, key=lambda row: row["miou"])
        told |= {
            "mIoU": f"{100 * scored[-1]['miou']:.2f} %",
            "best mIoU": f"{100 * best['miou']:.2f} % at step {best['step']:,}",
            "pixel accuracy": f"{100 * scored[-1].get('pixel_accuracy', math.nan):.2f} %",
        }
    losses = [row["loss"] for row in rows if "loss" in row]
    if losses:
        told["last loss"] = f"{losses[-1]:.4f}"
    return "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in told.items()) + "</dl>"


def _classes(scored: Sequence[Mapping[str, Any]], names: Sequence[str], palette: images.Palette) -> str:
    """A row for each class: its IoU at the end, its best, and how it went."""
    rows = []
    for name, (red, green, blue) in zip(names, palette, strict=True):
        history = [(row["step"], row.get("classes", {}).get(name)) for row in scored]
        known = [value for _, value in history if value is not None]
        last = history[-1][1] if history else None
        rows.append(
            f'<tr><th scope="row"><span class="swatch" style="background:#{red:02x}{green:02x}{blue:02x}"></span>'
            f"{escape(name)}</th>"
            f'<td class="number">{_percent(last)}</td><td class="number">{_percent(max(known, default=None))}</td>'
            f"<td>{_line(history, name)}</td></tr>"
        )
    head = "".join(f'<th scope="col">{word}</th>' for word in ("class", "IoU %", "best %", "over the steps"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _line(history: Sequence[tuple[int, float | None]], name: str, width: int = 260, height: int = 26) -> str:
    """The IoU of a class over the steps, 0 to 1, as a small drawing."""
    points = [(step, value) for step, value in history if value is not None]
    if not points:
        return ""
    first, last = points[0][0], points[-1][0]
    span = max(last - first, 1)
    places = [(2 + (step - first) / span * (width - 4), 2 + (1 - value) * (height - 4)) for step, value in points]
    if len(places) == 1:
        places = [(2.0, places[0][1]), (width - 2.0, places[0][1])]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    label = escape(f"IoU of {name} from {100 * points[0][1]:.1f} to {100 * points[-1][1]:.1f} percent", quote=True)
    return f'<svg width="{width}" height="{height}" role="img" aria-label="{label}"><polyline points="{drawn}"/></svg>'


def _example(example: Example) -> str:
    told = f"{example.name}: mIoU {100 * example.miou:.1f} %"
    return f"<figure>{_image(images.encode_png(example.picture), told)}<figcaption>{escape(told)}</figcaption></figure>"


def _image(png: bytes, told: str) -> str:
    return f'<img alt="{escape(told, quote=True)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
