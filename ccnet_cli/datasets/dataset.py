"""What a data set's own file says: DataSet; and what it is asked for: the files of a Split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccnet_cli.datasets.listing import Samples, require_folder
from ccnet_cli.datasets.settings import Data
from ccnet_cli.media.classes import Classes

if TYPE_CHECKING:
    import numpy as np


# what label files may hold; it decides which mix-up can be recognised by the values
LABEL_IDS, TRAIN_IDS, OWN_IDS = "labelIds", "trainIds", "ids"


@dataclass(frozen=True)
class Split:
    """A split whose files are to be listed: name is train, val or another; folder is what its folders are called."""

    data: Any
    root: Path
    name: str
    folder: str
    labels_required: bool

    @property
    def unique(self) -> bool:
        """Whether an image may come only once: it would count twice in a score."""
        return self.name != "train"

    def images(self, path: Path, expected: str) -> Path:
        """The folder of the images; InputError says what was expected where there is none."""
        return require_folder(path, expected)

    def labels(self, path: Path, expected: str) -> Path:
        """The folder of the labels; InputError where there is none although labels are required."""
        return require_folder(path, expected) if self.labels_required else path


@dataclass(frozen=True)
class DataSet:
    """What DATASETS holds under a name; list files, roots and the names of splits are the room's business.

    classes: the classes, or a function that takes them from the settings. files: lists a split that has no list file.
    A label file's value is that of a class in classes.label_ids or in values (value -> train id); ignored values and
    data.ignore_index are void; all others are refused. converted: label files named labelTrainIds hold train ids.
    """

    classes: Classes | Callable[[Any], Classes]
    files: Callable[[Split], Samples]
    ignored: tuple[int, ...] = ()
    values: Mapping[int, int] = field(default_factory=dict)
    label_kind: str = OWN_IDS
    converted: bool = False
    settings: type[Data] = Data
    # the names of split folders that are not the split's own: {"val": "validation"}
    folders: Mapping[str, str] = field(default_factory=dict)
    # whether a folder holds this data set, for `ccnet data check DIR`
    recognise: Callable[[Path], bool] = lambda _: False
    # where the data set lies if data.root is not set
    root: Callable[[], Path] | None = None
    # a label file as an integer array (H, W), if it is no grey or palette image
    read_label: "Callable[[Path], np.ndarray] | None" = None


def holds(*alternatives: tuple[str, ...]) -> Callable[[Path], bool]:
    """A test for DataSet.recognise: whether all folders of one of the alternatives lie in a folder."""
    return lambda folder: any(all((folder / path).is_dir() for path in paths) for paths in alternatives)
