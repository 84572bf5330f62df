"""`ccnet compare` and `ccnet bench heads`: context heads beside one another."""

from pathlib import Path
from typing import Annotated

import typer

from ccnet_cli import files
from ccnet_cli.bench.request import Run
from ccnet_cli.cli import bench
from ccnet_cli.cli.options import (
    DataFolder,
    Device,
    Gpus,
    Json,
    Overrides,
    Processes,
    examples,
    parse_sizes,
    path_override,
    preset_file,
    preset_names,
    refuse_outputs,
)
from ccnet_cli.cli.output import print_names, show_reports, table, write_json
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
    CCNet's head without attention, as in the paper's table. On a CPU of few cores the default takes half an hour, and
    --size 33x33 a ninth of that.
    """
    refuse_outputs(json_file, plot, inputs=[preset_file(preset)])
    if plot is not None and plot.suffix.lower() != ".png" and not files.is_stream(plot):
        raise InputError(plot, "the plot is a PNG", "end the name in .png")
    sizes = parse_sizes(size, (97, 97), numbers=2048 * batch)
    if plot is not None and len(sizes) > 1:
        raise InputError("option --plot", "draws one size", "give one --size")
    from ccnet_cli import config
    from ccnet_cli.bench import heads as measured
    from ccnet_cli.config.rows import native_models

    models, run = native_models(config.load(preset, overrides or ()), heads), Run(device, threads, repeats)
    reports = [measured.measure(models, each, run, classes, batch) for each in sizes]
    if plot is not None:
        measured.write_plot(reports[0], plot)
    show_reports(reports, json_file)


@app.command(
    epilog=examples(
        "ccnet compare --preset toyscapes-r2 --head none --head psp --head nonlocal --head rcca --seeds 3 -o compare",
        "ccnet compare --preset toyscapes2-r2 --processes 2 -o two",
        "ccnet compare --preset cityscapes-r2 --data Cityscapes --weights mit-resnet101-imagenet --gpus 4 -o city",
    )
)
def compare(
    preset: Annotated[
        str,
        typer.Option(metavar="NAME|FILE", help="The recipe of all rows.", autocompletion=preset_names),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder, or one to go on with.")],
    heads: Heads = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Seeds of each row, from the preset's.")] = 3,
    overrides: Overrides = None,
    data: DataFolder = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Begin every run with these weights.")] = None,
    gpus: Gpus = None,
    processes: Processes = 1,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Train context heads under one recipe, and compare them.

    A run for each row and seed, scored by its last checkpoint; killed and started again, each goes on where it was. Of
    several processes each takes whole runs, and so does a second command on the same folder. DIR gets compare.json,
    compare.csv and report.html, written anew after each run.
    """
    refuse_outputs(json_file, inputs=[preset_file(preset), weights])
    from ccnet_cli import config
    from ccnet_cli.bench.heads import measure_on_crop
    from ccnet_cli.commands.compare import CompareRequest
    from ccnet_cli.commands.compare import compare as start
    from ccnet_cli.figures.comparison import sheets

    settings = config.load(preset, [*(overrides or ()), *path_override("data.root", data)])
    rows = None if heads is None else tuple(heads)
    request = CompareRequest(settings, output, rows, seeds, weights, device, gpus, processes)
    values = start(request, measure_on_crop)
    if not write_json(values, json_file):
        for sheet in sheets(values):
            table(*sheet)
        print_names(output / "report.html")
