"""What `ccnet bench kernels` says of the CUDA kernels, without a GPU."""

import json
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from kernels import PTXRUN

from ccnet_cli.bench import kernels
from ccnet_cli.errors import InputError
from ccnet_cli.ops.cuda import launch

compiles = pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed: ccnet-cli[cuda13]")


@pytest.mark.parametrize(("dtype", "tf32"), [("bfloat16", ""), ("float32", " tf32")])
def test_floors_are_modelled_for_three_gpus_beside_the_librarys(dtype, tf32):
    rows = kernels._floors(97, 97, 512, dtype)
    by_name = {(row["gpu"], row["work"], row["formulation"]): row for row in rows}
    names = {name for gpu, work, name in by_name if gpu == "H100" and work == "forward"}
    assert {f"fused{tf32}", f"flash{tf32}", f"gemm{tf32}"} <= names
    one = by_name["H100", "forward", f"fused{tf32}"]
    # as ptxrun counts of two images in bfloat16: 107 MB and 257 MB
    assert one["bytes"] == pytest.approx((2 if tf32 else 1) * 107e6 / 2, rel=0.02)
    back = by_name["H100", "backward", f"fused{tf32}"]["bytes"]
    assert back == pytest.approx((2 if tf32 else 1) * 257e6 / 2, rel=0.05) and back <= 2.5 * one["bytes"]
    assert one["modelled_ms"] == pytest.approx(1000 * one["bytes"] / 3.35e12)


@compiles
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_report_counts_what_a_pass_must_do(compiled, monkeypatch):
    counters = compiled and (PTXRUN / "ptxrun").is_dir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(PTXRUN)] if counters else sys.path)
    if not compiled:
        from ccnet_cli.ops.cuda import build

        code = SimpleNamespace(image=b"", registers=100, stack=0, spills=0, shared=100)
        monkeypatch.setattr(launch, "compile_to_cache", lambda kernel, arch: code)
        monkeypatch.setattr(build, "inner_loop", lambda image, operation: (128, 8))
    found = kernels.analyse(["sm_80"], [(5, 7)], channels=32, counters=counters).to_mapping()
    json.dumps(found, allow_nan=False)
    rows = found["kernels"]
    assert len({(row["kernel"], row["arch"]) for row in rows}) == len(rows)
    products = 2 * 35 * 12 * (4 + 32)
    # forward once, backward each product twice, the gathering once more on tensor cores
    on_chip = [row for row in rows if row["kernel"].startswith("fused")]
    rows = [row for row in rows if row not in on_chip]
    assert sum(row["flops"] for row in rows) == 3 * products + 2 * 35 * 12 * 32
    # forward; backward energies, pulls and three gradients, and delta
    assert sum(row["flops"] for row in on_chip) == products + 2 * 35 * 12 * (3 * 4 + 2 * 32) + 2 * 35 * 32
    for row in on_chip:
        assert row["stack"] == row["spills"] == 0 < row["occupancy"] <= 1
        assert (row["hmma"] > 0) == (row["ffma"] == 0) == (not row["kernel"].startswith("fused_delta"))
    for row in rows:
        assert row["arch"] == "sm_80" and row["stack"] == row["spills"] == 0 < row["registers"] and row["shared"] > 0
        if compiled:
            form = row["kernel"].partition("-")[0]
            expected = {"softmax": (0, 0, 0), "softmax_backward": (0, 0, 0), "tensor": (0, 8, 6)}.get(form, (128, 0, 8))
            assert (row["ffma"], row["hmma"], row["lds"]) == expected
        assert 0 < row["occupancy"] <= 1
    forward = next(row for row in found["floors"] if row["work"] == "forward" and row["formulation"] == "numba")
    # query and key twice, energies written once, the softmax's pass, attention and value twice, out three times
    energies, padded = 35 * 12, 35 * 16
    assert forward["bytes"] == 4 * (
        2 * 2 * 35 * 4 + energies + energies + padded + energies + 2 * 35 * 32 + 3 * 35 * 32
    )
    assert forward["flops"] == products
    assert {row["gpu"] for row in found["floors"]} == {"A100", "H100", "B200"}
    for count in found["counters"]:
        assert count["load_sector_bytes"] > 0 and count["store_sector_bytes"] > 0 and count["bank_conflicts"] >= 0
    assert [(count["work"], count["kernel"].partition("-")[0]) for count in found["counters"]] == (
        [("forward", form) for form in ("nt", "softmax", "nn", "nn")]
        + [("backward", form) for form in ("nt", "softmax_backward", "tn", "tn", "nn", "nn", "tn", "tn")]
        + [(kernels.TENSOR, "tensor")] * 2
        if counters
        else []
    )


def test_occupancy_is_what_the_scarcest_resource_allows():
    # 128 registers: 65536 / (128 * 256) = 2 blocks of 8 of the 64 warps
    assert kernels.occupancy(256, 128, 16896, (8, 0)) == 16 / 64
    assert kernels.occupancy(256, 32, 0, (8, 0)) == 1
    assert kernels.occupancy(256, 32, 40 << 10, (7, 5)) == 8 / 32
    # 33 registers are handed out as 40: 65536 / (40 * 256) = 6 blocks
    assert kernels.occupancy(256, 33, 2048, (8, 0)) == 48 / 64
    assert kernels.occupancy(1024, 64, 4096, (8, 6)) == 32 / 48


def test_what_cannot_be_compiled_or_counted_is_refused(monkeypatch):
    for name in ("sm_11", "80", "sm_8"):
        with pytest.raises(InputError, match=f"--arch {name}.*sm_80"):
            kernels.analyse([name])
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install"):
        kernels.analyse(["sm_80"])
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "ptxrun", raising=False)
    with pytest.raises(InputError, match="ptxrun"):
        kernels._count((8, 0), (2, 2), 8, "float32")
