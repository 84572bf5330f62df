"""Fused attention on tensor cores without a GPU: as compiled PTX run by ptxrun, as machine code, and as launches."""

import re
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fused import ROUNDING, Fused
from kernels import compiles, decode, execute, runs

from ccnet_cli import ops
from ccnet_cli.bench import passes
from ccnet_cli.errors import InputError
from ccnet_cli.ops.cuda import attention, launch, plan, steps

SQUARE = {"images": 2, "c": 16, "C": 72, "H": 5, "W": 5}
# of few kernels: lines of one size share theirs
RAGGED = [
    {"images": 2, "c": 16, "C": 32, "H": 5, "W": 7},
    {"images": 1, "c": 5, "C": 7, "H": 11, "W": 3},
    {"images": 1, "c": 3, "C": 5, "H": 1, "W": 19},
    {"images": 1, "c": 6, "C": 3, "H": 33, "W": 1},
    {"images": 1, "c": 40, "C": 72, "H": 17, "W": 9, "slices": True},
    {"images": 1, "c": 5, "C": 70, "H": 9, "W": 17, "slices": True},
    {"images": 1, "c": 8, "C": 136, "H": 3, "W": 37, "line": 16},
    {"images": 1, "c": 3, "C": 5, "H": 20, "W": 18, "line": 16, "slices": True},
    {"images": 1, "c": 1, "C": 1, "H": 1, "W": 1},
    {"images": 1, "c": 72, "C": 24, "H": 2, "W": 131},
    {"images": 3, "c": 8, "C": 8, "H": 40, "W": 2},
    {"images": 1, "c": 9, "C": 65, "H": 2, "W": 2},
]
ARCHS = [(8, 0), (9, 0), (10, 0)]
WHOLE = {"images": 1, "c": 64, "C": 512, "H": 97, "W": 97}


@runs
@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(x, marks=pytest.mark.slow) for x in ("float16", "float32"))]
)
def test_a_pass_is_the_definition_within_rounding(dtype):
    case = Fused(**SQUARE, dtype=dtype, backward=False)
    for result in case.run():
        assert (result.faults, result.bank_conflicts) == ([], 0)
    assert case.failures() == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("options", [SQUARE, *RAGGED], ids=str)
def test_any_size_and_its_gradients_are_the_definition_within_rounding(options, dtype, arch):
    check(Fused(**options, dtype=dtype), arch)


@runs
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_lines_beyond_a_block_are_the_definition_within_rounding(dtype, arch):
    # the whole is too large: two cuts of channels, all of four rows and of four columns
    check(Fused(**WHOLE | {"C": 128, "H": 129, "W": 257}, dtype=dtype, lines=4), arch)


def check(case: Fused, arch: tuple[int, int]) -> None:
    """Execute and compare, unless the program is that for sm_80, which another case executes."""
    if arch == (8, 0) or not all(is_one_program(step.kernel, arch, (8, 0)) for step in case.launches):
        for result in case.run(arch):
            assert (result.faults, result.bank_conflicts) == ([], 0)
        assert case.failures() == []


def is_one_program(kernel: steps.Kernel, *archs: tuple[int, int]) -> bool:
    """Whether the PTX for architectures differs in names alone: of these, and of variables that numba counts."""
    from ccnet_cli.ops.cuda import build

    names = r"//.*|\.(version|target|common)[^\n]*|(?<=_cudapy_smem_)\d+"
    return len({re.sub(names, "", build.ptx(kernel, arch)) for arch in archs}) == 1


@runs
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("bfloat16", SQUARE),
        *(pytest.param(x, SQUARE, marks=pytest.mark.slow) for x in ("float16", "float32")),
        *(pytest.param("bfloat16", x, marks=pytest.mark.slow) for x in RAGGED if x.get("slices")),
    ],
)
def test_a_residual_is_added_where_a_pass_ends(dtype, options):
    case = Fused(**options, dtype=dtype, backward=False, added=True)
    results = case.run()
    assert [step.kernel.form for step in case.launches] == ["fused", "fused_residual"]
    assert [(result.faults, result.bank_conflicts) for result in results] == [([], 0)] * 2
    assert case.failures() == []


@runs
def test_channels_that_are_not_finite_leave_others_as_they_are():
    # channels of one group, which share an exponent where the rows leave them
    case = Fused(**SQUARE, backward=False)
    value = case.arrays["value"].reshape(2, 5, 5, 72)
    value[0, 1, 2, 8:10] = 0x7F80, 0x7FC0
    case.run()
    got, exact = decode(case.arrays["out"]).reshape(2, 5, 5, 72), case.exact["out"]
    others = [c for c in range(72) if c not in (8, 9)]
    assert abs(got - exact)[..., others].max() <= ROUNDING["bfloat16"] * abs(exact).max()
    cross = np.zeros((5, 5), bool)
    cross[1], cross[:, 2] = True, True
    assert (np.isfinite(got[0, ..., 8:10]) == ~cross[..., None]).all() and np.isnan(got[0, ..., 9][cross]).all()
    assert np.isfinite(got[1]).all()


@runs
@pytest.mark.slow
def test_large_pulls_do_not_overflow_in_float16():
    # products of grad and value beyond 65504, gradients of query and value within
    case = Fused(1, 16, 72, 5, 5, "float16")
    for name, factor in (("grad", 1000), ("value", 200), ("key", 2e-4), ("query", 1e3)):
        case.arrays[name] = (case.arrays[name].astype(np.float32) * factor).astype(np.float16)
    from fused import RESULTS, define

    shapes = {"query": 16, "key": 16, "value": 72, "grad": 72}
    inputs = (case.arrays[name].astype(np.float64).reshape(1, 5, 5, n) for name, n in shapes.items())
    case.exact = define(*inputs)
    with np.errstate(over="ignore"):
        case.run()
    assert abs(case.exact["d_query"]).max() < 65504 < abs(case.exact["d_query"]).max() / 2e-4
    errors = case.errors()
    assert [name for name in RESULTS if name != "d_key" and not errors[name] <= 2e-3] == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_full_size_is_right_and_moves_little_more_than_it_must(dtype, arch):
    case = Fused(**WHOLE, dtype=dtype)
    if arch != (9, 0) and all(is_one_program(step.kernel, arch, (9, 0)) for step in case.launches):
        return
    results = case.run(arch)
    assert case.failures() == []
    assert [(result.faults, result.bank_conflicts) for result in results] == [([], 0)] * 5
    forward, size = results[:2], 2 if dtype == "float32" else 1
    moved, moved_back = map(count_bytes, (forward, results[2:]))
    asked = sum(r.global_load_bytes + r.global_store_bytes for r in forward)
    # of one image
    assert moved <= size * 62.5e6 and asked >= 0.9 * moved
    assert moved_back <= 2.5 * moved
    # multiply-adds with padding: 16 x 8 of 16 or 8; three for one energy of float32, two for a weight
    useful = 97 * 97 * 97 * 2 * (64 * 3 + 512 * 2 if dtype == "float32" else 64 + 512)
    scalar = (2 * r.thread_instructions.get("ffma", 0) + r.thread_instructions.get("fp", 0) for r in forward)
    issued = (sum(result.flops for result in forward) - sum(scalar)) / 2
    assert useful >= 0.8 * issued


def count_bytes(results: list[Any]) -> int:
    """In sectors, read and written."""
    return 32 * sum(r.global_load_sectors + r.global_store_sectors for r in results)


@runs
def test_a_gradient_moves_little_more_than_twice_what_a_pass_does():
    results = Fused(1, 64, 512, 5, 5).run()
    assert count_bytes(results[2:]) <= 2.5 * count_bytes(results[:2])


def kernels(dtype: str, aligned: bool = True) -> list[steps.Kernel]:
    """What maps of 97x97, 128x128 and 129x257 launch."""
    grids = [steps.Grid(1, H, W, 0, dtype, largest=plan.LINE) for H, W in ((97, 97), (128, 128), (129, 257))]
    buffers = [steps.Buffer(name, 512, aligned) for name in ("query", "key", "value", "out")]
    launches = [step for grid in grids for step in plan.forward(grid, 64, 512, *buffers)]
    launches += [step for grid in grids for step in plan.forward(grid, 64, 512, *buffers, steps.Buffer("x", 512))]
    launches += [step for grid in grids for step in plan.backward(grid, 64, 512, buffers[3], *buffers)]
    return list(dict.fromkeys(step.kernel for step in launches))


def gate(kernel: steps.Kernel, arch: tuple[int, int]) -> None:
    """No spill and no stack; loops are of products on tensor cores alone, and the densest reads vectors."""
    from ccnet_cli.ops.cuda import build

    made, text = build.assemble(kernel, arch), build.ptx(kernel, arch)
    assert (made.stack, made.spills) == (0, 0)
    assert 0 < made.registers * kernel.threads <= 65536 and made.shared <= 48 << 10
    # 16 bytes at once
    vectors = bool(re.search(r"ld\.global\S*\.(v4|v2\.b64)", text))
    # what the rows leave of narrow gradients is aligned always
    assert vectors == kernel.aligned or kernel.form == "fused_backward"
    if kernel.form != "fused_delta":
        # a step of 32 channels: two products of 16 for each 8 pixels, which one vector serves
        tiles = kernel.sizes[0]
        multiplies, loads = build.inner_loop(made.image, "HMMA")
        assert multiplies >= 2 * tiles and 0 < loads <= multiplies
        loops = build.inner_loops(made.image)
        assert [(bool(build.count(x, "HMMA")), build.count(x, "FFMA")) for x in loops] == [(True, 0)] * len(loops)
        # numbers whose rows and columns are exchanged are read one by one, outside of the loops of products
        turned = {"u32", "b32", "f32"} if kernel.form == "fused_backward" else set()
        assert set(re.findall(r"ld\.shared\.(\w+)", text)) <= {"v4", "v2"} | turned


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_nothing_spills_for_any_type_and_tile(arch, dtype):
    for kernel in kernels(dtype) + kernels(dtype, aligned=False):
        gate(kernel, arch)


@compiles
def test_nothing_spills():
    (kernel,) = {step.kernel for step in Fused(**SQUARE, backward=False).launches}
    gate(kernel, (8, 0))


# Faults, each planted in one place; the comparison (with the nan from before) or a check of ptxrun must find it.


def rows_swapped(real):
    return lambda builder, dtype, left, *rest: real(builder, dtype, [left[1], left[0], *left[2:]], *rest)


def unmasked(real):
    def make(tiles):
        from ccnet_cli.ops.cuda import memory

        masked = real(tiles)
        return memory.inline(lambda total, limit, near, far: masked(total, limit, np.int32(-1), np.int32(-1)))

    return make


def not_rescaled(real):
    return lambda whole, top, new: whole


def not_turned(real):
    def make(parts):
        from ccnet_cli.ops.cuda import memory

        return memory.inline(lambda shared, words: words)

    return make


def stale_stage(real):
    def make(*parts):
        from ccnet_cli.ops.cuda import memory

        load, save = real(*parts)
        return memory.inline(
            lambda source, channels, line, block, c0: load(source, channels, line, block, np.int32(0))
        ), save

    return make


def renamed(form, old, new):
    """The launches of a form with another buffer in place of one."""

    def change(launches):
        return [
            replace(step, arguments=tuple(new if x == old else x for x in step.arguments))
            if step.kernel.form == form
            else step
            for step in launches
        ]

    return change


def arms_swapped(launches):
    return [
        replace(step, arguments=(*step.arguments[:-1], 1 - step.arguments[-1])) if step.kernel.form == "fused" else step
        for step in launches
    ]


def line_missing(launches):
    tiles, lines, images = launches[1].grid
    return [launches[0], replace(launches[1], grid=(tiles, lines - 1, images)), *launches[2:]]


# in the launches, of which a map of one size needs no kernel compiled anew
LAUNCHED = {
    "recomputed with another sum": renamed("fused_backward", "log", "log_rows"),
    "delta of another tensor": renamed("fused_delta", "out", "value"),
    "arms swapped": arms_swapped,
    "line not written": line_missing,
}
# in the sources
COMPILED = {
    "rows of a fragment swapped": ("words", "_multiply", rows_swapped),
    "own pixel counted twice": ("words", "mask", unmasked),
    "sums not rescaled": ("fused", "_rescale", not_rescaled),
    "stale stage": ("fused", "_stages", stale_stage),
    "rows and columns not exchanged": ("fused", "_turn", not_turned),
}


@runs
@pytest.mark.slow
@pytest.mark.parametrize("fault", LAUNCHED)
def test_a_fault_in_the_launches_is_caught(fault):
    case = Fused(**SQUARE)
    case.launches = LAUNCHED[fault](case.launches)
    assert caught(case)


@runs
@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, *COMPILED])
def test_a_fault_in_the_kernels_is_caught(fault, monkeypatch):
    from ccnet_cli.ops.cuda import build, memory, words
    from ccnet_cli.ops.cuda import fused as sources

    case = Fused(1, 40, 136, 20, 20, line=16, backward=False)
    if fault == "stale stage":
        case = Fused(1, 8, 136, 5, 5, backward=False)
    if fault == "rows and columns not exchanged":
        case = Fused(1, 8, 8, 5, 5)
    if fault:
        module, name, change = COMPILED[fault]
        module = {"words": words, "fused": sources}[module]
        made = change(getattr(module, name))
        monkeypatch.setattr(module, name, memory.inline(made) if name == "_rescale" else made)
        # kernels and their steps that were made before have the right one in them
        monkeypatch.setattr(build, "ptx", lru_cache(build.ptx.__wrapped__))
        for maker in (words.dot, words.gather):
            maker.cache_clear()
    try:
        assert bool(caught(case)) == bool(fault)
    finally:
        for maker in (words.dot, words.gather):
            maker.cache_clear()


@runs
def test_a_missing_barrier_is_caught(monkeypatch):
    from ccnet_cli.ops.cuda import build

    # of two warps
    case = Fused(1, 16, 8, 20, 20, backward=False)
    whole = build.ptx
    monkeypatch.setattr(build, "ptx", lambda *x: re.sub(r"\tbar(rier)?\.sync[^\n]*\n", "", whole(*x)))
    assert "race" in str(caught(case))


def caught(case: Fused) -> object:
    import ptxrun

    try:
        case.run()
    except ptxrun.KernelFault as error:
        return error
    return case.failures()


# The torch side: views, copies, autograd and launches, with ptxrun or nothing in the driver's place.


@pytest.fixture
def on_cpu(monkeypatch):
    """Make tensors of 16 bits on the CPU take the fused path; gives what was launched, with its tensors."""
    seen = []
    monkeypatch.setattr(attention, "fits", lambda value: value.dtype in attention.DTYPES)
    monkeypatch.setattr(launch, "run", lambda launches, tensors: seen.append((launches, tensors)))
    return seen


@pytest.fixture
def on_ptxrun(on_cpu, monkeypatch):
    """The same, executed."""

    def run(launches, tensors):
        arrays = {}
        for name, tensor in tensors.items():
            # from the pointer to the storage's end, as a kernel sees it
            storage = torch.as_tensor((), dtype=tensor.dtype).set_(tensor.untyped_storage())[tensor.storage_offset() :]
            arrays[name] = (storage.view(torch.uint16) if tensor.dtype == torch.bfloat16 else storage).numpy()
        execute(launches, arrays, (8, 0), written=set(arrays))
        on_cpu.append((launches, tensors))

    monkeypatch.setattr(launch, "run", run)
    return on_cpu


def inputs(layout: str, c: int = 16, C: int = 72, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    whole = torch.randn(2, 2 * c + C + 8, 5, 5, generator=torch.Generator().manual_seed(1))
    # queries and keys, so that energies are about 1
    whole[:, : 2 * c + 3] *= c**-0.25
    whole = whole.to(dtype)
    if "last" in layout:
        whole = whole.contiguous(memory_format=torch.channels_last)
    if layout == "last shifted":
        whole = whole[:, 3:]
    parts = whole.split([c, c, C, whole.shape[1] - 2 * c - C], dim=1)[:3]
    if layout == "transposed":
        return [part.transpose(2, 3).contiguous().transpose(2, 3) for part in parts]
    return list(parts) if "slices" in layout or "shifted" in layout else [part.clone() for part in parts]


@runs
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "c", "C"),
    [("contiguous", 16, 72), ("last slices", 16, 72), ("last shifted", 16, 72), ("transposed", 16, 72), ("last", 3, 5)],
)
def test_any_memory_layout_is_read_right(on_ptxrun, layout, c, C):
    leaves = [x.detach().requires_grad_() for x in inputs(layout, c, C)]
    out = ops.criss_cross(*leaves, "numba")
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    got = [out, *torch.autograd.grad(out, leaves, grad)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    wanted = ops.criss_cross(*exact, "reference")
    for one, other in zip(got, [wanted, *torch.autograd.grad(wanted, exact, grad.double())], strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).abs().max() <= 9e-3 * other.abs().max()
    launches, tensors = on_ptxrun[0]
    aligned = c % 8 == 0 and layout != "last shifted"
    assert {step.kernel.aligned for step in launches} == {aligned}
    # what a GPU refuses, and ptxrun, to which an array is always aligned, does not
    for launches, tensors in on_ptxrun:
        for step in (step for step in launches if step.kernel.aligned):
            names = [x for x in step.arguments if isinstance(x, str)]
            assert [name for name in names if tensors[name].data_ptr() % 16 and tensors[name].dim() == 4] == []


@runs
@pytest.mark.slow
def test_torch_accepts_the_operators_and_their_second_gradients_are_right(on_ptxrun):
    leaves = [x.detach().requires_grad_() for x in inputs("last", 8, 8)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    outcome = torch.library.opcheck(torch.ops.ccnet.fused.default, tuple(leaves), test_utils=tests)
    assert set(outcome.values()) == {"SUCCESS"}
    arguments = (*(x.detach() for x in leaves), leaves[2].detach(), torch.ones(1))
    outcome = torch.library.opcheck(torch.ops.ccnet.fused_residual.default, arguments, test_utils=tests)
    assert set(outcome.values()) == {"SUCCESS"}


def test_only_the_logarithms_are_saved_and_a_step_is_five_launches(on_cpu):
    leaves = [x.detach().requires_grad_() for x in inputs("last slices")]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = ops.criss_cross(*leaves, "numba")
    named = {x.data_ptr() for x in (*leaves, out)}
    assert sum(x.numel() * x.element_size() for x in saved if x.data_ptr() not in named) == 4 * 2 * 5 * 5
    out.sum().backward()
    assert [len(launches) for launches, _ in on_cpu] == [2, 3]
    made = {name for _, tensors in on_cpu for name in tensors}
    assert all(tensor.numel() <= 2 * 5 * 5 * 72 for _, tensors in on_cpu for tensor in tensors.values()), made


@runs
@pytest.mark.parametrize("layout", ["last", pytest.param("contiguous", marks=pytest.mark.slow)])
def test_a_module_without_gradients_adds_its_residual_in_the_kernel(on_ptxrun, layout):
    query, key, value = inputs(layout)
    projected, x, gamma = torch.cat([query, key, value], dim=1), value.flip(0), torch.tensor([0.6], requires_grad=True)
    with torch.no_grad():
        out = ops.residual(projected, x, gamma, 16, "numba")
        exact = ops.residual(*(t.double() for t in (projected, x, gamma)), 16, "reference")
    ((launches, _),) = on_ptxrun
    assert [step.kernel.form for step in launches] == ["fused", "fused_residual"]
    assert out.dtype == torch.bfloat16 and (out.double() - exact).abs().max() <= 5e-3 * exact.abs().max()


def test_gradients_of_a_residual_have_the_pass_itself(on_cpu):
    query, key, value = inputs("last")
    projected = torch.cat([query, key, value], dim=1).requires_grad_()
    ops.residual(projected, value, torch.tensor([0.6], requires_grad=True), 16, "numba").sum().backward()
    forms = [step.kernel.form for launches, _ in on_cpu for step in launches]
    assert forms == ["fused"] * 2 + ["fused_delta"] + ["fused_backward"] * 2


def test_float32_and_clips_and_older_gpus_keep_the_other_kernels(monkeypatch):
    half = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device="cuda:0", dim=lambda: 4)
    full = SimpleNamespace(**vars(half) | {"dtype": torch.float32})
    arch = (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: arch)
    with passes.rounding("fp32"):
        assert attention.fits(half) and not attention.fits(full)
    with passes.rounding("tf32"):
        assert attention.fits(half) and attention.fits(full)
    for changed in ({"dtype": torch.float64}, {"dim": lambda: 5}, {"is_cuda": False}):
        assert not attention.fits(SimpleNamespace(**vars(half) | changed))
    arch = (7, 5)
    assert not attention.fits(half)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_compilers_trace_the_choice_of_kernels(precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    half = SimpleNamespace(is_cuda=True, dtype=torch.float32, device="cuda:0", dim=lambda: 4)
    traced = torch.compile(lambda x: x + int(attention.fits(half)), backend="eager", fullgraph=True)
    with passes.rounding(precision):
        assert traced(torch.zeros(1)).item() == (precision == "tf32")


@compiles
def test_an_architecture_without_them_is_refused():
    from ccnet_cli.ops.cuda import build

    with pytest.raises(InputError, match=r"sm_75.*sm_80"):
        build.ptx(steps.Kernel("fused", "bfloat16", (1, 1, 0), True, 32), (7, 5))


@pytest.mark.parametrize("length", [1, 8, 9, 97, 127, 128, 129, 130, 208, 257, 1000])
def test_a_line_is_covered_with_little_waste_by_blocks_that_fit(length):
    cut = plan.cut_line(length)
    assert length <= 8 * cut.tiles * cut.blocks < length + 8 * cut.blocks
    assert length <= 16 * cut.warps * cut.parts < length + 16 * cut.parts
    # two pairs of pixels in a thread at most
    assert cut.tiles <= 2 * cut.warps <= 16 and 4 * plan.shared_words(cut.tiles) <= 48 << 10


def test_empty_maps_launch_nothing(on_cpu):
    for shape in ((0, 4, 4), (2, 0, 4), (2, 4, 0)):
        B, H, W = shape
        leaves = [torch.empty(B, n, H, W, dtype=torch.float16, requires_grad=True) for n in (8, 8, 16)]
        ops.criss_cross(*leaves, "numba").sum().backward()
        assert [x.grad.shape for x in leaves] == [x.shape for x in leaves]
    assert on_cpu == []
