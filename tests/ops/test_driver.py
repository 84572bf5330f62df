"""Launches from torch's tensors to the driver, by cuda.bindings as on a GPU, to a stub of libcuda that this builds."""

import shutil
from importlib.util import find_spec

import driver
import pytest
from kernels import compiles, runs

pytestmark = [compiles, pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")]
FORMS = ["fused", "fused_residual", "fused", "fused", "fused_delta", "fused_backward", "fused_backward"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if find_spec("cuda.bindings") is None:
        pytest.skip("cuda.bindings is not installed")
    path = tmp_path_factory.mktemp("driver")
    driver.build(path)
    return path


def check(answer: dict, c: int, C: int, H: int, W: int, images: int, size: int, aligned: bool) -> None:
    """Every launch has its grid, numbers and pointers, in the device's context and on the current stream."""
    launches, sources = answer["launches"], answer["sources"]
    assert [row["form"] for row in launches] == FORMS
    assert {(row["context"], row["stream"], row["shared"], row["extra"]) for row in launches} == {
        (driver.CONTEXT + driver.DEVICE, driver.STREAM, 0, None)
    }
    # each kernel is loaded once, as machine code
    names = {row["name"] for row in launches}
    assert answer["modules"] == [b"\x7fELF".hex()] * len(names)
    # delta is of an output and its gradient, which are no slices
    assert all(name.endswith("unaligned") != aligned for name in names if "delta" not in name)
    query = sources["projected"]
    inputs = [query, query + size * c, query + 2 * size * c]
    stride, column = launches[0]["numbers"][0], [row["numbers"][-1] for row in launches if row["form"] != "fused_delta"]
    assert stride > 2 * c + C and column == [0, 1] * 3
    for row in launches:
        if row["form"] == "fused_delta":
            assert row["numbers"][1:] == [C, C, images * H * W] and row["grid"] == [-(-images * H * W // 8), 1, 1]
            continue
        assert row["pointers"][:3] == inputs and row["numbers"][:3] == [stride] * 3
        assert row["numbers"][-5:-1] == [H, W, c, C]
        length, lines = (H, W) if row["numbers"][-1] else (W, H)
        assert row["grid"] == [1, lines, images] and row["block"] == [32 * -(-length // 16), 1, 1]
        halves = [*row["pointers"][: 7 if row["form"] == "fused_backward" else 4]]
        assert not aligned or [x for x in halves if x % 16] == []
    rows, added = launches[:2]
    assert (added["pointers"][3], added["pointers"][4], added["pointers"][7]) == (
        rows["pointers"][3],
        sources["x"],
        sources["gamma"],
    )
    assert added["numbers"][3] == stride and added["pointers"][5] == rows["pointers"][5] != added["pointers"][6]
    # the gradients read the logarithms that the columns wrote, and the delta of their output
    columns, delta, *backward = launches[3:]
    assert delta["pointers"][0] == columns["pointers"][3]
    for row in backward:
        assert row["pointers"][7:9] == [columns["pointers"][5], delta["pointers"][2]]
        assert row["pointers"][4:] == backward[0]["pointers"][4:]


@pytest.mark.parametrize(
    ("c", "C", "shift", "aligned"),
    [(16, 72, 0, True), *(pytest.param(*x, False, marks=pytest.mark.slow) for x in ((16, 72, 3), (5, 7, 0)))],
)
def test_a_launch_has_its_arguments_on_the_stream_of_its_device(folder, c, C, shift, aligned):
    answer = driver.run_apart(folder, shape=[2, c, C, 5, 21], dtype="bfloat16", shift=shift, arch=[9, 0], execute=False)
    check(answer, c, C, 5, 21, 2, 2, aligned)


def test_a_launch_that_fails_is_the_drivers_error(folder):
    options = {"shape": [1, 8, 8, 3, 3], "dtype": "bfloat16", "arch": [9, 0], "execute": False}
    answer = driver.run_apart(folder, **options, fails_at=1)
    assert len(answer["launches"]) == 1
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in answer["error"] and "ccnet doctor" in answer["error"]


@runs
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "arch", "shift", "bound"),
    [("bfloat16", [8, 0], 0, 8e-3), ("float16", [9, 0], 3, 2e-3), ("float32", [10, 0], 0, 2e-3)],
)
def test_what_is_launched_computes_the_definition(folder, dtype, arch, shift, bound):
    answer = driver.run_apart(folder, shape=[2, 16, 72, 5, 5], dtype=dtype, shift=shift, arch=arch, execute=True)
    assert [row.get("fault") for row in answer["launches"]] == [None] * len(FORMS)
    check(answer, 16, 72, 5, 5, 2, 4 if dtype == "float32" else 2, shift == 0)
    assert max(answer["errors"]) <= bound, answer["errors"]
