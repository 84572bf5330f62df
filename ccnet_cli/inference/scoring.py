"""Score a network on the labelled images of a dataset: one confusion matrix over every valid pixel."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ccnet_cli.datasets.listing import Sample
from ccnet_cli.datasets.source import Source, load_frames, load_image, load_pair
from ccnet_cli.errors import Interrupted
from ccnet_cli.inference.artifact import Network
from ccnet_cli.inference.clips import share_frames
from ccnet_cli.inference.metrics import Calibration, Confusion
from ccnet_cli.inference.scores import Predictor, Scores
from ccnet_cli.inference.views import Views, batch_scores, host_input
from ccnet_cli.media.background import prefetch
from ccnet_cli.parallel.group import Group


@dataclass(frozen=True)
class LoadedImage:
    """An image read ahead: BGR (H, W, 3), its label (H, W) if it has one, and the network's input.

    That is (1, 3, H, W), or (1, T, 3, H, W) of a clip.
    """

    sample: Sample
    image: np.ndarray
    label: np.ndarray | None
    input: Tensor


# sample, BGR image, predicted train ids (H, W) and, if there is one, label
OnImage = Callable[[Sample, np.ndarray, np.ndarray, np.ndarray | None], None]


def score_network(
    network: Network,
    source: Source,
    views: Views,
    group: Group,
    on_image: OnImage | None = None,
    stop_signal: Callable[[], int] = int,
    predictor: Predictor | None = None,
    calibration: Calibration | None = None,
) -> Confusion:
    """The confusion matrix over every image that has a label, on every process, each image counted once.

    Neither the images that the network sees together nor the number of processes change a bit of the answer. The
    network's modes stay as they are. Where stop_signal gives a signal's number on one process, Interrupted is raised on
    all. A predictor that scored other images before may have loaded its kernel already. calibration counts the same
    pixels.
    """
    confusion = Confusion(len(source.classes))
    predictor = predictor or Predictor()
    images = pixels = 0
    device = group.device
    samples = [source.samples[index] for index in group.shard(len(source.samples))]
    viewer = share_frames(network, source.clips, [sample.image for sample in samples])

    def load(sample: Sample) -> LoadedImage:
        image, label = (load_image(source, sample), None) if sample.label is None else load_pair(source, sample)
        frames = [host_input(frame, network.normalisation, device) for frame in load_frames(source, sample, image)]
        return LoadedImage(sample, image, label, frames[0] if source.clips is None else torch.stack(frames, dim=1))

    with evaluation_mode(cast(nn.Module, network)):
        for batch in _batches(prefetch(load, samples, views.batch), views.batch):
            scored = batch_scores(viewer, torch.cat([loaded.input for loaded in batch]), views, device)
            for loaded, scores in zip(batch, scored, strict=True):
                images += 1
                if loaded.label is None:
                    prediction = predictor.predict(scores)
                else:
                    prediction, counts = predictor.compare(scores, loaded.label, source.ignore_index)
                    confusion.merge(counts)
                    if calibration is not None:
                        _calibrate(calibration, scores, loaded.label, source.ignore_index)
                    pixels += int(np.count_nonzero(loaded.label != source.ignore_index))
                if on_image is not None:
                    on_image(loaded.sample, loaded.image, prediction, loaded.label)
            if stop_signal():
                group.announce_signal(stop_signal())
            if stop_signal() or group.announced_signal():
                break
    if number := group.largest(stop_signal()):
        raise Interrupted(f"data set {source.dataset}", "not scored to the end", "start again", number)
    # on the device: NCCL sums on GPUs only
    confusion.matrix = group.all_reduce_sum(confusion.matrix.to(device)).cpu()
    if calibration is not None:
        calibration.counts = group.all_reduce_sum(calibration.counts.to(device)).cpu()
    counted = torch.tensor([images, pixels], device=device)
    _check_counts(source, confusion, *group.all_reduce_sum(counted).tolist())
    return confusion


def _calibrate(calibration: Calibration, scores: Scores, label: np.ndarray, ignore_index: int) -> None:
    truth = torch.from_numpy(label)
    for top, band in scores.bands():
        calibration.update(band, truth[top : top + band.shape[1]], ignore_index)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module back in its own mode after."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _batches(loaded: Iterable[LoadedImage], count: int) -> Iterator[list[LoadedImage]]:
    """Runs of at most `count` images of one size."""
    batch: list[LoadedImage] = []
    for each in loaded:
        if batch and (len(batch) == count or each.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _check_counts(source: Source, confusion: Confusion, images: int, pixels: int) -> None:
    """A bug of ours unless every image and every valid pixel was counted once."""
    if images != len(source.samples) or pixels != int(confusion.matrix.sum()):
        raise AssertionError(
            f"{images} of {len(source.samples)} images, {confusion.matrix.sum()} of {pixels} pixels counted"
        )
