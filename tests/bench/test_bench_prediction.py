"""bench predict: stages and rates of files, by one and by two processes."""

import json

import pytest
import tiny

from ccnet_cli import cli
from ccnet_cli.bench import prediction
from ccnet_cli.bench.request import Run
from ccnet_cli.media import images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_stages_and_rates_are_measured_of_every_size(saved, forked_workers):
    work = prediction.Prediction(saved, processes=2, images=12)
    values = prediction.measure(work, [(24, 32), (16, 16)], Run("cpu", 1, 2, settling=0)).to_mapping()
    assert [(row["size"], row["stage"]) for row in values["stages"]] == [
        (size, stage) for size in ([24, 32], [16, 16]) for stage in ("decode", "network", "encode", "write")
    ]
    assert all(row["milliseconds"]["least"] > 0 for row in values["stages"] if row["stage"] != "encode")
    assert [(row["size"], row["processes"]) for row in values["rates"]] == [
        ([24, 32], 1),
        ([24, 32], 2),
        ([16, 16], 1),
        ([16, 16], 2),
    ]
    for one, two in (values["rates"][:2], values["rates"][2:]):
        assert one["rate"] > 0 and one["ratio"] == 1
        assert two["ratio"] == pytest.approx(two["rate"] / one["rate"])
    assert values["threads"] == 1 and values["images"] == 12


def test_pictures_are_of_the_size_and_differ(tmp_path):
    sources = prediction._make_pictures(tmp_path, (30, 50), 9)
    assert {images.read_image(source).shape for source in sources} == {(30, 50, 3)}
    assert len({source.read_bytes() for source in sources}) == prediction.PICTURES


def test_the_command_line_prints_both_tables(saved, capsys):
    command = ["bench", "predict", "--checkpoint", str(saved), "--size", "16x24", "--images", "8", "--repeats", "1"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("decode", "network", "encode", "write", "images/s", "16x24"))
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command, "--device", "cpu", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["rates"][0]["processes"] == 1
