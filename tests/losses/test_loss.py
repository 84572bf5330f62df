"""The losses against independent renderings of their rules with scipy and numpy, on the CPU."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from scipy.special import log_softmax
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from ccnet_cli.bench import measure
from ccnet_cli.losses import cross_entropy as losses
from ccnet_cli.losses.cross_entropy import (
    Objective,
    cross_entropy,
    mmseg_ohem_cross_entropy,
    mmseg_threshold,
    ohem_cross_entropy,
    ohem_threshold,
)

CLASSES = 5
CASES = ["random", "easy", "hard", "uniform", "flat", "ties", "few valid", "one valid", "all void"]
# height, width, batch, classes; the last sample of 109, 115, 117 and 256 is rounded to beyond the border, those of 22
# and 26 fall between two pixels, and an eighth of 20 and 36 is rounded to even
SHAPES = [
    (64, 64, 2, 5),
    (97, 129, 1, 19),
    (193, 193, 1, 7),
    (40, 57, 3, 2),
    (109, 115, 2, 3),
    (256, 33, 1, 4),
    (22, 26, 2, 3),
    (20, 36, 2, 3),
    (117, 1, 3, 2),
    (1, 40, 2, 6),
    (33, 1, 1, 3),
    (3, 9, 2, 4),
    (1, 1, 1, 2),
    (7, 300, 2, 3),
]
MINED = [(1, 0.7), (64, 0.7), (1000, 0.3), (1000, 0.7), (6400, 0.95), (10**6, 0.7)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Maps this small gain nothing from threads, which on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    return bound, (label != 255) & (own_class(probability, label) <= probability.dtype.type(bound))


def mmseg_rule(probability: np.ndarray, label: np.ndarray, threshold: float, min_kept: int) -> tuple[float, np.ndarray]:
    """mmsegmentation's threshold, by sorting the batch's valid pixels, and the mask of the pixels it keeps."""
    valid, own = label != 255, own_class(probability, label)
    ranked = np.sort(own[valid])
    least = ranked[min(min_kept * len(label), len(ranked) - 1)] if len(ranked) else 0
    bound = max(np.float32(threshold), least)
    return float(bound), valid & (own < bound)


def own_class(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.take_along_axis(probability, np.where(label == 255, 0, label)[:, None], 1)[:, 0]


def weighted(scores: torch.Tensor, label: torch.Tensor, weight: np.ndarray) -> tuple[float, np.ndarray]:
    """The weighted sum of the pixels' cross entropies in float64, and its gradient."""
    logarithm = log_softmax(scores.detach().double().numpy(), axis=1)
    one_hot = np.moveaxis(np.eye(scores.shape[1])[np.where(label == 255, 0, label)], 3, 1)
    return -(weight[:, None] * one_hot * logarithm).sum(), weight[:, None] * (np.exp(logarithm) - one_hot)


def case(name: str, size: tuple[int, int], batch: int = 2, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(name) + size[0])
    label = torch.randint(0, classes, (batch, *size), generator=generator)
    scores = torch.randn(batch, classes, *size, generator=generator)
    if name == "flat":
        scores = scores[:1, :, :1, :1].expand(batch, -1, *size).clone()
    if name in ("easy", "ties"):
        scores = scores * 0.3 + 6 * F.one_hot(label, classes).permute(0, 3, 1, 2)
    if name == "hard":
        scores = scores - 6 * F.one_hot(label, classes).permute(0, 3, 1, 2)
    if name == "uniform":
        scores = scores * 1e-3
    if name == "ties":
        scores = scores.round()
    if name == "all void":
        label.fill_(255)
    elif name == "one valid":
        label.view(-1)[1:] = 255
    else:
        share = 0.02 if name == "few valid" else 0.8
        label[torch.rand(label.shape, generator=generator) > share] = 255
    return scores, label


def mined(probability: torch.Tensor, label: torch.Tensor) -> list[tuple[int, float]]:
    """min_kept and threshold to try: MINED, some whose rank decides, and a threshold that is a pixel's probability."""
    own = np.sort(own_class(probability.numpy(), label.numpy())[label.numpy() != 255])
    low = [(int(own.size * share), 1e-3) for share in (0.3, 0.6, 0.9)]
    return [*MINED, *low, *((64, float(p)) for p in own[len(own) // 2 :][:1])]


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


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("rule", [None, "official", "mmseg"])
@pytest.mark.parametrize("valid", ["none", "one", "image"])
def test_no_valid_pixel_gives_zero_and_not_nan(valid, rule, average):
    main, auxiliary = (torch.randn(2, CLASSES, 4, 5, requires_grad=True) for _ in range(2))
    label = torch.full((2, 32, 40), 255)
    if valid == "one":
        label[1, 3, 4] = 2
    if valid == "image":
        label[1] = 3
    loss = objective(rule, average=average)(main, auxiliary, label)
    loss.backward()
    assert (loss.item() == 0) == (valid == "none")
    for tensor in (loss, main.grad, auxiliary.grad):
        assert tensor.isfinite().all()


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


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("rule", [None, "official", "mmseg"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_the_objective_adds_a_weighted_plain_auxiliary_loss_at_label_size(align_corners, rule, average):
    torch.manual_seed(0)
    main, auxiliary = 3 * torch.randn(2, 2, CLASSES, 5, 6)
    label = case("random", (33, 41))[1]
    valid = label.numpy() != 255
    pixels = valid.size if average == "all" else valid.sum()
    large = [F.interpolate(s, (33, 41), mode="bilinear", align_corners=align_corners) for s in (main, auxiliary)]
    probability = large[0].softmax(1).numpy()
    if rule == "official":
        kept = authors_rule(probability, label.numpy(), 0.6, 1000)[1]
        weight = kept / kept.sum()
    else:
        kept = mmseg_rule(probability, label.numpy(), 0.6, 1000)[1] if rule else valid
        weight = kept / pixels
    assert rule is None or 0 < kept.sum() < valid.sum()
    first = weighted(large[0], label, weight)[0]
    second = weighted(large[1], label, valid / pixels)[0]
    loss = objective(rule, 0.6, 1000, auxiliary=0.3, align_corners=align_corners, average=average)
    assert loss(main, auxiliary, label).item() == pytest.approx(first + 0.3 * second, rel=1e-6)
    assert loss(main, None, label).item() == pytest.approx(first, rel=1e-6)


def objective(rule: str | None, *mining: float, **options: object) -> Objective:
    return Objective(rule is not None, *mining, rule=rule or "official", **options)


def test_half_precision_scores_give_a_float32_loss():
    main = torch.randn(2, CLASSES, 4, 5).bfloat16()
    label = case("random", (32, 40))[1]
    assert Objective(True)(main, main, label).dtype == torch.float32


@pytest.fixture
def narrow(monkeypatch):
    """Bands of a few rows, as large maps have them."""
    monkeypatch.setattr(losses, "BAND", (3000, 3000))


def whole(made: Objective, main: torch.Tensor, auxiliary: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The objective by interpolation of the whole maps and torch's own cross entropy; the mined pixels by the rules."""
    size, pixels = label.shape[1:], label.numel() if made.average == "all" else max(int((label != 255).sum()), 1)
    large = [F.interpolate(s, size, mode="bilinear", align_corners=made.align_corners) for s in (main, auxiliary)]
    first, second = (F.cross_entropy(s, label, ignore_index=255, reduction="none") for s in large)
    if made.ohem:
        rule = mmseg_rule if made.rule == "mmseg" else authors_rule
        probability = large[0].detach().float().softmax(1).numpy()
        kept = torch.from_numpy(rule(probability, label.numpy(), made.threshold, made.min_kept)[1])
        first = (first * kept).sum() / (pixels if made.rule == "mmseg" else max(int(kept.sum()), 1))
    else:
        first = first.sum() / pixels
    return first + made.auxiliary * second.sum() / pixels


SIZES = [((5, 6), (33, 41)), ((2, 3), (9, 300)), ((1, 4), (3, 25)), ((7, 1), (49, 1)), ((4, 4), (4, 4))]


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("rule", [None, "official", "mmseg"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_bands_give_what_whole_maps_give(narrow, align_corners, rule, average):
    """Value and gradient, against float64; the objective is float32 until then."""
    torch.manual_seed(2)
    for small, size in SIZES:
        label = case("random", size)[1]
        leaves = [(2 * torch.randn(2, CLASSES, *small)).requires_grad_() for _ in range(2)]
        for min_kept in (1, 300, 10**6):
            made = objective(rule, 0.3, min_kept, average=average, align_corners=align_corners)
            loss, expected = made(*leaves, label), whole(made, *(leaf.double() for leaf in leaves), label)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
            wanted = torch.autograd.grad(expected, leaves)
            for got, correct in zip(torch.autograd.grad(3 * loss, leaves), wanted, strict=True):
                torch.testing.assert_close(got, 3 * correct, rtol=1e-5, atol=1e-6 * float(correct.abs().max()))


@pytest.mark.parametrize("size", [(97, 129), (109, 115), (256, 33), (3, 9), (20, 1)])
def test_the_samples_of_bands_are_those_of_the_whole_map(narrow, size):
    """Up to the last place, in which torch's softmax differs where its vectors end; so is the map torch's own."""
    torch.manual_seed(3)
    scores, label = torch.randn(2, CLASSES, 5, 7), case("random", size)[1]
    for align_corners in (True, False):
        enlarged = losses._Enlarged(scores, size, align_corners)
        bands = [enlarged._across(tall[:, :, rows]) for tall in enlarged._images() for rows in enlarged._bands(size[0])]
        assert len(bands) > 2 or label.numel() < 100
        made = torch.cat(bands, 2).view(1, CLASSES, 2, *size)[0].transpose(0, 1)
        expected = F.interpolate(scores, size, mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)
        grid = losses._grid(label, 255)
        sample = losses._sample(made.softmax(1), grid.label_Bhw, grid.rows, grid.columns)
        torch.testing.assert_close(enlarged.sample(grid), sample, rtol=3e-7, atol=0)
        own = losses._own(made.softmax(1), label, label != 255)
        torch.testing.assert_close(enlarged.own(label, label != 255), own, rtol=3e-7, atol=0)


@pytest.mark.parametrize("rule", [None, "official", "mmseg"])
def test_the_objective_never_holds_a_whole_map(monkeypatch, rule):
    """Nor its gradient: the peak stays below one of the two maps that it enlarges."""
    main, auxiliary = torch.randn(2, 2, 19, 33, 33, requires_grad=True)
    label = torch.zeros(2, 257, 257, dtype=torch.long)
    monkeypatch.setattr(losses, "BAND", (600_000, 600_000))

    def both() -> None:
        torch.autograd.grad(objective(rule)(main, auxiliary, label), main)

    assert 0 < measure.peak(both, main.device) < 2 * 19 * 257 * 257 * 4


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
    with pytest.raises(RuntimeError, match="taken already"):
        torch.autograd.grad(loss, scores)
    assert torch.equal(first, torch.autograd.grad(ohem_cross_entropy(scores, label), scores)[0])


def test_without_gradients_none_is_computed():
    scores, label = case("random", (40, 57))
    with torch.no_grad():
        for loss in (cross_entropy, ohem_cross_entropy, mmseg_ohem_cross_entropy):
            assert torch.equal(loss(scores, label), loss(scores.clone().requires_grad_(), label))
    assert not objective("official")(scores, scores, label).requires_grad


@pytest.mark.parametrize("rule", [None, "official", "mmseg"])
def test_the_objective_asks_the_device_for_nothing(narrow, rule):
    """As above, by fake tensors; autocast reaches none of its sums."""
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        main, auxiliary = (torch.empty(2, CLASSES, 5, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        for min_kept in (1, 640, 10**6):
            loss = objective(rule, 0.7, min_kept)(main, auxiliary, torch.empty(2, 40, 57, dtype=torch.long))
            assert loss.shape == () and loss.dtype == torch.float32
            assert torch.autograd.grad(loss, main)[0].dtype == torch.bfloat16


def test_autocast_changes_nothing(narrow):
    main, auxiliary = torch.randn(2, 2, CLASSES, 5, 8, requires_grad=True)
    label = case("random", (40, 57))[1]
    for rule in (None, "official", "mmseg"):
        expected = objective(rule, 0.3, 640)(main, auxiliary, label)
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(rule, 0.3, 640)(main, auxiliary, label)
        assert torch.equal(loss, expected)
        assert torch.equal(torch.autograd.grad(loss, main)[0], torch.autograd.grad(expected, main)[0])
