"""Fused attention on numpy arrays: random input of one size, the launches, and what the definition makes in float64."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from kernels import decode, encode, execute

from ccnet_cli.ops import composed, reference
from ccnet_cli.ops.cuda import plan, steps

GAMMA = -0.7
RESULTS = ("out", "d_query", "d_key", "d_value")
# relative to the greatest entry of each result in float64
ROUNDING = {"bfloat16": 5e-3, "float16": 1e-3, "float32": 1e-3}


@dataclass
class Fused:
    """One case. slices: query, key and value lie in one tensor; what lies between them is nan.

    line: pixels of a line that a block takes at once, so that a small map has lines of several. added: gamma times the
    pass, plus x, which is a slice as the others are. lines: only the first rows and columns are launched, a slab; what
    the gradients need of other pixels is given.
    """

    images: int
    c: int
    C: int
    H: int
    W: int
    dtype: str = "bfloat16"
    line: int = plan.LINE
    slices: bool = False
    backward: bool = True
    added: bool = False
    lines: int = 0
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    exact: dict[str, np.ndarray] = field(default_factory=dict)
    launches: list[steps.Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        B, c, C, H, W = self.images, self.c, self.C, self.H, self.W
        random = np.random.default_rng([B, c, C, H, W])
        shapes = {"query": c, "key": c, "value": C, "grad": C} | ({"x": C} if self.added else {})
        small = c**-0.25
        inputs = {
            name: encode(random.standard_normal((B, H, W, n)) * (small if n == c else 1), self.dtype)
            for name, n in shapes.items()
        }
        self.inputs = {name: decode(x).astype(np.float64) for name, x in inputs.items()}
        self.exact = define(*list(self.inputs.values())[:4])
        if self.added:
            self.exact["out"] = GAMMA * self.exact["out"] + self.inputs["x"]
            self.arrays["gamma"] = np.array([GAMMA], np.float32)
        vector = 4 if self.dtype == "float32" else 8
        even = c % vector == 0 and C % vector == 0
        gap = vector if even else 3
        stride = 2 * c + 2 * C + 2 * gap
        whole = encode(np.full((B, H, W, stride), np.nan), self.dtype)
        offsets = {"query": 0, "key": c, "value": 2 * c + gap, "x": 2 * c + C + 2 * gap}
        for name, array in inputs.items():
            if self.slices and name != "grad":
                whole[..., offsets[name] : offsets[name] + shapes[name]] = array
        strides = dict(shapes)
        for name, array in inputs.items():
            if self.slices and name != "grad":
                self.arrays[name], strides[name] = whole.reshape(-1)[offsets[name] :], stride
            else:
                self.arrays[name] = array.reshape(-1)
        for name, n in {"out": C, "d_query": c, "d_key": c, "d_value": C}.items():
            self.arrays[name] = encode(np.full(B * H * W * n, np.nan), self.dtype)
        rows = plan.scratch_width(c)
        for name, n in {"log": 1, "log_rows": 1, "delta": 1, "query_rows": rows, "key_rows": rows}.items():
            self.arrays[name] = np.full(B * H * W * n, np.nan, np.float32)
        grid = steps.Grid(B, H, W, 0, self.dtype, largest=self.line)
        buffers = {name: steps.Buffer(name, strides.get(name, C), even) for name in (*shapes, "out")}
        query, key, value, grad, *more, out = buffers.values()
        self.launches = plan.forward(grid, c, C, query, key, value, out, *more)
        if self.backward:
            self.launches += plan.backward(grid, c, C, out, query, key, value, grad)
        if self.lines:
            self.launches = [
                step if step.kernel.form == "fused_delta" else replace(step, grid=(step.grid[0], self.lines, B))
                for step in self.launches
            ]

    def run(self, arch: tuple[int, int] = (8, 0)) -> list[Any]:
        """By ptxrun, with its checks."""
        forward = 2 if self.lines else len(self.launches)
        results = execute(self.launches[:forward], self.arrays, arch, {*self.inputs, "gamma"})
        if self.lines:
            for name in ("out", "log"):
                exact = self.exact[name].copy()
                made = self.arrays[name].reshape(exact.shape)
                exact[self.slab] = decode(made)[self.slab]
                self.arrays[name][:] = encode(exact, "float32" if name == "log" else self.dtype).reshape(-1)
        return results + execute(self.launches[forward:], self.arrays, arch, self.arrays)

    @property
    def slab(self) -> tuple[slice, ...]:
        """The pixels whose row and column are launched."""
        return (slice(None), *[slice(self.lines or None)] * 2)

    def errors(self) -> dict[str, float]:
        """Greatest difference of each result, relative to the greatest entry of the exact one or 1e-3 of the grad's."""
        names = RESULTS if self.backward else RESULTS[:1]
        found = {}
        for name in names:
            exact = self.exact[name]
            got = decode(self.arrays[name]).astype(np.float64).reshape(exact.shape)
            found[name] = float(abs(got - exact)[self.slab].max() / max(abs(exact[self.slab]).max(), 1e-3))
        log = self.arrays["log"].astype(np.float64).reshape(self.exact["log"].shape)
        found["log"] = float(abs(log - self.exact["log"])[self.slab].max())
        return found

    def failures(self) -> list[str]:
        """Results beyond what rounding explains; nan, which all were filled with, is one."""
        return [f"{name}: {error:.1e}" for name, error in self.errors().items() if not error <= ROUNDING[self.dtype]]


def define(*inputs_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    """Output, gradients and logarithms of the sums of weights, by the definition."""
    query, key, value, grad = (torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_() for x in inputs_BHWC)
    out = composed.criss_cross(reference, query, key, value)[0]
    tensors = (out, *torch.autograd.grad(out, (query, key, value), grad))
    made = {name: x.detach().permute(0, 2, 3, 1).numpy() for name, x in zip(RESULTS, tensors, strict=True)}
    return made | {"log": reference.affinity(query, key, True).logsumexp(dim=1).detach().numpy()}
