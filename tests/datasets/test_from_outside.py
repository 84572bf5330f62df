"""A data set of a file that --extend imports: with settings, colours as labels and a layout of its own."""

import dataclasses
import sys

import numpy as np
import pytest
from bad_inputs import png
from dataset_files import picture, put

from ccnet_cli import config
from ccnet_cli.datasets import DATASETS, Data, classes_of, known_classes, recognise, settings_of
from ccnet_cli.datasets.source import load_label, load_pair, open_source
from ccnet_cli.errors import InputError
from ccnet_cli.parts import extend

FIELDS = '''
import numpy as np

from ccnet_cli.datasets import DATASETS, Classes, Data, DataSet, holds, make_samples
from ccnet_cli.media.images import read_image
from ccnet_cli.parts import Count


class FieldsData(Data):
    """Which fold is scored."""

    fold: Count = 1


def list_files(split):
    folder = split.images(split.root / f"fold{split.data.fold}" / split.folder, "foldN/SPLIT/NAME_sat.png")
    images = sorted(folder.glob("*_sat.png"))
    return make_samples(folder, [(path, path.with_name(path.name.replace("_sat", "_mask"))) for path in images])


def read_label(path):
    # the blue byte: 0 is nothing, 10 grass, 20 wheat, 30 water
    return read_image(path)[..., 0]


DATASETS["fields"] = DataSet(
    Classes(("plant", "water"), ((0, 255, 0), (0, 0, 255)), (10, 30)),
    list_files,
    ignored=(0,),
    values={20: 0},
    settings=FieldsData,
    folders={"val": "test"},
    recognise=holds(("fold1", "fold2")),
    read_label=read_label,
)
'''
COLOURS = np.array([[0, 10, 20], [30, 255, 30]])


@pytest.fixture
def fields(tmp_path):
    file = put(tmp_path / "fields.py", FIELDS.encode())
    extend([file])
    for fold in (1, 2):
        for split in ("train", "test"):
            for number in range(fold):
                name = tmp_path / f"data/fold{fold}/{split}/{number}"
                put(name.with_name(f"{number}_sat.png"), picture(COLOURS))
                put(name.with_name(f"{number}_mask.png"), png(np.stack([COLOURS] * 3, -1), colour=2))
    yield tmp_path / "data"
    del DATASETS["fields"], sys.modules["ccnet_extension_fields"]


def test_it_is_opened_by_its_own_rules(fields):
    assert recognise(fields) == "fields"
    data = settings_of("fields")(dataset="fields", root=str(fields), crop=(4, 4), fold=2)
    for split, folder in (("train", "train"), ("val", "test")):
        source = open_source(data, split)
        assert [(sample.name, sample.image.parent.name) for sample in source.samples] == [
            ("0_sat", folder),
            ("1_sat", folder),
        ]
    image, label = load_pair(source, source.samples[0])
    assert image.shape == (2, 3, 3)
    assert label.tolist() == [[255, 0, 0], [1, 255, 1]] and label.dtype == np.uint8
    assert classes_of(data).names == known_classes()["fields"].names == ("plant", "water")
    put(source.samples[0].label, png(np.full((2, 3, 3), 40), colour=2))
    with pytest.raises(InputError, match=r"value 40 is no label of fields \(0, 10, 20, 30, 255\)"):
        load_label(source, source.samples[0])


def test_labels_of_sixteen_bits_may_hold_any_value(fields, monkeypatch):
    values = {300: 1, 44: 0}
    dataset = dataclasses.replace(DATASETS["fields"], values=values, ignored=(0, 1000), read_label=None)
    monkeypatch.setitem(DATASETS, "fields", dataset)
    source = open_source(settings_of("fields")(dataset="fields", root=str(fields), crop=(4, 4)), "train")
    put(source.samples[0].label, png(np.array([[300, 44, 1000], [30, 10, 255]]), 16))
    assert load_label(source, source.samples[0]).tolist() == [[1, 0, 255], [1, 0, 255]]


def test_the_room_does_lists_palettes_and_missing_files_for_it_too(fields):
    keys = {"dataset": "fields", "root": str(fields), "crop": (4, 4)}
    put(fields / "val.lst", b"fold2/test/1_sat.png fold2/test/1_mask.png\n")
    data = settings_of("fields")(**keys, val_list="val.lst", palette=[(1, 2, 3), (4, 5, 6)])
    source = open_source(data, "val")
    assert [sample.name for sample in source.samples] == ["fold2/test/1_sat"]
    assert load_label(source, source.samples[0]).tolist() == [[255, 0, 0], [1, 255, 1]]
    assert source.classes.palette == ((1, 2, 3), (4, 5, 6))
    (fields / "fold1/test/0_mask.png").unlink()
    with pytest.raises(InputError, match=r"0_sat\.png: has no label .*0_mask\.png"):
        open_source(settings_of("fields")(**keys), "val")
    with pytest.raises(InputError, match=r"fold3/train: does not exist; expected foldN/SPLIT"):
        open_source(settings_of("fields")(**keys, fold=3), "train")


def test_its_settings_are_checked_in_a_preset(fields):
    chosen = ["data.dataset=fields", f"data.root={fields}"]
    assert config.load("quickstart", [*chosen, "data.fold=2"]).data.fold == 2
    for override, words in (
        ("data.fold=0", r"data\.fold: must be greater"),
        ("data.fol=1", r"data\.fol: unknown; did you mean data\.fold"),
        ("data.train_images=x", r"data\.train_images: unknown"),
    ):
        with pytest.raises(InputError, match=words):
            config.load("quickstart", [*chosen, override])
    with pytest.raises(InputError, match=r"data\.fold: unknown"):
        config.load("quickstart", ["data.fold=2"])


def test_a_name_that_no_table_has_says_how_to_give_it():
    assert settings_of("fields") is settings_of(3) is settings_of(None) is Data
    for name in ("fields", 3, ["voc"]):
        with pytest.raises(
            InputError, match=r"data\.dataset: must be one of cityscapes, .*folder, found .*--extend FILE"
        ):
            Data(dataset=name, crop=(4, 4))


def test_a_data_set_may_bring_its_own_root(fields, monkeypatch):
    monkeypatch.setitem(DATASETS, "fields", dataclasses.replace(DATASETS["fields"], root=lambda data: fields))
    assert len(open_source(settings_of("fields")(dataset="fields", crop=(4, 4)), "train").samples) == 1
