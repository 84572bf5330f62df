import dataclasses

import cv2
import numpy as np
import pytest
import torch
from bad_inputs import photograph, png
from torch.utils.data import DataLoader

from ccnet_cli.datasets import FolderData, transforms
from ccnet_cli.datasets.sampling import Batches
from ccnet_cli.datasets.source import load_pair, open_source
from ccnet_cli.datasets.training import Augmentation, Item, TrainingSet, collate, raise_worker_errors, to_device
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.media import pixels
from ccnet_cli.training.loader import init_worker

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)


@pytest.fixture
def source(tmp_path):
    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    for index in range(5):
        image = photograph(20, 30, index)
        (tmp_path / f"images/train/{index}.png").write_bytes(png(image, colour=2))
        (tmp_path / f"labels/train/{index}.png").write_bytes(png(image[:, :, 0] // 86))
    data = FolderData(dataset="folder", root=str(tmp_path), classes=["a", "b", "c"], crop=(24, 24))
    return open_source(data, "train")


def training(source, **keys):
    seed = keys.pop("seed", 3)
    return TrainingSet(source, Augmentation((24, 26), **keys), "rgb", seed)


def plain(source, crop, **keys):
    return TrainingSet(source, Augmentation(crop, **keys))


def arrive(item, mean=MEAN, std=STD):
    """One sample as the network gets it: image, label and name."""
    images, labels, names = next(to_device([collate([item])], mean, std, torch.device("cpu")))
    return images[0], labels[0], names[0]


@pytest.mark.parametrize("epoch", range(12))  # among them every case: padded or not, mirrored or not
def test_a_sample_is_the_steps_of_the_recipe_in_order(source, epoch):
    image, label, name = arrive(training(source)[epoch, 2])
    assert (image.dtype, label.dtype, name) == (torch.float32, torch.int64, "2")
    assert image.shape == (3, 24, 26)
    assert label.shape == (24, 26)

    pixels, ids = load_pair(source, source.samples[2])
    random = transforms.generator(3, epoch, 2)
    scales = [0.7 + k / 10 for k in range(15)]
    pixels, ids = transforms.resize(pixels, ids, scales[random.integers(15)])
    # normalised and padded first, cropped after it, as the recipe says: the order must not matter
    pixels = (pixels[:, :, ::-1].astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    below, right = max(24 - ids.shape[0], 0), max(26 - ids.shape[1], 0)
    pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)))
    ids = np.pad(ids, ((0, below), (0, right)), constant_values=255)
    top, left = random.integers(ids.shape[0] - 24 + 1), random.integers(ids.shape[1] - 26 + 1)
    pixels, ids = pixels[top : top + 24, left : left + 26], ids[top : top + 24, left : left + 26]
    if random.integers(2):
        pixels, ids = pixels[:, ::-1], ids[:, ::-1]
    torch.testing.assert_close(image, torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    assert (label.numpy() == ids).all()


@pytest.mark.parametrize("epoch", range(12))
def test_mmsegmentation_s_steps_come_between_the_authors(source, epoch):
    keys = {"scale_min": 0.5, "scale_max": 2.0, "scale_step": 0, "fit": (40, 24), "category_ratio": 0.4}
    image, label, _ = arrive(training(source, photometric=True, **keys)[epoch, 2])
    pixels, ids = load_pair(source, source.samples[2])
    random = transforms.generator(3, epoch, 2)
    # 20 x 30 fits within 40 x 24 as 24 x 36, before the scale
    factor = random.uniform(0.5, 2.0) * 1.2
    pixels, ids = transforms.resize(pixels, ids, factor)
    pixels, ids = transforms.cut(pixels, ids, ids.shape, (24, 26), random, 0.4)
    # the distortion sees the photograph alone: not what is padded
    pixels = transforms.distort(pixels, random)
    pixels = (pixels[:, :, ::-1].astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    below, right = 24 - ids.shape[0], 26 - ids.shape[1]
    pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)))
    ids = np.pad(ids, ((0, below), (0, right)), constant_values=255)
    if random.integers(2):
        pixels, ids = pixels[:, ::-1], ids[:, ::-1]
    torch.testing.assert_close(image, torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    assert (label.numpy() == ids).all()


def test_a_mirrored_person_s_left_is_right(source):
    paired = dataclasses.replace(source, classes=dataclasses.replace(source.classes, mirrored=((0, 2),)))
    mirrored = 0
    for epoch in range(20):
        image, label, _ = arrive(training(source)[epoch, 1])
        with_pairs, exchanged, _ = arrive(training(paired)[epoch, 1])
        assert torch.equal(image, with_pairs)
        if not torch.equal(label, exchanged):
            mirrored += 1
            assert torch.equal(exchanged, torch.tensor([2, 1, 0] + [255] * 253)[label])
    assert 4 < mirrored < 16
    for epoch in range(5):
        unpaired, same = (training(each, mirror=False)[epoch, 1].label for each in (source, paired))
        assert (unpaired == same).all()


def test_mirror_can_be_turned_off(source):
    data = plain(source, (20, 30), scale_min=1.0, scale_max=1.0, mirror=False)
    pixels, _ = load_pair(source, source.samples[0])
    for epoch in range(20):
        assert (data[epoch, 0].image == pixels).all()


def test_opencv_starts_no_threads_that_a_fork_would_lose(source):
    cv2.setNumThreads(2)
    training(source)
    assert cv2.getNumThreads() == 1


def test_workers_start_no_threads(source):
    class Counts(TrainingSet):
        def __getitems__(self, keys):
            return torch.get_num_threads(), cv2.getNumThreads()

    data = Counts(source, Augmentation((8, 8)))
    threads = torch.get_num_threads()
    # as in a process that was spawned: what its parent set does not reach it
    cv2.setNumThreads(3)
    torch.set_num_threads(3)
    try:
        loader = DataLoader(
            data,
            batch_sampler=Batches(5, 4, 3),
            num_workers=1,
            collate_fn=tuple,
            worker_init_fn=init_worker,
            multiprocessing_context="fork",
        )
        assert list(loader) == [(1, 1)]
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(0)


@pytest.mark.parametrize("layout", [True, False])
def test_what_arrives_is_the_table_s_value_of_every_byte(layout):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 16, 48, 3)).astype(np.uint8)
    labels = random.integers(0, 256, (2, 16, 48)).astype(np.uint8)
    items = [Item(*each, (16, 0, 48), "") for each in zip(images, labels, strict=True)]
    mean, std = (104.00698793, 116.66876762, 122.67891434), (58.395, 1.0, 57.375)
    arrived = to_device([collate(items)] * 2, mean, std, torch.device("cpu"), layout)
    for image, label, _ in arrived:
        assert (image.dtype, label.dtype) == (torch.float32, torch.int64)
        for got, wanted in zip(image, images, strict=True):
            np.testing.assert_array_equal(got, pixels.normalise(wanted, "bgr", mean, std))
        np.testing.assert_array_equal(label, labels)
        assert image.is_contiguous(memory_format=torch.channels_last if layout else torch.contiguous_format)


def test_padding_arrives_as_zero_wherever_it_lies(source):
    """No byte gives 0 with these means: padding is what the extent says, not what a byte holds."""
    data = training(source, scale_min=0.7, scale_max=0.8)
    seen = set()
    for epoch in range(12):
        item = data[epoch, 1]
        bottom, left, right = item.extent
        image, label, _ = arrive(item, (10.5, 20.5, 30.5))
        inside = torch.zeros(24, 26, dtype=torch.bool)
        inside[:bottom, left:right] = True
        assert ((image == 0) == ~inside).all()
        assert (label[~inside] == 255).all() and (label[inside] != 255).all()
        seen.add((bottom, left, right))
    # scaled by 0.7 or 0.8, mirrored or not
    assert seen == {(14, 0, 21), (14, 5, 26), (16, 0, 24), (16, 2, 26)}


def test_a_sample_keeps_no_larger_picture_alive(source):
    def held(array):
        return held(array.base) if isinstance(array.base, np.ndarray) else array.nbytes

    data = plain(source, (9, 10))
    for epoch in range(12):
        item = data[epoch, 0]
        assert held(item.image) == 9 * 10 * 3 and held(item.label) == 9 * 10


def test_half_of_the_samples_are_mirrored(source):
    data = plain(source, (20, 30), scale_min=1.0, scale_max=1.0)
    pixels, ids = load_pair(source, source.samples[0])
    mirrored = 0
    for epoch in range(100):
        item = data[epoch, 0]
        turned = not (item.image == pixels).all()
        mirrored += turned
        np.testing.assert_array_equal(item.image, np.flip(pixels, 1) if turned else pixels)
        np.testing.assert_array_equal(item.label, np.flip(ids, 1) if turned else ids)
    assert 35 < mirrored < 65


def test_seed_epoch_and_index_decide_the_sample(source):
    data = training(source)
    keys = [(epoch, index) for epoch in range(3) for index in range(5)]
    first = [data[key] for key in keys]
    for key, item in reversed(list(zip(keys, first, strict=True))):
        again = training(source)[key]
        assert (again.image == item.image).all() and (again.label == item.label).all()
        assert again.extent == item.extent
    sums = {int(item.image.sum(dtype=np.int64)) for item in first}
    assert len(sums) == 15
    assert int(training(source, seed=4)[0, 0].image.sum(dtype=np.int64)) not in sums


def test_a_tiny_image_is_padded(source):
    source.samples[0].image.write_bytes(png(np.full((1, 1, 3), 9), colour=2))
    source.samples[0].label.write_bytes(png(np.array([[2]])))
    item = plain(source, (8, 8), scale_min=1.0, scale_max=1.0, mirror=False)[0, 0]
    image, label, _ = arrive(item, (0, 0, 0), (1, 1, 1))
    assert image.shape == (3, 8, 8)
    assert (image[:, 0, 0].tolist(), int(image.count_nonzero())) == ([9, 9, 9], 3)
    assert (int(label[0, 0]), int((label == 255).sum())) == (2, 63)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_the_same_with_and_without_workers(source, workers):
    batches = Batches(5, 4, 3, steps=3)
    data = training(source)
    loader = DataLoader(data, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    for keys, (images, labels, extents, names) in zip(batches, raise_worker_errors(loader), strict=True):
        assert images.shape == (4, 24, 26, 3)
        for row, key in enumerate(keys):
            item = data[key]
            assert (images[row].numpy() == item.image).all() and (labels[row].numpy() == item.label).all()
            assert extents[row] == item.extent
        assert names == [str(index) for _, index in keys]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_arrives_as_itself(source, workers):
    source.samples[3].image.write_bytes(b"gone")
    loader = DataLoader(training(source), batch_sampler=Batches(5, 5, 0), num_workers=workers, collate_fn=collate)
    with pytest.raises(InputError, match=r"3\.png"):
        list(raise_worker_errors(loader))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_a_worker_names_the_image_and_elsewhere_its_line(source, workers, monkeypatch):
    monkeypatch.setattr("ccnet_cli.datasets.training.load_pair", lambda *_: 1 / 0)
    loader = DataLoader(training(source), batch_sampler=Batches(5, 5, 0), num_workers=workers, collate_fn=collate)
    error = EnvironmentFailure if workers else ZeroDivisionError
    with pytest.raises(error, match=r"\.png: a worker failed on it \(ZeroDiv" if workers else "division by zero"):
        list(raise_worker_errors(loader))
