"""The preset's section `data`: keys that every data set has, and those of folders of your own."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from ccnet_cli.datasets.tables import Table, parse_table
from ccnet_cli.parts import Byte, Fit, Flag, Int, Pair, Scale, Section, Text, UnknownPart

IGNORED = 255
# of the built-in scenes and clips, in the layout of Cityscapes
CITY = "hillside"
# makes 8,000 scales at most
MIN_STEP = 1e-3


def _require_known(name: object) -> object:
    from ccnet_cli.datasets import DATASETS

    if not isinstance(name, str) or name not in DATASETS:
        raise UnknownPart("data.dataset", name, DATASETS)
    return name


class Clip(Section):
    """How many frames a clip has, every stride-th of the video, and the place of the labelled one; null is the last.

    folder is where the frames lie, relative to the root; null is where the data set has them. shuffle takes the other
    frames of each clip from another one's.
    """

    frames: Annotated[int, Field(strict=True, ge=1, le=64)] = 5
    stride: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1
    labelled: Annotated[int, Field(strict=True, ge=0, le=63)] | None = None
    folder: Text | None = None
    shuffle: Flag = False

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.labelled is not None and self.labelled >= self.frames:
            raise ValueError(f"labelled {self.labelled} is no place in a clip of {self.frames} frames, 0 is the first")
        return self

    @property
    def place(self) -> int:
        """The labelled frame's place, 0 the first."""
        return self.frames - 1 if self.labelled is None else self.labelled


class Augment(Section):
    """Each change happens with the probability `chance`; at its default it never does.

    rotate is degrees either way; aspect how much wider or narrower; blur the largest sigma in pixels; noise the largest
    standard deviation in grey levels; jpeg the lowest quality; erase hides a rectangle, whose label stays.
    """

    chance: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.5
    rotate: Annotated[float, Field(strict=True, ge=0, le=180, allow_inf_nan=False)] = 0.0
    aspect: Annotated[float, Field(strict=True, ge=1, le=4, allow_inf_nan=False)] = 1.0
    blur: Annotated[float, Field(strict=True, ge=0, le=32, allow_inf_nan=False)] = 0.0
    noise: Annotated[float, Field(strict=True, ge=0, le=128, allow_inf_nan=False)] = 0.0
    jpeg: Annotated[int, Field(strict=True, ge=1, le=100)] = 100
    erase: Annotated[bool, Field(strict=True)] = False


class Data(Section):
    """Where images and labels are, which classes they have, and how training samples are cut.

    A picture is scaled to fit within fit, its longer and its shorter side, and then by scale_min to scale_max, with
    scale_step 0 anything between. category_ratio below 1 avoids crops of which one class covers that fraction. A
    worker may take at most timeout seconds for a batch. clip adds the frames around a labelled one;
    augment is what a sample may go through besides.
    """

    dataset: Annotated[str, BeforeValidator(_require_known)]
    root: Text | None = None
    train_split: Text = "train"
    val_split: Text = "val"
    train_list: Text | None = None
    val_list: Text | None = None
    test_list: Text | None = None
    classes: Annotated[list[Text], Field(min_length=1, max_length=255)] | None = None
    palette: list[tuple[Byte, Byte, Byte]] | None = None
    ignore_index: Byte = IGNORED
    crop: Pair
    fit: Fit | None = None
    scale_min: Scale = 0.7
    scale_max: Scale = 2.1
    scale_step: Annotated[float, Field(strict=True, ge=0, le=8, allow_inf_nan=False)] = 0.1
    category_ratio: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    mirror: Flag = True
    photometric: Flag = False
    augment: Augment | None = None
    clip: Clip | None = None
    workers: Annotated[int, Field(strict=True, ge=0, le=64)] = 2
    timeout: Annotated[int, Field(strict=True, ge=1, le=86400)] = 300

    @property
    def frames(self) -> int:
        """The frames of a sample, 1 without clips."""
        return 1 if self.clip is None else self.clip.frames

    @property
    def labelled(self) -> int:
        """The labelled frame's place among them, 0 the first."""
        return 0 if self.clip is None else self.clip.place

    @model_validator(mode="before")
    @classmethod
    def _drop_null_keys_of_folders(cls, mapping: Any) -> Any:
        """Presets of version 0.1 name the keys of folders for every data set, with null."""
        if not isinstance(mapping, Mapping):
            return mapping
        foreign = FolderData.model_fields.keys() - cls.model_fields.keys()
        return {key: value for key, value in mapping.items() if key not in foreign or value is not None}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min must not be above scale_max")
        if 0 < self.scale_step < MIN_STEP:
            raise ValueError(f"scale_step must be 0, or {MIN_STEP} or more")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes names a class twice")
        if self.palette is not None and self.classes is not None and len(self.palette) != len(self.classes):
            raise ValueError(f"palette has {len(self.palette)} colours for {len(self.classes)} classes")
        return self

    @model_validator(mode="after")
    def _ignore_one_value(self) -> Self:
        if self.ignore_index != IGNORED:
            raise ValueError(f"ignore_index must be {IGNORED}: the table of {self.dataset} maps to it")
        return self


class Toyscapes(Data):
    """The built-in scenes; signals says which set is drawn where no root is set, see ccnet data make --signals."""

    signals: Annotated[int, Field(strict=True, ge=1, le=2)] = 1


class FolderData(Data):
    """Folders of your own: their images and labels, and what the values of the labels mean.

    labels maps file values ("7", "1000-1999") or colours ("#RRGGBB", "R,G,B") to classes, null to ignored ones, and
    rest what it does not name, which is refused otherwise. A label is named as its image, with label_suffix. With
    val_fraction, a part of the training images, which val_seed draws, is the split val; names of which the regular
    expression val_group matches the same text stay together.
    """

    train_images: Text | None = None
    train_labels: Text | None = None
    val_images: Text | None = None
    val_labels: Text | None = None
    labels: Annotated[dict[str, Text | None], Field(min_length=1, max_length=4096)] | None = None
    label_suffix: Text | None = None
    val_fraction: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    val_seed: Int | None = None
    val_group: Text | None = None

    @property
    def table(self) -> Table | None:
        """The key labels, understood."""
        return None if self.labels is None else parse_table(self.labels)

    @property
    def names(self) -> list[str]:
        """The classes: classes, or those of labels."""
        table = self.table
        return list(self.classes or (table.names if table else []))

    @model_validator(mode="after")
    def _ignore_one_value(self) -> Self:
        table, names = self.table, self.names
        if not names:
            raise ValueError("dataset folder needs data.classes, the list of class names, or data.labels")
        if self.ignore_index < len(names):
            raise ValueError(f"ignore_index {self.ignore_index} is also class {names[self.ignore_index]}")
        if table and (unknown := [name for name in table.names if name not in names]):
            raise ValueError(f"labels names {unknown[0]}, which is not in classes")
        if table and (missing := [name for name in names if name not in table.names]):
            raise ValueError(f"labels has no value for class {missing[0]}")
        if len(names) > IGNORED:
            raise ValueError(f"labels names {len(names)} classes, more than {IGNORED}")
        return self

    @model_validator(mode="after")
    def _part_once(self) -> Self:
        if self.val_fraction is None:
            return self
        if self.val_images or self.val_labels or self.val_list:
            raise ValueError("val_fraction is given beside the validation images: remove one of them")
        try:
            re.compile(self.val_group or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"val_group is no regular expression ({error})") from None
        return self
