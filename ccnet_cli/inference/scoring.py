"""Score a network on the labelled images of a dataset: one confusion matrix over every valid pixel."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ccnet_cli import config
from ccnet_cli.datasets import Sample, Source, load_image, load_pair
from ccnet_cli.errors import Interrupted
from ccnet_cli.inference.metrics import Confusion
from ccnet_cli.inference.views import batch_scores, host_input
from ccnet_cli.media import background as pipeline
from ccnet_cli.parallel import group as distributed


@dataclass(frozen=True)
class Loaded:
    """An image read ahead: BGR (H, W, 3), its label (H, W) if it has one, and the network's input (1, 3, H, W)."""

    sample: Sample
    image: np.ndarray
    label: np.ndarray | None
    input: Tensor


def evaluate_model(
    model: nn.Module,
    source: Source,
    settings: config.Eval,
    device: torch.device,
    on_image: Callable[[Sample, np.ndarray, np.ndarray, np.ndarray | None], None] | None = None,
    precision: str = "fp32",
    asked: Callable[[], int] = int,
) -> Confusion:
    """The confusion matrix over every image that has a label, on every process, each image counted once.

    Every image's scores are summed by themselves, so that neither their sizes nor the number of processes change a bit
    of the answer; the network sees up to eval.batch pictures or tiles of one size at once.
    on_image gets sample, BGR image, predicted train ids (H, W) and label of each image of this process. The model's
    modes are kept.
    asked tells a signal's number; Interrupted is raised on every process once any of them was asked to stop.
    """
    confusion = Confusion(len(source.classes))
    counted = torch.zeros(2, dtype=torch.int64)
    samples = [source.samples[index] for index in distributed.shard(len(source.samples))]
    s = settings
    views = (s.mode, s.tile, s.scales, s.flip, precision, s.fit, source.classes.mirrored, s.batch)

    def load(sample: Sample) -> Loaded:
        image, label = _load(source, sample)
        return Loaded(sample, image, label, host_input(image, model.normalisation, device))

    with evaluating(model):
        for group in _groups(pipeline.ahead(load, samples, s.batch), s.batch):
            found = batch_scores(model, torch.cat([each.input for each in group]), device, *views)
            for each, scores in zip(group, found, strict=True):
                counted[0] += 1
                if each.label is None:
                    ids = scores.labels()
                else:
                    ids, compared = scores.compared(each.label, source.ignore_index)
                    confusion.merge(compared)
                    counted[1] += np.count_nonzero(each.label != source.ignore_index)
                if on_image is not None:
                    on_image(each.sample, each.image, ids, each.label)
            if asked():
                distributed.pass_on(asked())
            if asked() or distributed.passed_on():
                break
    if number := distributed.largest(asked(), device):
        raise Interrupted(f"data set {source.dataset}", "not scored to the end", "start again", number)
    # where the processes meet: NCCL sums on the GPU alone
    confusion.matrix = distributed.all_reduce_sum(confusion.matrix.to(device)).cpu()
    seen, pixels = distributed.all_reduce_sum(counted.to(device)).tolist()
    if seen != len(source.samples) or pixels != int(confusion.matrix.sum()):
        raise AssertionError(
            f"{seen} of {len(source.samples)} images, {confusion.matrix.sum()} of {pixels} pixels counted"
        )
    return confusion


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module back in its own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _load(source: Source, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    """The BGR image and, where it has one, the label."""
    return (load_image(sample), None) if sample.label is None else load_pair(source, sample)


def _groups(loaded: Iterable[Loaded], count: int) -> Iterator[list[Loaded]]:
    """Runs of at most `count` images of one size."""
    group: list[Loaded] = []
    for each in loaded:
        if group and (len(group) == count or each.image.shape != group[0].image.shape):
            yield group
            group = []
        group.append(each)
    if group:
        yield group
