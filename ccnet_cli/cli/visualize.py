"""`ccnet visualize`."""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccnet_cli.cli.options import (
    CheckpointFile,
    Device,
    Json,
    OtherPreset,
    Overrides,
    Overwrite,
    TolerateDamage,
    examples,
    free_name,
    point_of,
    preset_file,
    refuse_outputs,
)
from ccnet_cli.cli.output import percent, print_names, table, write_json
from ccnet_cli.errors import InputError

if TYPE_CHECKING:
    from ccnet_cli.commands.visualize import ClipSummary, Summary

app = typer.Typer()
INCHES = {"in": 1.0, "mm": 1 / 25.4, "cm": 1 / 2.54, "pt": 1 / 72}


class Scale(StrEnum):
    """What shares a colour scale."""

    MAP = "map"
    ROW = "row"


def inches_of(text: str) -> float:
    """A length such as 3.3in, 84mm, 8.4cm or 240pt; inches without a unit."""
    match = re.fullmatch(r"(\d{1,5}(?:\.\d{1,5})?) ?(in|mm|cm|pt)?", text.strip())
    if match is None:
        raise InputError(f"option --width {text}", "not a length", "write inches or a unit, such as 3.3in or 84mm")
    return float(match[1]) * INCHES[match[2] or "in"]


@app.command(
    epilog=examples(
        "ccnet visualize --point 300,400",
        "ccnet visualize street.jpg --point 300,400 --point 120,80 -o attention.png",
        "ccnet visualize --point 300,400 --clip 98 --maps attention.npz",
        "ccnet visualize street.jpg --point 300,400 --checkpoint runs/r1 --compare runs/r2",
        "ccnet visualize street.jpg --point 300,400 --checkpoint runs/danet --class road",
        "ccnet visualize street.jpg --point 300,400 -o figure.pdf --width 3.3in --scale row",
        "ccnet visualize drive.mp4 --frame 30 --point 300,400 --checkpoint runs/t5",
        "ccnet visualize street.jpg --html viewer.html --label street_label.png",
        "ccnet visualize one.jpg two.jpg --html viewers/",
    )
)
def visualize(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE", help="The sample image if left out; several for --html."),
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option("--point", metavar="X,Y", help="Pixel of the image, from top left; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="attention.png, or its next free number; also .pdf, .svg."),
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
    drawn_class: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Draw channel attention for this class, not the point's own."),
    ] = None,
    clip: Annotated[
        float, typer.Option(min=0, max=100, metavar="PERCENT", help="Percentile above which weights look alike.")
    ] = 99.0,
    frame: Annotated[
        int | None,
        typer.Option(min=0, max=10**9, metavar="N", help="Of a video, for a network of clips; the last if left out."),
    ] = None,
    width: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Width of the figure in print, such as 3.3in or 84mm.")
    ] = None,
    dpi: Annotated[
        int | None, typer.Option(min=50, max=1200, metavar="N", help="Dots per inch: 300 for print, 100 on a screen.")
    ] = None,
    scale: Annotated[
        Scale, typer.Option(help="One colour scale for each map, or one for all maps of a row.")
    ] = Scale.MAP,
    maps: Annotated[Path | None, typer.Option(metavar="NPZ", help="Write the maps as arrays.")] = None,
    json_file: Json = None,
    tolerate_damage: TolerateDamage = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    preset: OtherPreset = None,
    overrides: Overrides = None,
) -> None:
    """Draw what the network attends to from a point.

    R=1 beside R=2, as a figure (attention.png), or with --html as a page to explore. Of a network of clips, a row of
    frames for each pass: of a video, or of an image and the frames beside it.
    """
    pixels = tuple(point_of(text) for text in points or ())
    given = tuple(sources or ())
    common: dict[str, Any] = {
        "checkpoint": checkpoint,
        "preset": preset,
        "overrides": tuple(overrides or ()),
        "device": device,
        "clip": clip,
        "overwrite": overwrite,
        "tolerate_damage": tolerate_damage,
    }
    if html is not None:
        figures = (
            *(("--output", output), ("--maps", maps), ("--json", json_file)),
            *(("--class", drawn_class), ("--width", width), ("--dpi", dpi)),
            ("--scale", None if scale is Scale.MAP else scale),
        )
        for option, value in figures:
            if value is not None:
                raise InputError(f"option {option}", "is for the figure, not for --html", "give one of them")
        from ccnet_cli.commands.explore import ExploreRequest, explore

        print_names(*explore(ExploreRequest(given, html, pixels, label, **common, compare=compare, frame=frame)))
        return
    if not pixels:
        raise InputError("option --point", "missing", "give a pixel, such as --point 300,400, or --html viewer.html")
    if len(given) > 1 or label is not None:
        what, fix = ("option --label", "add --html FILE") if label else (f"{len(given)} images", "add --html DIR")
        raise InputError(what, "only with --html", fix)
    target = output or free_name(Path("attention.png"))
    refuse_outputs(json_file, inputs=[*given, checkpoint, compare, preset_file(preset)])
    from ccnet_cli.commands.visualize import VisualizeRequest
    from ccnet_cli.commands.visualize import visualize as draw

    others = () if json_file is None or str(json_file) == "-" else (json_file,)
    image = given[0] if given else None
    figure: dict[str, Any] = {
        "compare": compare,
        "maps": maps,
        "others": others,
        "drawn_class": drawn_class,
        "frame": frame,
        "width": None if width is None else inches_of(width),
        "dpi": dpi,
        "one_scale": scale is Scale.ROW,
    }
    request = VisualizeRequest(image, pixels, target, **figure, **common)
    _show(draw(request), json_file)


def _show(summary: "Summary | ClipSummary", json_file: Path | None) -> None:
    """Print what was drawn, as JSON or as a table of each point and pass."""
    if write_json(summary.to_mapping(), json_file):
        return
    from ccnet_cli.commands.visualize import ClipSummary

    if isinstance(summary, ClipSummary):
        _show_clip(summary)
        return
    several = summary.compared is not None
    models = [summary, *([summary.compared] if summary.compared else [])]
    rows = [
        (
            f"{point['point'][0]},{point['point'][1]}",
            *([model.checkpoint] if several else []),
            point["class"],
            name.replace(" = ", "="),
            *(percent(point[f"r{r}"][key]) for key in ("own_class", "on_cross", "off_cross")),
        )
        for model in models
        for point in model.to_mapping()["points"]
        for r, name in enumerate(model.names or [f"R = {r + 1}" for r in range(model.recurrence)], start=1)
    ]
    table(
        f"{summary.image}: where the attention lies, %",
        ("point", *(["model"] if several else []), "class", "pass", "own class", "on cross", "off cross"),
        rows,
    )


def _show_clip(summary: "ClipSummary") -> None:
    """A table of each point and pass, with the share of each frame."""
    times = [f"{time - summary.place:+d}" if time != summary.place else "labelled" for time in range(summary.frames)]
    models = [summary, *([summary.compared] if summary.compared else [])]
    rows = [
        (
            f"{p.point[0]},{p.point[1]}",
            *([model.checkpoint] if summary.compared else []),
            *(p.name, f"R={r}", *map(percent, (*own.frames, own.on_cross))),
        )
        for model in models
        for p in model.points
        for r, own in enumerate(p.shares, start=1)
    ]
    columns = ("point", *(["model"] if summary.compared else []), "class", "pass", *times, "on cross")
    table(f"{summary.image}: where the attention lies, %", columns, rows)
