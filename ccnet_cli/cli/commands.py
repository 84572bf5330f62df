"""The tree of commands, built from one module each."""

from typing import Annotated

import typer

from ccnet_cli.cli import (
    bench,
    compare,
    data,
    doctor,
    evaluate,
    export,
    guide,
    predict,
    presets,
    train,
    visualize,
    weights,
)
from ccnet_cli.cli.options import CONTEXT, examples, help_alone

# options of every command, which may stand anywhere; entry.py reads them
FLAGS = {"--debug": "debug", "--quiet": "quiet", "-q": "quiet", "--verbose": "verbose", "-v": "verbose"}
EXTEND = "--extend"
# plain help: rich's panels would cost a third of the time that --help may take
app = typer.Typer(rich_markup_mode=None, context_settings=CONTEXT)
for command in (train, evaluate, predict, visualize, export):
    app.add_typer(command.app)
for name, group in (("bench", bench), ("presets", presets), ("data", data), ("weights", weights)):
    app.add_typer(group.app, name=name)
for command in (compare, doctor, guide):
    app.add_typer(command.app)


def _version(asked: bool) -> None:
    if asked:
        from ccnet_cli.version import describe

        print(describe())
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "ccnet train --preset quickstart",
        "ccnet eval",
        "ccnet predict img.png -o mask.png",
        "ccnet visualize --point 300,400",
    ),
)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the versions.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only: no notices, no progress.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print details, and how long it took.")] = False,
    extend: Annotated[
        list[str] | None,
        typer.Option(
            EXTEND, metavar="FILE", help="Import your own parts from a Python file; see ccnet guide extending."
        ),
    ] = None,
) -> None:
    """Semantic segmentation with criss-cross attention.

    --debug, --quiet, --verbose and --extend may stand anywhere, after the command too; $CCNET_EXTEND names files too.

    Exit codes: 0 done, 2 bad input, 3 the machine failed, 4 loss not finite, 129, 130, 138 or 143 interrupted, 1 a bug.
    """
    help_alone(context)
