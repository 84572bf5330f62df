"""ONNX files in 8-bit integers: QuantizeLinear and DequantizeLinear around convolutions, whose weights are int8."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from ccnet_cli.inference import onnx as onnxfile
from ccnet_cli.inference.calibration import MIN_CHANNELS, Example, measure_range
from ccnet_cli.inference.int8 import Levels

# pixels of a side of the pictures that are looked at: all maps of one are in memory at once
MAX_SIDE = 513
# what may follow a convolution in integers: others make scores, queries and keys
AFTER = {"Relu", "LeakyRelu", "Add"}


def quantise(content: bytes, examples: Sequence[Example]) -> bytes:
    """A file that onnx.write wrote, with the same facts, in integers; ranges are those of int8.py, of the examples.

    Weights have a scale for each output channel, maps one scale and zero, as uint8. The first convolution and those
    that make scores, queries, keys and values stay in float32.
    """
    model = onnx.load_model_from_string(content)
    graph = model.graph
    weights = {each.name: each for each in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    convs = [node for node in graph.node if node.op_type == "Conv" and _suits(node, weights, readers)]
    adds = [node for conv in convs for node in readers[conv.output[0]] if node.op_type == "Add"]
    nodes = [*convs, *{node.name: node for node in adds}.values()]
    maps = dict.fromkeys(name for node in nodes for name in (*_maps_of(node, weights), _result(node, readers)))
    levels = _measure(content, list(maps), examples)
    added: list[Any] = []
    for conv in convs:
        _quantise_weights(graph, conv, weights, levels[conv.input[0]].scale, added)
    for name, own in levels.items():
        _quantise_map(graph, name, own, readers.get(name, ()), added)
    _sort(graph, added)
    return onnxfile.seal_again(model)


def _suits(node: Any, weights: dict[str, Any], readers: dict[str, list[Any]]) -> bool:
    groups = next((each.i for each in node.attribute if each.name == "group"), 1)
    weight, after = weights.get(node.input[1]), readers.get(node.output[0], [])
    wide = weight is not None and weight.dims[1] >= MIN_CHANNELS
    return wide and groups == 1 and bool(after) and {each.op_type for each in after} <= AFTER


def _maps_of(node: Any, weights: dict[str, Any]) -> list[str]:
    """The maps that a node reads: a convolution's first input, both of a sum."""
    return [name for name in (node.input if node.op_type == "Add" else node.input[:1]) if name not in weights]


def _result(node: Any, readers: dict[str, list[Any]]) -> str:
    """What a node computes, behind its ReLU where it has one."""
    after = readers.get(node.output[0], [])
    relu = len(after) == 1 and after[0].op_type == "Relu"
    return str(after[0].output[0] if relu else node.output[0])


def _measure(content: bytes, names: Sequence[str], examples: Iterable[Example]) -> dict[str, Levels]:
    """The levels of these maps, from the mean of their ranges in the middles of the examples."""
    model = onnx.load_model_from_string(content)
    inputs = {each.name for each in model.graph.input}
    del model.graph.output[:]
    wanted = [name for name in names if name not in inputs]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    run = onnxfile.open_session(model.SerializeToString())
    ranges = []
    for example in examples:
        tops = [max(0, (side - MAX_SIDE) // 2) for side in example.input.shape[2:]]
        x = example.input[:, :, tops[0] : tops[0] + MAX_SIDE, tops[1] : tops[1] + MAX_SIDE].numpy()
        ranges.append([measure_range(torch.from_numpy(each)) for each in run(x, wanted)])
    means = np.mean(ranges, axis=0)
    return {name: Levels.of(float(low), float(high)) for name, (low, high) in zip(wanted, means, strict=True)}


def _constant(graph: Any, name: str, values: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _quantise_weights(graph: Any, conv: Any, weights: dict[str, Any], scale: float, added: list[Any]) -> None:
    """Let a convolution read int8 weights, and a bias in steps of the products of both scales."""
    name = conv.input[1]
    values = numpy_helper.to_array(weights[name])
    scales = np.maximum(np.abs(values).max(axis=(1, 2, 3)), 1e-12).astype(np.float32) / 127
    rounded = np.rint(values / scales[:, None, None, None]).astype(np.int8)
    parts = [(1, name, rounded, scales)]
    if len(conv.input) > 2:
        steps = scales * np.float32(scale)
        bias = np.rint(numpy_helper.to_array(weights[conv.input[2]]) / steps.astype(np.float64))
        parts.append((2, conv.input[2], np.clip(bias, -(2**31), 2**31 - 1).astype(np.int32), steps))
    for index, own, integers, steps in parts:
        key = f"{conv.name}.{own}"
        operands = [
            _constant(graph, f"{key}.{kind}", part)
            for kind, part in (("int", integers), ("scale", steps), ("zero", np.zeros(len(steps), integers.dtype)))
        ]
        added.append(helper.make_node("DequantizeLinear", operands, [f"{key}.float"], f"{key}.dequantize", axis=0))
        conv.input[index] = f"{key}.float"


def _quantise_map(graph: Any, name: str, levels: Levels, readers: Iterable[Any], added: list[Any]) -> None:
    """Let all who read a map read it rounded to its levels."""
    scale = _constant(graph, f"{name}.scale", np.array(levels.scale, np.float32))
    zero = _constant(graph, f"{name}.zero", np.array(levels.zero, np.uint8))
    added.append(helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.int"], f"{name}.quantize"))
    outputs = [f"{name}.float"]
    added.append(helper.make_node("DequantizeLinear", [f"{name}.int", scale, zero], outputs, f"{name}.dequantize"))
    for node in readers:
        for index, own in enumerate(node.input):
            if own == name:
                node.input[index] = f"{name}.float"


def _sort(graph: Any, added: Sequence[Any]) -> None:
    """Put the new nodes in, each behind those whose outputs it reads, and leave out weights that nobody reads."""
    waiting = [*added, *graph.node]
    read = {name for node in waiting for name in node.input}
    kept = [each for each in graph.initializer if each.name in read]
    ready = {each.name for each in (*kept, *graph.input)} | {""}
    ordered: list[Any] = []
    while waiting:
        rest = []
        for node in waiting:
            if all(name in ready for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                rest.append(node)
        if len(rest) == len(waiting):
            raise AssertionError("the graph has a circle")
        waiting = rest
    for field, values in ((graph.node, ordered), (graph.initializer, kept)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
