"""What a whole network's forward pass costs: the authors' formulation, ours, the engine, compiled code."""

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccnet_cli import config
from ccnet_cli.bench import alternatives, measure
from ccnet_cli.bench.measure import Sheet, Timing
from ccnet_cli.config import migration
from ccnet_cli.errors import InputError
from ccnet_cli.inference import engine, portable
from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.models import network as models
from ccnet_cli.models.backbones.resnet import BasicBlock, Bottleneck
from ccnet_cli.models.network import PRECISIONS, CCNet
from ccnet_cli.models.settings import Model

# B batch, H and W the image

OFFICIAL, PLAIN, ENGINE, COMPILED, RUNTIME = "official", "plain", "engine", "compiled", "onnxruntime"
TELLS = {
    OFFICIAL: "the authors' formulation: NCHW, batch norms apart, auxiliary head, concatenations",
    PLAIN: "ours without the auxiliary head, channels-last, all by torch",
    ENGINE: "what eval and predict run",
    COMPILED: "plain, compiled by torch with frozen weights",
    RUNTIME: "ours, exported and run by ONNX Runtime",
}


@dataclass(frozen=True)
class Row:
    """One network at one size. times is how many times as fast as the official one it is.

    gflop (2 per multiply-add) is what it computes, rate (GFLOP/s) what that makes of the median. fraction is the share
    of the median in which what inference needs could be computed at the rate of one convolution. error is the largest
    difference from the plain network's scores, relative to what lies between their least and greatest; agreement the
    share of pixels of the same class.
    """

    name: str
    precision: str
    size: tuple[int, int]
    forward: Timing
    times: float
    gflop: float
    rate: float
    fraction: float
    error: float
    agreement: float


@dataclass(frozen=True)
class Report:
    """What was measured, where, and how; rates (GFLOP/s) are those of a 3x3 convolution in the same run."""

    backbone: str
    recurrence: int
    batch: int
    repeats: int
    device: str
    threads: int
    torch: str
    rates: dict[str, float]
    rows: tuple[Row, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON; "forward" is milliseconds."""
        rows = [asdict(row) | {"size": list(row.size)} for row in self.rows]
        return asdict(self) | {"rows": rows}

    def sheets(self) -> Iterator[Sheet]:
        """What is printed of it."""
        rows = [
            (
                row.name,
                row.precision,
                "x".join(map(str, row.size)),
                *row.forward.cells(1),
                f"{row.times:.2f}",
                f"{row.gflop:.1f}",
                f"{row.rate:.0f}",
                f"{row.fraction:.2f}",
                f"{row.error:.1e}",
                f"{row.agreement:.2%}".rstrip("%"),
                TELLS[row.name],
            )
            for row in self.rows
        ]
        title = (
            f"{self.batch} x 3 x H x W, {self.backbone}, R={self.recurrence}, {self.device}, {self.threads} threads, "
        )
        title += (
            f"torch {self.torch}, {self.repeats} rounds; times as fast as the official one; of the floor: what a 3x3 "
        )
        title += "convolution's rate would make of it, here "
        title += ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in self.rates.items())
        columns = [
            "network",
            "precision",
            "size",
            "ms",
            "least",
            "greatest",
            "times",
            "GFLOP",
            "GFLOP/s",
            "of the floor",
        ]
        yield Sheet(title, [*columns, "error", "same class %", ""], rows)


@dataclass(frozen=True)
class Contender:
    """One network in one precision."""

    name: str
    precision: str
    forward: Callable[[Tensor], Tensor]


def model(
    sizes: Sequence[tuple[int, int]] = ((769, 769),),
    backbone: str = "resnet101",
    recurrence: int = 2,
    batch: int = 1,
    threads: int | None = None,
    repeats: int = 5,
    precisions: Sequence[str] | None = None,
    compiled: bool = False,
    device: str = "auto",
    settings: config.Model | None = None,
    runtime: bool = False,
) -> Report:
    """Measure forward passes of images (batch, 3, *size) through Cityscapes' network with random weights.

    The official and the plain network are float32; the engine runs in each of precisions (float32, and bfloat16 where
    the device computes in it), and so does compiled code, which takes half a minute for each size. In each round every
    network runs once. settings replace the preset's, but for backbone and recurrence; runtime adds ONNX Runtime.
    InputError where torch cannot compile, or ONNX Runtime is not installed.
    """
    place = models.device(device)
    if runtime:
        onnxfile.require("onnx", "onnxscript", "onnxruntime")
    if compiled and place.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise InputError(
            "option --compiled", "torch compiles for the CPU with a C++ compiler, and there is none", "install g++"
        )
    native = ["fp32", "bf16"] if models.computes_bf16(place) else ["fp32"]
    precisions = [models.precision(name, place) for name in precisions or native]
    mapping = config.to_mapping(config.load("cityscapes-r2"))
    if settings is not None:
        mapping["model"] = settings.model_dump(mode="json")
    migration.assign(mapping, {"backbone": backbone, "recurrence": recurrence, "auxiliary": True})
    settings = Model.model_validate(mapping["model"])
    with measure.threads(threads) as count:
        with torch.no_grad():
            network = _network(settings).to(place)
            contenders = _contenders(network, precisions, compiled, place)
            if runtime:
                contenders.append(Contender(RUNTIME, "fp32", _exported(network)))
            rates = {
                name: 1000 * measure.convolution_rate(place, PRECISIONS[name])
                for name in dict.fromkeys(["fp32", *precisions])
            }
            rows = [row for size in sizes for row in _rows(contenders, settings, size, batch, repeats, place, rates)]
        return Report(
            backbone=backbone,
            recurrence=recurrence,
            batch=batch,
            repeats=repeats,
            device=str(place),
            threads=count,
            torch=torch.__version__,
            rates=rates,
            rows=tuple(rows),
        )


def _network(settings: config.Model) -> CCNet:
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
    return onnxfile.Network(content, Path(RUNTIME), 19, network.normalisation, network.align_corners)


def _rows(
    contenders: Sequence[Contender],
    settings: config.Model,
    size: tuple[int, int],
    batch: int,
    repeats: int,
    device: torch.device,
    rates: dict[str, float],
) -> list[Row]:
    """Every network on one image; outputs are compared first."""
    x = _image(batch, size).to(device)
    outputs = [one.forward(x).float() for one in contenders]
    expected = outputs[[one.name for one in contenders].index(PLAIN)]
    spread = float(expected.max() - expected.min())
    gflop = _gflop(settings, size, batch)
    timings = measure.alternate([lambda one=one: one.forward(x) for one in contenders], repeats, device)
    return [
        Row(
            name=one.name,
            precision=one.precision,
            size=size,
            forward=timing,
            times=timings[0].median / timing.median,
            gflop=gflop[one.name == OFFICIAL],
            rate=1000 * gflop[one.name == OFFICIAL] / timing.median,
            fraction=1000 * gflop[False] / rates[one.precision] / timing.median,
            error=float((output - expected).abs().max()) / spread,
            agreement=float((output.argmax(1) == expected.argmax(1)).double().mean()),
        )
        for one, timing, output in zip(contenders, timings, outputs, strict=True)
    ]


def _gflop(settings: config.Model, size: tuple[int, int], batch: int) -> tuple[float, float]:
    """What inference needs, and what the authors' formulation computes, counted where nothing is computed."""
    with torch.device("meta"):
        network, x = models.build(settings, 19).eval(), torch.empty(batch, 3, *size)
    return measure.counted(lambda: network(x)) / 1e9, measure.counted(
        lambda: alternatives.OfficialNetwork(network)(x)
    ) / 1e9
