"""What a whole network's forward pass costs: the authors' formulation, ours, the engine, compiled code."""

import copy
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ccnet_cli.bench import alternatives
from ccnet_cli.bench.meter import Meter, count_operations, open_meter
from ccnet_cli.bench.report import Column, Report, Row, Table, spread_columns
from ccnet_cli.bench.request import Run
from ccnet_cli.errors import InputError
from ccnet_cli.inference import engine, portable
from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.models import network as models
from ccnet_cli.models.backbones.resnet import BasicBlock, Bottleneck
from ccnet_cli.models.network import PRECISIONS, CCNet
from ccnet_cli.models.settings import Model

# B batch, H and W the image

OFFICIAL, PLAIN, ENGINE, COMPILED, RUNTIME = "official", "plain", "engine", "compiled", "onnxruntime"
DESCRIPTIONS = {
    OFFICIAL: "the authors' formulation: NCHW, batch norms apart, auxiliary head, concatenations",
    PLAIN: "ours without the auxiliary head, channels-last, all by torch",
    ENGINE: "what eval and predict run",
    COMPILED: "plain, compiled by torch with frozen weights",
    RUNTIME: "ours, exported and run by ONNX Runtime",
}


# times is how many times as fast as the official one; gflop (2 per multiply-add) is what a network computes, rate
# (GFLOP/s) what that makes of the median; fraction is the part of the median in which what inference needs could be
# computed at the rate of one convolution; error is the largest difference from the plain network's scores, relative to
# their range; agreement the fraction of pixels of the same class
COLUMNS = (
    Column("network", "name"),
    Column("precision", "precision"),
    Column("size", "size"),
    *spread_columns("forward", ".1f"),
    Column("times", "times", ".2f"),
    Column("GFLOP", "gflop", ".1f"),
    Column("GFLOP/s", "rate", ".0f"),
    Column("of the floor", "fraction", ".2f"),
    Column("error", "error", ".1e"),
    Column("same class %", "agreement", ".2f", 0.01),
    Column("", lambda row: DESCRIPTIONS[row["name"]]),
)


@dataclass(frozen=True)
class Contender:
    """One network in one precision."""

    name: str
    precision: str
    forward: Callable[[Tensor], Tensor]


def measure(
    settings: Model,
    sizes: Sequence[tuple[int, int]],
    run: Run,
    batch: int = 1,
    precisions: Sequence[str] | None = None,
    compiled: bool = False,
    runtime: bool = False,
) -> Report:
    """Measure forward passes of images (batch, 3, *size) through a network of 19 classes with random weights.

    The engine runs in every one of precisions (by default fp32, and bf16 where the device computes in it), and so does
    compiled code, which takes half a minute for each size. In each round every network runs once. runtime adds ONNX
    Runtime. InputError where torch cannot compile, or ONNX Runtime is not installed.
    """
    with open_meter(run) as meter, torch.no_grad():
        device = meter.device
        if runtime:
            onnxfile.require("onnx", "onnxscript", "onnxruntime")
        if compiled and device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise InputError(
                "option --compiled", "torch compiles for the CPU with a C++ compiler, and there is none", "install g++"
            )
        native = ["fp32", "bf16"] if models.computes_bf16(device) else ["fp32"]
        precisions = [models.precision(name, device) for name in precisions or native]
        network = _network(settings).to(device)
        contenders = _contenders(network, precisions, compiled, device)
        if runtime:
            contenders.append(Contender(RUNTIME, "fp32", _exported(network)))
        rates = {name: 1000 * meter.convolution_rate(PRECISIONS[name]) for name in dict.fromkeys(["fp32", *precisions])}
        rows = [row for size in sizes for row in _rows(contenders, settings, (batch, *size), meter, rates)]
        backbone, recurrence = settings.backbone.kind, network.recurrence
        values = {"backbone": backbone, "recurrence": recurrence, "batch": batch, **meter.values()}
        title = f"{batch} x 3 x H x W, {backbone}, R={recurrence}, {meter}, {meter.repeats} rounds; "
        title += "times as fast as the official one; of the floor: what a 3x3 convolution's rate would make of it, "
        title += "here " + ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in rates.items())
        return Report({**values, "rates": rates, "rows": rows}, [Table(title, COLUMNS, rows)])


def _network(settings: Model) -> CCNet:
    """Random weights, and batch norms as training might leave them.

    Small last scales keep a deep random network in range, and small queries its attention from being all or nothing.
    """
    torch.manual_seed(0)
    network = models.build(settings, 19)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            (block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight.mul_(0.1)
    if network.head.rcca is not None:
        network.head.rcca.attention.gamma.fill_(0.5)
        network.head.rcca.attention.query_conv.weight.mul_(0.05)
    return network.eval()


def _image(batch: int, size: tuple[int, int]) -> Tensor:
    """Colours that change from place to place and a little noise, of the size of normalised images."""
    coarse = torch.randn(batch, 3, -(-size[0] // 32), -(-size[1] // 32))
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=True)
    return 50 * smooth + 5 * torch.randn(batch, 3, *size)


def _contenders(network: CCNet, precisions: Sequence[str], compiled: bool, device: torch.device) -> list[Contender]:
    plain = alternatives.plain(copy.deepcopy(network))
    official = alternatives.OfficialNetwork(copy.deepcopy(plain))
    plain = plain.to(memory_format=torch.channels_last)
    found = [Contender(OFFICIAL, "fp32", lambda x: official(x)[0]), Contender(PLAIN, "fp32", plain)]
    found += [Contender(ENGINE, name, engine.prepare(network, device, name)) for name in precisions]
    if compiled:
        found += [Contender(COMPILED, name, _compiled(plain, device, name)) for name in precisions]
    return found


def _compiled(network: nn.Module, device: torch.device, precision: str) -> Callable[[Tensor], Tensor]:
    fast = torch.compile(network, dynamic=False, options={"freezing": True})

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
            scores: Tensor = fast(x)
        return scores

    return forward


def _exported(network: CCNet) -> nn.Module:
    content = onnxfile.write(portable.program(network), {})
    return onnxfile.OnnxNetwork(content, Path(RUNTIME), 19, network.normalisation, network.align_corners)


def _rows(
    contenders: Sequence[Contender],
    settings: Model,
    shape: tuple[int, int, int],
    meter: Meter,
    rates: dict[str, float],
) -> list[Row]:
    """Every network on images (batch, height, width); outputs are compared first."""
    batch, *size = shape
    x = _image(batch, (size[0], size[1])).to(meter.device)
    outputs = [one.forward(x).float() for one in contenders]
    expected = outputs[[one.name for one in contenders].index(PLAIN)]
    spread = float(expected.max() - expected.min())
    needed, official = _gflop(settings, shape)
    times = meter.alternate({index: partial(one.forward, x) for index, one in enumerate(contenders)})
    rows = []
    for one, time, output in zip(contenders, times.values(), outputs, strict=True):
        gflop = official if one.name == OFFICIAL else needed
        row = {
            "name": one.name,
            "precision": one.precision,
            "size": tuple(size),
            "forward": time,
            "times": times[0].median / time.median,
            "gflop": gflop,
            "rate": 1000 * gflop / time.median,
            "fraction": 1000 * needed / rates[one.precision] / time.median,
            "error": float((output - expected).abs().max()) / spread,
            "agreement": float((output.argmax(1) == expected.argmax(1)).double().mean()),
        }
        rows.append(row)
    return rows


def _gflop(settings: Model, shape: tuple[int, int, int]) -> tuple[float, float]:
    """What inference needs, and what the authors' formulation computes, counted where nothing is computed."""
    with torch.device("meta"):
        network, x = models.build(settings, 19).eval(), torch.empty(shape[0], 3, *shape[1:])
    networks = network, alternatives.OfficialNetwork(network)
    needed, official = (count_operations(partial(each, x)) / 1e9 for each in networks)
    return needed, official
