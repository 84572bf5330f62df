"""Training samples for torch's DataLoader: read, augmented, normalised, padded."""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ccnet_cli.datasets.source import Source, load_pair
from ccnet_cli.datasets.transforms import cut, distort, generator, mirror, normalise, pad, random_scale, resize
from ccnet_cli.errors import CCNetError, EnvironmentFailure
from ccnet_cli.images import cv2

# torch takes seconds to load, and checking a data set does without it
if TYPE_CHECKING:
    from torch import Tensor

    Item = tuple[Tensor, Tensor, str]
    Batch = tuple[Tensor, Tensor, list[str]]


class Training:
    """A map-style data set of (epoch, index) -> image float32 (3, h, w), label int64 (h, w), name.

    Only (seed, epoch, index) decide the augmentation, whichever worker or rank it runs in.
    """

    def __init__(
        self,
        source: Source,
        crop: tuple[int, int],
        scale_min: float = 0.7,
        scale_max: float = 2.1,
        scale_step: float = 0.1,
        mirror: bool = True,
        channel_order: str = "bgr",
        mean: Sequence[float] = (104.00698793, 116.66876762, 122.67891434),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        seed: int = 0,
        fit: tuple[int, int] | None = None,
        category_ratio: float = 1.0,
        photometric: bool = False,
    ) -> None:
        self.source = source
        self.crop = crop
        self.scales = (scale_min, scale_max, scale_step)
        self.fit = fit
        self.category_ratio = category_ratio
        self.photometric = photometric
        self.mirror = mirror
        self.channel_order = channel_order
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed
        # OpenCV's threads do not survive the fork into workers, and these are the parallelism here
        cv2.setNumThreads(0)

    def __len__(self) -> int:
        return len(self.source.samples)

    def __getitem__(self, key: tuple[int, int]) -> "Item":
        import torch

        epoch, index = key
        sample = self.source.samples[index]
        image, label = load_pair(self.source, sample)
        random = generator(self.seed, epoch, index)
        image, label = resize(image, label, random_scale(*self.scales, random), self.fit)
        image, label = cut(image, label, self.crop, random, self.category_ratio, self.source.ignore_index)
        if self.photometric:
            image = distort(image, random)
        image = normalise(image, self.channel_order, self.mean, self.std)
        image, label = pad(image, label, self.crop, self.source.ignore_index)
        if self.mirror:
            image, label = mirror(image, label, random, self.source.classes.mirrored)
        return torch.from_numpy(image), torch.from_numpy(label.astype(np.int64)), sample.name

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> "list[Item] | CCNetError":
        """A batch's items or the error that one of them met: raised in a worker, it would arrive as a RuntimeError."""
        import torch

        items: list[Item] = []
        for key in keys:
            try:
                items.append(self[key])
            except CCNetError as error:
                return error
            except Exception as error:
                # in the process itself, anything else is a bug and shows where
                if torch.utils.data.get_worker_info() is None:
                    raise
                image, why = self.source.samples[key[1]].image, f"a worker failed on it ({error!r})"
                return EnvironmentFailure(f"image {image}", why, "see that it can be read, and resume")
        return items


def collate(items: "list[Item] | CCNetError") -> "Batch | CCNetError":
    """Images (N, 3, h, w), labels (N, h, w) and names of a batch, for DataLoader's collate_fn; an error passes."""
    import torch

    if isinstance(items, CCNetError):
        return items
    images, labels, names = zip(*items, strict=True)
    return torch.stack(images), torch.stack(labels), list(names)


def delivered(loader: "Iterable[Batch | CCNetError]") -> "Iterator[Batch]":
    """The batches of a loader that uses collate; an InputError met in a worker is raised here."""
    for batch in _started(loader):
        if isinstance(batch, CCNetError):
            raise batch
        yield batch


@contextmanager
def attended() -> Iterator[None]:
    """EnvironmentFailure for a loader's worker that is killed, ends by itself or is silent for longer than the timeout.

    torch tells of a worker's death wherever the process happens to be, so this belongs around all that it does.
    """
    before = multiprocessing.active_children()
    try:
        yield
    except BaseException as error:
        # they ignore SIGTERM, so the end of this process would wait for them; and torch would tell of theirs once more
        if workers := [child for child in multiprocessing.active_children() if child not in before]:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for worker in workers:
                worker.kill()
        lost = isinstance(error, RuntimeError) and "DataLoader" in str(error)
        if not lost and not isinstance(error, ConnectionError | EOFError):
            raise
        why = str(error).partition("\n")[0].rstrip(". ")
        fix = "see if memory or /dev/shm ran out, raise data.timeout, or set data.workers=0, and resume"
        raise EnvironmentFailure("a loader's worker", why or type(error).__name__, fix) from error


def _started(loader: "Iterable[Batch | CCNetError]") -> "Iterator[Batch | CCNetError]":
    # until its worker_init_fn runs, a worker dies of a signal to the whole group: it is born with them blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
