"""The report on a machine, with and without what the CUDA kernels need."""

import json
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from ccnet_cli import doctor
from ccnet_cli.ops.cuda import launch


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed: ccnet-cli[cuda13]")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_tells_that_kernels_compile_all_the_same():
    found = doctor.report()
    json.dumps(found, allow_nan=False)
    assert found["devices"] == [] and found["kernels"] == {"sm_80": "compiles"}
    assert found["torch"] == torch.__version__ and found["numba_cuda"]


def test_it_tells_what_would_mend_a_missing_compiler(monkeypatch):
    monkeypatch.setattr(launch, "_missing", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = SimpleNamespace(name="Some GPU", major=8, minor=6, total_memory=8 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
    found = doctor.report()
    assert found["devices"] == [{"name": "Some GPU", "arch": "sm_86", "memory": 8 << 30}] * 2
    assert list(found["kernels"]) == ["sm_86"] and "pip install" in found["kernels"]["sm_86"]


def test_what_is_not_there_is_none(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(doctor, "CDLL", absent)
    assert doctor._driver() is None and doctor._version("no-such-distribution") is None
