"""The CUDA kernels without a GPU: launches on numpy arrays, by the simulator or by ptxrun, beside the definition.

Run as a script, a process of its own for NUMBA_ENABLE_CUDASIM, it simulates cases given as JSON and prints the errors.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccnet_cli.ops import composed, reference
from ccnet_cli.ops.cuda import steps

ROOT = Path(__file__).parent.parent
PTXRUN = ROOT.parent / "shared" / "tools"
if (PTXRUN / "ptxrun").is_dir():
    sys.path.insert(0, str(PTXRUN))

compiles = pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed: ccnet-cli[cuda13]")
runs = pytest.mark.skipif(
    find_spec("numba_cuda") is None or not (PTXRUN / "ptxrun").is_dir(), reason="needs numba-cuda and ptxrun"
)
RESULTS = ("out", "d_query", "d_key", "d_value")


@dataclass
class Case:
    """Random input of one size, what the definition makes of it in float64, and the launches that should make it too.

    fused: query, key and value are slices of one tensor, as after one convolution. largest: threads along a tile at
    most, so that a small map has several tiles. small: the same with warps that the simulator can run. T: frames of a
    clip; 0 for an image.
    """

    images: int
    c: int
    C: int
    H: int
    W: int
    dtype: str = "float32"
    fused: bool = False
    largest: int = 16
    small: int = 0
    T: int = 0
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    exact: dict[str, np.ndarray] = field(default_factory=dict)
    launches: list[steps.Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        B, c, C = self.images, self.c, self.C
        S = (self.T, self.H, self.W) if self.T else (self.H, self.W)
        random = np.random.default_rng([B, c, C, *S])
        if self.fused and self.dtype != "float32":
            raise ValueError("query and key are float32, and so is the tensor that they are slices of")
        whole = encode(random.standard_normal((B, *S, 2 * c + C)) / c**0.25, "float32")
        query, key, value = np.split(whole, [c, 2 * c], axis=-1)
        value = value if self.fused else encode(value, self.dtype)
        grad = encode(random.standard_normal((B, *S, C)), self.dtype)
        self.exact = _exact(*(decode(x) for x in (query, key, value, grad)))
        wide = 2 * c + C if self.fused else 0
        sources = {"query": (query, 0), "key": (key, c), "value": (value, 2 * c), "grad": (grad, 0)}
        for name, (array, offset) in sources.items():
            flat = whole.reshape(-1)[offset:] if wide and name != "grad" else np.ascontiguousarray(array).reshape(-1)
            self.arrays[name] = flat
        arms = [steps.pad_length(length) for length in S]
        width = sum(arms)
        made = {"energy": (width, "float32"), "pull": (width, "float32"), "out": (C, self.dtype)}
        made |= {"d_query": (c, "float32"), "d_key": (c, "float32"), "d_value": (C, self.dtype)}
        for name, (channels, dtype) in made.items():
            self.arrays[name] = encode(np.full(B * prod(S) * channels, np.nan), dtype)
        grid = steps.Grid(B, *S[-2:], sum(arms[:-1]), self.dtype, self.small or self.largest, 8 if self.small else 32)
        if self.T:
            grid = replace(grid, frames=self.T, column=arms[0])
        channels = {"query": c, "key": c, "value": C, "grad": C, "energy": width, "pull": width}
        channels |= {"out": C, "d_query": c, "d_key": c, "d_value": C}

        def buffer(name: str) -> steps.Buffer:
            stride = wide if wide and name in ("query", "key", "value") else channels[name]
            offsets = {"key": c, "value": 2 * c} if wide else {}
            return steps.Buffer(name, stride, not (stride % 4 or channels[name] % 4 or offsets.get(name, 0) % 4))

        inputs = [buffer(name) for name in ("query", "key", "value", "energy")]
        self.forward = steps.forward(grid, c, C, *inputs, buffer("out"))
        rest = [buffer(name) for name in ("grad", "pull", "d_query", "d_key", "d_value")]
        self.launches = [*self.forward, *steps.backward(grid, c, C, *inputs, *rest)]

    def errors(self) -> dict[str, float]:
        """Greatest difference of each result, relative to the greatest entry of the exact one or 1e-3 of the grad's."""
        found = {}
        for name, exact in self.exact.items():
            got = decode(self.arrays[name]).astype(np.float64).reshape(exact.shape)
            found[name] = float(abs(got - exact).max() / max(abs(exact).max(), 1e-3))
        return found

    @property
    def useful(self) -> int:
        """FLOPs of the forward pass of an image, 2 per multiply-add, over all H + W positions."""
        return 2 * self.images * self.H * self.W * (self.H + self.W) * (self.c + self.C)


@dataclass
class Gathering:
    """Random attention and value of one size, and the launches that gather on tensor cores.

    What no launch may use is nan: padding behind the arms of the attention and, where the pixels of value are `wide`
    apart, the channels of others. tight: arms without padding. small: as for a case.
    """

    images: int
    C: int
    H: int
    W: int
    dtype: str = "float32"
    wide: int = 0
    tight: bool = False
    small: int = 0
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    launches: list[steps.Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        B, C, H, W = self.images, self.C, self.H, self.W
        random = np.random.default_rng([B, C, H, W])
        arm, width = (H, H + W) if self.tight else (steps.pad_length(H), steps.pad_length(H) + steps.pad_length(W))
        self.columns, self.rows = random.standard_normal((B, H, W, H)), random.standard_normal((B, H, W, W))
        self.columns, self.rows = self.columns.astype(np.float32), self.rows.astype(np.float32)
        attention = np.full((B, H, W, width), np.nan, np.float32)
        attention[..., :H], attention[..., arm : arm + W] = self.columns, self.rows
        stride = self.wide or C
        value = encode(np.full((B, H, W, stride), np.nan), self.dtype)
        value[..., :C] = encode(random.standard_normal((B, H, W, C)), self.dtype)
        self.value = decode(value[..., :C])
        self.arrays = {"attention": attention.reshape(-1), "value": value.reshape(-1)}
        self.arrays["out"] = encode(np.full(B * H * W * C, np.nan), self.dtype)
        grid = steps.Grid(B, H, W, arm, self.dtype, tensor=True, **({"largest": self.small} if self.small else {}))
        buffers = [
            steps.Buffer("attention", width, arm % 4 == 0 and width % 4 == 0),
            steps.Buffer("value", stride, C % 4 == 0 and stride % 4 == 0),
            steps.Buffer("out", C, C % 4 == 0),
        ]
        self.launches = steps.gathering(grid, *buffers, C)

    def errors(self) -> dict[str, float]:
        """Of every entry, in units of what rounding can make of it: of sums and storage alone, and of inputs too."""
        u = 2.0**-8 if self.dtype == "bfloat16" else 2.0**-11
        inputs = [x.astype(np.float64) for x in (self.columns, self.rows, self.value)]
        whole = sum(_gathered(*map(abs, inputs)))
        sums = (self.H + self.W + 1) * 2.0**-24 * whole
        row, column = _gathered(*inputs)
        if self.dtype == "bfloat16":
            # the rows are stored, and then what the columns make of them; value is rounded already
            sums += u * (1 + u) * (abs(row) + abs(row + column) + u * whole)
            rounding = u
        else:
            rounding = 2 * u + u * u
        got = decode(self.arrays["out"]).astype(np.float64).reshape(row.shape)
        rounded = [bfloat16(x) if self.dtype == "bfloat16" else tf32(x) for x in inputs]
        differences = {"exact": (row + column, sums + rounding * whole), "rounded": (sum(_gathered(*rounded)), sums)}
        return {name: float((abs(got - wanted) / bound).max()) for name, (wanted, bound) in differences.items()}


def _gathered(column: np.ndarray, row: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.einsum("bhwv,bhvc->bhwc", row, value), np.einsum("bhwg,bgwc->bhwc", column, value)


def tf32(x: np.ndarray) -> np.ndarray:
    """Rounded to 11 significant bits, halves away from zero."""
    part, exponent = np.frexp(x)
    return np.copysign(np.ldexp(np.floor(abs(part) * 2**11 + 0.5), exponent - 11), x)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to 8 significant bits, to nearest and even."""
    return torch.from_numpy(x.astype(np.float32)).bfloat16().double().numpy()


def encode(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to a storage type; bfloat16 as the upper half of float32, in uint16."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    if dtype == "bfloat16":
        return torch.from_numpy(x).bfloat16().view(torch.uint16).numpy()
    return x.astype(dtype)


def decode(x: np.ndarray) -> np.ndarray:
    """As float32."""
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x.astype(np.float32)


def _exact(*inputs_BSC: np.ndarray) -> dict[str, np.ndarray]:
    query, key, value, grad = (
        torch.from_numpy(np.array(x, dtype=np.float64)).movedim(-1, 1).requires_grad_() for x in inputs_BSC
    )
    out = composed.criss_cross(reference, query, key, value)[0]
    tensors = (out, *torch.autograd.grad(out, (query, key, value), grad))
    return {name: x.detach().movedim(1, -1).numpy() for name, x in zip(RESULTS, tensors, strict=True)}


def simulate(launches: Sequence[steps.Step], arrays: dict[str, np.ndarray]) -> None:
    """Run in the Numba CUDA simulator."""
    from numba import cuda

    from ccnet_cli.ops.cuda import build

    # the simulator waits for its threads by polling
    sys.setswitchinterval(5e-5)
    share_once()
    for step in launches:
        kernel = cuda.jit(build.make_function(step.kernel))
        # the simulator copies what a launch gets back element by element, so the arrays stay themselves
        arguments = [arrays[x] if isinstance(x, str) else np.int32(x) for x in step.arguments]
        if "softmax" in step.kernel.form:
            arguments[-7:-1] = [tuple(arguments[-7:-1])]
        else:
            arguments[3:] = [tuple(arguments[3:6]), tuple(arguments[6:15]), tuple(arguments[15:])]
        kernel[step.grid, step.kernel.threads](*arguments)


def share_once() -> None:
    """Give all threads of a simulated block the same shared arrays: two that ask at once get one each by themselves."""
    from numba.cuda.simulator import kernelapi

    lock = threading.Lock()

    def array(self: Any, shape: Any, dtype: Any) -> np.ndarray:
        # one array for each line, as in the simulator's own
        frame = sys._getframe(1)
        place = frame.f_code.co_filename, frame.f_lineno
        with lock:
            if place not in self._allocations:
                self._allocations[place] = np.empty(shape, getattr(dtype, "name", dtype))
            return self._allocations[place]

    kernelapi.FakeCUDAShared.array = array


def simulate_apart(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The errors of cases simulated in a process of its own."""
    command = [sys.executable, str(Path(__file__)), json.dumps(cases)]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def execute(
    launches: Sequence[steps.Step],
    arrays: dict[str, np.ndarray],
    arch: tuple[int, int],
    written: Iterable[str] = ("query", "key", "value", "grad"),
) -> list[Any]:
    """Run the compiled PTX with every check of ptxrun; a result with counters for each launch.

    Reading an array that is not `written`, by the caller or a launch before, is a fault.
    """
    import ptxrun

    from ccnet_cli.ops.cuda import build

    results, written = [], set(written)
    for step in launches:
        names = [x for x in step.arguments if isinstance(x, str)]
        arguments = [
            x if not isinstance(x, str) else arrays[x] if x in written else ptxrun.Output(arrays[x])
            for x in step.arguments
        ]
        results.append(ptxrun.run(build.ptx(step.kernel, arch), "", step.grid, step.kernel.threads, arguments))
        written.update(names)
    return results


if __name__ == "__main__":
    for options in json.loads(sys.argv[1]):
        case = (Gathering if options.pop("tensor", False) else Case)(**options)
        simulate(case.launches, case.arrays)
        print(json.dumps(case.errors()), flush=True)
