"""Which implementation `auto` takes where several could: the one that was fastest when measured, once per key.

The clock, the candidates and the way to other processes are passed in.
"""

from collections.abc import Callable, Iterable, Mapping
from statistics import median

import torch
from torch import Tensor

from ccnet_cli.errors import CCNetError, notice, out_of_memory

REPEATS = 5
WARM_UP = 2
Call = Callable[[], object]


class Choices:
    """The choices of this process; share makes rank 0's that of all, and quiet leaves their telling to rank 0.

    Where processes share, only what all of them ask for in the same order may be measured, under keys that name the
    same device: rank 0's, which a machine with other GPUs would not name by itself.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.known: dict[str, str] = {}
        self.share: Callable[[str], str] | None = None
        self.device: str | None = None
        self.quiet = False
        self._told: set[str] = set()

    def choose(self, key: str, candidates: Mapping[str, Call], clock: Callable[[Call], float]) -> str:
        """The choice of this key, measured if there is none yet; the last error where no candidate runs."""
        if key not in self.known:
            times = self._measure(candidates, clock)
            fastest = min(times, key=lambda name: times[name])
            chosen = self.share(fastest) if self.share else fastest
            self.known[key] = chosen
            timed = ", ".join(f"{name} {time:.3f} ms" for name, time in times.items())
            self._tell(f"criss-cross attention on {key}: {chosen} ({timed})")
        return self.known[key]

    def export(self) -> dict[str, str]:
        """What a checkpoint keeps."""
        return dict(self.known)

    def load(self, kept: object) -> None:
        """Take over what a checkpoint kept; what is no choice of this version is left to be measured again."""
        if isinstance(kept, dict):
            self.known |= {key: name for key, name in kept.items() if isinstance(key, str) and name in self.names}

    def _measure(self, candidates: Mapping[str, Call], clock: Callable[[Call], float]) -> dict[str, float]:
        """Median milliseconds of each candidate that runs, in alternating rounds after a warm-up that builds it."""
        running: dict[str, Call] = {}
        failure: Exception | None = None
        for name, call in candidates.items():
            try:
                for _ in range(WARM_UP):
                    clock(call)
            except (CCNetError, ImportError, OSError, RuntimeError) as error:
                failure = error
                # a lack of memory is of this size alone
                why = "out of memory" if out_of_memory(error) else str(error).partition("\n")[0]
                self._tell(f"warning: {name} is left out of the choice ({why})")
            else:
                running[name] = call
        if failure and not running:
            raise failure
        taken: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(REPEATS):
            for name, call in running.items():
                taken[name].append(clock(call))
        return {name: median(times) for name, times in taken.items()}

    def _tell(self, text: str) -> None:
        if not self.quiet and text not in self._told:
            self._told.add(text)
            notice(text)


def key(tensors: Iterable[Tensor], device: str, gradients: bool) -> str:
    """What a choice hangs on, in words: sizes, types, device, and whether a backward pass follows."""
    sizes = ", ".join(f"{'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}" for x in tensors)
    return f"{sizes}, {device}, {'with' if gradients else 'without'} gradients"


def elapsed(call: Call) -> float:
    """Milliseconds that the current CUDA device was at a call, by events on its current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
