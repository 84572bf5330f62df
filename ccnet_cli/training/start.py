"""With which weights a run begins, and what of the preset follows them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ccnet_cli import config
from ccnet_cli.datasets import classes_of
from ccnet_cli.errors import InputError, notice
from ccnet_cli.training.plan import Plan
from ccnet_cli.weights.find import find_weights
from ccnet_cli.weights.load import Start, check_start, read_facts, read_start
from ccnet_cli.weights.presets import adopt_input


def begin(plan: Plan, content: dict[str, Any] | None) -> tuple[Plan, Start | None]:
    """The plan with the weights that it begins with and the input that follows them, and these weights, read.

    content is that of the checkpoint to resume from; its run keeps the input that it began with.
    """
    request, preset = plan.request, plan.preset
    named = request.weights is None and not plan.resume
    weights = choose(preset, request.require_weights) if named else request.weights
    if weights is None:
        if content is not None and plan.resume is not None and content.get("origin"):
            before = config.to_mapping(read_facts(content, plan.resume).preset)["model"]
            preset = adopt_input(preset, {key: before[key] for key in before if key != "head"}, request.chosen)
        return replace(plan, preset=preset), None
    try:
        start = read_start(weights, request.partial)
        trained = start.foreign.model
        own = named or str(request.weights) == preset.train.weights
        # a recipe knows its own file, of which another generation may have come
        kept = ("model.mean",) if own and trained.get("std") == list(preset.model.std) else ()
        preset = adopt_input(preset, trained, (*request.chosen, *kept), str(start.path))
        check_start(start, preset.model, len(classes_of(preset.data)))
    except InputError as error:
        raise _without(error) if named else error from None
    return replace(plan, preset=preset, request=replace(request, weights=start.path)), start


def choose(preset: config.Preset, require: bool = False) -> Path | None:
    """The file that the recipe begins with, None where it names none; where it is not there, a notice or, if required,
    an InputError."""
    name = preset.train.weights
    if name is None:
        return None
    try:
        path = find_weights(Path(name))
        if not path.exists():
            raise InputError(f"weights {name}", "neither a file nor known", "see ccnet weights list")
    except InputError as error:
        if require:
            raise
        notice(f"preset {preset.name}: beginning from scratch: {error}, to begin as the recipe does")
        return None
    return path


def _without(error: InputError) -> InputError:
    return InputError(error.what, error.why, f"{error.fix}, or begin without the recipe's by -s train.weights=null")
