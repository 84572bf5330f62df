"""Processes that start at once: forked from this one, which has imported all that they need."""

import importlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import ended, forked, free_port

from ccnet_cli.errors import CCNetError
from ccnet_cli.parallel import group as groups
from ccnet_cli.parallel import supervisor

GET_CONTEXT = multiprocessing.get_context
# what DistributedDataParallel and a run's charts import
SLOW_IMPORTS = ("torch._dynamo.utils", "matplotlib.backends.backend_agg")


@pytest.fixture(scope="module")
def forked_workers() -> Iterator[None]:
    """The supervisor forks its workers, which takes milliseconds; a spawned worker imports torch for seconds."""
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # from Python 3.12 on: the workers need none of the threads that a fork does not copy
        warnings.simplefilter("ignore", DeprecationWarning)
        patch.setattr(multiprocessing, "get_context", lambda _: GET_CONTEXT("fork"))
        patch.setattr(supervisor, "GRACE_SECONDS", 1.0)
        patch.setattr(groups, "REPORT_SECONDS", 0.5)
        yield


@pytest.fixture
def spawned_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are new processes, as outside of tests."""
    monkeypatch.setattr(multiprocessing, "get_context", GET_CONTEXT)


@pytest.fixture
def ranks(tmp_path: Path) -> Callable[..., list[tuple[Any, str]]]:
    """Run `work(rank)` in N processes that find torchrun's variables; of each the result or error, and its output."""

    def run(world_size: int, work: Callable[[int], Any], **variables: object) -> list[tuple[Any, str]]:
        common = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} | variables

        def start(rank: int) -> None:
            for name, value in ({"RANK": rank, "LOCAL_RANK": rank} | common).items():
                os.environ[name] = str(value)
            with (tmp_path / f"{rank}.txt").open("w", buffering=1) as output:
                sys.stdout = sys.stderr = output
                try:
                    answer = repr(work(rank))
                except CCNetError as error:
                    answer = f"{type(error).__name__}{' (silent)' if error.reported else ''}: {error}"
            (tmp_path / f"{rank}.answer").write_text(answer)

        processes = [forked(lambda rank=rank: start(rank)) for rank in range(world_size)]
        codes = [ended(process) for process in processes]
        answers = [tmp_path / f"{rank}.answer" for rank in range(world_size)]
        return [
            (path.read_text() if path.exists() else code, path.with_suffix(".txt").read_text())
            for path, code in zip(answers, codes, strict=True)
        ]

    return run
