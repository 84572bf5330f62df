"""OpenVINO's files: a graph as XML with the facts in it, and its weights beside it; run by OpenVINO on the CPU."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from ccnet_cli.errors import InputError
from ccnet_cli.inference import onnx
from ccnet_cli.inference.onnx import FACTS, OnnxNetwork
from ccnet_cli.runs.fields import FORMAT

SUFFIX, WEIGHTS = ".xml", ".bin"
FIX = "give a file that ccnet export --format openvino wrote"
# a ResNet-101 has 0.4 MB, 0.9 in integers
MAX_GRAPH_BYTES = 32 << 20
SHA256 = "sha256"
# what comes after the graph in the XML
AFTER = b"<rt_info"


def require() -> None:
    """InputError unless OpenVINO is installed."""
    if find_spec("openvino") is None:
        raise InputError("OpenVINO", "not installed", "run pip install 'ccnet-cli[openvino]'")


def write(content: bytes, facts: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The two files, graph and weights, of an ONNX file's network, floats or integers as they are there."""
    require()
    import openvino

    model = openvino.Core().read_model(content)
    text = json.dumps({"format": FORMAT, **facts})
    model.set_rt_info(text, [FACTS, "facts"])
    model.set_rt_info("", [FACTS, SHA256])
    graph, weights = _serialize(model)
    model.set_rt_info(_seal(graph, weights, text), [FACTS, SHA256])
    return _serialize(model)


def read(path: Path, strict: bool = False) -> tuple[dict[str, Any], tuple[bytes, bytes]]:
    """The facts that `write` got, and both files; where others changed them, a notice, or with strict an InputError."""
    require()
    graph, weights = onnx.read_bytes(path, FIX), onnx.read_bytes(path.with_suffix(WEIGHTS), FIX)
    if len(graph) > MAX_GRAPH_BYTES:
        raise InputError(path, "holds a graph larger than any of ours", FIX)
    try:
        info = ElementTree.fromstring(graph).find(f"rt_info/{FACTS}")
        values = {part.tag: part.get("value", "") for part in (() if info is None else info)}
    except ElementTree.ParseError:
        raise InputError(path, "damaged, or not a graph of OpenVINO", FIX) from None
    if "facts" not in values:
        raise InputError(path, "an OpenVINO file that ccnet did not write", FIX)
    text = values["facts"]
    if values.get(SHA256) != _seal(graph, weights, text):
        onnx.report_change(path, strict)
    return onnx.parse_facts(text, path), (graph, weights)


class OpenVinoNetwork(OnnxNetwork):
    """The network of an OpenVINO file, as OnnxNetwork; its content is both files."""

    runtime = "OpenVINO"

    def open(self, device: torch.device) -> onnx.Session:
        """What runs it on the CPU, in float32 or in the file's integers."""
        if device.type != "cpu":
            raise InputError(f"device {device}", "OpenVINO runs it on the CPU alone", "use --device cpu")
        import openvino

        core, (graph, weights) = openvino.Core(), self.content
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(graph, weights), "CPU", settings)
        return lambda image: np.asarray(compiled([image])[0])


def _serialize(model: Any) -> tuple[bytes, bytes]:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{SUFFIX}"
        openvino.save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(WEIGHTS).read_bytes()


def _seal(graph: bytes, weights: bytes, text: str) -> str:
    digest = hashlib.sha256(graph.rpartition(AFTER)[0])
    for part in (weights, text.encode()):
        digest.update(part)
    return digest.hexdigest()
