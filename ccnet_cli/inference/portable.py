"""The network in operators that other programs know: batch norms folded, no auxiliary head, attention as products."""

import copy
import io
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ccnet_cli.models.attention import CrissCrossAttention
from ccnet_cli.models.network import CCNet

# B batch, C channels, H height, W width, P = H + W positions on a pixel's cross

SUFFIX = ".pt2"
# where torch.export.load finds what is told of the network
FACTS = "ccnet.json"
# so far below any energy that the weight is 0 in float32; finite, as some runtimes make nan of an infinity
MASKED = -1e30


class PlainCrissCross(nn.Module):
    """CrissCrossAttention in batched products that follow any size, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, attention: CrissCrossAttention) -> None:
        super().__init__()
        query, key, value = attention.query_conv, attention.key_conv, attention.value_conv
        gamma = attention.gamma
        self.channels = [conv.out_channels for conv in (query, key, value)]
        self.project = nn.Conv2d(query.in_channels, sum(self.channels), 1)
        # gamma times a sum of values is the sum of values times gamma
        self.project.weight = nn.Parameter(torch.cat([query.weight, key.weight, gamma * value.weight]))
        self.project.bias = nn.Parameter(torch.cat([query.bias, key.bias, gamma * value.bias]))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """What the cross holds, plus the input."""
        query, key, value = self.project(x_BCHW).split(self.channels, dim=1)
        H = x_BCHW.shape[2]
        positions = torch.arange(H, device=x_BCHW.device)
        # the pixel lies on both arms: count it once, in the row
        own_HH = positions[:, None] == positions
        column_BWHH = (query.permute(0, 3, 2, 1) @ key.permute(0, 3, 1, 2)).masked_fill(own_HH, MASKED)
        row_BHWW = query.permute(0, 2, 3, 1) @ key.permute(0, 2, 1, 3)
        attention_BHWP = torch.cat([column_BWHH.transpose(1, 2), row_BHWW], dim=3).softmax(dim=3)
        up_BWHC = attention_BHWP[..., :H].transpose(1, 2) @ value.permute(0, 3, 2, 1)
        across_BHWC = attention_BHWP[..., H:] @ value.permute(0, 2, 3, 1)
        return (up_BWHC.transpose(1, 2) + across_BHWC).permute(0, 3, 1, 2) + x_BCHW


def portable(model: CCNet) -> CCNet:
    """A copy, in evaluation mode on the CPU, with the same main scores, of torch's own operators alone."""
    model = copy.deepcopy(model).cpu().float().eval()
    model.auxiliary = None
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                conv = convolution_before(name)
                model.set_submodule(conv, fuse_conv_bn_eval(model.get_submodule(conv), module))
                model.set_submodule(name, nn.Identity())
        if model.head.rcca is not None:
            model.head.rcca.attention = PlainCrissCross(model.head.rcca.attention)
    return model


def convolution_before(norm: str) -> str:
    """The name of the convolution whose output a batch norm takes: conv2 for bn2, in a sequence the one before."""
    norm = re.sub(r"(^|\.)bn(\d)$", r"\1conv\2", norm)
    return re.sub(r"\.(\d+)$", lambda found: f".{int(found[1]) - 1}", norm)


def program(model: CCNet) -> ExportedProgram:
    """The main scores as a graph of torch's own operators, for any batch and for images of 9 pixels a side or more."""
    growing = dict.fromkeys((0, 2, 3), Dim.DYNAMIC)
    example = torch.zeros(2, 3, 65, 97)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.export.export(portable(model), (example,), dynamic_shapes=(growing,))
    for node in traced.graph.nodes:
        # whose folders these lines of code lie in is not for others
        node.meta.pop("stack_trace", None)
    return traced


def saved(traced: ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """The content of a file that torch.export.load reads without ccnet, with the facts as JSON beside the graph."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(traced, content, extra_files={FACTS: json.dumps(facts)})
    return content.getvalue()


def loaded(content: bytes) -> nn.Module:
    """The network of what saved returned, never of a file from elsewhere: torch.export.load may run what is in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(io.BytesIO(content)).module()
