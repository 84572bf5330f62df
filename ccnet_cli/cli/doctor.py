"""`ccnet doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from ccnet_cli.cli.options import Json, examples, refuse_outputs
from ccnet_cli.cli.output import block, write_json

app = typer.Typer()


@app.command(epilog=examples("ccnet doctor", "ccnet doctor --data Cityscapes --data CamVid", "ccnet doctor --json -"))
def doctor(
    folders: Annotated[
        list[Path] | None, typer.Option("--data", metavar="DIR", help="Folder of a data set to check; repeatable.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Check what ccnet needs here, and say what is missing.

    Prints a block to paste into an issue. Exit code 3 if ccnet cannot run on the CPU.
    """
    # what lies in a data set may be part of it
    inside = json_file is not None and any(json_file.resolve().is_relative_to(each.resolve()) for each in folders or ())
    refuse_outputs(json_file, inputs=[json_file] if inside else [])
    from ccnet_cli.commands.doctor import check_installation

    report = check_installation(folders or ())
    if not write_json(report.to_mapping(), json_file):
        block((check.state, check.name, check.detail, check.fix) for check in report.checks)
    if not report.healthy:
        raise typer.Exit(3)
