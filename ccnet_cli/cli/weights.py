"""`ccnet weights`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccnet_cli.cli.options import CONTEXT, Json, examples, help_alone, refuse_outputs, seconds_of
from ccnet_cli.cli.output import print_names, table, write_json
from ccnet_cli.errors import InputError

if TYPE_CHECKING:
    from ccnet_cli.weights.catalogue import Entry

WEIGHTS_EXAMPLES = examples(
    "ccnet weights list ccnet cityscapes",
    "ccnet weights get mmseg-ccnet-r50-769-80k",
    "ccnet predict photos -o masks --checkpoint mmseg-ccnet-r50-769-80k",
    "ccnet weights show CS_scenes_60000.pth",
)
app = typer.Typer(rich_markup_mode=None, context_settings=CONTEXT, epilog=WEIGHTS_EXAMPLES)


def _complete(incomplete: str) -> list[str]:
    from ccnet_cli.weights import catalogue

    return [name for name in catalogue.read().entries if name.startswith(incomplete)]


@app.callback(invoke_without_command=True)
def weights(context: typer.Context) -> None:
    """List, download and describe public weights.

    Only get downloads, and only what it is asked for.
    """
    help_alone(context)


@app.command(
    "list",
    epilog=examples("ccnet weights list", "ccnet weights list ccnet ade20k", "ccnet weights list --json -"),
)
def weights_list(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORD", help="Show only what has all these words.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Name the public weights: what they are, their published scores, hashes and licences."""
    refuse_outputs(json_file)
    from ccnet_cli.weights import catalogue

    known = catalogue.read()
    chosen = [entry for entry in known.entries.values() if all(word in _text_of(entry) for word in words or ())]
    if write_json([entry.to_mapping(known.settings) for entry in chosen], json_file):
        return
    usable = [entry for entry in chosen if entry.unusable is None]
    columns = ("name", "network", "backbone", "data", "mIoU % (scales, flip)", "hash", "licence", "here")
    _print_columns([columns, *(_row(entry) for entry in usable)])
    reasons: dict[str, list[str]] = {}
    for entry in chosen:
        if entry.unusable is not None:
            reasons.setdefault(entry.unusable, []).append(f"{entry.name} ({entry.licence})")
    print_names(f"{len(usable)} files, and {len(chosen) - len(usable)} more that ccnet cannot load")
    print_names(*(f"- {why}: {', '.join(names)}" for why, names in reasons.items()))


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as plain text: rich would take longer for this many than all the rest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _text_of(entry: "Entry") -> str:
    return " ".join((entry.name, entry.network, entry.backbone, entry.data, entry.licence, entry.layout))


def _row(entry: "Entry") -> tuple[str, ...]:
    from ccnet_cli.weights.catalogue import find_cached

    score = f"top-1 {entry.top1:.2f}" if entry.top1 else "" if entry.miou is None else f"{entry.miou:.2f}"
    score += "" if entry.many is None else f" ({entry.many:.2f})"
    hash = (entry.hash or "-").partition(" in ")[0]
    proof = hash if len(hash) < 16 else hash[:13]
    here = "yes" if find_cached(entry) else ""
    return entry.name, entry.network, entry.backbone, entry.data, score.strip(), proof, entry.licence, here


@app.command(
    "get",
    epilog=examples(
        "ccnet weights get mit-resnet101-imagenet",
        "ccnet weights get mmseg-ccnet-r50-769-80k mmseg-ccnet-r101-769-80k",
        "ccnet weights get csail-ade20k-resnet50dilated-ppm-deepsup",
        "ccnet weights get semseg-resnet50-v2-imagenet --from Downloads/resnet50_v2.pth",
        "ccnet weights get torchvision-resnet50-v1 --from https://mirror.example/models/",
    ),
)
def weights_get(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="From ccnet weights list.", autocompletion=_complete)
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE|DIR|URL",
            help="Another place: a file, a folder, or an http address (of a folder with / at its end).",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Get it even if it is in the cache.")] = False,
    timeout: Annotated[
        float, typer.Option(callback=seconds_of, metavar="SECONDS", help="How long a server may send nothing.")
    ] = 30,
) -> None:
    """Download weights into the cache, checked by their published hash; print where they are.

    The cache is $CCNET_CACHE/weights, or ~/.cache/ccnet/weights. What was interrupted goes on where it ended.
    """
    from ccnet_cli.weights import catalogue
    from ccnet_cli.weights.download import get

    entries = [catalogue.find(part) for name in names for part in catalogue.expand(name)]
    if source is not None and len(entries) > 1 and Path(source).is_file():
        raise InputError(f"option --from {source}", f"one file for {len(entries)} names", "give one name")
    for entry in entries:
        print_names(get(entry, source, timeout, again))


@app.command(
    "show",
    epilog=examples("ccnet weights show mit-resnet101-imagenet", "ccnet weights show CS_scenes_60000.pth --json -"),
)
def weights_show(
    file: Annotated[str, typer.Argument(metavar="FILE|NAME", help="A file of weights, or a name of the catalogue.")],
    json_file: Json = None,
) -> None:
    """Say what a file of weights is: its network, input and classes; or what is published of a name."""
    path = Path(file)
    refuse_outputs(json_file, inputs=[path])
    from ccnet_cli.weights import catalogue

    facts: dict[str, Any] = {}
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        entry = catalogue.find(file)
        facts = entry.to_mapping(catalogue.read().settings)
        path = Path(facts["cached"] or "")
    if path.is_file() or not facts:
        from ccnet_cli.weights.find import find_artifact
        from ccnet_cli.weights.show import describe

        facts = {**facts, **describe(find_artifact(path))}
    if not write_json(facts, json_file):
        table(None, ("what", "value"), _lines(facts))


def _lines(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Dotted keys and their values, without those that are empty."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
