"""What the CUDA kernels do on a GPU: whether they are right, whether they behave, how fast they are; one report."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ccnet_cli import config, ops
from ccnet_cli.bench import attention, model, passes, step
from ccnet_cli.bench.meter import Meter
from ccnet_cli.bench.report import Column, Report, Row, Table
from ccnet_cli.bench.request import Run, Work
from ccnet_cli.errors import CCNetError, InputError, describe_briefly, notice
from ccnet_cli.models import network as models
from ccnet_cli.ops import cuda
from ccnet_cli.ops.cuda import attention as fused
from ccnet_cli.ops.cuda import steps
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
TF32 = 2e-3  # of float32 whose products are rounded to TF32
RESULTS = ("output", "gradient of query", "gradient of key", "gradient of value")
SIZES = ((97, 97), (128, 256), (129, 257))
PRECISIONS = ("bf16", "fp32", "tf32")
# what nvidia-smi says of the card as it is now
CLOCKS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
ROWS = ("reference", "gemm", "flash", "numba", attention.OFFICIAL, attention.FLOOR)
REPEATS = 20
# what the kernels on tensor cores take; they are off until reports like this one confirm them
TENSOR = (torch.float32, torch.bfloat16)


CHECKS = (
    Column("check", "name"),
    Column("", lambda row: "passed" if row["passed"] else "FAILED"),
    Column("found", "found"),
)
TIMINGS = (
    Column("size", "size"),
    Column("precision", "precision"),
    Column("formulation", "name"),
    Column("forward ms", "forward", ".3f"),
    Column("+ backward ms", "both", ".3f"),
    Column("GB/s", "bandwidth", ".0f"),
    Column("TFLOP/s", "rate", ".1f"),
)
# milliseconds of one pass of the kernels without and with tensor cores
CORES = (
    Column("size and type", "name"),
    Column("forward ms", "without", ".3f"),
    Column("with tensor cores", "with", ".3f"),
)
# a check's answer: whether all is as it must be, and what it saw
Answer = tuple[bool, str]
# query, key and value
Inputs = tuple[Tensor, Tensor, Tensor]


def examine(
    device: str = "cuda",
    sizes: Sequence[tuple[int, int]] = SIZES,
    save: Callable[[dict[str, Any]], object] = lambda values: None,
) -> Report:
    """Check the kernels on a GPU, then time them at sizes; a failure is a line of the report and does not end it.

    save takes what is known after each check and timing, since the machine may go away. Timings are reports of
    attention.measure, or the error of one. InputError where there is no GPU, and where the
    kernels cannot be compiled.
    """
    if not torch.cuda.is_available():
        raise InputError("ccnet bench gpu", "torch sees no GPU here", "run it on a machine with one, and a CUDA torch")
    gpu = models.device(device)
    if gpu.type != "cuda":
        raise InputError(f"device {device}", "not a GPU", "use cuda or cuda:N")
    # kernels that do not compile are refused here, in one line
    ops.criss_cross(*inputs((1, 1, 1, 1, 1), torch.float32, gpu), "numba")
    cores = torch.cuda.get_device_capability(gpu) >= (8, 0)
    answers: list[Row] = []
    timings: list[Row] = []
    choices = ops.Choices()
    single: list[Row] = []
    rest: Row = {"clocks": attempt(read_clocks), "compile": attempt(lambda: time_compiler(gpu))}
    values = {"environment": environment(gpu, 1), "gpu": _properties(gpu), "checks": answers, "timings": timings}
    values |= {"passes": single, "rest": rest}

    def keep() -> None:
        save(report({**values, "choices": choices.export(), "tensor": {}}).to_mapping())

    for name, check in [*checks(gpu, choices), *(tensor_checks(gpu) if cores else ())]:
        answers.append(answer(name, check))
        notice(f"{'passed' if answers[-1]['passed'] else 'FAILED'}: {name} ({answers[-1]['found']})")
        keep()
    for case in passes.cases(sizes):
        single.append(passes.measure(inputs, case, Meter(gpu, repeats=REPEATS)))
        keep()
    for size, precision in product(sizes, PRECISIONS):
        timings.append(time_attention(size, precision, device))
        keep()
    for name, question in whole_models(device).items():
        rest[name] = attempt(question)
        keep()
    # what failed is among the checks already
    tensor = _time_tensor_cores(gpu, sizes) if cores and all(row["passed"] for row in answers) else {}
    return report({**values, "choices": choices.export(), "tensor": tensor})


def read_clocks() -> dict[str, str]:
    """The card's name, driver, clocks, power and temperature by nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    return dict(zip(CLOCKS.split(","), answer.splitlines()[0].split(", "), strict=True))


def time_compiler(device: torch.device) -> dict[str, float]:
    """Seconds that a kernel takes from its source to machine code, by the kernel's name."""
    from ccnet_cli.ops.cuda import build

    kernel = steps.Kernel("fused", "bfloat16", (13, 7, 0), True, 32)
    start = time.perf_counter()
    build.assemble(kernel, torch.cuda.get_device_capability(device))
    return {kernel.name: time.perf_counter() - start}


def whole_models(device: str) -> dict[str, Callable[[], Any]]:
    """Forward passes of a model, and steps of training, as their own benchmarks measure them."""
    run = Run(device, repeats=3)
    preset = config.load("cityscapes-r2")
    return {
        "model": lambda: model.measure(preset.model, [(769, 769)], run).to_mapping(),
        "training": lambda: step.measure(preset, [(769, 769)], run, batch=2).to_mapping(),
    }


def attempt(question: Callable[[], Any]) -> Any:
    """The answer, or the error that prevented it, which does not end the report."""
    try:
        return question()
    except (CCNetError, ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return {"error": describe_briefly(error)}


def report(values: dict[str, Any]) -> Report:
    """The report of these values, with the number of checks and timings that failed."""
    checks, timings, tensor = values["checks"], values["timings"], values["tensor"]
    single = values.get("passes", ())
    failed = sum(not check["passed"] for check in checks) + sum("error" in timing for timing in timings)
    failed += sum(len(timing.get("dropped", ())) for timing in timings)
    failed += sum("failed" in row for row in single)
    rows = [
        {**row, "size": tuple(timing["size"]), "precision": timing["precision"]}
        for timing in timings
        for row in timing.get("rows", ())
    ]
    tables = [Table(None, CHECKS, checks)]
    if single:
        title = "one pass alone; replayed as a graph, without the host; error of the first image against float64"
        tables.append(Table(title, passes.COLUMNS, [row for row in single if "failed" not in row]))
    tables.append(Table("attention, 1 x 512, R=2; rates are of the forward pass", TIMINGS, rows))
    if tensor:
        cores = [{"name": name, **times} for name, times in tensor.items()]
        tables.append(Table("one pass of our kernels, whose tensor cores nothing uses yet", CORES, cores))
    return Report({**values, "failed": failed}, tables)


def _properties(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "bytes": properties.total_memory,
        "cache": properties.L2_cache_size,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def checks(device: torch.device, choices: ops.Choices) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """Name and question of each check."""
    for shape, dtype in product(SHAPES, TOLERANCES):
        name = f"parity {'x'.join(map(str, shape))} {_name(dtype)}"
        yield name, partial(lambda *case: check_parity(inputs(*case), "numba"), shape, dtype, device)
    for shape in (SHAPES[0], SHAPES[2], SHAPES[-1]):
        yield f"parity, asynchronous copies, {'x'.join(map(str, shape))}", partial(check_copies, shape, device)
    yield "measured choice", partial(_auto_choice, inputs(SHAPES[0], torch.float32, device), choices)
    # from sm_80 on, kernels of their own
    for dtype in (torch.float32, torch.bfloat16):
        usual = inputs(SHAPES[0], dtype, device)
        yield f"repeated runs {_name(dtype)}", partial(_repeat, usual)
        yield f"another stream {_name(dtype)}", partial(_compare_streams, usual)
        yield f"graph capture {_name(dtype)}", partial(_replay_graph, usual)


def tensor_checks(device: torch.device) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """Name and question of each check of the kernels on tensor cores."""
    for shape, dtype in product(SHAPES, TENSOR):
        name = f"tensor cores {'x'.join(map(str, shape))} {_name(dtype)}"
        yield name, partial(lambda *case: check_gathering(inputs(*case)), shape, dtype, device)
    for shape in SHAPES:
        yield f"parity {'x'.join(map(str, shape))} tf32", partial(_check_tf32, shape, device)
    usual = inputs(SHAPES[0], torch.float32, device)

    def run() -> list[Tensor]:
        return [cuda.criss_cross(*usual, tensor=True)[0]]

    yield "tensor cores, repeated runs", lambda: check_equal(run(), run())


def check_gathering(tensors: Inputs) -> Answer:
    """What tensor cores make of the attention and value, against the float64 product of the same, rounded."""
    query, key, value = tensors
    # energies are of float32
    out, attention = cuda.criss_cross(query.float(), key.float(), value, tensor=True)
    H, W = value.shape[2:]
    arm = cuda.attention_width(H, 0)
    weights = torch.cat([attention[..., :H], attention[..., arm : arm + W]], -1).permute(0, 3, 1, 2).cpu()
    left, right = (round_as_tensor_cores(x, value.dtype) for x in (weights, value.float().cpu()))
    exact, whole = ops.aggregate(left, right, "reference"), ops.aggregate(left.abs(), right.abs(), "reference")
    # sums whose terms are cut to 22 bits at worst; what is stored is rounded twice, after the rows and the columns
    bound = (H + W) * 2.0**-22 + (2.1 * 2.0**-8 if value.dtype == torch.bfloat16 else 0)
    fraction = float(((out.double().cpu() - exact).abs() / (bound * whole + 1e-30)).max())
    # and not (>), so that nan fails
    return fraction <= 1, f"{fraction:.2f} of what rounding allows"


def round_as_tensor_cores(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 tensor as tensor cores take it, in float64: to 8 bits as bfloat16, otherwise to 11 as TF32."""
    if dtype == torch.bfloat16:
        return x.bfloat16().double()
    # halves away from zero
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()


def _time_tensor_cores(device: torch.device, sizes: Sequence[tuple[int, int]]) -> dict[str, dict[str, float]]:
    meter = Meter(device, repeats=REPEATS)
    medians = {}
    for (H, W), dtype in product(sizes, TENSOR):
        query, key, value = inputs((1, 64, 512, H, W), dtype, device)
        full = query.float(), key.float(), value
        calls = {name: partial(cuda.criss_cross, *full, tensor=name == "with") for name in ("without", "with")}
        medians[f"{H}x{W} {_name(dtype)}"] = {name: time.median for name, time in meter.alternate(calls).items()}
    return medians


def answer(name: str, question: Callable[[], Answer]) -> Row:
    """A check's row; an error is an answer too, that does not pass."""
    try:
        passed, seen = question()
    except Exception as error:
        passed, seen = False, f"{type(error).__name__}: {error}".partition("\n")[0]
    return {"name": name, "passed": passed, "found": seen}


def time_attention(size: tuple[int, int], precision: str, device: str) -> Row:
    """The values of the attention's report at one size and precision, or the error that prevented it.

    A formulation that fails or differs is dropped alone, and is among `dropped` with its reason. In fp32 nothing is
    rounded to TF32: convolutions do that by themselves, and the formulations have different ones.
    """
    dropped: list[Row] = []
    run = Run(device, repeats=REPEATS)
    try:
        with passes.rounding(precision):
            measured = attention.measure(
                Work(size),
                run,
                ROWS,
                precision,
                lambda name, error: dropped.append({"name": name, "why": describe_briefly(error)}),
            )
    except RuntimeError as error:
        return {"size": size, "precision": precision, "error": describe_briefly(error)}
    return {**measured.values, "dropped": dropped}


def inputs(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Query, key and value as slices of one channels-last tensor, as after one convolution."""
    B, c, C, H, W = shape
    whole = torch.randn(B, 2 * c + C, H, W, generator=torch.Generator().manual_seed(0)) / c**0.25
    whole = whole.to(device, dtype).contiguous(memory_format=torch.channels_last)
    query, key, value = whole.split([c, c, C], dim=1)
    return query, key, value


def _map(tensors: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    query, key, value = map(change, tensors)
    return query, key, value


def _clone(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.preserve_format)


def run_step(tensors: Inputs, implementation: str, choices: ops.Choices | None = None) -> list[Tensor]:
    """Output and gradients, under a gradient that differs from entry to entry."""
    query, key, value = leaves = [x.detach().requires_grad_() for x in tensors]
    out = ops.criss_cross(query, key, value, implementation, choices)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).to(out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def check_parity(tensors: Inputs, implementation: str, tolerance: float | None = None) -> Answer:
    """Output and gradients against the definition in float64 on the CPU; the tolerance is their type's without one."""
    results, exact = run_step(tensors, implementation), run_step(_map(tensors, lambda x: x.double().cpu()), "reference")
    right, differences = True, []
    for name, result, wanted in zip(RESULTS, results, exact, strict=True):
        difference, largest = float((result.double().cpu() - wanted).abs().max()), float(wanted.abs().max())
        # a map of one pixel has gradients of 0; and not (>), so that nan fails
        right &= difference <= (tolerance or TOLERANCES[result.dtype]) * largest + 1e-7
        differences.append(f"{name} {difference / largest if largest else difference:.1e}")
    return right, ", ".join(differences)


# its name in 0.1.0, which scripts for short times on a card call
parity = check_parity


def check_copies(shape: Sequence[int], device: torch.device) -> Answer:
    """The same of kernels that copy without registers, in bfloat16, and whether two runs are equal."""
    with fused.copying("async"):
        tensors = inputs(shape, torch.bfloat16, device)
        same, _ = check_equal(run_step(tensors, "numba"), run_step(tensors, "numba"))
        right, errors = check_parity(tensors, "numba")
    return right and same, errors if same else f"{errors}; two runs differ"


def check_equal(results: Sequence[Tensor], expected: Sequence[Tensor]) -> Answer:
    """Whether all results are the same to the bit."""
    names = RESULTS[: len(expected)]
    pairs = zip(names, results, expected, strict=True)
    unequal = [name for name, result, wanted in pairs if not torch.equal(result, wanted)]
    return not unequal, f"{', '.join(unequal)} differ" if unequal else "equal to the bit"


def _check_tf32(shape: Sequence[int], device: torch.device) -> Answer:
    with passes.rounding("tf32"):
        return check_parity(inputs(shape, torch.float32, device), "numba", TF32)


def _repeat(tensors: Inputs) -> Answer:
    return check_equal(run_step(tensors, "numba"), run_step(tensors, "numba"))


def _compare_streams(tensors: Inputs) -> Answer:
    return check_equal(_step_on_stream(tensors), run_step(tensors, "numba"))


def _step_on_stream(tensors: Inputs) -> list[Tensor]:
    stream = torch.cuda.Stream(tensors[0].device)
    stream.wait_stream(torch.cuda.current_stream(tensors[0].device))
    with torch.cuda.stream(stream):
        # what the kernels read is only ready after this
        torch.cuda._sleep(10_000_000)
        results = run_step(_map(tensors, _clone), "numba")
    torch.cuda.current_stream(tensors[0].device).wait_stream(stream)
    return results


def _replay_graph(tensors: Inputs) -> Answer:
    """A graph replayed on input that has changed since."""
    own = _map(tensors, _clone)
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
        return check_equal([out], [expected])


def _auto_choice(tensors: Inputs, choices: ops.Choices) -> Answer:
    """What auto takes is what it says it took."""
    results = run_step(tensors, "auto", choices)
    (name,) = choices.export().values()
    return check_equal(results, run_step(tensors, name))[0], name
