"""Evaluation around the network: from the tiles' logits to the confusion matrix, three ways, alternating."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccnet_cli.bench import measure
from ccnet_cli.bench.measure import Sheet
from ccnet_cli.inference import scores
from ccnet_cli.inference.metrics import Confusion
from ccnet_cli.inference.views import Views, batch_scores, tile_starts, tile_stride

MODES = ("whole", "sliding")
# of a network that sees an image of 769 x 769 as 97 x 97
STRIDE = 8
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One way at one size: milliseconds of an image, ratio of the medians official / this one, MiB at the peak.

    memory is what the process held above what it held before; what an allocator kept of an earlier call is not in it.
    """

    size: tuple[int, int]
    mode: str
    name: str
    median: float
    least: float
    greatest: float
    ratio: float
    memory: float | None


@dataclass(frozen=True)
class Report:
    """The table, and what it was measured on."""

    classes: int
    tile: tuple[int, int]
    threads: int
    repeats: int
    torch: str
    rows: tuple[Row, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON."""
        return asdict(self)

    def sheets(self) -> Iterator[Sheet]:
        """What is printed of it."""
        rows = [
            (
                f"{row.size[0]}x{row.size[1]}",
                row.mode,
                row.name,
                *(f"{time:.1f}" for time in (row.median, row.least, row.greatest)),
                f"{row.ratio:.1f}",
                "" if row.memory is None else f"{row.memory:.0f}",
            )
            for row in self.rows
        ]
        title = (
            f"{self.classes} classes, tiles {self.tile[0]}x{self.tile[1]}, {self.threads} threads, torch {self.torch}, "
        )
        title += f"{self.repeats} rounds; milliseconds of an image, how many times as fast as official, MiB at the peak"
        yield Sheet(title, ("size", "mode", "way", "median", "least", "greatest", "ratio", "MiB"), rows)


class Ready(nn.Module):
    """A network whose logits are there already: any picture of one size gets the same."""

    align_corners = True

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.known: dict[tuple[int, int], Tensor] = {}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K, h, w) that a picture's size alone decides."""
        height, width = ((side + STRIDE - 1) // STRIDE for side in x_BCHW.shape[2:])
        if (height, width) not in self.known:
            generator = torch.Generator().manual_seed(height * 100003 + width)
            self.known[height, width] = torch.randn(1, self.classes, height, width, generator=generator)
        return self.known[height, width].expand(len(x_BCHW), -1, -1, -1)


def evaluation(
    sizes: Sequence[tuple[int, int]] = ((1024, 2048),),
    classes: int = 19,
    tile: tuple[int, int] = (769, 769),
    threads: int | None = None,
    repeats: int = 5,
) -> Report:
    """Time and memory per image of each size, whole and sliding, the network replaced by logits of an eighth of a side.

    official: what the authors' evaluation does, written anew; torch and numba: the two implementations of Scores. All
    three count the same labels, or RuntimeError is raised before anything is timed.
    """
    with measure.threads(threads) as count:
        rows = [row for size in sizes for mode in MODES for row in _rows(size, mode, classes, tile, repeats)]
        return Report(classes, tile, count, repeats, torch.__version__, tuple(rows))


def official(
    network: nn.Module, image_1CHW: Tensor, label: np.ndarray, classes: int, tile: tuple[int, int] | None
) -> np.ndarray:
    """Every tile's logits upsampled, summed up in numpy and divided by how many there are; argmax; one bincount."""
    height, width = image_1CHW.shape[2:]
    down, across = tile or (height, width)
    total = np.zeros((1, height, width, classes))
    count = np.zeros((1, height, width, 1))
    for y in tile_starts(height, down, tile_stride(down)) if tile else [0]:
        for x in tile_starts(width, across, tile_stride(across)) if tile else [0]:
            part = image_1CHW[:, :, y : y + down, x : x + across]
            seen = part.shape[2:]
            padded = F.pad(part, (0, across - seen[1], 0, down - seen[0]))
            logits = F.interpolate(network(padded), size=(down, across), mode="bilinear", align_corners=True)
            total[:, y : y + down, x : x + across] += logits[:, :, : seen[0], : seen[1]].numpy().transpose(0, 2, 3, 1)
            count[:, y : y + down, x : x + across] += 1
    ids = (total / count).argmax(3)[0].astype(np.uint8)
    valid = label != 255
    found = label[valid].astype(np.int64) * classes + ids[valid]
    return np.bincount(found, minlength=classes**2).reshape(classes, classes)


def _rows(size: tuple[int, int], mode: str, classes: int, tile: tuple[int, int], repeats: int) -> list[Row]:
    random = np.random.default_rng(0)
    label = random.integers(0, classes, size, dtype=np.uint8)
    label[random.random(size) < 0.1] = 255
    network, image = Ready(classes), torch.zeros(1, 3, *size)

    def ours(implementation: str) -> np.ndarray:
        confusion = Confusion(classes)
        (found,) = batch_scores(network, image, Views(mode, tile), CPU)
        confusion.merge(found.compare(label, 255, implementation)[1])
        return confusion.matrix.numpy()

    ways: dict[str, Callable[[], np.ndarray]] = {
        "official": partial(official, network, image, label, classes, tile if mode == "sliding" else None)
    }
    ways |= {name: partial(ours, name) for name in reversed(scores.IMPLEMENTATIONS)}
    with torch.inference_mode():
        expected = ways["official"]()
        memories = {}
        for name, way in ways.items():
            # what is loaded, compiled or kept once is no part of an image
            way()
            memories[name] = resident(way)
            if np.abs(way() - expected).sum() > 1e-4 * expected.sum():
                raise RuntimeError(f"{name} counts otherwise than official")
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                times[name].append(measure.elapsed(way, CPU))
    base = statistics.median(times["official"])
    return [
        Row(size, mode, name, median, min(own), max(own), base / median, memories[name])
        for name, own in times.items()
        for median in [statistics.median(own)]
    ]


def resident(call: Callable[[], object]) -> float | None:
    """MiB that a call adds, at its peak, to what the process holds; None where the system does not tell."""
    try:
        # from here on the peak counts anew
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before
    except OSError:
        return None


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
