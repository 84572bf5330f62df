"""Doctor: what it finds here, and that no check that fails, crashes or hangs brings the others down."""

import errno
import json
import re
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest

from ccnet_cli import __version__, cli, config, version
from ccnet_cli.commands import doctor
from ccnet_cli.commands.doctor import Check, Report
from ccnet_cli.config import library, shipped
from ccnet_cli.errors import InputError

Run = Callable[..., subprocess.CompletedProcess[str]]
# answers to importing torch; each is put in torch's place
TORCHES = {
    "crash": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "hang": "import time\ntime.sleep(60)",
    "exit": "import sys\nprint('[]')\nsys.exit('no\\x1b such symbol')",
    "refuse": "raise ImportError('libcudart.so.12: cannot open shared object file')",
    "chat": "print('hello')\nraise OSError('x')",
}


@pytest.fixture
def torch_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a file that behaves in the given way in torch's place, for processes started from here."""

    def put(behaviour: str) -> None:
        (tmp_path / "libraries" / "torch").mkdir(parents=True)
        (tmp_path / "libraries" / "torch" / "__init__.py").write_text(TORCHES[behaviour])
        monkeypatch.syspath_prepend(tmp_path / "libraries")

    return put


def test_everything_is_found_here(ccnet: Run, tmp_path: Path):
    import torch

    (tmp_path / "camvid" / "train").mkdir(parents=True)
    (tmp_path / "camvid" / "trainannot").mkdir()
    (tmp_path / "mine").mkdir()
    done = ccnet("doctor", "--data", "camvid", "--data", "mine", "--json", "doctor.json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["healthy"] is True
    found = {check["name"]: check for check in report["checks"]}
    names = (
        "ccnet python machine packages torch cuda demo_weights numba_cuda opencv presets runs temporary shared_memory"
    )
    assert [name for name in found if not name.startswith(("cuda:", "data "))] == [
        name.replace("_", " ") for name in [*names.split(), "cache"]
    ]
    assert all(found[name]["state"] == "ok" for name in ("torch", "opencv", "presets", "runs", "demo weights"))
    assert __version__ in found["ccnet"]["detail"]
    assert found["torch"]["detail"].startswith(torch.__version__)
    assert f"{len(config.names())} in " in found["presets"]["detail"]
    if find_spec("numba_cuda"):
        # compiled even where there is no GPU
        assert re.search(r"; kernels compile for sm_\d+; (no )?device", found["numba cuda"]["detail"])
    camvid, mine = found[f"data {tmp_path / 'camvid'}"], found[f"data {tmp_path / 'mine'}"]
    assert (camvid["state"], camvid["detail"], mine["state"]) == ("ok", "camvid", "warn")
    # nothing is left behind but what was asked for
    assert {path.name for path in tmp_path.iterdir()} == {"camvid", "mine", "doctor.json"}
    opening, *lines, closing = done.stdout.splitlines()
    assert opening == closing == "```"
    told = [f"{check['state']:6}{check['name']:15} {check['detail']}" for check in report["checks"]]
    assert [line for line in lines if not line.startswith(" ")] == told
    assert [line.strip() for line in lines if line.startswith(" ")] == [
        check["fix"] for check in report["checks"] if check["fix"]
    ]


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ("crash", [("torch", "fail", "its process was ended by signal 11, Segmentation fault")]),
        ("exit", [("torch", "fail", "its process ended with code 1 no\\x1b such symbol")]),
        ("hang", [("torch", "fail", "no answer within 0.5 s")]),
        (
            "refuse",
            [
                (name, state, "ImportError: libcudart.so.12: cannot open shared object file")
                for name, state in (("torch", "fail"), ("cuda", "warn"), ("demo weights", "fail"))
            ],
        ),
        (
            "chat",
            [("torch", "fail", "OSError: x"), ("cuda", "warn", "OSError: x"), ("demo weights", "fail", "OSError: x")],
        ),
    ],
)
def test_a_torch_that_fails_is_told(
    behaviour: str,
    told: list[tuple[str, str, str]],
    torch_of: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
):
    torch_of(behaviour)
    if behaviour == "hang":
        monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.5)
    checks = doctor._probe("torch", "fail")
    assert [(check.name, check.state, check.detail) for check in checks] == told
    assert all(check.fix for check in checks)


def test_a_torch_that_crashes_leaves_the_other_checks(
    torch_of: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    torch_of("crash")
    monkeypatch.setattr(version, "ROOT", Path("/nowhere"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor"])
    assert stopped.value.code == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line[:21].split(maxsplit=1)[1].strip() for line in lines if line.startswith("fail")] == ["torch"]
    assert any(line.startswith("ok    opencv ") for line in lines)
    assert f"ok    ccnet           {__version__}, " in "\n".join(lines)


def test_a_process_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (check,) = doctor._probe("numba", "warn")
    assert (check.name, check.state) == ("numba", "warn")
    assert "No such file" in check.detail


def test_only_what_the_cpu_needs_makes_it_unhealthy():
    checks = [Check("a", "ok", ""), Check("b", "warn", "")]
    assert Report(tuple(checks)).healthy
    assert not Report((*checks, Check("c", "fail", ""))).healthy


def test_a_check_that_raises_is_a_failed_check():
    def _some_check() -> list[Check]:
        raise KeyError("x\ny")

    def _other() -> list[Check]:
        raise InputError("what", "why", "fix")

    (check,) = doctor._run_check(_some_check)
    assert (check.name, check.state, check.detail) == ("some check", "fail", r"KeyError: 'x\ny'")
    assert doctor._run_check(_other, state="warn") == [Check("other", "warn", "what: why", "fix")]


def test_a_damaged_preset_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (shipped, library):
        monkeypatch.setattr(module, "folder", lambda: tmp_path)
    assert doctor._run_check(doctor._check_presets)[0].state == "fail"
    (tmp_path / "bad.yaml").write_text("name: [")
    (check,) = doctor._run_check(doctor._check_presets)
    assert (check.name, check.state) == ("presets", "fail")
    assert "bad.yaml:1:" in check.detail


def test_damaged_demo_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ccnet_cli.weights import find

    shutil.copytree(find.DEMO, tmp_path / "demo")
    monkeypatch.setattr(find, "DEMO", tmp_path / "demo")
    assert doctor._run_check(doctor._check_demo_weights)[0].state == "ok"
    content = bytearray((tmp_path / "demo" / "demo.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "demo" / "demo.pt").write_bytes(content)
    assert doctor._run_check(doctor._check_demo_weights)[0].state == "fail"
    (tmp_path / "demo" / "demo.pt").unlink()
    assert doctor._run_check(doctor._check_demo_weights)[0].state == "fail"


def test_a_folder_is_tried_where_it_will_be_made(tmp_path: Path):
    check = doctor._check_folder("runs", tmp_path / "a" / "b", "fix")
    assert check.state == "ok"
    assert check.detail.startswith(f"{tmp_path / 'a' / 'b'} (made on first use), ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs").touch()
    check = doctor._check_folder("runs", tmp_path / "runs", "fix")
    assert (check.state, check.detail, check.fix) == (
        "fail",
        f"{tmp_path / 'runs'}: not written to (Not a directory)",
        "fix",
    )

    def refuse(dir: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert "Read-only" in doctor._check_folder("runs", tmp_path, "fix").detail


def test_little_space_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = types.SimpleNamespace(free=(1 << 30) - 1, total=64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert doctor._check_folder("runs", tmp_path, "fix").state == "warn"
    if Path("/dev/shm").is_dir():
        (check,) = doctor._check_shared_memory()
        assert (check.state, check.detail) == ("warn", "/dev/shm, 64 MiB")
        assert "--shm-size" in check.fix
    usage.free, usage.total = 1 << 30, 256 << 20
    assert doctor._check_folder("runs", tmp_path, "fix").state == "ok"
    assert doctor._check_shared_memory()[0].state == "ok"


def test_the_name_of_the_home_folder_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    assert doctor._hide_home(tmp_path / "ann" / "x" / "y") == "~/x/y"
    assert doctor._hide_home(tmp_path / "anna") == str(tmp_path / "anna")
    monkeypatch.setenv("HOME", "/")
    assert doctor._hide_home(Path("/usr/lib")) == "/usr/lib"


def test_the_built_in_set_is_found_but_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ccnet_cli.datasets import toyscapes

    monkeypatch.setenv("CCNET_CACHE", str(tmp_path))
    (check,) = doctor._check_cache()
    assert check.state == "ok"
    assert "drawn on first use" in check.detail
    assert list(tmp_path.iterdir()) == []
    toyscapes.built_in_folder().mkdir()
    assert doctor._check_cache()[0].detail == f"{toyscapes.built_in_folder()}, the built-in data set, drawn"
    monkeypatch.setenv("CCNET_CACHE", "/proc/nowhere")
    assert doctor._check_cache()[0].state == "fail"


def test_a_data_folder_that_is_not_there_fails(tmp_path: Path):
    assert doctor._check_data(str(tmp_path / "x"))[0].state == "fail"


def test_a_cuda_build_without_a_driver_gives_torchs_reason(monkeypatch: pytest.MonkeyPatch):
    import torch

    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check that you have one")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    (check,) = doctor._check_cuda()
    assert (check.state, check.detail) == (
        "warn",
        "torch is built for CUDA 13.0; Found no NVIDIA driver on your system.",
    )


def test_every_gpu_is_listed(monkeypatch: pytest.MonkeyPatch):
    import torch

    gpus = [types.SimpleNamespace(name=f"GPU {n}", major=9, minor=n, total_memory=80 << 30) for n in range(2)]
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13010, raising=False)
    driver, *devices = doctor._check_cuda()
    assert (driver.state, driver.detail) == ("ok", "torch is built for CUDA 12.8, the driver for 13.1")
    assert [(check.name, check.detail) for check in devices] == [
        ("cuda:0", "GPU 0, sm_90, 80.0 GiB"),
        ("cuda:1", "GPU 1, sm_91, 80.0 GiB"),
    ]


@pytest.mark.parametrize("missing", [True, False])
def test_each_implementation_of_the_attention_is_named_where_it_runs(monkeypatch: pytest.MonkeyPatch, missing: bool):
    import torch

    from ccnet_cli.ops.cuda import launch

    monkeypatch.setattr(launch, "require", Mock(side_effect=InputError("a", "b", "c") if missing else None))
    assert doctor._check_torch()[0].detail.endswith("; attention on cpu by reference, gemm, flash, numba")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    expected = "; attention on cuda by reference, gemm, flash" + ("" if missing else ", numba")
    assert doctor._check_torch()[0].detail.endswith(expected)


def test_without_numba_cuda_the_extra_that_fits_torch_is_named(monkeypatch: pytest.MonkeyPatch):
    import torch

    from ccnet_cli.ops.cuda import launch

    monkeypatch.setattr(launch, "_is_missing", lambda name: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert doctor._run_check(doctor._check_numba_cuda, state="warn") == [
        Check(
            "numba cuda",
            "warn",
            "implementation numba: numba_cuda is not installed",
            "pip install 'ccnet-cli[cuda12]'",
        )
    ]


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_a_kernel_that_does_not_compile_is_told():
    code = "import json\nfrom ccnet_cli.commands import doctor\nfrom ccnet_cli.ops import cuda\n"
    code += "cuda.try_to_compile = lambda arch: 'sm_10: too old; pip install other'\n"
    code += "print(json.dumps(doctor._check_numba_cuda()[0].__dict__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    check = Check(**json.loads(done.stdout))
    assert (check.state, check.fix) == ("warn", "sm_10: too old; pip install other")


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_a_toolkit_that_is_missing_is_told():
    code = "import json, numba.cuda.cuda_paths as paths\nfrom ccnet_cli.commands import doctor\n"
    code += "found = paths.get_cuda_paths()\n"
    code += "found['nvvm'] = None\npaths.get_cuda_paths = lambda: found\n"
    code += "print(json.dumps(doctor._check_numba_cuda()[0].__dict__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    check = Check(**json.loads(done.stdout))
    assert check.state == "warn"
    assert check.detail.endswith("; not found: nvvm")
    assert "ccnet-cli[cuda" in check.fix
