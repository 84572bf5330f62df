"""What the loss costs: the authors' way through numpy, plain cross entropy and ours, in one alternating run."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from scipy.ndimage import zoom
from torch import Tensor
from torch.nn import functional as F

from ccnet_cli.bench.meter import Meter, open_meter, require_equal
from ccnet_cli.bench.report import Column, Report, Row, Table, spread_columns
from ccnet_cli.bench.request import Run
from ccnet_cli.errors import notice
from ccnet_cli.losses import CrossEntropy, Ohem
from ccnet_cli.losses import objective as objectives
from ccnet_cli.losses.cross_entropy import cross_entropy
from ccnet_cli.losses.grid import STRIDE
from ccnet_cli.losses.ohem import mmseg_ohem_cross_entropy, ohem_cross_entropy
from ccnet_cli.parts import Outputs, Term

# B batch, K classes, H height, W width of the label; h, w of the network's map, an eighth

PLAIN, OFFICIAL, WHOLE = "plain", "official", "whole"
DESCRIPTIONS = {
    PLAIN: "torch's cross entropy, without mining",
    OFFICIAL: "the authors' way: softmax to the host, zoom, numpy's partition, a masked label",
    "cross_entropy": "our cross entropy, without mining",
    "ohem": "our mining by the authors' rule",
    "mmseg": "our mining by mmsegmentation's rule",
    WHOLE: "main and auxiliary scores enlarged whole, then the authors' way and torch's cross entropy",
    "objective": "ours from the network's scores: enlarged in bands",
}
IGNORED = 255
THRESHOLD, MIN_KEPT = 0.7, 100_000
# the authors' training loss
TERMS = {
    "ohem": Ohem(threshold=THRESHOLD, min_kept=MIN_KEPT),
    "auxiliary": CrossEntropy(output="auxiliary", weight=0.4),
}
Loss = Callable[[Outputs, Tensor], Tensor]
# relative: a pixel whose probability is the threshold's to the last place may be kept or not
TOLERANCE = 3e-2
# "both" is forward and backward from scores (B, K, H, W), or an eighth of that; ratio is to torch's cross entropy;
# memory is MiB at the peak above what lived before, floor the fraction of the time in which a copy would read all
# scores and write all gradients
COLUMNS = (
    Column("size", "size"),
    Column("loss", "name"),
    *spread_columns("both", ".1f"),
    Column("ratio", "ratio", ".2f"),
    Column("MiB", "memory", ".0f"),
    Column("of floor", "floor", ".0%"),
    Column("", "what"),
)


def measure(sizes: Sequence[tuple[int, int]], run: Run, batch: int = 2, classes: int = 19) -> Report:
    """Measure every way at every size of the label, forward and backward, float32.

    In each round every row runs once. Before, the losses and gradients of those that mine alike are compared, and
    nothing is timed if one is wrong.
    """
    with open_meter(run) as meter:
        copy = meter.copy_rate()
        rows = [row for size in sizes for row in _rows(size, batch, classes, meter, copy)]
        title = f"{batch} x {classes} classes, {meter}, median, least and greatest of {meter.repeats}; ratio to plain, "
        title += "MiB at the peak; floor: scores read and gradients written as fast as a copy, "
        title += f"{copy:.1f} GB/s here"
        values = {"batch": batch, "classes": classes, **meter.values(), "copy": copy, "rows": rows}
        return Report(values, [Table(title, COLUMNS, rows)])


def official_ohem(
    scores_BKHW: Tensor, label_BHW: Tensor, threshold: float = THRESHOLD, min_kept: int = MIN_KEPT
) -> Tensor:
    """Mining as the authors' release does it: on the host, with scipy and numpy."""
    probability_BKHW = scores_BKHW.detach().softmax(dim=1).cpu().numpy()
    labels_BHW = label_BHW.cpu().numpy()
    own, valid = _own(probability_BKHW, labels_BHW)
    shrink = 1 / STRIDE
    small_BKhw = zoom(probability_BKHW, (1, 1, shrink, shrink), order=1)
    small_own, small_valid = _own(small_BKhw, zoom(labels_BHW, (1, shrink, shrink), order=0))
    samples, rank = small_own[small_valid], min_kept // STRIDE**2
    bound = 1.0
    if rank < samples.size:
        bound = max(threshold, float(np.partition(samples, rank - 1)[rank - 1]) if rank else 0.0)
    kept = valid & (own <= np.float32(bound))
    mined = torch.from_numpy(np.where(kept, labels_BHW, IGNORED)).to(label_BHW.device)
    return F.cross_entropy(scores_BKHW, mined, ignore_index=IGNORED)


def _own(probability_BKHW: np.ndarray, label_BHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's probability of its own class, and whether it has one."""
    valid_BHW = label_BHW != IGNORED
    index_B1HW = np.where(valid_BHW, label_BHW, 0)[:, None]
    return np.take_along_axis(probability_BKHW, index_B1HW, axis=1)[:, 0], valid_BHW


def official_objective(terms: Mapping[str, Term], align_corners: bool = True) -> Loss | None:
    """The authors' way to the sum of a preset's terms: scores enlarged whole, mining through numpy.

    None, with a notice, where they have no such term.
    """
    computed: list[tuple[Term, Callable[[Tensor, Tensor], Tensor]]] = []
    for name, term in terms.items():
        weighed = getattr(term, "class_weights", None) or getattr(term, "label_smoothing", 0)
        if isinstance(term, Ohem) and term.rule == "official" and not weighed:
            computed.append((term, partial(official_ohem, threshold=term.threshold, min_kept=term.min_kept)))
        elif isinstance(term, CrossEntropy) and term.average == "valid" and not weighed:
            computed.append((term, partial(F.cross_entropy, ignore_index=IGNORED)))
        else:
            notice(f"without official: the authors have no loss term like {name}")
            return None

    def total(outputs: Outputs, label_BHW: Tensor) -> Tensor:
        large = [_enlarge(outputs.by_name(term.output), label_BHW, align_corners) for term, _ in computed]
        parts = (term.weight * compute(x, label_BHW) for (term, compute), x in zip(computed, large, strict=True))
        return functools.reduce(operator.add, parts)

    return total


def _enlarge(scores_BKhw: Tensor, label_BHW: Tensor, align_corners: bool) -> Tensor:
    return F.interpolate(scores_BKhw.float(), label_BHW.shape[1:], mode="bilinear", align_corners=align_corners)


def _rows(size: tuple[int, int], batch: int, classes: int, meter: Meter, copy: float) -> list[Row]:
    device = meter.device
    torch.manual_seed(0)
    H, W = size
    label_BHW = torch.randint(0, classes, (batch, H, W), device=device)
    label_BHW[torch.rand(label_BHW.shape, device=device) < 0.1] = IGNORED
    small = batch, classes, -(-H // STRIDE), -(-W // STRIDE)
    leaves = {
        "scores": (2 * torch.randn(batch, classes, H, W, device=device)).requires_grad_(),
        "main": (2 * torch.randn(small, device=device)).requires_grad_(),
        "auxiliary": torch.randn(small, device=device).requires_grad_(),
    }
    calls = _calls(leaves, label_BHW)
    for name, other in (("cross_entropy", PLAIN), ("ohem", OFFICIAL), ("objective", WHOLE)):
        require_equal(name, calls[name](), calls[other](), TOLERANCE)
    times = meter.alternate(calls)
    floor = 2 * 4 * leaves["scores"].numel() / copy / 1e6
    return [
        {
            "size": size,
            "name": name,
            "what": DESCRIPTIONS[name],
            "both": time,
            "ratio": time.median / times[PLAIN].median,
            "memory": meter.peak(calls[name]),
            "floor": floor / time.median,
        }
        for name, time in times.items()
    ]


def _calls(leaves: dict[str, Tensor], label_BHW: Tensor) -> dict[str, Callable[[], Sequence[Tensor]]]:
    """Every row as a call that gives the loss and its gradients."""
    large: dict[str, Callable[[Tensor], Tensor]] = {
        PLAIN: lambda x: F.cross_entropy(x, label_BHW, ignore_index=IGNORED),
        OFFICIAL: lambda x: official_ohem(x, label_BHW),
        "cross_entropy": lambda x: cross_entropy(x, label_BHW),
        "ohem": lambda x: ohem_cross_entropy(x, label_BHW, THRESHOLD, MIN_KEPT),
        "mmseg": lambda x: mmseg_ohem_cross_entropy(x, label_BHW, THRESHOLD, MIN_KEPT),
    }
    objective, official = objectives.build(TERMS, IGNORED, align_corners=True), official_objective(TERMS)
    assert official is not None
    small: dict[str, Loss] = {WHOLE: official, "objective": lambda *batch: objective(*batch)[0]}

    def both(compute: Callable[[], Tensor], inputs: list[Tensor]) -> Sequence[Tensor]:
        value = compute()
        return value.detach(), *torch.autograd.grad(value, inputs)

    scores, main, auxiliary = (leaves[name] for name in ("scores", "main", "auxiliary"))
    outputs = Outputs(main, {"auxiliary": auxiliary}, main)
    calls: dict[str, Callable[[], Sequence[Tensor]]] = {
        name: partial(both, partial(compute, scores), [scores]) for name, compute in large.items()
    }
    return calls | {
        name: partial(both, partial(loss, outputs, label_BHW), [main, auxiliary]) for name, loss in small.items()
    }
