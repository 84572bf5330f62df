"""Data sets: open_source gives a split's samples and classes; Training and Batches feed them to the network."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ccnet_cli import config
from ccnet_cli.datasets import ade20k, camvid, cityscapes, cocostuff, folder, lip, voc
from ccnet_cli.datasets.ade20k import open_ade20k
from ccnet_cli.datasets.camvid import open_camvid
from ccnet_cli.datasets.cityscapes import open_cityscapes
from ccnet_cli.datasets.cocostuff import open_cocostuff
from ccnet_cli.datasets.folder import open_folder
from ccnet_cli.datasets.lip import open_lip
from ccnet_cli.datasets.listing import complete, fingerprint
from ccnet_cli.datasets.report import Report, check
from ccnet_cli.datasets.sampling import Batches
from ccnet_cli.datasets.source import Classes, Sample, Source, load_image, load_label, load_pair
from ccnet_cli.datasets.training import Batch, Item, Training, collate, raise_worker_errors, to_device, watch_workers
from ccnet_cli.datasets.voc import open_voc
from ccnet_cli.errors import InputError, detail

__all__ = [
    "CLASSES",
    "Batch",
    "Batches",
    "Classes",
    "Item",
    "Report",
    "Sample",
    "Source",
    "Training",
    "check",
    "classes",
    "collate",
    "fingerprint",
    "load_image",
    "load_label",
    "load_pair",
    "open_source",
    "raise_worker_errors",
    "recognise",
    "to_device",
    "watch_workers",
]

Reader = Callable[[config.Data, Path, str, bool], Source]

# the built-in scenes are written in the layout of Cityscapes
READERS: dict[str, Reader] = {
    "cityscapes": open_cityscapes,
    "camvid": open_camvid,
    "ade20k": open_ade20k,
    "voc": open_voc,
    "lip": open_lip,
    "cocostuff": open_cocostuff,
    "toyscapes": open_cityscapes,
    "folder": open_folder,
}
# of the sets that have classes of their own
CLASSES: dict[str, Classes] = {
    "cityscapes": cityscapes.CLASSES,
    "camvid": camvid.CLASSES,
    "ade20k": ade20k.CLASSES,
    "voc": voc.CLASSES,
    "lip": lip.CLASSES,
    "cocostuff": cocostuff.CLASSES,
}

# what lies in a data set's folder, any of these lines of it
SIGNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "cityscapes": (("leftImg8bit",),),
    "ade20k": (("ADEChallengeData2016",), *((f"images/{s}", f"annotations/{s}") for s in ("training", "validation"))),
    "voc": (("VOCdevkit/VOC2012",), ("VOC2012",), ("JPEGImages", "ImageSets/Segmentation")),
    "lip": (("TrainVal_images",), *((f"{s}_images", f"{s}_segmentations") for s in ("train", "val"))),
    "cocostuff": tuple((f"images/{s}2017", f"annotations/{s}2017") for s in ("train", "val")),
}


def open_source(data: config.Data, split: str, labels_required: bool = True, verify: bool = True) -> Source:
    """The images of a split, train, val or another folder's name, every one with its label unless not required.

    InputError names the first file that does not exist; verify=False leaves those for check to report.
    """
    source = READERS[data.dataset](data, _root(data), split, labels_required)
    source = dataclasses.replace(source, classes=classes(data))
    detail(f"{len(source.samples)} images of {data.dataset} in {split}, {len(source.classes)} classes")
    return complete(source, labels_required) if verify else source


def classes(data: config.Data) -> Classes:
    """Names, colours and label ids of a preset's classes, known without opening the data set."""
    if data.dataset == "folder":
        return folder.classes_of(data)
    own = CLASSES["cityscapes" if data.dataset == "toyscapes" else data.dataset]
    if data.classes is not None and tuple(data.classes) != own.names:
        raise InputError("preset key data.classes", f"{data.dataset} has classes of its own", "remove the key")
    return own if data.palette is None else _recoloured(own, data.palette)


def recognise(folder: Path) -> str:
    """The name of the data set whose folders lie here; InputError where they are no known one's."""
    for name, signs in SIGNS.items():
        if any(all((folder / path).is_dir() for path in paths) for paths in signs):
            return name
    if any(
        path.is_dir() and path.with_name(path.name.removesuffix("annot")).is_dir() for path in folder.glob("*annot")
    ):
        return "camvid"
    why = "holds no data set known by its folders" if folder.is_dir() else "is not a folder"
    raise InputError(
        f"folder {folder}", why, "name it with --dataset, or describe your own in a preset (--preset FILE)"
    )


def _root(data: config.Data) -> Path:
    if data.root is None and data.dataset == "toyscapes":
        from ccnet_cli.datasets import toyscapes

        return toyscapes.built_in()
    if data.root is None:
        raise InputError("preset key data.root", "missing", f"give the folder of {data.dataset} with --data DIR")
    root = Path(data.root).expanduser()
    if not root.is_dir():
        why = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"folder {root}", why, f"give the folder of {data.dataset} with --data DIR")
    return root


def _recoloured(classes: Classes, palette: list[tuple[int, int, int]]) -> Classes:
    if len(palette) != len(classes):
        why = f"has {len(palette)} colours for {len(classes)} classes"
        raise InputError("preset key data.palette", why, "give one colour for each class")
    return dataclasses.replace(classes, palette=tuple(palette))
