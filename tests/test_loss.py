"""The losses against an independent rendering of the authors' rule with scipy and numpy, on the CPU."""

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch.nn import functional as F

from ccnet_cli.loss import Objective, cross_entropy, ohem_cross_entropy, ohem_threshold

CLASSES = 5


def authors_rule(
    probability: np.ndarray, label: np.ndarray, threshold: float, min_kept: int
) -> tuple[float, np.ndarray]:
    """The released code's threshold, on a 1/8 grid by scipy.ndimage.zoom, and the mask of the pixels it keeps."""
    small = zoom(probability, (1, 1, 1 / 8, 1 / 8), order=1)
    small_label = zoom(label, (1, 1 / 8, 1 / 8), order=0).ravel()
    columns = np.moveaxis(small, 1, 0).reshape(probability.shape[1], -1)
    valid = small_label != 255
    rank = min_kept // 64
    if rank >= valid.sum():
        bound = 1.0
    else:
        own = columns[:, valid][small_label[valid], np.arange(valid.sum())]
        bound = max(threshold, float(np.partition(own, rank - 1)[rank - 1])) if rank else threshold
    known = np.where(label == 255, 0, label)
    own = np.take_along_axis(probability, known[:, None], 1)[:, 0]
    return bound, (label != 255) & (own <= np.float32(bound))


def case(name: str, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(name) + size[0])
    label = torch.randint(0, CLASSES, (2, *size), generator=generator)
    scores = torch.randn(2, CLASSES, *size, generator=generator)
    if name in ("easy", "ties"):
        scores = scores * 0.3 + 6 * F.one_hot(label, CLASSES).permute(0, 3, 1, 2)
    if name == "hard":
        scores = scores - 6 * F.one_hot(label, CLASSES).permute(0, 3, 1, 2)
    if name == "ties":
        scores = scores.round()
    if name == "all void":
        label.fill_(255)
    elif name == "few valid":
        label[torch.rand(label.shape, generator=generator) > 0.02] = 255
    else:
        label[torch.rand(label.shape, generator=generator) > 0.8] = 255
    return scores, label


@pytest.mark.parametrize("size", [(64, 64), (97, 121), (40, 57)])
@pytest.mark.parametrize("min_kept", [0, 64, 1000, 6400, 100_000])
@pytest.mark.parametrize("name", ["random", "easy", "hard", "all void", "few valid", "ties"])
def test_ohem_is_the_authors_rule(name, min_kept, size):
    scores, label = case(name, size)
    probability = scores.softmax(1)
    bound, kept = authors_rule(probability.numpy(), label.numpy(), 0.7, min_kept)
    got = ohem_threshold(probability, label, 0.7, min_kept)
    assert got.shape == () and abs(got.item() - bound) <= 1e-6

    scores.requires_grad_()
    loss = ohem_cross_entropy(scores, label, 0.7, min_kept)
    (gradient,) = torch.autograd.grad(loss, scores)
    # a pixel whose own class is sure gets no gradient worth counting, so the mask is read from the sum over classes
    assert torch.equal(gradient.abs().sum(1) > 0, torch.from_numpy(kept))

    mined = label.masked_fill(~torch.from_numpy(kept), 255)
    expected = F.cross_entropy(scores.double(), mined, ignore_index=255, reduction="sum") / max(kept.sum(), 1)
    (wanted,) = torch.autograd.grad(expected, scores)
    assert abs(loss.item() - expected.item()) <= 1e-5
    assert (gradient - wanted).abs().max() <= 1e-6


def test_the_mining_cases_are_not_all_one():
    """The parametrised cases above reach every branch: keep all, the floor, and a threshold above it."""
    bounds = []
    for name, min_kept in (("easy", 6400), ("hard", 1000), ("few valid", 6400)):
        scores, label = case(name, (64, 64))
        bounds.append(authors_rule(scores.softmax(1).numpy(), label.numpy(), 0.7, min_kept)[0])
    assert 0.7 < bounds[0] < 1 and bounds[1:] == [0.7, 1]


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 8), (12, 4), (7, 300)])
def test_crops_smaller_than_the_grid_work(size):
    scores, label = case("random", size)
    label[:] = label.masked_fill(label == 255, 1)
    bound, kept = authors_rule(scores.softmax(1).numpy(), label.numpy(), 0.7, 64)
    assert abs(ohem_threshold(scores.softmax(1), label, 0.7, 64).item() - bound) <= 1e-6
    expected = F.cross_entropy(scores, label.masked_fill(~torch.from_numpy(kept), 255), ignore_index=255)
    torch.testing.assert_close(ohem_cross_entropy(scores, label, 0.7, 64), expected)


@pytest.mark.parametrize("ohem", [True, False])
@pytest.mark.parametrize("valid", ["none", "one", "image"])
def test_no_valid_pixel_gives_zero_and_not_nan(valid, ohem):
    main, auxiliary = (torch.randn(2, CLASSES, 4, 5, requires_grad=True) for _ in range(2))
    label = torch.full((2, 32, 40), 255)
    if valid == "one":
        label[1, 3, 4] = 2
    if valid == "image":
        label[1] = 3
    loss = Objective(ohem)(main, auxiliary, label)
    loss.backward()
    assert (loss.item() == 0) == (valid == "none")
    for tensor in (loss, main.grad, auxiliary.grad):
        assert tensor.isfinite().all()


def test_gradients_of_an_empty_crop_are_zeros():
    scores = torch.randn(2, CLASSES, 16, 16, requires_grad=True)
    for loss in (cross_entropy, ohem_cross_entropy):
        (gradient,) = torch.autograd.grad(loss(scores, torch.full((2, 16, 16), 255)), scores)
        assert (gradient == 0).all()


def test_scores_of_void_pixels_may_be_anything():
    scores, label = case("random", (24, 24))
    expected = ohem_cross_entropy(scores, label), cross_entropy(scores, label)
    scores = torch.where((label == 255)[:, None], torch.tensor(1e30), scores).requires_grad_()
    assert (ohem_cross_entropy(scores, label), cross_entropy(scores, label)) == expected
    (gradient,) = torch.autograd.grad(ohem_cross_entropy(scores, label), scores)
    assert gradient.isfinite().all()


def test_plain_cross_entropy_is_the_mean_over_valid_pixels():
    scores, label = case("random", (17, 9))
    expected = F.cross_entropy(scores, label, ignore_index=255)
    torch.testing.assert_close(cross_entropy(scores, label), expected)
    assert label[label != 255].numel() < label.numel()


@pytest.mark.parametrize("ohem", [True, False])
@pytest.mark.parametrize("align_corners", [True, False])
def test_the_objective_adds_a_weighted_plain_auxiliary_loss_at_label_size(align_corners, ohem):
    torch.manual_seed(0)
    main, auxiliary = 3 * torch.randn(2, 2, CLASSES, 5, 6)
    label = case("random", (33, 41))[1]
    objective = Objective(ohem, 0.7, 1000, auxiliary=0.4, align_corners=align_corners)
    large = [F.interpolate(s, (33, 41), mode="bilinear", align_corners=align_corners) for s in (main, auxiliary)]
    first = ohem_cross_entropy(large[0], label, 0.7, 1000) if ohem else cross_entropy(large[0], label)
    torch.testing.assert_close(objective(main, auxiliary, label), first + 0.4 * cross_entropy(large[1], label))
    torch.testing.assert_close(objective(main, None, label), first)
    assert (ohem_cross_entropy(large[0], label, 0.7, 1000) - cross_entropy(large[0], label)).abs() > 1e-3


def test_half_precision_scores_give_a_float32_loss():
    main = torch.randn(2, CLASSES, 4, 5).bfloat16()
    label = case("random", (32, 40))[1]
    assert Objective(True)(main, main, label).dtype == torch.float32
