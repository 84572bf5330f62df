"""The presets that come with ccnet, and what they say of themselves: read without their settings."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccnet_cli.config import text

# what a preset says of itself alone
OWN_KEYS = ("name", "description", "source", "published")
# these keys with their lines, and the rows of a family
OWN_LINES = re.compile(rf"^(?:{'|'.join(OWN_KEYS)}|rows):.*\n(?:[ #].*\n|\n)*", re.MULTILINE)


def folder() -> Path:
    """Where the presets lie: inside the package when installed, beside it in a checkout."""
    installed = Path(__file__).parents[1] / "presets"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "presets"


def names() -> list[str]:
    """Names of the presets that come with ccnet, sorted."""
    rows = [f"{path.stem}-{row}" for path in families() for row in _parse_own(path)["rows"]]
    return sorted([*(path.stem for path in folder().glob("*.yaml")), *rows])


def describe() -> dict[str, dict[str, str]]:
    """What the presets that come with ccnet say of themselves alone (OWN_KEYS), by name, sorted; no base is read."""
    own = {path.stem: _parse_own(path) for path in folder().glob("*.yaml")}
    for path in families():
        family = _parse_own(path)
        own |= dict(fill(path.stem, family, row) for row in family["rows"])
    return {name: {key: own[name].get(key) or "" for key in OWN_KEYS} for name in sorted(own)}


def families() -> list[Path]:
    """The files that hold a preset for each of their rows."""
    return sorted((folder() / "families").glob("*.yaml"))


def fill(family: str, mapping: Mapping[str, Any], row: str) -> tuple[str, dict[str, Any]]:
    """Name and keys of the preset in a row of a family."""
    own: dict[str, Any] = {
        key: value.replace("*", row) if isinstance(value, str) else value for key, value in mapping.items()
    }
    name, scores = f"{family}-{row}", own.pop("rows")[row]
    return name, {"name": name, **own, "published": _published(scores)}


def _published(scores: list[float] | None) -> str | None:
    single, *multiple = [f"{score:.2f}" for score in scores] if scores else [""]
    more = f"; {multiple[0]} with scales and flip" if multiple else ""
    return f"mIoU {single} on val, single scale{more}" if single else None


def _parse_own(path: Path) -> dict[str, Any]:
    """What a file that comes with ccnet says of itself: most of its text need not be parsed."""
    own: dict[str, Any] = text.parse("".join(OWN_LINES.findall(path.read_text(encoding="utf-8"))), str(path))
    return own
