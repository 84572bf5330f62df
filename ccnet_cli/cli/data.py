"""`ccnet data`."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ccnet_cli.cli.options import (
    CONTEXT,
    MAX_SEED,
    Json,
    Overrides,
    Overwrite,
    TolerateDamage,
    examples,
    help_alone,
    path_override,
    preset_file,
    preset_names,
    refuse_outputs,
    size_of,
)
from ccnet_cli.cli.output import print_names, table, write, write_json
from ccnet_cli.errors import InputError, detail

if TYPE_CHECKING:
    from ccnet_cli.config import Preset

DATA_EXAMPLES = examples(
    "ccnet data make toyscapes toys",
    "ccnet data check toys",
    "ccnet data convert labelme-folder mine",
    "ccnet data sample img.png",
)


DataPreset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME|FILE",
        help="Preset that describes the data (classes, lists).",
        autocompletion=preset_names,
    ),
]
ValFraction = Annotated[
    float, typer.Option("--val-fraction", min=0.01, max=0.9, metavar="F", help="Part of the images to validate on.")
]
SplitSeed = Annotated[
    int, typer.Option("--seed", min=0, max=MAX_SEED, metavar="N", help="Another seed parts otherwise.")
]
Group = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Images of which it matches the same text stay together, such as a video's."),
]

app = typer.Typer(rich_markup_mode=None, context_settings=CONTEXT, epilog=DATA_EXAMPLES)


@app.callback(invoke_without_command=True)
def data_group(context: typer.Context) -> None:
    """Make and check data sets."""
    help_alone(context)


@app.command(
    "make",
    epilog=examples(
        "ccnet data make toyscapes toys",
        "ccnet data make toyscapes shuffled --shuffle-signals",
        "ccnet data make toyscapes two --signals 2",
        "ccnet data make toyclips films",
        "ccnet train --preset toyscapes-r2 --data toys",
    ),
)
def data_make(
    dataset: Annotated[str, typer.Argument(metavar="toyscapes|toyclips", help="The built-in data set.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    train: Annotated[int | None, typer.Option(min=1, max=1_000_000, metavar="N", help="Training scenes.")] = None,
    val: Annotated[int | None, typer.Option(min=1, max=1_000_000, metavar="N", help="Validation scenes.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Size of the scenes.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, metavar="N", help="Another seed draws other scenes.")
    ] = None,
    signals: Annotated[
        int, typer.Option(min=1, max=2, metavar="1|2", help="Signals of a scene; with 2, a mark says whose a van is.")
    ] = 1,
    shuffle_signals: Annotated[
        bool, typer.Option("--shuffle-signals", help="Let the signals of val show colours drawn at random.")
    ] = False,
) -> None:
    """Draw a built-in data set of street scenes.

    All its vans look alike: only a coloured signal tells their class, in toyscapes far away, in toyclips in an earlier
    frame.
    """
    if dataset not in ("toyscapes", "toyclips"):
        raise InputError(f"data set {dataset}", "cannot be made", "use toyscapes or toyclips, the built-in ones")
    options = {"train": train, "val": val, "size": None if size is None else size_of(size), "seed": seed}
    changed: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if dataset == "toyclips":
        if signals > 1 or shuffle_signals:
            fix = "leave it out; -s data.clip.shuffle=true mixes the frames of toyclips"
            raise InputError("option --signals" if signals > 1 else "option --shuffle-signals", "not for toyclips", fix)
        from ccnet_cli.datasets import toyclips

        print_names(toyclips.make(folder, **changed))
        return
    from ccnet_cli.datasets.toyscapes import make

    print_names(make(folder, signals=signals, shuffle_signals=shuffle_signals, **changed))


@app.command(
    "check",
    epilog=examples(
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
            help="cityscapes, camvid, ade20k, voc, lip, cocostuff; recognised by its folders if left out.",
        ),
    ] = None,
    preset: DataPreset = None,
    split: Annotated[list[str] | None, typer.Option(metavar="NAME", help="train or val; both if left out.")] = None,
    tolerate_damage: TolerateDamage = False,
    overrides: Overrides = None,
    json_file: Json = None,
) -> None:
    """Check a data set and count its classes.

    Every pair must exist, sizes must match, and labels be in range.
    """
    refuse_outputs(json_file, inputs=[preset_file(preset)])
    from ccnet_cli.datasets.report import check_all
    from ccnet_cli.datasets.source import open_source

    settings = _settings(folder, dataset, preset, overrides)
    sources = {
        name: open_source(settings.data, name, labels_required=False, verify=False)
        for name in split or ("train", "val")
    }
    opened = {name: replace(source, tolerate_damage=tolerate_damage) for name, source in sources.items()}
    refuse_outputs(json_file, inputs=(path for source in opened.values() for path in source.samples.files()))
    reports = {name: report.to_mapping() for name, report in check_all(opened).items()}
    if not write_json(reports, json_file):
        for name, report in reports.items():
            rows = [*report["pixels"].items(), ("(ignored)", report["ignored"])]
            title = f"{name}: {report['images']} images, {report['labels']} labels"
            table(title, ("class", "pixels"), [(label, f"{count:,}") for label, count in rows])
            print_names(*(report["problems"] or ["no problem found"]))
            print_names(*(f"warning: {line}" for line in report["warnings"]))
    problems = sum(len(report["problems"]) for report in reports.values())
    if problems:
        raise InputError(folder, f"{problems} problem{'s' * (problems > 1)} found", "correct what the report names")


@app.command(
    "convert",
    epilog=examples(
        "ccnet data convert labelme-folder mine",
        "ccnet data convert coco-export mine --unlabelled ignore",
        "ccnet data convert masks mine --labels '{0: background, 255: car}'",
        "ccnet data convert drives mine --val-fraction 0.25 --group '^(drive[0-9]+)_'",
        "ccnet train --preset mine/preset.yaml -o runs/mine",
    ),
)
def data_convert(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images and their annotations.")],
    output: Annotated[Path, typer.Argument(metavar="NEW", help="A new folder.")],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="coco, labelme, cvat, supervisely, labelstudio, cityscapes, via, masks, yolo; recognised if left out.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="What values or colours of masks mean, such as {0: background, 255: car}."),
    ] = None,
    unlabelled: Annotated[
        Literal["auto", "background", "ignore"],
        typer.Option(metavar="auto|background|ignore", help="What pixels are that nothing covers."),
    ] = "auto",
    fraction: ValFraction = 0.2,
    seed: SplitSeed = 0,
    group: Group = None,
    json_file: Json = None,
) -> None:
    """Make label PNGs and a preset of an export.

    Reads COCO (polygons, run lengths, crowds, panoptic), LabelMe, CVAT, Supervisely, Label Studio, VIA, Cityscapes' and
    YOLO's outlines, and masks of values or colours (Pascal, Roboflow). Nothing in DIR changes.
    """
    refuse_outputs(json_file)
    from ccnet_cli.commands.convert import ConvertRequest, convert

    request = ConvertRequest(source, output, format_name, _table(labels), unlabelled, fraction, seed, _pattern(group))
    converted = convert(request)
    if not write_json(converted.to_mapping(), json_file):
        counts = ", ".join(f"{count} {split}" for split, count in converted.images.items())
        print_names(f"{counts}; classes: {', '.join(converted.classes)}", converted.folder)


@app.command(
    "split",
    epilog=examples(
        "ccnet data split mine",
        "ccnet data split mine --labels . --label-suffix _mask.png --val-fraction 0.25",
        "ccnet data split mine --group '^(patient[0-9]+)_' --seed 1",
    ),
)
def data_split(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images/ and labels/, or of both together.")],
    images: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the images in it.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the labels in it.")] = None,
    suffix: Annotated[
        str | None, typer.Option("--label-suffix", metavar="TEXT", help="How labels end, such as _mask.png.")
    ] = None,
    fraction: ValFraction = 0.2,
    seed: SplitSeed = 0,
    group: Group = None,
    overwrite: Overwrite = False,
) -> None:
    """Part images into train.lst and val.lst."""
    from ccnet_cli.commands.data import SplitRequest, split

    request = SplitRequest(folder, images, labels, suffix, fraction, seed, _pattern(group), overwrite)
    print_names(*(f"{path}: {count} images" for path, count in split(request).items()))


@app.command(
    "show",
    epilog=examples(
        "ccnet data show mine --preset mine/preset.yaml -o sheet.png",
        "ccnet data show CamVid --split val --images 24 -o sheet.png",
    ),
)
def data_show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the data set.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="The picture to write.")],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="The data set; recognised by its folders if left out.")
    ] = None,
    preset: DataPreset = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="train, val or another.")] = "train",
    images: Annotated[int, typer.Option(min=1, max=200, metavar="N", help="Images to draw, evenly chosen.")] = 12,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw images with labels over them, and counts."""
    refuse_outputs(output, inputs=[preset_file(preset)], overwrite=overwrite)
    from ccnet_cli.commands.data import ShowRequest
    from ccnet_cli.commands.data import show as draw

    settings = _settings(folder, dataset, preset, overrides)
    print_names(draw(ShowRequest(settings, split, output, images)))


def _settings(folder: Path, dataset: str | None, preset: str | None, overrides: list[str] | None) -> "Preset":
    """The preset of a folder of data, of the data set that is named or that its folders show."""
    from ccnet_cli import config
    from ccnet_cli.datasets import recognise

    if dataset is None and preset is None and (folder / "preset.yaml").is_file():
        # of ccnet data convert
        preset = str(folder / "preset.yaml")
        detail(f"described by {preset}")
    elif dataset is None and preset is None:
        dataset = recognise(folder)
        detail(f"{folder}: the folders of {dataset}")
    named = [] if dataset is None else [f"data.dataset={dataset}"]
    return config.load(preset or "quickstart", [*named, *(overrides or ()), *path_override("data.root", folder)])


def _table(text: str | None) -> dict[str, str | None] | None:
    """The table of --labels, as the key data.labels has it."""
    if text is None:
        return None
    from ccnet_cli.config.text import parse

    labels = parse(text, "option --labels")
    if not isinstance(labels, dict) or not all(name is None or isinstance(name, str) for name in labels.values()):
        raise InputError("option --labels", "no table of values", "write for example {0: background, 255: car}")
    return labels


def _pattern(text: str | None) -> str | None:
    """A regular expression, if it is one."""
    try:
        re.compile(text or "")
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(
            "option --group", f"no regular expression ({error})", "write for example '^(drive[0-9]+)_'"
        ) from None
    return text


@app.command("sample", epilog=examples("ccnet data sample img.png", "ccnet predict img.png -o mask.png"))
def data_sample(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="PNG file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the sample picture that comes with ccnet."""
    from ccnet_cli.weights.find import sample_image

    refuse_outputs(output, inputs=[sample_image()], overwrite=overwrite)
    write(output, sample_image().read_bytes())
    print_names(output)
