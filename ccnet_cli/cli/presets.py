"""`ccnet presets`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ccnet_cli.cli.options import (
    CONTEXT,
    Json,
    Overrides,
    Overwrite,
    PresetName,
    examples,
    help_alone,
    preset_file,
    refuse_outputs,
)
from ccnet_cli.cli.output import print_names, table, write, write_json
from ccnet_cli.errors import InputError

PRESETS_EXAMPLES = examples(
    "ccnet presets list",
    "ccnet presets show camvid",
    "ccnet presets copy quickstart mine.yaml",
    "ccnet presets diff quickstart mine.yaml",
)


app = typer.Typer(rich_markup_mode=None, context_settings=CONTEXT, epilog=PRESETS_EXAMPLES)


@app.callback(invoke_without_command=True)
def presets(context: typer.Context) -> None:
    """List, show, copy and compare the presets that come with ccnet."""
    help_alone(context)


@app.command(
    "list", epilog=examples("ccnet presets list", "ccnet presets list psp ade20k", "ccnet presets list --json -")
)
def presets_list(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORD", help="Only those whose names have all these words.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Name the presets and what they are for."""
    refuse_outputs(json_file)
    from ccnet_cli import config

    own = config.describe()
    names = [name for name in own if all(word in name for word in words or ())]
    if words and not names:
        raise InputError(f"presets {' '.join(words)}", "none has these words in its name", "leave some out")
    if json_file and write_json([config.to_mapping(config.load(name)) for name in names], json_file):
        return
    table(
        None,
        ("preset", "what", "published", "source"),
        [(name, *(own[name][key] for key in ("description", "published", "source"))) for name in names],
        widths=(max(map(len, names), default=0), 24),
    )


@app.command("show", epilog=examples("ccnet presets show camvid", "ccnet presets show camvid -s schedule.lr=1e-3"))
def presets_show(
    name: PresetName,
    overrides: Overrides = None,
    json_file: Json = None,
) -> None:
    """Print a whole preset as it would run."""
    refuse_outputs(json_file, inputs=[preset_file(name)])
    from ccnet_cli import config

    preset = config.load(name, overrides or ())
    if not write_json(config.to_mapping(preset), json_file):
        print(config.dump(preset), end="")


@app.command("copy", epilog=examples("ccnet presets copy quickstart mine.yaml", "ccnet train --preset mine.yaml"))
def presets_copy(
    name: PresetName,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The new file, or a folder for it.")],
    overwrite: Overwrite = False,
) -> None:
    """Copy a preset, to change it."""
    from ccnet_cli import config

    config.load(name)
    target = destination / f"{Path(name).stem}.yaml" if destination.is_dir() else destination
    refuse_outputs(target, inputs=[config.find(name)], overwrite=overwrite)
    write(target, config.source(name))
    print_names(target)


@app.command(
    "diff",
    epilog=examples(
        "ccnet presets diff cityscapes-r1 cityscapes-r2",
        "ccnet presets diff quickstart mine.yaml",
        "ccnet presets diff runs/first/preset.yaml runs/second/preset.yaml --json -",
    ),
)
def presets_diff(one: PresetName, other: PresetName, json_file: Json = None) -> None:
    """Print the keys in which two presets differ, with the values of both."""
    refuse_outputs(json_file, inputs=[preset_file(one), preset_file(other)])
    from ccnet_cli import config

    presets = [config.load(one), config.load(other)]
    values = {key: [config.value(preset, key) for preset in presets] for key in config.differences(*presets)}
    if write_json({"presets": [one, other], "differences": values}, json_file):
        return
    if not values:
        print_names(f"{one} and {other} are the same")
        return
    rows = [
        (key, *(value if isinstance(value, str) else json.dumps(value) for value in pair))
        for key, pair in values.items()
    ]
    table(None, ("key", one, other), rows)
