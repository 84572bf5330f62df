"""Where presets lie, and what they say: files, files that are based on another preset, and families of presets.

`base: NAME` (or the path of a file) begins with that preset's keys, all but name, description, source and published. A
family is a file below families/ that holds one preset for each of its `rows`: `*` is the name of the row in its texts,
and a row is the mIoU that was published for it, single scale and with scales and flip, or null.
"""

import difflib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ccnet_cli.config import migration, text
from ccnet_cli.config.shipped import OWN_KEYS, families, fill, folder, names
from ccnet_cli.errors import InputError
from ccnet_cli.losses import LOSSES
from ccnet_cli.models.backbones import BACKBONES
from ccnet_cli.models.heads import HEADS
from ccnet_cli.parts import Table

MAX_FILE_BYTES = 1 << 20
MAX_BASES = 16
# the keys whose groups are the settings of a part
TABLES: dict[str, Table] = {"model.backbone": BACKBONES, "model.head": HEADS, "model.auxiliary": HEADS}


def find(name_or_path: str) -> Path:
    """The file that holds a preset, by its name or path; InputError names the nearest preset."""
    own, path = folder() / f"{name_or_path}.yaml", Path(name_or_path)
    if own.is_file() and own.parent == folder():
        return own
    row = _row(name_or_path)
    if row is not None:
        return row[0]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    known = names()
    near = difflib.get_close_matches(name_or_path, known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else "see ccnet presets list, or give a .yaml file"
    raise InputError(f"preset {name_or_path or '(empty)'}", "unknown", fix)


def read(name_or_path: str, based: tuple[str, ...] = ()) -> dict[str, Any]:
    """A preset's keys, those of its base among them; InputError gives line and column of a mistake in a file.

    based are the presets that are based on this one.
    """
    path, mapping = _row(name_or_path) or (find(name_or_path), None)
    if mapping is None:
        mapping = _parse(path)
    return add_base(mapping, path, (*based, name_or_path))


def add_base(mapping: Mapping[str, Any], path: Path = Path(), based: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a preset in the file of this path, those of its base among them."""
    mapping = dict(mapping)
    base = mapping.pop("base", None)
    if base is None:
        return mapping
    if not isinstance(base, str):
        raise InputError(f"preset {path}", "base is the name or the file of another preset", "correct it")
    if len(Path(base).parts) > 1 or base.endswith((".yaml", ".yml")):
        base = str(path.parent / base)
    if base in based or len(based) > MAX_BASES:
        raise InputError(f"preset {path}", f"its base {base} is based on it", "name another base")
    below = migration.migrate(read(base, based))
    return merge({key: value for key, value in below.items() if key not in OWN_KEYS}, mapping)


def source(name_or_path: str) -> bytes:
    """A file that holds this preset alone: its own where it has one and no base, else one of all its keys."""
    if _row(name_or_path) is None and "base" not in _parse(find(name_or_path)):
        return find(name_or_path).read_bytes()
    return text.dump(read(name_or_path)).encode()


def merge(base: Mapping[str, Any], changes: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """The base with the changes; a part of another kind forgets the keys that this kind does not have."""
    merged = dict(base)
    for name, value in changes.items():
        before, inner = merged.get(name), f"{key}.{name}" if key else name
        if not isinstance(value, Mapping) or not isinstance(before, Mapping):
            merged[name] = value
            continue
        before = dict(before)
        if "kind" in value and (inner in TABLES or key == "loss"):
            choose_kind(before, inner, value["kind"])
        merged[name] = merge(before, value, inner)
    return merged


def choose_kind(settings: dict[str, Any], key: str, kind: object) -> None:
    """Forget what the part of another kind does not have."""
    table = TABLES.get(key, LOSSES)
    if settings.get("kind") != kind and isinstance(kind, str) and kind in table:
        fields = table[kind].settings.model_fields
        for name in [name for name in settings if name not in fields]:
            del settings[name]


def _row(name: str) -> tuple[Path, dict[str, Any]] | None:
    """The preset of a family that has this name, and the family's file."""
    for path in families():
        row = name.removeprefix(f"{path.stem}-")
        if row != name and row in (family := _parse(path))["rows"]:
            return path, fill(path.stem, family, row)[1]
    return None


def _parse(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; InputError gives line and column."""
    if not path.is_file():
        why = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"preset {path}", why, "give a .yaml file or a name from ccnet presets list")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"preset {path}", f"cannot be read ({error.strerror})", "check its permissions") from None
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"preset {path}", f"larger than {MAX_FILE_BYTES} bytes", "give a preset file")
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"preset {path}", f"byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    mapping = _copy(_parse_text(decoded, str(path)))
    if not isinstance(mapping, dict):
        kind = "nothing" if mapping is None else "a list" if isinstance(mapping, list) else "a single value"
        why = f"keys and values expected, found {kind}"
        raise InputError(f"preset {path}:1:1", why, "start from ccnet presets copy quickstart FILE")
    return mapping


def _copy(value: Any) -> Any:
    """A copy of plain types, several times as fast as copy.deepcopy."""
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


@lru_cache(maxsize=128)
def _parse_text(decoded: str, where: str) -> Any:
    """The same file is the base of many."""
    return text.parse(decoded, where)
