"""`ccnet train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccnet_cli.cli.options import (
    MAX_SEED,
    DataFolder,
    Device,
    Gpus,
    Overrides,
    Processes,
    TolerateDamage,
    examples,
    nodes_of,
    path_override,
    preset_names,
    seconds_of,
)
from ccnet_cli.cli.output import print_names
from ccnet_cli.errors import InputError, detail, notice

if TYPE_CHECKING:
    from ccnet_cli.config import Preset

app = typer.Typer()
# that a run was made of, in its folder
PRESET = "preset.yaml"


@app.command(
    epilog=examples(
        "ccnet train --preset quickstart",
        "ccnet train --data mine",
        "ccnet train --preset camvid --data CamVid -o runs/camvid",
        "ccnet train --preset cityscapes-r2-ohem --data Cityscapes --gpus 4 --weights mit-resnet101-imagenet",
        "ccnet train --preset quickstart -s model.recurrence=1 -s schedule.steps=200",
        "ccnet train --preset quickstart -o runs/first --resume",
        "ccnet train --preset mmseg-psp-r101-cityscapes-769-80k --dry-run",
        "ccnet train --resume runs/first",
    )
)
def train(
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="What to run; see ccnet presets list. Proposed for --data DIR without one; a resumed run has its own.",
            autocompletion=preset_names,
        ),
    ] = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    run: Annotated[
        Path | None, typer.Option("--run", "-o", metavar="DIR", help="Folder of the run; a new one below ./runs.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[RUN|FILE]", help="Continue a run's folder, from FILE or from its newest sound checkpoint."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict-resume", help="Refuse to resume under other settings, data or threads.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Resume at once, even if another run is in the folder; that one stops.")
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Begin with these weights: a checkpoint, the authors', ImageNet's, ...; or a name.",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--allow-partial", help="Take the weights that fit, as long as the backbone's do.")
    ] = False,
    require_weights: Annotated[
        bool, typer.Option("--strict", help="Refuse to begin without the weights that the preset names.")
    ] = False,
    tolerate_damage: TolerateDamage = False,
    gpus: Gpus = None,
    processes: Processes = 1,
    nodes: Annotated[
        str | None, typer.Option(metavar="N|MIN:MAX", help="Machines of the run; each runs the same command.")
    ] = None,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the machines meet: an address of one of them.")
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Name of the run at the rendezvous; otherwise from preset and folder."),
    ] = None,
    node_rank: Annotated[int | None, typer.Option(hidden=True)] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1000,
            metavar="N",
            help="Times to go on from the newest checkpoint by itself; 0, or 3 with --nodes MIN:MAX.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(callback=seconds_of, metavar="SECONDS", help="How long a process waits for the others in a step."),
    ] = 600,
    join_timeout: Annotated[
        float, typer.Option(callback=seconds_of, metavar="SECONDS", help="How long it waits for the others to come.")
    ] = 300,
    shutdown_timeout: Annotated[
        float,
        typer.Option(
            callback=seconds_of, metavar="SECONDS", help="Time to end after a signal; twice that of a checkpoint."
        ),
    ] = 60,
    epochs: Annotated[
        float | None,
        typer.Option(min=1e-3, max=1e6, metavar="N", help="Passes over the training images, for schedule.steps."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of weights and data order.")
    ] = None,
    tf32: Annotated[
        bool | None, typer.Option("--tf32/--no-tf32", help="Products of float32 in TF32, on GPUs with it (train.tf32).")
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be trained, as YAML; no data are read or written.")
    ] = False,
) -> None:
    """Train a model; one folder holds all that belongs to the run."""
    from ccnet_cli import config

    run, resume = _find_run(run, resume)
    chosen: str | dict[str, Any] | None = None
    if preset is None and resume is None and data is not None:
        chosen = _propose(data, None if dry_run else Path(), (gpus, processes, device), nodes)
    chosen = chosen or preset or _preset_of(run, resume)
    named = {"seed": seed, "train.tf32": None if tf32 is None else str(tf32).lower()}
    given = [f"{key}={value}" for key, value in named.items() if value is not None]
    settings = config.load(chosen, [*(overrides or ()), *path_override("data.root", data), *given])
    if epochs is not None:
        settings = _with_epochs(settings, epochs, overrides or ())
    if isinstance(chosen, str):
        detail(f"preset {settings.name} of {config.find(chosen)}")
    from ccnet_cli.commands.train import train as start
    from ccnet_cli.parallel.elastic import Nodes
    from ccnet_cli.parallel.group import Limits
    from ccnet_cli.training.request import TrainRequest

    if node_rank is not None:
        fix = "leave it out, and run the same line on every machine"
        raise InputError("option --node-rank", "the machines number themselves", fix)
    described = nodes_of(nodes, rendezvous, run_id)
    machines = Nodes(*described) if described else None
    if max_restarts is None:
        max_restarts = 3 if machines and machines.least < machines.most else 0
    request = TrainRequest(
        settings,
        run=run,
        resume=resume,
        strict=strict,
        take_over=take_over,
        weights=weights,
        require_weights=require_weights,
        chosen=tuple(text.partition("=")[0] for text in overrides or () if text.startswith("model.")),
        partial=partial,
        tolerate_damage=tolerate_damage,
        device=device,
        gpus=gpus,
        processes=processes,
        nodes=machines,
        restarts=max_restarts,
        limits=Limits(join_timeout, timeout, shutdown_timeout),
    )
    if dry_run:
        from ccnet_cli.config import text
        from ccnet_cli.training.outline import outline

        print(text.dump(outline(request)), end="")
        return
    folder = start(request)
    # one of several processes prints it
    if folder is not None:
        print_names(folder)


def _propose(
    data: Path, output: Path | None, where: tuple[int | None, int, str], nodes: str | None
) -> "str | dict[str, Any]":
    """The file of a preset for a folder of data, in the output folder or, for None, its keys."""
    from ccnet_cli.commands import propose
    from ccnet_cli.devices import local_device, read_launch

    if nodes is not None or read_launch() is not None:
        fix = "give one with --preset; ccnet train --data DIR --dry-run without a launcher proposes one"
        raise InputError("option --preset", "missing, and several machines or processes would each write one", fix)
    ready = data / PRESET
    if ready.is_file():
        notice(f"{data}: trained by {ready}")
        return str(ready)
    gpus, processes, _ = where
    proposal = propose.propose(data, local_device(*where), gpus or processes)
    if output is None:
        notice(f"{proposal.line}; not written")
        return proposal.mapping
    return str(propose.write(proposal, output))


def _with_epochs(settings: "Preset", epochs: float, overrides: Sequence[str]) -> "Preset":
    if any(text.startswith(("schedule.steps=", "schedule=")) for text in overrides):
        raise InputError(f"option --epochs {epochs:g}", "schedule.steps is set too", "give one of them")
    from ccnet_cli import config
    from ccnet_cli.datasets import open_source

    images = len(open_source(settings.data, "train").samples)
    mapping = config.to_mapping(settings)
    schedule = mapping["schedule"]
    steps = max(1, round(epochs * images / settings.train.batch))
    # as long a part of the run as before
    schedule |= {"steps": steps, "warmup": schedule["warmup"] * steps // schedule["steps"]}
    notice(f"{epochs:g} epochs of {images} images: {steps} steps, {schedule['warmup']} of them warm-up")
    return config.from_mapping(mapping)


def _find_run(run: Path | None, resume: str | None) -> tuple[Path | None, str | None]:
    """The run folder and what to resume there: --resume may name the folder of a run."""
    if resume is None or not Path(resume).is_dir():
        return run, resume
    if run is not None and run.resolve() != Path(resume).resolve():
        raise InputError(f"option --run {run}", f"--resume names another run, {resume}", "leave one of them out")
    if not (Path(resume) / PRESET).is_file():
        fix = "name the folder of a run or a checkpoint, or begin one with --run DIR"
        raise InputError(resume, f"is a folder without the {PRESET} of a run", fix)
    return Path(resume), "auto"


def _preset_of(run: Path | None, resume: str | None) -> str:
    """The preset that the folder of a resumed run holds."""
    parents = [] if resume in (None, "auto") else [*Path(resume).absolute().parents][:2]
    folders = [] if resume is None else [*([] if run is None else [run]), *parents]
    for folder in folders:
        if (folder / PRESET).is_file():
            return str(folder / PRESET)
    if folders:
        raise InputError(f"folder {folders[0]}", f"holds no {PRESET} of a run", "name the run, or give --preset NAME")
    raise InputError("option --preset", "missing", "see ccnet train --help")
