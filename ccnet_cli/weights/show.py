"""What a file of weights is, whoever wrote it, without building its network."""

from pathlib import Path
from typing import Any

from ccnet_cli import config
from ccnet_cli.runs import checkpoint
from ccnet_cli.weights import catalogue
from ccnet_cli.weights.load import read_facts
from ccnet_cli.weights.pairs import pair_at, read_any
from ccnet_cli.weights.presets import preset_for
from ccnet_cli.weights.recognise import recognise

INPUT = ("channel_order", "mean", "std", "align_corners")


def describe(path: Path) -> dict[str, Any]:
    """Kind, network, input, classes and the preset to use it with, and which file of the catalogue it is, if any."""
    content = read_any(path)
    pair = pair_at(path)
    sha256 = None if pair else catalogue.digest(path)
    own = checkpoint.is_checkpoint(content)
    classes: int | None
    if own:
        facts = read_facts(content, path)
        model = config.to_mapping(facts.preset)["model"]
        what, classes, preset = f"a checkpoint of {facts.preset.name}, step {facts.step}", len(facts.classes), None
        origin = facts.origin
    else:
        foreign = recognise(content, path)
        model, what, classes, origin = foreign.model, str(foreign), foreign.classes, ""
        preset = preset_for(foreign)
    weights = content["model"] if own else foreign.weights
    return {
        "file": str(path),
        "bytes": sum(file.stat().st_size for file in pair or [path]),
        "sha256": sha256,
        "catalogue": _name_of(path, sha256) if sha256 else None,
        "what": what,
        "origin": origin or None,
        "weights": sum(tensor.numel() for tensor in weights.values()),
        "backbone": model["backbone"],
        "head": model.get("head"),
        "input": {key: model[key] for key in INPUT if key in model},
        "classes": classes,
        "data": None if preset is None or classes is None else preset.data.dataset,
    }


def _name_of(path: Path, sha256: str) -> str | None:
    """The name in the catalogue of a file, by its place in the cache or its published hash."""
    own = catalogue.entry_of(path)
    entries = catalogue.read().entries.values()
    same = [own] if own else [entry for entry in entries if entry.sha256 and sha256.startswith(entry.sha256)]
    return same[0].name if same else None
