"""Which sample comes when: a stream that only the seed decides, cut into global batches and these among ranks."""

from collections.abc import Iterator

import numpy as np


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch's samples, (count,); the same on every rank and machine."""
    # without the key, its numbers would be the augmentation's: SeedSequence treats (s, e) and (s, e, 0) alike
    sequence = np.random.SeedSequence((seed, epoch), spawn_key=(1,))
    return np.random.Generator(np.random.Philox(sequence)).permutation(count)


class Batches:
    """A rank's part of every global batch, as lists of (epoch, index), for DataLoader's batch_sampler.

    Position p = step * batch + j of the stream is sample permutation(epoch)[p mod count] of epoch p // count. So every
    sample comes once an epoch, no batch is short, and neither a resume nor another number of ranks changes the stream.
    To resume with another batch size, give the position `first` at which the stream continues.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        steps: int = 1,
        first: int | None = None,
    ) -> None:
        if count < 1 or batch < 1 or batch % world_size or not 0 <= rank < world_size:
            raise ValueError(f"{count} samples, batch {batch}, rank {rank} of {world_size}")
        self.count = count
        self.batch = batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step
        self.steps = steps
        self.first = start_step * batch if first is None else first

    def __len__(self) -> int:
        return max(self.steps - self.start_step, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        local = self.batch // self.world_size
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start_step, self.steps):
            items = []
            first = self.first + (step - self.start_step) * self.batch + self.rank * local
            for position in range(first, first + local):
                if position // self.count != epoch:
                    epoch = position // self.count
                    order = permutation(self.count, self.seed, epoch)
                items.append((epoch, int(order[position % self.count])))
            yield items
