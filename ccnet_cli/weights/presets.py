"""Presets for other people's weights, and in which keys two networks differ."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ccnet_cli import config
from ccnet_cli.datasets import known_classes
from ccnet_cli.errors import notice
from ccnet_cli.weights.layouts import Foreign

# for a data set, the preset whose data and evaluation fit
PRESETS = {"camvid": "camvid", "ade20k": "mmseg-r101-ade20k-512-160k", "voc": "mmseg-r101-voc-512-40k"}
PARTS = ("backbone", "head", "auxiliary")
_INPUT = {"model.channel_order", "model.mean", "model.std"}
_STEM = {"model.backbone.stem", "model.stem"}
# keys of the parts that change no weight's shape
SHAPELESS = (
    *("dilation", "pool", "stride", "multi_grid", "recurrence", "activation", "dropout", "implementation"),
    *("order", "dilations", "mode", "sub_sample", "pooled", "resize_first", "cell"),
)


def preset_for(foreign: Foreign, name: str | None = None, overrides: Sequence[str] = ()) -> config.Preset:
    """The preset to use a file with: the named one, or one inferred from it; then overrides, each "key=value"."""
    if name is not None:
        return config.load(name, overrides)
    dataset = _dataset(foreign)
    recipe = foreign.presets.get(dataset or "") or PRESETS.get(dataset or "", "cityscapes-r2-ohem")
    mapping = config.to_mapping(config.load(recipe))
    mapping |= {"name": "inferred", "description": foreign.what, "source": "", "published": None}
    for key, value in foreign.model.items():
        own = mapping["model"].get(key)
        same = isinstance(own, dict) and isinstance(value, dict) and own["kind"] == value["kind"]
        mapping["model"][key] = own | value if same else value
    if dataset is None and foreign.classes is not None:
        names = foreign.names or tuple(f"class {index}" for index in range(foreign.classes))
        palette = None if foreign.palette is None else [list(colour) for colour in foreign.palette]
        mapping["data"] |= {"dataset": "folder", "root": None, "classes": list(names), "palette": palette}
    elif dataset is not None and dataset != mapping["data"]["dataset"]:
        mapping["data"] |= {"dataset": dataset, "root": None}
    for text in overrides:
        config.override(mapping, text)
    return config.from_mapping(mapping)


def irreconcilable(trained: Mapping[str, Any], settings: config.Model) -> list[str]:
    """The keys in which a network was trained in another way than settings say, and weights cannot make up for it.

    A backbone alone says nothing about dilation, rounding and head: ImageNet networks are trained without any.
    """
    new = settings.model_dump(mode="json")
    keys = ["channel_order", "std"]
    if "head" in trained:
        keys += [f"backbone.{name}" for name in ("dilation", "pool", "stride", "multi_grid")] + ["head.activation"]
    differing = [f"model.{key}" for key in keys if _value(trained, key) not in (None, _value(new, key))]
    # recipes differ by a level or two, which training makes up for at once
    if any(abs(before - now) > 4 for before, now in zip(trained.get("mean", new["mean"]), new["mean"], strict=True)):
        differing.append("model.mean")
    return differing


def adopt_input(
    preset: config.Preset, trained: Mapping[str, Any], chosen: Collection[str] = (), source: str = ""
) -> config.Preset:
    """A preset with the stem and the input of the backbone that a training begins with, unless they are chosen.

    trained says what is known of that network; one with a head stays as it is. A notice names what follows source.
    """
    own = preset.model.model_dump(mode="json")
    if "head" in trained or not trained:
        return preset
    if any(not key.startswith("model.backbone.stem=") for key in other_shapes(trained, preset.model)):
        # of another network, it will be refused
        return preset
    keys = [] if _INPUT & set(chosen) else [key for key in irreconcilable(trained, preset.model) if key in _INPUT]
    stem = _value(trained, "backbone.stem")
    if stem not in (None, _value(own, "backbone.stem")) and "stem" in own["backbone"] and not _STEM & set(chosen):
        keys.append("model.backbone.stem")
    if not keys:
        return preset
    values = {key: _value(trained, key.removeprefix("model.")) for key in keys}
    if source:
        notice(f"{source}: with it come {', '.join(f'{key}={json.dumps(value)}' for key, value in values.items())}")
    mapping = config.to_mapping(preset)
    for key, value in values.items():
        config.override(mapping, f"{key}={json.dumps(value)}")
    return config.from_mapping(mapping)


def other_shapes(trained: Mapping[str, Any], settings: config.Model) -> list[str]:
    """The keys, as KEY=VALUE, that settings would need for a network's weights to fit."""
    new = dict(_shapes(settings.model_dump(mode="json")))
    return [f"model.{key}={value}" for key, value in _shapes(trained) if value != new.get(key, value)]


def _shapes(model: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The parts' keys that shapes depend on, and their values."""
    for part in PARTS:
        settings = model.get(part) or {}
        for name, value in settings.items():
            if name == "query_channels" and value is None:
                value = max(settings["channels"] // 8, 1)
            if name not in SHAPELESS:
                yield f"{part}.{name}", value


def _value(model: Mapping[str, Any], key: str) -> Any:
    """What a section model has under a dotted key, None where it has no such key."""
    part, _, name = key.rpartition(".")
    return ((model.get(part) if part else model) or {}).get(name)


def _dataset(foreign: Foreign) -> str | None:
    """The data set whose classes the file has, by their names, or by their number where it holds no names."""
    for name, classes in known_classes().items():
        same = foreign.names is None or [_letters(n) for n in foreign.names] == [_letters(n) for n in classes.names]
        if len(classes) == foreign.classes and same:
            return name
    return None


def _letters(name: str) -> str:
    """A class's name without what spellings differ in: Left-arm and left arm are one."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())
