"""`ccnet train` as a background process with a fault, and what it leaves."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import failpoints
import torch
from runs import SETTINGS, ended, forked

from ccnet_cli import cli
from ccnet_cli.runs import checkpoint

ROOT = Path(__file__).parents[1]


class Train:
    """`ccnet train` as a background process, the leader of a process group.

    It is forked from the tests, and so are its workers; with a launcher before it, a new interpreter and spawned ones.
    """

    def __init__(self, data, folder, *options, settings=(), fault="", launcher=(), **variables):
        self.run, self.mark, self.output = folder / "run", folder / "mark", folder / f"{time.monotonic_ns()}.txt"
        overrides = [*sorted(SETTINGS), "model.dropout=0.3", "schedule.steps=8", "eval.every=0", *settings]
        words = ["train", "--preset", "quickstart", "--data", data, "-o", self.run, *options]
        words = [str(word) for word in (*words, *(part for override in overrides for part in ("-s", override)))]
        variables |= {"PYTHONPATH": str(ROOT), "CCNET_FAULT": fault, "CCNET_MARK": str(self.mark)}
        self.code = None
        if launcher:
            command = [*map(str, launcher), str(ROOT / "tests" / "failpoints.py"), *words]
            self.pid = forked(lambda: self._exec(command, variables))
        else:
            self.pid = forked(lambda: self._main(words, variables))

    def _exec(self, command, variables):
        self._redirect(variables)
        os.execvp(command[0], command)

    def _main(self, words, variables):
        self._redirect(variables)
        sys.argv = ["ccnet", *words]
        failpoints.install()
        try:
            cli.main()
        except SystemExit as stop:
            os._exit(stop.code)

    def _redirect(self, variables):
        os.setsid()
        os.environ.pop("CCNET_CHECKPOINT", None)
        os.environ.update(variables)
        for number, path in ((1, os.devnull), (2, self.output)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        # those of pytest write elsewhere
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))

    def pids(self):
        """The processes that have started, by rank."""
        files = [failpoints.pid_file(self.mark, rank) for rank in range(2)]
        return [int(file.read_text()) for file in files if file.exists()]

    def wait_for_mark(self, seconds=90):
        """Wait until the fault happens."""
        deadline = time.monotonic() + seconds
        while not self.mark.exists():
            assert not self.ended(), self.output.read_text()
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.02)

    def ended(self):
        if self.code is None and (status := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(status[1])
        return self.code is not None

    def end(self, seconds=90):
        """Its exit code, its stderr, and how long it took to end; afterwards none of its processes is left."""
        started = time.monotonic()
        try:
            while not self.ended():
                if time.monotonic() - started > seconds:
                    raise TimeoutError
                time.sleep(0.01)
        finally:
            # torchrun's processes are in other process groups
            for process in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            if self.code is None:
                self.code = ended(self.pid)
        return self.code, self.output.read_text(), time.monotonic() - started


def logged(run):
    """Steps that the log says were done."""
    path = run / "log.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.is_file() else []


def saved(run):
    """The step of the newest checkpoint, read back whole."""
    return checkpoint.read(checkpoint.list_checkpoints(run / "checkpoints")[0])["step"]


def weights(run):
    return checkpoint.read(checkpoint.list_checkpoints(run / "checkpoints")[0])["model"]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different, f"{len(different)} of {len(one)} weights differ: {different[:5]}"


def one_error(output):
    """The only line that reports an error."""
    assert "Traceback" not in output and "[W" not in output and "[E" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("ccnet: error: ")]
    return line
