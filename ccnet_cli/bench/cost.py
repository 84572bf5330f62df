"""The paper's table of costs: one to three passes of criss-cross attention beside the block that they replace."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ccnet_cli.bench.alternatives import NonLocal
from ccnet_cli.bench.meter import count_operations, open_meter, peak_bytes
from ccnet_cli.bench.report import Column, Report, Row, Table
from ccnet_cli.bench.request import Run, Work
from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross

NON_LOCAL = "non-local"
# TPAMI, cost of context modules over the baseline for one image of 3x769x769, whose map is 512x97x97: GFLOP, and memory
# in MB as it prints them
PUBLISHED_AT = ((97, 97), 512, 1)
PUBLISHED = {"RCCA R=2": {"gflop": 16.5, "memory": 127}, NON_LOCAL: {"gflop": 108, "memory": 1411}}
COLUMNS = (
    Column("module", "name"),
    Column("GFLOP", "gflop", ".2f"),
    Column("counted", "counted", ".2f"),
    Column("MiB infer", "inference_memory", ".1f"),
    Column("MiB forward", "training_memory", ".1f"),
    Column("MiB + backward", "step_memory", ".1f"),
    Column("paper GFLOP", lambda row: row["published"] and row["published"]["gflop"], "g"),
    Column("paper MB", lambda row: row["published"] and row["published"]["memory"], "g"),
)


def measure(work: Work, device: str = "auto") -> Report:
    """What each module alone adds to a network, in float32 on a map; work's recurrence is not looked at.

    Memory is the most bytes that torch's allocator had handed out during a call above those that lived before it: the
    incoming map and the weights are not in it, the result is. Inference keeps nothing for later, the forward pass of
    training what backward needs, and a step is that pass with its backward pass. What a library allocates past torch
    is not seen; on the CPU that is the scratch of its matrix products.

    The formula counts the least: H + W - 1 positions for each pixel, and the biases. Torch counts the products that
    ran: criss-cross operators compute H + W positions, a pixel's own in its column too, where it is masked, and adding
    a bias is no product. "published", never measured here, is null where the paper has no such figure. Raises
    InputError for a map too large for a non-local block.
    """
    with open_meter(Run(device)) as meter:
        meter.check_memory(work, "use a smaller size")
        # channels innermost, as in training
        x_BHWC, grad_BHWC = torch.randn(2, work.batch, *work.size, work.channels, device=meter.device)
        x_BCHW, grad_BCHW = x_BHWC.permute(0, 3, 1, 2), grad_BHWC.permute(0, 3, 1, 2)
        attention = CrissCrossAttention(work.channels).to(meter.device)
        modules: dict[str, tuple[nn.Module, Work]] = {
            f"RCCA R={r}": (RecurrentCrissCross(attention, r), replace(work, recurrence=r)) for r in (1, 2, 3)
        }
        modules[NON_LOCAL] = NonLocal(attention), work.non_local()
        published = PUBLISHED if (work.size, work.channels, work.batch) == PUBLISHED_AT else {}
        rows = [
            {"name": name, "gflop": own.gflop, **_measure(module, x_BCHW, grad_BCHW), "published": published.get(name)}
            for name, (module, own) in modules.items()
        ]
        values = {"size": work.size, "channels": work.channels, "batch": work.batch, "device": str(meter.device)}
        title = f"{work}, {meter.device}, torch {torch.__version__}; "
        title += "GFLOP forward, MiB at the peak above input and weights: inference, forward pass "
        title += "of training, that with backward"
        return Report({**values, "torch": torch.__version__, "rows": rows}, [Table(title, COLUMNS, rows)])


def _measure(module: nn.Module, x_BCHW: Tensor, grad_BCHW: Tensor) -> Row:
    """GFLOP that torch counts, and the memory of the three uses, in MiB."""
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
    calls = {"inference_memory": infer, "training_memory": lambda: module(x_BCHW), "step_memory": step}
    memory = {key: peak_bytes(call, x_BCHW.device) / 2**20 for key, call in calls.items()}
    return {"counted": count_operations(infer) / 1e9, **memory}
