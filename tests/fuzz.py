"""Reads damaged files one after the other, in a process of its own: python fuzz.py KIND FOLDER COUNT SEED.

It prints a JSON object: how often each outcome came, and by how many MiB the process grew. KIND is checkpoints or
images; FOLDER holds the sound files. Any error but the project's own ends it.
"""

import json
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def mutated(data: bytes, others: list[bytes], random: np.random.Generator) -> bytes:
    """Bits flipped, an end cut off, or a stretch replaced by one of another file."""
    kind, at = random.integers(4), int(random.integers(len(data)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        other = others[random.integers(len(others))]
        start, length = int(random.integers(len(other))), int(random.integers(1, 4096))
        return data[:at] + other[start : start + length] + data[at + length :]
    changed = bytearray(data)
    # near the beginning, where the structure is, as often as anywhere
    for place in random.integers(min(len(data), 512) if kind == 2 else len(data), size=random.integers(1, 9)):
        changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def swapped(path: Path, whole: Path, random: np.random.Generator) -> None:
    """A zip whose members trade places, their checksums right."""
    with zipfile.ZipFile(whole) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    one, other = random.choice(len(members), 2, replace=False)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index, (name, data) in enumerate(members):
            archive.writestr(
                name, members[{one: other, other: one}.get(index, index)][1] if index in (one, other) else data
            )


def repaired(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have, so that the decoder sees the damage."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        out += [data[at : at + 4], body, zlib.crc32(body).to_bytes(4)]
        at += 12 + length
    return b"".join(out)


def grown() -> float:
    """MiB at the peak so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def checkpoints(folder: Path, count: int, random: np.random.Generator) -> Counter[str]:
    """Damaged weight files through load_model: refused, the same weights, or others that are finite and fit."""
    import torch

    from ccnet_cli import errors
    from ccnet_cli.inference.artifact import load_model
    from ccnet_cli.weights import load as reading

    errors.notice = reading.notice = lambda text: None
    sound = sorted(folder.glob("*.pt*"))
    contents = [path.read_bytes() for path in sound]
    truth = [load_model(path).network.state_dict() for path in sound]
    outcomes: Counter[str] = Counter()
    damaged = folder / "damaged"
    for number in range(count):
        index = number % len(sound)
        archive = zipfile.is_zipfile(sound[index])
        swap = archive and number % 4 == 0
        if swap:
            swapped(damaged, sound[index], random)
        else:
            damaged.write_bytes(mutated(contents[index], contents, random))
        try:
            found = load_model(damaged).network.state_dict()
        except errors.CCNetError as error:
            assert isinstance(error, errors.InputError) and "\n" not in str(error), repr(error)
            outcomes["refused"] += 1
            continue
        same = found.keys() == truth[index].keys() and all(map(torch.equal, found.values(), truth[index].values()))
        assert all(tensor.isfinite().all() for tensor in found.values())
        outcomes["same" if same else "swapped" if swap else "other, zip" if archive else "other, legacy"] += 1
    return outcomes


def images(folder: Path, count: int, random: np.random.Generator) -> Counter[str]:
    """Damaged pictures through every reader: refused or an array."""
    from ccnet_cli.errors import InputError
    from ccnet_cli.media import images as reader

    sound = sorted(path for path in folder.iterdir() if path.name != "damaged")
    contents = [path.read_bytes() for path in sound]
    outcomes: Counter[str] = Counter()
    damaged = folder / "damaged"
    for number in range(count):
        index = number % len(sound)
        data = mutated(contents[index], contents, random)
        if data.startswith(SIGNATURE) and number % 2:
            data = repaired(data)
        damaged.write_bytes(data)
        for name in ("read_image", "read_label", "read_size"):
            try:
                getattr(reader, name)(damaged)
            except InputError as error:
                assert "\n" not in str(error)
                outcomes[f"{name} refused"] += 1
            else:
                outcomes[f"{name} read"] += 1
    return outcomes


if __name__ == "__main__":
    kind, folder, count, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    random = np.random.default_rng(seed)
    run = {"checkpoints": checkpoints, "images": images}[kind]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name) / "work"
        shutil.copytree(folder, work)
        run(work, 12, random)
        before = grown()
        outcomes = run(work, count, random)
    print(json.dumps({"outcomes": outcomes, "grown": grown() - before}))
