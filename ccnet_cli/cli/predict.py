"""`ccnet predict`."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ccnet_cli.cli.options import (
    Calibration,
    CheckpointFile,
    Compile,
    Device,
    Flip,
    Format,
    Formats,
    Gpus,
    InferencePrecision,
    Memory,
    Mode,
    OtherPreset,
    Overrides,
    Overwrite,
    Processes,
    Scales,
    TolerateDamage,
    duration_of,
    examples,
    numbers_of,
    part_of,
    preset_file,
    refuse_outputs,
    runtime_of,
    seconds_of,
    view_overrides,
)
from ccnet_cli.cli.output import JsonLines, print_names

if TYPE_CHECKING:
    from ccnet_cli.commands.predict import Prediction
    from ccnet_cli.inference.stream import Outcome

app = typer.Typer()


@app.command(
    epilog=examples(
        "ccnet predict img.png -o mask.png",
        "ccnet predict street.jpg -o overlay.png --format overlay --legend legend.png",
        "ccnet predict photos 'more/*.jpg' -o masks --format color --format train-id",
        "ccnet predict photos -o masks --continue --processes 2",
        "ccnet predict - -o masks --shard 3/16 --fan-out 2 --continue < names.txt",
        "ccnet predict - -o masks --probabilities npz --json areas.json < names.txt",
        "ccnet predict drive.mov -o drive.webm --format overlay --precision auto",
        "ccnet predict rtsp://camera/live -o out.mp4 --format overlay --seconds 60",
        "ccnet predict scene.tif -o classes.tif --memory 4G",
        "ccnet predict model.onnx photos -o masks",
    )
)
def predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Images, videos, folders, patterns, a stream's address; - reads names; a .onnx or .xml file first.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|DIR",
            help="A .png (or .tif of a TIFF) for one image, a .mp4, .webm, .gif or .webp for one video, else a folder.",
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
    skip_complete: Annotated[
        bool,
        typer.Option("--continue", help="Keep complete outputs, of whatever checkpoint; segment the rest."),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Stop at the first bad image; refuse hidden, system and empty files in folders, and changed models.",
        ),
    ] = False,
    gpus: Gpus = None,
    processes: Processes = 1,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Part K, counted from 1, of N parts that run apart.")
    ] = None,
    fan_out: Annotated[
        int, typer.Option(min=0, max=3, metavar="LEVELS", help="Spread files over 256 subfolders, each over 256, ...")
    ] = 0,
    tiff: Annotated[
        bool, typer.Option("--tiff", help="Write TIFF masks of TIFF images, with their georeference (ccnet-cli[geo]).")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(callback=duration_of, metavar="N", help="Record that much of a stream.")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            callback=seconds_of,
            metavar="SECONDS",
            help="Of several processes, one that takes longer for an image, or is silent for 30 s, is replaced.",
        ),
    ] = 600,
    tolerate_damage: TolerateDamage = False,
    device: Device = "auto",
    mode: Mode = None,
    scales: Scales = None,
    flip: Flip = None,
    precision: InferencePrecision = "fp32",
    calibration: Calibration = None,
    memory: Memory = None,
    compiled: Compile = "off",
    preset: OtherPreset = None,
    overrides: Overrides = None,
) -> None:
    """Segment photographs and videos.

    Writes colour masks, overlays or label ids, and if asked probabilities and each class's area.
    """
    refuse_outputs(json_file, inputs=[checkpoint, preset_file(preset)])
    views = view_overrides(mode, numbers_of("--scales", scales), flip)
    from ccnet_cli.commands.predict import PredictRequest
    from ccnet_cli.commands.predict import predict as segment

    request = PredictRequest(
        sources=tuple(sources),
        output=output,
        checkpoint=checkpoint,
        preset=preset,
        overrides=(*(overrides or ()), *views),
        runtime=runtime_of(device, precision, compiled, calibration, memory),
        formats=tuple(map(str, formats or [Format.COLOR])),
        probabilities=probabilities is not None,
        legend=legend,
        areas=json_file is not None,
        overwrite=overwrite,
        skip_complete=skip_complete,
        strict=strict,
        shard=(1, 1) if shard is None else part_of(shard),
        fan_out=fan_out,
        tiff=tiff,
        seconds=seconds,
        gpus=gpus,
        processes=processes,
        timeout=timeout,
        tolerate_damage=tolerate_damage,
        others=() if json_file is None or str(json_file) == "-" else (json_file,),
    )
    with tempfile.TemporaryFile() as file:
        areas = JsonLines("sources", file)

        def show(outcome: "Outcome", prediction: "Prediction") -> None:
            if str(json_file) != "-":
                print_names(*outcome.files)
            if outcome.area is not None:
                areas.add(prediction.area(outcome.area))

        result = segment(request, show)
        # of several processes that a launcher started, one reports
        if result is None:
            return
        if json_file is not None:
            areas.write(json_file, {"checkpoint": str(result.checkpoint)})
        if legend is not None and str(json_file) != "-":
            print_names(legend)
    result.check()
