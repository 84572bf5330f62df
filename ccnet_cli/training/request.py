"""What a training run is asked to be."""

from dataclasses import dataclass, field
from pathlib import Path

from ccnet_cli import config
from ccnet_cli.parallel.elastic import Nodes
from ccnet_cli.parallel.group import Limits


@dataclass(frozen=True)
class TrainRequest:
    """All that `ccnet train` is given; the global batch stays the preset's, whatever the number of processes.

    run: the run folder; a new one below ./runs if None.
    resume: "auto" for the run's newest sound checkpoint, if it has one, or the file of a checkpoint.
    strict: refuse to resume with other settings, data, threads or processes than before.
    take_over: stop the run that is in the folder, wherever it is.
    weights: a checkpoint or other people's weights to initialize from.
    require_weights: refuse to begin without the weights that the preset names.
    chosen: the keys of the preset's model that were set for this run, which do not follow the weights.
    partial: let weights be missing, or have other shapes, as long as most of the backbone's fit.
    device, gpus, processes: what each node computes on; gpus and processes start that many processes there.
    tolerate_damage: read what is left of damaged images.
    nodes: the machines of the run, where there are several; each is given the same request.
    restarts: how often all processes are restarted from the newest checkpoint after a failure of the machine.
    """

    preset: config.Preset
    run: Path | None = None
    resume: str | None = None
    strict: bool = False
    take_over: bool = False
    weights: Path | None = None
    require_weights: bool = False
    chosen: tuple[str, ...] = ()
    partial: bool = False
    tolerate_damage: bool = False
    device: str = "auto"
    gpus: int | None = None
    processes: int = 1
    nodes: Nodes | None = None
    restarts: int = 0
    limits: Limits = field(default_factory=Limits)

    @property
    def local_processes(self) -> int:
        """The processes of a node."""
        return self.gpus or self.processes
