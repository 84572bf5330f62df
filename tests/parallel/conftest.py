"""Processes that find torchrun's variables, forked from this one."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import ended, forked, free_port

from ccnet_cli.errors import CCNetError


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
