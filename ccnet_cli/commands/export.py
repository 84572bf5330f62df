"""Write a model to hand on: our file without the training's state, another layout, or the network itself."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ccnet_cli import __version__, config, files
from ccnet_cli.errors import EnvironmentFailure, InputError, notice, out_of_memory
from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.inference import openvino, portable
from ccnet_cli.inference.artifact import Artifact, load_model
from ccnet_cli.inference.calibration import Example
from ccnet_cli.inference.int8 import INT8
from ccnet_cli.inference.runtime import read_examples
from ccnet_cli.inference.views import to_input
from ccnet_cli.models.network import CCNet
from ccnet_cli.runs import safetensors
from ccnet_cli.weights.layouts import LAYOUTS, Misfit
from ccnet_cli.weights.load import read_facts, read_weights
from ccnet_cli.weights.pairs import list_files

# formats that hold the network itself, and the endings by which their files are known
SUFFIXES = {"onnx": onnxfile.SUFFIX, "openvino": openvino.SUFFIX, "torch-export": portable.SUFFIX}
# of these, those that hold 8-bit integers too
INTEGERS = ("onnx", "openvino")
# batch, height and width of what a written network is tried with, none of them those that it was traced with
SHAPES = ((1, 49, 73), (3, 66, 41))
# of the range of the scores
MAX_DEVIATION = 1e-4
# of pixels with the model's class, where a file answers classes: others lie on a tie
MIN_AGREEMENT = 0.999
# of cells, where a file is in integers
MIN_INT8_AGREEMENT = 0.5


def export(
    source: Path,
    output: Path,
    format: str = "weights",
    preset: str | None = None,
    overrides: Sequence[str] = (),
    processed: bool = False,
    calibration: Sequence[Path] | None = None,
) -> Path:
    """Write a checkpoint's model alone: "weights", about a third of the size, or in a layout, such as "official".

    "onnx" and "torch-export" write the network itself, to be run without ccnet; nothing is written where their scores
    differ from the model's. processed puts all around the network into an ONNX file, see portable.Processed. With
    calibration, images, "onnx" and "openvino" are in 8-bit integers; a notice says how alike they answer. source
    may be anybody's weights; preset and overrides are those of read_weights.
    """
    _check_options(output, format, processed, calibration is not None)
    layout = LAYOUTS.get(format)
    outputs = files_of(output, format)
    files.refuse_outputs(outputs, [*list_files(source), None if preset is None else config.find(preset)])
    if format in SUFFIXES:
        contents = _network(source, output, format, load_model(source, preset, overrides), processed, calibration)
        for path, data in zip(outputs, contents, strict=True):
            _write(path, partial(_write_bytes, data))
        return output
    content: Any = read_weights(source, preset, overrides).content
    content = {key: value for key, value in content.items() if key != "training"}
    if format != "weights":
        content = _convert(content, source, format)
    if layout and layout.parts:
        for part, path in zip(layout.parts, outputs, strict=True):
            _write(path, partial(torch.save, content[part]))
        return output
    if output.suffix.lower() != safetensors.SUFFIX:
        return _write(output, lambda file: torch.save(content, file))
    own = {key: value for key, value in content.items() if key != "model"} if format == "weights" else None
    tensors = content["model"] if own else _tensors(content)
    return _write(output, lambda file: safetensors.write(file, tensors, own))


def _check_options(output: Path, format: str, processed: bool, integers: bool) -> None:
    """InputError for what a format does not hold, for a name that is another's, and for packages that are missing."""
    for name, suffix in SUFFIXES.items():
        if (format == name) != (output.suffix.lower() == suffix) and not files.is_stream(output):
            fix = f"end the name in {suffix}" if format == name else f"add --format {name}, or choose another name"
            raise InputError(output, f"{suffix} is the ending of --format {name}", fix)
    if processed and format != "onnx":
        raise InputError("option --with-processing", f"--format {format} holds no processing", "add --format onnx")
    if integers and (format not in INTEGERS or processed):
        why = "--with-processing holds float32 alone" if processed else f"--format {format} holds no integers"
        raise InputError("option --precision int8", why, "use --format onnx or openvino, without --with-processing")
    if format == "openvino":
        openvino.require()
        if files.is_stream(output):
            raise InputError(output, "OpenVINO's weights are a second file beside it", "name a file that ends in .xml")
    if format in INTEGERS:
        onnxfile.require("onnx", "onnxscript", "onnxruntime")


def files_of(output: Path, format: str) -> list[Path]:
    """The files that an export writes."""
    if format in LAYOUTS:
        return LAYOUTS[format].files(output)
    return [output, output.with_suffix(openvino.WEIGHTS)] if format == "openvino" else [output]


def _write_bytes(content: bytes, file: Any) -> None:
    file.write(content)


def _tensors(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict of a layout's content, without what lies around it."""
    inner = next((value for value in content.values() if isinstance(value, dict)), content)
    return {key: value for key, value in inner.items() if isinstance(value, torch.Tensor)}


def _convert(content: dict[str, Any], source: Path, format: str) -> dict[str, Any]:
    """A checkpoint's weights in the layout of that name."""
    layout, state = LAYOUTS[format], content["model"]
    if layout.export is None:
        raise InputError(f"option --format {format}", "a layout that is read alone", "use --format weights")
    counts = [key for key in state if key.endswith("num_batches_tracked")]
    # a count other than 0 before the first step was in the file that the weights came from
    if not layout.counts and (content["step"] or not any(state[key].any() for key in counts)):
        state = {key: tensor for key, tensor in state.items() if key not in counts}
    try:
        return layout.export(state, read_facts(content, source).preset.model)
    except Misfit as error:
        raise InputError(source, error.why, error.fix or "use --format weights") from None


def _write(output: Path, fill: Callable[[Any], object]) -> Path:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        files.write_output(output, fill)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk in words of its own
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise EnvironmentFailure(output, f"not written ({why})", "make room, or choose another place") from None
    return output


def _network(
    source: Path,
    output: Path,
    format: str,
    artifact: Artifact[CCNet],
    processed: bool,
    calibration: Sequence[Path] | None,
) -> Sequence[bytes]:
    """The content of each file of an exported network, once its scores are known to be the model's."""
    model = artifact.network
    if model.takes_clips:
        why = f"its head takes clips, which --format {format} does not hold"
        raise InputError(source, why, "use --format weights")
    traced, facts = portable.program(model, processed), _facts(artifact)
    if format == "torch-export":
        content = portable.save(traced, facts)
        _check_scores(portable.load(content), output, model)
        return [content]
    if processed:
        content = onnxfile.write(traced, facts | {onnxfile.PROCESSED: True})
        _check_classes(content, output, model)
        return [content]
    facts = facts | ({} if calibration is None else {"precision": INT8})
    content = onnxfile.write(traced, facts)
    examples = [] if calibration is None else read_examples(calibration, model.normalisation)
    if examples:
        from ccnet_cli.inference import qdq

        content = qdq.quantise(content, examples)
    written: onnxfile.OnnxNetwork
    contents: Sequence[bytes]
    around: Any = (output, len(artifact.classes), model.normalisation, model.align_corners, model.stride)
    if format == "openvino":
        contents = openvino.write(content, facts)
        written = openvino.OpenVinoNetwork(contents, *around)
    else:
        contents = [content]
        written = onnxfile.OnnxNetwork(content, *around)
    if examples:
        _compare_classes(written, output, model, examples)
    else:
        _check_scores(written, output, model)
    return contents


def _check_scores(written: Callable[[torch.Tensor], Any], output: Path, model: CCNet) -> None:
    """InputError or EnvironmentFailure unless a written network's scores of noise are the model's."""
    try:
        worst = max(deviation(written, model, shape) for shape in SHAPES)
    except (InputError, RuntimeError, AssertionError) as error:
        if out_of_memory(error):
            raise
        why = error.why if isinstance(error, InputError) else str(error).splitlines()[0]
        raise InputError(output, f"not written: {why}", "write its parts for images of any size") from None
    # nan is not small either
    if not worst <= MAX_DEVIATION:
        why = f"not written: its scores are {worst:.1e} of their range away from the model's"
        raise EnvironmentFailure(output, why, "update torch, or report it")


@torch.inference_mode()
def _compare_classes(
    written: Callable[[torch.Tensor], Any], output: Path, model: CCNet, examples: Sequence[Example]
) -> None:
    """Say in how many cells of some images a network in integers finds the model's classes."""
    same = torch.cat([(written(x.input).argmax(1) == model(x.input).argmax(1)).flatten() for x in examples])
    share = float(same.double().mean())
    if share < MIN_INT8_AGREEMENT:
        why = f"not written: in integers {100 * share:.1f} % of the cells keep their class"
        raise InputError(output, why, "export it in float32, or calibrate it on images like those it was trained on")
    number = f"{len(examples)} image{'s' if len(examples) > 1 else ''}"
    notice(f"int8: calibrated on {number}, where {100 * share:.2f} % of the cells keep their class")


@torch.inference_mode()
def _check_classes(content: bytes, output: Path, model: CCNet) -> None:
    """EnvironmentFailure where the file's classes of noise are not the model's, but for a pixel in a thousand."""
    for count, height, width in SHAPES:
        noise = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        classes = onnxfile.classify(content, noise)
        x = torch.cat([to_input(image[..., ::-1], model.normalisation, "cpu") for image in noise])
        scores = F.interpolate(model(x), (height, width), mode="bilinear", align_corners=model.align_corners)
        same = float((torch.from_numpy(classes) == scores.argmax(dim=1)).double().mean())
        if same < MIN_AGREEMENT:
            why = f"not written: {100 * same:.1f} % of its classes are the model's"
            raise EnvironmentFailure(output, why, "update torch, or report it")


def _facts(artifact: Artifact[CCNet]) -> dict[str, Any]:
    return {
        "ccnet": __version__,
        "preset": config.to_mapping(artifact.preset),
        "classes": artifact.classes.to_mapping(),
        "step": artifact.step,
        "metrics": artifact.metrics,
        "origin": artifact.origin,
        "stride": artifact.network.stride,
    }


@torch.inference_mode()
def deviation(network: Callable[[torch.Tensor], Any], model: CCNet, shape: tuple[int, int, int]) -> float:
    """The largest difference between two networks' scores of noise, (N, H, W), as a fraction of the scores' range."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    x = torch.cat([to_input(image, model.normalisation, "cpu") for image in noise])
    expected = model(x)
    spread = expected.max() - expected.min()
    return float((network(x) - expected).abs().max() / (spread if spread else 1))
