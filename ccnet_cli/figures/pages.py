"""HTML pages from templates that escape what is filled in; each is one file that loads nothing and opens anywhere."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ccnet_cli.errors import one_line
from ccnet_cli.media import images
from ccnet_cli.media.images import cv2

FOLDER = Path(__file__).parent


def render(template: str, style: str, script: str = "", **values: object) -> str:
    """Fill in a template of this folder; its `policy` lets only this style, this script and embedded images in."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=_escape_controls,
    )
    scripts = f"script-src '{_hash(script)}'; " if script else ""
    policy = f"default-src 'none'; {scripts}style-src '{_hash(style)}'; img-src data: blob:; base-uri 'none'"
    fixed = {"policy": Markup(policy), "style": Markup(style), "script": Markup(script)}
    return environment.get_template(template).render(**fixed, **values)


def _escape_controls(value: Any) -> Any:
    """Each line of a text that is filled in as one_line has it; what is Markup or no text stays."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(one_line, value.split("\n")))


def png(image_bgr: images.Pixels, smallest: bool = False) -> str:
    """The data: address of a picture, without loss."""
    return png_bytes(images.encode_png(image_bgr, smallest))


def png_bytes(content: bytes) -> str:
    """The data: address of a PNG file's content."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def jpeg(image_bgr: images.Pixels) -> str:
    """The data: address of a photograph."""
    return f"data:image/jpeg;base64,{base64.b64encode(images.encode_jpeg(image_bgr)).decode()}"


def shrink(picture: images.Pixels, longest: int, interpolation: int = cv2.INTER_AREA) -> images.Pixels:
    """The picture itself, or a smaller one whose longer side has `longest` pixels."""
    height, width = picture.shape[:2]
    zoom = min(longest / max(height, width), 1)
    size = max(round(zoom * width), 1), max(round(zoom * height), 1)
    return picture if zoom == 1 else np.asarray(cv2.resize(picture, size, interpolation=interpolation), np.uint8)


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
