"""Rows of a comparison: one preset with one head after another, and all else alike."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from ccnet_cli.config import presets, text
from ccnet_cli.config.schema import Preset
from ccnet_cli.errors import InputError, notice
from ccnet_cli.models.heads import HEADS
from ccnet_cli.models.settings import Model

# the control: CCNet's head without attention, as many convolutions as with it
NONE = "none"
ROWS = (NONE, "fcn", "psp", "aspp", "nonlocal", "gc", "danet", "oc", "isa", "rcca")
COMPARED = (*ROWS[:-1], "rcca,recurrence=1", "rcca")
# heads whose own further outputs are in the place of the auxiliary head
UNAIDED = ("danet",)
# what a row's head takes from the preset's, where it has such keys and the row does not set them
SHARED = ("channels", "query_channels", "dropout")


def with_head(preset: Preset, row: str) -> Preset:
    """The preset with the head of a row, NAME or NAME,KEY=VALUE,...; InputError for a wrong one.

    `none` is rcca with recurrence 0. Channels, query channels and dropout are the preset head's; branches of an ASPP
    are half as wide as its channels.
    """
    # a comma in brackets is a list's
    name, *assignments = re.split(r",(?![^\[]*\])", row)
    own = dict(_assignment(row, word) for word in assignments)
    kind = "rcca" if name == NONE else name
    if kind not in HEADS:
        near = difflib.get_close_matches(name, [NONE, *HEADS], n=1)
        fix = f"did you mean {near[0]}?" if near else f"choose among {', '.join([NONE, *HEADS])}"
        raise InputError(f"head {name}", "unknown", fix)
    mapping = presets.to_mapping(preset)
    shared = _shared(mapping["model"]["head"], kind, own)
    if name == NONE:
        if "recurrence" in own:
            raise InputError(f"head {row}", "none has no passes", "name rcca with its recurrence")
        own["recurrence"] = 0
    elif kind == "rcca":
        shared["recurrence"] = shared.get("recurrence") or 2
    mapping["model"]["head"] = {**shared, **own, "kind": kind}
    return presets.from_mapping(mapping)


def with_heads(preset: Preset, rows: Sequence[str] | None, default: Sequence[str] = ROWS) -> dict[str, Preset]:
    """The presets of rows, by their texts; those of the default whose heads there are, if none are named."""
    if rows is None:
        missing = [row for row in default if row.partition(",")[0] not in (NONE, *HEADS)]
        if missing:
            notice(f"left out: {', '.join(missing)}; this version has no such head")
        rows = [row for row in default if row not in missing]
    twice = next((row for row in rows if list(rows).count(row) > 1), None)
    if twice is not None:
        raise InputError(f"option --head {twice}", "given twice", "leave one of them out")
    return {row: with_head(preset, row) for row in rows}


def native_models(preset: Preset, rows: Sequence[str] | None) -> dict[str, Model]:
    """The networks of rows, as their authors have them: DANet without the auxiliary head."""
    presets_by_row = with_heads(preset, rows)
    return {
        row: each.model.model_copy(update={"auxiliary": None}) if row.partition(",")[0] in UNAIDED else each.model
        for row, each in presets_by_row.items()
    }


def _shared(before: dict[str, Any], kind: str, own: dict[str, Any]) -> dict[str, Any]:
    """The keys that the head of a kind takes from the preset's head, all of them where it is of the same kind."""
    if before["kind"] == kind:
        return before
    fields = HEADS[kind].settings.model_fields
    shared = {key: before[key] for key in SHARED if key in fields and before.get(key) is not None}
    if "form" in own and "channels" in fields and fields["channels"].default is None:
        # somebody's form has widths of its own
        shared.pop("channels", None)
    elif "width" in fields and "channels" in shared:
        shared["width"] = max(own.get("channels", shared["channels"]) // 2, 1)
    return shared


def _assignment(row: str, word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals or not key.strip():
        raise InputError(f"head {row}", f"{word or 'an empty word'} is not KEY=VALUE", "write NAME,KEY=VALUE,...")
    return key.strip(), text.parse(value, f"head {row}")
