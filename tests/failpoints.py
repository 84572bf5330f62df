"""The command line with a fault: run as a script, the fault comes into every process that the command starts.

CCNET_FAULT names the fault, CCNET_MARK a file that is written when it happens, CCNET_WITHOUT a guard to remove.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ccnet_cli import cli
from ccnet_cli.datasets.training import TrainingSet
from ccnet_cli.errors import SIGNALS
from ccnet_cli.inference import scoring
from ccnet_cli.parallel import group as groups
from ccnet_cli.runs import checkpoint
from ccnet_cli.training import loader
from ccnet_cli.training.loop import Loop
from ccnet_cli.training.trainer import LossNetwork, Trainer


def mark():
    """Write the mark; False if it is there already."""
    try:
        Path(os.environ["CCNET_MARK"]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def slow_down(owner, name, seconds, when=lambda *_: True):
    """Let a function write the mark when it starts, and take its time."""
    function = getattr(owner, name)

    def slow(*arguments, **options):
        if when(*arguments):
            mark()
            time.sleep(seconds)
        return function(*arguments, **options)

    setattr(owner, name, slow)


def fail_in_worker(fail):
    """Let the loader's worker that meets image 3 fail, once."""
    load = TrainingSet.__getitem__

    def item(self, key):
        if key[1] == 3 and mark():
            fail()
        return load(self, key)

    TrainingSet.__getitem__ = item


def fail_at_steps(steps, fail):
    """Let the last rank fail after each of these steps, once."""
    update = Trainer.update

    def then(self, loss, before):
        done = update(self, loss, before)
        path = Path(f"{os.environ['CCNET_MARK']}-{self.step}")
        if self.step in steps and self.group.rank == self.group.world_size - 1 and not path.exists():
            path.touch()
            mark()
            fail()
        return done

    Trainer.update = then


def stop_at(place, rank):
    """Stop the process of a rank at one of PLACES, once, in or after its third step."""
    owner, name = PLACES[place]
    function = getattr(owner, name)

    def stopping(*arguments, **options):
        if STEPS_DONE[0] >= 2 and os.environ.get("RANK") == rank and mark():
            os.kill(os.getpid(), signal.SIGSTOP)
        return function(*arguments, **options)

    setattr(owner, name, stopping)
    update = Trainer.update

    def count(*arguments):
        STEPS_DONE[0] += 1
        return update(*arguments)

    if place != "after step":
        Trainer.update = count
    else:
        STEPS_DONE[0] = 2


STEPS_DONE = [0]
PLACES = {
    "before forward": (LossNetwork, "forward"),
    "backward": (torch.Tensor, "backward"),
    "after step": (Loop, "_log"),
    "save": (Trainer, "state"),
    "evaluation": (scoring, "batch_scores"),
}


def die(number):
    return lambda: os.kill(os.getpid(), number)


def explode():
    raise ZeroDivisionError("in a worker")


def lose_checkpoints():
    """A second node that does not have rank 0's checkpoint."""
    read = checkpoint.read

    def miss(path):
        return read(path if os.environ["RANK"] == "0" else path.with_name("elsewhere.pt"))

    checkpoint.read = miss


def ignore_timeouts():
    TrainingSet.__getitems__ = lambda self, keys: [self[key] for key in keys]
    DataLoader.timeout = property(lambda _: 0, lambda *_: None)


def leave_signals_to_workers():
    loader.init_worker = lambda _: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore_signals():
    groups.Worker.signals = lambda *_: contextlib.nullcontext(int)


FAULTS = {
    "": lambda: None,
    "train": lambda: slow_down(Trainer, "update", 0.2, lambda trainer, *_: trainer.step >= 2),
    "eval": lambda: slow_down(scoring, "batch_scores", 1.5),
    "save": lambda: slow_down(checkpoint, "save", 0.5),
    "first batch": lambda: slow_down(TrainingSet, "__getitem__", 0.3),
    "loader": lambda: slow_down(loader, "init_worker", 0.5),
    "worker SIGKILL": lambda: fail_in_worker(die(signal.SIGKILL)),
    "worker SIGSEGV": lambda: fail_in_worker(die(signal.SIGSEGV)),
    "worker raise": lambda: fail_in_worker(explode),
    "worker hang": lambda: fail_in_worker(lambda: time.sleep(1000)),
    "stop": lambda: fail_at_steps({4}, die(signal.SIGSTOP)),
    "kill": lambda: fail_at_steps(set(map(int, os.environ["CCNET_STEPS"].split(","))), die(signal.SIGKILL)),
    "elsewhere": lose_checkpoints,
}
GUARDS = {
    "": lambda: None,
    "worker signals": leave_signals_to_workers,
    "signals": ignore_signals,
    "loader timeout": ignore_timeouts,
}


def note_processes():
    """Write the id of each rank's process beside the mark."""
    start = groups.Worker.__init__

    def init(self, pipe=None):
        pid_file(os.environ["CCNET_MARK"], os.environ.get("RANK", 0)).write_text(str(os.getpid()))
        start(self, pipe)

    groups.Worker.__init__ = init


def pid_file(mark, rank):
    return Path(f"{mark}-rank-{rank}")


def install():
    """Put in the fault, and take out the guard, that the environment names."""
    note_processes()
    fault = os.environ.get("CCNET_FAULT", "")
    if fault.startswith("stop at "):
        stop_at(*fault.removeprefix("stop at ").rsplit(" ", 1))
    else:
        FAULTS[fault]()
    GUARDS[os.environ.get("CCNET_WITHOUT", "")]()


# a spawned worker imports this script under another name
if os.environ.get("CCNET_FAULT") is not None and __name__ != "failpoints":
    install()

if __name__ == "__main__":
    cli.main()
