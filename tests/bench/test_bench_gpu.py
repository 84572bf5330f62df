"""The report of `ccnet bench gpu`: its questions asked of gemm on the CPU, and what it makes of the answers."""

import json
from types import SimpleNamespace

import pytest
import torch

from ccnet_cli import cli, ops
from ccnet_cli.bench import attention as bench
from ccnet_cli.bench import gpu, passes
from ccnet_cli.bench.meter import Meter
from ccnet_cli.bench.report import Report, Spread
from ccnet_cli.bench.request import Run, Work
from ccnet_cli.errors import InputError
from ccnet_cli.ops import reference

CPU = torch.device("cpu")
SMALL = [shape for shape in gpu.SHAPES if shape[3] * shape[4] < 1000]


def report(passed: bool = True, **more: object) -> Report:
    row = {"name": "numba", "forward": Spread(1.5, 1, 2), "both": Spread(4, 3, 5), "bandwidth": 900.0, "rate": 12.0}
    timing = {"size": (97, 97), "precision": "fp32", "rows": [row]}
    check = {"name": "parity", "passed": passed, "found": "1e-6"}
    values = {"environment": {}, "gpu": {}, "checks": [check], "choices": {}, "timings": [timing], "tensor": {}}
    return gpu.report(values | more)


@pytest.mark.parametrize("dtype", gpu.TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_what_is_right_passes(shape, dtype):
    passed, found = gpu.parity(gpu.inputs(shape, dtype, CPU), "gemm")
    assert passed, found
    assert [name in found for name in gpu.RESULTS] == [True] * 4


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("wrong", [1.0003, float("nan")])
def test_what_is_wrong_fails_whichever_result_it_is(number, wrong, monkeypatch):
    whole = gpu.run_step

    def spoilt(tensors, implementation):
        found = whole(tensors, implementation)
        if implementation == "gemm":
            found[number] = found[number] * wrong
        return found

    monkeypatch.setattr(gpu, "run_step", spoilt)
    assert gpu.check_parity(gpu.inputs((1, 5, 7, 33, 20), torch.float32, CPU), "gemm")[0] is False


@pytest.mark.parametrize(("error", "passed"), [(1e-3, True), (3e-3, False)])
def test_tf32_is_on_and_has_a_tolerance_of_its_own(error, passed, monkeypatch):
    seen = []

    def rounded(tensors, implementation):
        seen.append((implementation, torch.backends.cuda.matmul.allow_tf32))
        return [torch.full((3,), 1.0 if implementation == "reference" else 1 + error)] * 4

    monkeypatch.setattr(gpu, "run_step", rounded)
    question = dict(gpu.tensor_checks(CPU))["parity 2x8x16x5x7 tf32"]
    assert question()[0] is passed and ("numba", True) in seen


def test_equality_is_of_every_bit():
    first, second = ([torch.ones(3), torch.ones(2)] for _ in range(2))
    assert gpu.check_equal(first, second) == (True, "equal to the bit")
    second[1][1] = 1 + 2**-23
    assert gpu.check_equal(first, second) == (False, "gradient of query differ")


def test_an_error_is_an_answer_that_does_not_pass():
    def fail():
        raise RuntimeError("CUDA driver: CUDA_ERROR_LAUNCH_FAILED\nand more")

    check = gpu.answer("graph", fail)
    found = "RuntimeError: CUDA driver: CUDA_ERROR_LAUNCH_FAILED"
    assert check == {"name": "graph", "passed": False, "found": found}
    assert gpu.answer("same", lambda: (True, "yes")) == {"name": "same", "passed": True, "found": "yes"}


def test_every_shape_and_type_is_asked_for():
    names = [name for name, _ in gpu.checks(CPU, ops.Choices())]
    assert len(names) == len(set(names)) == len(gpu.SHAPES) * 3 + 3 + 7
    assert {"parity 1x64x512x97x97 bfloat16", "graph capture bfloat16", "measured choice"} <= {*names}
    questions = dict(gpu.checks(CPU, ops.Choices()))
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gpu, "check_parity", lambda tensors, name: asked.append((tensors[2].shape, tensors[2].dtype, name))
        )
        questions["parity 2x8x16x5x7 float16"]()
    assert asked == [((2, 16, 5, 7), torch.float16, "numba")]


def test_tensor_cores_are_asked_and_what_is_not_rounded_as_theirs_fails(monkeypatch):
    names = [name for name, _ in gpu.tensor_checks(CPU)]
    assert len(names) == len(set(names)) == len(gpu.SHAPES) * 3 + 1
    dropped = 0

    def gather(query, key, value, tensor):
        assert tensor and query.dtype == key.dtype == torch.float32
        _, _, H, W = value.shape
        arm, width = gpu.cuda.attention_width(H, 0), gpu.cuda.attention_width(H, W)
        weights = ops.affinity(query.float(), key.float(), "reference").softmax(1)
        attention = torch.full((value.shape[0], H, W, width), torch.nan)
        attention[..., :H] = weights[:, :H].permute(0, 2, 3, 1)
        attention[..., arm : arm + W] = weights[:, H:].permute(0, 2, 3, 1)
        weights[:, weights.shape[1] - dropped :] = 0
        out = ops.aggregate(
            gpu.round_as_tensor_cores(weights, value.dtype),
            gpu.round_as_tensor_cores(value.float(), value.dtype),
            "reference",
        )
        return out.to(value.dtype), attention

    monkeypatch.setattr(gpu.cuda, "criss_cross", gather)
    for dtype in gpu.TENSOR:
        tensors = gpu.inputs((1, 5, 7, 33, 20), dtype, CPU)
        passed, found = gpu.check_gathering(tensors)
        assert passed, found
        dropped = 1
        assert gpu.check_gathering(tensors)[0] is False
        dropped = 0
    x = torch.tensor([1 + 2**-11, 1 + 2**-11 - 2**-23, -1 - 3 * 2**-11])
    assert gpu.round_as_tensor_cores(x, torch.float32).tolist() == [1 + 2**-10, 1, -1 - 2**-9]


def test_timings_that_fail_are_told_and_counted(monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    monkeypatch.setattr(bench, "measure", fail)
    timing = gpu.time_attention((97, 97), "bf16", "cuda")
    assert timing == {"size": (97, 97), "precision": "bf16", "error": "out of memory"}
    failed = (report(), report(timings=[timing]), report(False), report(False, timings=[timing, timing]))
    assert [one.values["failed"] for one in failed] == [0, 1, 1, 3]


def test_without_a_gpu_it_is_refused_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "gpu", "-o", str(tmp_path / "r.json")])
    printed = capsys.readouterr()
    assert caught.value.code == 2 and printed.out == "" and len(printed.err.splitlines()) == 1
    assert "no GPU" in printed.err and not list(tmp_path.iterdir())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="cpu: not a GPU"):
        gpu.examine("cpu")


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_report_is_written_whatever_it_says(passed, code, monkeypatch, tmp_path, capsys):
    result = report(passed)
    monkeypatch.setattr(gpu, "examine", lambda device, sizes, save: result)
    path = tmp_path / "r.json"
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "gpu", "-o", str(path)])
    assert caught.value.code == code
    assert json.loads(path.read_text())["failed"] == 1 - passed
    printed = capsys.readouterr()
    assert "numba" in printed.out and ("1 checks failed" in printed.err) == (not passed)


def test_the_report_is_saved_after_every_row(monkeypatch):
    saved = []
    device = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(gpu.models, "device", lambda name: device)
    monkeypatch.setattr(gpu, "inputs", lambda *case: ())
    monkeypatch.setattr(gpu.ops, "criss_cross", lambda *tensors: None)
    monkeypatch.setattr(gpu, "environment", lambda device, processes: {})
    monkeypatch.setattr(gpu, "_properties", lambda device: {})
    monkeypatch.setattr(gpu, "checks", lambda *_: [(name, lambda: (True, "")) for name in "ab"])
    timing = {"size": (5, 7), "precision": "fp32", "error": "out of memory"}
    monkeypatch.setattr(gpu, "time_attention", lambda *_: timing)
    monkeypatch.setattr(gpu.passes, "cases", lambda sizes: [1, 2])
    monkeypatch.setattr(gpu.passes, "measure", lambda inputs, case, meter: {"name": case, "failed": "out of memory"})
    monkeypatch.setattr(gpu, "whole_models", lambda device: {"model": lambda: 1 / 2, "training": fail_for_memory})
    done = gpu.examine(sizes=[(5, 7)], save=lambda values: saved.append(json.loads(json.dumps(values))))
    parts = [[len(x[name]) for name in ("checks", "passes", "timings", "rest")] for x in saved]
    assert parts[:4] == [[1, 0, 0, 2], [2, 0, 0, 2], [2, 1, 0, 2], [2, 2, 0, 2]]
    assert parts[4:] == [[2, 2, 1, 2], [2, 2, 2, 2], [2, 2, 3, 2], [2, 2, 3, 3], [2, 2, 3, 4]]
    rest = done.values["rest"]
    # there is no nvidia-smi here, and sm_75 has no fused kernels
    assert all("error" in rest[name] for name in ("clocks", "compile"))
    assert (rest["model"], rest["training"]) == (0.5, {"error": "out of memory"})
    assert done.values["failed"] == 5


def fail_for_memory():
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried")


def test_the_cases_of_one_pass_are_every_batch_size_precision_and_formulation():
    cases = passes.cases(gpu.SIZES)
    assert len(cases) == len(set(cases)) == 3 * 3 * (3 * 5 - 1)
    assert cases[0] == (2, (97, 97), "bf16", "gemm") and {case[0] for case in cases} == {1, 2, 8}


@pytest.mark.parametrize("name", [name for name in passes.FORMULATIONS if "numba" not in name])
def test_one_pass_is_measured_and_compared_with_float64(name):
    before = torch.get_float32_matmul_precision()
    row = passes.measure(gpu.inputs, (1, (5, 7), "fp32", name), Meter(CPU, repeats=1), channels=16)
    assert "failed" not in row and row["error"] < 2e-5 and row["memory"] > 0
    assert row["both"].median > 0 and row["kernels"] == [] and torch.get_float32_matmul_precision() == before
    tables = report(passes=[row]).sheets()
    assert any(name in cells for _, _, rows in tables for cells in rows)


def test_a_formulation_of_one_pass_that_fails_is_a_row_with_its_reason(monkeypatch):
    monkeypatch.setattr(passes, "make_pass", lambda name, tensors: fail_for_memory())
    row = passes.measure(gpu.inputs, (1, (5, 7), "tf32", "gemm"), Meter(CPU, repeats=1), channels=16)
    assert row["failed"] == "out of memory" and report(passes=[row]).values["failed"] == 1


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_products_are_rounded_as_a_row_says(precision):
    cudnn = torch.backends.cudnn.allow_tf32
    with passes.rounding(precision):
        assert torch.get_float32_matmul_precision() == ("highest" if precision == "fp32" else "high")
        assert torch.backends.cudnn.allow_tf32 == (precision != "fp32")
    assert torch.backends.cudnn.allow_tf32 == cudnn


def test_both_ways_of_gemm_have_the_same_gradients():
    tensors = gpu.inputs((1, 2, 16, 5, 7), torch.float32, CPU)
    plain, padded = (passes.make_pass(name, tensors).both() for name in ("gemm", passes.UNPADDED))
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-5, atol=1e-5)


def test_a_formulation_that_is_wrong_is_dropped_alone_and_counted(monkeypatch):
    wrong = SimpleNamespace(**vars(reference) | {"aggregate": lambda *x: 2 * reference.aggregate(*x)})
    monkeypatch.setitem(ops.IMPLEMENTATIONS, "wrong", ops.Implementation(wrong))
    monkeypatch.setattr(gpu, "ROWS", ("reference", "wrong", "gemm"))
    monkeypatch.setattr(gpu, "Run", lambda device, repeats: Run(device, settling=0))
    monkeypatch.setattr(gpu, "Work", lambda size: Work(size, channels=16))
    before = torch.backends.cudnn.allow_tf32
    timing = gpu.time_attention((5, 7), "fp32", "cpu")
    assert torch.backends.cudnn.allow_tf32 == before
    assert [row["name"] for row in timing["rows"]] == ["reference", "gemm"]
    assert [row["name"] for row in timing["dropped"]] == ["wrong"] and "differs" in timing["dropped"][0]["why"]
    assert report(timings=[timing]).values["failed"] == 1
    with pytest.raises(RuntimeError, match="wrong differs"):
        bench.measure(Work((5, 7), channels=16), Run("cpu", settling=0), gpu.ROWS)


@pytest.mark.gpu
@pytest.mark.slow
def test_a_gpu_passes():
    values = gpu.examine().to_mapping()
    json.dumps(values, allow_nan=False)
    assert values["failed"] == 0, values
    assert len(values["timings"]) == 9 and set(values["choices"].values()) <= set(ops.implementations("cuda"))
