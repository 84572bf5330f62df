"""`ccnet compare` and `ccnet bench heads`: context heads beside one another."""

from pathlib import Path
from typing import Annotated

import typer

from ccnet_cli import files
from ccnet_cli.bench.request import Run
from ccnet_cli.cli import bench
from ccnet_cli.cli.options import Device, Json, Overrides, examples, preset_file, refuse_outputs
from ccnet_cli.errors import InputError

app = typer.Typer()

Heads = Annotated[
    list[str] | None,
    typer.Option(
        "--head",
        metavar="NAME[,KEY=VALUE...]",
        help="A row: none, or a head and its keys; repeatable.",
        show_default="none and each kind",
    ),
]


@bench.app.command(
    "heads",
    epilog=examples(
        "ccnet bench heads",
        "ccnet bench heads --size 33x33 --plot heads.png",
        "ccnet bench heads --head none --head rcca,recurrence=1 --head nonlocal --json heads.json",
    ),
)
def bench_heads(
    size: bench.MapSize = None,
    heads: Heads = None,
    preset: Annotated[str, typer.Option("--preset", metavar="NAME|FILE", help="Whose network.")] = "cityscapes-r2",
    overrides: Overrides = None,
    batch: bench.Batch = 1,
    classes: bench.Classes = 19,
    threads: bench.Threads = None,
    repeats: bench.Repeats = 3,
    device: Device = "auto",
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw time and memory against GFLOP.")] = None,
    json_file: Json = None,
) -> None:
    """What context heads cost, beside one another.

    Parameters, GFLOP, memory and time of each head on the maps of one backbone, and what each has above the row none,
    CCNet's head without attention, as in the paper's table. On a CPU the default takes some minutes.
    """
    refuse_outputs(json_file, plot, inputs=[preset_file(preset)])
    if plot is not None and plot.suffix.lower() != ".png" and not files.is_stream(plot):
        raise InputError(plot, "the plot is a PNG", "end the name in .png")
    sizes = bench.parse_sizes(size, (97, 97))
    if plot is not None and len(sizes) > 1:
        raise InputError("option --plot", "draws one size", "give one --size")
    from ccnet_cli import config
    from ccnet_cli.bench import heads as measured
    from ccnet_cli.config.rows import native_models

    models, run = native_models(config.load(preset, overrides or ()), heads), Run(device, threads, repeats)
    reports = [measured.measure(models, each, run, classes, batch) for each in sizes]
    if plot is not None:
        measured.write_plot(reports[0], plot)
    bench.show(reports, json_file)
