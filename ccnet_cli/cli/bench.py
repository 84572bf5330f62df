"""`ccnet bench`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ccnet_cli.cli.options import (
    CONTEXT,
    DataFolder,
    Device,
    Json,
    Overrides,
    Overwrite,
    examples,
    help_alone,
    path_of,
    refuse_existing,
    refuse_unwritable,
    size_of,
)
from ccnet_cli.cli.output import table, write_json
from ccnet_cli.errors import CCNetError, InputError

BENCH_EXAMPLES = examples(
    "ccnet bench model",
    "ccnet bench attention",
    "ccnet bench attention --size 97x97 --json bench.json",
    "ccnet bench cost",
)


app = typer.Typer(rich_markup_mode=None, context_settings=CONTEXT, epilog=BENCH_EXAMPLES)


Sizes = Annotated[list[str] | None, typer.Option("--sizes", metavar="HxW", help="Size of the images; repeatable.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, metavar="N", help="CPU threads.")]
Repeats = Annotated[int, typer.Option(min=1, max=10000, metavar="N", help="Rounds; each runs everything.")]


def _show(report: Any, json_file: Path | None) -> None:
    """Print a report's tables, or all of it as JSON."""
    if not write_json(report.to_mapping(), json_file):
        for sheet in report.sheets():
            table(*sheet)


@app.callback(invoke_without_command=True)
def bench(context: typer.Context) -> None:
    """Measure what things cost, beside the alternatives."""
    help_alone(context)


@app.command(
    "attention",
    epilog=examples(
        "ccnet bench attention",
        "ccnet bench attention --size 97x97 --channels 512 --recurrence 2 --threads 2",
        "ccnet bench attention --implementation reference --implementation gemm --json bench.json",
    ),
)
def bench_attention(
    size: Annotated[str, typer.Option(metavar="HxW", help="Size of the feature map.")] = "97x97",
    channels: Annotated[int, typer.Option(min=1, max=16384, metavar="N", help="Channels of the map.")] = 512,
    recurrence: Annotated[int, typer.Option(min=1, max=3, metavar="R", help="Passes of the attention.")] = 2,
    batch: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Images at once.")] = 1,
    threads: Threads = None,
    repeats: Repeats = 5,
    implementations: Annotated[
        list[str] | None, typer.Option("--implementation", metavar="NAME", help="Measure these only; repeatable.")
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"],
        typer.Option(metavar="fp32|fp16|bf16", help="Type of the map, and of autocast."),
    ] = "fp32",
    json_file: Json = None,
) -> None:
    """Time and memory of the attention, beside the alternatives.

    Every implementation, the official formulation and a non-local block.
    """
    refuse_unwritable(json_file)
    height, width = size_of(size)
    from ccnet_cli.bench.attention import attention

    report = attention(
        size=(height, width),
        channels=channels,
        recurrence=recurrence,
        batch=batch,
        threads=threads,
        repeats=repeats,
        implementations=implementations,
        device=device,
        precision=precision,
    )
    _show(report, json_file)


@app.command(
    "model",
    epilog=examples(
        "ccnet bench model",
        "ccnet bench model --size 769x769 --threads 2 --compiled",
        "ccnet bench model --size 385x385 --size 1024x2048 --backbone resnet50 --json model.json",
    ),
)
def bench_model(
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", "--sizes", metavar="HxW", help="Size of the image, 769x769; repeatable."),
    ] = None,
    backbone: Annotated[
        Literal["tiny", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
        typer.Option(metavar="NAME", help="tiny, or resnet18, 34, 50, 101 or 152."),
    ] = "resnet101",
    recurrence: Annotated[int, typer.Option(min=0, max=3, metavar="R", help="Passes of the attention.")] = 2,
    batch: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Images at once.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, metavar="N", help="CPU threads.")] = None,
    repeats: Annotated[int, typer.Option(min=1, max=10000, metavar="N", help="Rounds; each runs everything.")] = 5,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="fp32|bf16", help="Measure the engine in this precision; repeatable."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compile ours with torch too, half a minute for each size.")
    ] = False,
    runtime: Annotated[
        bool, typer.Option("--onnx", help="Run ONNX Runtime beside them (pip install 'ccnet-cli[onnx]').")
    ] = False,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Time of the network, forward: as trained, and as eval runs it.

    Weights are random: many scores lie close together, so that fewer pixels agree in bf16 than with a trained model.
    """
    refuse_unwritable(json_file)
    images = [size_of(text) for text in sizes or ("769x769",)]
    from ccnet_cli.bench.model import model

    report = model(images, backbone, recurrence, batch, threads, repeats, precisions, compiled, device, runtime=runtime)
    _show(report, json_file)


@app.command(
    "cost",
    epilog=examples(
        "ccnet bench cost", "ccnet bench cost --size 129x257 --json cost.json", "ccnet bench cost --json -"
    ),
)
def bench_cost(
    size: Annotated[str, typer.Option(metavar="HxW", help="Size of the feature map.")] = "97x97",
    channels: Annotated[int, typer.Option(min=1, max=16384, metavar="N", help="Channels of the map.")] = 512,
    batch: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Images at once.")] = 1,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """The paper's table: GFLOP and memory of the attention.

    One to three passes, and a non-local block, each alone.

    The last two columns are what the paper printed for one image of 769x769, whose map is 97x97 with 512 channels.
    """
    refuse_unwritable(json_file)
    height, width = size_of(size)
    from ccnet_cli.bench.cost import cost

    report = cost((height, width), channels, batch, device)
    _show(report, json_file)


@app.command(
    "growth",
    epilog=examples("ccnet bench growth", "ccnet bench growth --sizes 33x33 --sizes 97x97 --plot growth.png"),
)
def bench_growth(
    sizes: Annotated[
        list[str] | None, typer.Option("--sizes", metavar="HxW", help="Size of the feature map; repeatable.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, max=16384, metavar="N", help="Channels of the map.")] = 512,
    threads: Threads = None,
    repeats: Repeats = 5,
    implementation: Annotated[str, typer.Option(metavar="NAME", help="Of the criss-cross attention.")] = "auto",
    device: Device = "auto",
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw time and memory against the size.")] = None,
    json_file: Json = None,
) -> None:
    """How attention grows with the map, beside a non-local block.

    One forward pass without the projections. The constants are milliseconds and MiB for a million pairs of pixels.
    """
    refuse_unwritable(json_file, plot)
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(plot, "the plot is a PNG", "end the name in .png")
    maps = [size_of(text) for text in sizes or ()]
    from ccnet_cli.bench import growth
    from ccnet_cli.media import images

    found = growth.growth(maps or growth.SIZES, channels, threads, repeats, implementation, device)
    if plot is not None:
        images.write_image(plot, growth.plot(found))
    _show(found, json_file)


@app.command(
    "loss",
    epilog=examples(
        "ccnet bench loss", "ccnet bench loss --sizes 385x385 --sizes 769x769 --threads 2 --json loss.json"
    ),
)
def bench_loss(
    sizes: Sizes = None,
    batch: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Images at once.")] = 2,
    classes: Annotated[int, typer.Option(min=2, max=255, metavar="N", help="Classes.")] = 19,
    threads: Threads = None,
    repeats: Repeats = 5,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Time and memory of the loss, beside plain cross entropy.

    Forward and backward; the authors' way too, through the host.
    """
    refuse_unwritable(json_file)
    maps = [size_of(text) for text in sizes or ("769x769",)]
    from ccnet_cli.bench.loss import loss

    report = loss(maps, batch, classes, threads, repeats, device)
    _show(report, json_file)


@app.command(
    "step",
    epilog=examples(
        "ccnet bench step",
        "ccnet bench step --sizes 385x385 --sizes 769x769 --batch 2 --threads 2 --json step.json",
        "ccnet bench step -s model.backbone=resnet50",
    ),
)
def bench_step(
    preset: Annotated[str, typer.Option("--preset", metavar="NAME|FILE", help="Whose model.")] = "cityscapes-r2-ohem",
    overrides: Overrides = None,
    sizes: Sizes = None,
    batch: Annotated[int, typer.Option(min=2, max=1024, metavar="N", help="Images at once.")] = 2,
    classes: Annotated[int, typer.Option(min=2, max=255, metavar="N", help="Classes.")] = 19,
    threads: Threads = None,
    repeats: Repeats = 3,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Time and memory of a training step, beside the authors' own."""
    refuse_unwritable(json_file)
    maps = [size_of(text) for text in sizes or ("385x385",)]
    from ccnet_cli import config
    from ccnet_cli.bench.step import step

    made = config.load(preset, overrides or ())
    report = step(made, maps, batch, classes, threads, repeats, device)
    _show(report, json_file)


@app.command(
    "data",
    epilog=examples(
        "ccnet bench data",
        "ccnet bench data --sizes 512x1024,1024x2048 --workers 0,1,2,4 --json data.json",
        "ccnet bench data --preset cityscapes-r2 --data /data/cityscapes",
    ),
)
def bench_data(
    preset: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Measure its training data in place of made pictures.")
    ] = None,
    data: DataFolder = None,
    sizes: Annotated[str, typer.Option(metavar="HxW,...", help="Sizes of the made pictures.")] = "1024x2048",
    crop: Annotated[str | None, typer.Option(metavar="HxW", help="Size of the crop (data.crop).")] = None,
    workers: Annotated[str, typer.Option(metavar="N,...", help="Processes of the loader, 0 for none.")] = "0,1,2",
    batch: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Images at once.")] = 4,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, metavar="N", help="CPU threads.")] = None,
    repeats: Annotated[int, typer.Option(min=1, max=10000, metavar="N", help="Rounds; each runs everything.")] = 30,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Time of a training sample, and the loader's images per second.

    The sample is made the authors' way and ours.
    """
    refuse_unwritable(json_file)
    maps = [size_of(text) for text in sizes.split(",")]
    counts = [int(number) if number.isdecimal() else 65 for number in workers.split(",")]
    if max(counts) > 64:
        raise InputError(f"option --workers {workers}", "not a list of numbers up to 64", "write for example 0,1,2")
    if data is not None and preset is None:
        raise InputError("option --data", "needs a preset that tells what it holds", "add --preset NAME")
    chosen = None
    if preset is not None:
        from ccnet_cli import config

        chosen = config.load(preset, path_of("data.root", data))
    from ccnet_cli.bench.data import data as measure

    report = measure(
        preset=chosen,
        sizes=maps,
        crop=None if crop is None else size_of(crop),
        workers=counts,
        batch=batch,
        threads=threads,
        repeats=repeats,
        device=device,
    )
    _show(report, json_file)


@app.command(
    "eval",
    epilog=examples(
        "ccnet bench eval",
        "ccnet bench eval --sizes 1024x2048 --sizes 512x1024 --threads 2 --json eval.json",
        "ccnet bench eval --classes 150 --sizes 512x683",
    ),
)
def bench_eval(
    sizes: Sizes = None,
    classes: Annotated[int, typer.Option(min=1, max=255, metavar="K", help="Classes.")] = 19,
    tile: Annotated[str, typer.Option(metavar="HxW", help="Size of the tiles.")] = "769x769",
    threads: Threads = None,
    repeats: Repeats = 5,
    json_file: Json = None,
) -> None:
    """What an evaluation does around the network, on the CPU.

    From the tiles' logits to the confusion matrix, beside the authors' way.
    """
    refuse_unwritable(json_file)
    pictures = [size_of(text) for text in sizes or ("1024x2048",)]
    tiles = size_of(tile)
    from ccnet_cli.bench.evaluation import evaluation

    report = evaluation(pictures, classes, tiles, threads, repeats)
    _show(report, json_file)


@app.command(
    "kernels",
    epilog=examples(
        "ccnet bench kernels --arch sm_80 --arch sm_90",
        "ccnet bench kernels --size 129x257 --dtype bfloat16 --json kernels.json",
    ),
)
def bench_kernels(
    archs: Annotated[
        list[str] | None, typer.Option("--arch", metavar="sm_NN", help="Architecture to compile for; repeatable.")
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--size", metavar="HxW", help="Size of the feature map; repeatable.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, max=16384, metavar="N", help="Channels of the map.")] = 512,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(metavar="float32|float16|bfloat16", help="What value, output and gradients are stored as."),
    ] = "float32",
    counters: Annotated[bool, typer.Option("--counters", help="Execute both passes with ptxrun and count.")] = False,
    json_file: Json = None,
) -> None:
    """Registers, memory and floors of the CUDA kernels.

    They are compiled here; that takes no GPU.
    """
    refuse_unwritable(json_file)
    maps = [size_of(text) for text in sizes or ("97x97", "129x257")]
    from ccnet_cli.bench.kernels import report

    found = report(archs or ("sm_80", "sm_90"), maps, channels, dtype, counters)
    _show(found, json_file)


@app.command("gpu", epilog=examples("ccnet bench gpu -o report.json", "ccnet bench gpu -o r.json --device cuda:1"))
def bench_gpu(
    output: Annotated[Path, typer.Option("--output", "-o", "--json", metavar="FILE", help="The report, JSON.")],
    device: Annotated[str, typer.Option(metavar="NAME", help="cuda or cuda:N.")] = "cuda",
    overwrite: Overwrite = False,
) -> None:
    """Check the CUDA kernels on this machine's GPU and time them.

    Results and gradients against float64, repeated runs, another stream, graph capture; then the attention at 97x97 and
    129x257 in fp32 and bf16. Takes some minutes. Exit code 1 where a check failed; the report is written all the same.
    """
    refuse_existing(output, overwrite)
    from ccnet_cli.bench.gpu import report

    found = report(device)
    alone = write_json(found.to_mapping(), output)
    if not alone:
        for sheet in found.sheets():
            table(*sheet)
    if found.failed:
        raise CCNetError(output, f"{found.failed} checks failed", "see it, and send it to us")
    if not alone:
        print(output)
