"""What a run is: the preset's schema, and how a preset is found, overridden, checked and written."""

from ccnet_cli.config.library import MAX_FILE_BYTES, describe, find, folder, names, source
from ccnet_cli.config.presets import (
    UnknownKeyError,
    differences,
    dump,
    from_mapping,
    keys,
    load,
    override,
    to_mapping,
    value,
)
from ccnet_cli.config.schema import Checkpoint, Eval, Log, Preset, Schedule, Train
from ccnet_cli.datasets import Data
from ccnet_cli.models.settings import Model

__all__ = [
    "MAX_FILE_BYTES",
    "Checkpoint",
    "Data",
    "Eval",
    "Log",
    "Model",
    "Preset",
    "Schedule",
    "Train",
    "UnknownKeyError",
    "describe",
    "differences",
    "dump",
    "find",
    "folder",
    "from_mapping",
    "keys",
    "load",
    "names",
    "override",
    "source",
    "to_mapping",
    "value",
]
