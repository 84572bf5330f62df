"""What the CUDA kernels do on a GPU: whether they are right, whether they behave, how fast they are; one report."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ccnet_cli import ops
from ccnet_cli.bench import attention, measure
from ccnet_cli.bench.measure import Sheet
from ccnet_cli.errors import InputError, notice, out_of_memory
from ccnet_cli.models import network as models
from ccnet_cli.ops import cuda
from ccnet_cli.training.record import environment

# images, channels of query and key, channels of value, height, width
SHAPES = (
    (1, 64, 512, 97, 97),
    (2, 64, 512, 129, 65),
    (2, 8, 16, 5, 7),
    (1, 5, 7, 33, 20),
    (1, 3, 4, 1, 19),
    (1, 3, 4, 21, 1),
    (1, 1, 1, 1, 1),
    (1, 8, 24, 129, 257),
)
# relative to the largest entry: rounding of what is stored
TOLERANCES = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
RESULTS = ("output", "gradient of query", "gradient of key", "gradient of value")
TIMED = ((97, 97), (129, 257))
ROWS = ("reference", "gemm", "numba", attention.OFFICIAL, attention.FLOOR)
REPEATS = 20
# what the kernels on tensor cores take; they are off until reports like this one confirm them
TENSOR = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Check:
    """One question, whether the answer was as it must be, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Report:
    """Everything that was asked of one GPU; timings are reports of attention.attention, or what was in their way.

    tensor: milliseconds of one pass of the kernels without and with tensor cores, by size and type.
    """

    environment: dict[str, Any]
    gpu: dict[str, Any]
    checks: tuple[Check, ...]
    choices: dict[str, str]
    timings: tuple[dict[str, Any], ...]
    tensor: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """How many checks were not passed, timings that failed too."""
        return sum(not check.passed for check in self.checks) + sum("error" in timing for timing in self.timings)

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON."""
        return asdict(self) | {"failed": self.failed}

    def sheets(self) -> Iterator[Sheet]:
        """What is printed of it."""
        checks = [(check.name, "passed" if check.passed else "FAILED", check.found) for check in self.checks]
        yield Sheet(None, ("check", "", "found"), checks)
        timings = [
            (
                f"{timing['size'][0]}x{timing['size'][1]}",
                timing["precision"],
                row["name"],
                f"{row['forward']['median']:.3f}",
                f"{row['both']['median']:.3f}",
                f"{row['bandwidth']:.0f}",
                f"{row['rate']:.1f}",
            )
            for timing in self.timings
            for row in timing.get("rows", ())
        ]
        columns = ("size", "precision", "formulation", "forward ms", "+ backward ms", "GB/s", "TFLOP/s")
        yield Sheet("attention, 1 x 512, R=2; rates are of the forward pass", columns, timings)
        cores = [(name, f"{ms['without']:.3f}", f"{ms['with']:.3f}") for name, ms in self.tensor.items()]
        if cores:
            title = "one pass of our kernels, whose tensor cores nothing uses yet"
            yield Sheet(title, ("size and type", "forward ms", "with tensor cores"), cores)


def report(device: str = "cuda") -> Report:
    """Check the kernels on a GPU, then time them; a failure is a line of the report and does not end it.

    InputError where there is no GPU, and where the kernels cannot be compiled.
    """
    if not torch.cuda.is_available():
        raise InputError("ccnet bench gpu", "torch sees no GPU here", "run it on a machine with one, and a CUDA torch")
    place = models.device(device)
    if place.type != "cuda":
        raise InputError(f"device {device}", "not a GPU", "use cuda or cuda:N")
    # kernels that do not compile are refused here, in one line
    ops.criss_cross(*inputs((1, 1, 1, 1, 1), torch.float32, place), "numba")
    cores = torch.cuda.get_device_capability(place) >= (8, 0)
    found, choices = [], ops.Choices()
    for name, check in [*checks(place, choices), *(tensor_checks(place) if cores else ())]:
        found.append(answered(name, check))
        notice(f"{'passed' if found[-1].passed else 'FAILED'}: {name} ({found[-1].found})")
    timings = tuple(timed(size, precision, device) for size in TIMED for precision in ("fp32", "bf16"))
    # what failed is among the checks already
    tensor = _tensor_timings(place) if cores and all(check.passed for check in found) else {}
    return Report(environment(place, 1), _properties(place), tuple(found), choices.export(), timings, tensor)


def _properties(device: torch.device) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "bytes": found.total_memory,
        "cache": found.L2_cache_size,
    }


def checks(device: torch.device, choices: ops.Choices) -> Iterator[tuple[str, Callable[[], tuple[bool, str]]]]:
    """Name and question of each check."""
    for shape in SHAPES:
        for dtype in TOLERANCES:
            words = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
            yield f"parity {words}", lambda shape=shape, dtype=dtype: parity(inputs(shape, dtype, device), "numba")
    usual = inputs(SHAPES[0], torch.float32, device)
    yield "repeated runs", lambda: equal(step(usual, "numba"), step(usual, "numba"))
    yield "another stream", lambda: equal(_on_a_stream(usual), step(usual, "numba"))
    yield "graph capture", lambda: _captured(usual)
    yield "measured choice", lambda: _chosen(usual, choices)


def tensor_checks(device: torch.device) -> Iterator[tuple[str, Callable[[], tuple[bool, str]]]]:
    """Name and question of each check of the kernels on tensor cores."""
    for shape in SHAPES:
        for dtype in TENSOR:
            words = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
            yield f"tensor cores {words}", lambda shape=shape, dtype=dtype: gathered(inputs(shape, dtype, device))
    usual = inputs(SHAPES[0], torch.float32, device)
    yield (
        "tensor cores, repeated runs",
        lambda: equal([cuda.criss_cross(*usual, tensor=True)[0]], [cuda.criss_cross(*usual, tensor=True)[0]]),
    )


def gathered(tensors: Sequence[Tensor]) -> tuple[bool, str]:
    """What tensor cores make of the attention and value, against the float64 product of the same, rounded."""
    value = tensors[2]
    out, attention = cuda.criss_cross(*tensors, tensor=True)
    H, W = value.shape[2:]
    arm = cuda.attention_width(H, 0)
    weights = torch.cat([attention[..., :H], attention[..., arm : arm + W]], -1).permute(0, 3, 1, 2).cpu()
    parts = [rounded(weights, value.dtype), rounded(value.float().cpu(), value.dtype)]
    exact, whole = ops.aggregate(*parts, "reference"), ops.aggregate(*(x.abs() for x in parts), "reference")
    # sums whose terms are cut to 22 bits at worst; what is stored is rounded twice, after the rows and the columns
    bound = (H + W) * 2.0**-22 + (2.1 * 2.0**-8 if value.dtype == torch.bfloat16 else 0)
    share = float(((out.double().cpu() - exact).abs() / (bound * whole + 1e-30)).max())
    # and not (>), so that nan fails
    return share <= 1, f"{share:.2f} of what rounding allows"


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 tensor as tensor cores take it, in float64: to 8 bits as bfloat16, otherwise to 11 as TF32."""
    if dtype == torch.bfloat16:
        return x.bfloat16().double()
    # halves away from zero
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()


def _tensor_timings(device: torch.device) -> dict[str, dict[str, float]]:
    found = {}
    for H, W in TIMED:
        for dtype in TENSOR:
            tensors = inputs((1, 64, 512, H, W), dtype, device)
            rounds: dict[str, list[float]] = {"without": [], "with": []}
            for turn in range(REPEATS + 1):
                for name, times in rounds.items():
                    took = measure.elapsed(lambda on=name == "with", x=tensors: cuda.criss_cross(*x, tensor=on), device)
                    # the first is a warm-up
                    times += [took] if turn else []
            name = f"{H}x{W} {str(dtype).removeprefix('torch.')}"
            found[name] = {name: statistics.median(times) for name, times in rounds.items()}
    return found


def answered(name: str, question: Callable[[], tuple[bool, str]]) -> Check:
    """The check; an error is an answer too."""
    try:
        return Check(name, *question())
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}".partition("\n")[0])


def timed(size: tuple[int, int], precision: str, device: str) -> dict[str, Any]:
    """The timings of one size and precision, or what was in their way."""
    try:
        found = attention.attention(size, repeats=REPEATS, implementations=ROWS, device=device, precision=precision)
    except RuntimeError as error:
        why = "out of memory" if out_of_memory(error) else str(error).partition("\n")[0]
        return {"size": list(size), "precision": precision, "error": why}
    return found.to_mapping()


def inputs(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Query, key and value as slices of one channels-last tensor, as after one convolution."""
    B, c, C, H, W = shape
    whole = torch.randn(B, 2 * c + C, H, W, generator=torch.Generator().manual_seed(0)) / c**0.25
    whole = whole.to(device, dtype).contiguous(memory_format=torch.channels_last)
    return list(whole.split([c, c, C], dim=1))


def step(tensors: Sequence[Tensor], implementation: str, choices: ops.Choices | None = None) -> list[Tensor]:
    """Output and gradients, under a gradient that differs from entry to entry."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = ops.criss_cross(*leaves, implementation, choices)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).to(out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def parity(tensors: Sequence[Tensor], implementation: str) -> tuple[bool, str]:
    """Output and gradients against the definition in float64 on the CPU."""
    got, exact = step(tensors, implementation), step([x.double().cpu() for x in tensors], "reference")
    right, told = True, []
    for name, mine, wanted in zip(RESULTS, got, exact, strict=True):
        difference, largest = float((mine.double().cpu() - wanted).abs().max()), float(wanted.abs().max())
        # a map of one pixel has gradients of 0; and not (>), so that nan fails
        right &= difference <= TOLERANCES[mine.dtype] * largest + 1e-7
        told.append(f"{name} {difference / largest if largest else difference:.1e}")
    return right, ", ".join(told)


def equal(got: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[bool, str]:
    """Whether all results are the same to the bit."""
    names = RESULTS[: len(expected)]
    unequal = [name for name, mine, wanted in zip(names, got, expected, strict=True) if not torch.equal(mine, wanted)]
    return not unequal, f"{', '.join(unequal)} differ" if unequal else "equal to the bit"


def _on_a_stream(tensors: Sequence[Tensor]) -> list[Tensor]:
    stream = torch.cuda.Stream(tensors[0].device)
    stream.wait_stream(torch.cuda.current_stream(tensors[0].device))
    with torch.cuda.stream(stream):
        # what the kernels read is only ready after this
        torch.cuda._sleep(10_000_000)
        found = step([x.clone(memory_format=torch.preserve_format) for x in tensors], "numba")
    torch.cuda.current_stream(tensors[0].device).wait_stream(stream)
    return found


def _captured(tensors: Sequence[Tensor]) -> tuple[bool, str]:
    """A graph replayed on input that has changed since."""
    own = [x.clone(memory_format=torch.preserve_format) for x in tensors]
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.device(own[0].device):
        ops.criss_cross(*own, "numba")
        with torch.cuda.graph(graph):
            out = ops.criss_cross(*own, "numba")
        for x in own:
            x.mul_(0.5)
        expected = ops.criss_cross(*own, "numba")
        graph.replay()
        torch.cuda.synchronize()
        return equal([out], [expected])


def _chosen(tensors: Sequence[Tensor], choices: ops.Choices) -> tuple[bool, str]:
    """What auto takes is what it says it took."""
    got = step(tensors, "auto", choices)
    (name,) = choices.export().values()
    return equal(got, step(tensors, name))[0], name
