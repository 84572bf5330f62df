"""The options that several commands share, and what their values mean."""

import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ccnet_cli import files
from ccnet_cli.cli.output import STDOUT
from ccnet_cli.errors import InputError

if TYPE_CHECKING:
    from ccnet_cli.inference.runtime import Runtime

# of an option that waits: longer ones overflow the clocks of torch and the system
MAX_SECONDS = 10_000_000
MAX_SCALES = 32
# of one array: 4 GiB of float32
MAX_NUMBERS = 1 << 30
MAX_SEED = 2**32 - 1
CONTEXT = {"help_option_names": ["-h", "--help"]}


def examples(*lines: str) -> str:
    """Worked examples, for the end of a help text."""
    # \b keeps the lines as they are, whatever the terminal's width
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class Format(StrEnum):
    """How a segmentation is written."""

    COLOR = "color"
    OVERLAY = "overlay"
    OVERLAY_LEGEND = "overlay-legend"
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


def preset_names(incomplete: str) -> list[str]:
    """What a shell completes a preset's name to."""
    from ccnet_cli import config

    return [name for name in config.names() if name.startswith(incomplete)]


PresetName = Annotated[str, typer.Argument(metavar="NAME|FILE", help="The preset.", autocompletion=preset_names)]


OtherPreset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME|FILE",
        help="Preset in place of the one that the file holds or suggests.",
        autocompletion=preset_names,
    ),
]


Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.")]


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


TolerateDamage = Annotated[
    bool, typer.Option("--tolerate-damage", help="Read what is left of damaged images, with a notice.")
]


DataFolder = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Folder of the data set (data.root).")]


Gpus = Annotated[int | None, typer.Option(min=1, max=1024, metavar="N", help="GPUs to use, one process on each.")]


Processes = Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Processes on the CPU.")]


def nodes_of(count: str | None, rendezvous: str | None, run_id: str | None) -> tuple[int, int, str, int, str] | None:
    """How many machines --nodes N or MIN:MAX allows, host, port and run id; None for this machine alone."""
    if count is None or (count == "1" and rendezvous is None):
        if rendezvous or run_id:
            raise InputError("option --nodes", "missing", "give the number of machines, such as --nodes 2 or 1:4")
        return None
    numbers = [int(number) if number.isdecimal() and len(number) < 5 else 0 for number in count.split(":")]
    if len(numbers) > 2 or not 1 <= numbers[0] <= numbers[-1] <= 1024:
        raise InputError(f"option --nodes {count}", "not N or MIN:MAX", "write for example --nodes 2 or --nodes 1:4")
    if rendezvous is None:
        raise InputError("option --rendezvous", "missing", "give --rendezvous HOST:PORT, the same on every machine")
    host, _, port = rendezvous.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise InputError(f"option --rendezvous {rendezvous}", "not HOST:PORT", "write for example 10.0.0.1:29500")
    if run_id is not None and not re.fullmatch(r"[\w.-]{1,100}", run_id):
        raise InputError(
            f"option --run-id {run_id}", "not letters, digits, . and -", "write for example --run-id first"
        )
    return numbers[0], numbers[-1], host.strip("[]"), int(port), run_id or ""


def seconds_of(value: float) -> float:
    """A time to wait, in seconds: from 1 to some months, which every clock can count."""
    if not 1 <= value <= MAX_SECONDS:
        raise typer.BadParameter(f"{value:g} is not a time from 1 to {MAX_SECONDS} seconds")
    return value


def duration_of(value: float | None) -> float | None:
    """A time to record, in seconds, above 0."""
    if value is not None and not 0 < value <= MAX_SECONDS:
        raise typer.BadParameter(f"{value:g} is not a time above 0 and of {MAX_SECONDS} seconds at most")
    return value


Mode = Annotated[
    Literal["whole", "sliding"] | None,
    typer.Option(metavar="whole|sliding", help="The whole image at once, or tile by tile."),
]


Scales = Annotated[str | None, typer.Option(metavar="LIST", help="Scales to average over, such as 0.75,1,1.25.")]


Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Average over the mirrored image too.")]


InferencePrecision = Annotated[
    Literal["auto", "fp32", "bf16", "int8"],
    typer.Option(
        "--precision",
        metavar="auto|fp32|bf16|int8",
        help="What the network computes in; auto is bf16 where the processor or GPU has it, int8 is for the CPU.",
    ),
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        "--calibrate", metavar="FILE|DIR", help="Images to measure int8's ranges on, not the first of the run."
    ),
]

Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(
        metavar="auto|fp32|bf16", help="What the network computes in; auto is bf16 where the processor or GPU has it."
    ),
]


Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What a process may take, such as 2G; larger images are seen in tiles. By default what is left.",
    ),
]


Compile = Annotated[
    Literal["off", "auto", "on"],
    typer.Option(
        "--compile", metavar="off|auto|on", help="Compile the network, for CUDA only; auto does for 500 images or more."
    ),
]


Formats = Annotated[
    list[Format] | None,
    typer.Option("--format", metavar="NAME", help="color, overlay, overlay-legend, train-id or label-id; repeatable."),
]


Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - prints JSON alone.")
]


def path_override(key: str, path: Path | None) -> list[str]:
    """The override that sets a key to a path; none for no path."""
    if path is None:
        return []
    # quoted, as a path may hold characters that mean something in YAML, which knows no surrogate pairs
    text = json.dumps(str(path), ensure_ascii=False)
    return [f"{key}=" + re.sub(r"[^ -~]", lambda found: f"\\U{ord(found[0]):08x}", text)]


def view_overrides(mode: str | None, scales: list[float] | None, flip: bool | None) -> list[str]:
    """The overrides that set the keys of a preset's eval section to the options that are given."""
    values = {"mode": mode, "scales": scales, "flip": flip}
    return [f"eval.{key}={json.dumps(value)}" for key, value in values.items() if value is not None]


def point_of(text: str) -> tuple[int, int]:
    """X,Y in pixels, from the top left."""
    x, comma, y = text.partition(",")
    if not (comma and x.strip().isdecimal() and y.strip().isdecimal() and len(text) < 20):
        raise InputError(f"option --point {text[:40]}", "not a pixel", "write X,Y, such as --point 300,400")
    return int(x), int(y)


def size_of(text: str, option: str = "--size") -> tuple[int, int]:
    """HEIGHTxWIDTH of a feature map, as (height, width), each of 1 to 4096."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and 0 < int(height[:9]) <= 4096 and 0 < int(width[:9]) <= 4096):
        raise InputError(f"option {option} {text[:40]}", "not a size", "write HEIGHTxWIDTH, such as 97x97")
    return int(height), int(width)


def part_of(text: str) -> tuple[int, int]:
    """K/N, part K of N parts, with K from 1 to N."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part[:9]) <= int(parts[:9]) and len(text) < 20):
        raise InputError(f"option --shard {text}", "not a part", "write K/N with K from 1 to N, such as 1/16 to 16/16")
    return int(part), int(parts)


def parse_sizes(texts: list[str] | None, *default: tuple[int, int], numbers: int = 1) -> list[tuple[int, int]]:
    """(height, width) of every size named, also of several between commas; numbers is how many a pixel has."""
    parts = (part for text in texts or () for part in (text.split(",") if "x" in text else [text]))
    sizes = [size_of(part) for part in parts] or list(default)
    for height, width in sizes:
        if height * width * numbers > MAX_NUMBERS:
            why = f"{numbers} numbers for each pixel are more than {MAX_NUMBERS:,}"
            raise InputError(f"size {height}x{width}", why, "choose a smaller size, or fewer of them at once")
    return sizes


def numbers_of(option: str, text: str | None) -> list[float] | None:
    """A list of scales above 0, at most 8, between commas."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= MAX_SCALES or not all(0.01 <= number <= 8 for number in numbers):
        why = f"not a list of at most {MAX_SCALES} scales from 0.01 to 8"
        raise InputError(f"option {option} {text[:40]}", why, "write for example 0.75,1,1.25")
    return numbers


def preset_file(name: str | None) -> Path | None:
    """The file that a --preset names, or None where it is one of those that come with ccnet."""
    path = Path(name or "")
    return path if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 else None


def bytes_of(text: str | None) -> int:
    """A number of bytes with K, M, G or T (of 1024), at least 1M; 0 for None."""
    if text is None:
        return 0
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1)) if match else 0
    if size < 1 << 20:
        raise InputError(f"option --memory {text[:40]}", "not an amount of memory", "write for example 2G or 512M")
    return size


def runtime_of(
    device: str, precision: str, compiled: str, calibration: Sequence[str] | None, memory: str | None = None
) -> "Runtime":
    """What runs the network; InputError for calibration images that are not there, or not needed."""
    from ccnet_cli.inference.int8 import INT8
    from ccnet_cli.inference.runtime import Runtime

    limit = bytes_of(memory)
    runtime = Runtime(device, precision, compiled, memory=limit, firm=limit > 0)
    if not calibration:
        return runtime
    if precision != INT8:
        raise InputError("option --calibrate", f"precision {precision} measures no ranges", "leave it out")
    from ccnet_cli.media import sources

    candidates = [source for source in sources.find(calibration) if not sources.is_video(source.path)]
    for source in candidates:
        if source.error is not None:
            raise source.error
    return runtime.calibrate(source.path for source in candidates)


def refuse_outputs(*outputs: Path | None, inputs: Iterable[Path | None] = (), overwrite: bool = True) -> None:
    """Refuse, before any work, outputs that name an input or each other, or that could not be written at the end."""
    named = [STDOUT if str(path) == "-" else path for path in outputs if path is not None]
    files.refuse_outputs(named, inputs, overwrite, new_folders=False)


def free_name(path: Path) -> Path:
    """The path itself, or with the first number that makes it a new one: figure.png, figure-2.png, ..."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return path if not os.path.lexists(path) else next(new for new in numbered if not os.path.lexists(new))


def help_alone(context: typer.Context) -> None:
    """Print the help of a group that was called without a command."""
    if context.invoked_subcommand is None:
        print(context.get_help())
