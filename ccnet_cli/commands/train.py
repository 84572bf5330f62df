"""Train a model: one self-contained, resumable run folder."""

from pathlib import Path

from ccnet_cli.devices import local_device
from ccnet_cli.errors import InputError
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import Group, read_launch
from ccnet_cli.parallel.supervisor import Worker
from ccnet_cli.training import process
from ccnet_cli.training.request import TrainRequest


def train(request: TrainRequest) -> Path | None:
    """Train as the request says; the run folder, or None on all but the first node or started process.

    Processes that torchrun or SLURM started train together. Raises InputError before anything is written,
    NonFiniteError before the step that would spoil the weights, and Interrupted after a signal, its checkpoint written.
    """
    launch = read_launch() if request.nodes.count == 1 else None
    if launch is not None and (request.gpus or request.processes > 1 or request.restarts):
        option = "--gpus" if request.gpus else "--processes" if request.processes > 1 else "--max-restarts"
        why = f"{launch.world_size} processes are started already, by torchrun or SLURM"
        raise InputError(f"option {option}", why, "leave it to them")
    device = local_device(request.gpus, request.processes, request.device)
    if launch is not None:
        return process.run(Worker(), request, device)
    count, nodes, restarts, limits = request.local_processes, request.nodes, request.restarts, request.limits
    if nodes.count > 1:
        folder: Path | None = supervisor.run(process.run, (request, device), count, nodes, restarts, limits)
        return folder
    plan, inputs = process.prepare(request, Group())
    with process.run_folder(plan):
        if count > 1 or restarts:
            supervisor.run(process.run, (request, device, plan), count, restarts=restarts, limits=limits)
        else:
            process.run(Worker(), request, device, plan, inputs)
    return plan.run
