"""The training batches: which samples a process reads, by which workers, and how long it waits for them."""

import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ccnet_cli import files
from ccnet_cli.datasets.sampling import Batches
from ccnet_cli.datasets.source import Source
from ccnet_cli.datasets.training import Augmentation, TrainingSet, collate, raise_worker_errors, to_device
from ccnet_cli.errors import SIGNALS
from ccnet_cli.media import images
from ccnet_cli.models.network import Normalisation
from ccnet_cli.parallel.group import Group
from ccnet_cli.training.plan import Plan

T = TypeVar("T")


class Timed(Generic[T]):
    """An iterator that measures how long its caller waits for the next element."""

    def __init__(self, iterator: Iterator[T]) -> None:
        self.iterator = iterator
        self.seconds = 0.0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        started = time.monotonic()
        try:
            return next(self.iterator)
        finally:
            self.seconds += time.monotonic() - started

    def take_seconds(self) -> float:
        """The seconds waited since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def micro_batches(
    plan: Plan, source: Source, group: Group, normalisation: Normalisation, step: int, position: int
) -> Timed[tuple[Tensor, Tensor, list[str]]]:
    """This rank's micro-batches from a step and its position in the stream of samples on, on the rank's device.

    Each is images (B, 3, h, w), normalised, labels (B, h, w), and the samples' names.
    """
    loader = raise_worker_errors(make_loader(plan, source, group, step, position))
    mean, std = normalisation.mean, normalisation.std
    return Timed(to_device(loader, mean, std, group.device, plan.preset.train.channels_last))


def make_loader(
    plan: Plan, source: Source, group: Group, step: int = 0, position: int | None = None
) -> DataLoader[Any]:
    """The loader of this rank's micro-batches, as bytes; where no position is given, the step tells it."""
    preset, data, micro = plan.preset, plan.preset.data, plan.micro_batch
    batches = Batches(
        len(source.samples),
        preset.train.batch,
        preset.seed,
        rank=group.rank,
        world_size=group.world_size,
        start_step=step,
        steps=preset.schedule.steps,
        first=position,
    )
    samples = TrainingSet(source, Augmentation.from_settings(data), preset.model.channel_order, preset.seed)
    return DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=(batch[start : start + micro] for batch in batches for start in range(0, len(batch), micro)),
        num_workers=data.workers,
        collate_fn=collate,
        pin_memory=plan.device.type == "cuda",
        worker_init_fn=init_worker if data.workers else None,
        timeout=data.timeout if data.workers else 0,
        # spawned workers start slowly, and would die of group signals during start-up
        multiprocessing_context="fork" if data.workers and sys.platform == "linux" else None,
        # of its own: the loader's start would draw from the generator that dropout uses
        generator=torch.Generator(),
    )


def init_worker(_: int) -> None:
    """Make a loader's worker leave signals and error messages to its process, and use one thread."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # the process reports in one line what kills a worker: neither torch nor faulthandler has to
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE):
        signal.signal(number, signal.SIG_DFL)
    sys.excepthook = lambda *_: None
    # a worker that hangs would outlive a process that is killed
    files.die_with_parent()
    # workers run in parallel already; OpenCV's setting does not reach spawned ones
    torch.set_num_threads(1)
    images.cv2.setNumThreads(0)
