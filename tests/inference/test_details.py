"""Figures beside IoU, against sets of pixels."""

import math

import numpy as np
import pytest
import torch

from ccnet_cli.inference.details import Details, draw_outline
from ccnet_cli.inference.metrics import Confusion


def pictures():
    random = np.random.default_rng(3)
    label = random.integers(0, 3, (9, 12)).repeat(4, 0).repeat(5, 1).astype(np.uint8)
    prediction = np.roll(label, 2, 1)
    label[:3, :7] = 255
    return prediction, label


def pixels(mask):
    return set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))


def test_dice_precision_and_recall_are_those_of_sets():
    prediction, label = pictures()
    confusion = Confusion(4)
    confusion.update(torch.from_numpy(prediction), torch.from_numpy(label))
    for index in range(4):
        truth, answer = (pixels((ids == index) & (label != 255)) for ids in (label, prediction))
        both = len(truth & answer)
        for figures, total in (
            (confusion.dice() / 2, len(truth) + len(answer)),
            (confusion.precision(), len(answer)),
            (confusion.recall(), len(truth)),
        ):
            expected = both / total if total else math.nan
            assert float(figures[index]) == pytest.approx(expected, abs=1e-15, nan_ok=True)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_an_outline_is_what_lies_near_the_outside(width):
    mask = pictures()[1] == 1
    inside = pixels(mask)
    far = {
        (y, x)
        for y, x in inside
        if all((y + a, x + b) in inside for a in range(-width, width + 1) for b in range(-width, width + 1))
    }
    assert far and pixels(draw_outline(mask, width)) == inside - far


def test_boundary_iou_adds_up_over_images_and_processes():
    prediction, label = pictures()
    one, other = Details(3, 255, True), Details(3, 255, True)
    one.add("b", prediction, label)
    other.add("a", label.clip(max=2), label)
    both = Details(3, 255, True)
    both.merge([one, other])
    assert [row.name for row in both.images] == ["a", "b"]
    assert (both.images[0].miou, both.images[0].mean_dice) == (1, 1)
    shared, covered = np.zeros(3), np.zeros(3)
    width = round(0.02 * math.hypot(*label.shape))
    for answer in (prediction, label.clip(max=2)):
        for index in range(3):
            a, b = (pixels(draw_outline((ids == index) & (label != 255), width)) for ids in (answer, label))
            shared[index] += len(a & b)
            covered[index] += len(a | b)
    assert both.boundary_iou() == pytest.approx((shared / covered).tolist())
    assert 0 < min(both.boundary_iou()) < 1
