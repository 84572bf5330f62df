"""Labels and confusion, by both implementations, against sums in float64, pixel by pixel and tile by tile."""

import errno
from itertools import product

import numpy as np
import pytest
import torch

from ccnet_cli.errors import NonFiniteError
from ccnet_cli.inference import scores
from ccnet_cli.inference import views as inference
from ccnet_cli.inference.scores import Predictor, Scores, Taps, Tile
from ccnet_cli.ops.cpu import prediction, simd

BOTH = pytest.mark.parametrize("implementation", scores.IMPLEMENTATIONS)
# one pixel, thin, odd, a block of columns and one more, a run of rows and one more, two bands
SIZES = [(1, 1), (1, 300), (300, 1), (9, 257), (17, 40), (33, 513)]


def random_taps(random, start, pixels, logits, taps):
    matrix = np.zeros((pixels, logits), np.float32)
    first = np.sort(random.integers(0, logits - taps + 1, pixels))
    for tap in range(taps):
        matrix[np.arange(pixels), first + tap] = random.uniform(0.1, 1, pixels)
    return Taps.of(torch.from_numpy(matrix), start), matrix.astype(np.float64)


def random_scores(size, classes, seed):
    """Overlapping tiles of odd sizes with one to four taps, some mirrored; and the sum of them in float64."""
    random = np.random.default_rng(seed)
    total, tiles = np.zeros((classes, *size)), []
    for number in range(5):
        axes, where = [], []
        for length in size:
            start = int(random.integers(0, length)) if number else 0
            pixels = int(random.integers(1, length - start + 1)) if number else length
            logits = int(random.integers(4, 40))
            taps, matrix = random_taps(random, start, pixels, logits, int(random.integers(1, 5)))
            axes.append((taps, matrix))
            where.append(slice(start, start + pixels))
        (rows, down), (columns, across) = axes
        logits = random.standard_normal((classes, down.shape[1], across.shape[1])).astype(np.float32)
        if number % 2:
            columns, across = columns.mirror(size[1]), across[::-1]
            where[1] = slice(size[1] - where[1].stop, size[1] - where[1].start)
        total[:, where[0], where[1]] += np.einsum("yi,kij,xj->kyx", down, logits, across)
        tiles.append(Tile(torch.from_numpy(logits), rows, columns))
    return Scores(size, tiles), total


@pytest.mark.parametrize("classes", [1, 2, 19, 150, 255])
@pytest.mark.parametrize("size", SIZES)
def test_both_implementations_agree_to_the_last_bit_and_with_the_sums(size, classes):
    found, expected = random_scores(size, classes, 7 * classes + size[1])
    np.testing.assert_allclose(found.dense().numpy(), expected, rtol=0, atol=1e-5)
    random = np.random.default_rng(classes)
    label = random.integers(0, classes, size, dtype=np.uint8)
    label[random.random(size) < 0.2] = 255
    results = [found.compare(label, 255, name) for name in scores.IMPLEMENTATIONS]
    best = np.sort(expected, axis=0)[-2:]
    decided = best[-1] - best[0] > 1e-4 if classes > 1 else np.ones(size, bool)
    for ids, confusion in results:
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, results[0][0])
        np.testing.assert_array_equal(ids[decided], expected.argmax(0)[decided])
        np.testing.assert_array_equal(ids, found.dense().numpy().argmax(0))
        valid = label != 255
        counts = np.bincount(label[valid].astype(int) * classes + ids[valid], minlength=classes**2)
        np.testing.assert_array_equal(confusion.matrix.numpy().ravel(), counts)
    for name in scores.IMPLEMENTATIONS:
        np.testing.assert_array_equal(found.predict(name), results[0][0])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("mode", "scale", "flip"), [*product(["whole", "sliding"], [(1.0,), (0.75, 1.5)], [False, True])]
)
def test_the_implementations_agree_on_a_network_s_tiles(mode, scale, flip, align_corners):
    class Eighth(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x, x.flip(1)], 1)[:, :, ::8, ::8] * torch.arange(1.0, 7)[:, None, None]

    model = Eighth()
    model.align_corners = align_corners
    image = torch.randn(1, 3, 75, 131, generator=torch.Generator().manual_seed(4))
    (found,) = inference.batch_scores(model, image, inference.Views(mode, (41, 57), scale, flip), torch.device("cpu"))
    np.testing.assert_array_equal(found.predict("numba"), found.predict("torch"))
    assert len(np.unique(found.predict("numba"))) > 2


@BOTH
def test_equal_scores_are_the_lowest_class_s(implementation):
    logits = torch.tensor([0.0, 2, 2, 1, 2])[:, None, None].expand(5, 3, 4).contiguous()
    assert (inference.upsample(logits, (20, 30), True).predict(implementation) == 1).all()


@BOTH
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0, 0), (2, 3, 4), (1, 2, 0), (0, 0, 4)])
def test_what_is_not_finite_is_met_anywhere(place, value, implementation):
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = inference.upsample(logits, (70, 290), False)
    found.predict(implementation)
    logits[place] = value
    with pytest.raises(NonFiniteError, match="not finite"):
        found.predict(implementation)


@BOTH
def test_sums_that_overflow_are_met(implementation):
    found = inference.upsample(torch.full((2, 4, 5), 3e38), (20, 30), True)
    twice = Scores(found.size, [found.tiles[0], found.tiles[0]])
    found.predict(implementation)
    with pytest.raises(NonFiniteError):
        twice.predict(implementation)


@BOTH
def test_labels_that_are_no_class_are_refused_unless_they_do_not_count(implementation):
    found = inference.upsample(torch.randn(3, 4, 5), (20, 30), True)
    label = np.zeros((20, 30), np.uint8)
    label[19, 29] = 3
    with pytest.raises(ValueError, match=r"label outside 0\.\.2"):
        found.compare(label, 255, implementation)
    assert found.compare(label, 3, implementation)[1].matrix.sum() == 599
    with pytest.raises(ValueError, match="a label of"):
        found.compare(label.T, 255, implementation)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="fastest"):
        inference.upsample(torch.randn(3, 4, 5), (20, 30), True).predict("fastest")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads, monkeypatch):
    found, _ = random_scores((61, 90), 7, 3)
    label = np.random.default_rng(1).integers(0, 7, (61, 90), dtype=np.uint8)
    ids, confusion = found.compare(label, 255, "torch")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    again, counted = found.compare(label, 255, "numba")
    np.testing.assert_array_equal(again, ids)
    assert torch.equal(counted.matrix, confusion.matrix)


def test_the_compiled_way_is_taken_once_it_pays(monkeypatch):
    found = inference.upsample(torch.randn(3, 4, 5), (20, 30), True)
    monkeypatch.setattr(scores, "MIN_SCORES_TO_COMPILE", 2 * 3 * 20 * 30)
    used, compiled = [], scores._predict_compiled
    monkeypatch.setattr(scores, "_predict_compiled", lambda *rest: (used.append(1), compiled(*rest))[1])
    predictor, label = Predictor(), np.zeros((20, 30), np.uint8)
    for expected in (0, 0, 1, 2):
        predictor.predict(found)
        assert len(used) == expected
    predictor.compare(found, label, 255)
    assert len(used) == 3
    # another one begins anew
    Predictor().predict(found)
    assert len(used) == 3


def test_a_compiler_that_fails_is_done_without(monkeypatch):
    found = inference.upsample(torch.randn(3, 4, 5), (20, 30), True)
    expected = found.predict("torch")
    monkeypatch.setattr(scores, "MIN_SCORES_TO_COMPILE", 0)
    predictor, calls = Predictor(), []

    def fail():
        calls.append(1)
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(prediction, "compile_kernel", fail)
    for _ in range(3):
        np.testing.assert_array_equal(predictor.predict(found), expected)
    assert len(calls) == 1
    # asked for by name it is refused
    with pytest.raises(OSError, match="no room"):
        found.predict("numba")


def test_without_a_folder_for_the_cache_kernels_are_compiled_all_the_same():
    options = []

    def compile(signature, cache=False):
        options.append((signature, cache))
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    assert simd.compile_cached(compile, "int64(int64)", len) is len
    assert options == [("int64(int64)", True), ("int64(int64)", False)]


def test_taps_are_those_of_the_matrix_even_where_weights_are_all_zero():
    matrix = torch.zeros(6, 5)
    matrix[1, 1:3] = torch.tensor([0.25, 0.75])
    matrix[3, 2] = 1
    matrix[4, 4] = 0.5
    taps = Taps.of(matrix, 3)
    rebuilt = torch.zeros(6, 5)
    for tap, weights in enumerate(taps.weights):
        rebuilt[torch.arange(6), taps.first.long() + tap] += weights
    assert torch.equal(rebuilt, matrix)
    assert taps.first.tolist() == sorted(taps.first.tolist()) and len(taps.weights) == 2
    assert (taps.start, len(taps), taps.mirror(20).start) == (3, 6, 11)
