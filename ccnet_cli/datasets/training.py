"""Training samples for torch's DataLoader: read, augmented and padded as bytes, normalised on the device."""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ccnet_cli.datasets import augment, transforms
from ccnet_cli.datasets.settings import Augment, Data
from ccnet_cli.datasets.source import Source, load_frames, load_pair
from ccnet_cli.errors import CCNetError, EnvironmentFailure
from ccnet_cli.media.images import Pixels, cv2
from ccnet_cli.media.pixels import normalised_bytes, scaled_size

# B batch, h and w the crop


class Item(NamedTuple):
    """A sample as bytes: image (h, w, 3) and label (h, w), uint8, a fifth of the size that the network takes.

    The image of a clip is (T, h, w, 3). extent is where the picture lies in the crop, (bottom, left, right); the rest
    is padding.
    """

    image: Pixels
    label: Pixels
    extent: tuple[int, int, int]
    name: str


class Batch(NamedTuple):
    """Items, stacked: images (B, h, w, 3), or (B, T, h, w, 3) of clips, and labels (B, h, w)."""

    images: Tensor
    labels: Tensor
    extents: list[tuple[int, int, int]]
    names: list[str]


@dataclass(frozen=True)
class Augmentation:
    """How a picture becomes a training sample; the keys of the preset's section data that say so."""

    crop: tuple[int, int]
    fit: tuple[int, int] | None = None
    scale_min: float = 0.7
    scale_max: float = 2.1
    scale_step: float = 0.1
    category_ratio: float = 1.0
    mirror: bool = True
    photometric: bool = False
    augment: Augment | None = None

    @classmethod
    def from_settings(cls, data: Data) -> Self:
        """The augmentation of a preset."""
        return cls(**{field.name: getattr(data, field.name) for field in fields(cls)})

    def random_scale(self, random: np.random.Generator) -> float:
        """A scale for one sample."""
        return transforms.random_scale(self.scale_min, self.scale_max, self.scale_step, random)


class TrainingSet:
    """A map-style data set of (epoch, index) -> Item.

    Only (seed, epoch, index) decide the augmentation, on whatever worker or rank it runs.
    """

    def __init__(self, source: Source, augmentation: Augmentation, channel_order: str = "bgr", seed: int = 0) -> None:
        self.source = source
        self.augmentation = augmentation
        self.channel_order = channel_order
        self.seed = seed
        # OpenCV's threads do not survive the fork into workers, which run in parallel themselves
        cv2.setNumThreads(0)

    def __len__(self) -> int:
        return len(self.source.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        recipe, ignored = self.augmentation, self.source.ignore_index
        sample = self.source.samples[index]
        image, label = load_pair(self.source, sample)
        frames = load_frames(self.source, sample, image)
        random = transforms.generator(self.seed, epoch, index)
        size = scaled_size((label.shape[0], label.shape[1]), recipe.random_scale(random), recipe.fit)
        if recipe.augment is not None:
            size = augment.stretch(recipe.augment, size, random)
        *window, label = transforms.place(label, size, recipe.crop, random, recipe.category_ratio, ignored)
        frames = [transforms.image_part(frame, size, *window) for frame in frames]
        if recipe.photometric:
            frames = transforms.distort_alike(frames, random)
        if recipe.augment is not None:
            frames, label = augment.apply(recipe.augment, frames, label, ignored, random)
        if self.channel_order == "rgb":
            frames = [np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8) for frame in frames]
        height, width = label.shape
        left = 0
        if recipe.mirror and random.integers(2):
            pairs = [transforms.mirror(frame, label, self.source.classes.mirrored) for frame in frames]
            frames, label = [frame for frame, _ in pairs], pairs[0][1]
            # the padding at the right is mirrored too
            left = recipe.crop[1] - width
        pairs = [transforms.pad(frame, label, recipe.crop, left, ignored) for frame in frames]
        frames, label = [frame for frame, _ in pairs], pairs[0][1]
        # views would keep the scaled pictures in memory until the batch is complete
        image = np.ascontiguousarray(frames[0]) if self.source.clips is None else np.stack(frames)
        return Item(image, np.ascontiguousarray(label), (height, left, left + width), sample.name)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Item] | CCNetError:
        """A batch's items, or the first error: raised in a worker, it would reach the process as a RuntimeError."""
        items: list[Item] = []
        for key in keys:
            try:
                items.append(self[key])
            except CCNetError as error:
                return error
            except Exception as error:
                # in the process itself, anything else is a bug and needs its traceback
                if get_worker_info() is None:
                    raise
                image, why = self.source.samples[key[1]].image, f"a worker failed on it ({error!r})"
                return EnvironmentFailure(f"image {image}", why, "see that it can be read, and resume")
        return items


def collate(items: list[Item] | CCNetError) -> Batch | CCNetError:
    """Stack items into a batch, for DataLoader's collate_fn; return an error as it is."""
    if isinstance(items, CCNetError):
        return items
    images, labels, extents, names = zip(*items, strict=True)
    image, label = (torch.stack([torch.from_numpy(each) for each in arrays]) for arrays in (images, labels))
    return Batch(image, label, list(extents), list(names))


def raise_worker_errors(loader: Iterable[Batch | CCNetError]) -> Iterator[Batch]:
    """Yield the batches of a loader that uses collate; raise the error that one of its workers returned."""
    for batch in _start(loader):
        if isinstance(batch, CCNetError):
            raise batch
        yield batch


def to_device(
    batches: Iterable[Batch],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    channels_last: bool = True,
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yield what the network takes, on its device: images float32 (B, 3, h, w), labels int64 (B, h, w), names.

    Clips are (B, T, 3, h, w). Images are (image - mean) / std, their padding exactly 0. Batches in pinned memory are
    copied while the device computes.
    """
    table = torch.from_numpy(normalised_bytes(mean, std)).flatten().to(device)
    for images, labels, extents, names in batches:
        width = images.shape[-2]
        channels = torch.arange(0, 3 * 256, 256, dtype=torch.int32, device=device).repeat(width)
        indices = images.to(device, non_blocking=True).flatten(-2) + channels
        image = table.index_select(0, indices.flatten()).view(images.shape).movedim(-1, -3)
        for one, (bottom, left, right) in zip(image, extents, strict=True):
            one[..., bottom:, :] = 0
            one[..., :left] = 0
            one[..., right:] = 0
        label = labels.to(device, non_blocking=True).long()
        yield image if channels_last else image.contiguous(), label, names


@contextmanager
def watch_workers() -> Iterator[None]:
    """Raise EnvironmentFailure if a loader's worker is killed, exits or exceeds the timeout.

    torch reports a worker's death by a signal, at any line of the process, so this belongs around the whole loop.
    """
    before = multiprocessing.active_children()
    try:
        yield
    except BaseException as error:
        # they ignore SIGTERM, so this process would wait for them at its end, and torch would report their deaths again
        if workers := [child for child in multiprocessing.active_children() if child not in before]:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for worker in workers:
                worker.kill()
        from_loader = isinstance(error, RuntimeError) and "DataLoader" in str(error)
        if not from_loader and not isinstance(error, ConnectionError | EOFError):
            raise
        # of one that dies while it answers, only the end of its connection is seen
        why = str(error).partition("\n")[0].rstrip(". ") if from_loader else "ended unexpectedly"
        fix = "see if memory or /dev/shm ran out, raise data.timeout, or set data.workers=0, and resume"
        raise EnvironmentFailure("a loader's worker", why, fix) from error


def _start(loader: Iterable[Batch | CCNetError]) -> Iterator[Batch | CCNetError]:
    # workers inherit the mask: until its worker_init_fn runs, a signal to the whole group would kill one
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
