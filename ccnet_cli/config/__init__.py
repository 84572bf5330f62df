"""What a run is: the preset's schema, and how a preset is found, overridden, checked and written.

A name is loaded where it is used, as the names of presets need no schema.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccnet_cli.config.library import MAX_FILE_BYTES, find, source
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
    from ccnet_cli.config.shipped import describe, folder, names
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

_MODULES = {
    **dict.fromkeys(("describe", "folder", "names"), "ccnet_cli.config.shipped"),
    **dict.fromkeys(("MAX_FILE_BYTES", "find", "source"), "ccnet_cli.config.library"),
    **dict.fromkeys(("Checkpoint", "Eval", "Log", "Preset", "Schedule", "Train"), "ccnet_cli.config.schema"),
    "Data": "ccnet_cli.datasets",
    "Model": "ccnet_cli.models.settings",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    return getattr(import_module(_MODULES.get(name, "ccnet_cli.config.presets")), name)
