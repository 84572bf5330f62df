"""Changes that a sample may go through: image and label stay together, and nothing changes unless asked."""

import numpy as np
import pytest
import tiny

from ccnet_cli import config
from ccnet_cli.datasets.augment import GREY, apply, erase, rotate, stretch
from ccnet_cli.datasets.settings import Augment
from ccnet_cli.datasets.source import open_source
from ccnet_cli.datasets.training import Augmentation, TrainingSet

IGNORED = 255


def always(**values):
    return Augment(chance=1.0, **values)


def generator(seed=0):
    return np.random.default_rng(seed)


def picture(height=60, width=80):
    """A label of blocks, and an image of a grey for each class."""
    label = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((height // 3, width // 4), np.uint8))
    return np.repeat(20 * label[..., None], 3, axis=2), label


@pytest.mark.parametrize("degrees", [-90, -17.5, 0, 5, 180])
def test_a_rotation_turns_image_and_label_alike(degrees):
    image, label = picture(60, 60)
    (turned, again), turned_label = rotate([image, image], label, degrees, IGNORED)
    assert np.array_equal(turned, again) and turned.shape == image.shape
    kept = turned_label != IGNORED
    # but at the edges of blocks, where greys are mixed
    same = np.abs(turned[..., 0].astype(int) - 20 * turned_label)[kept] <= 2
    assert same.mean() > 0.85
    outside = ~kept
    assert outside.any() == (degrees not in (-90, 0, 180))
    assert (np.abs(turned[outside].astype(int) - GREY) < 120).all()
    if degrees == 180:
        assert np.array_equal(turned_label, label[::-1, ::-1])
    if degrees == -90:
        assert np.array_equal(turned_label, np.rot90(label, -1))


def test_a_stretch_keeps_the_area_and_stays_within_the_factor():
    sizes = [stretch(always(aspect=2.0), (100, 200), generator(seed)) for seed in range(50)]
    ratios = [width / height / 2 for height, width in sizes]
    assert all(0.49 <= ratio <= 2.02 for ratio in ratios) and max(ratios) > 1.5 and min(ratios) < 0.7
    assert all(abs(height * width / 20000 - 1) < 0.03 for height, width in sizes)
    assert stretch(always(), (100, 200), generator()) == (100, 200)


@pytest.mark.parametrize("values", [{"blur": 3.0}, {"noise": 20.0}, {"jpeg": 10}, {"erase": True}], ids=str)
def test_what_changes_the_image_alone_leaves_the_label(values):
    image, label = picture()
    before = image.copy()
    frames, after = apply(always(**values), [image], label, IGNORED, generator(3))
    assert after is label and np.array_equal(image, before)
    assert frames[0].shape == image.shape and frames[0].dtype == np.uint8
    assert not np.array_equal(frames[0], image)
    never = apply(Augment(chance=0.0, **values), [image], label, IGNORED, generator(3))
    assert never[0][0] is image


def test_a_hidden_part_is_the_same_rectangle_of_each_frame():
    image, _ = picture()
    frames = erase([image, 255 - image], generator(1))
    masks = [(frame == GREY).all(axis=2) for frame in frames]
    assert np.array_equal(*masks)
    rows, columns = (np.flatnonzero(masks[0].any(axis=axis)) for axis in (1, 0))
    assert masks[0].sum() == len(rows) * len(columns) and 0.01 <= masks[0].mean() <= 0.17


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tiny.make_camvid(tmp_path_factory.mktemp("data"), [(48, 64)] * 2, "train")
    return open_source(config.load("camvid", [f"data.root={root}"]).data, "train")


def samples(source, augment, seed=0):
    recipe = Augmentation((40, 40), scale_min=1.0, scale_max=1.0, augment=augment)
    items = TrainingSet(source, recipe, seed=seed)
    return [items[(epoch, index)] for epoch in range(2) for index in range(2)]


def test_samples_are_changed_by_seed_and_place_alone(source):
    full = always(rotate=20.0, aspect=1.3, blur=1.0, noise=5.0, jpeg=40, erase=True)
    one, again, other = samples(source, full), samples(source, full), samples(source, full, seed=1)
    for a, b, c in zip(one, again, other, strict=True):
        assert a.image.shape == (40, 40, 3) and a.label.shape == (40, 40)
        assert np.array_equal(a.image, b.image) and np.array_equal(a.label, b.label)
        assert not np.array_equal(a.image, c.image)
    plain, idle = samples(source, None), samples(source, Augment())
    assert all(np.array_equal(a.label, b.label) for a, b in zip(plain, idle, strict=True))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(plain, idle, strict=True))


def test_presets_set_single_changes():
    data = config.load("camvid", ["data.augment.rotate=10.0", "data.augment.jpeg=50"]).data
    assert data.augment == Augment(rotate=10.0, jpeg=50)
    assert config.load("camvid").data.augment is None
