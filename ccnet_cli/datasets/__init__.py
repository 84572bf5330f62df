"""Data sets: open_source gives a split's samples and classes; Training and Batches feed them to the network."""

from importlib import import_module
from typing import Any

from ccnet_cli.datasets.settings import Data, FolderData

__all__ = ["DATASETS", "Data", "FolderData", "settings_of"]

DATASETS: dict[str, type[Data]] = {
    "cityscapes": Data,
    "camvid": Data,
    "ade20k": Data,
    "voc": Data,
    "lip": Data,
    "cocostuff": Data,
    "toyscapes": Data,
    "folder": FolderData,
}


def settings_of(name: object) -> type[Data]:
    """The class of a data set's settings; for an unknown name Data, which refuses it."""
    return DATASETS.get(name, Data) if isinstance(name, str) else Data


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module("ccnet_cli.datasets.opening"), name)
