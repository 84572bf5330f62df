"""The paper's table of costs: one to three passes of criss-cross attention beside the block that they replace."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ccnet_cli.bench import measure
from ccnet_cli.bench.alternatives import NonLocal
from ccnet_cli.bench.measure import Sheet
from ccnet_cli.models import network as models
from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross

NON_LOCAL = "non-local"


@dataclass(frozen=True)
class Published:
    """What the paper says: GFLOP, and memory in MB as printed there."""

    gflop: float
    memory: float


# TPAMI, cost of context modules over the baseline for one image of 3x769x769, whose map is 512x97x97
PUBLISHED_AT = ((97, 97), 512, 1)
PUBLISHED = {"RCCA R=2": Published(16.5, 127), NON_LOCAL: Published(108, 1411)}


@dataclass(frozen=True)
class Row:
    """One module: GFLOP of its forward pass by the formula and as torch counts them; memory in MiB; see cost."""

    name: str
    gflop: float
    counted: float
    inference_memory: float
    training_memory: float
    step_memory: float
    published: Published | None


@dataclass(frozen=True)
class Report:
    """The table, and what it was measured on."""

    size: tuple[int, int]
    channels: int
    batch: int
    device: str
    torch: str
    rows: tuple[Row, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON; "published", never measured here, is null where the paper has no such figure."""
        return asdict(self) | {"size": list(self.size), "rows": [asdict(row) for row in self.rows]}

    def sheets(self) -> Iterator[Sheet]:
        """What is printed of it."""
        rows = [
            (
                row.name,
                f"{row.gflop:.2f}",
                f"{row.counted:.2f}",
                f"{row.inference_memory:.1f}",
                f"{row.training_memory:.1f}",
                f"{row.step_memory:.1f}",
                *((f"{row.published.gflop:g}", f"{row.published.memory:g}") if row.published else ("", "")),
            )
            for row in self.rows
        ]
        title = f"{self.batch} x {self.channels} x {self.size[0]}x{self.size[1]}, {self.device}, torch {self.torch}; "
        title += "GFLOP forward, MiB at the peak above input and weights: inference, forward pass of training, that "
        title += "with backward"
        columns = (
            "module",
            "GFLOP",
            "counted",
            "MiB infer",
            "MiB forward",
            "MiB + backward",
            "paper GFLOP",
            "paper MB",
        )
        yield Sheet(title, columns, rows)


def cost(size: tuple[int, int] = (97, 97), channels: int = 512, batch: int = 1, device: str = "auto") -> Report:
    """What each module alone adds to a network, in float32 on a map (batch, channels, *size).

    Memory is the most bytes that torch's allocator had handed out during a call above those that lived before it: the
    incoming map and the weights are not in it, the result is. Inference keeps nothing for later, the forward pass of
    training what backward needs, and a step is that pass with its backward pass. What a library allocates past torch
    is not seen; on the CPU that is the scratch of its matrix products.

    The formula counts the least: H + W - 1 positions for each pixel, and the biases. Torch counts the products that
    ran: criss-cross operators compute H + W positions, a pixel's own in its column too, where it is masked, and adding
    a bias is no product. Raises InputError for a map too large for a non-local block.
    """
    place = models.device(device)
    measure.check_memory(size, batch, place, "use a smaller size")
    # channels innermost, as in training
    x_BHWC, grad_BHWC = torch.randn(2, batch, *size, channels, device=place)
    x_BCHW, grad_BCHW = x_BHWC.permute(0, 3, 1, 2), grad_BHWC.permute(0, 3, 1, 2)
    attention = CrissCrossAttention(channels).to(place)
    passes = {f"RCCA R={r}": (RecurrentCrissCross(attention, r), r, None) for r in (1, 2, 3)}
    modules = passes | {NON_LOCAL: (NonLocal(attention), 1, size[0] * size[1])}
    published = PUBLISHED if (size, channels, batch) == PUBLISHED_AT else {}
    rows = []
    for name, (module, recurrence, keys) in modules.items():
        gflop = measure.formula(size, channels, recurrence, batch, keys)
        rows.append(Row(name, gflop, *_measured(module, x_BCHW, grad_BCHW), published.get(name)))
    return Report(size, channels, batch, str(place), torch.__version__, tuple(rows))


def _measured(module: nn.Module, x_BCHW: Tensor, grad_BCHW: Tensor) -> tuple[float, float, float, float]:
    """GFLOP that torch counts, and the three memories of a Row."""
    plain_BCHW, leaves = x_BCHW.detach(), [x_BCHW.requires_grad_(), *module.parameters()]

    def infer() -> None:
        with torch.no_grad():
            module(plain_BCHW)

    def step() -> None:
        torch.autograd.grad(module(x_BCHW), leaves, grad_BCHW)

    if x_BCHW.is_cuda:
        # the first call measures which implementation to take, and that is no part of what a call costs
        infer()
        step()
    memories = (measure.peak(call, x_BCHW.device) / 2**20 for call in (infer, lambda: module(x_BCHW), step))
    return measure.counted(infer) / 1e9, *memories
