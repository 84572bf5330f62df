"""Several machines: a thin front of torch's elastic agent, which starts the processes of this one and meets the others.

Machines may come and go: the agents then stop all processes, meet anew, and start them with new ranks.
"""

import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from ccnet_cli import parts
from ccnet_cli.errors import CCNetError, EnvironmentFailure, InputError, Interrupted, PeerLost
from ccnet_cli.parallel import group as groups
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import Limits

# a worker whose error would come again sends it to its agent, which then restarts nothing
END = signal.SIGUSR2
# the signals that end an agent, after its workers have written a checkpoint
SIGNALS = (*supervisor.SIGNALS, END)
# seconds: an agent that is silent for KEEP_ALIVE * 3 is given up, more machines than needed are waited for LAST_CALL
KEEP_ALIVE, LAST_CALL = 3, 5


@dataclass(frozen=True)
class Nodes:
    """How many machines a run has, at least and at most; where they meet, and the run's name there."""

    least: int = 1
    most: int = 1
    host: str = ""
    port: int = 0
    run_id: str = ""


def parse_nodes(count: str | None, rendezvous: str | None, run_id: str | None) -> Nodes | None:
    """The machines that --nodes N or MIN:MAX, --rendezvous and --run-id describe; None for this machine alone."""
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
    return Nodes(numbers[0], numbers[-1], host.strip("[]"), int(port), run_id or "")


def run(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    processes: int,
    nodes: Nodes,
    restarts: int,
    limits: Limits,
    log: Path,
) -> Any:
    """Run `work(worker, *arguments)` in N processes on this machine; rank 0's answer, None on the other machines.

    Errors are as in supervisor.run; failures of the machine, and machines that come and go, start the workers anew.
    The agent writes its messages to log once the folder for it exists.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    keeps_store, address = _locate(nodes, limits)
    # the default store of torch 2.13 outlasts a change of ranks: machines that come back look for it in vain
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[groups.RENDEZVOUS] = f"{nodes.host}:{nodes.port}"
    os.environ |= _network(address)
    logger = logging.getLogger("torch.distributed.elastic")
    logger.handlers, logger.propagate = [_Log(log, delay=True)], False
    with tempfile.TemporaryDirectory(prefix="ccnet-") as errors:
        config = LaunchConfig(
            nodes.least,
            nodes.most,
            processes,
            logs_specs=DefaultLogsSpecs(log_dir=errors),
            run_id=nodes.run_id,
            rdzv_backend="c10d",
            rdzv_endpoint=f"[{nodes.host}]:{nodes.port}" if ":" in nodes.host else f"{nodes.host}:{nodes.port}",
            rdzv_configs={
                "is_host": keeps_store,
                "join_timeout": int(limits.join),
                "last_call_timeout": LAST_CALL,
                "keep_alive_interval": KEEP_ALIVE,
            },
            max_restarts=restarts,
            local_addr=address,
            signals_to_handle=",".join(number.name for number in SIGNALS),
            shutdown_timeout=int(limits.shutdown),
        )
        try:
            payload = bytes(ForkingPickler.dumps((work, arguments)))
            return elastic_launch(config, _run_worker)(payload).get(0)
        except SignalException as stop:
            raise _cause(Path(errors), stop=stop.sigval) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise _cause(Path(errors), rank, failure.exitcode) from None
        except Exception as error:
            if isinstance(stopped := _cause(Path(errors)), Interrupted):
                raise stopped from None
            where = f"rendezvous {nodes.host}:{nodes.port}"
            why = f"lost ({type(error).__name__}: {groups.first_line(error)})"
            raise EnvironmentFailure(where, why, "see that its machine runs, and resume") from None
        finally:
            for child in multiprocessing.active_children():
                child.kill()


def _run_worker(payload: bytes) -> Any:
    """Entry of a worker: run the work; an error goes into torch's error file."""
    groups.die_with_parent()
    try:
        parts.extend_from_environment()
        work, arguments = ForkingPickler.loads(payload)
        return work(supervisor.Worker(), *arguments)
    except Exception as error:
        content = {"error": groups.encode_error(error), "time": time.time()}
        # as torch's agent expects it
        message = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content | {"message": message}))
        if isinstance(error, CCNetError) and not isinstance(error, EnvironmentFailure | Interrupted):
            os.kill(os.getppid(), END)
        supervisor.exit_at_once(1)


def _cause(errors: Path, rank: int = 0, code: int = 0, stop: int = 0) -> Exception:
    """The error to raise once a worker has failed, with this exit code, or a signal has stopped the agent."""
    reports = []
    for file in errors.rglob("error.json"):
        with suppress(OSError, ValueError, KeyError):
            content, attempt = json.loads(file.read_text()), int(file.parts[-3].removeprefix("attempt_"))
            reports.append((attempt, content["time"], groups.decode_error(content["error"])))
    # of the last attempt, the first one; that a peer was lost is only a consequence
    last = max((attempt for attempt, *_ in reports), default=0)
    reports.sort(key=lambda report: (report[0] < last, isinstance(report[2], PeerLost), report[1]))
    error: Exception | None = reports[0][2] if reports else None
    if stop and stop != END and not isinstance(error, Interrupted):
        name = signal.Signals(stop).name
        return Interrupted("this run", f"stopped by {name} before its first step", "start it again", stop)
    if error is None or code < 0:
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else "ended without a word"
        return EnvironmentFailure(f"process {rank} of this run", why, "see if memory ran out, and resume")
    return error


def _locate(nodes: Nodes, limits: Limits) -> tuple[bool, str]:
    """Whether this process is to keep the machines' store, and this machine's address in their network."""
    family, kind, _, _, address = groups.resolve(nodes.host, nodes.port)
    with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(address)
        own = probe.getsockname()[0]
        if own == address[0]:
            with socket.socket(family, kind) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with suppress(OSError):
                    server.bind(address)
                    return True, own
    groups.wait_for_store(nodes.host, nodes.port, limits.join)
    return False, own


def _network(address: str) -> dict[str, str]:
    """Variables that make torch's libraries use the network interface with this address."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            # SIOCGIFADDR: the interface's address, from byte 20 on
            with suppress(OSError):
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    variables = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
                    return {variable: os.environ.get(variable, name) for variable in variables}
    return {}


class _Log(logging.FileHandler):
    """Writes messages to a file from when there is a folder for it."""

    def emit(self, record: logging.LogRecord) -> None:
        if Path(self.baseFilename).parent.is_dir():
            super().emit(record)
