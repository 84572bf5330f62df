"""Smoothed labels and noise are seen by their values; clean labels of any kind are not."""

import cv2
import numpy as np
import pytest

from ccnet_cli.datasets.smoothing import Smoothing


def shapes(seed, size=(120, 160), classes=10):
    """Discs, bars and thin poles of random classes."""
    random = np.random.default_rng(seed)
    label = np.zeros(size, np.uint8)
    label[size[0] // 2 :] = 9
    for _ in range(12):
        value = int(random.integers(classes))
        y, x = (int(random.integers(side)) for side in size)
        if random.integers(2):
            cv2.circle(label, (x, y), int(random.integers(6, 25)), value, -1)
        else:
            cv2.rectangle(label, (x, y), (x + int(random.integers(1, 30)), y + 40), value, -1)
    return label


def judge(labels):
    smoothing = Smoothing()
    for label in labels:
        smoothing.add(label)
    return smoothing.judge()


CLEAN = [shapes(seed) for seed in range(6)]


def resized(scale, how, labels=CLEAN):
    return [cv2.resize(label, None, fx=scale, fy=scale, interpolation=how) for label in labels]


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.7, 1.5, 2, 4])
@pytest.mark.parametrize("how", [cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC], ids=["linear", "area", "cubic"])
def test_interpolated_labels_are_noticed(scale, how):
    if scale > 1 and how == cv2.INTER_AREA:
        pytest.skip("is linear there")
    (line,) = judge(resized(scale, how))
    assert "the labels look smoothed" in line and "nearest-neighbour" in line


def test_blurred_and_compressed_labels_are_noticed():
    assert "smoothed" in judge([cv2.GaussianBlur(label, (0, 0), 1.5) for label in CLEAN])[0]
    coded = [cv2.imencode(".jpg", 20 * label, [cv2.IMWRITE_JPEG_QUALITY, 80])[1] for label in CLEAN]
    assert judge([cv2.imdecode(each, cv2.IMREAD_GRAYSCALE) for each in coded])


def test_soft_edges_of_a_drawing_are_noticed():
    labels = []
    for seed in range(6):
        label, random = np.full((120, 160), 2, np.uint8), np.random.default_rng(seed)
        for _ in range(5):
            ring = random.integers(0, 120, (3, 2)).astype(np.int32)
            cv2.fillPoly(label, [ring], 9, cv2.LINE_AA)
        labels.append(label)
    assert "such as those of 2 and 9" in judge(labels)[0]


@pytest.mark.parametrize("scale", [0.125, 0.25, 0.5, 1, 2])
def test_clean_labels_of_any_size_are_not_suspected(scale):
    assert judge(resized(scale, cv2.INTER_NEAREST)) == []


def test_a_class_that_is_an_outline_is_not_suspected():
    labels = []
    for label in CLEAN:
        inside = (label > 0).astype(np.uint8)
        rim = cv2.dilate(inside, np.ones((3, 3), np.uint8)) - cv2.erode(inside, np.ones((3, 3), np.uint8))
        labels.append(np.where(rim > 0, 1, np.where(inside > 0, 5, 0)).astype(np.uint8))
    assert judge(labels) == []


def test_noise_is_noticed():
    random = np.random.default_rng(0)
    (line,) = judge(random.integers(0, 5, (4, 120, 160), dtype=np.uint8))
    assert line.startswith("80% of the labels' neighbouring pixels differ, as in noise")


def test_a_few_smoothed_labels_among_clean_ones_are_noticed():
    many = [shapes(seed) for seed in range(20, 50)]
    assert judge(many) == []
    soft = [cv2.GaussianBlur(label, (0, 0), 1.5) if index in (3, 17) else label for index, label in enumerate(many)]
    (line,) = judge(soft)
    assert line.startswith("2 of 30 labels look smoothed: ")
