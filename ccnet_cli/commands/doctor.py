"""Check piece by piece what ccnet needs here: no check depends on another, and none can bring the command down.

What is heavy, or might crash, runs in a process of its own: `python -m ccnet_cli.commands.doctor torch` prints JSON.
"""

import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ccnet_cli import __version__, parts, version
from ccnet_cli.errors import CCNetError, one_line

State = Literal["ok", "warn", "fail"]

# a probe that takes longer has failed; torch may be read over a slow network
PROBE_SECONDS = 120
PACKAGES = ("numpy", "scipy", "numba", "typer", "rich", "pydantic", "pyyaml")
# some libraries that opencv-python needs and opencv-python-headless does not
OPENCV_LIBRARIES = ("libGL.so.1", "libxcb.so.1", "libglib-2.0.so.0", "libgthread-2.0.so.0")
GIB = 1 << 30
REINSTALL = f"install ccnet-cli {__version__} anew: pip install --force-reinstall ccnet-cli"
# the compute capability to compile for where there is no device
DEFAULT_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Check:
    """One result, with the fix for a bad one: without what fails ccnet does not run on the CPU, unlike what warns."""

    name: str
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All checks, in the order in which they are printed."""

    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether ccnet works here, on the CPU at least."""
        return all(check.state != "fail" for check in self.checks)

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON."""
        return {"healthy": self.healthy, "checks": [asdict(check) for check in self.checks]}


def check_installation(data: Sequence[Path] = ()) -> Report:
    """Check the machine, the libraries, the folders that ccnet writes to, and the data sets in the folders `data`."""
    datasets = [str(folder.absolute()) for folder in data]
    with ThreadPoolExecutor() as pool:
        torch = pool.submit(_probe, "torch", "fail")
        numba = pool.submit(_probe, "numba", "warn")
        opencv = pool.submit(_probe, "opencv", "fail")
        sets = pool.submit(_probe, "data", "fail", *datasets)
        here = (_check_ccnet, _check_python, _check_machine, _check_packages)
        folders = (_check_presets, _check_runs, _check_temporary, _check_shared_memory)
        machine, written = ([row for check in checks for row in _run_check(check)] for checks in (here, folders))
        return Report((*machine, *torch.result(), *numba.result(), *opencv.result(), *written, *sets.result()))


def _run_check(check: Callable[..., list[Check]], *arguments: Any, state: State = "fail") -> list[Check]:
    """The result of a check, even if it raises."""
    name = check.__name__.removeprefix("_check").strip("_").replace("_", " ")
    try:
        return check(*arguments)
    except CCNetError as error:
        return [Check(name, state, f"{error.what}: {error.why}", error.fix)]
    except Exception as error:
        return [Check(name, state, one_line(f"{type(error).__name__}: {error}"), REINSTALL)]


def _probe(name: str, state: State, *words: str) -> list[Check]:
    """The checks of _run_probe in a process of their own; if it crashes or does not end, one check in that state."""
    command = [sys.executable, "-P", "-m", "ccnet_cli.commands.doctor", name, *words]
    paths = os.pathsep.join(path for path in sys.path if path)
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Check(name, state, f"no answer within {PROBE_SECONDS} s", f"see what keeps {' '.join(command[:5])}")]
    except OSError as error:
        return [Check(name, state, f"no process could be started ({error.strerror})", "free memory or processes")]
    if done.returncode != 0:
        return [Check(name, state, _describe_exit(done), REINSTALL)]
    # libraries may have printed before
    return [Check(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def _describe_exit(done: subprocess.CompletedProcess[str]) -> str:
    """How a process ended that printed no checks."""
    last = one_line((done.stderr.strip().splitlines() or [""])[-1])
    if done.returncode < 0:
        return (
            f"its process was ended by signal {-done.returncode}, {signal.strsignal(-done.returncode)} {last}".strip()
        )
    return f"its process ended with code {done.returncode} {last}".strip()


def _check_ccnet() -> list[Check]:
    commit = version.revision(version.ROOT)
    git = f", git {commit}" if commit else ""
    return [Check("ccnet", "ok", f"{__version__}{git}, {_hide_home(Path(__file__).parents[1])}")]


def _check_python() -> list[Check]:
    return [Check("python", "ok", f"{platform.python_version()}, {platform.platform()}")]


def _check_machine() -> list[Check]:
    cores = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{cores} cores" if usable == cores else f"{cores} cores, {usable} of them for this process"
    text += f", {memory / GIB:.1f} GiB of memory"
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (most := limit.read_text().strip()).isdecimal() and int(most) < memory:
        text += f", {int(most) / GIB:.1f} GiB for this container"
    return [Check("machine", "ok", text)]


def _check_packages() -> list[Check]:
    versions = {name: version.installed_version(name) for name in PACKAGES}
    missing = [name for name, number in versions.items() if number is None]
    if missing:
        return [Check("packages", "fail", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")]
    return [Check("packages", "ok", ", ".join(f"{name} {number}" for name, number in versions.items()))]


def _check_presets() -> list[Check]:
    from ccnet_cli import config

    names = config.names()
    for name in names:
        config.load(name)
    if not names:
        return [Check("presets", "fail", f"none in {_hide_home(config.folder())}", REINSTALL)]
    return [Check("presets", "ok", f"{len(names)} in {_hide_home(config.folder())}")]


def _check_runs() -> list[Check]:
    return [_check_folder("runs", Path("runs").absolute(), "run ccnet in a folder of yours, or give train --run DIR")]


def _check_temporary() -> list[Check]:
    return [_check_folder("temporary", Path(tempfile.gettempdir()), "set TMPDIR to a folder that you can write to")]


def _check_folder(name: str, folder: Path, fix: str) -> Check:
    """Whether files can be written in a folder, or in the nearest one above if it does not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    shown = _hide_home(folder) + ("" if existing == folder else " (made on first use)")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"ccnet")
            file.flush()
    except OSError as error:
        return Check(name, "fail", f"{shown}: not written to ({error.strerror})", fix)
    free = shutil.disk_usage(existing).free / GIB
    return Check(name, "ok" if free >= 1 else "warn", f"{shown}, {free:.1f} GiB free", "" if free >= 1 else "make room")


def _check_shared_memory() -> list[Check]:
    """Data workers hand on images through /dev/shm, of which containers have 64 MiB by default."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return [Check("shared memory", "ok", f"no {folder} here")]
    size = shutil.disk_usage(folder).total / GIB
    if size < 0.25:
        fix = "give the container more (docker run --shm-size=2g), or train with -s data.workers=0"
        return [Check("shared memory", "warn", f"{folder}, {1024 * size:.0f} MiB", fix)]
    return [Check("shared memory", "ok", f"{folder}, {size:.1f} GiB")]


def _hide_home(path: Path) -> str:
    """The path without the name of the home folder, fit to be shown in public."""
    home = Path(os.environ.get("HOME") or "/")
    return str(Path("~") / path.relative_to(home)) if home != Path("/") and path.is_relative_to(home) else str(path)


def _check_torch() -> list[Check]:
    import torch

    bf16 = [name for name, has in torch.cpu.get_capabilities().items() if has is True and "bf16" in name]
    threads = torch.get_num_threads()
    text = f"{torch.__version__}, {threads} thread{'s' * (threads > 1)}, {torch.backends.cpu.get_cpu_capability()}, "
    text += f"bf16 by {', '.join(bf16)}" if bf16 else "no instructions for bf16"
    return [Check("torch", "ok", text + _describe_attention())]


def _check_cuda() -> list[Check]:
    import torch

    if torch.version.cuda is None:
        fix = "the CPU is used; for a GPU, install a CUDA build of torch"
        return [Check("cuda", "warn", f"torch {torch.__version__} is built without CUDA", fix)]
    built = f"torch is built for CUDA {torch.version.cuda}"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        why = one_line(str(error).strip().partition("\n")[0])
        return [Check("cuda", "warn", f"{built}; {why}", "the CPU is used; for a GPU, install NVIDIA's driver")]
    driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    checks = [Check("cuda", "ok", f"{built}, the driver for {driver // 1000}.{driver % 1000 // 10}")]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        text = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / GIB:.1f} GiB"
        checks.append(Check(f"cuda:{index}", "ok", text))
    return checks


def _describe_attention() -> str:
    """Which implementations of the attention run on each device; what numba lacks on CUDA is a check of its own."""
    import torch

    from ccnet_cli import ops
    from ccnet_cli.ops.cuda import launch

    devices = {"cpu": ops.implementations("cpu")}
    if torch.cuda.is_available():
        try:
            launch.require()
            devices["cuda"] = ops.implementations("cuda")
        except CCNetError:
            devices["cuda"] = tuple(name for name in ops.implementations("cuda") if name != "numba")
    return "".join(f"; attention on {device} by {', '.join(names)}" for device, names in devices.items())


def _check_demo_weights() -> list[Check]:
    from ccnet_cli.runs import checkpoint
    from ccnet_cli.weights import find

    content = checkpoint.read_any(find.DEMO / "demo.pt")
    text = f"verified, {len(content['model'])} tensors, trained for {content['step']} steps"
    return [Check("demo weights", "ok", text)]


def _check_numba_cuda() -> list[Check]:
    """Numba's CUDA target, down to one of our kernels, which compiles without a GPU; the CPU needs none of it."""
    from ccnet_cli.ops.cuda import launch

    launch.require()
    from numba import cuda
    from numba.cuda.cuda_paths import get_cuda_paths
    from numba.cuda.cudadrv.driver import driver

    from ccnet_cli.ops.cuda import try_to_compile

    name, text = "numba cuda", f"numba-cuda {version.installed_version('numba-cuda')}"
    paths = get_cuda_paths()
    # of a library that is not found the path is its bare name, or None
    missing = [key for key in ("nvvm", "nvrtc") if not (paths.get(key) and Path(paths[key].info or "").is_file())]
    if missing:
        return [Check(name, "warn", f"{text}; not found: {', '.join(missing)}", f"pip install '{launch.pip_extra()}'")]
    text += f", toolkit {_hide_home(Path(paths['nvvm'].info).parent)}"
    try:
        device = cuda.get_current_device()
        architecture = device.compute_capability
        gpu = f"device {device.name}, the driver for {'.'.join(map(str, driver.get_version()))}"
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Error at")]
        architecture, gpu = DEFAULT_CAPABILITY, f"no device: {lines[0].rstrip('.') if lines else type(error).__name__}"
    outcome = try_to_compile(architecture)
    if outcome != "compiles":
        return [Check(name, "warn", f"{text}; {one_line(gpu)}", outcome)]
    compiled = f"kernels compile for sm_{architecture[0]}{architecture[1]}"
    return [Check(name, "ok", f"{text}; {compiled}; {one_line(gpu)}")]


def _check_opencv() -> list[Check]:
    try:
        from ccnet_cli.media.images import cv2
    except CCNetError as error:
        missing = ", ".join(library for library in OPENCV_LIBRARIES if not _can_load(library))
        text = error.why + (f"; this system lacks {missing}" if missing else "")
        return [Check("opencv", "fail", text, "; ".join([error.fix, *getattr(error, "__notes__", ())]))]
    packages = [name for name in ("opencv-python", "opencv-python-headless") if version.installed_version(name)]
    return [Check("opencv", "ok", " ".join([cv2.__version__, *packages]))]


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _check_cache() -> list[Check]:
    from ccnet_cli.datasets import toyscapes

    folder = toyscapes.built_in_folder()
    if folder.is_dir():
        return [Check("cache", "ok", f"{_hide_home(folder)}, the built-in data set, drawn")]
    check = _check_folder("cache", folder, "set CCNET_CACHE to a folder that you can write to")
    return [Check("cache", check.state, f"{check.detail}; the built-in data set is drawn on first use", check.fix)]


def _check_data(folder: str) -> list[Check]:
    from ccnet_cli import datasets
    from ccnet_cli.errors import InputError

    name, path = f"data {_hide_home(Path(folder))}", Path(folder)
    try:
        return [Check(name, "ok", datasets.recognise(path))]
    except InputError as error:
        if not path.is_dir():
            return [Check(name, "fail", error.why, "check the path")]
        return [
            Check(name, "warn", error.why, "see ccnet data check --help: --dataset names it, a preset describes it")
        ]


def _run_probe(name: str, words: Sequence[str]) -> list[Check]:
    """The checks of one process; parts from outside may define data sets."""
    if name == "torch":
        return [*_run_check(_check_torch), *_run_check(_check_cuda, state="warn"), *_run_check(_check_demo_weights)]
    if name == "numba":
        return _run_check(_check_numba_cuda, state="warn")
    if name == "opencv":
        return _run_check(_check_opencv)
    parts.extend_from_environment()
    return [*_run_check(_check_cache), *(check for word in words for check in _run_check(_check_data, word))]


if __name__ == "__main__":
    print(json.dumps([asdict(check) for check in _run_probe(sys.argv[1], sys.argv[2:])]))
