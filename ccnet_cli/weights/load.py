"""From a file to a model: a checkpoint of ours, or other people's weights as if they were one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccnet_cli import config, datasets
from ccnet_cli.config import migration
from ccnet_cli.errors import InputError, notice
from ccnet_cli.media.classes import Classes
from ccnet_cli.models.network import CCNet, build, build_unfilled
from ccnet_cli.parts import UnknownPart
from ccnet_cli.runs import checkpoint
from ccnet_cli.runs.fields import NewerVersionError, UnsupportedError, check_fields
from ccnet_cli.weights.find import find_weights
from ccnet_cli.weights.layouts import Foreign
from ccnet_cli.weights.pairs import read_any
from ccnet_cli.weights.presets import irreconcilable, other_shapes, preset_for
from ccnet_cli.weights.recognise import recognise

# the fraction of the backbone's weights that must fit where the rest need not
MIN_BACKBONE = 0.95
# heads and what belongs to them, by the first words of a weight's name
OPTIONAL_PARTS = ("head.rcca.", "auxiliary.")


@dataclass(frozen=True)
class Facts:
    """What an artifact says of its model; metrics are those of its last evaluation, origin where it comes from."""

    preset: config.Preset
    classes: Classes
    step: int
    metrics: dict[str, float]
    origin: str


@dataclass(frozen=True)
class Weights:
    """A file's content in the form of a checkpoint of ours, and the network if it had to be built to read it."""

    path: Path
    content: dict[str, Any]
    network: CCNet | None = None

    def facts(self) -> Facts:
        """Preset, classes, step and metrics; InputError if they are damaged, or name a part that is not known here."""
        return read_facts(self.content, self.path)

    def build(self, facts: Facts) -> CCNet:
        """The network in evaluation mode on the CPU; InputError if the weights do not fit."""
        if self.network is not None:
            network = self.network
        else:
            network = build_unfilled(facts.preset.model, len(facts.classes))
            load_weights(network, self.content["model"], self.path, take=True)
        network.labelled = facts.preset.data.labelled
        return network.eval()


@dataclass(frozen=True)
class Start:
    """A file's weights to start a training with; partial is whether some of the model's may be missing there."""

    path: Path
    foreign: Foreign
    partial: bool


def read_weights(
    path: Path, preset: str | None = None, overrides: Sequence[str] = (), headless: bool = True
) -> Weights:
    """Read a checkpoint of ours, or other people's weights; a notice says what the latter are.

    preset, a name or a file, replaces the one that the file holds or suggests; overrides ("key=value") come last. A
    backbone alone gets a new head, or is an InputError unless headless.
    """
    content = read_any(path)
    if checkpoint.is_checkpoint(content):
        check_fields(content, path)
        mapping = config.to_mapping(config.load(preset)) if preset else content["preset"]
        for text in overrides:
            config.override(mapping, text)
        return Weights(path, content | {"preset": mapping})
    foreign = recognise(content, path)
    if foreign.classes is None and not headless:
        why = f"{foreign.what}, a backbone without a head: its scores would mean nothing"
        raise InputError(path, why, "train with it first (ccnet train --weights)")
    settings = preset_for(foreign, preset, overrides)
    classes = datasets.classes_of(settings.data)
    if foreign.classes is not None and len(classes) != foreign.classes:
        why = f"has {foreign.classes} classes, preset {settings.name} {len(classes)}"
        raise InputError(path, why, "choose a --preset with as many classes")
    network = build(settings.model, len(classes))
    start = Start(path, foreign, foreign.classes is None)
    state = network.state_dict() | fitting_weights(network.state_dict(), start, settings.model)
    network.load_state_dict(state)
    notice(f"{path}: {foreign}" + ("" if foreign.classes else "; its head is new: the scores mean nothing yet"))
    content = {
        "format": checkpoint.FORMAT,
        "model": state,
        "preset": config.to_mapping(settings),
        "classes": classes.to_mapping(),
        "step": 0,
        "metrics": {},
        "origin": f"{path.name}: {foreign}",
    }
    return Weights(path, content, network)


def read_facts(content: Mapping[str, Any], path: Path) -> Facts:
    """The facts in a checkpoint's content; InputError if they are damaged, or name a part that is not known here."""
    try:
        preset = _read_preset(content["preset"], path)
        classes = Classes.from_mapping(content["classes"])
        metrics = {key: float(value) for key, value in content["metrics"].items()}
        return Facts(preset, classes, int(content["step"]), metrics, str(content.get("origin", "")))
    except UnknownPart as error:
        raise needs_part(path, error) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged_facts(path, error) from None


def _read_preset(mapping: Mapping[str, Any], path: Path) -> config.Preset:
    """The preset that a file holds; UnknownPart, and NewerVersionError for a key that this version does not know."""
    try:
        return config.from_mapping(mapping)
    except config.UnknownKeyError as error:
        raise NewerVersionError(path, f"its {error.what} is not known to this version") from None


def needs_part(path: Path, error: UnknownPart) -> InputError:
    """The error of a file whose preset names a part that is not known here."""
    section, part, *_ = error.key.split(".")
    last = error.key.rpartition(".")[2]
    kind = last if last == "implementation" else section if section == "loss" else part
    kind = {"auxiliary": "head", "dataset": "data set"}.get(kind, kind)
    why = f"needs {kind} {error.kind}, which is not known here"
    return UnsupportedError(path, why, "give the file that defines it with --extend FILE")


def damaged_facts(path: Path, error: Exception) -> InputError:
    """The error of a file whose facts are not as they were written."""
    return InputError(path, f"its configuration is damaged ({error})", "use an earlier checkpoint")


def load_weights(network: CCNet, state: dict[str, Tensor], path: Path, take: bool = False) -> None:
    """Copy weights into the network, or take them themselves, every one; InputError says what does not fit."""
    own = network.state_dict()
    fitting = fitting_weights(own, Start(path, Foreign("", {}, state), partial=False))
    for key, weight in fitting.items():
        # other strides than a network is built with give other bits, and a part of a larger tensor holds all of it
        is_part = weight.untyped_storage().nbytes() != weight.nbytes
        if is_part or (weight.dtype, weight.stride()) != (own[key].dtype, own[key].stride()):
            fitting[key] = own[key].copy_(weight)
    network.load_state_dict(fitting, assign=take)


def read_start(path: Path, partial: bool = False) -> Start:
    """The weights of a file, ours or other people's, to start a training with.

    partial lets weights be missing or of another shape, as long as 95 % of the backbone fits; a backbone's file always
    leaves the head as it is.
    """
    path = find_weights(path)
    content = read_any(path)
    if checkpoint.is_checkpoint(content):
        check_fields(content, path)
        try:
            preset = config.to_mapping(_read_preset(content["preset"], path))
        except UnknownPart:
            # parts other than the network's may be missing here
            preset = migration.migrate(content["preset"])
        name, model = preset.get("name"), preset.get("model")
        if not isinstance(model, dict):
            raise damaged_facts(path, ValueError("it has no model"))
        return Start(path, Foreign(f"a checkpoint of {name}", model, content["model"]), partial)
    foreign = recognise(content, path)
    return Start(path, foreign, partial or foreign.classes is None)


def check_start(start: Start, settings: config.Model, classes: int) -> None:
    """InputError unless a network of these settings can start with the weights; a notice says with how many."""
    with torch.device("meta"):
        own = build_unfilled(settings, classes).state_dict()
    fitting = fitting_weights(own, start, settings)
    notice(f"beginning with {len(fitting)} of {len(own)} weights from {start.path}: {start.foreign}")


def initialize_from(network: CCNet, start: Start, settings: config.Model) -> str:
    """Copy weights into a network that is to be trained, and say where they come from; InputError if they do not fit.

    A warning names what they were trained with in another way than these settings.
    """
    own = network.state_dict()
    network.load_state_dict(own | fitting_weights(own, start, settings))
    keys = irreconcilable(start.foreign.model, settings)
    if keys:
        notice(f"warning: {start.path} was trained with other values of {', '.join(keys)}")
    return f"{start.path.name}: {start.foreign}"


def fitting_weights(own: dict[str, Tensor], start: Start, settings: config.Model | None = None) -> dict[str, Tensor]:
    """The weights that a network with the state dict `own` takes from a file; InputError unless all of them fit.

    Parts that the network was built without, attention or auxiliary head, may be left over, and counts of batches may
    be missing. Where the start is partial, weights may be missing or of another shape, but for 95 % of the backbone's.
    settings are the network's: the error says which of them would fit.
    """
    path, foreign = start.path, start.foreign
    fitting, misfits = {}, []
    for key, tensor in own.items():
        theirs, name = foreign.weights.get(key), foreign.original_name(key)
        if theirs is None and key.endswith("num_batches_tracked"):
            fitting[key] = torch.zeros((), dtype=tensor.dtype)
        elif theirs is None:
            misfits.append(f"{name} is missing")
        elif theirs.shape != tensor.shape or theirs.is_floating_point() != tensor.is_floating_point():
            misfits.append(f"{name} is {tuple(theirs.shape)}, the model's is {tuple(tensor.shape)}")
        elif theirs.is_floating_point() and not theirs.isfinite().all():
            fix = "use weights of a training that did not fail, or an earlier checkpoint"
            raise InputError(path, f"weight {name} is not finite", fix)
        else:
            fitting[key] = theirs
    backbone = [key for key in own if key.startswith("backbone.")]
    usable = sum(key in fitting for key in backbone) >= MIN_BACKBONE * len(backbone)
    if start.partial and usable:
        return fitting
    absent = tuple(part for part in OPTIONAL_PARTS if not any(key.startswith(part) for key in own))
    surplus = [key for key in foreign.weights if key not in own and not key.startswith(absent)]
    misfits += [f"{foreign.original_name(key)} has no place in the model" for key in surplus]
    if misfits:
        rest = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        why = f"{len(misfits)} weights do not fit: {'; '.join(misfits[:3])}{rest}"
        others = [] if settings is None else other_shapes(foreign.model, settings)
        fix = f"set {', '.join(others)}" if others else "use the preset that it was trained with"
        if usable:
            fix += ", or begin a training with the rest of it by --allow-partial"
        raise InputError(path, why, fix)
    return fitting
