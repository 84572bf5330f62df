"""The gathering on tensor cores without a GPU: simulated, as compiled PTX run by ptxrun, and as machine code."""

import os
import re
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
import torch
from kernels import ROOT, Gathering, compiles, execute, runs, simulate_apart, tf32

from ccnet_cli import ops
from ccnet_cli.errors import InputError
from ccnet_cli.ops import cuda
from ccnet_cli.ops.cuda import launch, steps

SIMULATED = [
    {"images": 1, "C": 5, "H": 2, "W": 3, "small": 1},
    {"images": 1, "C": 36, "H": 1, "W": 2, "small": 1, "dtype": "bfloat16"},
]
# more than one tile of the summed axis
LONGER = [
    {"images": 1, "C": 8, "H": 1, "W": 17, "small": 1},
    {"images": 2, "C": 3, "H": 34, "W": 1, "small": 1, "dtype": "bfloat16"},
]
# the type that only the slow tests have, and whether all of it is slow
RAGGED = [
    ({"images": 1, "C": 8, "H": 5, "W": 7}, "bfloat16", False),
    ({"images": 2, "C": 7, "H": 11, "W": 3}, "float32", False),
    ({"images": 1, "C": 20, "H": 17, "W": 9, "wide": 44}, "bfloat16", False),
    ({"images": 1, "C": 5, "H": 1, "W": 19}, "", True),
    ({"images": 1, "C": 6, "H": 33, "W": 1}, "", True),
    ({"images": 1, "C": 12, "H": 4, "W": 8, "tight": True}, "", True),
    ({"images": 1, "C": 1, "H": 1, "W": 1}, "", True),
    ({"images": 1, "C": 132, "H": 2, "W": 131}, "", True),
    ({"images": 1, "C": 64, "H": 70, "W": 3}, "", True),
]
DTYPES = ["float32", "bfloat16"]


def gather(made: Gathering, arch: tuple[int, int] = (8, 0)) -> list:
    return execute(made.launches, made.arrays, arch, written=("attention", "value"))


def failures(errors: dict[str, float]) -> list[str]:
    # not (<=), so that nan, which the output was filled with, is a failure
    return [f"{name}: {error:.1e} of its bound" for name, error in errors.items() if not error <= 1]


@compiles
@pytest.mark.parametrize("cases", [SIMULATED, pytest.param(LONGER, marks=pytest.mark.slow)], ids=["small", "longer"])
def test_simulated_it_is_the_definition_within_rounding(cases):
    errors = simulate_apart([{"tensor": True} | options for options in cases])
    assert [failures(found) for found in errors] == [[]] * len(cases)


@runs
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        # aligned kernels in one type, the others in the other; the slow tests have both
        pytest.param(options, dtype, marks=pytest.mark.slow if slow or dtype == skipped else ())
        for options, skipped, slow in RAGGED
        for dtype in DTYPES
    ],
    ids=str,
)
def test_compiled_it_is_the_definition_within_rounding(options, dtype):
    made = Gathering(**options, dtype=dtype)
    for result in gather(made):
        assert result.faults == [] and result.bank_conflicts == 0
    assert failures(made.errors()) == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_architecture_computes_the_same(dtype):
    made = Gathering(**RAGGED[0][0], dtype=dtype)
    gather(made, (9, 0))
    assert failures(made.errors()) == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("arch", [(8, 0), (9, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_full_size_is_the_definition_without_a_fault(dtype, arch):
    made = Gathering(1, 512, 97, 97, dtype)
    results = gather(made, arch)
    assert failures(made.errors()) == []
    assert sum(result.bank_conflicts for result in results) == 0
    assert all(result.store_efficiency == 1 for result in results)


@compiles
@pytest.mark.parametrize(
    ("arch", "dtype", "sizes", "aligned"),
    [
        ((8, 0), "float32", (4, 2, 7), True),
        *(
            pytest.param(arch, dtype, sizes, aligned, marks=pytest.mark.slow)
            for arch in [(8, 0), (9, 0), (10, 0)]
            for dtype in DTYPES
            for sizes in [(4, 2, 7), (4, 2, 6), (4, 2, 5), (2, 2, 4), (1, 2, 2)]
            for aligned in (True, False)
        ),
    ],
)
def test_nothing_spills_and_a_product_reads_vectors(arch, dtype, sizes, aligned):
    from ccnet_cli.ops.cuda import build

    kernel = steps.Kernel("tensor", dtype, sizes, aligned, 32)
    made, text = build.assemble(kernel, arch), build.ptx(kernel, arch)
    assert (made.stack, made.spills) == (0, 0)
    assert 0 < made.registers <= 128
    assert ("ld.global.v" in text and "st.global.v4" in text) == aligned
    # four vectors of value and one of attention for each eight pixels, which are four products
    assert build.inner_loop(made.image, "HMMA") == (4 * sizes[2], 4 + sizes[2])
    assert set(re.findall(r"ld\.shared\.(\w+)", text)) == {"v4"}


# Faults, each planted in one place; the comparison (with the nan from before) or a check of ptxrun must find it.


def _uncut(real):
    return lambda values, count: values


def _rows_swapped(real):
    def multiply(left, right, total):
        return real((left[1], left[0], left[2], left[3]), right, total)

    return multiply


def _unswizzled(real):
    return lambda word, vector: np.int32(vector << 2)


def _overwrite(real):
    return lambda values, others: values


def _unrounded(real):
    return lambda value: value


def _halved(step):
    tiles, lines, images = step.grid
    return steps.Step(step.kernel, (tiles, lines - 1, images), step.arguments)


FAULTS = {
    "fragment rows swapped": ("multiply_tf32", _rows_swapped),
    "tail of the summed axis kept": ("_cut", _uncut),
    "columns that do not add": ("add", _overwrite),
    "rows swizzled by the writer alone": ("_swizzle", _unswizzled),
    "inputs not rounded": ("tf32", _unrounded),
    "dropped barrier": None,
    "unwritten line": None,
}


@runs
@pytest.mark.parametrize(
    # those in the sources are compiled anew
    "fault",
    [pytest.param(x, marks=pytest.mark.slow) if fault else x for x, fault in FAULTS.items()],
)
def test_a_planted_fault_is_caught(fault, monkeypatch):
    import ptxrun

    from ccnet_cli.ops.cuda import build, memory, tensor

    made = Gathering(1, 8, 5, 19)
    if FAULTS[fault]:
        name, function = FAULTS[fault]
        monkeypatch.setattr(tensor, name, memory.inline(function(getattr(tensor, name))))
    # the kernels compiled before have the right one in them
    whole = lru_cache(build.ptx.__wrapped__) if FAULTS[fault] else build.ptx
    dropped = fault == "dropped barrier"
    monkeypatch.setattr(
        build, "ptx", lambda *x: re.sub(r"\tbar\.sync[^\n]*\n", "", whole(*x)) if dropped else whole(*x)
    )
    if fault == "unwritten line":
        made.launches = [_halved(step) for step in made.launches]
    caught = ""
    try:
        gather(made)
    except ptxrun.KernelFault as found:
        caught = str(found)
    assert caught or failures(made.errors())
    assert ("race" in caught) == dropped


def test_words_are_rounded_as_the_hardware_says():
    code = """
from ccnet_cli.ops.cuda import fragments
import numpy as np
x = np.array([1 + 2**-11, 1 + 2**-11 - 2**-23, -1 - 3 * 2**-11, 2.0**-130, 3e38, np.inf], np.float32)
print(*[float(fragments.tf32(value)) for value in x])
word = fragments.bf16(np.float32(1 + 2**-8), np.float32(1 + 3 * 2**-8))
print(hex(int(word.view(np.uint32))))
"""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    numbers, word = done.stdout.splitlines()
    x = np.array([1 + 2**-11, 1 + 2**-11 - 2**-23, -1 - 3 * 2**-11, 2.0**-130, 3e38])
    assert [float(number) for number in numbers.split()] == [*tf32(x), np.inf]
    assert numbers.startswith(f"{1 + 2**-10} 1.0 {-1 - 2**-9} ")
    # halves to even: down to 1, up to 1 + 4 * 2**-8
    assert word == "0x3f823f80"


# It is reached only where it is asked for


@pytest.fixture
def launched(monkeypatch) -> list:
    seen = []
    monkeypatch.setattr(launch, "run", lambda launches, tensors: seen.extend(launches))
    return seen


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.ones(1, n, 3, 5, dtype=dtype).to(memory_format=torch.channels_last) for n in (4, 4, 8)]


def test_no_operator_asks_for_it(launched, monkeypatch):
    monkeypatch.setitem(ops.IMPLEMENTATIONS, "numba", ops.Implementation(cuda))
    leaves = [x.requires_grad_() for x in inputs()]
    ops.criss_cross(*leaves, "numba").sum().backward()
    assert len(launched) > 5 and {step.kernel.form for step in launched}.isdisjoint({"tensor"})
    launched.clear()
    cuda.criss_cross(*inputs(), tensor=True)
    assert [step.kernel.form for step in launched] == ["nt", "softmax", "tensor", "tensor"]


def test_float16_is_refused(launched):
    with pytest.raises(InputError, match=r"tensor cores for float16.*TF32"):
        cuda.criss_cross(*inputs(torch.float16), tensor=True)
    assert launched == []


@compiles
def test_an_architecture_without_them_is_refused():
    from ccnet_cli.ops.cuda import build

    with pytest.raises(InputError, match=r"tensor cores of sm_75.*sm_80") as caught:
        build.ptx(steps.Kernel("tensor", "float32", (4, 2, 7), True, 32), (7, 5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("length", "parts"), [(97, 7), (128, 4), (129, 5), (1, 4)])
def test_a_line_has_tiles_with_little_waste(length, parts):
    grid = steps.Grid(1, length, length, steps.pad_length(length), tensor=True)
    buffers = [steps.Buffer(name, 512) for name in ("left", "right", "out")]
    for step in steps.gathering(grid, *buffers, 512):
        assert step.kernel.sizes == (4, 2, parts)
        assert step.grid[0] == 4 * -(-length // (16 * parts)) and step.kernel.threads == 256
    assert steps.gathering(grid, *buffers, 512)[0].kernel.name == f"tensor-128x{16 * parts}-float32"
