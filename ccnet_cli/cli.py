"""The command line: each command reads its arguments, calls one function and prints what it returns."""

import difflib
import errno
import itertools
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.exceptions import TyperException

from ccnet_cli.errors import (
    VERBOSITY,
    CCNetError,
    EnvironmentFailure,
    InputError,
    detail,
    one_line,
    out_of_memory,
    tell,
)

if TYPE_CHECKING:
    from rich.console import Console

# options of every command, wherever they stand
ANYWHERE = {"--debug": "debug", "--quiet": "quiet", "-q": "quiet", "--verbose": "verbose", "-v": "verbose"}
CONTEXT = {"help_option_names": ["-h", "--help"]}
# plain help: rich's panels would cost a third of the time that --help may take
app = typer.Typer(rich_markup_mode=None, context_settings=CONTEXT)
bench_app = typer.Typer(rich_markup_mode=None, context_settings=CONTEXT)
presets_app = typer.Typer(rich_markup_mode=None, context_settings=CONTEXT)
data_app = typer.Typer(rich_markup_mode=None, context_settings=CONTEXT)


def _examples(*lines: str) -> str:
    # \b keeps the lines as they are, whatever the terminal's width
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


BENCH_EXAMPLES = _examples(
    "ccnet bench attention", "ccnet bench attention --size 97x97 --json bench.json", "ccnet bench cost"
)
PRESETS_EXAMPLES = _examples(
    "ccnet presets list",
    "ccnet presets show camvid",
    "ccnet presets copy quickstart mine.yaml",
    "ccnet presets diff quickstart mine.yaml",
)
DATA_EXAMPLES = _examples(
    "ccnet data make toyscapes toys",
    "ccnet data check toys",
    "ccnet data sample img.png",
)
app.add_typer(bench_app, name="bench", epilog=BENCH_EXAMPLES)
app.add_typer(presets_app, name="presets", epilog=PRESETS_EXAMPLES)
app.add_typer(data_app, name="data", epilog=DATA_EXAMPLES)


class Format(StrEnum):
    """How a segmentation is written."""

    COLOR = "color"
    OVERLAY = "overlay"
    TRAIN_ID = "train-id"
    LABEL_ID = "label-id"


Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a preset key; repeatable.")
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="Checkpoint; else $CCNET_CHECKPOINT, the newest run below ./runs, the demo weights.",
    ),
]


def _preset_names(incomplete: str) -> list[str]:
    """What a shell completes a preset's name to."""
    from ccnet_cli import config

    return [name for name in config.names() if name.startswith(incomplete)]


PresetName = Annotated[str, typer.Argument(metavar="NAME|FILE", help="The preset.", autocompletion=_preset_names)]
OtherPreset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME|FILE",
        help="Preset in place of the one that the file holds or suggests.",
        autocompletion=_preset_names,
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
DataFolder = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Folder of the data set (data.root).")]
Gpus = Annotated[int | None, typer.Option(min=1, metavar="N", help="GPUs to use, one process on each.")]
Processes = Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Processes on the CPU.")]
Mode = Annotated[
    Literal["whole", "sliding"] | None,
    typer.Option(metavar="whole|sliding", help="The whole image at once, or tile by tile."),
]
Scales = Annotated[str | None, typer.Option(metavar="LIST", help="Scales to average over, such as 0.75,1,1.25.")]
Flip = Annotated[bool | None, typer.Option("--flip", help="Average over the mirrored image too.")]
Formats = Annotated[
    list[Format] | None,
    typer.Option("--format", metavar="NAME", help="color, overlay, train-id or label-id; repeatable."),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - prints JSON alone.")
]


def _version(asked: bool) -> None:
    if asked:
        from ccnet_cli.version import describe

        print(describe())
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog=_examples(
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Tell errors alone: no notices, no progress.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell more: what was found, how long it took.")
    ] = False,
) -> None:
    """Semantic segmentation with criss-cross attention.

    --debug, --quiet and --verbose may stand anywhere, after the command too.

    Exit codes: 0 done, 2 bad input, 3 the machine failed, 4 loss not finite, 130, 138 or 143 interrupted, 1 a bug.
    """
    _help_alone(context)


def _help_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog=_examples(
        "ccnet train --preset quickstart",
        "ccnet train --preset camvid --data CamVid -o runs/camvid",
        "ccnet train --preset cityscapes-r2-ohem --data Cityscapes --gpus 4 --weights resnet101-imagenet.pth",
        "ccnet train --preset quickstart -s model.recurrence=1 -s schedule.steps=200",
        "ccnet train --preset quickstart -o runs/first --resume",
    )
)
def train(
    preset: Annotated[
        str,
        typer.Option(metavar="NAME|FILE", help="What to run; see ccnet presets list.", autocompletion=_preset_names),
    ],
    overrides: Overrides = None,
    data: DataFolder = None,
    run: Annotated[
        Path | None, typer.Option("--run", "-o", metavar="DIR", help="Folder of the run; a new one below ./runs.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="[FILE]", help="Continue from FILE, or from the newest sound checkpoint of the run."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict-resume", help="Refuse to resume under other settings, data or threads.")
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Begin with these weights: a checkpoint, the authors', ImageNet's, ..."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--allow-partial", help="Take the weights that fit, as long as the backbone's do.")
    ] = False,
    gpus: Gpus = None,
    processes: Processes = 1,
    nodes: Annotated[int | None, typer.Option(min=1, max=1024, metavar="M", help="Machines of the run.")] = None,
    node_rank: Annotated[
        int | None, typer.Option(min=0, metavar="K", help="Which of the machines this is, from 0.")
    ] = None,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where machine 0 is reached by the others.")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, max=1000, metavar="N", help="Times to go on from the newest checkpoint by itself.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long a process waits for the others in a step.")
    ] = 600,
    join_timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long it waits for the others to come.")
    ] = 300,
    shutdown_timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Time to end after a signal; twice that of a checkpoint.")
    ] = 60,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of weights and data order.")] = None,
    device: Device = "auto",
) -> None:
    """Train a model; the run folder holds everything that belongs to the run."""
    from ccnet_cli import config

    settings = config.load(
        preset, [*(overrides or ()), *_path("data.root", data), *([] if seed is None else [f"seed={seed}"])]
    )
    detail(f"preset {settings.name} of {config.find(preset)}")
    from ccnet_cli.distributed import Limits
    from ccnet_cli.launch import machines
    from ccnet_cli.train import train as start

    folder = start(
        settings,
        run=run,
        resume=resume,
        gpus=gpus,
        processes=processes,
        weights=weights,
        device=device,
        partial=partial,
        strict=strict,
        machines=machines(nodes, node_rank, rendezvous),
        restarts=max_restarts,
        limits=Limits(join_timeout, timeout, shutdown_timeout),
    )
    # one of several speaks
    if folder is not None:
        print(folder)


@app.command(
    "eval",
    epilog=_examples(
        "ccnet eval",
        "ccnet eval runs/camvid/best.pt --data CamVid --json scores.json",
        "ccnet eval CS_scenes_60000.pth --data Cityscapes",
        "ccnet eval ckpt.pt --data Cityscapes --mode sliding --scales 0.75,1,1.25 --flip",
        "ccnet eval ckpt.pt --data Cityscapes --save results --format label-id",
        "ccnet eval ckpt.pt --data Cityscapes --split test --list test.lst --save results --format label-id",
    ),
)
def evaluate(
    checkpoint: Annotated[Path | None, typer.Argument(metavar="CKPT", help="Checkpoint to score.")] = None,
    option: CheckpointFile = None,
    data: DataFolder = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="train, val, or another, such as test, that may have no labels.")
    ] = "val",
    listing: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="List file of the split (data.train_list, val_list or test_list)."),
    ] = None,
    preset: OtherPreset = None,
    overrides: Overrides = None,
    mode: Mode = None,
    scales: Scales = None,
    flip: Flip = None,
    device: Device = "auto",
    gpus: Gpus = None,
    processes: Processes = 1,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Score the first N images only.")] = None,
    json_file: Json = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the IoU of each class.")] = None,
    confusion: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the confusion matrix.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the label maps here.")] = None,
    formats: Formats = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a checkpoint, ours or other people's: IoU of each class, mIoU, pixel and mean accuracy."""
    if checkpoint and option:
        raise InputError(f"checkpoint {option}", f"{checkpoint} is given too", "give one of them")
    _writable(json_file, csv, confusion)
    averaged = _numbers("--scales", scales)
    from ccnet_cli.evaluate import score

    found = score(
        checkpoint or option,
        gpus=gpus,
        processes=processes,
        data=None if data is None else str(data),
        split=split,
        preset=preset,
        overrides=[*(overrides or ()), *_path(f"data.{split}_list", listing)],
        mode=mode,
        scales=averaged,
        flip=flip,
        device=device,
        limit=limit,
        confusion=confusion,
        save=save,
        save_formats=formats or [Format.COLOR],
        overwrite=overwrite,
    )
    # one of several speaks
    if found is None:
        return
    result = found.to_mapping()
    if csv:
        rows = [*result["classes"].items(), ("mIoU", result["miou"])]
        table = "class,iou\n" + "".join(f"{_quoted(name)},{'' if v is None else v}\n" for name, v in rows)
        _write(csv, table.encode())
    if _json(result, json_file):
        return
    title = f"{result['images']} images, {result['checkpoint']}"
    if result["miou"] is None:
        print(f"{title}: not scored")
        return
    rows = [(name, _percent(value)) for name, value in result["classes"].items()]
    summary = [("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy"), ("mean accuracy", "mean_accuracy")]
    rows += [(label, _percent(result[key])) for label, key in summary]
    _table(title, ("class", "IoU %"), rows, sections=[len(rows) - 4])


@app.command(
    epilog=_examples(
        "ccnet predict img.png -o mask.png",
        "ccnet predict street.jpg -o overlay.png --format overlay --legend legend.png",
        "ccnet predict photos 'more/*.jpg' -o masks --format color --format train-id",
        "ccnet predict photos -o masks --continue",
        "ccnet predict - -o masks --probabilities npz --json areas.json < names.txt",
        "ccnet predict drive.mov -o drive.webm --format overlay",
    )
)
def predict(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Images, videos, folders, patterns; - reads names.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|DIR",
            help="A .png for one image, a .mp4 or .webm for one video, else a folder.",
        ),
    ],
    checkpoint: CheckpointFile = None,
    formats: Formats = None,
    legend: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the colours' names.")] = None,
    probabilities: Annotated[
        Literal["npz"] | None,
        typer.Option(metavar="npz", help="Write float16 arrays (classes, height, width) beside the masks of images."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write each class's area in each source; - prints JSON alone."),
    ] = None,
    overwrite: Overwrite = False,
    continued: Annotated[
        bool, typer.Option("--continue", help="Keep what is whole, whatever checkpoint it is from; segment the rest.")
    ] = False,
    device: Device = "auto",
    mode: Mode = None,
    scales: Scales = None,
    flip: Flip = None,
    preset: OtherPreset = None,
    overrides: Overrides = None,
) -> None:
    """Segment photographs and videos: colour masks, overlays or label ids, probabilities, areas."""
    _writable(json_file)
    averaged = _numbers("--scales", scales)
    from ccnet_cli.predict import predict as segment

    result = segment(
        sources,
        output,
        checkpoint=checkpoint,
        formats=formats or [Format.COLOR],
        overwrite=overwrite,
        legend=legend,
        device=device,
        mode=mode,
        scales=averaged,
        flip=flip,
        preset=preset,
        overrides=overrides or (),
        npz=probabilities is not None,
        areas=json_file is not None,
        continued=continued,
    )
    if json_file is not None and _json(result.to_mapping(), json_file):
        return
    for path in result.files:
        print(path)


@app.command(
    epilog=_examples(
        "ccnet visualize --point 300,400",
        "ccnet visualize street.jpg --point 300,400 --point 120,80 -o attention.png",
        "ccnet visualize --point 300,400 --clip 98 --maps attention.npz",
        "ccnet visualize street.jpg --point 300,400 --checkpoint runs/r1 --compare runs/r2",
        "ccnet visualize street.jpg --html viewer.html --label street_label.png",
        "ccnet visualize one.jpg two.jpg --html viewers/",
    )
)
def visualize(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE]...", help="The sample image if left out; several for --html."),
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option("--point", metavar="X,Y", help="Pixel of the image, from top left; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="attention.png, or the next free number of it."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE|DIR", help="Write a page to explore instead: a .html file, or a folder of them."),
    ] = None,
    label: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Label map to show in the page, a PNG of the data set's ids.")
    ] = None,
    checkpoint: CheckpointFile = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A second checkpoint, drawn beside the first.")
    ] = None,
    clip: Annotated[
        float, typer.Option(min=0, max=100, metavar="PERCENT", help="Percentile above which weights look alike.")
    ] = 99.0,
    maps: Annotated[Path | None, typer.Option(metavar="NPZ", help="Write the maps as arrays.")] = None,
    json_file: Json = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    preset: OtherPreset = None,
    overrides: Overrides = None,
) -> None:
    """Draw what the network attends to from a point: R=1 beside R=2, as a figure or as a page to explore."""
    pixels = [_point(text) for text in points or ()]
    given = sources or []
    chosen: dict[str, Any] = {
        "checkpoint": checkpoint,
        "clip": clip,
        "device": device,
        "overwrite": overwrite,
        "preset": preset,
        "overrides": overrides or (),
    }
    if html is not None:
        figures = (("--output", output), ("--compare", compare), ("--maps", maps), ("--json", json_file))
        for option, value in figures:
            if value is not None:
                raise InputError(f"option {option}", "is for the figure, not for --html", "give one of them")
        from ccnet_cli.visualize import explore

        for path in explore(given, html, pixels, label=label, **chosen):
            print(path)
        return
    if not pixels:
        raise InputError("option --point", "missing", "give a pixel, such as --point 300,400, or --html viewer.html")
    if len(given) > 1 or label is not None:
        what, fix = ("option --label", "add --html FILE") if label else (f"{len(given)} images", "add --html DIR")
        raise InputError(what, "only with --html", fix)
    _writable(json_file)
    target = output or _free(Path("attention.png"))
    from ccnet_cli.visualize import visualize as draw

    summary = draw(given[0] if given else None, pixels, target, maps=maps, compare=compare, **chosen)
    if _json(summary.to_mapping(), json_file):
        return
    drawn = [summary, *([summary.compared] if summary.compared else [])]
    rows = [
        (
            f"{point['point'][0]},{point['point'][1]}",
            *([one.checkpoint] if compare else []),
            point["class"],
            f"R={r}",
            *map(_percent, point[f"r{r}"].values()),
        )
        for one in drawn
        for point in one.to_mapping()["points"]
        for r in range(1, one.recurrence + 1)
    ]
    _table(
        f"{summary.image}: where the attention lies, %",
        ("point", *(["model"] if compare else []), "class", "pass", "own class", "on cross", "off cross"),
        rows,
    )


@app.command(
    epilog=_examples(
        "ccnet export runs/camvid -o camvid.pt",
        "ccnet predict img.png -o mask.png --checkpoint camvid.pt",
        "ccnet export runs/cityscapes --format official -o CS_scenes.pth",
        "ccnet export CS_scenes_60000.pth -o ours.pt",
    )
)
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint, run folder, or other weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The new file.")],
    format: Annotated[
        Literal["weights", "official"],
        typer.Option(metavar="weights|official", help="Our file, or the layout of the authors' code."),
    ] = "weights",
    preset: OtherPreset = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint's model alone, to hand on: without the optimiser's state, about a third of the size."""
    _new(output, overwrite)
    from ccnet_cli.checkpoint import find
    from ccnet_cli.export import export as write

    print(write(find(checkpoint), output, format, preset, overrides or ()))


@bench_app.callback(invoke_without_command=True)
def bench(context: typer.Context) -> None:
    """Measure what things cost, beside the alternatives."""
    _help_alone(context)


@bench_app.command(
    "attention",
    epilog=_examples(
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
    threads: Annotated[int | None, typer.Option(min=1, max=1024, metavar="N", help="CPU threads.")] = None,
    repeats: Annotated[int, typer.Option(min=1, max=10000, metavar="N", help="Rounds; each runs everything.")] = 5,
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
    """Time and memory of every attention implementation, the official formulation and a non-local block."""
    _writable(json_file)
    height, width = _size(size)
    from ccnet_cli.bench import attention

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
    ).to_mapping()
    if _json(report, json_file):
        return
    rows = [
        (
            row["name"],
            f"{row['forward']['median']:.1f}",
            f"{row['forward_ratio']:.2f}",
            f"{row['both']['median']:.1f}",
            f"{row['both_ratio']:.2f}",
            f"{row['forward_memory']:.0f}",
            f"{row['both_memory']:.0f}",
            f"{row['gflop']:.2f}",
            f"{row['counted']:.2f}",
            f"{row['bandwidth']:.1f}",
            f"{row['rate']:.3f}",
            row["what"],
        )
        for row in report["rows"]
    ]
    title = (
        f"{batch} x {channels} x {size}, R={recurrence}, {precision}, {report['device']}, {report['threads']} threads, "
    )
    title += f"torch {report['torch']}, median of {repeats}; ratios to the reference, MiB at the peak, GFLOP forward; "
    title += f"here a copy does {report['copy']:.1f} GB/s, a matrix product {report['product']:.3f} TFLOP/s"
    columns = (
        "formulation",
        "forward ms",
        "ratio",
        "+ backward ms",
        "ratio",
        "MiB",
        "MiB both",
        "GFLOP",
        "counted",
        "GB/s",
        "TFLOP/s",
        "",
    )
    _table(title, columns, rows)


@bench_app.command(
    "cost",
    epilog=_examples(
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
    """The paper's table: GFLOP and memory of one to three passes and of a non-local block, each alone.

    The last two columns are what the paper printed for one image of 769x769, whose map is 97x97 with 512 channels.
    """
    _writable(json_file)
    height, width = _size(size)
    from ccnet_cli.cost import cost

    report = cost((height, width), channels, batch, device).to_mapping()
    if _json(report, json_file):
        return
    rows = [
        (
            row["name"],
            f"{row['gflop']:.2f}",
            f"{row['counted']:.2f}",
            f"{row['inference_memory']:.1f}",
            f"{row['training_memory']:.1f}",
            f"{row['step_memory']:.1f}",
            *(f"{row['published'][key]:g}" if row["published"] else "" for key in ("gflop", "memory")),
        )
        for row in report["rows"]
    ]
    title = f"{batch} x {channels} x {size}, {report['device']}, torch {report['torch']}; GFLOP forward, "
    title += "MiB at the peak above input and weights: inference, forward pass of training, that with backward"
    columns = ("module", "GFLOP", "counted", "MiB infer", "MiB forward", "MiB + backward", "paper GFLOP", "paper MB")
    _table(title, columns, rows)


@bench_app.command(
    "kernels",
    epilog=_examples(
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
    """The CUDA kernels' registers, memory and floors, compiled without a GPU."""
    _writable(json_file)
    maps = [_size(text) for text in sizes or ("97x97", "129x257")]
    from ccnet_cli.kernels import report

    found = report(archs or ("sm_80", "sm_90"), maps, channels, dtype, counters).to_mapping()
    if _json(found, json_file):
        return
    rows = [
        (
            *(row[key] for key in ("kernel", "arch", "size")),
            *(str(row[key]) for key in ("registers", "stack", "spills", "shared")),
            f"{row['ffma']}:{row['lds']}",
            f"{row['occupancy']:.0%}",
            str(row["launches"]),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['flops'] / 1e9:.2f}",
        )
        for row in found["kernels"]
    ]
    columns = ["kernel", "arch", "size", "registers", "stack", "spills", "shared", "FFMA:LDS", "occupancy"]
    _table("one image; compiled, not run", [*columns, "launches", "MB", "GFLOP"], rows)
    floors = [
        (
            row["size"],
            row["work"],
            row["formulation"],
            row["gpu"],
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['modelled_ms']:.3f}",
        )
        for row in found["floors"]
    ]
    title = "floors modelled from published peaks, nothing measured"
    _table(title, ("size", "pass", "formulation", "GPU", "MB", "ms, modelled"), floors)
    counted = [
        (
            row["work"],
            row["kernel"],
            f"{row['load_sector_bytes'] / 1e6:.1f}",
            f"{row['load_efficiency']:.1%}",
            f"{row['store_sector_bytes'] / 1e6:.1f}",
            f"{row['store_efficiency']:.1%}",
            f"{row['bank_conflicts'] / max(row['wavefronts'], 1):.1%}",
            f"{row['ffma_flops'] / 1e9:.2f}",
        )
        for row in found["counters"]
    ]
    if counted:
        columns = ["pass", "kernel", "MB loaded", "efficiency", "MB stored", "efficiency", "conflicts", "GFLOP issued"]
        _table("counted by ptxrun in 32-byte sectors", columns, counted)


@bench_app.command(
    "gpu", epilog=_examples("ccnet bench gpu -o report.json", "ccnet bench gpu -o r.json --device cuda:1")
)
def bench_gpu(
    output: Annotated[Path, typer.Option("--output", "-o", "--json", metavar="FILE", help="The report, JSON.")],
    device: Annotated[str, typer.Option(metavar="NAME", help="cuda or cuda:N.")] = "cuda",
    overwrite: Overwrite = False,
) -> None:
    """Check the CUDA kernels on this machine's GPU and time them; one report file to keep or to send.

    Results and gradients against float64, repeated runs, another stream, graph capture; then the attention at 97x97 and
    129x257 in fp32 and bf16. Takes some minutes. Exit code 1 where a check failed; the report is written all the same.
    """
    _new(output, overwrite)
    from ccnet_cli.gpu import report

    found = report(device)
    alone = _json(found.to_mapping(), output)
    if not alone:
        checks = [(check.name, "passed" if check.passed else "FAILED", check.found) for check in found.checks]
        _table(None, ("check", "", "found"), checks)
        timings = [
            (
                f"{timing['size'][0]}x{timing['size'][1]}",
                timing["precision"],
                row["name"],
                f"{row['forward']['median']:.3f}",
                f"{row['both']['median']:.3f}",
                f"{row['bandwidth']:.0f}",
                f"{row['rate']:.1f}",
            )
            for timing in found.timings
            for row in timing.get("rows", ())
        ]
        columns = ("size", "precision", "formulation", "forward ms", "+ backward ms", "GB/s", "TFLOP/s")
        _table("attention, 1 x 512, R=2; rates are of the forward pass", columns, timings)
    if found.failed:
        raise CCNetError(output, f"{found.failed} checks failed", "see it, and send it to us")
    if not alone:
        print(output)


@presets_app.callback(invoke_without_command=True)
def presets(context: typer.Context) -> None:
    """List, show, copy and compare the presets that come with ccnet."""
    _help_alone(context)


@presets_app.command("list", epilog=_examples("ccnet presets list", "ccnet presets list --json -"))
def presets_list(json_file: Json = None) -> None:
    """Name the presets and what they are for."""
    from ccnet_cli import config

    found = [config.load(name) for name in config.names()]
    if _json([config.to_mapping(preset) for preset in found], json_file):
        return
    _table(
        None,
        ("preset", "what", "published", "source"),
        [(p.name, p.description, p.published or "", p.source) for p in found],
    )


@presets_app.command(
    "show", epilog=_examples("ccnet presets show camvid", "ccnet presets show camvid -s schedule.lr=1e-3")
)
def presets_show(
    name: PresetName,
    overrides: Overrides = None,
    json_file: Json = None,
) -> None:
    """Print a whole preset as it would run."""
    from ccnet_cli import config

    preset = config.load(name, overrides or ())
    if not _json(config.to_mapping(preset), json_file):
        print(config.dump(preset), end="")


@presets_app.command(
    "copy", epilog=_examples("ccnet presets copy quickstart mine.yaml", "ccnet train --preset mine.yaml")
)
def presets_copy(
    name: PresetName,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The new file, or a folder for it.")],
    overwrite: Overwrite = False,
) -> None:
    """Copy a preset, to change it."""
    from ccnet_cli import config

    config.load(name)
    target = destination / f"{Path(name).stem}.yaml" if destination.is_dir() else destination
    _new(target, overwrite)
    _write(target, config.find(name).read_bytes())
    print(target)


@presets_app.command(
    "diff",
    epilog=_examples(
        "ccnet presets diff cityscapes-r1 cityscapes-r2",
        "ccnet presets diff quickstart mine.yaml",
        "ccnet presets diff runs/first/preset.yaml runs/second/preset.yaml --json -",
    ),
)
def presets_diff(one: PresetName, other: PresetName, json_file: Json = None) -> None:
    """Print the keys in which two presets differ, with the values of both."""
    _writable(json_file)
    from ccnet_cli import config

    presets = [config.load(one), config.load(other)]
    values = {key: [config.value(preset, key) for preset in presets] for key in config.differences(*presets)}
    if _json({"presets": [one, other], "differences": values}, json_file):
        return
    if not values:
        print(f"{one} and {other} are the same")
        return
    rows = [
        (key, *(value if isinstance(value, str) else json.dumps(value) for value in pair))
        for key, pair in values.items()
    ]
    _table(None, ("key", one, other), rows)


@data_app.callback(invoke_without_command=True)
def data_group(context: typer.Context) -> None:
    """Make and check data sets."""
    _help_alone(context)


@data_app.command(
    "make",
    epilog=_examples(
        "ccnet data make toyscapes toys",
        "ccnet data make toyscapes shuffled --shuffle-signals",
        "ccnet train --preset toyscapes-r2 --data toys",
    ),
)
def data_make(
    dataset: Annotated[str, typer.Argument(metavar="toyscapes", help="The built-in data set.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    train: Annotated[int | None, typer.Option(min=1, max=1_000_000, metavar="N", help="Training scenes.")] = None,
    val: Annotated[int | None, typer.Option(min=1, max=1_000_000, metavar="N", help="Validation scenes.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Size of the scenes.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Another seed draws other scenes.")] = None,
    shuffle_signals: Annotated[
        bool, typer.Option("--shuffle-signals", help="Let the signals of val show colours drawn at random.")
    ] = False,
) -> None:
    """Draw the built-in data set: street scenes whose classes only long-range context tells."""
    if dataset != "toyscapes":
        raise InputError(f"data set {dataset}", "cannot be made", "use toyscapes, the built-in one")
    given = {"train": train, "val": val, "size": None if size is None else _size(size), "seed": seed}
    from ccnet_cli.datasets.toyscapes import make

    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    print(make(folder, shuffle_signals=shuffle_signals, **chosen))


@data_app.command(
    "check",
    epilog=_examples(
        "ccnet data check CamVid",
        "ccnet data check Cityscapes --dataset cityscapes --split train",
        "ccnet data check . --preset mine.yaml",
    ),
)
def data_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the data set.")],
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="cityscapes, camvid, ade20k, voc, lip, cocostuff; told by the folders' names if left out.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="Preset that describes the data (classes, lists).", autocompletion=_preset_names
        ),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(metavar="NAME", help="train or val; both if left out.")] = None,
    overrides: Overrides = None,
    json_file: Json = None,
) -> None:
    """Check that every pair exists, sizes match and labels are in range; count the classes."""
    from ccnet_cli import config, datasets

    if dataset is None and preset is None:
        dataset = datasets.recognise(folder)
        detail(f"{folder}: the folders of {dataset}")
    chosen = [] if dataset is None else [f"data.dataset={dataset}"]
    settings = config.load(preset or "quickstart", [*chosen, *(overrides or ()), *_path("data.root", folder)])
    reports = {}
    for name in split or ("train", "val"):
        source = datasets.open_source(settings.data, name, labels_required=False, verify=False)
        reports[name] = datasets.check(source).to_mapping()
    if not _json(reports, json_file):
        for name, report in reports.items():
            rows = [*report["pixels"].items(), ("(ignored)", report["ignored"])]
            title = f"{name}: {report['images']} images, {report['labels']} labels"
            _table(title, ("class", "pixels"), [(label, f"{count:,}") for label, count in rows])
            for problem in report["problems"] or ["no problem found"]:
                print(problem)
    problems = sum(len(report["problems"]) for report in reports.values())
    if problems:
        raise InputError(folder, f"{problems} problem{'s' * (problems > 1)} found", "correct what the report names")


@data_app.command("sample", epilog=_examples("ccnet data sample img.png", "ccnet predict img.png -o mask.png"))
def data_sample(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="PNG file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the sample photograph that comes with ccnet."""
    _new(output, overwrite)
    from ccnet_cli.checkpoint import sample_image

    _write(output, sample_image().read_bytes())
    print(output)


@app.command(epilog=_examples("ccnet doctor", "ccnet doctor --data Cityscapes --data CamVid", "ccnet doctor --json -"))
def doctor(
    folders: Annotated[
        list[Path] | None, typer.Option("--data", metavar="DIR", help="Folder of a data set to look at; repeatable.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Look at what ccnet needs here, in a block to paste into an issue; exit code 3 where the CPU's needs fail."""
    _writable(json_file)
    from ccnet_cli.doctor import doctor as look

    report = look(folders or ())
    if not _json(report.to_mapping(), json_file):
        _block((check.state, check.name, check.detail, check.fix) for check in report.checks)
    if not report.healthy:
        raise typer.Exit(3)


def _path(key: str, path: Path | None) -> list[str]:
    # quoted: a path may hold characters that mean something in YAML
    return [] if path is None else [f"{key}={json.dumps(str(path))}"]


def _point(text: str) -> tuple[int, int]:
    x, comma, y = text.partition(",")
    if not (comma and x.strip().isdecimal() and y.strip().isdecimal() and len(text) < 20):
        raise InputError(f"option --point {text}", "not a pixel", "write X,Y, such as --point 300,400")
    return int(x), int(y)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and 0 < int(height[:9]) <= 4096 and 0 < int(width[:9]) <= 4096):
        raise InputError(f"option --size {text}", "not a size", "write HEIGHTxWIDTH, such as 97x97")
    return int(height), int(width)


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number <= 8 for number in numbers):
        raise InputError(f"option {option} {text}", "not a list of scales", "write for example 0.75,1,1.25")
    return numbers


def _new(path: Path, overwrite: bool) -> None:
    _writable(path)
    if path.exists() and not overwrite:
        raise InputError(path, "exists", "choose another name or add --overwrite")


def _writable(*files: Path | None) -> None:
    """Refuse, before any work, an output file that could not be written at the end."""
    for path in files:
        if path is None or str(path) == "-":
            continue
        if path.is_dir():
            raise InputError(path, "is a folder", "give the name of a file")
        if not path.parent.is_dir():
            raise InputError(path, "its folder does not exist", f"make {path.parent} first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(path, "cannot be written", "check its permissions")


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".ccnet-{os.getpid()}.tmp")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        # it could be written when the command began
        why = f"not written ({error.strerror})"
        raise EnvironmentFailure(path, why, "make room, or choose another place") from None
    finally:
        partial.unlink(missing_ok=True)


def _free(path: Path) -> Path:
    """The path itself, or with the first number that makes it a new one: figure.png, figure-2.png, ..."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(new for new in numbered if not new.exists())


def _json(value: object, path: Path | None) -> bool:
    """Write a result as JSON where asked; True when that was stdout, where nothing else may be printed."""
    if path is None:
        return False
    text = json.dumps(value, indent=2, allow_nan=False)
    if str(path) != "-":
        _write(path, f"{text}\n".encode())
        return False
    print(text)
    return True


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n\r') else text


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]], sections: Sequence[int] = ()
) -> None:
    """Print a table, numbers to the right; sections are the rows that a rule follows."""
    from rich.table import Table
    from rich.text import Text

    # above the table, which would fold it to its own width
    if title is not None:
        print(title)
    table = Table()
    rows = list(rows)
    for index, name in enumerate(columns):
        numeric = all(
            row[index].replace(",", "").replace(".", "").lstrip("-").isdecimal() for row in rows if row[index]
        )
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for index, row in enumerate(rows):
        table.add_row(*(Text(cell) for cell in row), end_section=index in sections)
    _console().print(table)


def _block(rows: Iterable[tuple[str, str, str, str]]) -> None:
    """Print states, names and details as a block of Markdown, each fix below what it mends."""
    from rich.text import Text

    console = _console()
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    lines = [Text("```")]
    for state, name, text, fix in rows:
        lines.append(Text.assemble((f"{state:6}", colours[state]), f"{name:15} {one_line(text)}"))
        if fix:
            lines.append(Text(f"{'':22}{one_line(fix)}"))
    for line in [*lines, Text("```")]:
        # not folded: the block is to be pasted
        console.print(line, soft_wrap=True)


def _console() -> "Console":
    """Where tables go: escape codes only on a terminal, and no colours there with NO_COLOR."""
    from rich.console import Console

    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR")
    # wide enough for any table where there is no terminal to ask
    return Console(width=None if sys.stdout.isatty() else 160, color_system=None if plain else "auto")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of DESIGN's table; errors of the user take one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, chosen = _anywhere(words)
    words = _resume_alone(words)
    _mend_streams()
    if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    os.environ[VERBOSITY] = "quiet" if "quiet" in chosen else "verbose" if "verbose" in chosen else ""
    started = time.monotonic()
    # what torch's C++ has to say about lost connections takes many lines, and ours says it in one
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        if {"quiet", "verbose"} <= chosen:
            raise InputError("option --quiet", "--verbose is given too", "give one of them")
        code = typer.main.get_command(app).main(words, prog_name="ccnet", standalone_mode=False)
        sys.stdout.flush()
        detail(f"done in {time.monotonic() - started:.1f} s")
    except SystemExit as stop:
        # typer turns a broken pipe into a plain exit
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        code = _broken_pipe()
    except BrokenPipeError:
        code = _broken_pipe()
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        told = _told(error)
        if "debug" in chosen or told is None:
            traceback.print_exc()
        # of several processes that met the same error one speaks
        if told is not None and not told.told:
            tell(f"error: {told}")
            for note in getattr(told, "__notes__", ()):
                tell(note)
        code = 1 if told is None else told.exit_code
    if arguments is None:
        # an interrupt while the interpreter ends is no exception of ours
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code or 0)


def _interrupt(*_: object) -> None:
    """End the command; a second interrupt, which could fall anywhere in its end, ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _anywhere(words: list[str]) -> tuple[list[str], set[str]]:
    """The words without the options that may stand anywhere, and which of these there were; -- ends the options."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word not in ANYWHERE]
    return kept + words[end:], {ANYWHERE[word] for word in words[:end] if word in ANYWHERE}


def _resume_alone(words: list[str]) -> list[str]:
    """Let --resume stand without a value, which means auto; typer knows no option with a value that may be left out."""
    if "--resume" in words:
        after = words.index("--resume") + 1
        if after == len(words) or words[after].startswith("-"):
            return [*words[:after], "auto", *words[after:]]
    return words


def _mend_streams() -> None:
    """Let results be printed whatever the locale, and to nowhere where a stream is closed."""
    # a file that is opened under the number of a closed stream would get what libraries print there
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - lives as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _broken_pipe() -> int:
    # what is still buffered must not raise again when the interpreter exits
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 128 + 13


def _told(error: Exception) -> CCNetError | None:
    """The error as one that a user can act on; None for a bug of ours."""
    if isinstance(error, CCNetError):
        return error
    if isinstance(error, TyperException):
        return _usage(error)
    if out_of_memory(error):
        return EnvironmentFailure(
            "memory", one_line(str(error))[:160] or "exhausted", "use smaller images or --mode sliding"
        )
    if isinstance(error, OSError) and error.errno is not None:
        what: object = error.filename if error.filename is not None else "system"
        why = os.strerror(error.errno)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENOMEM):
            return EnvironmentFailure(what, why, "free some space or use another disk")
        if error.filename is not None:
            return InputError(what, why, "check the path and its permissions")
    return None


def _usage(error: TyperException) -> InputError:
    """A mistake in the arguments, with the option that was meant."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "ccnet"
    see = f"see {command} --help"
    option = getattr(error, "option_name", None)
    parameter = getattr(error, "param", None)
    why = error.message.removeprefix("Value error, ").replace("Input should be", "must be").rstrip(".")
    if unknown := re.match(r"No such command '(.*?)'", why, re.DOTALL):
        near = difflib.get_close_matches(unknown[1], context.command.commands, n=1) if context else []
        return InputError(f"command {unknown[1]}", "unknown", f"did you mean {near[0]}?" if near else see)
    if option is not None and "No such option" in why:
        known = [name for known in context.command.params for name in known.opts] if context else []
        near = difflib.get_close_matches(option, ANYWHERE, n=1, cutoff=0.8)
        near = near or difflib.get_close_matches(option, known, n=1, cutoff=0.7)
        return InputError(f"option {option}", "unknown", f"did you mean {near[0]}?" if near else see)
    if parameter is not None:
        kind = parameter.param_type_name
        name = parameter.opts[0] if kind == "option" else parameter.metavar or parameter.name
        return InputError(f"{kind} {name}", why or "missing", see)
    return InputError(command if option is None else f"option {option}", why, see)


if __name__ == "__main__":
    main()
