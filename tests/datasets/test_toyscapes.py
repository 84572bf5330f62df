import hashlib
import multiprocessing
import os
from collections import Counter
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ccnet_cli import config
from ccnet_cli.datasets import Data, check, cityscapes, recognise, street, toyclips, toyscapes
from ccnet_cli.datasets.source import load_label, open_source
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.media import images
from ccnet_cli.models import network as model

SIZES = [toyscapes.SIZE, (171, 300), (512, 1024)]
VEHICLES = {26, 27, 28, 32, 33}
SIGNALS = {19, 20}


def draw(seed, size=toyscapes.SIZE, **keys):
    return toyscapes.scene(np.random.default_rng(seed), size, **keys)


def fingerprint(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a built-in set small enough for a test."""
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(toyscapes, "TRAIN", 2)
    monkeypatch.setattr(toyscapes, "VAL", 1)
    return tmp_path / "cache"


@pytest.mark.parametrize("size", SIZES)
def test_a_scene_has_its_size_and_labels_of_the_cityscapes_table(size):
    image, labels, facts = draw(1, size)
    assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
    assert (labels.shape, labels.dtype) == (size, np.uint8)
    found = set(np.unique(labels).tolist())
    assert found <= {0} | {label_id for _, label_id, _ in cityscapes.TABLE}
    assert found & VEHICLES == {toyscapes.CLASSES[facts.truth]}
    assert len(found & SIGNALS) == 1


def test_a_seed_is_a_scene():
    first, again, other = draw(5), draw(5), draw(6)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[2] == again[2]
    assert not np.array_equal(first[0], other[0])


def test_a_scene_stays_what_it_was_until_the_version_is_raised():
    """The built-in set lies in caches under its version, and the recipes' figures are of these scenes."""
    image, labels, facts = draw(5)
    assert toyscapes.VERSION == 1
    assert (facts.truth, facts.x, facts.y) == ("motorcycle", 17, 64)
    assert [(each.x, each.y) for each in facts.vehicles] == [(26, 143), (182, 65), (117, 141), (182, 145)]
    assert hashlib.sha256(labels.tobytes()).hexdigest().startswith("b1372190dcfab693")
    # another OpenCV may smooth edges otherwise
    np.testing.assert_allclose(image.mean((0, 1)), (139.76, 141.53, 135.1), atol=0.02)


@pytest.mark.parametrize("size", SIZES)
def test_half_of_the_vehicles_share_a_row_or_a_column_with_the_signal(size):
    for seed in range(8):
        _, labels, facts = draw(seed, size)
        rows, columns = np.nonzero(np.isin(labels, list(SIGNALS)))
        counts = Counter(vehicle.relation for vehicle in facts.vehicles)
        assert counts["row"] + counts["column"] == counts["off"] >= 2
        assert counts["row"] and counts["column"]
        for vehicle in facts.vehicles:
            # the label map is the witness: what the facts say must have been drawn
            assert labels[vehicle.y, vehicle.x] == toyscapes.CLASSES[facts.truth]
            y_gap = max(rows.min() - (vehicle.y + 12), vehicle.y - 12 - rows.max())
            x_gap = max(columns.min() - (vehicle.x + 24), vehicle.x - 24 - columns.max())
            relation = {(True, False): "row", (False, True): "column", (False, False): "off"}[y_gap < 0, x_gap < 0]
            assert relation == vehicle.relation
            assert max(y_gap, x_gap) > 48 if relation != "off" else min(y_gap, x_gap) > 48


@pytest.mark.parametrize("size", SIZES)
def test_vehicles_do_not_touch_and_lie_inside_the_picture(size):
    for seed in range(8):
        facts = draw(seed, size)[2]
        for vehicle in facts.vehicles:
            assert 24 <= vehicle.x <= size[1] - 24
            assert 12 <= vehicle.y <= size[0] - 12
        for one, two in combinations(facts.vehicles, 2):
            assert abs(one.x - two.x) > 48 or abs(one.y - two.y) > 24


def test_only_the_signal_tells_the_class():
    reference, _, facts = draw(3, truth="car")
    y, x = np.mgrid[: reference.shape[0], : reference.shape[1]]
    outside = np.hypot(y - facts.y, x - facts.x) > street.SIGNAL_RADIUS
    for truth in list(toyscapes.CLASSES)[1:]:
        image, labels, other = draw(3, truth=truth)
        assert other.vehicles == facts.vehicles
        assert np.array_equal(image[outside], reference[outside])
        assert not np.array_equal(image, reference)
        assert toyscapes.CLASSES[truth] in labels


def test_a_shown_class_changes_the_signal_but_not_the_truth():
    image, labels, _ = draw(3, truth="car", shown="bicycle")
    assert np.array_equal(image, draw(3, truth="bicycle")[0])
    assert set(np.unique(labels)) & VEHICLES == {26}


def test_the_signals_colours_are_far_apart():
    colours = [np.array(colour, float) for colour, _ in toyscapes.SIGNALS.values()]
    assert min(np.linalg.norm(one - two) for one, two in combinations(colours, 2)) > 100
    assert list(toyscapes.SIGNALS) == list(toyscapes.CLASSES)


def of_two(seed, size=toyscapes.SIZE, truths=("car", "bicycle"), **keys):
    return toyscapes.scene_of_two(np.random.default_rng(seed), size, truths, **keys)


@pytest.mark.parametrize("size", SIZES)
def test_of_two_signals_each_rules_half_of_the_vehicles_and_half_of_those_from_its_cross(size):
    for seed in range(6):
        image, labels, facts = of_two(seed, size)
        assert (image.shape, labels.shape) == ((*size, 3), size)
        assert set(np.unique(labels).tolist()) & VEHICLES == {toyscapes.CLASSES["car"], toyscapes.CLASSES["bicycle"]}
        assert len({signal.mark for signal in facts.signals}) == 2
        for signal, own in zip(facts.signals, facts.vehicles, strict=True):
            assert labels[signal.y, signal.x] in SIGNALS
            counts = Counter(vehicle.relation for vehicle in own)
            assert counts["row"] + counts["column"] == counts["off"] >= 1
            for vehicle in own:
                assert labels[vehicle.y, vehicle.x] == toyscapes.CLASSES[signal.truth]
                y_gap, x_gap = abs(vehicle.y - signal.y) - 24, abs(vehicle.x - signal.x) - 36
                relation = {(True, False): "row", (False, True): "column", (False, False): "off"}[y_gap < 0, x_gap < 0]
                assert relation == vehicle.relation
                assert max(y_gap, x_gap) > 48 if relation != "off" else min(y_gap, x_gap) > 48
            # nor does the other signal's colour lie within sight of the convolutions
            for other in facts.signals:
                assert all(max(abs(v.y - other.y) - 24, abs(v.x - other.x) - 36) > 48 for v in own)
        vehicles = [vehicle for own in facts.vehicles for vehicle in own]
        assert all(abs(one.x - two.x) > 48 or abs(one.y - two.y) > 24 for one, two in combinations(vehicles, 2))


def test_neither_one_signal_nor_the_more_frequent_class_tells_the_class_of_a_vehicle(tmp_path):
    """Counted over what is written: guesses that do not match marks are right for half of the vehicles."""
    source = open_source(
        Data(dataset="toyscapes", root=str(toyscapes.make(tmp_path / "two", train=40, val=1, signals=2)), crop=(9, 9)),
        "train",
    )
    rulers, frequent, classes, pairs = Counter(), Counter(), Counter(), set()
    for index, sample in enumerate(source.samples):
        truths = list(permutations(toyscapes.CLASSES, 2))[index % 20]
        facts = of_two((0, 0, index), truths=truths)[2]
        labels = images.read_label(sample.label)
        own = [int(labels[v.y, v.x]) for vehicles in facts.vehicles for v in vehicles]
        pairs.add(truths)
        classes.update(own)
        frequent[max(Counter(own).values()) / len(own)] += 1
        for signal in facts.signals:
            rulers[sum(found == toyscapes.CLASSES[signal.shown] for found in own) / len(own)] += 1
    assert len(pairs) == 20 and len(set(classes.values())) == 1
    assert rulers == {0.5: 80}
    assert frequent == {0.5: 40}


def test_the_marks_say_whose_a_vehicle_is_and_the_colours_alone_its_class():
    reference, _, facts = of_two(3)
    image, labels, other = of_two(3, truths=("bus", "truck"))
    assert other.vehicles == facts.vehicles
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    inside = [np.hypot(y - signal.y, x - signal.x) <= street.SIGNAL_RADIUS for signal in facts.signals]
    assert np.array_equal(image[~(inside[0] | inside[1])], reference[~(inside[0] | inside[1])])
    for signal, own in zip(facts.signals, facts.vehicles, strict=True):
        board = texture(image, signal.x, signal.y - street.SIGNAL_RADIUS - 7)
        assert all(np.array_equal(texture(image, v.x, v.y - 3), board) for v in own)
        assert np.array_equal(board, texture(image, signal.x, signal.y - street.SIGNAL_RADIUS - 7))
    one, two = (texture(image, own[0].x, own[0].y - 3) for own in facts.vehicles)
    assert not np.array_equal(one, two)
    assert {toyscapes.CLASSES["bus"], toyscapes.CLASSES["truck"]} <= set(np.unique(labels).tolist())


def texture(image, x, y):
    return image[y - 6 : y + 6, x - 12 : x + 12].mean(2) > 128


def test_shuffled_colours_of_two_signals_leave_the_vehicles_classes(tmp_path):
    roots = [
        toyscapes.make(tmp_path / str(shuffle), train=1, val=6, signals=2, shuffle_signals=shuffle)
        for shuffle in (False, True)
    ]
    vehicles = []
    for root in roots:
        labels = [images.read_label(path) for path in sorted(root.glob("gtFine/val/*/*.png"))]
        vehicles.append([np.where(np.isin(each, list(VEHICLES)), each, 0) for each in labels])
    assert all(np.array_equal(one, two) for one, two in zip(*vehicles, strict=True))
    assert fingerprint(roots[0] / "leftImg8bit" / "train") == fingerprint(roots[1] / "leftImg8bit" / "train")
    assert fingerprint(roots[0] / "leftImg8bit" / "val") != fingerprint(roots[1] / "leftImg8bit" / "val")


def test_the_preset_s_key_opens_the_set_of_two_signals(cache):
    two = open_source(config.load("toyscapes2-r2").data, "train").samples
    one = open_source(config.load("toyscapes-r2").data, "train").samples
    assert len(list(cache.iterdir())) == 2
    expected = of_two((0, 0, 1), truths=("car", "bus"))[0]
    assert np.array_equal(images.read_image(two[1].image), expected)
    assert np.array_equal(images.read_image(one[1].image), draw((0, 0, 1), truth="truck")[0])


@pytest.mark.parametrize("recurrence", [0, 1, 2])
def test_the_signal_reaches_vehicles_on_its_cross_in_one_pass_and_the_others_in_two(recurrence):
    torch.manual_seed(0)
    overrides = [f"model.recurrence={recurrence}", "model.width=8", "model.channels=8", "model.query_channels=4"]
    net = model.build(config.load("toyscapes-r2", overrides).model, 19).eval().double()
    for name, weight in net.named_parameters():
        # nothing may hide behind a ReLU or a sharp softmax, and at gamma 0 there is no attention
        if name.startswith("backbone") and weight.dim() > 1:
            weight.data.abs_()
        if name.endswith("gamma"):
            weight.data.fill_(1.0)
        if "query_conv" in name:
            weight.data.zero_()
    for seed in range(3):
        scores = []
        for shown in ("car", "bicycle"):
            image, _, facts = draw(seed, truth="car", shown=shown)
            x = torch.from_numpy(image).double().permute(2, 0, 1)[None] / 100
            with torch.no_grad():
                scores.append(F.interpolate(net(x), toyscapes.SIZE, mode="bilinear", align_corners=True)[0])
        change = (scores[0] - scores[1]).abs().amax(dim=0)
        for vehicle in facts.vehicles:
            seen = change[vehicle.y - 12 : vehicle.y + 13, vehicle.x - 24 : vehicle.x + 25].max().item()
            needed = 2 if vehicle.relation == "off" else 1
            assert (seen > 1e-9) == (recurrence >= needed), (seed, vehicle, seen)


def test_the_real_reader_opens_what_was_made(tmp_path):
    root = toyscapes.make(tmp_path / "toys", train=5, val=2)
    assert [path.name for path in tmp_path.iterdir()] == ["toys"]
    data = Data(dataset="toyscapes", root=str(root), crop=toyscapes.SIZE)
    source = open_source(data, "train")
    assert len(source.samples) == 5
    val = open_source(data, "val")
    assert len(val.samples) == 2
    # the classes take turns in both splits, but no scene comes twice
    pictures = [sample.image.read_bytes() for sample in (*source.samples, *val.samples)]
    assert len(set(pictures)) == 7
    present = [set(np.unique(load_label(source, sample))) & {13, 14, 15, 17, 18} for sample in source.samples]
    assert present == [{13}, {14}, {15}, {17}, {18}]
    assert images.read_image(source.samples[0].image).shape == (*toyscapes.SIZE, 3)


def test_a_data_set_is_the_same_for_the_same_seed(tmp_path):
    one, again, other = (
        fingerprint(toyscapes.make(tmp_path / name, train=2, val=1, seed=seed))
        for name, seed in (("one", 4), ("again", 4), ("other", 5))
    )
    assert one == again
    assert one.keys() == other.keys()
    assert one != other


def test_shuffled_signals_change_images_of_val_alone(tmp_path):
    plain = fingerprint(toyscapes.make(tmp_path / "plain", train=2, val=8))
    shuffled = fingerprint(toyscapes.make(tmp_path / "shuffled", train=2, val=8, shuffle_signals=True))
    changed = {path for path in plain if plain[path] != shuffled[path]}
    pictures = {path for path in changed if path.startswith("leftImg8bit/val")}
    assert 3 <= len(pictures) <= 8
    # a label map holds the signal's own class, which is that of what it shows, and the vehicles' true class
    for path in changed - pictures:
        assert path.startswith("gtFine/val")
        ours, theirs = (images.read_label(tmp_path / name / path) for name in ("plain", "shuffled"))
        assert set(ours[ours != theirs].tolist()) <= SIGNALS


def test_make_replaces_an_empty_folder_and_refuses_a_full_one(tmp_path):
    (tmp_path / "toys").mkdir()
    toyscapes.make(tmp_path / "toys", train=1, val=1)
    before = fingerprint(tmp_path)
    with pytest.raises(InputError, match=r"toys: is not empty"):
        toyscapes.make(tmp_path / "toys", train=1, val=1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file: is not a folder"):
        toyscapes.make(tmp_path / "file", train=1, val=1)
    with pytest.raises(InputError, match=r"cannot be made"):
        toyscapes.make(tmp_path / "file" / "toys", train=1, val=1)
    (tmp_path / "file").unlink()
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("keys", [{"train": 0}, {"val": -1}, {"size": (100, 208)}, {"size": (160, 200)}])
def test_make_refuses_what_cannot_be_drawn(tmp_path, keys):
    with pytest.raises(InputError, match=r"at least"):
        toyscapes.make(tmp_path / "toys", **{"train": 1, "val": 1} | keys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, EnvironmentFailure("disk", "full", "make room")])
def test_an_interrupted_make_leaves_nothing(tmp_path, monkeypatch, error):
    monkeypatch.setattr(images, "write_label", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        toyscapes.make(tmp_path / "toys", train=1, val=1)
    assert not list(tmp_path.iterdir())


def test_the_built_in_set_is_drawn_once(cache, capsys):
    folder = toyscapes.built_in()
    assert folder.parent == cache
    assert "drawing the built-in data set" in capsys.readouterr().err
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert toyscapes.built_in() == folder
    assert capsys.readouterr().err == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_another_version_has_another_folder(cache, monkeypatch):
    folder = toyscapes.built_in()
    monkeypatch.setattr(toyscapes, "VERSION", toyscapes.VERSION + 1)
    assert toyscapes.built_in() != folder


def test_two_processes_may_draw_the_built_in_set_at_once(cache):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        # the second result is that of a process which found the folder filled when it wanted to put its own there
        one, two = pool.map(_built_in, range(2), chunksize=1)
    assert one == two
    assert len(list(one.rglob("*_leftImg8bit.png"))) == 3
    assert list(cache.iterdir()) == [one]


def _built_in(_):
    return toyscapes.built_in()


def test_a_process_that_comes_second_uses_the_first_ones_set(cache, monkeypatch):
    real = Path.replace

    def slow(self, target):
        # the other process is done just before this one
        monkeypatch.setattr(Path, "replace", real)
        toyscapes.make(target, train=2, val=1)
        return real(self, target)

    monkeypatch.setattr(toyscapes, "_write", lambda root, *_, **__: (root / "x").mkdir(exist_ok=True))
    monkeypatch.setattr(Path, "replace", slow)
    assert list(cache.glob("*")) == []
    folder = toyscapes.built_in()
    assert list(cache.iterdir()) == [folder]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"CCNET_CACHE"):
        toyscapes.make(tmp_path / "toys", train=1, val=1)


def test_marks_are_plain_striped_either_way_or_checked():
    """Light and dark cells of 24 x 12 pixels, by hand: 4 wide, 4 high, or 6 by 6."""
    drawn = {}
    for mark in street.MARKS:
        picture = np.zeros((20, 40, 3), np.uint8)
        street.draw_mark(picture, 20, 10, mark)
        part = picture[4:16, 8:32, 0]
        assert part.all() and picture.astype(int).sum() == 3 * part.astype(int).sum(), "nothing beside the mark"
        drawn[mark] = part == 16
    columns, rows = np.arange(24)[None], np.arange(12)[:, None]
    assert not drawn["plain"].any()
    assert (drawn["upright"] == (columns // 4 % 2 == 1)).all()
    assert (drawn["level"] == (rows // 4 % 2 == 1)).all()
    assert (drawn["checks"] == ((columns // 6 + rows // 6) % 2 == 1)).all()


def test_drawn_scenes_and_clips_are_recognised_and_lack_nothing(tmp_path):
    """They have few of Cityscapes' classes, and its folders."""
    toyscapes.make(tmp_path / "toyscapes", train=16, val=1)
    toyclips.make(tmp_path / "toyclips", train=2, val=2)
    for name in ("toyscapes", "toyclips"):
        assert recognise(tmp_path / name) == name
    data = config.load("quickstart", ["data.dataset=toyscapes", f"data.root={tmp_path / 'toyscapes'}"]).data
    assert check(open_source(data, "train")).warnings == ()
