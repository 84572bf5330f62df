"""The losses over whole maps, against their rules rendered once more with scipy and numpy, on the CPU."""

from itertools import product

import numpy as np
import pytest
import torch
from reference_losses import CASES, CLASSES, SHAPES, authors_rule, case, mined, mmseg_rule, own_class, weighted
from torch._subclasses.fake_tensor import FakeTensorMode

from ccnet_cli.losses.cross_entropy import cross_entropy
from ccnet_cli.losses.ohem import mmseg_ohem_cross_entropy, mmseg_threshold, ohem_cross_entropy, ohem_threshold


def agree(loss: torch.Tensor, scores: torch.Tensor, label: torch.Tensor, weight: np.ndarray) -> None:
    """Value and gradient are those of the weighted sum, and exactly the pixels with a weight have a gradient."""
    expected, wanted = weighted(scores, label, weight)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert torch.equal(gradient.abs().sum(1) > 0, torch.from_numpy(weight > 0))
    assert abs(loss.item() - expected) <= 1e-6 * max(1, expected)
    assert np.abs(gradient.numpy() - wanted).max() <= 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_ohem_is_the_authors_rule(name, shape):
    H, W, batch, classes = shape
    scores, label = case(name, (H, W), batch, classes)
    scores.requires_grad_()
    probability = scores.detach().softmax(1)
    for min_kept, threshold in mined(probability, label):
        bound, kept = authors_rule(probability.numpy(), label.numpy(), threshold, min_kept)
        assert ohem_threshold(probability, label, threshold, min_kept).numpy() == np.float32(bound)
        loss = ohem_cross_entropy(scores, label, threshold, min_kept)
        agree(loss, scores, label, kept / max(kept.sum(), 1))


@pytest.mark.parametrize("size", [(97, 129), (193, 77), (109, 115), (256, 40), (720, 13)])
def test_samples_are_scipy_s_bit_for_bit(size):
    """In float64, where every rounding shows; the real thresholds are float32."""
    scores, label = case("random", size)
    probability = scores.double().softmax(1)
    for min_kept in range(64, 6400, 320):
        bound = authors_rule(probability.numpy(), label.numpy(), 1e-9, min_kept)[0]
        assert ohem_threshold(probability, label, 1e-9, min_kept).item() == bound


def test_zoom_s_zeros_beyond_the_border_count_as_samples():
    """256 is a common crop: its last row on the grid reads as class 0 with probability 0, even where all is void."""
    scores, label = case("random", (256, 64))
    label[:, -1] = 255
    probability = scores.softmax(1)
    # 8 samples in the last row of each of the two images
    for samples, least in ((16, True), (17, False)):
        bound = authors_rule(probability.numpy(), label.numpy(), 1e-3, 64 * samples)[0]
        assert (bound == 1e-3) == least
        assert ohem_threshold(probability, label, 1e-3, 64 * samples).numpy() == np.float32(bound)


def test_the_mining_cases_are_not_all_one():
    """The parametrised cases above reach every branch: keep all, the floor, and a threshold above it."""
    bounds = {}
    for name, min_kept in (("easy", 6400), ("hard", 1000), ("few valid", 6400)):
        scores, label = case(name, (64, 64))
        for rule in (authors_rule, mmseg_rule):
            bounds[rule, name] = rule(scores.softmax(1).numpy(), label.numpy(), 0.7, min_kept)[0]
    for rule in (authors_rule, mmseg_rule):
        assert 0.7 < bounds[rule, "easy"] < 1 and bounds[rule, "hard"] == pytest.approx(0.7)
    assert bounds[authors_rule, "few valid"] == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_the_other_rule_is_mmsegmentation_s(name, shape):
    H, W, batch, classes = shape
    scores, label = case(name, (H, W), batch, classes)
    scores.requires_grad_()
    probability = scores.detach().softmax(1)
    pixels = {"all": label.numel(), "valid": max(int((label != 255).sum()), 1)}
    for index, (min_kept, threshold) in enumerate(mined(probability, label)):
        bound, kept = mmseg_rule(probability.numpy(), label.numpy(), threshold, min_kept)
        true = torch.from_numpy(own_class(probability.numpy(), label.numpy()))
        assert mmseg_threshold(true, label != 255, threshold, min_kept).item() == bound
        average = ("all", "valid")[index % 2]
        loss = mmseg_ohem_cross_entropy(scores, label, threshold, min_kept, average=average)
        agree(loss, scores, label, kept / pixels[average])


def test_the_rank_of_mmsegmentation_s_rule_grows_with_the_batch():
    """By hand: ranks 0 to 5 of six valid pixels; min_kept 2 of two images is rank 4, and what lies at it is dropped."""
    own = torch.tensor([[[0.5, 0.9, 0.1, 0.4]], [[0.3, 0.2, 0.6, 0.8]]])
    valid = torch.tensor([[[True, False, True, True]], [[True, True, True, False]]])
    for min_kept, expected in ((1, 0.3), (2, 0.5), (3, 0.6), (10**9, 0.6)):
        assert mmseg_threshold(own, valid, 0.25, min_kept).item() == pytest.approx(expected)
    assert mmseg_threshold(own, valid, 0.55, 1).item() == pytest.approx(0.55)
    scores = torch.stack([own, 1 - own], 1).log()
    label = torch.zeros(2, 1, 4, dtype=torch.long).masked_fill(~valid, 255)
    expected = -torch.tensor([0.1, 0.2, 0.3, 0.4]).log().sum()
    for average, pixels in (("valid", 6), ("all", 8)):
        loss = mmseg_ohem_cross_entropy(scores, label, 0.25, 2, average=average)
        torch.testing.assert_close(loss, expected / pixels)


def test_mining_asks_the_device_for_nothing():
    """Fake tensors hold no numbers: whatever needs one on the host, or as many as a mask has, raises."""
    with FakeTensorMode():
        scores, label = torch.empty(2, CLASSES, 40, 57), torch.empty(2, 40, 57, dtype=torch.long)
        for loss, min_kept in product((ohem_cross_entropy, mmseg_ohem_cross_entropy), (1, 640, 10**6)):
            assert loss(scores, label, 0.7, min_kept).shape == ()


@pytest.mark.gpu
@pytest.mark.parametrize("loss", [ohem_cross_entropy, mmseg_ohem_cross_entropy])
@pytest.mark.parametrize("min_kept", [1, 640, 10**6])
def test_mining_does_not_wait_for_the_gpu(loss, min_kept):
    scores, label = case("random", (97, 129))
    there = scores.cuda().requires_grad_(), label.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = loss(*there, 0.7, min_kept)
        got.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got.cpu(), loss(scores, label, 0.7, min_kept))


def test_gradients_of_an_empty_crop_are_zeros():
    scores = torch.randn(2, CLASSES, 16, 16, requires_grad=True)
    for loss in (cross_entropy, ohem_cross_entropy, mmseg_ohem_cross_entropy):
        (gradient,) = torch.autograd.grad(loss(scores, torch.full((2, 16, 16), 255)), scores)
        assert (gradient == 0).all()


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy, mmseg_ohem_cross_entropy])
def test_scores_of_void_pixels_may_be_anything(loss):
    scores, label = case("random", (24, 24))
    expected = loss(scores, label)
    scores = torch.where((label == 255)[:, None], torch.tensor(1e30), scores).requires_grad_()
    assert loss(scores, label) == expected
    (gradient,) = torch.autograd.grad(loss(scores, label), scores)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy, mmseg_ohem_cross_entropy])
def test_a_score_that_is_no_number_shows(loss):
    scores, label = case("random", (24, 24))
    label[1, 5, 6] = 1
    scores[1, :, 5, 6] = float("nan")
    assert loss(scores, label).isnan()


@pytest.mark.parametrize("name", ["random", "few valid", "all void"])
def test_plain_cross_entropy_is_the_mean_over_valid_or_all_pixels(name):
    scores, label = case(name, (17, 9))
    scores.requires_grad_()
    valid = label.numpy() != 255
    assert valid.sum() < valid.size
    for average, pixels in (("valid", max(valid.sum(), 1)), ("all", valid.size)):
        agree(cross_entropy(scores, label, average=average), scores, label, valid / pixels)


def test_a_probability_too_small_to_exist_has_a_finite_loss():
    scores = torch.zeros(1, 3, 1, 2)
    scores[0, 0] = torch.tensor([300.0, -5.0])
    label = torch.tensor([[[1, 2]]])
    for loss in (cross_entropy, ohem_cross_entropy, mmseg_ohem_cross_entropy):
        found = loss(scores.requires_grad_(), label, **({} if loss is cross_entropy else {"threshold": 1.0}))
        assert found.item() == pytest.approx((300 + np.log(2 + np.exp(-5))) / 2, rel=1e-6)
        assert torch.autograd.grad(found, scores)[0][0, :, 0, 0].tolist() == pytest.approx([0.5, -0.5, 0])


def test_a_gradient_is_good_for_one_pass():
    scores, label = case("random", (16, 16))
    loss = ohem_cross_entropy(scores.requires_grad_(), label)
    (first,) = torch.autograd.grad(loss, scores, retain_graph=True)
    with pytest.raises(RuntimeError, match="used already"):
        torch.autograd.grad(loss, scores)
    assert torch.equal(first, torch.autograd.grad(ohem_cross_entropy(scores, label), scores)[0])


def test_without_gradients_none_is_computed():
    scores, label = case("random", (40, 57))
    with torch.no_grad():
        for loss in (cross_entropy, ohem_cross_entropy, mmseg_ohem_cross_entropy):
            assert torch.equal(loss(scores, label), loss(scores.clone().requires_grad_(), label))
