"""What a whole network's forward pass costs: the authors' formulation, ours, the engine, compiled code."""

import copy
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ccnet_cli import devices
from ccnet_cli.bench import alternatives
from ccnet_cli.bench.meter import Meter, count_operations, open_meter
from ccnet_cli.bench.report import Column, Report, Row, Table, spread_columns
from ccnet_cli.bench.request import Run
from ccnet_cli.devices import PRECISIONS
from ccnet_cli.errors import CCNetError, InputError
from ccnet_cli.inference import calibration, engine, int8, openvino, portable
from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.inference.artifact import is_program, open_artifact
from ccnet_cli.inference.engine import Engine
from ccnet_cli.inference.int8 import INT8
from ccnet_cli.models import network as models
from ccnet_cli.models.network import CCNet
from ccnet_cli.models.settings import Model

# B batch, H and W the image

OFFICIAL, PLAIN, ENGINE, COMPILED = "official", "plain", "engine", "compiled"
ONNX, OPENVINO = "onnxruntime", "openvino"
DESCRIPTIONS = {
    OFFICIAL: "the authors' formulation: NCHW, batch norms apart, auxiliary head, concatenations",
    PLAIN: "ours without the auxiliary head, channels-last, all by torch",
    ENGINE: "what eval and predict run",
    COMPILED: "plain, compiled by torch with frozen weights",
    ONNX: "ours, exported and run by ONNX Runtime",
    OPENVINO: "ours, exported and run by OpenVINO",
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
    Column("", lambda row: DESCRIPTIONS.get(row["name"], "a file, whatever network it holds")),
)


@dataclass(frozen=True)
class Contender:
    """One network in one precision; a foreign one is another, whose scores are its own."""

    name: str
    precision: str
    forward: Callable[[Tensor], Tensor]
    foreign: bool = False


def measure(
    settings: Model,
    sizes: Sequence[tuple[int, int]],
    run: Run,
    batch: int = 1,
    precisions: Sequence[str] | None = None,
    compiled: bool = False,
    runtimes: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> Report:
    """Measure forward passes of images (batch, 3, *size) through a network of 19 classes with random weights.

    The engine runs in every one of precisions (by default fp32, and bf16 and int8 where the device computes in them),
    and so does compiled code, which takes half a minute for each size. In each round every network runs once. runtimes
    adds others, see installed_runtimes, and files what they hold, ONNX or OpenVINO. InputError where torch cannot
    compile, or a runtime is not installed.
    """
    with open_meter(run) as meter, torch.no_grad():
        device = meter.device
        if runtimes:
            onnxfile.require("onnx", "onnxscript", "onnxruntime")
        if OPENVINO in runtimes:
            openvino.require()
        if compiled and device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise InputError(
                "option --compiled", "torch compiles for the CPU with a C++ compiler, and there is none", "install g++"
            )
        precisions = [_resolve(name, device) for name in precisions or _native(device)]
        parts: Any = settings
        backbone, head = parts.backbone.kind, parts.head.kind
        network = make_network(settings).to(device)
        contenders = _contenders(network, head, precisions, compiled, sizes[0])
        contenders += _export(network, runtimes, INT8 in precisions, sizes[0]) if runtimes else []
        contenders += [_open(path) for path in files]
        floats = [name for name in dict.fromkeys(["fp32", *precisions]) if name in PRECISIONS]
        rates = {name: 1000 * meter.convolution_rate(PRECISIONS[name]) for name in floats}
        rows = [row for size in sizes for row in _rows(contenders, make_image(batch, size).to(device), meter, rates)]
        recurrence = network.recurrence
        values = {"backbone": backbone, "head": head, "recurrence": recurrence, "batch": batch, **meter.values()}
        attention = f"R={recurrence}" if head == "rcca" else head
        title = f"{batch} x 3 x H x W, {backbone}, {attention}, {meter}, {meter.repeats} rounds; times as fast as the "
        title += f"{contenders[0].name} one; of the floor: what a 3x3 convolution's rate would make of it, here "
        title += ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in rates.items())
        return Report({**values, "rates": rates, "rows": rows}, [Table(title, COLUMNS, rows)])


@torch.no_grad()
def make_network(settings: Model) -> CCNet:
    """A network of 19 classes with random weights whose scores stay in range and change little with rounding.

    Batch norms get random weights and the statistics of a forward pass. What no batch norm follows, so has a bias, is
    drawn small, and so is the weight of the last batch norm of several in a module, which may end a residual branch.
    """
    torch.manual_seed(0)
    network = models.build(settings, 19).eval()
    alternatives.open_gates(network)
    for module in network.modules():
        norms = [child for child in module.children() if isinstance(child, nn.BatchNorm2d)]
        for index, norm in enumerate(norms):
            scale = 0.1 if 0 < index == len(norms) - 1 else 1.0
            norm.weight.uniform_(0.5 * scale, 1.5 * scale)
            norm.bias.normal_(0, 0.1)
            norm.momentum = 1.0
            norm.train()
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.weight.normal_(0, 0.01)
    network.outputs(make_image(2, (65, 65)))
    return network.eval()


def make_image(batch: int, size: tuple[int, int]) -> Tensor:
    """Colours that change from place to place and a little noise, of the size of normalised images."""
    coarse = torch.randn(batch, 3, -(-size[0] // 32), -(-size[1] // 32))
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=True)
    return 50 * smooth + 5 * torch.randn(batch, 3, *size)


def installed_runtimes(device: str) -> list[str]:
    """Other runtimes that can run the network on the CPU; none for other devices."""
    if device not in ("auto", "cpu") or devices.device(device).type != "cpu":
        return []
    if not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        return []
    return [ONNX, *([OPENVINO] if find_spec("openvino") else [])]


def _native(device: torch.device) -> list[str]:
    try:
        int8.check_support(device)
    except CCNetError:
        integers = []
    else:
        integers = [INT8]
    return ["fp32", *(["bf16"] if devices.computes_bf16(device) else []), *integers]


def _resolve(precision: str, device: torch.device) -> str:
    if precision != INT8:
        return devices.precision(precision, device)
    int8.check_support(device)
    return precision


def _prepare(network: CCNet, device: torch.device, precision: str, size: tuple[int, int]) -> nn.Module:
    """The engine; in integers, with ranges measured on an image of this size."""
    if precision != INT8:
        return engine.prepare(network, device, precision)
    # random weights: there is no class worth keeping
    floating = cast(Engine, engine.prepare(network, device))
    return calibration.quantise(floating, [calibration.Example(make_image(1, size))], search=False)


def _contenders(
    network: CCNet, head: str, precisions: Sequence[str], compiled: bool, size: tuple[int, int]
) -> list[Contender]:
    """The networks that compute what this one does, the slowest way first."""
    device = next(network.parameters()).device
    contenders = []
    official = alternatives.official_network(network, head)
    if official is not None:
        contenders.append(Contender(OFFICIAL, "fp32", lambda x: official.outputs(x).main))
    plain = alternatives.use_plain_convolutions(copy.deepcopy(network))
    contenders.append(Contender(PLAIN, "fp32", alternatives.use_layout(plain, torch.channels_last)))
    contenders += [Contender(ENGINE, name, _prepare(network, device, name, size)) for name in precisions]
    if compiled:
        contenders += [Contender(COMPILED, name, _compile(plain, device, name)) for name in precisions if name != INT8]
    return contenders


def _compile(network: nn.Module, device: torch.device, precision: str) -> Callable[[Tensor], Tensor]:
    fast = torch.compile(network, dynamic=False, options={"freezing": True})

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
            scores: Tensor = fast(x)
        return scores

    return forward


def _export(network: CCNet, runtimes: Sequence[str], integers: bool, size: tuple[int, int]) -> list[Contender]:
    """The network in other runtimes, in float32 and, if asked, in integers."""
    from ccnet_cli.inference import qdq

    contents = {"fp32": onnxfile.write(portable.program(network), {})}
    if integers:
        contents[INT8] = qdq.quantise(contents["fp32"], [calibration.Example(make_image(1, size))])
    around: Any = (Path("network"), 19, network.normalisation, network.align_corners, network.stride)
    contenders = []
    for precision, content in contents.items():
        if ONNX in runtimes:
            contenders.append(Contender(ONNX, precision, onnxfile.OnnxNetwork(content, *around)))
        if OPENVINO in runtimes:
            converted = openvino.OpenVinoNetwork(openvino.write(content, {}), *around)
            contenders.append(Contender(OPENVINO, precision, converted))
    return contenders


def _open(path: Path) -> Contender:
    """The network of a runtime's file."""
    if not is_program(path):
        raise InputError(path, "no ONNX or OpenVINO file", "export it first (ccnet export --format onnx)")
    return Contender(path.name, "as it is", open_artifact(path).network, foreign=True)


def _compare(output: Tensor, expected: Tensor) -> Row:
    """How far scores are from the expected ones; None where they are of another shape."""
    if output.shape != expected.shape:
        return {"error": None, "agreement": None}
    spread = float(expected.max() - expected.min())
    agreement = float((output.argmax(1) == expected.argmax(1)).double().mean())
    return {"error": float((output - expected).abs().max()) / spread, "agreement": agreement}


def _rows(contenders: Sequence[Contender], x_BCHW: Tensor, meter: Meter, rates: dict[str, float]) -> list[Row]:
    """Every network on the same images; outputs are compared first."""
    calls = {(one.name, one.precision): partial(one.forward, x_BCHW) for one in contenders}
    scores: dict[tuple[str, str], Tensor] = {}
    gflop: dict[tuple[str, str], float] = {}

    def compute(key: tuple[str, str]) -> None:
        scores[key] = calls[key]().float()

    for key in calls:
        if x_BCHW.is_cuda:
            # the first call measures which implementation to take, and that is not counted
            compute(key)
        if key[0] in (OFFICIAL, PLAIN):
            gflop[key] = count_operations(partial(compute, key)) / 1e9
        else:
            compute(key)
    expected, needed = scores[PLAIN, "fp32"], gflop[PLAIN, "fp32"]
    times = meter.alternate(calls)
    slowest = next(iter(times.values()))
    rows = []
    foreign = {(one.name, one.precision) for one in contenders if one.foreign}
    for (name, precision), time in times.items():
        computed, output = gflop.get((name, precision), needed), scores[name, precision]
        row: Row = {
            "name": name,
            "precision": precision,
            "size": tuple(x_BCHW.shape[2:]),
            "forward": time,
            "times": slowest.median / time.median,
            "gflop": computed,
            "rate": 1000 * computed / time.median,
            "fraction": 1000 * needed / rates[precision] / time.median if precision in rates else None,
            **_compare(output, expected),
        }
        if (name, precision) in foreign:
            row |= dict.fromkeys(("gflop", "rate", "fraction", "error", "agreement"))
        rows.append(row)
    return rows
