"""The report of `ccnet bench gpu`: its questions asked of gemm on the CPU, and what it makes of the answers."""

import json

import pytest
import torch

from ccnet_cli import cli, ops
from ccnet_cli.bench import attention as bench
from ccnet_cli.bench import gpu
from ccnet_cli.errors import InputError

CPU = torch.device("cpu")
SMALL = [shape for shape in gpu.SHAPES if shape[3] * shape[4] < 1000]


def report(passed: bool = True, **more: object) -> gpu.Report:
    row = {"name": "numba", "forward": {"median": 1.5}, "both": {"median": 4.0}, "bandwidth": 900.0, "rate": 12.0}
    timing = {"size": [97, 97], "precision": "fp32", "rows": [row]}
    fields = {"environment": {}, "gpu": {}, "checks": (gpu.Check("parity", passed, "1e-6"),), "choices": {}}
    return gpu.Report(**fields | {"timings": (timing,)} | more)


@pytest.mark.parametrize("dtype", gpu.TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_what_is_right_passes(shape, dtype):
    passed, found = gpu.parity(gpu.inputs(shape, dtype, CPU), "gemm")
    assert passed, found
    assert [name in found for name in gpu.RESULTS] == [True] * 4


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("wrong", [1.0003, float("nan")])
def test_what_is_wrong_fails_whichever_result_it_is(number, wrong, monkeypatch):
    whole = gpu.step

    def spoilt(tensors, implementation):
        found = whole(tensors, implementation)
        if implementation == "gemm":
            found[number] = found[number] * wrong
        return found

    monkeypatch.setattr(gpu, "step", spoilt)
    assert gpu.parity(gpu.inputs((1, 5, 7, 33, 20), torch.float32, CPU), "gemm")[0] is False


def test_equality_is_of_every_bit():
    first, second = ([torch.ones(3), torch.ones(2)] for _ in range(2))
    assert gpu.equal(first, second) == (True, "equal to the bit")
    second[1][1] = 1 + 2**-23
    assert gpu.equal(first, second) == (False, "gradient of query differ")


def test_an_error_is_an_answer_that_does_not_pass():
    def fail():
        raise RuntimeError("CUDA driver: CUDA_ERROR_LAUNCH_FAILED\nand more")

    check = gpu.answered("graph", fail)
    assert check == gpu.Check("graph", False, "RuntimeError: CUDA driver: CUDA_ERROR_LAUNCH_FAILED")
    assert gpu.answered("same", lambda: (True, "yes")) == gpu.Check("same", True, "yes")


def test_every_shape_and_type_is_asked_for():
    names = [name for name, _ in gpu.checks(CPU, ops.Choices())]
    assert len(names) == len(set(names)) == len(gpu.SHAPES) * 3 + 4
    assert "parity 1x64x512x97x97 bfloat16" in names and "graph capture" in names
    questions = dict(gpu.checks(CPU, ops.Choices()))
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "parity", lambda tensors, name: asked.append((tensors[2].shape, tensors[2].dtype, name)))
        questions["parity 2x8x16x5x7 float16"]()
    assert asked == [((2, 16, 5, 7), torch.float16, "numba")]


def test_tensor_cores_are_asked_and_what_is_not_rounded_as_theirs_fails(monkeypatch):
    names = [name for name, _ in gpu.tensor_checks(CPU)]
    assert len(names) == len(set(names)) == len(gpu.SHAPES) * 2 + 1
    dropped = 0

    def gather(query, key, value, tensor):
        assert tensor
        _, _, H, W = value.shape
        arm, width = gpu.cuda.attention_width(H, 0), gpu.cuda.attention_width(H, W)
        weights = ops.affinity(query.float(), key.float(), "reference").softmax(1)
        attention = torch.full((value.shape[0], H, W, width), torch.nan)
        attention[..., :H] = weights[:, :H].permute(0, 2, 3, 1)
        attention[..., arm : arm + W] = weights[:, H:].permute(0, 2, 3, 1)
        weights[:, weights.shape[1] - dropped :] = 0
        out = ops.aggregate(gpu.rounded(weights, value.dtype), gpu.rounded(value.float(), value.dtype), "reference")
        return out.to(value.dtype), attention

    monkeypatch.setattr(gpu.cuda, "criss_cross", gather)
    for dtype in gpu.TENSOR:
        tensors = gpu.inputs((1, 5, 7, 33, 20), dtype, CPU)
        passed, found = gpu.gathered(tensors)
        assert passed, found
        dropped = 1
        assert gpu.gathered(tensors)[0] is False
        dropped = 0
    x = torch.tensor([1 + 2**-11, 1 + 2**-11 - 2**-23, -1 - 3 * 2**-11])
    assert gpu.rounded(x, torch.float32).tolist() == [1 + 2**-10, 1, -1 - 2**-9]


def test_timings_that_fail_are_told_and_counted(monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    monkeypatch.setattr(bench, "attention", fail)
    timing = gpu.timed((97, 97), "bf16", "cuda")
    assert timing == {"size": [97, 97], "precision": "bf16", "error": "out of memory"}
    assert report().failed == 0 and report(timings=(timing,)).failed == 1 and report(False).failed == 1


def test_without_a_gpu_it_is_refused_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "gpu", "-o", str(tmp_path / "r.json")])
    printed = capsys.readouterr()
    assert caught.value.code == 2 and printed.out == "" and len(printed.err.splitlines()) == 1
    assert "no GPU" in printed.err and not list(tmp_path.iterdir())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="cpu: not a GPU"):
        gpu.report("cpu")


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_report_is_written_whatever_it_says(passed, code, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "report", lambda device: report(passed))
    path = tmp_path / "r.json"
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "gpu", "-o", str(path)])
    assert caught.value.code == code
    assert json.loads(path.read_text())["failed"] == 1 - passed
    printed = capsys.readouterr()
    assert "numba" in printed.out and ("1 checks failed" in printed.err) == (not passed)


@pytest.mark.gpu
@pytest.mark.slow
def test_a_gpu_passes():
    found = gpu.report()
    json.dumps(found.to_mapping(), allow_nan=False)
    assert found.failed == 0, found
    assert len(found.timings) == 4 and set(found.choices.values()) <= set(ops.implementations("cuda"))
