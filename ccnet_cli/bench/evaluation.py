"""What evaluation does around the network: from the tiles' scores to the confusion matrix, three ways, alternating."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccnet_cli.bench.meter import Meter, open_meter
from ccnet_cli.bench.report import Column, Report, Row, Table, spread_columns
from ccnet_cli.bench.request import Run
from ccnet_cli.inference import scores
from ccnet_cli.inference.metrics import Confusion
from ccnet_cli.inference.views import Views, batch_scores, tile_starts, tile_stride

MODES = ("whole", "sliding")
# of a network that sees an image of 769 x 769 as 97 x 97
STRIDE = 8
# milliseconds of an image; ratio is official's median over this one's; memory is MiB that the process had at the peak
# above what it had before, so without what an allocator keeps of an earlier call
COLUMNS = (
    Column("size", "size"),
    Column("mode", "mode"),
    Column("way", "name"),
    *spread_columns("", ".1f", "median"),
    Column("ratio", "ratio", ".1f"),
    Column("MiB", "memory", ".0f"),
)


class FixedScores(nn.Module):
    """A network that computes nothing: images of one size get the same random scores."""

    align_corners = True
    normalisation: Any = None
    stride = STRIDE

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.scores: dict[tuple[int, int], Tensor] = {}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Scores (B, K, h, w) that the size alone decides."""
        height, width = ((side + STRIDE - 1) // STRIDE for side in x_BCHW.shape[2:])
        if (height, width) not in self.scores:
            generator = torch.Generator().manual_seed(height * 100003 + width)
            self.scores[height, width] = torch.randn(1, self.classes, height, width, generator=generator)
        return self.scores[height, width].expand(len(x_BCHW), -1, -1, -1)


def measure(
    sizes: Sequence[tuple[int, int]], run: Run, classes: int = 19, tile: tuple[int, int] = (769, 769)
) -> Report:
    """Time and memory per image of each size, whole and sliding, the network replaced by scores of an eighth of a side.

    official: what the authors' evaluation does, written anew; torch and numba: the two implementations of Scores. All
    three count the same labels, or RuntimeError is raised before anything is timed.
    """
    with open_meter(run) as meter, torch.inference_mode():
        rows = [row for size in sizes for mode in MODES for row in _rows(size, mode, classes, tile, meter)]
        threads, repeats, version = meter.threads, meter.repeats, torch.__version__
        title = f"{classes} classes, tiles {tile[0]}x{tile[1]}, {threads} threads, torch {version}, {repeats} rounds; "
        title += "milliseconds of an image, how many times as fast as official, MiB at the peak"
        values = {"classes": classes, "tile": tile, "threads": threads, "repeats": repeats, "torch": version}
        return Report({**values, "rows": rows}, [Table(title, COLUMNS, rows)])


def official(
    network: nn.Module, image_1CHW: Tensor, label: np.ndarray, classes: int, tile: tuple[int, int] | None
) -> np.ndarray:
    """Every tile's scores enlarged, summed up in numpy and divided by the tiles' number; argmax; one bincount."""
    height, width = image_1CHW.shape[2:]
    down, across = tile or (height, width)
    total = np.zeros((1, height, width, classes))
    count = np.zeros((1, height, width, 1))
    for y in tile_starts(height, down, tile_stride(down)) if tile else [0]:
        for x in tile_starts(width, across, tile_stride(across)) if tile else [0]:
            part = image_1CHW[:, :, y : y + down, x : x + across]
            seen = part.shape[2:]
            padded = F.pad(part, (0, across - seen[1], 0, down - seen[0]))
            large = F.interpolate(network(padded), size=(down, across), mode="bilinear", align_corners=True)
            total[:, y : y + down, x : x + across] += large[:, :, : seen[0], : seen[1]].numpy().transpose(0, 2, 3, 1)
            count[:, y : y + down, x : x + across] += 1
    ids = (total / count).argmax(3)[0].astype(np.uint8)
    valid = label != 255
    pairs = label[valid].astype(np.int64) * classes + ids[valid]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _rows(size: tuple[int, int], mode: str, classes: int, tile: tuple[int, int], meter: Meter) -> list[Row]:
    random = np.random.default_rng(0)
    label = random.integers(0, classes, size, dtype=np.uint8)
    label[random.random(size) < 0.1] = 255
    network, image = FixedScores(classes), torch.zeros(1, 3, *size)

    def count(implementation: str) -> np.ndarray:
        confusion = Confusion(classes)
        (scored,) = batch_scores(network, image, Views(mode, tile), meter.device)
        confusion.merge(scored.compare(label, 255, implementation)[1])
        return confusion.matrix.numpy()

    calls: dict[str, Callable[[], np.ndarray]] = {
        "official": partial(official, network, image, label, classes, tile if mode == "sliding" else None)
    }
    calls |= {name: partial(count, name) for name in reversed(scores.IMPLEMENTATIONS)}
    expected = calls["official"]()
    memory = {}
    for name, call in calls.items():
        # what is loaded, compiled or cached once is no part of an image
        call()
        memory[name] = resident(call)
        if np.abs(call() - expected).sum() > 1e-4 * expected.sum():
            raise RuntimeError(f"{name} counts otherwise than official")
    times = meter.alternate(calls)
    return [
        {
            "size": size,
            "mode": mode,
            "name": name,
            **asdict(time),
            "ratio": times["official"].median / time.median,
            "memory": memory[name],
        }
        for name, time in times.items()
    ]


def resident(call: Callable[[], object]) -> float | None:
    """MiB that a call adds, at its peak, to what the process holds; None where the system does not say."""
    try:
        # resets the peak
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before
    except OSError:
        return None


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
