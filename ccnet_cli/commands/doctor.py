"""What ccnet finds here, checked piece by piece: no check depends on another, and none can bring the command down.

What is heavy, or might crash, is asked in a process of its own: `python -m ccnet_cli.commands.doctor torch` answers
as JSON.
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

from ccnet_cli import __version__, version
from ccnet_cli.errors import CCNetError, one_line

State = Literal["ok", "warn", "fail"]

# seconds until a process that does not answer is given up: torch may come over a slow network
LIMIT = 120
PACKAGES = ("numpy", "scipy", "numba", "typer", "rich", "pydantic", "pyyaml")
# of what opencv-python is linked to; opencv-python-headless does without
LIBRARIES = ("libGL.so.1", "libxcb.so.1", "libglib-2.0.so.0", "libgthread-2.0.so.0")
GIB = 1 << 30
# where no device says which compute capability is meant
ARCHITECTURE = (8, 0)


@dataclass(frozen=True)
class Check:
    """What was found of one thing: fail is what CPU use cannot do without, warn what one may miss, with its fix."""

    name: str
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All checks, in the order in which they are told."""

    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether ccnet works here, on the CPU at least."""
        return all(check.state != "fail" for check in self.checks)

    def to_mapping(self) -> dict[str, Any]:
        """As plain types, for JSON."""
        return {"healthy": self.healthy, "checks": [asdict(check) for check in self.checks]}


def doctor(data: Sequence[Path] = ()) -> Report:
    """Check the machine, the libraries, the folders that are written to, and the data sets in the folders given."""
    folders = [str(folder.absolute()) for folder in data]
    with ThreadPoolExecutor() as pool:
        torch = pool.submit(_elsewhere, "torch", "fail")
        numba = pool.submit(_elsewhere, "numba", "warn")
        opencv = pool.submit(_elsewhere, "opencv", "fail")
        sets = pool.submit(_elsewhere, "data", "fail", *folders)
        machine = [*_guarded(_ccnet), *_guarded(_python), *_guarded(_machine), *_guarded(_packages)]
        places = [*_guarded(_presets), *_guarded(_runs), *_guarded(_temporary), *_guarded(_shared_memory)]
        return Report((*machine, *torch.result(), *numba.result(), *opencv.result(), *places, *sets.result()))


def _guarded(check: Callable[..., list[Check]], *arguments: Any, state: State = "fail") -> list[Check]:
    """The outcome of a check, whatever happens in it."""
    name = check.__name__.strip("_").replace("_", " ")
    try:
        return check(*arguments)
    except CCNetError as error:
        return [Check(name, state, f"{error.what}: {error.why}", error.fix)]
    except Exception as error:
        return [Check(name, state, one_line(f"{type(error).__name__}: {error}"), _reinstall())]


def _elsewhere(name: str, state: State, *words: str) -> list[Check]:
    """What the probe of that name finds, in a process that may crash or never end; then a check in that state."""
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
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Check(name, state, f"no answer within {LIMIT} s", f"see what keeps {' '.join(command[:5])}")]
    except OSError as error:
        return [Check(name, state, f"no process could be started ({error.strerror})", "free memory or processes")]
    if done.returncode != 0:
        return [Check(name, state, _ending(done), _reinstall())]
    # libraries may print too
    return [Check(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    """How a process ended that gave no answer."""
    last = one_line((done.stderr.strip().splitlines() or [""])[-1])
    if done.returncode < 0:
        return (
            f"its process was ended by signal {-done.returncode}, {signal.strsignal(-done.returncode)} {last}".strip()
        )
    return f"its process ended with code {done.returncode} {last}".strip()


def _reinstall() -> str:
    return f"install ccnet-cli {__version__} anew: pip install --force-reinstall ccnet-cli"


def _ccnet() -> list[Check]:
    commit = version.revision(version.ROOT)
    return [
        Check("ccnet", "ok", f"{__version__}{f', git {commit}' if commit else ''}, {_short(Path(__file__).parents[1])}")
    ]


def _python() -> list[Check]:
    return [Check("python", "ok", f"{platform.python_version()}, {platform.platform()}")]


def _machine() -> list[Check]:
    cores = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{cores} cores" if usable == cores else f"{cores} cores, {usable} of them for this process"
    text += f", {memory / GIB:.1f} GiB of memory"
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (most := limit.read_text().strip()).isdecimal() and int(most) < memory:
        text += f", {int(most) / GIB:.1f} GiB for this container"
    return [Check("machine", "ok", text)]


def _packages() -> list[Check]:
    found = {name: version.installed_version(name) for name in PACKAGES}
    missing = [name for name, number in found.items() if number is None]
    if missing:
        return [Check("packages", "fail", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")]
    return [Check("packages", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))]


def _presets() -> list[Check]:
    from ccnet_cli import config

    names = config.names()
    for name in names:
        config.load(name)
    if not names:
        return [Check("presets", "fail", f"none in {_short(config.folder())}", _reinstall())]
    return [Check("presets", "ok", f"{len(names)} in {_short(config.folder())}")]


def _runs() -> list[Check]:
    return [_place("runs", Path("runs").absolute(), "run ccnet in a folder of yours, or give train --run DIR")]


def _temporary() -> list[Check]:
    return [_place("temporary", Path(tempfile.gettempdir()), "set TMPDIR to a folder that you can write to")]


def _place(name: str, folder: Path, fix: str) -> Check:
    """Whether files can be written in a folder, or in the one above where it is to be made."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    told = _short(folder) + ("" if there == folder else " (made on first use)")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"ccnet")
            file.flush()
    except OSError as error:
        return Check(name, "fail", f"{told}: not written to ({error.strerror})", fix)
    free = shutil.disk_usage(there).free / GIB
    return Check(name, "ok" if free >= 1 else "warn", f"{told}, {free:.1f} GiB free", "" if free >= 1 else "make room")


def _shared_memory() -> list[Check]:
    """Processes that read images hand them on through /dev/shm, of which containers have 64 MiB unless told."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return [Check("shared memory", "ok", f"no {folder} here")]
    size = shutil.disk_usage(folder).total / GIB
    if size < 0.25:
        fix = "give the container more (docker run --shm-size=2g), or train with -s data.workers=0"
        return [Check("shared memory", "warn", f"{folder}, {1024 * size:.0f} MiB", fix)]
    return [Check("shared memory", "ok", f"{folder}, {size:.1f} GiB")]


def _short(path: Path) -> str:
    """The path as one may show it in public, without the name of the home folder."""
    home = Path(os.environ.get("HOME") or "/")
    return str(Path("~") / path.relative_to(home)) if home != Path("/") and path.is_relative_to(home) else str(path)


def _torch() -> list[Check]:
    import torch

    has = [name for name, there in torch.cpu.get_capabilities().items() if there is True and "bf16" in name]
    threads = torch.get_num_threads()
    text = f"{torch.__version__}, {threads} thread{'s' * (threads > 1)}, {torch.backends.cpu.get_cpu_capability()}, "
    return [Check("torch", "ok", text + (f"bf16 by {', '.join(has)}" if has else "no instructions for bf16"))]


def _cuda() -> list[Check]:
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
    driver = torch._C._cuda_getDriverVersion()
    checks = [Check("cuda", "ok", f"{built}, the driver for {driver // 1000}.{driver % 1000 // 10}")]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        text = f"{found.name}, sm_{found.major}{found.minor}, {found.total_memory / GIB:.1f} GiB"
        checks.append(Check(f"cuda:{index}", "ok", text))
    return checks


def _demo_weights() -> list[Check]:
    from ccnet_cli.runs import checkpoint
    from ccnet_cli.weights import find

    content = checkpoint.read_any(find.DEMO / "demo.pt")
    text = f"verified, {len(content['model'])} tensors, trained for {content['step']} steps"
    return [Check("demo weights", "ok", text)]


def _numba_cuda() -> list[Check]:
    """Numba's CUDA target, down to one of our kernels, compiled with no need of a GPU; the CPU needs none of it."""
    from ccnet_cli.ops.cuda import launch

    launch.require()
    from numba import cuda
    from numba.cuda.cuda_paths import get_cuda_paths
    from numba.cuda.cudadrv.driver import driver

    from ccnet_cli.ops.cuda import compiles

    name, text = "numba cuda", f"numba-cuda {version.installed_version('numba-cuda')}"
    paths = get_cuda_paths()
    # a library that is not found is left as a bare name for the loader, or as nothing
    missing = [key for key in ("nvvm", "nvrtc") if not (paths.get(key) and Path(paths[key].info or "").is_file())]
    if missing:
        return [Check(name, "warn", f"{text}; not found: {', '.join(missing)}", f"pip install '{launch.extra()}'")]
    text += f", toolkit {_short(Path(paths['nvvm'].info).parent)}"
    try:
        device = cuda.get_current_device()
        architecture = device.compute_capability
        gpu = f"device {device.name}, the driver for {'.'.join(map(str, driver.get_version()))}"
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Error at")]
        architecture, gpu = ARCHITECTURE, f"no device: {lines[0].rstrip('.') if lines else type(error).__name__}"
    found = compiles(architecture)
    if found != "compiles":
        return [Check(name, "warn", f"{text}; {one_line(gpu)}", found)]
    compiled = f"kernels compile for sm_{architecture[0]}{architecture[1]}"
    return [Check(name, "ok", f"{text}; {compiled}; {one_line(gpu)}")]


def _opencv() -> list[Check]:
    try:
        from ccnet_cli.media.images import cv2
    except CCNetError as error:
        missing = ", ".join(library for library in LIBRARIES if not _loads(library))
        text = error.why + (f"; this system lacks {missing}" if missing else "")
        return [Check("opencv", "fail", text, "; ".join([error.fix, *getattr(error, "__notes__", ())]))]
    packages = [name for name in ("opencv-python", "opencv-python-headless") if version.installed_version(name)]
    return [Check("opencv", "ok", " ".join([cv2.__version__, *packages]))]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _cache() -> list[Check]:
    from ccnet_cli.datasets import toyscapes

    place = toyscapes.built_in_folder()
    if place.is_dir():
        return [Check("cache", "ok", f"{_short(place)}, the built-in data set, drawn")]
    found = _place("cache", place, "set CCNET_CACHE to a folder that you can write to")
    return [Check("cache", found.state, f"{found.detail}; the built-in data set is drawn on first use", found.fix)]


def _data(folder: str) -> list[Check]:
    from ccnet_cli import datasets
    from ccnet_cli.errors import InputError

    name, path = f"data {_short(Path(folder))}", Path(folder)
    try:
        return [Check(name, "ok", datasets.recognise(path))]
    except InputError as error:
        if not path.is_dir():
            return [Check(name, "fail", error.why, "check the path")]
        return [
            Check(name, "warn", error.why, "see ccnet data check --help: --dataset names it, a preset describes it")
        ]


def _answer(name: str, words: Sequence[str]) -> list[Check]:
    """The checks of one process."""
    if name == "torch":
        return [*_guarded(_torch), *_guarded(_cuda, state="warn"), *_guarded(_demo_weights)]
    if name == "numba":
        return _guarded(_numba_cuda, state="warn")
    if name == "opencv":
        return _guarded(_opencv)
    return [*_guarded(_cache), *(check for word in words for check in _guarded(_data, word))]


if __name__ == "__main__":
    print(json.dumps([asdict(check) for check in _answer(sys.argv[1], sys.argv[2:])]))
