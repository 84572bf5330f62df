"""Several processes: start them, share work between them, and combine their results."""

import json
import logging
import os
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ccnet_cli import errors
from ccnet_cli.errors import CCNetError, EnvironmentFailure, Interrupted


def rank() -> int:
    """This process's number among all, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard(count: int) -> range:
    """This process's contiguous part of `count` items: every item in exactly one part, sizes differ by at most 1."""
    return part(count, rank(), world())


def part(count: int, number: int, parts: int) -> range:
    """Part `number` of `count` items cut into `parts`."""
    return range(count * number // parts, count * (number + 1) // parts)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def largest(number: int, device: torch.device) -> int:
    """The largest of all processes' numbers, the same answer everywhere."""
    if not dist.is_initialized():
        return number
    tensor = torch.tensor(number, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def gather(value: object) -> list[Any]:
    """Every process's value, in order of rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Rank 0's value, everywhere."""
    if dist.is_initialized():
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
    return value


def share_buffers(module: nn.Module) -> None:
    """Give every process rank 0's buffers: without SyncBN each has running statistics of its own images."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """Gradients averaged over the processes, parameters equal from the start; the module itself where there is one."""
    if world() == 1:
        return module
    # a 1x1 convolution's strides have two spellings, which DDP takes for two layouts
    warnings.filterwarnings("ignore", "Grad strides do not match")
    return nn.parallel.DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `launch` started and give this one's device of that kind; alone, the device itself."""
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # after an error the group stays: closing it would make the other processes fail before this one has told why
    yield device
    dist.destroy_process_group()


def launch(work: Callable[..., Any], arguments: tuple[Any, ...], processes: int) -> Any:
    """Run `work(*arguments)` in so many processes of this machine; rank 0's answer.

    The error of the first process to fail is raised here: its own CCNetError, EnvironmentFailure for one that was
    killed, RuntimeError with its traceback for any other.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # the launcher's own account of a failure is many screens long; ours is one line
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="ccnet",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            return elastic_launch(settings, _guarded)(work, arguments, folder)[0]
        except ChildFailedError as error:
            raise _cause(Path(folder), error.failures) from None
        except SignalException as error:
            # the launcher has passed the signal on and waited for the processes to end
            if any(Path(folder).iterdir()):
                raise _cause(Path(folder), {}) from None
            raise Interrupted("this run", f"stopped by {error.sigval.name}", "start again", error.sigval) from None


def _guarded(work: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> Any:
    try:
        return work(*arguments)
    except Exception as error:
        told: list[Any] = ["", [traceback.format_exc()]]
        if isinstance(error, CCNetError):
            told = [type(error).__name__, [part if isinstance(part, int) else str(part) for part in error.args]]
        (Path(folder) / os.environ["RANK"]).write_text(json.dumps(told), encoding="utf-8")
        raise


def _cause(folder: Path, failures: dict[int, Any]) -> Exception:
    """What to raise for processes that failed: the first of them is the cause, the others lost their partner."""
    for number, failure in failures.items():
        if failure.exitcode < 0:
            why = f"killed by {signal.Signals(-failure.exitcode).name}"
            return EnvironmentFailure(f"process {number} of this run", why, "see if memory ran out, and resume")
    told = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    if not told:
        return EnvironmentFailure("a process of this run", "ended without a word", "resume, and tell us if it recurs")
    kind, parts = json.loads(told[0].read_text(encoding="utf-8"))
    error: Exception = getattr(errors, kind)(*parts) if kind else RuntimeError(*parts)
    return error
