"""The CUDA kernels without a GPU: simulated, as compiled PTX run by ptxrun, and as machine code that is read."""

import ctypes
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kernels import RESULTS, ROOT, Case, compiles, execute, runs, simulate_apart
from tensors import assert_equal, assert_near

from ccnet_cli import ops
from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.ops import cuda
from ccnet_cli.ops.cuda import launch, steps

# images, c, C, T, H, W; small is the side of the largest tile in threads of 8 x 8
SIMULATED = [
    {"images": 1, "c": 3, "C": 2, "H": 3, "W": 2, "small": 1, "fused": True},
    {"images": 1, "c": 4, "C": 4, "H": 2, "W": 2, "small": 1, "dtype": "bfloat16"},
    {"images": 1, "c": 2, "C": 3, "T": 2, "H": 1, "W": 2, "small": 1},
]
# more tiles, and thousands of threads
LONGER = [
    {"images": 1, "c": 1, "C": 1, "H": 1, "W": 1, "small": 1},
    {"images": 1, "c": 3, "C": 5, "H": 1, "W": 7, "small": 1},
    {"images": 1, "c": 4, "C": 4, "H": 7, "W": 1, "small": 1},
    {"images": 1, "c": 2, "C": 9, "H": 1, "W": 10, "small": 1},
    {"images": 1, "c": 1, "C": 3, "H": 9, "W": 1, "small": 1},
    {"images": 2, "c": 4, "C": 8, "H": 3, "W": 4, "small": 1},
    {"images": 1, "c": 9, "C": 12, "H": 5, "W": 3, "small": 2},
    {"images": 1, "c": 8, "C": 4, "H": 4, "W": 4, "small": 1, "fused": True},
    {"images": 1, "c": 4, "C": 8, "H": 3, "W": 3, "small": 1, "dtype": "bfloat16"},
    {"images": 1, "c": 4, "C": 5, "H": 2, "W": 3, "small": 1, "dtype": "float16"},
    # clips: single frames, more frames than a tile has, and all three arms alike
    {"images": 1, "c": 2, "C": 3, "T": 1, "H": 2, "W": 3, "small": 1},
    {"images": 1, "c": 1, "C": 4, "T": 9, "H": 1, "W": 2, "small": 1},
    {"images": 2, "c": 2, "C": 5, "T": 2, "H": 2, "W": 2, "small": 1},
    {"images": 1, "c": 5, "C": 6, "H": 2, "W": 9, "small": 1},
    {"images": 1, "c": 4, "C": 20, "H": 9, "W": 2, "small": 2},
    {"images": 1, "c": 4, "C": 4, "H": 2, "W": 17, "small": 1},
    {"images": 1, "c": 2, "C": 4, "H": 9, "W": 9, "small": 1},
]
ROUNDING = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
RAGGED = [
    {"images": 1, "c": 4, "C": 8, "H": 5, "W": 7},
    {"images": 2, "c": 5, "C": 7, "H": 11, "W": 3},
    {"images": 1, "c": 3, "C": 5, "H": 1, "W": 19},
    {"images": 1, "c": 3, "C": 6, "H": 33, "W": 1, "largest": 4},
    {"images": 1, "c": 12, "C": 20, "H": 17, "W": 9, "fused": True},
    {"images": 1, "c": 8, "C": 36, "H": 3, "W": 37, "largest": 4},
    {"images": 2, "c": 5, "C": 7, "T": 3, "H": 4, "W": 5},
    {"images": 1, "c": 12, "C": 20, "T": 5, "H": 2, "W": 9, "fused": True},
]
# with tiles of other sizes
LONG = [{"images": 1, "c": 3, "C": 6, "H": 33, "W": 1}, {"images": 1, "c": 8, "C": 132, "H": 2, "W": 131}]
ARCHS = [(7, 5), (8, 0), (9, 0), (10, 0)]
LARGE = [(13, 13), (16, 13)]
WHOLE = {"images": 1, "c": 64, "C": 512, "H": 97, "W": 97}
CLIP = {"images": 1, "c": 8, "C": 12, "T": 5, "H": 33, "W": 65}


def failures(case: Case, bound: float | None = None) -> list[str]:
    bound = bound or ROUNDING[case.dtype]
    # not (<=), so that nan, which every result was filled with, is a failure
    return [f"{name}: {error:.1e}" for name, error in case.errors().items() if not error <= bound]


@compiles
@pytest.mark.parametrize("cases", [SIMULATED, pytest.param(LONGER, marks=pytest.mark.slow)], ids=["small", "longer"])
def test_simulated_forward_and_backward_are_the_definition(cases):
    for options, errors in zip(cases, simulate_apart(cases), strict=True):
        assert set(errors) == {*RESULTS}
        bound = ROUNDING[options.get("dtype", "float32")]
        assert {name: error for name, error in errors.items() if not error <= bound} == {}, options


@runs
@pytest.mark.parametrize(
    # the first two share their kernels with other fast tests
    "options",
    [*RAGGED[:2], *(pytest.param(x, marks=pytest.mark.slow) for x in (*RAGGED[2:], *LONG))],
    ids=str,
)
def test_compiled_kernels_are_the_definition_without_a_fault(options):
    case = Case(**options)
    for result in execute(case.launches, case.arrays, (8, 0)):
        assert result.faults == []
    assert failures(case) == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", RAGGED[:2], ids=str)
def test_compiled_kernels_store_sixteen_bits(options, dtype):
    case = Case(**options, dtype=dtype)
    execute(case.launches, case.arrays, (8, 0))
    assert failures(case) == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("arch", [(7, 5), (9, 0)])
def test_other_architectures_compute_the_same(arch):
    case = Case(**RAGGED[0])
    execute(case.launches, case.arrays, arch)
    assert failures(case) == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS[:3])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_full_size_is_the_definition_without_a_fault(arch, dtype):
    case = Case(**WHOLE, dtype=dtype)
    execute(case.launches, case.arrays, arch)
    assert failures(case, 2e-5 if dtype == "float32" else None) == []
    for options in [*RAGGED, *LONG]:
        case = Case(**options | {"dtype": dtype, "fused": options.get("fused", False) and dtype == "float32"})
        execute(case.launches, case.arrays, arch)
        assert failures(case) == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_clip_is_the_definition_without_a_fault(dtype):
    case = Case(**CLIP, dtype=dtype)
    assert [fault for result in execute(case.launches, case.arrays, (8, 0)) for fault in result.faults] == []
    assert failures(case) == []


@runs
def test_a_forward_pass_moves_whole_vectors_without_bank_conflicts():
    case = Case(images=1, c=16, C=32, H=16, W=32, largest=4)
    case.exact = {"out": case.exact["out"]}
    results = execute(case.forward, case.arrays, (8, 0))
    assert failures(case) == []
    loads, stores = (32 * sum(getattr(r, f"global_{way}_sectors") for r in results) for way in ("load", "store"))
    pixels, cross = 16 * 32, 16 + 32
    # every tile loads its operands once; columns read and write again what the rows wrote
    assert loads <= 4 * 4 * pixels * (2 * 16 + 32) and stores <= 2 * 4 * pixels * (32 + cross)
    assert sum(r.global_load_bytes for r in results) == loads
    assert sum(r.global_store_bytes for r in results) == stores
    assert sum(r.bank_conflicts for r in results) == 0
    assert case.useful >= 0.6 * sum(2 * r.thread_instructions.get("ffma", 0) for r in results)


@runs
@pytest.mark.parametrize(("form", "channels"), [("nt", 12), ("nn", 128), ("tn", 128)])
def test_the_tiles_of_a_large_map_compute_its_rows(form, channels):
    length, arm = 97, steps.pad_length(1)
    random = np.random.default_rng(0)
    energy = np.full((length, arm + steps.pad_length(length)), np.nan, np.float32)
    energy[:, arm : arm + length] = random.standard_normal((length, length))
    left, right = random.standard_normal((2, length, channels)).astype(np.float32)
    full = {"left": left, "right": right, "out": np.full_like(energy, np.nan)}
    if form != "nt":
        full |= {"left": energy, "out": np.full_like(right, np.nan)}
    buffers = [steps.Buffer(name, array.shape[1]) for name, array in full.items()]
    arrays = {name: array.reshape(-1) for name, array in full.items()}
    step = steps.products(form, steps.Grid(1, 1, length, arm), *buffers, channels, False)[0]
    assert step.kernel.sizes in LARGE
    execute([step], arrays, (8, 0), written={"left", "right"})
    weights = energy[:, arm : arm + length].astype(np.float64)
    got = full["out"][:, arm : arm + length] if form == "nt" else full["out"]
    exact = {"nt": left.astype(np.float64) @ right.T, "nn": weights @ right, "tn": weights.T @ right}[form]
    assert_near(form, [torch.from_numpy(got)], [torch.from_numpy(exact)])


@runs
@pytest.mark.slow
def test_the_whole_forward_moves_and_computes_little_more_than_it_must():
    case = Case(**WHOLE)
    case.exact = {"out": case.exact["out"]}
    results = execute(case.forward, case.arrays, (8, 0))
    assert len(results) <= 5
    assert failures(case, 2e-5) == []
    loads, stores = (32 * sum(getattr(r, f"global_{way}_sectors") for r in results) for way in ("load", "store"))
    assert loads <= 130e6 and stores <= 70e6
    assert sum(r.global_load_bytes for r in results) >= 0.8 * loads
    assert sum(r.global_store_bytes for r in results) >= 0.9 * stores
    assert sum(r.bank_conflicts for r in results) <= 0.05 * sum(r.shared_wavefronts for r in results)
    # multiply-adds that threads executed, those in the exponential included
    assert case.useful >= 0.88 * sum(2 * r.thread_instructions.get("ffma", 0) for r in results)


@runs
@pytest.mark.parametrize("width", [1, 250, 1000, 8200])
def test_a_cross_of_any_length_has_its_softmax_and_backward(width):
    arm, pixels = 8, 3
    stride = arm + steps.pad_length(width)
    random = np.random.default_rng(0)
    energy, pull = random.standard_normal((2, pixels, stride)).astype(np.float32)
    energy[0] *= 1e4
    # without the largest energy subtracted, these would be infinite, or all 0
    energy[1] += 1000
    energy[2] -= 1000
    energy[:, 0] = -np.inf
    padding = np.ones(stride, bool)
    padding[[0, 1, *range(arm, arm + width)]] = False
    energy[:, padding] = pull[:, padding] = np.nan
    exact = np.where(padding, -np.inf, energy.astype(np.float64))
    exact = np.exp(exact - exact.max(1, keepdims=True))
    exact /= exact.sum(1, keepdims=True)
    pulled = np.where(padding, 0, pull.astype(np.float64))
    grad = exact * (pulled - (exact * pulled).sum(1, keepdims=True))
    arrays = {"energy": energy.reshape(-1), "pull": pull.reshape(-1)}
    grid = steps.Grid(1, 2, width, arm)
    for form, names in (("softmax", ("energy",)), ("softmax_backward", ("pull", "energy"))):
        step = steps.softmaxes(form, grid, names, stride)
        # three pixels stand for all of a map that would be too large
        blocks = -(-pixels // step.kernel.sizes[2])
        step = replace(step, grid=(blocks, 1, 1), arguments=(*step.arguments[:-1], pixels))
        execute([step], arrays, (8, 0), written=arrays)
    # padding is 0 in both, and whatever lay there before has no part
    np.testing.assert_allclose(arrays["energy"].reshape(exact.shape), exact, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(arrays["pull"].reshape(exact.shape), grad, rtol=1e-4, atol=1e-6)


@runs
def test_nan_reaches_the_pixels_whose_cross_holds_it_and_no_other(on_ptxrun):
    query, key, value = laid_out("last", 4, 4)
    key[0, 1, 2, 1] = torch.nan
    found = ops.criss_cross(query, key, value, "numba").isnan()
    assert torch.equal(found, ops.criss_cross(query, key, value, "reference").isnan())
    assert 0 < found.sum() < found.numel()


def typical(dtype: str, frames: int = 0) -> list[steps.Kernel]:
    """What a 97x97 map of 512 channels, or a clip of such frames, launches, and one kernel for each odd layout."""
    column = steps.pad_length(frames)
    grid = steps.Grid(1, 97, 97, column + steps.pad_length(97), dtype, frames=frames, column=column)
    buffers = [steps.Buffer(name, 64) for name in ("query", "key", "value", "energy")]
    forward = steps.forward(grid, 64, 512, *buffers, steps.Buffer("out", 512))
    rest = [steps.Buffer(name, 512) for name in ("grad", "pull", "d_query", "d_key", "d_value")]
    backward = steps.backward(grid, 64, 512, *buffers, *rest)
    found = list(dict.fromkeys(step.kernel for step in [*forward, *backward]))
    return found + [replace(kernel, aligned=False) for kernel in found if kernel.form == "tn"]


def gate(kernel: steps.Kernel, arch: tuple[int, int], least: int = 64) -> None:
    """No spill and no scalar load; a thread's loop has at least one step of 64 multiplies, or `least`."""
    from ccnet_cli.ops.cuda import build

    made = build.assemble(kernel, arch)
    assert (made.stack, made.spills) == (0, 0)
    assert 0 < made.registers <= 128
    text = build.ptx(kernel, arch)
    if "softmax" not in kernel.form:
        assert "ld.shared.v4" in text
        # four 16-bit values are 8 bytes, whatever the compiler calls them
        wide = r"ld\.global\.(v4\.|[ub]64)", r"st\.global\.(v4\.|v2\.b32)"
        assert all(re.search(words, text) for words in wide) == kernel.aligned
        multiplies, loads = build.inner_loop(made.image)
        assert multiplies >= least and multiplies * 4 >= 64 * loads > 0


@compiles
@pytest.mark.parametrize("arch", [(8, 0), *(pytest.param(x, marks=pytest.mark.slow) for x in ARCHS if x != (8, 0))])
def test_nothing_spills_and_shared_memory_is_read_in_vectors(arch):
    kernels = [kernel for kernel in typical("float32") if "softmax" in kernel.form or kernel.sizes in LARGE]
    # each form on one of them; the slow test has all kernels everywhere
    for kernel in kernels if arch == (8, 0) else [kernel for kernel in kernels if kernel.form == "nn"]:
        # of two steps, the loads of the second hide behind the first
        gate(kernel, arch, 128 if arch == (8, 0) else 64)


@compiles
def test_what_a_row_is_added_to_is_on_its_way_before_the_row_above_is_stored():
    from ccnet_cli.ops.cuda import build

    kernel = next(kernel for kernel in typical("float32") if kernel.form == "nn")
    text = build.ptx(kernel, (8, 0))
    after = text[text.rindex("bar") :]
    assert after[: after.index("st.global")].count("ld.global.v4") >= 5


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_nothing_spills_for_any_type_and_tile(arch, dtype):
    found = {}
    for kernel in typical(dtype):
        for sizes in [kernel.sizes] if "softmax" in kernel.form else [kernel.sizes, (16, 16), (16, 9), (4, 4)]:
            for aligned in (True, False):
                found[replace(kernel, sizes=sizes, aligned=aligned)] = None
    for kernel in found:
        gate(kernel, arch)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_nothing_spills_for_the_third_arm_of_a_clip(dtype, arch):
    """Lines of five frames need tiles of their own."""
    kernels = [kernel for kernel in typical(dtype, frames=5) if kernel not in typical(dtype)]
    assert {"nt", "nn", "tn"} <= {kernel.form for kernel in kernels}
    for kernel in kernels:
        gate(kernel, arch)


# Faults, each planted in one place; the comparison (with the nan from before) or a check of ptxrun must find it.


def without_barrier(monkeypatch):
    from ccnet_cli.ops.cuda import build

    ptx = build.ptx
    monkeypatch.setattr(build, "ptx", lambda *options: re.sub(r"\tbar\.sync[^\n]*\n", "", ptx(*options)))
    return lambda step: step


def changed(change):
    return lambda monkeypatch: change


def patched(name, function, *forms):
    def plant(monkeypatch):
        from ccnet_cli.ops.cuda import build, lines, memory

        monkeypatch.setattr(lines, name, memory.inline(function))
        # kernels compiled before have the right function in them; other forms do not use it
        before, anew = build.ptx, lru_cache(build.ptx.__wrapped__)
        monkeypatch.setattr(build, "ptx", lambda kernel, arch: (anew if kernel.form in forms else before)(kernel, arch))
        return lambda step: step

    return plant


def _overwrite(values, others):
    return values


def _one_more(steps, places, turned):
    return np.int32(steps + 1) if turned else np.int32(places if steps > -1 else 0)


def _swapped(step):
    left, right = step.arguments[3], step.arguments[4]
    kept = "softmax" in step.kernel.form
    return step if kept else replace(step, arguments=(*step.arguments[:3], right, left, *step.arguments[5:]))


def _unmasked(step):
    flags = [0 if number in (10, 14) else x for number, x in enumerate(step.arguments)]
    return replace(step, arguments=tuple(flags)) if step.kernel.form == "nt" else step


def _short_of_a_tile(step):
    tiles, lines, images = step.grid
    return replace(step, grid=(max(tiles - 1, 1), lines, images))


def _short_of_a_line(step):
    tiles, lines, images = step.grid
    return step if "softmax" in step.kernel.form else replace(step, grid=(tiles, lines - 1, images))


def _wrong_arm(step):
    offset = step.arguments[9] + 8 if step.kernel.form == "nn" and step.arguments[9] else None
    return replace(step, arguments=(*step.arguments[:9], offset, *step.arguments[10:])) if offset else step


FAULTS = {
    "dropped barrier": without_barrier,
    "wrong mask": changed(_unmasked),
    "columns that do not add": patched("add", _overwrite, "nn"),
    "tile edge one step too far": patched("_count", _one_more, "nt"),
    "swapped strides": changed(_swapped),
    "unwritten tile": changed(_short_of_a_tile),
    "unwritten line": changed(_short_of_a_line),
    "wrong arm": changed(_wrong_arm),
}
COMPILED = {"columns that do not add", "tile edge one step too far"}


@runs
@pytest.mark.parametrize(
    "fault",
    # those in the sources are compiled anew
    [None, *(pytest.param(x, marks=pytest.mark.slow) if x in COMPILED else x for x in FAULTS)],
)
def test_a_planted_fault_is_caught(fault, monkeypatch):
    import ptxrun

    case = Case(images=1, c=4, C=12, H=3, W=37, largest=4)
    plant = FAULTS[fault](monkeypatch) if fault else changed(lambda step: step)(monkeypatch)
    caught = ""
    try:
        execute([plant(step) for step in case.launches], case.arrays, (8, 0))
    except ptxrun.KernelFault as found:
        caught = str(found)
    assert bool(caught or failures(case)) == bool(fault)
    if fault == "dropped barrier":
        assert "race" in caught
    if fault == "tile edge one step too far":
        assert "bounds" in caught


# The torch side: views, copies, flags and autograd, with ptxrun in the driver's place.


@pytest.fixture
def on_ptxrun(monkeypatch):
    """Make "numba" run on CPU tensors; gives the tensors of each operator that ran."""
    seen = []

    def run(launches, tensors):
        arrays = {}
        for name, tensor in tensors.items():
            # from the pointer to the storage's end, as a kernel sees it
            storage = torch.as_tensor((), dtype=tensor.dtype).set_(tensor.untyped_storage())[tensor.storage_offset() :]
            arrays[name] = (storage.view(torch.uint16) if tensor.dtype == torch.bfloat16 else storage).numpy()
        execute(launches, arrays, (8, 0), written=set(arrays))
        seen.append((launches, tensors))

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setitem(ops.IMPLEMENTATIONS, "numba", ops.Implementation(cuda))
    return seen


def laid_out(layout: str, c: int, C: int, H: int = 5, W: int = 3, dtype=torch.float32) -> list[torch.Tensor]:
    whole = torch.randn(2, 2 * c + C, H, W, generator=torch.Generator().manual_seed(1)).to(dtype)
    if layout == "last shifted slices":
        # as many floats from pixel to pixel as vectors need, and addresses that they do not take
        whole = torch.cat([whole[:, :2], whole, whole[:, :2]], dim=1)
    if "last" in layout:
        whole = whole.to(memory_format=torch.channels_last)
    if layout == "last shifted slices":
        whole = whole[:, 2:-2]
    parts = whole.split([c, c, C], dim=1)
    if layout == "transposed":
        return [part.transpose(2, 3).contiguous().transpose(2, 3) for part in parts]
    memory_format = torch.channels_last if "last" in layout else torch.contiguous_format
    return list(parts) if "slices" in layout else [part.contiguous(memory_format=memory_format) for part in parts]


@runs
@pytest.mark.parametrize(("c", "C", "H", "W"), [(4, 8, 5, 3), (3, 5, 3, 4), (1, 1, 4, 1)])
@pytest.mark.parametrize("layout", ["contiguous", "last", "slices", "last slices", "last shifted slices", "transposed"])
def test_any_memory_layout_is_read_right_and_channels_last_without_a_copy(on_ptxrun, layout, c, C, H, W):
    inputs = [x.requires_grad_() for x in laid_out(layout, c, C, H, W)]
    out = ops.criss_cross(*inputs, "numba")
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    got = [out, *torch.autograd.grad(out, inputs, grad)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = ops.criss_cross(*exact, "reference")
    assert_near(" ".join(RESULTS), got, [expected, *torch.autograd.grad(expected, exact, grad.double())])
    read = on_ptxrun[0][1]
    for name, source in zip(("query", "key", "value"), inputs, strict=True):
        if "last" in layout:
            assert read[name].data_ptr() == source.data_ptr()
    # what a GPU refuses, and ptxrun, to which an array is always aligned, does not
    for launches, tensors in on_ptxrun:
        for step in (step for step in launches if step.kernel.aligned and "softmax" not in step.kernel.form):
            for name in step.arguments[:3]:
                vector = 4 * tensors[name].element_size()
                assert tensors[name].data_ptr() % vector == 0, f"{step.kernel.name} reads {name} at a wrong address"


@runs
@pytest.mark.parametrize(("H", "W"), [(4, 4), (5, 3), (4, 2), (2, 4)])
@pytest.mark.parametrize("name", ["affinity", "aggregate", "scatter"])
def test_each_operator_is_the_definition_and_so_are_its_gradients(on_ptxrun, name, H, W):
    query, key, value = laid_out("last", 4, 4, H, W)
    weights = torch.randn(2, H + W, H, W, generator=torch.Generator().manual_seed(3))
    inputs = (query, key) if name == "affinity" else (weights, value)
    results = []
    for implementation, dtype in (("numba", torch.float32), ("reference", torch.float64)):
        parts = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = getattr(ops, name)(*parts, implementation)
        finite = out.masked_fill(out.isinf(), 0.5)
        results.append([out, *torch.autograd.grad(finite.square().sum(), parts)])
    (got, *gradients), (exact, *others) = results
    masked = exact.isinf()
    assert torch.equal(got.isinf(), masked) and masked.sum() == (2 * H * W if name == "affinity" else 0)
    results = [[x.masked_fill(masked, 0), *rest] for x, rest in ((got, gradients), (exact, others))]
    assert_near("out gradient_0 gradient_1", *results)


@runs
@pytest.mark.parametrize("name", ["affinity", "aggregate", "scatter", "criss_cross"])
def test_three_axes_are_the_definition_and_so_are_their_gradients(on_ptxrun, name):
    size, generator = (3, 2, 4), torch.Generator().manual_seed(4)
    query, key, value, weights = (torch.randn(2, n, *size, generator=generator) for n in (3, 3, 5, sum(size)))
    inputs = {"affinity": (query, key), "criss_cross": (query, key, value)}.get(name, (weights, value))
    results = []
    for implementation, dtype in (("numba", torch.float32), ("reference", torch.float64)):
        parts = [x.to(dtype).requires_grad_() for x in inputs]
        out = getattr(ops, name)(*parts, implementation)
        assert out.isinf().sum() == (2 * 2 * 24 if name == "affinity" else 0)
        finite = out.masked_fill(out.isinf(), 0.5)
        results.append([finite, *torch.autograd.grad(finite.square().sum(), parts)])
    assert_near(" ".join(map(str, range(len(results[0])))), *results)
    assert len(on_ptxrun) >= 2
    with pytest.raises(InputError, match="numba on 4 axes: its kernels for CUDA are for two or three; use auto"):
        getattr(ops, name)(
            *(x[:, :, None] if x is not weights else torch.ones(2, 10, 1, *size) for x in inputs), "numba"
        )


@runs
def test_torch_accepts_the_fused_operator(on_ptxrun):
    query, key, value = (x.requires_grad_() for x in laid_out("last", 4, 4, 2, 3))
    outcome = torch.library.opcheck(torch.ops.ccnet.criss_cross.default, (query, key, value, "numba"))
    assert set(outcome.values()) == {"SUCCESS"}
    attention = torch.ops.ccnet.criss_cross(query, key, value, "numba")[1]
    detached = (x.detach() for x in (value, query, key, value, attention))
    outcome = torch.library.opcheck(torch.ops.ccnet.criss_cross_backward.default, (*detached, "numba"))
    assert set(outcome.values()) == {"SUCCESS"}


@runs
@pytest.mark.parametrize(("dtype", "c", "C"), [(torch.float16, 4, 4), (torch.bfloat16, 3, 5)])
def test_half_precision_is_stored_but_not_summed(on_ptxrun, dtype, c, C):
    inputs = laid_out("last", c, C, dtype=dtype)
    out = ops.criss_cross(*inputs, "numba")
    assert out.dtype == dtype
    assert {tensors["energy"].dtype for _, tensors in on_ptxrun} == {torch.float32}
    exact = ops.criss_cross(*(x.double() for x in inputs), "reference")
    torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=1e-2)


@runs
def test_bfloat16_results_halfway_between_two_numbers_are_rounded_to_even(on_ptxrun):
    first = torch.tensor([sign * 2.0**e for sign in (1, -1) for e in (0, -20, 100) for _ in range(3)])
    # n units of half of the last place
    second = first * torch.tensor([1.0, 3, 127] * 6) * 2**-8
    value = torch.stack([first, second], dim=1)[None, :, None].bfloat16()
    value[0, 0, 0, 1] = torch.nan
    # the row's two pixels, each with weight 1; the column's is masked
    weights = torch.ones(1, 3, 1, 2)
    weights[:, 0] = 0
    got = ops.aggregate(weights, value, "numba")
    exact = value.float().sum(3, keepdim=True).expand(value.shape).bfloat16()
    assert exact[0, 0].isnan().all() and exact[0, 1:].isfinite().all()
    assert_equal("out", [got], [exact])
    # a GPU's own nan: rounded up, it would be -0
    weights[0, 1, 0, 0] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert cuda.aggregate(weights, value)[..., 0].isnan().all()


# Without a GPU: what is refused, and what the host does at a launch


def test_a_missing_compiler_is_refused_with_the_line_that_mends_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(launch, "_is_missing", lambda name: name == "numba_cuda")
    kernel = steps.Kernel("nn", "float32", (16, 13), True, 32)
    with pytest.raises(InputError, match=r"pip install 'ccnet-cli\[cuda1[23]\]'"):
        launch.machine_code(kernel, (8, 0))
    assert launch._is_missing("numba_cuda") and not list(tmp_path.iterdir())


@compiles
def test_an_architecture_too_old_for_the_toolkit_is_refused():
    from ccnet_cli.ops.cuda import build

    with pytest.raises(InputError, match=r"sm_35.*cuda12"):
        build.ptx(steps.Kernel("nn", "float32", (16, 13), True, 32), (3, 5))


@compiles
def test_whether_kernels_compile_is_told_in_words(monkeypatch):
    assert cuda.try_to_compile((8, 0)) == "compiles"
    assert re.search(r"sm_35.*cuda12", cuda.try_to_compile((3, 5)))
    monkeypatch.setattr(launch, "_is_missing", lambda name: name == "cuda.bindings")
    told = cuda.try_to_compile((8, 0))
    assert "cuda.bindings is not installed; pip install" in told and "\n" not in told


def test_types_and_sizes_that_the_kernels_do_not_hold_are_refused():
    with pytest.raises(InputError, match="float64"):
        cuda.criss_cross(*(x.double() for x in laid_out("last", 4, 8)))
    grid = steps.Grid(1, 1000, 1000, 1000)
    with pytest.raises(InputError, match="32 bits"):
        steps.check(grid, 4, 2148)
    steps.check(grid, 4, 2147)
    steps.check(steps.Grid(65535, 1, 1, 1), 4)
    with pytest.raises(InputError, match="fewer images"):
        steps.check(steps.Grid(65536, 1, 1, 1), 4)
    with pytest.raises(InputError, match="32 bits"):
        steps.products("nn", grid, *[steps.Buffer(name, 2148) for name in ("left", "right", "out")], 8, False)


@pytest.mark.parametrize(("length", "expected"), [(97, 13), (128, 16), (129, 9), (257, 11), (512, 16), (64, 8), (1, 4)])
def test_tiles_cover_a_line_with_little_waste(length, expected):
    assert steps.tile_size(length, 16) == expected


@pytest.mark.parametrize("form", ["nt", "nn", "tn"])
@pytest.mark.parametrize(
    ("T", "H", "W"), [(0, 1, 1), (0, 3, 37), (0, 37, 3), (0, 300, 2), (0, 5, 6), (1, 1, 1), (5, 6, 7), (3, 2, 37)]
)
def test_every_line_is_launched_once_with_tiles_for_all_of_it(form, T, H, W):
    C, frames, seen = 70, max(T, 1), []
    grid = steps.Grid(2, H, W, 40, largest=4, frames=T, column=8 * bool(T))
    buffers = [steps.Buffer(name, 80) for name in ("left", "right", "out")]
    for step in steps.products(form, grid, *buffers, C, False):
        across, down = step.kernel.sizes
        tiles, count, images = step.grid
        first, *arms, image, channels = step.arguments[6:]
        assert (images, image, channels) == (2, frames * H * W, C)
        for lines, (length, stride, offset, flag) in ((first, arms[:4]), (count - first, arms[4:])):
            assert bool(lines) == bool(length)
            needed = -(-length // (8 * down)) * -(-(length if form == "nt" else C) // (8 * across))
            assert tiles >= needed, f"{tiles} tiles, not {needed}"
            seen += [(length, stride, offset, flag)] * lines
    rows, columns = [(W, 1, 40, 0)] * frames * H, [(H, W, 8 if T else 0, int(form != "nt"))] * frames * W
    through = [(T, H * W, 0, int(form != "nt"))] * H * W if T else []
    assert seen == rows + columns + through


@compiles
def test_compiled_kernels_are_kept_on_disk(monkeypatch, tmp_path):
    from ccnet_cli.ops.cuda import build

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel = steps.Kernel("softmax", "float32", (32, 8, 8), True, 32)
    image = launch.machine_code(kernel, (8, 0))
    assert image[:4] == b"\x7fELF"
    monkeypatch.setattr(build, "assemble", None)
    assert launch.machine_code(kernel, (8, 0)) == image


def test_compiled_kernels_have_a_file_for_each_architecture_alignment_and_source(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = SimpleNamespace(assemble=lambda kernel, arch: SimpleNamespace(image=f"{kernel} {arch}".encode()))
    monkeypatch.setitem(sys.modules, "ccnet_cli.ops.cuda.build", made)
    monkeypatch.setattr(cuda, "build", made, raising=False)
    monkeypatch.setattr(launch, "require", lambda: None)
    kernel = steps.Kernel("nn", "float32", (16, 13), True, 32)
    kernels = [kernel, replace(kernel, aligned=False), replace(kernel, dtype="float16"), replace(kernel, sizes=(8, 13))]
    images = [launch.machine_code(one, arch) for one in kernels for arch in ((8, 0), (9, 0))]
    assert [launch.machine_code(one, arch) for one in kernels for arch in ((8, 0), (9, 0))] == images
    assert len(set(images)) == 8
    read, versions = Path.read_bytes, []
    folder = Path(launch.__file__).parent
    for changed in (None, *sorted(folder.glob("*.py"))):
        monkeypatch.setattr(Path, "read_bytes", lambda path, changed=changed: read(path) + b"#" * (path == changed))
        versions.append(launch._sources.__wrapped__())
    assert len(set(versions)) == len(versions) > 8


def test_without_a_compiler_what_another_made_of_these_sources_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path))

    def refuse():
        raise InputError("implementation numba", "numba_cuda is not installed", "pip install it")

    monkeypatch.setattr(launch, "require", refuse)
    kernel = steps.Kernel("nn", "float32", (16, 13), True, 32)
    path = launch._path(kernel, (9, 0))
    path.parent.mkdir(parents=True)
    for other in (replace(kernel, sizes=(8, 13)), replace(kernel, aligned=False)):
        launch._path(other, (9, 0)).write_bytes(b"another kernel")
    # of other sources
    path.with_name(path.name.replace(launch._sources(), "0" * 16)).write_bytes(b"old")
    with pytest.raises(InputError, match="numba_cuda"):
        launch.machine_code(kernel, (9, 0))
    path.with_name(path.name.replace(launch._version(), launch._sources() + "f" * 8)).write_bytes(b"image")
    assert launch.machine_code(kernel, (9, 0)) == b"image"
    with pytest.raises(InputError, match="numba_cuda"):
        launch.machine_code(kernel, (8, 0))


def test_where_nothing_compiles_what_another_made_of_these_sources_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path))

    def refuse(kernel, arch):
        raise InputError("numba kernels", "no NVVM", "pip install it")

    monkeypatch.setattr(launch, "require", lambda: None)
    monkeypatch.setattr(launch, "compile_to_cache", refuse)
    kernel = steps.Kernel("nn", "float32", (16, 13), True, 32)
    with pytest.raises(InputError, match="NVVM"):
        launch.machine_code(kernel, (9, 0))
    path = launch._path(kernel, (9, 0))
    path.parent.mkdir(parents=True)
    path.with_name(path.name.replace(launch._version(), launch._sources() + "f" * 8)).write_bytes(b"image")
    assert launch.machine_code(kernel, (9, 0)) == b"image"


@compiles
def test_a_cache_folder_that_cannot_be_written_to_costs_a_notice_not_the_run(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    # no folder can be made in a file, whoever runs the test
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "file"))
    made = SimpleNamespace(assemble=lambda kernel, arch: SimpleNamespace(image=b"image"))
    monkeypatch.setattr(cuda, "build", made, raising=False)
    monkeypatch.setitem(sys.modules, "ccnet_cli.ops.cuda.build", made)
    launch._warn_of_cache.cache_clear()
    kernel = steps.Kernel("nn", "float32", (16, 13), True, 32)
    assert [launch.machine_code(one, (8, 0)) for one in (kernel, replace(kernel, aligned=False))] == [b"image"] * 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not kept in" in line and "CCNET_CACHE" in line


@compiles
def test_numba_cuda_without_its_pth_file_is_refused_in_words(monkeypatch):
    launch.require()
    monkeypatch.delitem(sys.modules, launch.REDIRECTOR)
    with pytest.raises(InputError, match=r"PYTHONPATH.*\.pth.*install it with pip") as error:
        launch.require()
    assert "\n" not in str(error.value)
    assert cuda.try_to_compile((8, 0)) == str(error.value)


class Driver:
    """What the driver was asked to launch: function, shape, stream and the arguments' values."""

    def __init__(self):
        self.launches = []
        self.context = None

    def cuInit(self, flags):
        return (0,)

    def cuDeviceGet(self, index):
        return 0, index

    def cuDevicePrimaryCtxRetain(self, device):
        return 0, f"primary context of {device}"

    def cuCtxSetCurrent(self, context):
        self.context = context
        return (0,)

    def cuModuleLoadData(self, image):
        return 0, image

    def cuModuleGetFunction(self, module, name):
        return 0, (module, name)

    def cuLaunchKernel(self, function, *rest):
        *shape, shared, stream, table, extra = rest
        assert (shared, extra) == (0, 0)
        self.launches.append((function, shape, stream, table))
        return (0,)


def test_a_pass_is_five_launches_with_its_pointers_on_the_current_stream(monkeypatch):
    driver, streams = Driver(), iter((7, 8))
    monkeypatch.setattr(launch, "_driver", lambda: driver)
    monkeypatch.setattr(launch, "machine_code", lambda kernel, arch: (kernel.name, arch))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=next(streams)))
    caches = (launch._prepare, launch._load, launch._context)
    for cache in caches:
        cache.cache_clear()
    inputs = laid_out("last slices", 4, 8)
    try:
        out, attention = cuda.criss_cross(*inputs)
        assert len(driver.launches) <= 5
        assert {stream for _, _, stream, _ in driver.launches} == {7}
        names = [function[0][0].partition("-")[0] for function, *_ in driver.launches]
        assert names[0] == "nt" and names[-2:] == ["nn", "nn"] and "softmax" in names
        entries = {name: entry for ((name, arch), entry), *_ in driver.launches if arch == (8, 6)}
        assert all(entry == b"ccnet_" + name.replace("-", "_").encode() for name, entry in entries.items())
        assert len(entries) == len(set(entries.values())) >= 3
        table = driver.launches[-1][3]
        slots = (ctypes.c_void_p * 3).from_address(table)
        pointers = [ctypes.c_void_p.from_address(slot).value for slot in slots]
        assert pointers == [attention.data_ptr(), inputs[2].data_ptr(), out.data_ptr()]
        # the same launches again are only their pointers and the stream
        again, _ = cuda.criss_cross(*inputs)
        assert [ctypes.c_void_p.from_address(slot).value for slot in slots][2] == again.data_ptr()
        assert driver.launches[-1][2] == 8
        assert driver.context == "primary context of 0"
    finally:
        for cache in caches:
            cache.cache_clear()


@pytest.mark.parametrize("empty", [(0, 4, 8, 3, 4), (2, 4, 8, 0, 4), (2, 4, 8, 3, 0), (2, 4, 0, 3, 4), (2, 0, 8, 3, 4)])
def test_no_grid_with_a_0_reaches_the_driver(monkeypatch, empty):
    launched = []

    def prepare(step, index):
        return lambda pointers, stream: launched.append(step)

    monkeypatch.setattr(launch, "_prepare", prepare)
    monkeypatch.setattr(launch, "_context", lambda index: None)
    monkeypatch.setattr(launch, "_driver", Driver)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    B, c, C, H, W = empty
    query, key, value = (torch.randn(B, n, H, W) for n in (c, c, C))
    out, attention = cuda.criss_cross(query, key, value)
    gradients = cuda.criss_cross_backward(out, query, key, value, attention)
    assert [x.shape for x in (out, *gradients)] == [x.shape for x in (value, query, key, value)]
    assert all(0 not in step.grid for step in launched) and bool(launched) == bool(B * H * W)


def test_what_the_driver_refuses_is_told_by_name():
    with pytest.raises(EnvironmentFailure, match=r"ERROR_INVALID.*model\.implementation=gemm"):
        launch._check((SimpleNamespace(name="ERROR_INVALID"),))


def test_nothing_of_numba_is_loaded_with_the_operators():
    code = "import sys, ccnet_cli.ops.cuda.launch; assert not {'numba', 'numba_cuda'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
