"""From a file to a model: a checkpoint of ours, or weights of other people taken as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ccnet_cli import config, datasets
from ccnet_cli.config import migration
from ccnet_cli.errors import InputError, notice
from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.media.classes import Classes
from ccnet_cli.models.network import CCNet, Normalisation, build
from ccnet_cli.runs import checkpoint
from ccnet_cli.weights import layouts as weights

# of the backbone's weights, what must fit when the rest need not
PARTIAL = 0.95


@dataclass(frozen=True)
class Restored:
    """A model in evaluation mode, and what its checkpoint tells of it; metrics are those of its last evaluation."""

    model: CCNet | onnxfile.Network
    preset: config.Preset
    classes: Classes
    step: int
    path: Path
    metrics: dict[str, float]


def understand(
    path: Path, preset: str | None = None, overrides: Sequence[str] = (), headless: bool = True
) -> dict[str, Any]:
    """The content of a checkpoint of ours, or that of other people's weights as if ours; a notice tells what they are.

    preset, a name or a file, replaces the one that the file holds or suggests; overrides ("key=value") come last. A
    backbone alone gets a new head, or is an InputError unless headless.
    """
    content = checkpoint.read_any(path)
    if checkpoint.is_checkpoint(content):
        mapping = config.to_mapping(config.load(preset)) if preset else content["preset"]
        for text in overrides:
            config.override(mapping, text)
        return content | {"preset": mapping}
    found = weights.recognise(content, path)
    if found.classes is None and not headless:
        why = f"{found.what}, a backbone without a head: its scores would mean nothing"
        raise InputError(path, why, "train with it first (ccnet train --weights)")
    settings = weights.preset(found, preset, overrides)
    classes = datasets.classes_of(settings.data)
    if found.classes is not None and len(classes) != found.classes:
        why = f"has {found.classes} classes, preset {settings.name} {len(classes)}"
        raise InputError(path, why, "choose a --preset with as many classes")
    own = build(settings.model, len(classes)).state_dict()
    state = own | match(own, found, path, found.classes is None, settings.model)
    notice(f"{path}: {found}" + ("" if found.classes else "; its head is new: the scores mean nothing yet"))
    return {
        "format": checkpoint.FORMAT,
        "model": state,
        "preset": config.to_mapping(settings),
        "classes": classes.to_mapping(),
        "step": 0,
        "metrics": {},
        "origin": f"{path.name}: {found}",
    }


def restore(path: Path, preset: str | None = None, overrides: Sequence[str] = (), headless: bool = False) -> Restored:
    """The model of a checkpoint or of other people's weights, in evaluation mode on the CPU.

    The options are those of `understand`. InputError if the file is damaged, unknown, or does not fit them.
    """
    content = understand(path, preset, overrides, headless)
    settings, classes, step, metrics = _told(content, path)
    model = build(settings.model, len(classes))
    load_weights(model, content["model"], path)
    return Restored(model.eval(), settings, classes, step, path, metrics)


def runnable(path: Path, preset: str | None = None, overrides: Sequence[str] = ()) -> Restored:
    """As `restore`, and the network of an ONNX file that we wrote, of which only what lies around it may be overridden.

    ONNX Runtime runs that on whatever device its input lies.
    """
    if not onnx(path):
        return restore(path, preset, overrides)
    facts, content = onnxfile.read(path)
    try:
        model = dict(facts["preset"]["model"])
        mapping = facts["preset"] if preset is None else config.to_mapping(config.load(preset)) | {"model": model}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None
    for text in overrides:
        if text.startswith("model."):
            fix = "override it when you export the file (ccnet export -s)"
            raise InputError(f"--set {text}", "the network of an ONNX file stays as it is", fix)
        config.override(mapping, text)
    settings, classes, step, metrics = _told(facts | {"preset": mapping}, path)
    m = settings.model
    normalisation = Normalisation(m.channel_order, m.mean, m.std)
    network = onnxfile.Network(content, path, len(classes), normalisation, m.align_corners)
    return Restored(network.eval(), settings, classes, step, path, metrics)


def onnx(path: Path) -> bool:
    """Whether a checkpoint is an ONNX file, by its name."""
    return path.suffix.lower() == onnxfile.SUFFIX


def device(name: str, path: Path | None) -> str:
    """A device's name, but cpu for auto where an ONNX file that is named meets an ONNX Runtime that knows no GPU."""
    return "cpu" if name == "auto" and path and onnx(path) and not onnxfile.offers_cuda() else name


def precision(name: str, path: Path | None) -> str:
    """A precision's name, but fp32 for auto where an ONNX file is named, which is run in nothing else."""
    return "fp32" if name == "auto" and path and onnx(path) else name


def _told(content: Mapping[str, Any], path: Path) -> tuple[config.Preset, Classes, int, dict[str, float]]:
    """Preset, classes, step and metrics as a checkpoint tells them."""
    try:
        settings = config.from_mapping(content["preset"])
        classes = Classes.from_mapping(content["classes"])
        metrics = {key: float(value) for key, value in content["metrics"].items()}
        return settings, classes, int(content["step"]), metrics
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(path, f"its configuration is damaged ({error})", "use an earlier checkpoint")


def load_weights(model: CCNet, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copy weights into the model, every one of them; InputError tells what does not fit."""
    model.load_state_dict(match(model.state_dict(), weights.Foreign("", {}, state, ()), path))


def begin(model: CCNet, path: Path, settings: config.Model, partial: bool = False) -> str:
    """Copy a file's weights into a model that is to be trained, and tell where they are from.

    A backbone's file leaves the head as it is; so does partial with any weight that is missing or of another shape, as
    long as 95 % of the backbone fits. InputError for anything else that does not fit.
    """
    found, partial = _beginning(path, partial)
    own = model.state_dict()
    model.load_state_dict(own | match(own, found, path, partial, settings))
    unlike = weights.unlike(found.model, settings)
    if unlike:
        notice(f"warning: {path} was trained with other values of {', '.join(unlike)}")
    return f"{path.name}: {found}"


def check(path: Path, settings: config.Model, classes: int, partial: bool = False) -> None:
    """InputError unless `begin` can start a model of these settings and so many classes with the file."""
    found, partial = _beginning(path, partial)
    with torch.device("meta"):
        own = build(settings, classes).state_dict()
    fitting = match(own, found, path, partial, settings)
    notice(f"beginning with {len(fitting)} of {len(own)} weights from {path}: {found}")


def _beginning(path: Path, partial: bool) -> tuple[weights.Foreign, bool]:
    """What a file holds to begin with, and whether some of the model's weights may be missing there."""
    content = checkpoint.read_any(path)
    if checkpoint.is_checkpoint(content):
        preset = content["preset"]
        model = migration.flat(migration.migrate(preset)["model"])
        return weights.Foreign(f"a checkpoint of {preset['name']}", model, content["model"], ()), partial
    found = weights.recognise(content, path)
    return found, partial or found.classes is None


def match(
    own: dict[str, torch.Tensor],
    found: weights.Foreign,
    path: Path,
    partial: bool = False,
    settings: config.Model | None = None,
) -> dict[str, torch.Tensor]:
    """The weights that a model with the state dict `own` takes from a file; InputError unless all of them fit.

    Parts that the model was built without, attention or auxiliary head, may be left over, and counts of batches may be
    missing. partial lets weights be missing or of another shape, but for 95 % of the backbone's. settings are the
    model's: the error tells which of them would fit.
    """
    fitting, wrong = {}, []
    for key, tensor in own.items():
        given = found.weights.get(key)
        if given is None and key.endswith("num_batches_tracked"):
            fitting[key] = torch.zeros((), dtype=tensor.dtype)
        elif given is None:
            wrong.append(f"{found.theirs(key)} is missing")
        elif given.shape != tensor.shape or given.is_floating_point() != tensor.is_floating_point():
            wrong.append(f"{found.theirs(key)} is {tuple(given.shape)}, the model's is {tuple(tensor.shape)}")
        elif given.is_floating_point() and not given.isfinite().all():
            fix = "use weights of a training that did not fail, or an earlier checkpoint"
            raise InputError(path, f"weight {found.theirs(key)} is not finite", fix)
        else:
            fitting[key] = given
    backbone = [key for key in own if key.startswith("backbone.")]
    share = sum(key in fitting for key in backbone) / len(backbone)
    if partial and share >= PARTIAL:
        return fitting
    absent = tuple(part for part in ("head.rcca.", "auxiliary.") if not any(key.startswith(part) for key in own))
    surplus = [key for key in found.weights if key not in own and not key.startswith(absent)]
    wrong += [f"{found.theirs(key)} has no place in the model" for key in surplus]
    if wrong:
        rest = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        why = f"{len(wrong)} weights do not fit: {'; '.join(wrong[:3])}{rest}"
        other = [] if settings is None else weights.other_shapes(found.model, settings)
        fix = f"set {', '.join(other)}" if other else "use the preset that it was trained with"
        if share >= PARTIAL:
            fix += ", or begin a training with the rest of it by --allow-partial"
        raise InputError(path, why, fix)
    return fitting
