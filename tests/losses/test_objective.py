"""The objective: its terms enlarged in bands against whole maps, their weights, and what it refuses."""

import math
from collections.abc import Callable

import pytest
import torch
from reference_losses import CLASSES, authors_rule, case, mmseg_rule, weighted
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from ccnet_cli.bench.meter import peak_bytes
from ccnet_cli.errors import InputError
from ccnet_cli.losses import CrossEntropy, Ohem, bands, grid, pixels
from ccnet_cli.losses.bands import BandedScores
from ccnet_cli.losses.objective import Objective, Weighted, build
from ccnet_cli.losses.ohem import mmseg_ohem_cross_entropy, ohem_cross_entropy
from ccnet_cli.parts import Outputs, Term


def outputs(main: torch.Tensor, auxiliary: torch.Tensor) -> Outputs:
    return Outputs(main, {"auxiliary": auxiliary}, main)


def objective(
    rule: str | None, *mining: float, average: str = "valid", weight: float = 0.4, align_corners: bool = True
) -> Callable[..., torch.Tensor]:
    """(main, auxiliary, label) -> total, mined by a rule or not at all."""
    main = CrossEntropy(average=average)
    if rule is not None:
        main = Ohem(rule=rule, average=average, **dict(zip(("threshold", "min_kept"), mining, strict=False)))
    terms: dict[str, Term] = {"first": main}
    terms["second"] = CrossEntropy(output="auxiliary", weight=weight, average=average)
    made = build(terms, 255, align_corners)
    return lambda main, auxiliary, label: made(outputs(main, auxiliary), label)[0]


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


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("rule", [None, "official", "mmseg"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_the_objective_adds_a_weighted_plain_auxiliary_loss_at_label_size(align_corners, rule, average):
    torch.manual_seed(0)
    main, auxiliary = 3 * torch.randn(2, 2, CLASSES, 5, 6)
    label = case("random", (33, 41))[1]
    valid = label.numpy() != 255
    count = valid.size if average == "all" else valid.sum()
    large = [F.interpolate(s, (33, 41), mode="bilinear", align_corners=align_corners) for s in (main, auxiliary)]
    probability = large[0].softmax(1).numpy()
    if rule == "official":
        kept = authors_rule(probability, label.numpy(), 0.6, 1000)[1]
        weight = kept / kept.sum()
    else:
        kept = mmseg_rule(probability, label.numpy(), 0.6, 1000)[1] if rule else valid
        weight = kept / count
    assert rule is None or 0 < kept.sum() < valid.sum()
    first = weighted(large[0], label, weight)[0]
    second = weighted(large[1], label, valid / count)[0]
    loss = objective(rule, 0.6, 1000, weight=0.3, align_corners=align_corners, average=average)
    assert loss(main, auxiliary, label).item() == pytest.approx(first + 0.3 * second, rel=1e-6)


def test_half_precision_scores_give_a_float32_loss():
    main = torch.randn(2, CLASSES, 4, 5).bfloat16()
    label = case("random", (32, 40))[1]
    assert objective("official")(main, main, label).dtype == torch.float32


@pytest.fixture
def narrow(monkeypatch):
    """Bands of a few rows, as large maps have them."""
    monkeypatch.setattr(bands, "BAND_BYTES", (3000, 3000))


def whole(
    rule: str | None, mining: tuple[float, int], average: str, align_corners: bool, both: list[torch.Tensor], label
) -> torch.Tensor:
    """The objective by interpolation of the whole maps and torch's own cross entropy; the mined pixels by the rules."""
    size, count = label.shape[1:], label.numel() if average == "all" else max(int((label != 255).sum()), 1)
    large = [F.interpolate(s, size, mode="bilinear", align_corners=align_corners) for s in both]
    first, second = (F.cross_entropy(s, label, ignore_index=255, reduction="none") for s in large)
    if rule is None:
        first = first.sum() / count
    else:
        probability = large[0].detach().float().softmax(1).numpy()
        reference = mmseg_rule if rule == "mmseg" else authors_rule
        kept = torch.from_numpy(reference(probability, label.numpy(), *mining)[1])
        first = (first * kept).sum() / (count if rule == "mmseg" else max(int(kept.sum()), 1))
    return first + 0.4 * second.sum() / count


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
            double = [leaf.double() for leaf in leaves]
            loss, expected = made(*leaves, label), whole(rule, (0.3, min_kept), average, align_corners, double, label)
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
        enlarged = BandedScores(scores, size, align_corners)
        made = [enlarged._widths(tall[:, :, rows]) for tall in enlarged._images() for rows in enlarged._bands(size[0])]
        assert len(made) > 2 or label.numel() < 100
        made = torch.cat(made, 2).view(1, CLASSES, 2, *size)[0].transpose(0, 1)
        expected = F.interpolate(scores, size, mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)
        samples = grid.make_grid(label, 255)
        expected = grid.sample(made.softmax(1), samples.label_Bhw, samples.rows, samples.columns)
        torch.testing.assert_close(enlarged.sample(samples), expected, rtol=3e-7, atol=0)
        own = pixels.of_true_class(made.softmax(1), label, label != 255)
        torch.testing.assert_close(enlarged.true_probability(label, label != 255), own, rtol=3e-7, atol=0)


@pytest.mark.parametrize("rule", [None, "official", "mmseg"])
def test_the_objective_never_holds_a_whole_map(monkeypatch, rule):
    """Nor its gradient: the peak stays below one of the two maps that it enlarges."""
    main, auxiliary = torch.randn(2, 2, 19, 33, 33, requires_grad=True)
    label = torch.zeros(2, 257, 257, dtype=torch.long)
    monkeypatch.setattr(bands, "BAND_BYTES", (600_000, 600_000))

    def both() -> None:
        torch.autograd.grad(objective(rule)(main, auxiliary, label), main)

    assert 0 < peak_bytes(both, main.device) < 2 * 19 * 257 * 257 * 4


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


def test_every_term_tells_its_value_before_its_weight():
    """Three terms, two of them of one output: the total is their weighted sum, added up in their order, to the bit."""
    torch.manual_seed(4)
    main, auxiliary = torch.randn(2, 2, CLASSES, 5, 8, requires_grad=True)
    label = case("random", (40, 57))[1]
    terms = {
        "mined": Ohem(threshold=0.3, min_kept=640, weight=0.7),
        "side": CrossEntropy(output="auxiliary", weight=0.3),
        "plain": CrossEntropy(average="all", weight=2.5),
    }
    total, values = build(terms, 255, True)(outputs(main, auxiliary), label)
    alone = [build({name: term}, 255, True)(outputs(main, auxiliary), label)[1][name] for name, term in terms.items()]
    assert list(values) == list(terms) and not any(value.requires_grad for value in values.values())
    assert [value.item() for value in values.values()] == [value.item() for value in alone]
    assert len({value.item() for value in alone}) == 3
    assert torch.equal(total, 0.7 * alone[0] + 0.3 * alone[1] + 2.5 * alone[2])
    found = torch.autograd.grad(total, main)[0]
    expected = sum(
        terms[name].weight
        * torch.autograd.grad(build({name: terms[name]}, 255, True)(outputs(main, auxiliary), label)[0], main)[0]
        / terms[name].weight
        for name in ("mined", "plain")
    )
    torch.testing.assert_close(found, expected)


def test_an_output_that_the_network_lacks_is_refused_in_one_line():
    made = build({"plain": CrossEntropy(), "side": CrossEntropy(output="edges")}, 255, True)
    main, label = torch.randn(1, CLASSES, 2, 2), torch.zeros(1, 16, 16, dtype=torch.long)
    message = r"^preset key loss\.side\.output: edges: no such output; the network has auxiliary, main; name one"
    for refused in (lambda: made.check({"main", "auxiliary"}), lambda: made(outputs(main, main), label)):
        with pytest.raises(InputError, match=message):
            refused()
    made.check({"main", "edges"})


def test_a_term_may_be_a_module_with_parameters():
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, outputs: Outputs, label: torch.Tensor) -> torch.Tensor:
            return self.scale * outputs.main.mean()

    made = Objective(
        {"scaled": Weighted(0.5, "main", Scaled()), "sum": Weighted(1.0, "main", lambda o, _: o.main.sum())}
    )
    total, _ = made(Outputs(torch.full((1, 2, 2, 2), 3.0), {}, torch.empty(0)), torch.zeros(1, 2, 2))
    total.backward()
    (scale,) = made.parameters()
    assert (total.item(), scale.grad.item()) == (0.5 * 2 * 3 + 24, 0.5 * 3)


@pytest.mark.parametrize("rule", [None, "official", "mmseg"])
def test_scores_of_a_thousand_give_their_difference(rule):
    """By hand: a pixel of the weaker class loses the distance to the stronger one, one of the stronger nothing."""
    scores = torch.tensor([1000.0, -1000.0, 0.0])[None, :, None, None].expand(1, 3, 4, 4).clone().requires_grad_()
    label = torch.tensor([0, 1, 2, 255]).expand(1, 4, 4)
    loss = objective(rule, 1.0, 10**6, weight=0.0)(scores, scores.detach(), label)
    # of 12 valid pixels the rule of mmsegmentation drops those at its threshold, which lose nothing
    kept = 12
    assert loss.item() == 4 * (0 + 2000 + 1000) / kept
    (gradient,) = torch.autograd.grad(loss, scores)
    column = torch.tensor([[0, 0, 0], [1, -1, 0], [1, 0, -1], [0, 0, 0.0]]).T / kept
    assert torch.equal(gradient[0], column[:, None].expand(3, 4, 4))


def test_pixels_at_the_threshold_are_kept_by_the_authors_rule_alone():
    """Four rows of probability 0.5 to the bit, four of less and eight of more: thresholds of exactly 0.5."""
    scores = torch.zeros(1, 2, 16, 16)
    scores[:, 0, 4:] = 3.0
    label = torch.zeros(1, 16, 16, dtype=torch.long)
    label[:, 4:8] = 1
    tied, hard = 64 * math.log(2), 64 * math.log1p(math.exp(3))
    for rule, expected in (("official", (tied + hard) / 128), ("mmseg", hard / 256)):
        loss = objective(rule, 0.5, 1, weight=0.0)(scores, scores, label)
        assert loss.item() == pytest.approx(expected, rel=1e-6), rule
    assert ohem_cross_entropy(scores, label, 0.5, 1).item() == pytest.approx((tied + hard) / 128, rel=1e-6)
    assert mmseg_ohem_cross_entropy(scores, label, 0.5, 1).item() == pytest.approx(hard / 256, rel=1e-6)


def test_all_pixels_may_lie_at_the_threshold():
    """By rank it is the probability that all share: the authors' rule keeps all of them, mmsegmentation's none."""
    scores, label = torch.zeros(1, 2, 16, 16), torch.zeros(1, 16, 16, dtype=torch.long)
    for rule, expected in (("official", math.log(2)), ("mmseg", 0.0)):
        assert objective(rule, 0.3, 64, weight=0.0)(scores, scores, label).item() == pytest.approx(expected), rule


@pytest.mark.parametrize("rule", ["official", "mmseg"])
def test_mining_looks_at_the_output_that_it_names(rule):
    """As if the two outputs had changed places."""
    main, auxiliary = 3 * torch.randn(2, 2, CLASSES, 5, 6, generator=torch.Generator().manual_seed(3))
    label = case("random", (33, 41))[1]
    settings = {"threshold": 0.6, "min_kept": 1000, "rule": rule}
    there = build({"hard": Ohem(output="auxiliary", **settings)}, 255, True)(outputs(main, auxiliary), label)[0]
    here = build({"hard": Ohem(**settings)}, 255, True)
    assert there == here(outputs(auxiliary, main), label)[0] != here(outputs(main, auxiliary), label)[0]


@pytest.mark.parametrize("kind", [CrossEntropy(), Ohem(threshold=0.6, min_kept=1000), Ohem(rule="mmseg", min_kept=500)])
def test_any_value_may_be_the_ignored_one(kind):
    """The classes are 0 to 4: 7 in place of 255 changes nothing."""
    scores = 3 * torch.randn(2, CLASSES, 5, 6, generator=torch.Generator().manual_seed(3))
    label = case("random", (33, 41))[1]
    values = [
        build({"one": kind}, ignored, True)(outputs(scores, scores), label.masked_fill(label == 255, ignored))[0]
        for ignored in (255, 7)
    ]
    assert values[0] == values[1]


def test_a_term_computes_in_the_precision_of_its_own():
    """Under autocast, a product of float32 would be bfloat16 otherwise."""
    seen = []

    def product(given, _):
        seen.append((given.main[0, 0] @ given.main[0, 1].T).dtype)
        return given.main.sum()

    made = Objective({"product": Weighted(1.0, "main", product)})
    scores = torch.randn(1, CLASSES, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (scores[0, 0] @ scores[0, 1].T).dtype == torch.bfloat16
        made(outputs(scores, scores), torch.zeros(1, 8, 8, dtype=torch.long))
    assert seen == [torch.float32]
