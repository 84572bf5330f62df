"""Annotations as tools export them: FORMATS has a reader for each, one file each; `ccnet data convert` draws them."""

from collections.abc import Callable
from dataclasses import dataclass

from ccnet_cli.datasets.annotations import coco, cvat, labelme, labelstudio, masks, supervisely
from ccnet_cli.datasets.annotations.tree import Annotations, Tree
from ccnet_cli.errors import InputError


@dataclass(frozen=True)
class Format:
    """What FORMATS holds: whether a folder is of the format, and what the folder says; title is for people."""

    title: str
    recognise: Callable[[Tree], bool]
    read: Callable[[Tree], Annotations]


# the first that recognises a folder reads it
FORMATS: dict[str, Format] = {
    "supervisely": Format("a Supervisely project", supervisely.recognise, supervisely.read),
    "labelme": Format("LabelMe files", labelme.recognise, labelme.read),
    "labelstudio": Format("a Label Studio export", labelstudio.recognise, labelstudio.read),
    "coco": Format("COCO files", coco.recognise, coco.read),
    "cvat": Format("CVAT for images", cvat.recognise, cvat.read),
    "masks": Format("mask files", masks.recognise, masks.read),
}


def recognise(tree: Tree) -> str:
    """The format of a folder; InputError where it is none of FORMATS."""
    for name, each in FORMATS.items():
        if each.recognise(tree):
            return name
    titles = ", ".join(each.title for each in FORMATS.values())
    raise InputError(
        f"folder {tree.top}", f"holds none of {titles}", "name the format with --format, or see ccnet guide data"
    )
