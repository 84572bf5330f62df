"""Which implementation `auto` takes where several could: the one that was fastest when measured, once per case.

The clock, the candidates and the way to other processes are passed in.
"""

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn

from ccnet_cli.errors import CCNetError, EnvironmentFailure, describe_briefly, notice

# implementations that are measured; the others are never the fastest
CANDIDATES = ("gemm", "numba", "flash")
REPEATS = 5
WARM_UP = 2
# calls of one measurement, and cycles (about 2 ms) that keep a GPU busy while the host submits them
CALLS = 4
BUSY_CYCLES = 4_000_000
Call = Callable[[], object]


class Choices:
    """Measured choices by case. share broadcasts rank 0's choice; quiet leaves the messages to rank 0.

    Processes that share may only measure what all of them do in the same order, in cases that name the same device:
    rank 0's, since the GPU of another machine may have another name.
    """

    def __init__(
        self, share: Callable[[str], str] | None = None, device: str | None = None, quiet: bool = False
    ) -> None:
        self.known: dict[str, str] = {}
        self.share = share
        self.device = device
        self.quiet = quiet
        self._printed: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # the copies of a network share what was measured
        return self

    def choose(self, case: str, candidates: Mapping[str, Call], clock: Callable[[Call], float]) -> str:
        """The choice for this case, measured if there is none yet.

        The last error where no candidate runs, here or on rank 0: all processes end then, and none waits for another.
        """
        if case not in self.known:
            times, failure = self._measure(candidates, clock)
            fastest = min(times, key=lambda name: times[name]) if times else ""
            chosen = self.share(fastest) if self.share else fastest
            if not chosen:
                why = "no implementation runs on rank 0"
                fix = "see the message of rank 0, or set model.head.implementation"
                raise failure or EnvironmentFailure(f"criss-cross attention on {case}", why, fix)
            self.known[case] = chosen
            timings = ", ".join(f"{name} {time:.3f} ms" for name, time in times.items())
            self._print(f"criss-cross attention on {case}: {chosen} ({timings})")
        return self.known[case]

    def export(self) -> dict[str, str]:
        """The choices as a checkpoint saves them."""
        return dict(self.known)

    def load(self, saved: object) -> None:
        """Take over the choices of a checkpoint; anything that this version cannot choose is measured again."""
        if isinstance(saved, dict):
            self.known |= {case: name for case, name in saved.items() if isinstance(case, str) and name in CANDIDATES}

    def _measure(
        self, candidates: Mapping[str, Call], clock: Callable[[Call], float]
    ) -> tuple[dict[str, float], Exception | None]:
        """Median milliseconds of each candidate that runs, in alternating rounds after a warm-up that builds it.

        Also the error of the last that does not run.
        """
        working: dict[str, Call] = {}
        failure: Exception | None = None
        for name, call in candidates.items():
            try:
                for _ in range(WARM_UP):
                    clock(call)
            except (CCNetError, ImportError, OSError, RuntimeError) as error:
                failure = error
                # the full message names sizes, which would repeat the warning for every case
                why = describe_briefly(error)
                self._print(f"warning: {name} is left out of the choice ({why})")
            else:
                working[name] = call
        times: dict[str, list[float]] = {name: [] for name in working}
        for _ in range(REPEATS):
            for name, call in working.items():
                times[name].append(clock(call))
        return {name: median(values) for name, values in times.items()}, failure

    def _print(self, text: str) -> None:
        if not self.quiet and text not in self._printed:
            self._printed.add(text)
            notice(text)


def use(network: nn.Module, choices: Choices) -> None:
    """Let all modules of a network that measure choices, each its own by default, share these."""
    for module in network.modules():
        if isinstance(vars(module).get("choices"), Choices):
            vars(module)["choices"] = choices


def describe(tensors: Iterable[Tensor], device: str, gradients: bool) -> str:
    """The case that a choice is for, in words: sizes, types, device, and whether a backward pass follows."""
    sizes = ", ".join(f"{'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}" for x in tensors)
    return f"{sizes}, {device}, {'with' if gradients else 'without'} gradients"


def time_on_gpu(call: Call, calls: int = 1) -> float:
    """Milliseconds of a call on the current CUDA device, the mean of some calls, by events on its current stream.

    The device is busy while the host submits them; otherwise short calls would only measure the host.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(BUSY_CYCLES)
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / calls
