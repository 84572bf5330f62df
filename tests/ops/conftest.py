"""What the tests of the operators share: kernels compiled once for all processes of a run, and for later runs."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def shared_ptx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make build.ptx read kernels from a folder: pytest's cache, or the run's temporary folder without one."""
    if find_spec("numba_cuda") is None:
        return
    from ccnet_cli import files
    from ccnet_cli.ops.cuda import build, launch, steps

    cache, temporary = getattr(request.config, "cache", None), tmp_path_factory.getbasetemp()
    shared = temporary.parent if hasattr(request.config, "workerinput") else temporary
    # the name changes with every line of the kernels' sources
    folder: Path = (cache.mkdir("ptx") if cache else shared) / launch._version()
    compile_ptx = build.ptx.__wrapped__

    def ptx(kernel: steps.Kernel, arch: tuple[int, int]) -> str:
        path = folder / f"{kernel.name}-{kernel.lanes}-sm_{arch[0]}{arch[1]}.ptx"
        if not path.is_file():
            files.write_bytes(path, compile_ptx(kernel, arch).encode())
        return path.read_text()

    build.ptx = lru_cache(maxsize=None)(ptx)
    # what tests compile anew after changing a kernel
    build.ptx.__wrapped__ = compile_ptx
