"""Part samples into training and validation: by a seed, with what belongs together in one part."""

import hashlib
import re
from collections import Counter

from ccnet_cli.datasets.listing import Samples
from ccnet_cli.errors import InputError


def part(samples: Samples, fraction: float, seed: int = 0, group: str | None = None) -> tuple[Samples, Samples]:
    """Samples to train on, and about this fraction of them to validate on; only their names and the seed decide.

    group is a regular expression: names of which it matches the same text (its first group, if it has one) stay
    together. InputError if they are all of one group.
    """
    pattern = None if group is None else re.compile(group)
    keys = [_key(row[2], pattern) for row in samples.rows]
    sizes = Counter(keys)

    def draw(key: str) -> bytes:
        return hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogateescape")).digest()

    if len(sizes) < 2:
        why = f"one {'group' if pattern else 'image'} alone cannot be parted"
        raise InputError("data.val_fraction", why, "give more images, or a group that tells them apart")
    held: set[str] = set()
    wanted, count = fraction * len(keys), 0
    for key in sorted(sizes, key=draw)[:-1]:
        # the nearest to what is wanted, and never nothing
        if not held or abs(count + sizes[key] - wanted) < abs(count - wanted):
            held.add(key)
            count += sizes[key]

    def choose(is_held: bool) -> Samples:
        rows = [row for row, key in zip(samples.rows, keys, strict=True) if (key in held) == is_held]
        return Samples(samples.root, rows, samples.listing)

    return choose(False), choose(True)


def _key(name: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is None:
        return name
    match = pattern.search(name)
    return name if match is None else match[1] if pattern.groups and match[1] is not None else match[0]
