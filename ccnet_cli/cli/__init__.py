"""The command line: each command reads its arguments, calls one function and prints what it returns."""

from ccnet_cli.cli.commands import app
from ccnet_cli.cli.entry import main

__all__ = ["app", "main"]
