"""What tests of kernels do to tensors: other memory layouts, poison where nothing was written, numbers of threads."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ccnet_cli.ops.cpu import threads

# the same numbers (B, C, H, W) in memory that a kernel may not have thought of
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


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory with what is no number, or no index."""
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
    """What a call gives twice each in one, two and three threads, and in threads that are not OpenMP's."""
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
