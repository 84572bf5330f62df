"""ONNX files: written with all that a reader needs to know, read with suspicion, run by ONNX Runtime."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ccnet_cli.errors import InputError, notice, out_of_memory
from ccnet_cli.inference.portable import exporting
from ccnet_cli.models.network import Normalisation
from ccnet_cli.runs.fields import FORMAT, check_facts

SUFFIX = ".onnx"
OPSET = 18
ADAPTIVE_POOL = torch.ops.aten.adaptive_avg_pool2d.default
# keys of the file's metadata: the facts about the network, and the sha256 of these and of the graph
FACTS = "ccnet"
SEAL = "ccnet.sha256"
# the fact that a file holds all around the network, and so is for other programs alone
PROCESSED = "processing"
# of input and output, without and with processing
DOCUMENTED = (
    ("normalised image, (N, 3, H, W): see the preset's model in the metadata", "score of each class, (N, K, h, w)"),
    ("RGB image as it is read, (N, H, W, 3)", "number of the class of each pixel, (N, H, W)"),
)
FIX = "give a file that ccnet export --format onnx wrote"
# the format's own limit
MAX_BYTES = (1 << 31) - 1
# all but the weights: 48 KiB for a ResNet-101; what the parser makes of it takes up to 75 times as much
MAX_GRAPH_BYTES = 4 << 20
MAX_FIELDS = 1 << 18
# where weights lie in the file: the field numbers of the graph, its weights, and a weight's bytes
GRAPH, WEIGHT, BYTES = 7, 5, 9
# parts of what ONNX Runtime says when memory runs out
OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "allocate mem")
# pure functions of tensors: none reads a file, calls another graph, loops, draws at random or holds text or sequences
OPERATORS = """
Add Sub Mul Div Mod Pow Neg Abs Sign Reciprocal Sqrt Exp Log Ceil Floor Round Clip Min Max Mean Sum
Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Acosh Atanh Erf
And Or Xor Not Equal Greater GreaterOrEqual Less LessOrEqual Where IsNaN IsInf
BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot
Relu LeakyRelu PRelu Elu Celu Selu Sigmoid HardSigmoid HardSwish Mish Softplus Softsign ThresholdedRelu Shrink
Softmax LogSoftmax Hardmax
Conv ConvTranspose ConvInteger Gemm MatMul MatMulInteger Einsum
MaxPool AveragePool LpPool GlobalMaxPool GlobalAveragePool GlobalLpPool MaxUnpool
BatchNormalization InstanceNormalization LayerNormalization GroupNormalization LpNormalization
MeanVarianceNormalization LRN
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ArgMax ArgMin TopK CumSum NonZero
Cast CastLike Identity Constant ConstantOfShape Range Shape Size Reshape Flatten Squeeze Unsqueeze Transpose Expand
Concat Split Slice Gather GatherElements GatherND Scatter ScatterElements ScatterND Pad Tile Trilu EyeLike OneHot
ReverseSequence Compress DepthToSpace SpaceToDepth Resize Upsample GridSample CenterCropPad Col2Im RoiAlign
QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul Dropout
"""
# what ONNX Runtime's own quantisers and optimisers write beside these
CONTRIBUTED = """
QuantizeLinear DequantizeLinear QLinearAdd QLinearMul QLinearConcat QLinearLeakyRelu QLinearSigmoid QLinearSoftmax
QLinearAveragePool QLinearGlobalAveragePool QGemm FusedConv FusedMatMul
"""
CONTRIBUTOR = "com.microsoft"
# what runs a network on one device: image (N, 3, H, W) -> scores (N, K, h, w)
Session = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]


def require(*packages: str) -> None:
    """InputError unless these packages, which ONNX files need, are installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise InputError("ONNX", f"{', '.join(missing)} not installed", "run pip install 'ccnet-cli[onnx]'")


def write(traced: ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """The content of an ONNX file, opset 18: float32 input "image" (N, 3, H, W), output "scores" (N, K, h, w).

    With the fact PROCESSED, of a program with all around the network: uint8 "image" (N, H, W, 3), "classes" (N, H, W).
    """
    processed = bool(facts.get(PROCESSED))
    output = "classes" if processed else "scores"
    require("onnx", "onnxscript", "onnxruntime")
    import onnx

    size = sum(tensor.nbytes for tensor in traced.state_dict.values())
    if size > MAX_BYTES - MAX_GRAPH_BYTES:
        raise InputError("ONNX", f"{size} bytes of weights, a file holds 2 GiB", "use --format torch-export")
    with exporting("torch cannot write it", "use --format torch-export"):
        if traced.graph.find_nodes(op="call_function", target=ADAPTIVE_POOL):
            traced = traced.run_decompositions({ADAPTIVE_POOL: _pool_adaptively})
        exported: Any = torch.onnx.export(
            traced, dynamo=True, opset_version=OPSET, input_names=["image"], output_names=[output], verbose=False
        )
    model = exported.model_proto
    graph = model.graph
    if unknown := _unknown_operators(graph):
        why = f"it needs operators that are not read back ({', '.join(unknown[:3])})"
        raise InputError("ONNX", why, "use --format torch-export")
    # torch's notes for debugging, which name folders of this machine
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]
    image, result = ([*tensor.type.tensor_type.shape.dim] for tensor in (graph.input[0], graph.output[0]))
    names = ("batch", "height", "width"), ("batch", "height", "width") if processed else ("batch", "rows", "columns")
    sides = (image[:3], result) if processed else ([image[0], *image[2:]], [result[0], *result[2:]])
    for dimensions, own in zip(sides, names, strict=True):
        for dimension, name in zip(dimensions, own, strict=True):
            dimension.dim_param = name
    graph.input[0].doc_string, graph.output[0].doc_string = DOCUMENTED[processed]
    model.doc_string = f"ccnet {facts.get('ccnet', '')}: {', '.join(facts.get('classes', {}).get('names', ()))}"
    text = json.dumps({"format": FORMAT, "opset": OPSET, **facts})
    onnx.helper.set_model_props(model, {FACTS: text})
    return seal_again(model)


def seal_again(model: Any) -> bytes:
    """The content of a file whose graph was changed by us."""
    import onnx

    text = next(entry.value for entry in model.metadata_props if entry.key == FACTS)
    onnx.helper.set_model_props(model, {FACTS: text, SEAL: _seal(model.graph.SerializeToString(), text)})
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def read(path: Path, strict: bool = False) -> tuple[dict[str, Any], bytes]:
    """The facts that `write` got, and the file's bytes, known to run no more than a network.

    Where another program changed them, such as a quantiser, a notice says so; with strict it is an InputError.
    """
    require("onnx", "onnxruntime")
    import onnx
    from google.protobuf.message import DecodeError

    content = read_bytes(path, FIX)
    try:
        begin, end, weights = _outline(content)
        if len(content) - weights > MAX_GRAPH_BYTES:
            raise InputError(path, "holds a graph larger than any of ours", FIX)
        model = onnx.load_model_from_string(content)
    except (LookupError, ValueError, DecodeError):
        raise InputError(path, "damaged, or not an ONNX file", FIX) from None
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if FACTS not in metadata:
        raise InputError(path, "an ONNX file that ccnet did not write", FIX)
    # a string that is no UTF-8 comes as bytes
    text = metadata[FACTS]
    if not isinstance(text, str) or metadata.get(SEAL) != _seal(memoryview(content)[begin:end], text):
        report_change(path, strict)
    _refuse_unknown(path, model)
    facts = parse_facts(text, path)
    if facts.get(PROCESSED):
        why = "holds image in and classes out, for other programs"
        raise InputError(path, why, "export it without --with-processing to run it here")
    return facts, content


def report_change(path: Path, strict: bool) -> None:
    """Say that a file is not as ccnet wrote it, or refuse it."""
    if strict:
        raise InputError(path, "damaged, or changed since it was written", "export or copy it again")
    notice(
        f"{path}: changed since ccnet wrote it: what it answers may not be its model's (--strict refuses such files)"
    )


def parse_facts(text: str | bytes, path: Path) -> dict[str, Any]:
    """The facts of a file; InputError where they are damaged."""
    try:
        facts = dict(json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(path, "what it says of its network is damaged", "export or copy it again") from None
    check_facts(facts, path)
    return facts


def open_session(content: bytes) -> Callable[[npt.NDArray[Any], Sequence[str]], list[npt.NDArray[Any]]]:
    """What computes some outputs of a graph on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return lambda x, names: list(session.run(names, {image.name: x}))


def classify(content: bytes, image_NHW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The classes (N, H, W) that a file with processing, of ours alone, answers for RGB images."""
    (classes,) = open_session(content)(image_NHW3, ["classes"])
    return np.asarray(classes, np.uint8)


def offers_cuda() -> bool:
    """Whether the ONNX Runtime that is installed was built for CUDA."""
    require("onnxruntime")
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


class OnnxNetwork(nn.Module):
    """The network of an ONNX file as ONNX Runtime runs it, on the device on which its input lies, of float32 inputs.

    (B, 3, H, W) -> (B, K, h, w); normalisation, align_corners and stride are those of models.network.CCNet. InputError,
    naming the path, for a network that cannot be run.
    """

    runtime = "ONNX Runtime"

    def __init__(
        self,
        content: Any,
        path: Path,
        classes: int,
        normalisation: Normalisation,
        align_corners: bool,
        stride: int = 8,
    ) -> None:
        super().__init__()
        self.content = content
        self.path = path
        self.classes = classes
        self.normalisation = normalisation
        self.align_corners = align_corners
        self.stride = stride
        self._sessions: dict[torch.device, Session] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The main scores."""
        if torch.is_autocast_enabled(x.device.type):
            raise InputError(self.path, f"{self.runtime} runs it in float32 alone", "use precision fp32")
        with self._translate_errors():
            if x.device not in self._sessions:
                self._sessions[x.device] = self.open(x.device)
            scores = self._sessions[x.device](x.detach().float().contiguous().cpu().numpy())
        # a map is never finer than its image
        (B, _, H, W), shape = x.shape, scores.shape
        if scores.ndim != 4 or shape[:2] != (B, self.classes) or not (0 < shape[2] <= H and 0 < shape[3] <= W):
            raise InputError(self.path, f"answers with scores of shape {shape} for {self.classes} classes", FIX)
        return torch.from_numpy(scores).to(x.device, torch.float32)

    def open(self, device: torch.device) -> Session:
        """What runs it on a device; InputError where it cannot be had."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # of its messages, which take several lines, only those before a crash
        options.log_severity_level = 4
        cuda = device.type == "cuda"
        gpu = [("CUDAExecutionProvider", {"device_id": device.index or 0})]
        if not cuda or offers_cuda():
            # a constant that is computed beforehand may take any memory; our graphs leave none to compute
            session = onnxruntime.InferenceSession(
                self.content,
                options,
                providers=[*gpu[:cuda], "CPUExecutionProvider"],
                disabled_optimizers=["ConstantFolding"],
            )
            # where CUDA cannot be loaded it falls back
            if not cuda or session.get_providers()[0] == "CUDAExecutionProvider":
                name = session.get_inputs()[0].name
                return lambda image: np.asarray(session.run(None, {name: image})[0])
        why = "the ONNX Runtime that is installed has no CUDA, or cannot load it"
        raise InputError(f"device {device}", why, "use --device cpu, or install onnxruntime-gpu")

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise errors of ours for those of the runtime, which has a dozen classes for them."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            if out_of_memory(error) or any(words in str(error) for words in OUT_OF_MEMORY):
                raise MemoryError(reason[0][:160]) from None
            raise InputError(self.path, f"{self.runtime} cannot run it ({reason[0][:160]})", FIX) from None


def _pool_adaptively(x: Tensor, size: Sequence[int]) -> Tensor:
    """adaptive_avg_pool2d as two products, which follow any size; torch's exporter writes it for the traced size alone.

    (..., H, W) -> (..., h, w); cell i of n averages the positions from floor(i L / n) to ceil((i + 1) L / n).
    """

    def weights(length: int, cells: int) -> Tensor:
        cell, position = torch.arange(cells)[:, None], torch.arange(length)
        start, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
        return ((position >= start) & (position < end)).to(x.dtype) / (end - start)

    H, W = x.shape[-2:]
    return weights(H, size[0]) @ x @ weights(W, size[1]).T


def _seal(graph: bytes | memoryview, text: str) -> str:
    digest = hashlib.sha256(graph)
    digest.update(text.encode())
    return digest.hexdigest()


def read_bytes(path: Path, fix: str) -> bytes:
    """The content of a file of at most 2 GiB."""
    if not path.exists():
        raise InputError(path, "does not exist", "give the path of a checkpoint")
    if not path.is_file():
        raise InputError(path, "not a regular file", fix)
    if path.stat().st_size > MAX_BYTES:
        raise InputError(path, "larger than an ONNX file can be", fix)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check its permissions") from None


def _outline(content: bytes) -> tuple[int, int, int]:
    """Start and end of the graph, and how many bytes of the file are weights; ValueError or IndexError for other files.

    Messages are skipped, not parsed: a parser gives each of millions of empty ones some memory.
    """
    at, ends, graph, weights = 0, [len(content)], None, 0
    for _ in range(MAX_FIELDS):
        while ends and at == ends[-1]:
            ends.pop()
        if not ends and graph is not None:
            return *graph, weights
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            length = _varint(content, at)[1] - at
        elif kind == 2:
            length, at = _varint(content, at)
        else:
            length = {1: 8, 5: 4}[kind]
        if kind == 2 and number == (GRAPH, WEIGHT, BYTES)[len(ends) - 1]:
            if len(ends) == 3:
                weights += length
            else:
                if len(ends) == 1 and graph is not None:
                    raise ValueError
                graph = graph or (at, at + length)
                ends.append(at + length)
                continue
        at += length
    raise ValueError


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of up to ten groups of seven bits, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            return value, at
    raise ValueError


def _unknown_operators(graph: Any) -> list[str]:
    known = {"": OPERATORS.split(), CONTRIBUTOR: CONTRIBUTED.split()}
    return sorted({str(node.op_type) for node in graph.node if node.op_type not in known.get(node.domain, ())})


def _refuse_unknown(path: Path, model: Any) -> None:
    """InputError for anything in a file that a network does not need: anybody could have made it."""
    import onnx

    graph = model.graph
    attributes = [each for node in graph.node for each in node.attribute]
    held = (tensor for each in attributes for tensor in (*([each.t] if each.HasField("t") else []), *each.tensors))
    if any(tensor.data_location or tensor.external_data for tensor in (*graph.initializer, *held)):
        raise InputError(path, "its weights are in other files", FIX)
    sparse = any(each.HasField("sparse_tensor") or each.sparse_tensors for each in attributes)
    nested = any(each.HasField("g") or each.graphs for each in attributes)
    if nested or sparse or graph.sparse_initializer or model.functions or model.training_info:
        raise InputError(path, "holds more than one graph", FIX)
    if unknown := _unknown_operators(graph):
        raise InputError(path, f"holds operators that no network of ours has ({', '.join(unknown[:3])})", FIX)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:160]
        raise InputError(path, f"not sound ONNX ({reason})", FIX) from None
