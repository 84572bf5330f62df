"""The terms beside plain cross entropy, against loops over pixels and classes in float64: values and gradients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from ccnet_cli.errors import InputError
from ccnet_cli.losses import LOSSES
from ccnet_cli.losses.category_consistent import category_consistent
from ccnet_cli.losses.objective import build
from ccnet_cli.parts import Outputs, Term

K = 4
CASES = ["random", "easy", "hard", "one class", "one valid", "all void", "ties"]


def case(name: str, size: tuple[int, int] = (5, 6)) -> tuple[Tensor, Tensor]:
    """Scores (2, K, H, W) float64 and labels at their size."""
    generator = torch.Generator().manual_seed(CASES.index(name))
    label = torch.randint(0, K - 1, (2, *size), generator=generator)
    scores = torch.randn(2, K, *size, generator=generator, dtype=torch.float64)
    label[:, 0, :3] = 255
    true = F.one_hot(label.masked_fill(label == 255, 0), K).movedim(-1, 1)
    if name == "easy":
        scores = 30.0 * true.double()
    if name == "hard":
        scores = scores - 20 * true.double()
    if name == "one class":
        label[label != 255] = 2
    if name == "one valid":
        label[:] = 255
        label[1, 2, 3] = 1
    if name == "all void":
        label[:] = 255
    if name == "ties":
        scores = torch.zeros_like(scores)
    return scores, label


def term(kind: str, **keys: object) -> Callable[[Tensor, Tensor], Tensor]:
    """The term of these settings as a function of the main scores and the label."""
    settings = LOSSES[kind].settings(**keys)
    made = LOSSES[kind].build(settings, 255, True)
    if hasattr(made, "prepare"):
        made.prepare(K, 8)
    return lambda scores, label: made(Outputs(scores, {}, scores), label)


def softmax(scores: Tensor) -> np.ndarray:
    value = scores.numpy()
    value = np.exp(value - value.max(1, keepdims=True))
    return value / value.sum(1, keepdims=True)


def pixels(scores: Tensor, label: Tensor) -> list[tuple[np.ndarray, int]]:
    """Each valid pixel's probabilities and class, in the order of memory."""
    probability, label = softmax(scores), label.numpy()
    spots = [spot for spot in np.ndindex(label.shape) if label[spot] != 255]
    return [(probability[b, :, y, x], int(label[b, y, x])) for b, y, x in spots]


def present(spots: list[tuple[np.ndarray, int]]) -> list[int]:
    return sorted({true for _, true in spots})


def focal(scores: Tensor, label: Tensor, gamma: float = 2.0, weights: tuple[float, ...] = (1,) * K) -> float:
    spots = pixels(scores, label)
    total = sum(-weights[c] * (1 - p[c]) ** gamma * math.log(max(p[c], 1e-300)) for p, c in spots)
    return total / (sum(weights[c] for _, c in spots) or 1)


def dice(scores: Tensor, label: Tensor, power: int = 1, smooth: float = 1.0, among: str = "present") -> float:
    spots = pixels(scores, label)
    classes = present(spots) if among == "present" else range(K) if spots else []
    losses = []
    for c in classes:
        overlap = sum(p[c] for p, true in spots if true == c)
        area = sum(p[c] ** power for p, _ in spots) + sum(true == c for _, true in spots)
        losses.append(1 - (2 * overlap + smooth) / (area + smooth))
    return sum(losses) / len(losses) if losses else 0.0


def lovasz(scores: Tensor, label: Tensor, among: str = "present") -> float:
    """By the definition over sets: the loss of the j most wrong pixels minus that of the j - 1 most wrong."""
    spots = pixels(scores, label)
    losses = []
    for c in present(spots) if among == "present" else range(K) if spots else []:
        true = {i for i, (_, own) in enumerate(spots) if own == c}
        errors = [1 - p[c] if i in true else p[c] for i, (p, _) in enumerate(spots)]
        order = sorted(range(len(spots)), key=lambda i: -errors[i])

        def jaccard(wrong: set[int], true: set[int] = true) -> float:
            return len(wrong) / len(true | wrong) if true | wrong else 0.0

        ranks = range(len(order))
        losses.append(sum(errors[order[j]] * (jaccard(set(order[: j + 1])) - jaccard(set(order[:j]))) for j in ranks))
    return sum(losses) / len(losses) if losses else 0.0


def smoothed(scores: Tensor, label: Tensor, weights: tuple[float, ...], smoothing: float) -> float:
    spots = pixels(scores, label)
    total = 0.0
    for p, c in spots:
        logs = [-math.log(max(value, 1e-300)) for value in p]
        total += (1 - smoothing) * weights[c] * logs[c] + smoothing / K * sum(map(lambda w, x: w * x, weights, logs))
    return total / (sum(weights[c] for _, c in spots) or 1)


WEIGHTS = (0.2, 3.0, 1.0, 0.7)
TERMS = {
    "focal": (term("focal"), focal),
    "focal, gamma 0.5": (term("focal", gamma=0.5), lambda *a: focal(*a, gamma=0.5)),
    "focal, weights": (term("focal", class_weights=list(WEIGHTS)), lambda *a: focal(*a, weights=WEIGHTS)),
    "dice": (term("dice"), dice),
    "dice, squares": (term("dice", power=2, smooth=0.0), lambda *a: dice(*a, power=2, smooth=0.0)),
    "dice, all classes": (term("dice", classes="all"), lambda *a: dice(*a, among="all")),
    "lovasz": (term("lovasz"), lovasz),
    "lovasz, all classes": (term("lovasz", classes="all"), lambda *a: lovasz(*a, among="all")),
    "lovasz, per image": (
        term("lovasz", per_image=True),
        lambda s, y: (lovasz(s[:1], y[:1]) + lovasz(s[1:], y[1:])) / 2,
    ),
    "weights": (
        term("cross_entropy", class_weights=list(WEIGHTS)),
        lambda *a: smoothed(*a, WEIGHTS, 0.0),
    ),
    "weights, smoothing": (
        term("cross_entropy", class_weights=list(WEIGHTS), label_smoothing=0.3),
        lambda *a: smoothed(*a, WEIGHTS, 0.3),
    ),
    "smoothing": (term("cross_entropy", label_smoothing=0.1), lambda *a: smoothed(*a, (1,) * K, 0.1)),
    "mined, all kept": (
        term("ohem", min_kept=10**6, class_weights=list(WEIGHTS), label_smoothing=0.3),
        lambda *a: smoothed(*a, WEIGHTS, 0.3),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("which", TERMS)
def test_values_and_gradients_are_those_of_the_loops(which, name):
    computed, expected = TERMS[which]
    scores, label = case(name)
    scores.requires_grad_()
    loss = computed(scores, label)
    truth = expected(scores.detach(), label)
    assert abs(loss.item() - truth) <= 1e-6 * max(1, abs(truth)), f"{which}: {loss.item()} for {truth}"
    (gradient,) = torch.autograd.grad(loss, scores)
    if name == "ties" and "lovasz" in which:
        # only a subgradient is defined there: an order of equal errors was chosen
        assert gradient.isfinite().all()
        return
    numeric = torch.zeros_like(scores)
    with torch.no_grad():
        for spot in list(np.ndindex(tuple(scores.shape)))[::7]:
            near = scores.detach().clone()
            near[spot] += 1e-5
            above = expected(near, label)
            near[spot] -= 2e-5
            numeric[spot] = (above - expected(near, label)) / 2e-5
            difference = abs(gradient[spot] - numeric[spot]).item()
            assert difference <= 1e-6, f"{which}: gradient {gradient[spot]} for {numeric[spot]} at {spot}"


@pytest.mark.parametrize("kind", ["focal", "dice", "lovasz", "cross_entropy", "ohem"])
def test_scores_at_stride_8_in_bfloat16_give_the_float32_loss_of_the_enlarged_ones(kind):
    keys = {"class_weights": list(WEIGHTS)} if kind in ("cross_entropy", "ohem", "focal") else {}
    small = torch.randn(2, K, 3, 4, generator=torch.Generator().manual_seed(7)).bfloat16()
    label = case("random", (17, 25))[1]
    large = F.interpolate(small.float(), (17, 25), mode="bilinear", align_corners=True)
    loss = term(kind, **keys)(small, label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, term(kind, **keys)(large, label), rtol=1e-5, atol=1e-6)


def test_torch_s_weighted_and_smoothed_cross_entropy_is_the_same():
    scores, label = case("random")
    expected = F.cross_entropy(
        scores, label, torch.tensor(WEIGHTS, dtype=torch.float64), ignore_index=255, label_smoothing=0.2
    )
    own = term("cross_entropy", class_weights=list(WEIGHTS), label_smoothing=0.2)(scores, label)
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=0)
    summed = term("cross_entropy", class_weights=list(WEIGHTS), label_smoothing=0.2, average="all")(scores, label)
    mass = sum(WEIGHTS[c] for _, c in pixels(scores, label))
    torch.testing.assert_close(summed, expected * mass / label.numel(), rtol=1e-6, atol=0)


def test_mining_keeps_the_same_pixels_whatever_the_classes_weigh():
    """Of two rows of pixels, p = 0.9 and p = 0.2, only the second is below 0.7; its classes weigh 0.2 and 3."""
    label = torch.tensor([[[0] * 8, [1] * 8]]).repeat(1, 8, 1)
    true = torch.tensor([[[0.9] * 8, [0.2] * 8]]).repeat(1, 8, 1)
    rest = (1 - true) / (K - 1)
    probability = torch.stack([torch.where(label == c, true, rest) for c in range(K)], 1)
    loss = term("ohem", threshold=0.7, min_kept=1, class_weights=list(WEIGHTS))(probability.log(), label)
    assert loss.item() == pytest.approx(-math.log(0.2), rel=1e-5)


def test_lovasz_by_hand():
    """A single pixel of probability 0.3 costs 0.7; with every label the class, the mean error."""
    scores = torch.tensor([0.3, 0.7]).log()[None, :, None, None]
    assert term("lovasz")(scores, torch.zeros(1, 1, 1, dtype=torch.long)).item() == pytest.approx(0.7)
    p = torch.tensor([0.9, 0.2, 0.4, 0.75])
    scores = torch.stack([p, 1 - p])[None, :, None].log()
    loss = term("lovasz")(scores, torch.zeros(1, 1, 4, dtype=torch.long))
    assert loss.item() == pytest.approx((1 - p).mean().item())


def consistent(features: np.ndarray, label: np.ndarray, phi: str) -> float:
    """The paper's formula, by loops, on features (N, D)."""
    classes = sorted(set(label.tolist()) - {255})
    means = {c: features[label == c].mean(0) for c in classes}

    def cost(d: float) -> float:
        if d <= 0.5:
            return 0.0
        return (d - 0.5) ** 2 if d <= 1.5 or phi == "quadratic" else (d - 1.5) + (1.5 - 0.5) ** 2

    def length(v: np.ndarray) -> float:
        return math.sqrt(float((v * v).sum()))

    if not classes:
        return 0.0
    inner = [np.mean([cost(length(h - means[c])) for h in features[label == c]]) for c in classes]
    pairs = [(a, b) for a in classes for b in classes if a != b]
    outer = [max(3.0 - length(means[a] - means[b]), 0) ** 2 for a, b in pairs]
    length_of_means = np.mean([length(m) for m in means.values()])
    return float(np.mean(inner) + (np.mean(outer) if pairs else 0.0) + 0.001 * length_of_means)


@pytest.mark.parametrize("phi", ["piecewise", "quadratic"])
@pytest.mark.parametrize("name", ["spread", "near", "far", "one class", "void", "equal", "zero", "one valid"])
def test_category_consistency_is_the_paper_s_formula(name, phi):
    random = np.random.default_rng(3)
    label = random.integers(0, K, 40)
    label[::7] = 255
    features = random.normal(size=(40, 5)) * {"near": 0.05, "far": 8.0}.get(name, 1.0)
    if name == "one class":
        label[:] = 1
    if name == "void":
        label[:] = 255
    if name in ("equal", "zero"):
        features[:] = name == "equal"
    if name == "one valid":
        label[1:], label[0] = 255, 3
    settings = LOSSES["category_consistent"].settings(phi=phi)
    given = torch.tensor(features, requires_grad=True)

    def loss(f: Tensor) -> Tensor:
        return category_consistent(f, torch.tensor(label), K, 255, settings)

    truth = consistent(features, label, phi)
    assert loss(given).item() == pytest.approx(truth, rel=1e-9, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss(given), given)
    assert gradient.isfinite().all()
    if name in ("equal", "zero", "one valid"):
        return
    for spot in [(0, 0), (1, 2), (8, 4), (39, 1)]:
        near = features.copy()
        near[spot] += 1e-6
        above = consistent(near, label, phi)
        near[spot] -= 2e-6
        assert gradient[spot].item() == pytest.approx((above - consistent(near, label, phi)) / 2e-6, abs=1e-7)


def test_category_consistency_reduces_the_features_and_shrinks_the_labels():
    torch.manual_seed(0)
    settings = LOSSES["category_consistent"].settings(channels=3)
    made = LOSSES["category_consistent"].build(settings, 255, True)
    made.prepare(K, 8)
    features, label = torch.randn(2, 8, 2, 3), torch.randint(0, K, (2, 16, 24))
    label[0, 8:, 8:16] = 255
    reduced = F.conv2d(features, made.reduce.weight, made.reduce.bias).movedim(1, -1).reshape(-1, 3)
    expected = category_consistent(reduced, label[:, ::8, ::8].flatten(), K, 255, settings)
    loss = made(Outputs(torch.zeros(2, K, 2, 3), {}, features.bfloat16().float()), label)
    torch.testing.assert_close(
        made(Outputs(torch.zeros(2, K, 2, 3), {}, features), label), expected, rtol=1e-6, atol=1e-6
    )
    loss.backward()
    assert made.reduce.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["focal", "dice", "lovasz", "category_consistent"])
def test_no_term_asks_the_device_for_a_number(kind):
    with FakeTensorMode():
        terms: dict[str, Term] = {kind: LOSSES[kind].settings()}
        objective = build(terms, 255, True)
        objective.prepare(K, 8)
        outputs = Outputs(torch.empty(2, K, 5, 6), {}, torch.empty(2, 8, 5, 6))
        assert objective(outputs, torch.empty(2, 40, 48, dtype=torch.long))[0].shape == ()


def test_automatic_weights_are_enet_s():
    objective = build({"cross_entropy": LOSSES["cross_entropy"].settings(class_weights="auto")}, 255, True)
    objective.prepare(3, 8)
    assert objective.needs_pixels
    objective.weigh(np.array([900, 100, 0]))
    raw = np.array([1 / math.log(1.92), 1 / math.log(1.12), 1 / math.log(1.02)])
    (weights,) = objective.state_dict().values()
    np.testing.assert_allclose(weights.numpy(), raw / raw.mean(), rtol=1e-6)


def test_weights_of_another_number_of_classes_are_refused():
    objective = build({"cross_entropy": LOSSES["cross_entropy"].settings(class_weights=[1.0, 2.0])}, 255, True)
    with pytest.raises(InputError, match="2 weights for 3 classes"):
        objective.prepare(3, 8)


@pytest.mark.parametrize("value", ["some", [1.0], [1.0, -2.0], [1.0, math.inf], [True, 1.0], 3])
def test_wrong_weights_are_refused_in_words_that_name_both_forms(value):
    with pytest.raises(ValueError, match="auto, or a list of positive numbers"):
        LOSSES["focal"].settings(class_weights=value)
    assert LOSSES["focal"].settings(class_weights=[1, 2.5]).class_weights == [1, 2.5]


def test_a_distance_to_the_mean_above_that_between_means_is_refused():
    settings = LOSSES["category_consistent"].settings
    with pytest.raises(ValueError, match=r"delta_v 1\.6 must not be above delta_d 1\.5"):
        settings(delta_v=1.6)
    assert settings(delta_v=1.5).delta_v == 1.5
