"""Rows of a comparison: one head after another in one preset, and nothing else that differs."""

import pytest

from ccnet_cli import config
from ccnet_cli.config import rows
from ccnet_cli.config.rows import native_models, with_head, with_heads
from ccnet_cli.errors import InputError
from ccnet_cli.models.heads import HEADS

TOYS = config.load("toyscapes-r2")


def head(row: str, preset: config.Preset = TOYS) -> dict:
    return config.to_mapping(with_head(preset, row))["model"]["head"]


def test_a_row_differs_from_the_preset_in_its_head_alone():
    for row in (*rows.ROWS, "wrapped,block=gc", "aspp,form=mmseg"):
        changed = config.differences(TOYS, with_head(TOYS, row))
        assert [key for key in changed if not key.startswith("model.head")] == []


def test_none_is_the_preset_s_head_without_attention():
    assert with_head(TOYS, "none") == config.load("toyscapes-r2", ["model.head.recurrence=0"])
    assert with_head(TOYS, "rcca") == TOYS
    assert with_head(config.load("toyscapes-r0"), "rcca").model == TOYS.model
    assert head("rcca,recurrence=1") == head("rcca") | {"recurrence": 1}
    one = config.load("toyscapes-r1")
    assert with_head(one, "rcca") == one


def test_a_head_takes_the_widths_and_the_dropout_of_the_preset_s_head():
    assert head("danet") | {"channels": 64, "query_channels": 16, "dropout": 0.0} == head("danet")
    assert (head("psp")["channels"], head("psp,channels=32,bins=[1, 3]")["bins"]) == (64, [1, 3])
    assert (head("aspp")["width"], head("aspp,channels=32")["width"]) == (32, 16)
    # somebody's form is as wide as theirs
    assert (head("aspp,form=mmseg")["width"], head("aspp,form=mmseg")["channels"]) == (None, None)
    assert head("oc,form=asp")["channels"] == 64
    assert head("fcn,dropout=0.3")["dropout"] == 0.3
    # from another kind of head, too
    assert with_head(with_head(TOYS, "psp"), "fcn") == with_head(TOYS, "fcn")


def test_the_networks_are_their_authors():
    models = native_models(config.load("cityscapes-r2"), ["danet", "psp"])
    assert models["danet"].auxiliary is None
    assert models["psp"] == with_head(config.load("cityscapes-r2"), "psp").model


def test_all_rows_come_in_their_order_and_those_that_are_not_there_are_left_out(monkeypatch, capsys):
    assert list(with_heads(TOYS, None)) == list(rows.ROWS)
    assert capsys.readouterr().err == ""
    assert list(with_heads(TOYS, None, rows.COMPARED))[-2:] == ["rcca,recurrence=1", "rcca"]
    monkeypatch.delitem(HEADS, "isa")
    assert list(with_heads(TOYS, None)) == [row for row in rows.ROWS if row != "isa"]
    assert capsys.readouterr().err == "ccnet: left out: isa; this version has no such head\n"


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("nonlocl", "head nonlocl: unknown; did you mean nonlocal?"),
        ("qqqq", "choose among none, rcca"),
        ("psp,", "an empty word is not KEY=VALUE"),
        ("psp,=3", "=3 is not KEY=VALUE"),
        ("psp,channels=wide", "preset key model.head.channels"),
        ("none,recurrence=1", "head none,recurrence=1: none has no passes"),
        ("none,bins=[1]", "preset key model.head.bins: unknown"),
    ],
)
def test_what_is_wrong_is_named(row, error):
    with pytest.raises(InputError) as caught:
        with_head(TOYS, row)
    assert error in str(caught.value)
