"""Which device and which precision a command computes with."""

import platform
import subprocess
import sys

import pytest
import torch

from ccnet_cli import devices
from ccnet_cli.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch):
    """A machine of two GPUs, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_several_processes_are_for_the_cpu_unless_gpus_are_asked_for(gpus):
    assert devices.local_device(None, 1, "auto") == GPU
    assert devices.local_device(None, 2, "auto") == CPU == devices.local_device(None, 2, "cuda")
    assert devices.local_device(2, 1, "cpu") == GPU
    for words, options in (("--gpus is given too", (2, 2, "auto")), ("this machine has 2", (3, 1, "auto"))):
        with pytest.raises(InputError, match=words):
            devices.local_device(*options)


def test_devices_are_counted_from_0(gpus):
    assert devices.device("cuda:1") == torch.device("cuda", 1)
    for name in ("cuda:2", "cpu:0", "cuda:-1", "cuda:one"):
        with pytest.raises(InputError, match=f"device {name}"):
            devices.device(name)


def test_apple_s_gpu_is_used_where_it_is_named_and_torch_has_it(monkeypatch):
    for here in (False, True):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda here=here: here)
        assert devices.device("auto").type != "mps"
        if here:
            assert devices.device("mps") == torch.device("mps") == devices.local_device(None, 1, "mps")
            assert devices.precision("auto", torch.device("mps"), lambda _: None) == "fp32"
        else:
            with pytest.raises(InputError, match="no GPU of Apple's here; use --device cpu"):
                devices.device("mps")
        with pytest.raises(InputError, match="device mps:0: unknown"):
            devices.device("mps:0")


@pytest.mark.parametrize(("native", "chosen", "words"), [(True, "bf16", "has instr"), (False, "fp32", "has no instr")])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_auto_is_bf16_where_the_device_computes_in_it(monkeypatch, native, chosen, words, device):
    told = []
    monkeypatch.setattr(devices, "computes_bf16", lambda _: native)
    assert devices.precision("auto", device, told.append) == chosen
    (text,) = told
    where = "GPU" if device.type == "cuda" else "processor"
    assert text.startswith(f"precision {chosen}: this {where} {words}")


def test_a_named_precision_is_that_one_and_no_other_name_is(monkeypatch):
    monkeypatch.setattr(devices, "computes_bf16", None)
    for name in ("fp32", "bf16", "fp16"):
        assert devices.precision(name, CPU, None) == name
    with pytest.raises(InputError, match="precision half: unknown; use one of auto, fp32, bf16, fp16"):
        devices.precision("half", CPU, None)


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_for_gpus_that_have_it(monkeypatch, wanted):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        assert not devices.use_tf32(CPU, wanted)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert not devices.use_tf32(GPU, wanted) and torch.get_float32_matmul_precision() == "highest"
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        assert devices.use_tf32(GPU, wanted) == wanted
        # which is what a resumed run compares
        found = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        assert found == ("high" if wanted else "highest", wanted)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is glibc's")
def test_freed_memory_stays_only_where_it_is_wanted():
    code = """
import torch
from ccnet_cli.devices import FreedMemory
SIZE = 64 << 20
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def stays():
    # whether a block is resident after it has been freed
    before = resident()
    torch.ones(SIZE, dtype=torch.uint8)
    return resident() - before > SIZE / 2
stays()
assert not stays()
with FreedMemory() as memory:
    assert not stays()
    for _ in range(2):
        before = resident()
        memory.stay(True)
        assert stays() and resident() - before > SIZE / 2
        memory.stay(False)
        assert resident() - before < SIZE / 2 and not stays()
    memory.stay(True)
    assert stays()
assert resident() - before < SIZE / 2 and not stays()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
