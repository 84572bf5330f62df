"""Annotations as tools export them: FORMATS has a reader for each, one file each; `ccnet data convert` draws them."""

import posixpath
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import RootModel

from ccnet_cli.datasets.annotations import cityscapes, coco, cvat, labelme, labelstudio, masks, supervisely, via, yolo
from ccnet_cli.datasets.annotations.tree import Annotations, Tree
from ccnet_cli.errors import InputError
from ccnet_cli.media import READ_SUFFIXES
from ccnet_cli.media.images import read_bytes

# what to do about a folder of nothing else
OTHER_FILES = {
    ".csv": "export the annotations as JSON in place of a table",
    ".npy": "save the arrays as PNGs of class values, in a folder masks",
    ".mat": "save the arrays as PNGs of class values, in a folder masks",
}


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
    "cityscapes": Format("Cityscapes' outlines", cityscapes.recognise, cityscapes.read),
    "labelstudio": Format("a Label Studio export", labelstudio.recognise, labelstudio.read),
    "via": Format("a VIA file", via.recognise, via.read),
    "coco": Format("COCO files", coco.recognise, coco.read),
    "cvat": Format("CVAT for images", cvat.recognise, cvat.read),
    "masks": Format("mask files", masks.recognise, masks.read),
    "yolo": Format("YOLO's text files", yolo.recognise, yolo.read),
}


def recognise(tree: Tree) -> str:
    """The format of a folder; InputError where it is none of FORMATS."""
    for name, each in FORMATS.items():
        if each.recognise(tree):
            return name
    raise _explain(tree)


def _explain(tree: Tree) -> InputError:
    """Why a folder is of no format: the first file that could have been annotations, or what else there is."""
    titles = ", ".join(each.title for each in FORMATS.values())
    for name in tree.ending(".json"):
        if tree.peek(name) is None:
            # which says what is wrong with it
            tree.load(name, RootModel[Any])
    for name in tree.ending(".xml"):
        root = cvat.parse(read_bytes(tree.top / name, "file"), f"file {tree.top / name}").tag
        why, fix = f"begins with <{root[:40]}>, and CVAT's files with <annotations>", 'export it as "CVAT for images"'
        return InputError(f"file {tree.top / name}", why, fix)
    if files := tree.ending(".json"):
        value = tree.peek(files[0])
        what = f"the keys {', '.join(map(str, value))[:80]}" if isinstance(value, dict) else f"a {type(value).__name__}"
        fix = "name the format with --format, or see ccnet guide data"
        return InputError(f"file {tree.top / files[0]}", f"has {what}, as none of {titles} has", fix)
    if archives := tree.ending(".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        fix = "unpack it there, and give the folder again"
        return InputError(f"file {tree.top / archives[0]}", "is packed, and nothing beside it is annotations", fix)
    suffixes = Counter(posixpath.splitext(name)[1].lower() for name in set(tree.files) - set(tree.images))
    if not tree.images:
        kinds = ", ".join(f"{count} {suffix or 'other'}" for suffix, count in suffixes.most_common(3))
        fix = f"give the folder of the images ({' '.join(READ_SUFFIXES)}) and their annotations, unpacked"
        return InputError(f"folder {tree.top}", f"holds no image{f' but {kinds} files' if kinds else ''}", fix)
    kinds = f" but {suffixes.most_common(1)[0][0] or 'other'} files" if suffixes else ""
    images = f"{len(tree.images)} image{'s' * (len(tree.images) != 1)}"
    why = f"holds {images}, and nothing{kinds} that labels them: none of {titles}"
    fix = "name masks as the images, in a folder masks or labels or with an ending such as _mask"
    fix = OTHER_FILES.get(suffixes.most_common(1)[0][0] if suffixes else "", fix)
    return InputError(f"folder {tree.top}", why, f"{fix}; see ccnet guide data")
