"""How a preset is read, overridden, checked and written."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ccnet_cli.config import library, migration, text
from ccnet_cli.config.library import TABLES, choose_kind
from ccnet_cli.config.schema import Preset
from ccnet_cli.datasets import settings_of
from ccnet_cli.errors import InputError, notice
from ccnet_cli.losses import LOSSES
from ccnet_cli.parts import PartError, Section, Table

# words people bring from other projects, and what they are called here
SYNONYMS = {
    "learning_rate": "schedule.lr",
    "base_lr": "schedule.lr",
    "batch_size": "train.batch",
    "iterations": "schedule.steps",
    "max_iters": "schedule.steps",
    "epochs": "schedule.steps",
    "num_workers": "data.workers",
    "crop_size": "data.crop",
    "ignore_label": "data.ignore_index",
    "amp": "train.precision",
}
# groups that null takes away
OPTIONAL = ("data.clip", "data.augment", "train.early_stop")


class UnknownKeyError(InputError):
    """A preset has a key that this version does not know."""


def load(preset: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> Preset:
    """Read a preset by name, a file by path, or the keys of one, and apply overrides, each "key=value".

    InputError if any is wrong.
    """
    mapping = library.read(preset) if isinstance(preset, str) else library.add_base(preset)
    before = migration.migrate(mapping).get("schedule")
    # parts are chosen before their settings are set, in whatever order they come
    for assignment in sorted(overrides, key=lambda assignment: not _chooses_part(assignment)):
        override(mapping, assignment)
    if not any(assignment.startswith(("schedule.warmup=", "schedule=")) for assignment in overrides):
        _shorten_warmup(mapping, before)
    return from_mapping(mapping)


def _shorten_warmup(mapping: dict[str, Any], before: Any) -> None:
    """Keep the warm-up's part of a schedule that an override made shorter than the warm-up itself."""
    schedule = mapping.get("schedule")
    if not isinstance(schedule, dict) or not isinstance(before, Mapping):
        return
    steps, was, warmup = schedule.get("steps"), before.get("steps"), schedule.get("warmup", 0)
    if not (isinstance(steps, int) and isinstance(was, int) and isinstance(warmup, int)):
        return
    if 0 < steps <= warmup < was:
        schedule["warmup"] = warmup * steps // was
        notice(f"schedule.warmup {schedule['warmup']}, was {warmup}: as large a part of {steps} steps as of {was}")


def _chooses_part(assignment: str) -> bool:
    key = assignment.partition("=")[0]
    return key in TABLES or key == "data.dataset" or key.endswith(".kind")


def from_mapping(mapping: Mapping[str, Any]) -> Preset:
    """Check a mapping of plain types, of this version or before, and make a preset of it.

    InputError names the first key at fault.
    """
    try:
        return Preset.model_validate(migration.migrate(mapping))
    except ValidationError as error:
        raise _refusal(_flatten(error), mapping) from None


def to_mapping(preset: Preset) -> dict[str, Any]:
    """The preset as dicts, lists and scalars, every key present."""
    return preset.model_dump(mode="json")


def dump(preset: Preset) -> str:
    """The whole preset as YAML that load reads back to an equal preset."""
    return text.dump(to_mapping(preset))


def override(mapping: dict[str, Any], assignment: str) -> None:
    """Set one key of a preset mapping in place from "key=value"; a mapping of before gets today's keys first."""
    key, equals, word = assignment.partition("=")
    if not equals or not key:
        raise InputError(f"--set {assignment}", "KEY=VALUE expected", "write for example --set model.head.recurrence=1")
    current = migration.migrate(mapping)
    mapping.clear()
    mapping.update(current)
    known, new_term = _known_keys(mapping), re.fullmatch(r"loss\.\w+\.kind", key)
    groups = _groups(known)
    if key not in known and key not in groups and not new_term:
        raise _unknown(key, mapping)
    value = text.parse(word, f"--set {key}")
    if migration.translate(mapping, key, value, notice):
        return
    removed = value is None and (key.startswith("loss.") or key in OPTIONAL)
    if key in groups and key not in TABLES and not isinstance(value, Mapping) and not removed:
        raise _unknown(key, mapping)
    *sections, last = key.split(".")
    for count, section in enumerate(sections, start=1):
        if mapping.get(section) is None:
            mapping[section] = {} if ".".join(sections[:count]) in OPTIONAL else mapping.get(section, {})
        inner = mapping[section]
        if not isinstance(inner, dict):
            raise InputError(f"preset key {section}", "a group of keys expected", "see ccnet presets show quickstart")
        mapping = inner
    if last == "kind":
        choose_kind(mapping, ".".join(sections), value)
    mapping[last] = value


def differences(one: Preset, other: Preset) -> list[str]:
    """The dotted keys in which two presets differ, in the schema's order; of a part that only one has, its group."""
    both = dict.fromkeys([*keys(one), *keys(other)])
    return list(dict.fromkeys(_group(key, one, other) for key in both if value(one, key) != value(other, key)))


def _group(key: str, one: Preset, other: Preset) -> str:
    group = key.rpartition(".")[0]
    return group if group and None in (value(one, group), value(other, group)) else key


def value(preset: Preset, key: str) -> Any:
    """What a preset has under a dotted key, a mapping for a group; None where its parts have no such key."""
    inner: Any = preset
    for name in key.split("."):
        inner = inner.get(name) if isinstance(inner, Mapping) else getattr(inner, name, None)
    return inner.model_dump(mode="json") if isinstance(inner, BaseModel) else inner


def keys(preset: Preset) -> list[str]:
    """Every dotted key of a preset, sections left out, in the schema's order."""
    return list(_leaves(preset, ""))


def _leaves(inner: Any, prefix: str) -> Iterator[str]:
    if isinstance(inner, BaseModel):
        inner = {name: getattr(inner, name) for name in type(inner).model_fields}
    if isinstance(inner, Mapping):
        for name, value in inner.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix


def _known_keys(mapping: Mapping[str, Any]) -> list[str]:
    """Every dotted key that a preset with this mapping's parts can have, those of before version 0.2 last."""
    known = list(_fields(Preset, "", mapping))
    return [*known, *(key for key in migration.OLD_KEYS if key not in known)]


def _fields(section: type[Section], prefix: str, mapping: Any) -> Iterator[str]:
    mapping = mapping if isinstance(mapping, Mapping) else {}
    for name, field in section.model_fields.items():
        key, inner = prefix + name, mapping.get(name)
        if key in TABLES:
            yield from _part_fields(TABLES[key], key, inner if isinstance(inner, Mapping) else {"kind": inner})
        elif key == "loss":
            terms = {**{name: {"kind": name} for name in LOSSES}, **(inner if isinstance(inner, Mapping) else {})}
            for name, term in terms.items():
                kind = term.get("kind", name) if isinstance(term, Mapping) else name
                yield from _part_fields(LOSSES, f"loss.{name}", {"kind": kind})
        elif key == "data":
            data = inner if isinstance(inner, Mapping) else {}
            yield from _fields(settings_of(data.get("dataset")), "data.", data)
        elif own := next((each for each in _alternatives(field.annotation) if issubclass(each, Section)), None):
            yield from _fields(own, f"{key}.", inner)
        else:
            yield key


def _alternatives(annotation: Any) -> list[type]:
    """The classes that a field's values may have: one, or those of a union."""
    return [each for each in (annotation, *get_args(annotation)) if isinstance(each, type) and not get_args(each)]


def _part_fields(table: Table, key: str, settings: Mapping[str, Any]) -> Iterator[str]:
    kind = settings.get("kind")
    if not isinstance(kind, str) or kind not in table:
        # the part that most presets have, to find what was meant
        kind = "resnet101" if key == "model.backbone" else "fcn" if key == "model.auxiliary" else next(iter(table))
    yield f"{key}.kind"
    yield from (f"{key}.{name}" for name in table[kind].settings.model_fields if name != "kind")


def _groups(known: Sequence[str]) -> set[str]:
    """The keys that have others below them."""
    return {".".join(parts[:count]) for key in known for parts in [key.split(".")] for count in range(1, len(parts))}


def _unknown(key: str, mapping: Mapping[str, Any]) -> InputError:
    known = _known_keys(mapping)
    inside = [known_key for known_key in known if known_key.startswith(f"{key}.")]
    if inside:
        return InputError(f"preset key {key}", "a group of keys, not a value", f"set one of {', '.join(inside)}")
    leaves = {known_key.rpartition(".")[2]: known_key for known_key in reversed(known)}
    last = key.rpartition(".")[2]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    near = near or [leaves[word] for word in (last,) if word in leaves]
    near = near or [SYNONYMS[word] for word in difflib.get_close_matches(last, SYNONYMS, n=1, cutoff=0.75)]
    near = near or [leaves[word] for word in difflib.get_close_matches(last, leaves, n=1, cutoff=0.6)]
    fix = f"did you mean {near[0]}?" if near else "see every key with ccnet presets show quickstart"
    return UnknownKeyError(f"preset key {key}", "unknown", fix)


def _flatten(error: ValidationError) -> list[dict[str, Any]]:
    """All that pydantic refused, the errors of a part under the key that holds it."""
    flat: list[dict[str, Any]] = []
    for each in error.errors(include_url=False):
        cause = each.get("ctx", {}).get("error")
        if isinstance(cause, PartError):
            flat += [inner | {"loc": (*each["loc"], *inner["loc"])} for inner in cause.errors]
        else:
            flat.append(dict(each))
    return flat


def _refusal(errors: Sequence[dict[str, Any]], mapping: Mapping[str, Any]) -> InputError:
    """The first thing pydantic refused, in this project's words."""
    # a misspelt key is reported as missing too: name the spelling
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(location, mapping)
    # the key itself, without the position in its list
    key = ".".join(part for part in first["loc"] if isinstance(part, str))
    if first["type"] == "missing" and key == location:
        return InputError(f"preset key {key}", "missing", "add it, or start from ccnet presets copy quickstart FILE")
    why = _WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    refused = first["input"]
    if not isinstance(refused, Mapping | BaseModel) and first["type"] != "missing":
        why += f", found {'null' if refused is None else str(refused)[:60]}"
    known = key in _known_keys(migration.migrate(mapping))
    fix = f"correct it in the file or with --set {key}=VALUE" if known else "correct the file or use --set"
    return InputError(f"preset key {location}" if location else "preset", why, fix)


_WORDS = {
    "string_pattern_mismatch": "control characters are not allowed",
    "too_short": "too few values",
    "too_long": "too many values",
    "missing": "a value is missing",
    "string_too_short": "must not be empty",
    "string_type": "must be text (put it in quotes)",
}
