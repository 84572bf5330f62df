"""The confusion matrix against counting pixel by pixel with plain Python sets."""

import math

import pytest
import torch

from ccnet_cli.inference.metrics import Confusion


def pixels(seed, classes=6, shape=(31, 17)):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, shape, generator=generator, dtype=torch.uint8)
    label[torch.rand(shape, generator=generator) < 0.2] = 255
    prediction = torch.randint(classes, shape, generator=generator, dtype=torch.uint8)
    return prediction, label


def as_sets(prediction, label, classes):
    """Per class the pixels that are truly of it and those predicted as it, among the valid ones."""
    valid = [i for i, value in enumerate(label.flatten().tolist()) if value != 255]
    truth, answer = label.flatten().tolist(), prediction.flatten().tolist()
    return [({i for i in valid if truth[i] == c}, {i for i in valid if answer[i] == c}) for c in range(classes)]


def test_figures_match_counting_with_sets():
    prediction, label = pixels(0)
    confusion = Confusion(6)
    confusion.update(prediction, label)
    sets = as_sets(prediction, label, 6)
    ious = [len(t & p) / len(t | p) for t, p in sets]
    assert confusion.iou().tolist() == pytest.approx(ious, abs=1e-15)
    assert confusion.miou() == pytest.approx(sum(ious) / 6, abs=1e-15)
    right, valid = sum(len(t & p) for t, p in sets), sum(len(t) for t, _ in sets)
    assert confusion.pixel_accuracy() == pytest.approx(right / valid, abs=1e-15)
    assert confusion.mean_accuracy() == pytest.approx(sum(len(t & p) / len(t) for t, p in sets) / 6, abs=1e-15)
    assert int(confusion.matrix.sum()) == valid
    assert confusion.matrix[2, 4] == len(sets[2][0] & sets[4][1])


def test_rows_are_the_truth():
    confusion = Confusion(3)
    confusion.update(torch.tensor([1, 1, 1]), torch.tensor([0, 0, 1]))
    assert confusion.matrix.tolist() == [[0, 2, 0], [0, 1, 0], [0, 0, 0]]
    assert confusion.matrix.dtype == torch.int64


def test_classes_neither_present_nor_predicted_do_not_count():
    confusion = Confusion(4)
    # class 2 is predicted but never there, class 3 is nowhere, and class 3 of an ignored pixel is not an answer
    confusion.update(torch.tensor([0, 0, 2, 3]), torch.tensor([0, 0, 0, 255]))
    iou = confusion.iou().tolist()
    assert iou[0] == pytest.approx(2 / 3)
    assert math.isnan(iou[1])
    assert iou[2] == 0
    assert math.isnan(iou[3])
    assert confusion.miou() == pytest.approx(1 / 3)
    assert confusion.mean_accuracy() == pytest.approx(2 / 3)


def test_nothing_valid_gives_nan():
    confusion = Confusion(3)
    confusion.update(torch.tensor([0, 1]), torch.tensor([255, 255]))
    assert confusion.matrix.sum() == 0
    assert all(map(math.isnan, (confusion.miou(), confusion.pixel_accuracy(), confusion.mean_accuracy())))


def test_merging_is_adding_up():
    together, parts = Confusion(6), Confusion(6)
    for seed in range(4):
        together.update(*pixels(seed))
        other = Confusion(6)
        other.update(*pixels(seed))
        parts.merge(other)
    assert torch.equal(together.matrix, parts.matrix)
    with pytest.raises(ValueError, match="sizes"):
        parts.merge(Confusion(5))


def test_counts_above_float32_stay_exact():
    confusion = Confusion(2)
    confusion.matrix[:] = torch.tensor([[2**31 + 1, 1], [0, 2**24 + 1]])
    confusion.update(torch.tensor([0]), torch.tensor([0]))
    assert confusion.matrix[0, 0] == 2**31 + 2
    assert confusion.pixel_accuracy() == (2**31 + 2 + 2**24 + 1) / (2**31 + 2 + 2**24 + 2)


def test_another_ignore_index():
    confusion = Confusion(2)
    confusion.update(torch.tensor([0, 1]), torch.tensor([7, 1]), ignore_index=7)
    assert confusion.matrix.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [([3], [0], "prediction"), ([0], [3], "label"), ([0], [-1], "label"), ([0, 0], [0], "shape")],
)
def test_an_index_out_of_range_is_not_counted_elsewhere(prediction, label, message):
    confusion = Confusion(3)
    with pytest.raises(ValueError, match=message):
        confusion.update(torch.tensor(prediction), torch.tensor(label))
    assert confusion.matrix.sum() == 0


@pytest.mark.gpu
def test_counts_on_the_device():
    here, there = Confusion(6), Confusion(6, "cuda")
    here.update(*pixels(1))
    there.update(*pixels(1))
    assert there.matrix.is_cuda
    assert torch.equal(here.matrix, there.matrix.cpu())
