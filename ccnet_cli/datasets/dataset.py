"""DataSet is what a data set's own file defines; a Split is what it lists the files of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccnet_cli.datasets.listing import Samples, require_folder
from ccnet_cli.datasets.settings import Data
from ccnet_cli.media.classes import Classes

if TYPE_CHECKING:
    import numpy as np


# what label files hold; it decides which mistakes their values reveal
LABEL_IDS, TRAIN_IDS, OWN_IDS = "labelIds", "trainIds", "ids"


@dataclass(frozen=True)
class Split:
    """A split to list: name is train, val or another, folder the name of its folders, data the settings."""

    data: Any
    root: Path
    name: str
    folder: str
    labels_required: bool

    @property
    def unique(self) -> bool:
        """Whether an image may occur only once, as it would count twice in a score."""
        return self.name != "train"

    def images(self, path: Path, expected: str) -> Path:
        """The folder of the images; InputError, with the layout expected, if it does not exist."""
        return require_folder(path, expected)

    def labels(self, path: Path, expected: str) -> Path:
        """The folder of the labels; InputError if it does not exist and labels are required."""
        return require_folder(path, expected) if self.labels_required else path


@dataclass(frozen=True)
class DataSet:
    """An entry of DATASETS; open_source does the rest: data.root, list files, names of splits, missing files.

    classes may be a function of the settings. files lists a split that has no list file. The value of a pixel in a
    label file is one of classes.label_ids, a key of values (whose train id it becomes), or ignored, as the value
    data.ignore_index is; all other values are refused. converted: files named labelTrainIds hold train ids.
    """

    classes: Classes | Callable[[Any], Classes]
    files: Callable[[Split], Samples]
    ignored: tuple[int, ...] = ()
    values: Mapping[int, int] = field(default_factory=dict)
    label_kind: str = OWN_IDS
    converted: bool = False
    settings: type[Data] = Data
    # names of splits whose folders are called otherwise: {"val": "validation"}
    folders: Mapping[str, str] = field(default_factory=dict)
    # whether a folder holds this data set, for `ccnet data check DIR`
    recognise: Callable[[Path], bool] = lambda _: False
    # the data set's folder, by its settings, if data.root is not set
    root: Callable[[Any], Path] | None = None
    # where an image would lie among the frames of its video, by the settings, the root and the image
    frames: Callable[[Any, Path, Path], Path] | None = None
    # reads a label file into integers (H, W), if it is not a grey or palette PNG
    read_label: "Callable[[Path], np.ndarray] | None" = None


def holds(*alternatives: tuple[str, ...]) -> Callable[[Path], bool]:
    """A function for DataSet.recognise: whether a folder holds all folders of one of the alternatives."""
    return lambda folder: any(all((folder / path).is_dir() for path in paths) for paths in alternatives)
