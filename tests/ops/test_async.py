"""Fused attention whose numbers come to shared memory by cp.async and from there by ldmatrix, without a GPU."""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from copies import rewrite
from fused import ROUNDING, Fused
from kernels import compiles, runs
from test_fused import SQUARE, WHOLE, caught

from ccnet_cli import ops
from ccnet_cli.bench import gpu, passes
from ccnet_cli.bench.kernels import plan_fused
from ccnet_cli.bench.meter import Meter
from ccnet_cli.errors import InputError
from ccnet_cli.ops.cuda import attention, launch, plan, steps

# what 16 bytes at once need: whole vectors of channels in every tensor
VECTORS = [
    {"images": 1, "c": 16, "C": 136, "H": 1, "W": 19},
    {"images": 1, "c": 40, "C": 72, "H": 17, "W": 9, "slices": True},
    {"images": 1, "c": 8, "C": 136, "H": 3, "W": 37, "line": 16},
    {"images": 1, "c": 72, "C": 24, "H": 2, "W": 131},
    {"images": 3, "c": 8, "C": 8, "H": 40, "W": 2},
    {"images": 1, "c": 8, "C": 8, "H": 1, "W": 1},
]
HALVES = ("bfloat16", "float16")
RESULTS = ("out", "log", "d_query", "d_key", "d_value")
Change = Callable[[str], str]


def copied(launches: list[steps.Step]) -> list[steps.Step]:
    """The same launches of kernels that copy, where there are such."""

    def change(step: steps.Step) -> steps.Step:
        able = step.kernel.aligned and step.kernel.form != "fused_delta"
        return replace(step, kernel=replace(step.kernel, copies="async")) if able else step

    return [change(step) for step in launches]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give ptxrun kernels that it can execute, compiled anew or changed before; copies come late by default."""
    from ccnet_cli.ops.cuda import build

    whole = build.ptx

    def use(late: bool = True, change: Change = lambda text: text, anew: bool = False) -> None:
        make = lru_cache(whole.__wrapped__) if anew else whole

        def ptx(kernel: steps.Kernel, arch: tuple[int, int]) -> str:
            text = make(kernel, arch)
            return rewrite(change(text), late) if kernel.copies == "async" else text

        monkeypatch.setattr(build, "ptx", ptx)

    use()
    return use


def run_both(options: dict[str, Any], arch: tuple[int, int] = (8, 0)) -> tuple[Fused, Fused]:
    """A case by plain and by copying kernels, neither with a fault."""
    cases = Fused(**options), Fused(**options)
    cases[1].launches = copied(cases[1].launches)
    for case in cases:
        results = case.run(arch)
        assert [(result.faults, result.bank_conflicts) for result in results] == [([], 0)] * len(results), options
        assert case.failures() == [], options
    return cases


def unequal(one: Fused, other: Fused) -> list[str]:
    """Results that differ in a bit."""
    names = RESULTS if one.backward else RESULTS[:2]
    return [name for name in names if one.arrays[name].tobytes() != other.arrays[name].tobytes()]


@runs
@pytest.mark.parametrize("when", ["late", "at once"])
def test_a_pass_is_that_of_plain_kernels_to_the_bit(late, when):
    late(when == "late")
    assert unequal(*run_both({**SQUARE, "backward": False})) == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("when", ["late", "at once"])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_gradients_are_those_of_plain_kernels_to_the_bit(late, when, dtype):
    late(when == "late")
    for options in [SQUARE, *VECTORS]:
        assert unequal(*run_both({**options, "dtype": dtype})) == [], options


@runs
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("arch", [(9, 0), (10, 0)])
def test_other_architectures_have_the_same_bits(late, arch, dtype):
    assert unequal(*run_both({**SQUARE, "dtype": dtype}, arch)) == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_residuals_have_the_same_bits(late, dtype):
    assert unequal(*run_both({**SQUARE, "dtype": dtype, "backward": False, "added": True})) == []


@runs
@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_full_size_has_the_same_bits(late, dtype):
    assert unequal(*run_both({**WHOLE, "dtype": dtype}, (9, 0))) == []


def test_what_is_not_aligned_is_loaded_plainly():
    grid = steps.Grid(1, 5, 7, 0, "bfloat16", largest=plan.LINE, copies="async")
    for aligned, wanted in ((True, "async"), (False, "plain")):
        buffers = [steps.Buffer(name, 72, aligned) for name in ("query", "key", "value", "out")]
        launches = plan.forward(grid, 8, 72, *buffers) + plan.backward(grid, 8, 72, buffers[3], *buffers)
        assert {step.kernel.copies for step in launches if step.kernel.form != "fused_delta"} == {wanted}
    # of a plain kernel everything is as it was, its name too
    kernel = steps.Kernel("fused", "bfloat16", (1, 1, 0), True, 32)
    assert (kernel.name, replace(kernel, copies="async").name) == ("fused-8x8x0-bfloat16", "fused-8x8x0-bfloat16-async")


@pytest.mark.parametrize(("asked", "wanted"), [(None, "plain"), ("", "plain"), ("plain", "plain"), ("async", "async")])
def test_the_environment_chooses(monkeypatch, asked, wanted):
    seen = []
    monkeypatch.setattr(attention, "fits", lambda value: True)
    monkeypatch.setattr(launch, "run", lambda launches, tensors: seen.extend(step.kernel for step in launches))
    monkeypatch.delenv(attention.COPIES, raising=False)
    if asked is not None:
        monkeypatch.setenv(attention.COPIES, asked)
    leaves = [torch.zeros(1, n, 5, 7, dtype=torch.bfloat16).requires_grad_() for n in (8, 8, 16)]
    ops.criss_cross(*leaves, "numba").sum().backward()
    assert [kernel.copies for kernel in seen] == [wanted, wanted, "plain", wanted, wanted]
    planned = [step.kernel.copies for launches in plan_fused(97, 97, 512, "bfloat16").values() for step in launches]
    assert planned == [kernel.copies for kernel in seen]


def test_an_unknown_way_is_refused(monkeypatch):
    monkeypatch.setenv(attention.COPIES, "tma")
    with pytest.raises(InputError, match=r"CCNET_CUDA_COPIES=tma.*plain or async"):
        attention.read_copies()


@pytest.mark.parametrize("before", ["", "async"])
def test_the_bench_has_both_ways_whatever_the_environment_says(monkeypatch, before):
    seen = []

    def look(*_):
        seen.append(attention.read_copies())
        raise RuntimeError("seen")

    monkeypatch.setenv(attention.COPIES, before)
    monkeypatch.setattr(ops, "criss_cross", look)
    for name in ("numba", passes.ASYNC):
        row = passes.measure(gpu.inputs, (1, (5, 7), "bf16", name), Meter(torch.device("cpu"), repeats=1), channels=16)
        assert (row["name"], row["failed"]) == (name, "seen")
    questions = dict(gpu.checks(torch.device("cpu"), ops.Choices()))
    with pytest.raises(RuntimeError, match="seen"):
        questions["parity, asynchronous copies, 2x8x16x5x7"]()
    assert seen == ["plain", "async", "async"] and os.environ[attention.COPIES] == before


# Machine code.


def disassemble(image: bytes) -> str:
    from ccnet_cli.ops.cuda import build

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        command = [build._disassembler(), "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def gate(kernel: steps.Kernel, arch: tuple[int, int]) -> None:
    """Copies and ldmatrix are in it, products in its densest loop; nothing spills, and no more registers than plain."""
    from ccnet_cli.ops.cuda import build

    made, plain = (build.assemble(replace(kernel, copies=copies), arch) for copies in ("async", "plain"))
    assert (made.stack, made.spills, made.shared) == (0, 0, plain.shared), kernel
    assert 0 < made.registers * kernel.threads <= 65536
    assert build.inner_loop(made.image, "HMMA")[0] >= 2 * kernel.sizes[0]
    # what reads and writes 16 bytes at once stands on it
    assert ".shared .align 16 " in build.ptx(kernel, arch)
    code = disassemble(made.image)
    wide, narrow = len(re.findall(r"LDGSTS\S*\.128", code)), len(re.findall(r"LDGSTS", code))
    assert wide > 0 and "LDGDEPBAR" in code and "DEPBAR.LE" in code
    assert (narrow > wide) == ("LDSM" in code) == (kernel.dtype != "float32")
    assert "LDSM" not in code or set(re.findall(r"LDSM\.\S+", code)) == {"LDSM.16.MT88.4"}
    assert "LDGSTS" not in disassemble(plain.image)


@compiles
def test_copies_are_in_machine_code():
    gate(steps.Kernel("fused", "bfloat16", (1, 1, 0), True, 32), (8, 0))


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_nothing_spills(dtype, arch):
    from test_fused import kernels

    for kernel in kernels(dtype):
        if kernel.form != "fused_delta":
            gate(kernel, arch)


# Faults, each planted in one place.


def wrong_buffer(real):
    def make(parts):
        from ccnet_cli.ops.cuda import memory

        begin, other = real(parts), np.int32(4 * parts.tiles * (plan.CUT + 8))
        return memory.inline(
            lambda shared, base, source, channels, line, block, c0: begin(
                shared, np.int32(other - base), source, channels, line, block, c0
            )
        )

    return make


def lanes_exchanged(real):
    def read(builder, address, offset):
        first, second, third, fourth = real(builder, address, offset)
        return [first, third, second, fourth]

    return read


TEXTS: dict[str, Change] = {
    "no wait": lambda text: text.replace("cp.async.wait_group 0;", ""),
    "one group too late": lambda text: text.replace("cp.async.wait_group 0;", "cp.async.wait_group 1;"),
    "no group": lambda text: text.replace("cp.async.commit_group;", ""),
    "wait behind the barrier": lambda text: re.sub(
        r"(cp\.async\.wait_group 0;)(.*?)(\tbar(?:rier)?\.sync[^\n]*)", r"\2\3\n\1", text, flags=re.DOTALL
    ),
}
SOURCES = {
    "copied into the other buffer": ("fused", "_copies", wrong_buffer),
    "lanes of ldmatrix exchanged": ("words", "_read_turned", lanes_exchanged),
}
# of two cuts of channels
SMALL = {**SQUARE, "backward": False}


@runs
@pytest.mark.parametrize("fault", [None, *TEXTS])
def test_a_copy_that_nobody_waits_for_is_caught(late, fault):
    case = Fused(**SMALL)
    case.launches = copied(case.launches)
    if fault:
        late(change=TEXTS[fault])
    assert bool(caught(case)) == bool(fault)


@runs
@pytest.mark.slow
@pytest.mark.parametrize("fault", SOURCES)
def test_a_fault_in_copying_kernels_is_caught(late, fault, monkeypatch):
    from ccnet_cli.ops.cuda import fused, words

    module, name, change = SOURCES[fault]
    module = {"words": words, "fused": fused}[module]
    monkeypatch.setattr(module, name, change(getattr(module, name)))
    # what was made before has the right one in it
    words.gather_copied.cache_clear()
    late(anew=True)
    case = Fused(**SMALL)
    case.launches = copied(case.launches)
    try:
        assert caught(case)
    finally:
        words.gather_copied.cache_clear()
