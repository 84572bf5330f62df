"""What every test shares: which tests run here, and the command line in a process of its own."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# tensors here are small, and two threads that wait for each other on a busy machine take ten times as long as one
os.environ.setdefault("OMP_NUM_THREADS", "1")
# as the command line does before it imports torch
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# a shell's background jobs and nohup ignore signals, and so would every process that a test starts and interrupts
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = config.getoption("--slow") or "slow" in str(config.getoption("markexpr"))
    for item in items:
        if not slow and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _has_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_ccnet() -> Run:
    """Run the command line in a process of its own, in the folder `cwd`, and return what it printed."""

    def run(
        *arguments: object, cwd: Path, timeout: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ccnet_cli.cli", *map(str, arguments)]
        own = _environment() | environment
        return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture
def ccnet(tmp_path: Path, run_ccnet: Run) -> Run:
    """As run_ccnet, in an empty folder unless `cwd` names another."""
    return lambda *arguments, cwd=tmp_path, **options: run_ccnet(*arguments, cwd=cwd, **options)


def _environment() -> dict[str, str]:
    # a checkpoint or terminal of the person who runs the tests must not reach them
    own = ("CCNET_CHECKPOINT", "CCNET_EXTEND", "FORCE_COLOR", "COLUMNS")
    shared = {key: value for key, value in os.environ.items() if key not in own}
    return shared | {"PYTHONPATH": str(Path(__file__).parent.parent)}


GET_CONTEXT = multiprocessing.get_context
# what DistributedDataParallel and a run's charts import
SLOW_IMPORTS = ("torch._dynamo.utils", "matplotlib.backends.backend_agg")


@pytest.fixture(scope="module")
def forked_workers() -> Iterator[None]:
    """The supervisor forks its workers, which takes milliseconds; a spawned worker imports torch for seconds."""
    from ccnet_cli.parallel import group, supervisor

    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # from Python 3.12 on: the workers need none of the threads that a fork does not copy
        warnings.simplefilter("ignore", DeprecationWarning)
        patch.setattr(multiprocessing, "get_context", lambda _: GET_CONTEXT("fork"))
        patch.setattr(supervisor, "GRACE_SECONDS", 1.0)
        patch.setattr(group, "REPORT_SECONDS", 0.5)
        yield


@pytest.fixture
def spawned_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are new processes, as outside of tests."""
    monkeypatch.setattr(multiprocessing, "get_context", GET_CONTEXT)
