"""The command line with a mishap built in: run as a script, it comes into every process that the command starts.

CCNET_MISHAP names what happens, CCNET_MARK a file that is written when it does.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from torch.utils.data import DataLoader

from ccnet_cli import cli
from ccnet_cli.datasets.training import TrainingSet
from ccnet_cli.inference import scoring
from ccnet_cli.parallel import supervisor
from ccnet_cli.runs import checkpoint
from ccnet_cli.training import loader
from ccnet_cli.training.trainer import Trainer

MISHAP = os.environ.get("CCNET_MISHAP", "")
MARK = Path(os.environ.get("CCNET_MARK", os.devnull))


def here():
    """Leave the mark, with this process's id; False where it was left before."""
    try:
        with MARK.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def slowly(owner, name, seconds, when=lambda *_: True):
    """Make a function mark that it runs and take its time."""
    function = getattr(owner, name)

    def slow(*arguments, **options):
        if when(*arguments):
            here()
            time.sleep(seconds)
        return function(*arguments, **options)

    setattr(owner, name, slow)


def fail_in_worker(how):
    """Let the worker that meets image 3 fail, once."""
    load = TrainingSet.__getitem__

    def item(self, key):
        if key[1] == 3 and here():
            how()
        return load(self, key)

    TrainingSet.__getitem__ = item


def at_steps(steps, how):
    """Let rank 1 do something after each of these steps, once."""
    update = Trainer.update

    def then(self, loss, before):
        done = update(self, loss, before)
        mark = MARK.with_name(f"{MARK.name}-{self.step}")
        if self.step in steps and self.group.rank == self.group.world_size - 1 and not mark.exists():
            mark.touch()
            here()
            how()
        return done

    Trainer.update = then


def die(number):
    return lambda: os.kill(os.getpid(), number)


def explode():
    raise ZeroDivisionError("in a worker")


def lose_checkpoints():
    """A second machine that does not have rank 0's checkpoint."""
    read = checkpoint.read

    def gone(path):
        return read(path if os.environ["RANK"] == "0" else path.with_name("elsewhere.pt"))

    checkpoint.read = gone


WHAT = {
    "": lambda: None,
    "train": lambda: slowly(Trainer, "update", 0.2, lambda trainer, *_: trainer.step >= 2),
    "eval": lambda: slowly(scoring, "batch_scores", 1.5),
    "save": lambda: slowly(checkpoint, "save", 0.5),
    "first batch": lambda: slowly(TrainingSet, "__getitem__", 0.3),
    "loader": lambda: slowly(loader, "init_worker", 0.5),
    "worker SIGKILL": lambda: fail_in_worker(die(signal.SIGKILL)),
    "worker SIGSEGV": lambda: fail_in_worker(die(signal.SIGSEGV)),
    "worker raise": lambda: fail_in_worker(explode),
    "worker hang": lambda: fail_in_worker(lambda: time.sleep(1000)),
    "stop": lambda: at_steps({4}, die(signal.SIGSTOP)),
    "kill": lambda: at_steps(set(map(int, os.environ["CCNET_STEPS"].split(","))), die(signal.SIGKILL)),
    "elsewhere": lose_checkpoints,
}
WHAT[MISHAP]()
# the twin of a test: without its guard, what it promises does not hold
WITHOUT = os.environ.get("CCNET_WITHOUT")
if WITHOUT == "deaf workers":
    loader.init_worker = lambda _: signal.pthread_sigmask(signal.SIG_UNBLOCK, supervisor.SIGNALS)
if WITHOUT == "signals":
    supervisor.Worker.signals = lambda *_: contextlib.nullcontext(int)
if WITHOUT == "loader timeout":
    TrainingSet.__getitems__ = lambda self, keys: [self[key] for key in keys]
    DataLoader.timeout = property(lambda _: 0, lambda *_: None)

if __name__ == "__main__":
    cli.main()
