"""The network as a graph of torch's own operators: no auxiliary head, batch norms folded, attention as products."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from ccnet_cli.errors import InputError, out_of_memory
from ccnet_cli.models.network import CCNet

SUFFIX = ".pt2"
# where torch.export.load finds the facts about the network
FACTS = "ccnet.json"
CONV, BATCH_NORM = torch.ops.aten.conv2d.default, torch.ops.aten.batch_norm.default


def portable(model: CCNet) -> CCNet:
    """A copy, in evaluation mode on the CPU, with the same main scores, of torch's own operators alone.

    A module with a method `portable` is replaced by what that returns.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    model.auxiliary = None
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            convert = getattr(module, "portable", None)
            if name and convert is not None:
                model.set_submodule(name, convert())
    return model


class Processed(nn.Module):
    """Pictures as they are read, uint8 RGB (N, H, W, 3) -> the class of each pixel, uint8 (N, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: CCNet) -> None:
        super().__init__()
        self.network = portable(model)
        n = model.normalisation
        self.bgr = n.channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(n.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(n.std).view(3, 1, 1))

    def forward(self, image_NHW3: Tensor) -> Tensor:
        """The classes of whole pictures, at one scale."""
        image = image_NHW3.permute(0, 3, 1, 2).float()
        x = ((image.flip(1) if self.bgr else image) - self.mean) / self.std
        corners = self.network.align_corners
        scores = F.interpolate(self.network(x), x.shape[2:], mode="bilinear", align_corners=corners)
        return scores.argmax(dim=1).to(torch.uint8)


def program(model: CCNet, processed: bool = False) -> ExportedProgram:
    """The main scores as a graph of torch's own operators, for any batch and for images of 9 pixels a side or more.

    processed has what lies around the network in it: see Processed.
    """
    growing = dict.fromkeys((0, 1, 2) if processed else (0, 2, 3), Dim.DYNAMIC)
    example = torch.zeros(2, 65, 97, 3, dtype=torch.uint8) if processed else torch.zeros(2, 3, 65, 97)
    fix = "write its parts in operators that torch.export follows, or use --format weights"
    with torch.no_grad(), exporting("torch.export cannot trace it", fix):
        module = Processed(model).eval() if processed else portable(model)
        traced = torch.export.export(module, (example,), dynamic_shapes=(growing,))
        fold_batch_norms(traced)
    for node in traced.graph.nodes:
        # lines of code, whose folders are nobody else's concern
        node.meta.pop("stack_trace", None)
    return traced


@contextmanager
def exporting(what: str, fix: str) -> Iterator[None]:
    """Silence torch's exporters, and raise an InputError about the network for whatever they raise.

    None of their warnings and log lines is one that a user can act on.
    """
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError("network", f"{what} ({reason})", fix) from error
    finally:
        logging.disable(level)


def fold_batch_norms(traced: ExportedProgram) -> None:
    """Fold each batch norm of the graph into the convolution before it, if no other node uses what the two hold."""
    graph, signature = traced.graph, traced.graph_signature
    state: dict[str, Any] = traced.state_dict
    targets = {spec.arg.name: spec.target for spec in signature.input_specs if spec.target in state}

    def value(node: Any) -> Tensor:
        tensor: Tensor = state[targets[node.name]]
        return tensor.double()

    def is_private(node: Any) -> bool:
        return isinstance(node, fx.Node) and len(node.users) == 1 and (node.name in targets or node.target is CONV)

    for norm in graph.find_nodes(op="call_function", target=BATCH_NORM):
        conv, scale, shift, mean, variance, _, _, epsilon, _ = norm.args
        if conv.target is not CONV:
            continue
        x, kernel, bias, *others = conv.args if len(conv.args) > 2 else (*conv.args, None)
        if not all(map(is_private, (conv, kernel, scale, shift, mean, variance, *([] if bias is None else [bias])))):
            continue
        factor = value(scale) / (value(variance) + epsilon).sqrt()
        offset = (value(bias) if bias is not None else 0) - value(mean)
        folded = {shift: offset * factor + value(shift), kernel: value(kernel) * factor.view(-1, 1, 1, 1)}
        for node, tensor in folded.items():
            state[targets[node.name]] = nn.Parameter(tensor.float(), requires_grad=False)
        conv.args = (x, kernel, shift, *others)
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)
    unused = [node for node in graph.find_nodes(op="placeholder") if node.name in targets and not node.users]
    for node in unused:
        graph.erase_node(node)
        del state[targets[node.name]]
    signature.input_specs[:] = [spec for spec in signature.input_specs if spec.arg.name not in {n.name for n in unused}]


def save(traced: ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """The content of a file that torch.export.load reads without ccnet, with the facts as JSON beside the graph."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(traced, content, extra_files={FACTS: json.dumps(facts)})
    return content.getvalue()


def load(content: bytes) -> nn.Module:
    """The network of what save returned, never of a file from elsewhere: torch.export.load may run what is in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(io.BytesIO(content)).module()
