"""Preset keys of before version 0.2: the one place that knows them.

Until then a preset's `model` was flat, its backbone a name, its auxiliary head a flag, and `loss` had fixed keys. Old
mappings are rewritten by `migrate`, old keys of `--set` by `translate`.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

# old key of the section model -> the parts that have it now, and its name there
MODEL: dict[str, tuple[tuple[str, str], ...]] = {
    "width": (("backbone", "width"),),
    "stem": (("backbone", "stem"),),
    "dilation": (("backbone", "dilation"),),
    "pool": (("backbone", "pool"),),
    "recurrence": (("head", "recurrence"),),
    "channels": (("head", "channels"),),
    "query_channels": (("head", "query_channels"),),
    "activation": (("head", "activation"), ("auxiliary", "activation")),
    "dropout": (("head", "dropout"), ("auxiliary", "dropout")),
    "implementation": (("head", "implementation"),),
    "auxiliary_channels": (("auxiliary", "channels"),),
    "auxiliary_bias": (("auxiliary", "bias"),),
}
OLD_KEYS = (*(f"model.{key}" for key in MODEL), "loss.average", "loss.ohem.enabled")
# keys that the tiny backbone never had; old presets name them all
NOT_TINY = ("stem", "dilation", "pool", "stride", "multi_grid")


def migrate(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's mapping with today's keys; one that has them already is copied, what is no mapping is left alone."""
    new = copy.deepcopy(dict(mapping))
    if isinstance(new.get("model"), dict):
        new["model"] = _model(new["model"])
    auxiliary = not isinstance(new.get("model"), dict) or new["model"].get("auxiliary", {}) is not None
    if new.get("loss") is None or isinstance(new["loss"], dict):
        new["loss"] = _loss(new.get("loss") or {}, auxiliary)
    return new


def _model(model: dict[str, Any]) -> dict[str, Any]:
    """The section model; its old keys go to the parts that have them."""
    old = {key: model.pop(key) for key in MODEL if key in model}
    if isinstance(model.get("backbone"), str):
        model["backbone"] = {"kind": model["backbone"]}
    auxiliary = model.get("auxiliary")
    if isinstance(auxiliary, bool):
        model["auxiliary"] = {"kind": "fcn"} if auxiliary else None
    for key, value in old.items():
        for part, name in MODEL[key]:
            settings = model.setdefault(part, {"kind": {"head": "rcca", "auxiliary": "fcn"}.get(part)})
            if isinstance(settings, dict):
                settings.setdefault(name, value)
    backbone = model.get("backbone")
    if old and isinstance(backbone, dict) and backbone.get("kind") == "tiny":
        for name in NOT_TINY:
            backbone.pop(name, None)
    return model


def _loss(loss: dict[str, Any], auxiliary: bool) -> dict[str, Any]:
    """The section loss; auxiliary is whether the network has such a head: without it, its term has nothing to weigh."""
    loss, average = dict(loss), loss.get("average")
    ohem = loss.get("ohem")
    if isinstance(average, str) or isinstance(loss.get("auxiliary"), int | float) or _switch(ohem) is not None:
        loss.pop("average", None)
        weight = loss.pop("auxiliary", 0.4)
        main = loss.pop("ohem", None) or {}
        kind = "ohem" if main.pop("enabled", False) else "cross_entropy"
        shared = {} if average is None else {"average": average}
        terms = {kind: {**(main if kind == "ohem" else {}), **shared}}
        second = weight if isinstance(weight, dict) else {"weight": weight}
        terms["auxiliary"] = {"kind": "cross_entropy", "output": "auxiliary", **shared, **second}
        loss = terms | loss
    if not loss:
        loss = {
            "cross_entropy": {},
            "auxiliary": {"kind": "cross_entropy", "output": "auxiliary", "weight": 0.4},
        }
    if not auxiliary:
        loss = {name: term for name, term in loss.items() if not _weighs_auxiliary(term)}
    return loss


def _switch(term: object) -> bool | None:
    """What the old flag loss.ohem.enabled says, None where a term has none."""
    enabled = term.get("enabled") if isinstance(term, dict) else None
    return enabled if isinstance(enabled, bool) else None


def _weighs_auxiliary(term: object) -> bool:
    return isinstance(term, dict) and term.get("output") == "auxiliary"


def translate(mapping: dict[str, Any], key: str, value: object, announce: Callable[[str], None]) -> bool:
    """Set an old key, or one that now has a group of keys below it, in a migrated mapping; False for any other key.

    announce gets a line where the value has nothing to act on.
    """
    section, _, name = key.partition(".")
    inner = mapping.setdefault(section, {}) if section in ("model", "loss") else None
    if not isinstance(inner, dict):
        return False
    if section == "model" and name in MODEL:
        targets = [(inner.setdefault(part, _default(part)), own) for part, own in MODEL[name]]
        taken = [(part, own) for part, own in targets if isinstance(part, dict) and _has(part, own)]
        for part, own in taken:
            part[own] = value
        if not taken:
            announce(f"preset key {key}: has no effect on this network")
        return True
    current = inner.get(name)
    if key == "model.backbone" and isinstance(value, str) and isinstance(current, dict):
        current["kind"] = value
        for own in NOT_TINY if value == "tiny" else ():
            current.pop(own, None)
        return True
    if key == "model.auxiliary" and isinstance(value, bool):
        head = inner.get("head") or {}
        # the keys of before were those of both heads
        common = {own: head[own] for own in ("activation", "dropout") if own in head}
        inner[name] = (current or {"kind": "fcn"} | common) if value else None
        if value and isinstance(mapping.get("loss"), dict):
            term = {"kind": "cross_entropy", "output": "auxiliary", "weight": 0.4}
            mapping["loss"].setdefault("auxiliary", term)
        return True
    return section == "loss" and _translate_loss(inner, name, value)


def _translate_loss(loss: dict[str, Any], name: str, value: object) -> bool:
    if name == "average":
        for term in loss.values():
            if isinstance(term, dict):
                term["average"] = value
    elif name == "ohem.enabled" and isinstance(value, bool):
        before, after = ("cross_entropy", "ohem") if value else ("ohem", "cross_entropy")
        old = loss.pop(before, {})
        kept = {key: old[key] for key in ("average", "weight") if key in old}
        main = {after: kept | loss.pop(after, {})}
        others = dict(loss)
        loss.clear()
        loss.update(main | others)
    elif name == "auxiliary" and isinstance(value, int | float) and not isinstance(value, bool):
        term = loss.get(name) or {"kind": "cross_entropy", "output": "auxiliary"}
        loss[name] = term | {"weight": value}
    else:
        return False
    return True


def _default(part: str) -> dict[str, Any]:
    return {"kind": {"head": "rcca", "auxiliary": "fcn"}.get(part, "")}


def _has(part: Mapping[str, Any], key: str) -> bool:
    """Whether a part of the kinds of before has the key; parts that came later say so themselves when they are read."""
    return not (part.get("kind") == "tiny" and key in NOT_TINY)
