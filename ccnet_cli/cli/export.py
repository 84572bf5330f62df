"""`ccnet export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ccnet_cli.cli.options import (
    Calibration,
    OtherPreset,
    Overrides,
    Overwrite,
    examples,
    preset_file,
    refuse_outputs,
    runtime_of,
)
from ccnet_cli.cli.output import print_names
from ccnet_cli.errors import InputError

app = typer.Typer()


@app.command(
    epilog=examples(
        "ccnet export runs/camvid -o camvid.pt",
        "ccnet predict img.png -o mask.png --checkpoint camvid.pt",
        "ccnet export runs/cityscapes --format official -o CS_scenes.pth",
        "ccnet export CS_scenes_60000.pth -o ours.pt",
        "ccnet export runs/camvid --format onnx -o camvid.onnx",
        "ccnet export runs/camvid --format onnx --with-processing -o street.onnx",
        "ccnet export runs/camvid --format onnx --precision int8 --calibrate photos -o int8.onnx",
        "ccnet export runs/camvid --format openvino -o camvid.xml",
        "ccnet predict camvid.onnx img.png -o mask.png",
        "ccnet export runs/camvid --format torch-export -o camvid.pt2",
    )
)
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint, run folder, or other weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The new file.")],
    format: Annotated[
        str,
        typer.Option(
            metavar="weights|official|onnx|openvino|torch-export|...",
            help="Our file, the layout of the authors or another project, or the network itself, to run without ccnet.",
        ),
    ] = "weights",
    processed: Annotated[
        bool,
        typer.Option("--with-processing", help="ONNX with all around the network: RGB bytes in, classes out."),
    ] = False,
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(metavar="fp32|int8", help="What ONNX and OpenVINO compute in.")
    ] = "fp32",
    calibration: Calibration = None,
    preset: OtherPreset = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint's model alone, to hand on.

    Without the optimiser's state it is about a third of the size.
    """
    _check_format(format)
    if precision == "int8" and not calibration:
        raise InputError("option --precision int8", "no image to measure the ranges on", "name some by --calibrate")
    images = runtime_of("cpu", precision, "off", calibration).calibration if calibration else None
    from ccnet_cli.commands.export import export as write
    from ccnet_cli.commands.export import files_of
    from ccnet_cli.weights.find import find_artifact

    outputs = files_of(output, format)
    refuse_outputs(*outputs, inputs=[checkpoint, preset_file(preset)], overwrite=overwrite)
    write(find_artifact(checkpoint), output, format, preset, overrides or (), processed, images)
    print_names(*outputs)


def _check_format(format: str) -> None:
    from ccnet_cli.weights.layouts import LAYOUTS

    layouts = (name for name, layout in LAYOUTS.items() if layout.export is not None)
    formats = ["weights", *layouts, "onnx", "openvino", "torch-export"]
    if format not in formats:
        raise InputError("option --format", f"'{format}' is not one of {str(formats)[1:-1]}", "see ccnet export --help")
