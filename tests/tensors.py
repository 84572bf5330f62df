"""Tensors in tests of kernels: comparisons that name what differs, memory layouts, poisoned memory, threads."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ccnet_cli.ops.cpu import threads

# the same numbers (B, C, H, W) in unusual memory layouts
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "slice": lambda x: torch.cat([x, x], dim=1).to(memory_format=torch.channels_last)[:, : x.shape[1]],
    "unaligned": lambda x: (
        torch.cat([torch.zeros(1), x.permute(0, 2, 3, 1).flatten()])[1:]
        .view(x.permute(0, 2, 3, 1).shape)
        .permute(0, 3, 1, 2)
    ),
}


def assert_near(
    names: str, got: Sequence[Tensor], expected: Sequence[Tensor], relative: float = 1e-5, smallest: float = 0.0
) -> None:
    """Compare results by name; errors are relative to the largest entry expected, or to `smallest` if that is more."""
    failures = []
    for name, mine, wanted in zip(names.split(), got, expected, strict=True):
        assert mine.shape == wanted.shape, f"{name}: shape {tuple(mine.shape)}, not {tuple(wanted.shape)}"
        difference = (mine.detach().double() - wanted.detach().double()).abs().nan_to_num(float("inf"))
        error, bound = float(difference.max()), relative * max(float(wanted.detach().abs().max()), smallest)
        if error > bound:
            failures.append(f"{name}: {error:.1e} off at {_index(difference)}, {bound:.1e} allowed")
    assert failures == []


def assert_equal(names: str, got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compare results by name, to the bit; all nan are equal."""
    failures = []
    for name, mine, wanted in zip(names.split(), got, expected, strict=True):
        assert mine.shape == wanted.shape, f"{name}: shape {tuple(mine.shape)}, not {tuple(wanted.shape)}"
        assert mine.dtype == wanted.dtype, f"{name}: {mine.dtype}, not {wanted.dtype}"
        difference = (mine.detach().double() - wanted.detach().double()).abs().nan_to_num(float("inf"))
        if not torch.equal(mine.nan_to_num(), wanted.nan_to_num()) or not torch.equal(mine.isnan(), wanted.isnan()):
            failures.append(f"{name}: {float(difference.max()):.1e} off at {_index(difference)}")
    assert failures == []


def _index(difference: Tensor) -> tuple[int, ...]:
    return tuple(int(axis) for axis in torch.unravel_index(difference.argmax(), difference.shape))


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory with nan, or 255."""
    plain, empty = Tensor.new_empty, torch.empty

    def filled(x: Tensor) -> Tensor:
        return x.fill_(float("nan") if x.is_floating_point() else 255)

    monkeypatch.setattr(Tensor, "new_empty", lambda self, *size, **how: filled(plain(self, *size, **how)))
    monkeypatch.setattr(torch, "empty", lambda *size, **how: filled(empty(*size, **how)))


def features_of_this_cpu() -> str:
    """The instruction sets of this processor, as LLVM names them."""
    from llvmlite import binding

    return str(binding.get_host_cpu_features().flatten())


def path_of_tests() -> str:
    """PYTHONPATH of a process that imports the package and the tests of the operators."""
    tests = Path(__file__).parent
    return os.pathsep.join(map(str, (tests.parent, tests, tests / "ops")))


def by_threads(call: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Results of a call, twice each in one, two and three threads, and once in threads that are not OpenMP's."""
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            yield call()
            yield call()
        # where torch has another OpenMP
        monkeypatch.setattr(threads, "openmp", lambda: None)
        yield call()
    finally:
        torch.set_num_threads(before)
