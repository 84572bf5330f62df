import colorsys
from fractions import Fraction

import cv2
import numpy as np
import pytest
from bad_inputs import photograph

from ccnet_cli.datasets import transforms
from ccnet_cli.media import pixels


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
    output = pixels.normalise(image, order, mean, std)
    assert output.dtype == np.float32
    assert output.flags.c_contiguous
    for channel in range(3):
        plane = image[:, :, channel if order == "bgr" else 2 - channel].astype(np.float64)
        np.testing.assert_allclose(output[channel], (plane - mean[channel]) / std[channel], rtol=1e-6)
    np.testing.assert_array_equal(output, pixels.normalise(image[:, ::-1], order, mean, std)[:, :, ::-1])


@pytest.mark.parametrize("left", [0, 1, 3])
def test_padding_is_below_and_beside_with_nothing_and_the_ignored_label(left):
    image, label = transforms.pad(np.ones((2, 5, 3), np.uint8), np.ones((2, 5), np.uint8), (4, 8), left, 7)
    assert image.shape == (4, 8, 3)
    inside = np.zeros((4, 8), bool)
    inside[:2, left : left + 5] = True
    assert (image == inside[..., None]).all()
    assert (label == np.where(inside, 1, 7)).all()
    # nothing to do is nothing done
    again = transforms.pad(image, label, (4, 8), 0, 7)
    assert again[0] is image and again[1] is label


def drawn(seed, count=400, shape=(8, 10), crop=(6, 6), scales=(1.0, 1.0, 0.1)):
    """Crops of an image that holds each pixel's own position."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.dstack([y, x, y]).astype(np.uint8)
    label = (y * shape[1] + x).astype(np.uint8)
    for index in range(count):
        random = transforms.generator(seed, 0, index)
        size = pixels.scaled_size(shape, transforms.random_scale(*scales, random))
        yield transforms.cut(image, label, size, crop, random)


def test_every_place_comes_equally_often():
    seen = {}
    for image, label in drawn(0, 2400):
        assert image.shape == (6, 6, 3)
        np.testing.assert_array_equal(image[:, :, 0] * 10 + image[:, :, 1], label)  # they stay together
        place = (int(image[0, 0, 0]), int(image[0, 0, 1]))
        seen[place] = seen.get(place, 0) + 1
    assert sorted(seen) == [(top, left) for top in range(3) for left in range(5)]
    assert all(100 < times < 230 for times in seen.values())  # 160 each expected


def test_a_mirror_turns_image_and_label():
    image, label = photograph(3, 5), np.arange(15, dtype=np.uint8).reshape(3, 5)
    turned, ids = transforms.mirror(image, label)
    np.testing.assert_array_equal(turned, np.flip(image, 1))
    np.testing.assert_array_equal(ids, np.flip(label, 1))
    assert turned.flags.c_contiguous and ids.flags.c_contiguous


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
    transforms.cut(image, label, (30, 30), (9, 9), random)
    transforms.cut(image, label, (20, 20), (9, 9), random, 0.3)
    transforms.mirror(image, label, ((1, 2),))
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


def test_a_step_of_zero_draws_from_the_whole_range():
    random = np.random.default_rng(0)
    found = np.array([transforms.random_scale(0.5, 2.0, 0, random) for _ in range(3000)])
    assert 0.5 <= found.min() < 0.51 and 1.99 < found.max() < 2
    # as many in each tenth of the range: not in each tenth of its logarithm
    assert np.abs(np.histogram(found, 10, (0.5, 2))[0] - 300).max() < 60
    assert transforms.random_scale(1.5, 1.5, 0, random) == 1.5


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        ((1024, 2048), (2048, 1024), (1024, 2048)),
        ((1024, 2048), (2049, 1025), (1025, 2049)),  # 1024.5 is rounded up
        ((2048, 1024), (2049, 1025), (2049, 1025)),
        ((375, 500), (2048, 512), (512, 683)),
        ((500, 375), (2048, 512), (683, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),
        ((512, 512), (2048, 512), (512, 512)),
        ((1, 16000), (64, 64), (1, 64)),
    ],
)
def test_a_picture_fits_as_mmsegmentation_has_it(size, fit, expected):
    assert pixels.scaled_size(size, 1.0, fit) == expected


def test_a_picture_that_fits_is_as_large_as_can_be_and_keeps_its_shape():
    random = np.random.default_rng(1)
    for _ in range(300):
        height, width = (int(side) for side in random.integers(20, 900, 2))
        fit = tuple(sorted((int(side) for side in random.integers(20, 900, 2)), reverse=True))
        size = pixels.scaled_size((height, width), 1.0, fit)
        assert max(size) <= fit[0] and min(size) <= fit[1]
        assert max(size) == fit[0] or min(size) == fit[1]
        exact = min(Fraction(fit[0], max(height, width)), Fraction(fit[1], min(height, width)))
        assert all(abs(new - old * exact) <= 0.5 for new, old in zip(size, (height, width), strict=True))
        for scale in (0.5, 1.7):
            times = pixels.scaled_size((height, width), scale, fit)
            assert all(abs(side * scale - other) <= 0.5 + 0.5 * scale for side, other in zip(size, times, strict=True))


def test_resize_fits_and_then_scales():
    image, label = photograph(30, 45), np.arange(30 * 45).reshape(30, 45).astype(np.uint8)
    resized, ids = transforms.resize(image, label, 0.5, (90, 80))
    assert resized.shape == (30, 45, 3)
    assert resized is image and ids is label
    resized, ids = transforms.resize(image, label, 2.0, (90, 40))
    assert ids.shape == (80, 120)
    np.testing.assert_array_equal(resized, transforms.resize(image, label, 80 / 30)[0])


def chosen(label, crop, random, ratio, ignored):
    """Where mmsegmentation's rule puts a crop, as it is told: ten looks, and what is drawn after the last one stays."""

    def draw():
        y = random.integers(max(label.shape[0] - crop[0], 0) + 1)
        return y, random.integers(max(label.shape[1] - crop[1], 0) + 1)

    y, x = draw()
    for _ in range(10):
        values, counts = np.unique(label[y : y + crop[0], x : x + crop[1]], return_counts=True)
        counts = counts[values != ignored]
        if len(counts) > 1 and counts.max() / counts.sum() < ratio:
            return y, x
        y, x = draw()
    return y, x


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("ignored", [255, 3])
def test_a_crop_that_one_class_fills_is_drawn_again(ratio, ignored):
    label = np.zeros((20, 24), np.uint8)
    label[4:12, 5:14] = 1
    label[:, 18:] = ignored
    label[15:, 2:9] = 7
    image = np.dstack(np.broadcast_arrays(*np.ogrid[:20, :24], 0)).astype(np.uint8)
    places = set()
    for index in range(150):
        part, ids = transforms.cut(image, label, (20, 24), (6, 8), np.random.default_rng(index), ratio, ignored)
        y, x = chosen(label, (6, 8), np.random.default_rng(index), ratio, ignored)
        assert (int(part[0, 0, 0]), int(part[0, 0, 1])) == (y, x)
        np.testing.assert_array_equal(ids, label[y : y + 6, x : x + 8])
        places.add((y, x))
    assert len(places) > 20


def test_ten_more_crops_are_drawn_at_most():
    # one place of eleven shows two classes in equal parts: missed by the share that eleven draws leave
    label = np.zeros((1, 12), np.uint8)
    label[0, 11] = 1
    image = np.zeros((1, 12, 3), np.uint8)
    parts = [transforms.cut(image, label, (1, 12), (1, 2), np.random.default_rng(i), 0.75)[1] for i in range(2000)]
    found = sum(part.tolist() == [[0, 1]] for part in parts)
    assert abs(found / 2000 - (1 - (10 / 11) ** 11)) < 0.04
    calls = []

    class Counting:
        def integers(self, _):
            calls.append(1)
            return 0

    transforms.cut(image, label, (1, 12), (1, 2), Counting(), 0.75)
    assert len(calls) == 2 * 11
    calls.clear()
    # switched off, a crop of one class alone costs the two numbers that it always did
    transforms.cut(image, label, (1, 12), (1, 2), Counting())
    assert len(calls) == 2


def test_the_largest_fraction_leaves_out_what_is_ignored():
    label = np.array([[0, 0, 0, 1], [255, 255, 2, 255]], np.uint8)
    assert transforms.largest_fraction(label, 255) == 3 / 5
    assert transforms.largest_fraction(label, 0) == 3 / 5
    assert transforms.largest_fraction(np.full((3, 3), 255, np.uint8), 255) == 1
    assert transforms.largest_fraction(np.full((3, 3), 4, np.uint8), 255) == 1
    # seen through a cut the pixels do not lie in one run
    assert transforms.largest_fraction(label[:, 1:3], 255) == 2 / 3


def told_distortion(image, random):
    """mmsegmentation's distortion, step by step in floats."""

    def line(values, slope, offset):
        return np.clip(values.astype(np.float32) * np.float32(slope) + np.float32(offset), 0, 255).astype(np.uint8)

    def contrast(image):
        return line(image, random.uniform(0.5, 1.5), 0) if random.integers(2) else image

    if random.integers(2):
        image = line(image, 1, random.uniform(-32, 32))
    early = random.integers(2)
    if early:
        image = contrast(image)
    if random.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = line(hsv[:, :, 1], random.uniform(0.5, 1.5), 0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if random.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + random.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return image if early else contrast(image)


def test_distortion_takes_the_told_steps_in_order():
    image = photograph(9, 11)
    for index in range(200):
        output = transforms.distort(image, np.random.default_rng(index))
        np.testing.assert_array_equal(output, told_distortion(image, np.random.default_rng(index)))
        assert output.dtype == np.uint8
    assert transforms.distort(image[2:3, 4:5], np.random.default_rng(3)).shape == (1, 1, 3)


def test_each_distortion_comes_half_of_the_time_and_keeps_its_range():
    # brightness and contrast move a grey, saturation and hue do not
    grey = np.full((1, 1, 3), 100, np.uint8)
    values = np.array([transforms.distort(grey, np.random.default_rng(i)) for i in range(4000)]).reshape(-1, 3)
    assert (values == values[:, :1]).all()
    level = values[:, 0]
    assert abs((level == 100).mean() - 1 / 4) < 0.03
    # up to (100 + 32) * 1.5 and down to (100 - 32) * 0.5
    assert 34 <= level.min() < 40 and 185 < level.max() <= 198
    # black stays black but for brightness, which half of the time adds up to 32 or takes what is not there
    black = np.zeros((1, 1, 3), np.uint8)
    level = np.array([transforms.distort(black, np.random.default_rng(i)).max() for i in range(4000)])
    assert abs((level > 0).mean() - 1 / 4) < 0.03
    assert 40 < level.max() <= 48
    # hue alone turns red towards green or blue, by up to 36 degrees
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 2] = 100
    turned = []
    for index in range(4000):
        blue, green, crimson = (int(value) for value in transforms.distort(red, np.random.default_rng(index))[0, 0])
        turned.append((colorsys.rgb_to_hsv(crimson, green, blue)[0] * 360 + 180) % 360 - 180)
    assert abs((np.abs(turned) > 0.5).mean() - 1 / 2 * 35 / 36) < 0.03
    # dark colours of eight bits tell their hue to some degrees
    assert -41 < min(turned) < -32 and 32 < max(turned) < 39


def test_hue_is_turned_and_saturation_multiplied_as_colorsys_does():
    image = photograph(12, 12)
    turn, table = 11, (np.arange(256) + 11) % 180
    turned = transforms._map_hsv(image, 0, table.astype(np.uint8))
    paled = transforms._map_hsv(image, 1, (np.arange(256) // 2).astype(np.uint8))
    for (y, x), _ in np.ndenumerate(image[..., 0]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[y, x, ::-1] / 255))
        expected = colorsys.hsv_to_rgb((hue + turn / 180) % 1, saturation, value)
        # a hue of eight bits is good to a degree: four levels of a colour
        assert np.abs(turned[y, x, ::-1] - np.array(expected) * 255).max() < 8
        expected = colorsys.hsv_to_rgb(hue, saturation / 2, value)
        assert np.abs(paled[y, x, ::-1] - np.array(expected) * 255).max() < 6


def test_pairs_trade_places_in_a_mirror_alone():
    label = np.array([[0, 1, 2, 3, 4, 255]], np.uint8)
    _, ids = transforms.mirror(np.zeros((1, 6, 3), np.uint8), label, ((1, 4), (2, 3)))
    assert ids.tolist() == [[255, 1, 2, 3, 4, 0]] and ids.dtype == np.uint8
    assert label.tolist() == [[0, 1, 2, 3, 4, 255]]
    assert pixels.swap_pairs(5, ((1, 4),)).tolist() == [0, 4, 2, 3, 1]


def parts(random, count):
    """Pictures of noise, sizes to scale them to, and windows of these, those that touch the edges often."""
    scales = [0.7 + k / 10 for k in range(15)] + [0.5, 0.25, 2.5]
    for index in range(count):
        height, width = (int(side) for side in random.integers(1, 70, 2))
        scale = scales[index % 18] if index % 3 else random.uniform(0.2, 2.6)
        fit = (int(random.integers(40, 90)), int(random.integers(10, 40))) if index % 5 == 0 else None
        size = pixels.scaled_size((height, width), scale, fit)
        image = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        windows = []
        for side in size:
            part = int(random.integers(1, side + 1))
            start = int(random.choice((0, side - part, random.integers(side - part + 1))))
            windows.append(slice(start, start + part))
        yield image, scale, fit, size, windows


def test_a_part_is_that_of_the_whole_resized():
    """To the last bit where OpenCV rounds as it does here; one level is what another version may make of it."""
    off = 0
    for image, scale, fit, size, windows in parts(np.random.default_rng(3), 2500):
        label = image[..., 0]
        whole, ids = transforms.resize(image, label, scale, fit)
        part = transforms.image_part(image, size, *windows)
        assert part.shape == whole[*windows].shape
        difference = np.abs(part.astype(int) - whole[*windows]).max()
        assert difference <= 1, (image.shape, size, windows)
        off += difference > 0
        np.testing.assert_array_equal(transforms.label_part(label, size, *windows), ids[*windows])
    assert off == 0


@pytest.mark.parametrize(("shape", "size", "bottom", "right"), [((30, 3), (29, 3), 10, 3), ((8, 122), (8, 124), 6, 11)])
def test_a_part_whose_size_would_stay_is_scaled_all_the_same(shape, size, bottom, right):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    whole = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    part = transforms.image_part(image, size, slice(0, bottom), slice(0, right))
    np.testing.assert_array_equal(part, whole[:bottom, :right])
    assert (part != image[:bottom, :right]).any()


def test_what_lies_below_or_beyond_a_part_is_not_scaled(monkeypatch):
    image, scaled, resize = photograph(100, 200), [], cv2.resize

    def spy(source, *rest, **keys):
        scaled.append(source.shape)
        return resize(source, *rest, **keys)

    monkeypatch.setattr(cv2, "resize", spy)
    transforms.image_part(image, (140, 280), slice(10, 70), slice(20, 90))
    assert scaled == [(51, 66, 3)]


def test_a_crop_of_a_scaled_picture_is_drawn_and_cut_as_from_the_whole():
    for index, (image, scale, fit, size, _) in enumerate(parts(np.random.default_rng(4), 400)):
        label = image[..., 1] // 64
        crop = (1 + index % 40, 1 + index % 53)
        ratio = (1.0, 0.4)[index % 2]
        whole, ids = transforms.resize(image, label, scale, fit)
        part = transforms.cut(image, label, size, crop, np.random.default_rng(index), ratio)
        expected = transforms.cut(whole, ids, size, crop, np.random.default_rng(index), ratio)
        for got, wanted in zip(part, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
