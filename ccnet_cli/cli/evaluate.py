"""`ccnet eval`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ccnet_cli.cli.options import (
    Calibration,
    CheckpointFile,
    Compile,
    DataFolder,
    Device,
    Flip,
    Format,
    Formats,
    Gpus,
    InferencePrecision,
    Json,
    Memory,
    Mode,
    OtherPreset,
    Overrides,
    Overwrite,
    Processes,
    Scales,
    TolerateDamage,
    examples,
    numbers_of,
    path_override,
    preset_file,
    refuse_outputs,
    runtime_of,
    view_overrides,
)
from ccnet_cli.cli.output import percent, print_names, quote_field, table, write, write_json
from ccnet_cli.errors import InputError

app = typer.Typer()
MAX_IMAGES = 1_000_000_000
TITLES = {"dice": "Dice %", "precision": "precision %", "recall": "recall %", "boundary_iou": "boundary IoU %"}


@app.command(
    "eval",
    epilog=examples(
        "ccnet eval",
        "ccnet eval runs/camvid/best.pt --data CamVid --json scores.json",
        "ccnet eval runs/camvid --report camvid.html",
        "ccnet eval CS_scenes_60000.pth --data Cityscapes",
        "ccnet eval ckpt.pt --data Cityscapes --mode sliding --scales 0.75,1,1.25 --flip",
        "ccnet eval ckpt.pt --data Cityscapes --precision bf16",
        "ccnet eval ckpt.pt --data Cityscapes --save results --format label-id",
        "ccnet eval ckpt.pt --data Cityscapes --split test --list test.lst --save results --format label-id",
    ),
)
def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CKPT", help="Checkpoint, run folder, or other weights.")
    ] = None,
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
    precision: InferencePrecision = "fp32",
    calibration: Calibration = None,
    memory: Memory = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Products of float32 in TF32, on GPUs with it.")] = False,
    compiled: Compile = "off",
    device: Device = "auto",
    gpus: Gpus = None,
    processes: Processes = 1,
    tolerate_damage: TolerateDamage = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse an ONNX or OpenVINO file that another program has changed.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, max=MAX_IMAGES, metavar="N", help="Score the first N images only.")
    ] = None,
    json_file: Json = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the IoU of each class.")] = None,
    per_image: Annotated[
        Path | None,
        typer.Option("--per-image", metavar="CSV", help="Write the figures of each image, also into --json."),
    ] = None,
    boundary: Annotated[bool, typer.Option("--boundary", help="Measure outlines: boundary IoU of each class.")] = False,
    calibration_error: Annotated[
        bool,
        typer.Option("--calibration-error", help="Measure how far probabilities are from the share of right pixels."),
    ] = False,
    confusion: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the confusion matrix.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write all figures and the hardest images as a page.")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the label maps here.")] = None,
    formats: Formats = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a checkpoint: IoU of each class, mIoU, accuracies.

    It may be ours or other people's; without one, $CCNET_CHECKPOINT, the newest run below ./runs, or the demo weights.
    """
    if checkpoint and option:
        raise InputError(f"checkpoint {option}", f"{checkpoint} is given too", "give one of them")
    refuse_outputs(
        json_file, csv, per_image, confusion, report, inputs=[checkpoint or option, listing, preset_file(preset)]
    )
    chosen = [
        *(overrides or ()),
        *path_override(f"data.{split}_list", listing),
        *path_override("data.root", data),
        *view_overrides(mode, numbers_of("--scales", scales), flip),
    ]
    from ccnet_cli.commands.evaluate import EvaluateRequest
    from ccnet_cli.commands.evaluate import evaluate as score

    request = EvaluateRequest(
        checkpoint=checkpoint or option,
        preset=preset,
        overrides=tuple(chosen),
        runtime=runtime_of(device, precision, compiled, calibration, memory),
        tf32=tf32,
        gpus=gpus,
        processes=processes,
        split=split,
        limit=limit,
        tolerate_damage=tolerate_damage,
        strict=strict,
        per_image=per_image is not None,
        boundary=boundary,
        calibration_error=calibration_error,
        confusion=confusion,
        report=report,
        save=save,
        formats=tuple(map(str, formats or [Format.COLOR])),
        overwrite=overwrite,
        others=tuple(path for path in (json_file, csv, per_image) if path is not None and str(path) != "-"),
    )
    scored = score(request)
    # of several processes one prints
    if scored is not None:
        _show(scored.to_mapping(), json_file, csv, per_image)


def _show(result: dict[str, Any], json_file: Path | None, csv: Path | None, per_image: Path | None) -> None:
    """Write a result to the files asked for, and print it as JSON or as a table."""
    if csv:
        rows = [*result["classes"].items(), ("mIoU", result["miou"])]
        content = "class,iou\n" + "".join(f"{quote_field(name)},{'' if v is None else v}\n" for name, v in rows)
        write(csv, content.encode())
    if per_image:
        rows = [[quote_field(name), *figures] for name, *figures in (row.values() for row in result["per_image"])]
        lines = (",".join("" if cell is None else str(cell) for cell in row) for row in rows)
        write(per_image, "\n".join(["image,miou,pixel_accuracy,mean_dice", *lines, ""]).encode())
    if write_json(result, json_file):
        return
    title = f"{result['images']} images, {result['checkpoint']}"
    if result["miou"] is None:
        print_names(f"{title}: not scored")
        return
    measures = result["measures"]
    columns = ("IoU %", *(TITLES[name] for name in measures))
    rows = [
        (name, percent(value), *(percent(figures[name]) for figures in measures.values()))
        for name, value in result["classes"].items()
    ]
    summary = [("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy"), ("mean accuracy", "mean_accuracy")]
    if result["calibration_error"] is not None:
        summary.append(("calibration error", "calibration_error"))
    rows += [(label, percent(result[key]), *[""] * len(measures)) for label, key in summary]
    table(title, ("class", *columns), rows, sections=[len(rows) - len(summary) - 1])
