"""Several machines: a thin front of torch's elastic agent, which starts the processes of this one and meets the others.

Machines may come and go: the agents then stop all processes, meet anew, and start them with new ranks.
"""

import json
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from ccnet_cli import files, parts
from ccnet_cli.devices import RENDEZVOUS, network_variables, resolve, wait_for_store
from ccnet_cli.errors import (
    SIGNALS,
    CCNetError,
    EnvironmentFailure,
    Interrupted,
    PeerLost,
    exit_at_once,
    first_line,
    transportable,
)
from ccnet_cli.parallel import group as groups
from ccnet_cli.parallel.group import Limits

# a worker whose error would come again sends it to its agent, which then restarts nothing
END = signal.SIGUSR2
# the signals that end an agent, after its workers have written a checkpoint
END_SIGNALS = (*SIGNALS, END)
# seconds: an agent that is silent for KEEP_ALIVE * 3 is given up, more machines than needed are waited for LAST_CALL
KEEP_ALIVE, LAST_CALL = 3, 5
START_METHOD = "spawn"


@dataclass(frozen=True)
class Nodes:
    """How many machines a run has, at least and at most; where they meet, and the run's name there."""

    least: int = 1
    most: int = 1
    host: str = ""
    port: int = 0
    run_id: str = ""


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

    files.reserve_handles(48 + 8 * processes)
    keeps_store, address = _locate(nodes, limits)
    # the store that torch 2.13 shares by default outlasts a change of ranks: machines that come back do not find it
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[RENDEZVOUS] = f"{nodes.host}:{nodes.port}"
    os.environ |= network_variables(address)
    handler = _Log(log, delay=True)
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    # a worker that is being killed may write its error into a folder that is being removed
    with tempfile.TemporaryDirectory(prefix="ccnet-", ignore_cleanup_errors=True) as errors:
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
            start_method=START_METHOD,
            local_addr=address,
            signals_to_handle=",".join(number.name for number in END_SIGNALS),
            shutdown_timeout=int(limits.shutdown),
        )
        try:
            payload = bytes(ForkingPickler.dumps((work, arguments)))
            return elastic_launch(config, _run_worker)(payload).get(0)
        except SignalException as stop:
            # that of another worker may follow
            signal.signal(END, signal.SIG_IGN)
            raise _cause(Path(errors), stop=stop.sigval) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise _cause(Path(errors), rank, failure.exitcode) from None
        except Exception as error:
            if isinstance(stopped := _cause(Path(errors)), Interrupted):
                raise stopped from None
            where = f"rendezvous {nodes.host}:{nodes.port}"
            why = f"lost ({type(error).__name__}: {first_line(error)})"
            if type(error).__name__ == "RendezvousTimeoutError":
                why = f"fewer than {nodes.least} machines came within {limits.join:.0f} s"
            raise EnvironmentFailure(where, why, "see that its machine runs, and resume") from None
        finally:
            for child in multiprocessing.active_children():
                child.kill()


def _run_worker(payload: bytes) -> Any:
    """Entry of a worker: run the work; an error goes into torch's error file."""
    try:
        parts.extend_from_environment()
        work, arguments = ForkingPickler.loads(payload)
        return work(groups.Worker(), *arguments)
    except Exception as error:
        # the agent passes on the signal that it gets below: it would put another error in the place of this one
        for number in END_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        pickled = bytes(ForkingPickler.dumps(transportable(error))).hex()
        # torch's agent reads the message
        content = {"error": pickled, "time": time.time(), "timestamp": int(time.time()), "message": str(error)}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content))
        if isinstance(error, CCNetError) and not isinstance(error, EnvironmentFailure | Interrupted):
            os.kill(os.getppid(), END)
        exit_at_once(1)


def _cause(errors: Path, rank: int = 0, code: int = 0, stop: int = 0) -> Exception:
    """The error to raise once a worker has failed, with this exit code, or a signal has stopped the agent."""
    reports = []
    for file in errors.rglob("error.json"):
        with suppress(OSError, ValueError, KeyError):
            content, attempt = json.loads(file.read_text()), int(file.parts[-3].removeprefix("attempt_"))
            failure = ForkingPickler.loads(bytes.fromhex(content["error"]))
            # workers leave the report to their agent
            failure.reported = False
            reports.append((attempt, content["time"], failure))
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
    family, kind, _, _, address = resolve(nodes.host, nodes.port)
    with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(address)
        own = probe.getsockname()[0]
        if own == address[0]:
            with socket.socket(family, kind) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with suppress(OSError):
                    server.bind(address)
                    return True, own
    wait_for_store(nodes.host, nodes.port, limits.join)
    return False, own


class _Log(logging.FileHandler):
    """Writes messages to a file from when there is a folder for it."""

    def emit(self, record: logging.LogRecord) -> None:
        if Path(self.baseFilename).parent.is_dir():
            super().emit(record)
