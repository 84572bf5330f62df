"""Train a model: one self-contained, resumable run folder."""

import re
import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from ccnet_cli.devices import local_device, read_launch
from ccnet_cli.errors import InputError
from ccnet_cli.parallel import elastic, supervisor
from ccnet_cli.parallel.elastic import Nodes
from ccnet_cli.parallel.group import Group, Worker
from ccnet_cli.training import process
from ccnet_cli.training.plan import check_world_sizes
from ccnet_cli.training.request import TrainRequest


def train(request: TrainRequest) -> Path | None:
    """Train as the request says; the run folder, or None on all but the first node or started process.

    Processes that torchrun or SLURM started train together. Raises InputError before anything is written,
    NonFiniteError before the step that would spoil the weights, and Interrupted after a signal, its checkpoint written.
    """
    device, count = local_device(request.gpus, request.processes, request.device), request.local_processes
    if request.nodes is not None:
        return _train_on_nodes(request, request.nodes, device)
    launch = read_launch()
    if launch is not None and (request.gpus or request.processes > 1 or request.restarts):
        option = "--gpus" if request.gpus else "--processes" if request.processes > 1 else "--max-restarts"
        why = f"{launch.world_size} processes are started already, by torchrun or SLURM"
        raise InputError(f"option {option}", why, "leave it to them")
    if launch is not None:
        return process.run(Worker(), request, device)
    with ExitStack() as resources:
        plan, inputs = process.prepare(request, Group(), resources)
        if count > 1 or request.restarts:
            supervisor.run(process.run, (request, device, plan), count, request.restarts, request.limits)
        else:
            process.run(Worker(), request, device, plan, inputs)
    return plan.run


def _train_on_nodes(request: TrainRequest, nodes: Nodes, device: torch.device) -> Path | None:
    """Train on this machine and others: the run folder on the first of them, None elsewhere."""
    if request.run is None:
        raise InputError("option --run", "missing", "give one --run DIR, a folder that every machine sees")
    count = request.local_processes
    check_world_sizes(request.preset.train.batch, [count * each for each in range(nodes.least, nodes.most + 1)])
    # what every machine calls this run, and no other run that meets at the address
    run_id = nodes.run_id or re.sub(r"[^\w.-]", "_", f"{request.preset.name}-{request.run.absolute().name}")[:100]
    log = request.run / f"agent-{socket.gethostname()}.log"
    nodes, work = replace(nodes, run_id=run_id), (request, device)
    folder: Path | None = elastic.run(process.run, work, count, nodes, request.restarts, request.limits, log)
    return folder
