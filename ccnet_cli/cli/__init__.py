"""The command line: each command reads its arguments, calls one function and prints what it returns."""

import os
import signal
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, from sys.argv if no arguments are given, and exit with its code."""
    if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # the imports take a while, and an interrupt would print where they were
        signal.signal(signal.SIGINT, exit_at_once)
    from ccnet_cli.cli.entry import main as run

    run(arguments)


def exit_at_once(*_: object) -> NoReturn:
    """End this process as an interrupt does, without a word."""
    os._exit(128 + signal.SIGINT)


def __getattr__(name: str) -> Any:
    if name == "app":
        from ccnet_cli.cli.commands import app

        return app
    raise AttributeError(name)
