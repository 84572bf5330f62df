import dataclasses

import cv2
import numpy as np
import pytest
import torch
from bad_inputs import photograph, png
from torch.utils.data import DataLoader

from ccnet_cli import config, datasets
from ccnet_cli.datasets import transforms
from ccnet_cli.errors import InputError

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)


@pytest.fixture
def source(tmp_path):
    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    for index in range(5):
        image = photograph(20, 30, index)
        (tmp_path / f"images/train/{index}.png").write_bytes(png(image, colour=2))
        (tmp_path / f"labels/train/{index}.png").write_bytes(png(image[:, :, 0] // 86))
    data = config.Data(dataset="folder", root=str(tmp_path), classes=["a", "b", "c"], crop=(24, 24))
    return datasets.open_source(data, "train")


def training(source, **keys):
    return datasets.Training(source, (24, 26), channel_order="rgb", mean=MEAN, std=STD, **{"seed": 3, **keys})


@pytest.mark.parametrize("epoch", range(12))  # among them every case: padded or not, mirrored or not
def test_a_sample_is_the_steps_of_the_recipe_in_order(source, epoch):
    image, label, name = training(source)[epoch, 2]
    assert (image.dtype, label.dtype, name) == (torch.float32, torch.int64, "2")
    assert image.shape == (3, 24, 26)
    assert label.shape == (24, 26)

    pixels, ids = datasets.load_pair(source, source.samples[2])
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
    image, label, _ = training(
        source, scale_min=0.5, scale_max=2.0, scale_step=0, fit=(40, 24), category_ratio=0.4, photometric=True
    )[epoch, 2]
    pixels, ids = datasets.load_pair(source, source.samples[2])
    random = transforms.generator(3, epoch, 2)
    # 20 x 30 fits within 40 x 24 as 24 x 36, before the scale
    factor = random.uniform(0.5, 2.0) * 1.2
    pixels, ids = transforms.resize(pixels, ids, factor)
    pixels, ids = transforms.cut(pixels, ids, (24, 26), random, 0.4)
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
        image, label, _ = training(source)[epoch, 1]
        with_pairs, exchanged, _ = training(paired)[epoch, 1]
        assert torch.equal(image, with_pairs)
        if not torch.equal(label, exchanged):
            mirrored += 1
            assert torch.equal(exchanged, torch.tensor([2, 1, 0] + [255] * 253)[label])
    assert 4 < mirrored < 16
    for epoch in range(5):
        plain, kept = training(source, mirror=False)[epoch, 1][1], training(paired, mirror=False)[epoch, 1][1]
        assert torch.equal(plain, kept)


def test_mirror_can_be_turned_off(source):
    plain = datasets.Training(source, (20, 30), 1.0, 1.0, mirror=False, mean=(0, 0, 0))
    pixels, _ = datasets.load_pair(source, source.samples[0])
    for epoch in range(20):
        assert (plain[epoch, 0][0].numpy() == pixels.transpose(2, 0, 1)).all()


def test_opencv_starts_no_threads_that_a_fork_would_lose(source):
    cv2.setNumThreads(2)
    training(source)
    assert cv2.getNumThreads() == 1


def test_seed_epoch_and_index_decide_the_sample(source):
    data = training(source)
    keys = [(epoch, index) for epoch in range(3) for index in range(5)]
    first = [data[key] for key in keys]
    for key, (image, label, _) in reversed(list(zip(keys, first, strict=True))):
        again = training(source)[key]
        assert torch.equal(again[0], image) and torch.equal(again[1], label)
    sums = {float(image.double().sum()) for image, _, _ in first}
    assert len(sums) == 15
    assert float(training(source, seed=4)[0, 0][0].double().sum()) not in sums


def test_a_tiny_image_is_padded(source):
    source.samples[0].image.write_bytes(png(np.full((1, 1, 3), 9), colour=2))
    source.samples[0].label.write_bytes(png(np.array([[2]])))
    image, label, _ = datasets.Training(source, (8, 8), scale_min=1.0, scale_max=1.0, mean=(0, 0, 0))[0, 0]
    assert image.shape == (3, 8, 8)
    assert (image[:, 0, 0].tolist(), int(image.count_nonzero())) == ([9, 9, 9], 3)
    assert (int(label[0, 0]), int((label == 255).sum())) == (2, 63)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_the_same_with_and_without_workers(source, workers):
    batches = datasets.Batches(5, 4, 3, steps=3)
    data = training(source)
    loader = DataLoader(data, batch_sampler=batches, num_workers=workers, collate_fn=datasets.collate)
    for keys, (images, labels, names) in zip(batches, datasets.delivered(loader), strict=True):
        assert images.shape == (4, 3, 24, 26)
        for row, key in enumerate(keys):
            assert torch.equal(images[row], data[key][0]) and torch.equal(labels[row], data[key][1])
        assert names == [str(index) for _, index in keys]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_arrives_as_itself(source, workers):
    source.samples[3].image.write_bytes(b"gone")
    loader = DataLoader(
        training(source), batch_sampler=datasets.Batches(5, 5, 0), num_workers=workers, collate_fn=datasets.collate
    )
    with pytest.raises(InputError, match=r"3\.png"):
        list(datasets.delivered(loader))
