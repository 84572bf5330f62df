import cv2
import numpy as np
import pytest
from bad_inputs import photograph

from ccnet_cli.datasets import transforms


def bilinear(image, height, width):
    """Sample at pixel centres, edges repeated: one pixel at a time, in float64."""
    output = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            v = np.clip((y + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
            u = np.clip((x + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
            top, left = int(v), int(u)
            below, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            a, b = v - top, u - left
            output[y, x] = (1 - a) * ((1 - b) * image[top, left] + b * image[top, right]) + a * (
                (1 - b) * image[below, left] + b * image[below, right]
            )
    return output


def test_the_official_scales_are_fifteen_from_0_7_to_2_1():
    assert transforms.scales(0.7, 2.1, 0.1) == (
        0.7,
        0.8,
        0.9,
        1.0,
        1.1,
        1.2,
        1.3,
        1.4,
        1.5,
        1.6,
        1.7,
        1.8,
        1.9,
        2.0,
        2.1,
    )
    assert transforms.scales(0.9, 1.2, 0.1) == (0.9, 1.0, 1.1, 1.2)  # (1.2 - 0.9) / 0.1 is below 3
    assert transforms.scales(1.0, 1.0, 0.1) == (1.0,)
    assert transforms.scales(0.5, 1.2, 0.25) == (0.5, 0.75, 1.0)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3, 2.1])
@pytest.mark.parametrize("shape", [(24, 31), (1, 40), (40, 1), (1, 1)])
def test_resize_is_bilinear_for_images_and_nearest_for_labels(shape, scale):
    image = photograph(*shape)
    label = np.random.default_rng(0).integers(0, 19, shape, dtype=np.uint8)
    resized, ids = transforms.resize(image, label, scale)
    height, width = (max(1, round(side * scale)) for side in shape)
    assert resized.shape == (height, width, 3)
    np.testing.assert_allclose(resized, bilinear(image.astype(np.float64), height, width), atol=1.01)
    y, x = ((np.arange(new) + 0.5) * old / new for new, old in zip((height, width), shape, strict=True))
    expected = label[np.minimum(y, shape[0] - 1).astype(int)][:, np.minimum(x, shape[1] - 1).astype(int)]
    # where a centre lies on the border of two pixels, either is nearest
    inside = (np.abs(y - y.round()) > 1e-3)[:, None] & (np.abs(x - x.round()) > 1e-3)
    np.testing.assert_array_equal(ids[inside], expected[inside])
    assert inside.mean() > 0.8


def test_a_tiny_scale_leaves_a_pixel():
    image, label = transforms.resize(photograph(3, 3), np.zeros((3, 3), np.uint8), 0.1)
    assert image.shape == (1, 1, 3)
    assert label.shape == (1, 1)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_normalise_subtracts_and_divides_in_the_channel_order(order):
    image, mean, std = photograph(5, 6), (1.5, 20.25, 130.0), (1.0, 57.375, 0.5)
    output = transforms.normalise(image, order, mean, std)
    assert output.dtype == np.float32
    assert output.flags.c_contiguous
    for channel in range(3):
        plane = image[:, :, channel if order == "bgr" else 2 - channel].astype(np.float64)
        np.testing.assert_allclose(output[channel], (plane - mean[channel]) / std[channel], rtol=1e-6)
    np.testing.assert_array_equal(output, transforms.normalise(image[:, ::-1], order, mean, std)[:, :, ::-1])


def test_padding_is_below_and_right_with_the_mean_and_the_ignored_label():
    image, label = transforms.pad(np.ones((3, 2, 5), np.float32), np.ones((2, 5), np.uint8), (4, 4), 255)
    assert image.shape == (3, 4, 5)
    assert (image[:, :2] == 1).all() and (image[:, 2:] == 0).all()
    assert (label[:2] == 1).all() and (label[2:] == 255).all()


def drawn(seed, count=400, shape=(8, 10), crop=(6, 6), scales=(1.0, 1.0, 0.1)):
    """Crops of an image that holds each pixel's own position."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.dstack([y, x, y]).astype(np.uint8)
    label = (y * shape[1] + x).astype(np.uint8)
    for index in range(count):
        random = transforms.generator(seed, 0, index)
        yield transforms.cut(*transforms.resize(image, label, transforms.random_scale(*scales, random)), crop, random)


def test_every_place_comes_equally_often():
    seen = {}
    for image, label in drawn(0, 2400):
        assert image.shape == (6, 6, 3)
        np.testing.assert_array_equal(image[:, :, 0] * 10 + image[:, :, 1], label)  # they stay together
        place = (int(image[0, 0, 0]), int(image[0, 0, 1]))
        seen[place] = seen.get(place, 0) + 1
    assert sorted(seen) == [(top, left) for top in range(3) for left in range(5)]
    assert all(100 < times < 230 for times in seen.values())  # 160 each expected


def test_half_of_the_samples_are_mirrored_with_their_padding():
    image = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    label = np.array([[1, 2, 3, 255]] * 2)
    results = [transforms.mirror(image, label, transforms.generator(0, 0, index)) for index in range(400)]
    mirrored = [(pixels, ids) for pixels, ids in results if ids[0, 0] == 255]
    assert 150 < len(mirrored) < 250
    assert all((pixels == np.flip(image, 2)).all() and (ids == np.flip(label, 1)).all() for pixels, ids in mirrored)
    assert sum((pixels == image).all() and (ids == label).all() for pixels, ids in results) == 400 - len(mirrored)


def test_every_scale_comes_equally_often():
    places = drawn(1, 3000, shape=(10, 10), crop=(100, 100), scales=(0.7, 2.1, 0.1))
    heights = [image.shape[0] for image, _ in places]
    counts = np.array([heights.count(height) for height in range(7, 22)])
    assert counts.sum() == 3000
    assert all(140 < times < 270 for times in counts)  # 200 each expected


def test_images_smaller_than_the_crop_are_kept_whole():
    for image, label in drawn(0, 20, shape=(4, 20), crop=(6, 6)):
        assert image.shape == (4, 6, 3)
        assert label.shape == (4, 6)


def test_the_generator_depends_on_seed_epoch_and_index_alone():
    keys = [(s, e, i) for s in (0, 1) for e in (0, 1, 2**33) for i in (0, 1, 10**6)]
    draws = {key: tuple(transforms.generator(*key).integers(1 << 60, size=2)) for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert draws[0, 1, 0] == tuple(transforms.generator(0, 1, 0).integers(1 << 60, size=2))


def test_the_stream_of_random_numbers_stays_what_it_was():
    assert transforms.generator(3, 5, 7).integers(1000, size=4).tolist() == [313, 999, 154, 583]


def test_cutting_does_not_touch_its_input():
    image = photograph(20, 20)
    label = image[:, :, 0].copy()
    before = image.copy(), label.copy()
    random = np.random.default_rng(0)
    transforms.cut(*transforms.resize(image, label, 1.5), (9, 9), random)
    transforms.cut(image, label, (9, 9), random, 0.3)
    transforms.distort(image, random)
    assert (image == before[0]).all() and (label == before[1]).all()


def test_labels_are_not_shifted_against_the_image():
    # plain INTER_NEAREST would put the border half a pixel away from where the image has it
    label = np.zeros((40, 40), np.uint8)
    label[:, 20:] = 1
    for scale in (0.7, 0.9, 1.1, 1.3, 1.7, 2.1):
        image, ids = transforms.resize(np.dstack([label * 200] * 3), label, scale)
        assert ((image[:, :, 0] > 100) == ids).mean() > 0.999
    assert cv2.INTER_NEAREST_EXACT != cv2.INTER_NEAREST
