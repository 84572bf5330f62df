"""Data sets: DATASETS has them by name; source.py opens a split, training.py and sampling.py feed it to the network."""

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

from ccnet_cli.datasets import ade20k, camvid, cityscapes, cocostuff, folder, lip, voc
from ccnet_cli.datasets.dataset import DataSet, Split, holds
from ccnet_cli.datasets.listing import Samples, make_samples, pair
from ccnet_cli.datasets.settings import CITY, Data, FolderData, Toyscapes
from ccnet_cli.errors import InputError
from ccnet_cli.media.classes import Classes
from ccnet_cli.parts import late

__all__ = [
    "DATASETS",
    "Classes",
    "Data",
    "DataSet",
    "FolderData",
    "Samples",
    "Split",
    "classes_of",
    "holds",
    "known_classes",
    "make_samples",
    "pair",
    "recognise",
    "settings_of",
]

DATASETS: dict[str, DataSet] = {
    "cityscapes": cityscapes.DATASET,
    "camvid": camvid.DATASET,
    "ade20k": ade20k.DATASET,
    "voc": voc.DATASET,
    "lip": lip.DATASET,
    "cocostuff": cocostuff.DATASET,
    # built-in scenes, drawn in the layout of Cityscapes
    "toyscapes": dataclasses.replace(
        cityscapes.DATASET,
        settings=Toyscapes,
        root=late("ccnet_cli.datasets.toyscapes", "built_in"),
        recognise=holds((f"leftImg8bit/train/{CITY}",), (f"leftImg8bit/val/{CITY}",)),
    ),
    # built-in clips, in the same layout
    "toyclips": dataclasses.replace(
        cityscapes.DATASET,
        root=late("ccnet_cli.datasets.toyclips", "built_in"),
        recognise=holds((f"leftImg8bit_sequence/train/{CITY}",), (f"leftImg8bit_sequence/val/{CITY}",)),
    ),
    "folder": folder.DATASET,
}


def settings_of(name: object) -> type[Data]:
    """The class of a data set's settings; for an unknown name Data, which refuses it."""
    return DATASETS[name].settings if isinstance(name, str) and name in DATASETS else Data


def classes_of(data: Data) -> Classes:
    """Names, colours and label ids of a preset's classes, known without opening the data set."""
    own = DATASETS[data.dataset].classes
    if not isinstance(own, Classes):
        return own(data)
    if data.classes is not None and tuple(data.classes) != own.names:
        raise InputError("preset key data.classes", f"{data.dataset} has classes of its own", "remove the key")
    if data.palette is None:
        return own
    if len(data.palette) != len(own):
        why = f"has {len(data.palette)} colours for {len(own)} classes"
        raise InputError("preset key data.palette", why, "give one colour for each class")
    return dataclasses.replace(own, palette=tuple(data.palette))


def known_classes() -> dict[str, Classes]:
    """The classes of every data set that has classes of its own."""
    return {name: each.classes for name, each in DATASETS.items() if isinstance(each.classes, Classes)}


def recognise(folder: Path) -> str:
    """The name of the data set in a folder, by its folders; InputError if they are no known one's."""
    # the built-in ones, in the layout of Cityscapes, before it
    for name, dataset in reversed(DATASETS.items()):
        if dataset.recognise(folder):
            return name
    why = "holds no data set known by its folders" if folder.is_dir() else "is not a folder"
    raise InputError(
        f"folder {folder}", why, "name it with --dataset, or describe your own in a preset (--preset FILE)"
    )


def __getattr__(name: str) -> Any:
    if module := _MODULES.get(name):
        return getattr(import_module(f"ccnet_cli.datasets.{module}"), name)
    raise AttributeError(name)


_MODULES = {
    **dict.fromkeys(("Sample", "Source", "load_image", "load_label", "load_pair", "open_source"), "source"),
    **dict.fromkeys(("Augmentation", "Batch", "Item", "TrainingSet", "collate", "raise_worker_errors"), "training"),
    **dict.fromkeys(("to_device", "watch_workers"), "training"),
    **{"Batches": "sampling", "Report": "report", "check": "report"},
}
