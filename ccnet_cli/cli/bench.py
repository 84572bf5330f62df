"""`ccnet bench`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from ccnet_cli import files
from ccnet_cli.bench.request import Run, Work
from ccnet_cli.cli.options import (
    CONTEXT,
    CheckpointFile,
    DataFolder,
    Device,
    Json,
    Overrides,
    Overwrite,
    Precision,
    examples,
    help_alone,
    parse_sizes,
    path_override,
    preset_file,
    refuse_outputs,
    size_of,
)
from ccnet_cli.cli.output import print_names, show_reports, write_json
from ccnet_cli.errors import CCNetError, InputError

Command = TypeVar("Command", bound=Callable[..., None])
EXAMPLES = ("ccnet bench model", "ccnet bench attention --size 97x97 --json bench.json", "ccnet bench cost")
app = typer.Typer(rich_markup_mode=None, context_settings=CONTEXT, epilog=examples(*EXAMPLES))


def _command(name: str, *lines: str) -> Callable[[Command], Command]:
    """A command, whose help ends with these examples."""
    return app.command(name, epilog=examples(*lines))


def _sizes(what: str, *default: str) -> Any:
    help = f"Size of the {what}; repeatable."
    return typer.Option("--size", "--sizes", metavar="HxW", help=help, show_default=" ".join(default))


Batch = Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Images at once.")]
Channels = Annotated[int, typer.Option(min=1, max=16384, metavar="N", help="Channels of the map.")]
Classes = Annotated[int, typer.Option(min=2, max=255, metavar="N", help="Classes.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, metavar="N", help="CPU threads.")]
Repeats = Annotated[int, typer.Option(min=1, max=10000, metavar="N", help="Rounds; each runs everything.")]
MapSize = Annotated[list[str] | None, _sizes("feature map", "97x97")]
KernelSizes = Annotated[list[str] | None, _sizes("feature map", "97x97", "129x257")]


@app.callback(invoke_without_command=True)
def bench(context: typer.Context) -> None:
    """Measure what things cost, beside the alternatives."""
    help_alone(context)


@_command(
    "attention",
    "ccnet bench attention",
    "ccnet bench attention --size 97x97 --channels 512 --recurrence 2 --threads 2",
    "ccnet bench attention --implementation reference --implementation gemm --json bench.json",
)
def bench_attention(
    size: MapSize = None,
    channels: Channels = 512,
    recurrence: Annotated[int, typer.Option(min=1, max=3, metavar="R", help="Passes of the attention.")] = 2,
    batch: Batch = 1,
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
    refuse_outputs(json_file)
    sizes = parse_sizes(size, (97, 97), numbers=batch * channels)
    from ccnet_cli.bench import attention

    run, works = Run(device, threads, repeats), [Work(size, channels, recurrence, batch) for size in sizes]
    show_reports([attention.measure(work, run, implementations, precision) for work in works], json_file)


@_command(
    "model",
    "ccnet bench model",
    "ccnet bench model --size 769x769 --threads 2 --compiled",
    "ccnet bench model --size 385x385 --size 1024x2048 --backbone resnet50 --json model.json",
    "ccnet bench model --preset quickstart -s model.head.recurrence=1",
)
def bench_model(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="ONNX and OpenVINO files to run beside them.")
    ] = None,
    size: Annotated[list[str] | None, _sizes("image", "769x769")] = None,
    preset: Annotated[str, typer.Option("--preset", metavar="NAME|FILE", help="Whose model.")] = "cityscapes-r2",
    overrides: Overrides = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="KIND", help="Another backbone (model.backbone.kind).")
    ] = None,
    recurrence: Annotated[
        int | None, typer.Option(min=0, max=3, metavar="R", help="Passes of the attention (model.head.recurrence).")
    ] = None,
    batch: Batch = 1,
    threads: Threads = None,
    repeats: Repeats = 5,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="fp32|bf16|int8", help="Measure the engine in this precision; repeatable."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compile ours with torch too, half a minute for each size.")
    ] = False,
    runtime: Annotated[
        bool | None,
        typer.Option("--onnx/--no-runtimes", help="ONNX Runtime, or no other runtime, not all that are installed."),
    ] = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Time of the network, forward: as trained, and as eval runs it.

    Weights are random: many scores lie close together, so that fewer pixels agree in bf16 than with a trained model.
    """
    refuse_outputs(json_file, inputs=[preset_file(preset)])
    sizes = parse_sizes(size, (769, 769), numbers=3 * batch)
    from ccnet_cli import config
    from ccnet_cli.bench import model

    chosen = [] if backbone is None else [f"model.backbone={backbone}"]
    chosen += [] if recurrence is None else [f"model.head.recurrence={recurrence}"]
    settings, run = config.load(preset, [*(overrides or ()), *chosen]), Run(device, threads, repeats)
    runtimes = model.installed_runtimes(device) if runtime is None else [model.ONNX] if runtime else []
    report = model.measure(settings.model, sizes, run, batch, precisions, compiled, runtimes, files or ())
    show_reports([report], json_file)


@_command("cost", "ccnet bench cost", "ccnet bench cost --size 129x257 --json cost.json", "ccnet bench cost --json -")
def bench_cost(
    size: MapSize = None,
    channels: Channels = 512,
    batch: Batch = 1,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """The paper's table: GFLOP and memory of the attention.

    One to three passes, and a non-local block, each alone.

    The last two columns are what the paper printed for one image of 769x769, whose map is 97x97 with 512 channels.
    """
    refuse_outputs(json_file)
    sizes = parse_sizes(size, (97, 97), numbers=batch * channels)
    from ccnet_cli.bench import cost

    show_reports([cost.measure(Work(size, channels, batch=batch), device) for size in sizes], json_file)


@_command("growth", "ccnet bench growth", "ccnet bench growth --size 33x33 --size 97x97 --plot growth.png")
def bench_growth(
    size: Annotated[list[str] | None, _sizes("feature map", "33x33 to 129x257")] = None,
    channels: Channels = 512,
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
    refuse_outputs(json_file, plot)
    if plot is not None and plot.suffix.lower() != ".png" and not files.is_stream(plot):
        raise InputError(plot, "the plot is a PNG", "end the name in .png")
    sizes = parse_sizes(size, numbers=channels)
    from ccnet_cli.bench import growth

    report = growth.measure(sizes or growth.SIZES, Run(device, threads, repeats), channels, implementation)
    if plot is not None:
        growth.write_plot(report, plot)
    show_reports([report], json_file)


@_command("loss", "ccnet bench loss", "ccnet bench loss --size 385x385 --size 769x769 --threads 2 --json loss.json")
def bench_loss(
    size: Annotated[list[str] | None, _sizes("image", "769x769")] = None,
    batch: Batch = 2,
    classes: Classes = 19,
    threads: Threads = None,
    repeats: Repeats = 5,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Time and memory of the loss, beside plain cross entropy.

    Forward and backward; the authors' way too, through the host.
    """
    refuse_outputs(json_file)
    sizes = parse_sizes(size, (769, 769), numbers=batch * classes)
    from ccnet_cli.bench import loss

    show_reports([loss.measure(sizes, Run(device, threads, repeats), batch, classes)], json_file)


@_command(
    "step",
    "ccnet bench step",
    "ccnet bench step --size 385x385 --size 769x769 --batch 2 --threads 2 --json step.json",
    "ccnet bench step -s model.backbone=resnet50",
)
def bench_step(
    preset: Annotated[str, typer.Option("--preset", metavar="NAME|FILE", help="Whose model.")] = "cityscapes-r2-ohem",
    overrides: Overrides = None,
    size: Annotated[list[str] | None, _sizes("image", "385x385")] = None,
    batch: Annotated[int, typer.Option(min=2, max=1024, metavar="N", help="Images at once.")] = 2,
    classes: Classes = 19,
    threads: Threads = None,
    repeats: Repeats = 3,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Time and memory of a training step, beside the authors' own."""
    refuse_outputs(json_file, inputs=[preset_file(preset)])
    sizes = parse_sizes(size, (385, 385), numbers=batch * classes)
    from ccnet_cli import config
    from ccnet_cli.bench import step

    settings = config.load(preset, overrides or ())
    show_reports([step.measure(settings, sizes, Run(device, threads, repeats), batch, classes)], json_file)


@_command(
    "data",
    "ccnet bench data",
    "ccnet bench data --size 512x1024 --size 1024x2048 --workers 0,1,2,4 --json data.json",
    "ccnet bench data --preset cityscapes-r2 --data /data/cityscapes",
)
def bench_data(
    preset: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Measure its training data in place of made pictures.")
    ] = None,
    data: DataFolder = None,
    size: Annotated[list[str] | None, _sizes("made pictures", "1024x2048")] = None,
    crop: Annotated[str | None, typer.Option(metavar="HxW", help="Size of the crop (data.crop).")] = None,
    workers: Annotated[str, typer.Option(metavar="N,...", help="Processes of the loader, 0 for none.")] = "0,1,2",
    batch: Batch = 4,
    threads: Threads = None,
    repeats: Repeats = 30,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Time of a training sample, and the loader's images per second.

    The sample is made the authors' way and ours.
    """
    refuse_outputs(json_file, inputs=[preset_file(preset)])
    sizes = parse_sizes(size, (1024, 2048), numbers=3 * batch)
    counts = [int(number) if number.isdecimal() and len(number) < 9 else 65 for number in workers.split(",")]
    if max(counts) > 64 or len(counts) > 16:
        what = f"option --workers {workers[:40]}"
        raise InputError(what, "not a list of up to 16 numbers to 64", "write for example 0,1,2")
    if data is not None and preset is None:
        raise InputError("option --data", "needs a preset that describes it", "add --preset NAME")
    cut = None if crop is None else size_of(crop, "--crop")
    from ccnet_cli import config
    from ccnet_cli.bench import data as samples
    from ccnet_cli.datasets.source import open_source

    settings = None if preset is None else config.load(preset, path_override("data.root", data))
    if settings is not None:
        refuse_outputs(json_file, inputs=open_source(settings.data, "train").samples.files())
    show_reports([samples.measure(settings, sizes, Run(device, threads, repeats), cut, counts, batch)], json_file)


@_command(
    "eval",
    "ccnet bench eval",
    "ccnet bench eval --size 1024x2048 --size 512x1024 --threads 2 --json eval.json",
    "ccnet bench eval --classes 150 --size 512x683",
)
def bench_eval(
    size: Annotated[list[str] | None, _sizes("image", "1024x2048")] = None,
    classes: Annotated[int, typer.Option(min=1, max=255, metavar="K", help="Classes.")] = 19,
    tile: Annotated[str, typer.Option(metavar="HxW", help="Size of the tiles.")] = "769x769",
    threads: Threads = None,
    repeats: Repeats = 5,
    json_file: Json = None,
) -> None:
    """What an evaluation does around the network, on the CPU.

    From the tiles' logits to the confusion matrix, beside the authors' way.
    """
    refuse_outputs(json_file)
    sizes, tiles = parse_sizes(size, (1024, 2048), numbers=classes), size_of(tile, "--tile")
    from ccnet_cli.bench import evaluation

    show_reports([evaluation.measure(sizes, Run("cpu", threads, repeats), classes, tiles)], json_file)


@_command(
    "predict",
    "ccnet bench predict --processes 2 --threads 1",
    "ccnet bench predict --checkpoint runs/camvid --size 1024x2048 --size 512x1024 --json predict.json",
)
def bench_predict(
    checkpoint: CheckpointFile = None,
    size: Annotated[list[str] | None, _sizes("image", "512x1024")] = None,
    processes: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Measure 1 to N processes.")] = 1,
    images: Annotated[int, typer.Option(min=8, max=100000, metavar="N", help="Images of each measurement.")] = 40,
    threads: Threads = None,
    repeats: Repeats = 5,
    precision: Precision = "fp32",
    overrides: Overrides = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Time of an image from file to file, by stage and by processes."""
    refuse_outputs(json_file, inputs=[checkpoint])
    sizes = parse_sizes(size, (512, 1024))
    from ccnet_cli.bench import prediction

    work = prediction.Prediction(checkpoint, tuple(overrides or ()), precision, processes, images)
    show_reports([prediction.measure(work, sizes, Run(device, threads, repeats))], json_file)


@_command(
    "kernels",
    "ccnet bench kernels --arch sm_80 --arch sm_90",
    "ccnet bench kernels --size 129x257 --dtype bfloat16 --json kernels.json",
)
def bench_kernels(
    archs: Annotated[
        list[str] | None, typer.Option("--arch", metavar="sm_NN", help="Architecture to compile for; repeatable.")
    ] = None,
    size: KernelSizes = None,
    channels: Channels = 512,
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
    refuse_outputs(json_file)
    sizes = parse_sizes(size, (97, 97), (129, 257), numbers=channels)
    from ccnet_cli.bench import kernels

    show_reports([kernels.analyse(archs or ("sm_80", "sm_90"), sizes, channels, dtype, counters)], json_file)


@_command("gpu", "ccnet bench gpu -o report.json", "ccnet bench gpu -o r.json --device cuda:1")
def bench_gpu(
    output: Annotated[Path, typer.Option("--output", "-o", "--json", metavar="FILE", help="The report, JSON.")],
    device: Annotated[str, typer.Option(metavar="NAME", help="cuda or cuda:N.")] = "cuda",
    size: KernelSizes = None,
    overwrite: Overwrite = False,
) -> None:
    """Check the CUDA kernels on this machine's GPU and time them.

    Results and gradients against float64, repeated runs, another stream, graph capture; then one pass of each
    formulation at three sizes, of 1, 2 and 8 images, in bf16, TF32 and fp32; the attention, a model and steps of
    training. Takes some minutes. Exit code 1 where a check failed; the report is written all the same, and after every
    row, should the machine go away.
    """
    refuse_outputs(output, overwrite=overwrite)
    sizes = parse_sizes(size, (97, 97), (128, 256), (129, 257))
    from ccnet_cli.bench import gpu

    # to a terminal or a pipe only the whole is written
    keep = str(output) != "-" and not files.is_stream(output)
    report = gpu.examine(device, sizes, lambda values: write_json(values, output) if keep else None)
    alone = show_reports([report], output)
    if report.values["failed"]:
        raise CCNetError(output, f"{report.values['failed']} checks failed", "see it, and send it to us")
    if not alone:
        print_names(output)
