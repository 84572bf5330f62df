"""ccnet data split and show."""

import exports
import numpy as np
import pytest
from bad_inputs import png

from ccnet_cli import config
from ccnet_cli.cli.entry import main
from ccnet_cli.commands.data import ShowRequest, SplitRequest, show, split
from ccnet_cli.datasets.source import open_source
from ccnet_cli.errors import VERBOSITY, InputError
from ccnet_cli.media import images


@pytest.fixture(autouse=True)
def verbosity(monkeypatch):
    """The command line sets it for its process, which here is that of other tests too."""
    monkeypatch.setenv(VERBOSITY, "")


def test_lists_hold_every_image_once_and_are_read_back(tmp_path):
    labels = {f"{video}/{index}": exports.scene(index) for video in ("x", "y z", "w") for index in range(4)}
    exports.write_images(tmp_path, labels)
    for name, label in labels.items():
        exports.put(tmp_path / f"labels/{name}.png", png(label))
    counts = split(SplitRequest(tmp_path, fraction=0.3, group="^(.+)/"))
    assert counts == {tmp_path / "train.lst": 8, tmp_path / "val.lst": 4}
    lines = [
        line.split("\t") for name in ("train", "val") for line in (tmp_path / f"{name}.lst").read_text().splitlines()
    ]
    assert sorted(image for image, _ in lines) == sorted(f"images/{name}.png" for name in labels)
    keys = [
        "data={dataset: folder, crop: [32, 32], train_list: train.lst, val_list: val.lst, classes: [a, b, c, d, e]}"
    ]
    data = config.load("camvid", [*keys, f"data.root={tmp_path}"]).data
    assert [len(open_source(data, name).samples) for name in ("train", "val")] == [8, 4]
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        split(SplitRequest(tmp_path))
    split(SplitRequest(tmp_path, overwrite=True))
    (tmp_path / "labels/w/0.png").unlink()
    with pytest.raises(InputError, match="has no label"):
        split(SplitRequest(tmp_path, overwrite=True))


def test_the_sheet_shows_labels_over_images_and_bars_in_proportion(tmp_path):
    label = np.full((60, 80), 255, np.uint8)
    label[:, :20], label[:, 20:60] = 0, 1
    exports.write_images(tmp_path, {"a": label, "b": label}, "images/train/{}.png")
    for name in "ab":
        exports.put(tmp_path / f"labels/train/{name}.png", png(label))
    colours = "[[255, 0, 0], [0, 255, 0], [0, 0, 255]]"
    keys = f"{{dataset: folder, crop: [32, 32], classes: [red, green, none], palette: {colours}}}"
    preset = config.load("camvid", [f"data={keys}", f"data.root={tmp_path}"])
    sheet = images.read_image(show(ShowRequest(preset, "train", tmp_path / "sheet.png")))
    # two tiles of 320 x 240 under their names
    tile = sheet[6 + 22 : 6 + 22 + 240, 6 : 6 + 320].astype(int)
    sky = np.array(exports.COLOURS[0][::-1])
    np.testing.assert_allclose(tile[120, 40], 0.45 * sky + 0.55 * np.array([0, 0, 255]), atol=2)
    np.testing.assert_allclose(tile[120, 300], [9, 9, 9], atol=2)
    bars = sheet[6 + 22 + 240 + 6 :]
    lengths = [int((bars == colour).all(-1).any(0).sum()) for colour in ([0, 0, 255], [0, 255, 0], [255, 0, 0])]
    assert lengths[0] == pytest.approx(lengths[1] / 2, abs=2) and lengths[1] == 300 and lengths[2] == 0


def test_a_folder_is_parted_and_shown_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exports.labelme(tmp_path / "photos", {name: exports.scene(index) for index, name in enumerate("abc")})
    for words in (
        ("convert", "photos", "mine"),
        ("check", "mine", "--preset", "mine/preset.yaml"),
        ("show", "mine", "--preset", "mine/preset.yaml", "-o", "sheet.png"),
        # what the conversion wrote beside them describes them
        ("check", "mine"),
        ("show", "mine", "-o", "again.png"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["data", *words])
        assert stop.value.code == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["2 train, 1 val; classes: car, pole, road, sky, tree", "mine"]
    assert (tmp_path / "sheet.png").read_bytes() == (tmp_path / "again.png").read_bytes()
