"""What each field of a checkpoint must be: a file whose hash is right may still have been written by something else."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccnet_cli.errors import InputError

# what the format number of this version's checkpoints, manifests and ONNX facts is
FORMAT = 1
# steps, epochs and images of a run are fewer
MAX_COUNT = 1 << 40
FIX = "use an earlier checkpoint"

# what a value must be, in words, and whether it is
Kind = tuple[str, Callable[[Any], bool]]
# a field's name, with ? for one that may be absent -> its kind, or the fields of a group
Fields = dict[str, "Kind | Fields"]


class UnsupportedError(InputError):
    """A file is not damaged, but needs something that is not here."""


class DamagedError(InputError):
    """The values in a file are not those that were written."""


class NewerVersionError(UnsupportedError):
    """A file was written by a newer version of ccnet."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, f"{why}: it is from a newer version of ccnet", "update ccnet-cli")
        self.args = (path, why)


def _is_int(value: Any, low: int = 0, high: int = MAX_COUNT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any, low: float = -1e30, high: float = 1e30) -> bool:
    right = isinstance(value, int | float) and not isinstance(value, bool)
    # a score of nothing is not a number
    return right and (low <= value <= high or value != value)


def _is_list(value: Any, check: Callable[[Any], bool], length: int | None = None) -> bool:
    right = isinstance(value, list | tuple) and length in (None, len(value))
    return right and all(check(item) for item in value)


def _is_mapping(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and check(item) for key, item in value.items())


def _is_bytes(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 1


def _is_random_state(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_bytes(value.get("torch")):
        return False
    cuda, python, numpy = value.get("cuda"), value.get("python"), value.get("numpy", ["", [], 0, 0, 0.0])
    sound = (cuda is None or _is_bytes(cuda)) and isinstance(python, tuple) and len(python) == 3
    return sound and _is_list(numpy, lambda item: isinstance(item, str | list | int | float), 5)


def _is_losses(value: Any) -> bool:
    # those of a step that was skipped are not finite
    return _is_mapping(value, lambda item: isinstance(item, float))


def _is_weights(value: Any) -> bool:
    return _is_mapping(value, lambda item: isinstance(item, Tensor)) and bool(value)


TEXT: Kind = ("text", lambda value: isinstance(value, str))
FLAG: Kind = ("true or false", lambda value: isinstance(value, bool))
COUNT: Kind = (f"a whole number from 0 to {MAX_COUNT}", _is_int)
POSITIVE: Kind = (f"a whole number from 1 to {MAX_COUNT}", lambda value: _is_int(value, 1))
WEIGHTS: Kind = ("tensors by their names", _is_weights)
GROUP: Kind = ("a group of keys", lambda value: _is_mapping(value, lambda item: True))
BYTES: Kind = ("whole numbers from 0 to 255", lambda value: _is_list(value, lambda item: _is_int(item, 0, 255)))

FIELDS: Fields = {
    "format": POSITIVE,
    "model": WEIGHTS,
    "preset": GROUP,
    "classes": {
        "names": ("a list of texts", lambda value: _is_list(value, lambda item: isinstance(item, str))),
        "palette": ("a list of colours", lambda value: _is_list(value, lambda item: _is_list(item, _is_byte, 3))),
        "label_ids": BYTES,
        "mirrored?": ("pairs of classes", lambda value: _is_list(value, lambda item: _is_list(item, _is_byte, 2))),
    },
    "step": COUNT,
    "metrics": ("numbers by their names", lambda value: _is_mapping(value, _is_number)),
    "origin?": TEXT,
    "choices?": ("texts by their names", lambda value: _is_mapping(value, lambda item: isinstance(item, str))),
}
MANIFEST: Fields = {
    "step": COUNT,
    "bytes": COUNT,
    "sha256": ("64 hexadecimal digits", lambda value: isinstance(value, str) and len(value) == 64),
}
OPTIMIZER: Fields = {
    "state": ("a group of keys", lambda value: isinstance(value, dict)),
    "param_groups": (
        "a list of groups of keys",
        lambda value: bool(value) and _is_list(value, lambda item: isinstance(item, dict)),
    ),
}
TRAINING: Fields = {
    "model": ("tensors by their names, or null", lambda value: value is None or _is_weights(value)),
    "optimizer": OPTIMIZER,
    "scaler": ("numbers by their names", lambda value: _is_mapping(value, lambda item: _is_number(item, 0, 1e30))),
    "best": ("a number from -1 to 1", lambda value: _is_number(value, -1, 1) and value == value),
    "best_step?": ("a whole number from -1 on", lambda value: _is_int(value, -1)),
    "epoch?": COUNT,
    "offset?": COUNT,
    "nonfinite?": COUNT,
    "unlogged?": ("a list of numbers by their names", lambda value: _is_list(value, _is_losses)),
    "random": ("a list of states of random numbers", lambda value: bool(value) and _is_list(value, _is_random_state)),
    "circumstances?": {
        **dict.fromkeys(("world_size?", "global_batch?", "num_threads?"), POSITIVE),
        **dict.fromkeys(
            ("precision?", "device?", "float32_matmul?", "torch?", "numpy?", "config_sha256?", "list_sha256?"), TEXT
        ),
        "deterministic?": FLAG,
        "cudnn?": ("three times true or false", lambda value: _is_list(value, lambda item: isinstance(item, bool), 3)),
        "cuda?": ("text or null", lambda value: value is None or isinstance(value, str)),
    },
    "objective?": GROUP,
    "patience?": {
        "best": ("a number from -1 to 1", lambda value: _is_number(value, -1, 1) and value == value),
        **dict.fromkeys(("best_step", "waited", "last_step"), COUNT),
    },
}


def _is_byte(value: Any) -> bool:
    return _is_int(value, 0, 255)


def check_fields(content: Mapping[str, Any], path: Path, resumable: bool = False) -> None:
    """InputError, which names the field, for a checkpoint whose fields are not what they must be.

    A resumable one has what a run needs to continue.
    """
    check_format(content.get("format"), path)
    has_training = resumable or content.get("training") is not None
    for problem in _problems(content, FIELDS | ({"training": TRAINING} if has_training else {}), ""):
        raise InputError(path, f"its configuration is damaged (field {problem})", FIX)


def check_resumable(content: Mapping[str, Any], path: Path) -> None:
    """As check_fields, for one from which a run is to continue."""
    check_fields(content, path, resumable=True)


def check_manifest(record: Mapping[str, Any], step: int | None, path: Path) -> None:
    """InputError, which names the field, for a checkpoint's manifest, of this step if its name says so."""
    check_format(record.get("format"), path)
    for problem in _problems(record, MANIFEST, ""):
        raise InputError(path, f"damaged manifest (field {problem})", FIX)
    if step not in (None, record["step"]):
        raise InputError(path, f"damaged manifest (field step is not the {step} of its name)", FIX)


def check_facts(facts: Mapping[str, Any], path: Path) -> None:
    """As check_fields, for what an ONNX file says of its network."""
    check_format(facts.get("format"), path)
    fields = {name: kind for name, kind in FIELDS.items() if name not in ("model", "choices?")}
    for problem in _problems(facts, fields | {"stride?": POSITIVE}, ""):
        raise InputError(path, f"its configuration is damaged (field {problem})", "export it again")


def check_format(value: Any, path: Path) -> None:
    """NewerVersionError for a format number above this version's, InputError for one that never was."""
    if isinstance(value, int) and not isinstance(value, bool) and value > FORMAT:
        raise NewerVersionError(path, f"format {_shown(value)}, this version reads {FORMAT}")
    if not _is_int(value, FORMAT, FORMAT):
        why = f"its configuration is damaged (field format is wrong: format {_shown(value)}, not {FORMAT})"
        raise InputError(path, why, FIX)


def _problems(content: Any, fields: Fields, prefix: str) -> Iterator[str]:
    for name, kind in fields.items():
        key = name.removesuffix("?")
        if key not in content:
            if key == name:
                yield f"{prefix}{key} is missing"
        elif isinstance(kind, dict):
            if isinstance(content[key], dict):
                yield from _problems(content[key], kind, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key} is {_shown(content[key])}, not a group of keys"
        elif not kind[1](content[key]):
            yield f"{prefix}{key} is {_shown(content[key])}, not {kind[0]}"


def _shown(value: Any) -> str:
    """A value in a message: short, and without the digits of a huge number, which Python refuses to print."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    if isinstance(value, str | int | float | None):
        return repr(value)[:40]
    return f"a {type(value).__name__}"
