"""What is measured against: the authors' attention and network, a non-local block, the bare products."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli import ops
from ccnet_cli.bench.request import Work
from ccnet_cli.errors import notice
from ccnet_cli.models.attention import CrissCrossAttention
from ccnet_cli.models.network import CCNet

Module = TypeVar("Module", bound=nn.Module)

# B batch, C channels of the map, H height, W width; L matrices of one line each


class Official(nn.Module):
    """The formulation of the authors' release: separate projections, lines copied into batches of matrices."""

    def __init__(self, attention: CrissCrossAttention, recurrence: int) -> None:
        super().__init__()
        self.attention = attention
        self.recurrence = recurrence

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        for _ in range(self.recurrence):
            x_BCHW = self._once(x_BCHW)
        return x_BCHW

    def _once(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        query, key, value = (conv(x_BCHW) for conv in _projections(self.attention))
        own_HH = torch.eye(H, dtype=torch.bool, device=x_BCHW.device)
        column_LHH = torch.bmm(_columns(query).transpose(1, 2), _columns(key)).masked_fill(own_HH, float("-inf"))
        row_LWW = torch.bmm(_rows(query).transpose(1, 2), _rows(key))
        column_BHWH = column_LHH.view(B, W, H, H).transpose(1, 2)
        weights_BHWP = torch.cat([column_BHWH, row_LWW.view(B, H, W, W)], dim=3).softmax(dim=3)
        column_LHH = weights_BHWP[..., :H].transpose(1, 2).contiguous().view(B * W, H, H)
        row_LWW = weights_BHWP[..., H:].contiguous().view(B * H, W, W)
        from_column = torch.bmm(_columns(value), column_LHH.transpose(1, 2)).view(B, W, C, H).permute(0, 2, 3, 1)
        from_row = torch.bmm(_rows(value), row_LWW.transpose(1, 2)).view(B, H, C, W).permute(0, 2, 1, 3)
        return self.attention.gamma * (from_column + from_row) + x_BCHW


def use_plain_convolutions(network: CCNet) -> CCNet:
    """Give the network torch's own convolutions, in place."""
    for module in network.modules():
        if isinstance(module, ops.Conv2d):
            module.implementation = "direct"
    return network


def official_network(network: CCNet, head: str) -> CCNet | None:
    """A copy as the authors compute it, every operation by itself; None, with a notice, for a head of another kind."""
    if head != "rcca":
        notice(f"without official: the authors have no head of kind {head}")
        return None
    network = use_plain_convolutions(copy.deepcopy(network))
    rcca = network.head.rcca
    if rcca is not None:
        network.head.rcca = Official(rcca.attention, rcca.recurrence)
    return use_layout(network, torch.contiguous_format)


def use_layout(network: Module, layout: torch.memory_format) -> Module:
    """Keep the network's weights in a memory layout, in place."""
    network.to(memory_format=layout)  # type: ignore[call-overload]
    return network


def open_gates(network: nn.Module) -> None:
    """Set every scalar parameter to 0.5: the weight of a branch may start at 0, which would hide the branch."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() == 1:
                parameter.fill_(0.5)


class NonLocal(nn.Module):
    """The block that criss-cross attention replaces (CVPR 2018, embedded Gaussian): each pixel attends to all H W."""

    def __init__(self, attention: CrissCrossAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.attention.gamma * non_local(*(conv(x_BCHW) for conv in _projections(self.attention))) + x_BCHW


def non_local(query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor) -> Tensor:
    """What a non-local block (CVPR 2018, embedded Gaussian) does between its projections: (B, C, H, W)."""
    query, key, value = (x.flatten(2) for x in (query_BCHW, key_BCHW, value_BCHW))
    attention = (query.transpose(1, 2) @ key).softmax(dim=2)
    return (value @ attention.transpose(1, 2)).view_as(value_BCHW)


class Floor:
    """The matrix products of the criss-cross passes alone: no softmax, mask, residual or layout change.

    The projections are 1x1 convolutions, which torch computes faster than the same product as a matrix. What it
    computes means nothing; it shows what an implementation in matrix products has left to gain.
    """

    def __init__(self, work: Work, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        batch, channels, (H, W), reduced = work.batch, work.channels, work.size, work.query_channels
        self.recurrence = work.recurrence
        self.split = [reduced, reduced, channels]
        # zeros would stay finite however often the products are repeated, but some processors multiply them faster
        self.x_BHWC = (torch.rand(batch, H, W, channels, device=device) / channels).to(dtype)
        self.weight = (torch.rand(2 * reduced + channels, channels, 1, 1, device=device) / channels).to(dtype)
        self.energy_BHWP = self.x_BHWC.new_empty(batch, H, W, H + W)
        self.out_BHWC = torch.empty_like(self.x_BHWC)
        self.gradient = self.x_BHWC.new_empty(batch, H, W, 2 * reduced + channels)

    def forward(self) -> Tensor:
        """The projections, the energies and the aggregation of each pass."""
        self._passes()
        return self.out_BHWC

    def _passes(self) -> Tensor:
        for _ in range(self.recurrence):
            projected = F.conv2d(self.x_BHWC.permute(0, 3, 1, 2), self.weight).permute(0, 2, 3, 1)
            for qkv, energy, out in zip(projected, self.energy_BHWP, self.out_BHWC, strict=True):
                query, key, value = qkv.split(self.split, dim=-1)
                self._energies(query, key, energy)
                self._gather(energy, value, out)
        return projected

    def both(self) -> None:
        """forward, then the products of its backward pass: each forward product has two."""
        projected = self._passes()
        for _ in range(self.recurrence):
            parts = zip(projected, self.gradient, self.energy_BHWP, self.out_BHWC, strict=True)
            for qkv, gradient, energy, out in parts:
                query, key, value = qkv.split(self.split, dim=-1)
                d_query, d_key, d_value = gradient.split(self.split, dim=-1)
                self._energies(out, value, energy)
                self._gather(energy, key, d_query)
                self._spread(energy, query, d_key)
                self._spread(energy, out, d_value)
            gradient, x = self.gradient.permute(0, 3, 1, 2), self.x_BHWC.permute(0, 3, 1, 2)
            once = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
            torch.ops.aten.convolution_backward(gradient, x, self.weight, None, *once, [True, True, False])

    @staticmethod
    def _energies(left: Tensor, right: Tensor, out: Tensor) -> None:
        H = left.shape[0]
        torch.bmm(left.transpose(0, 1), right.permute(1, 2, 0), out=out.transpose(0, 1)[..., :H])
        torch.bmm(left, right.transpose(1, 2), out=out[..., H:])

    @staticmethod
    def _gather(weight: Tensor, value: Tensor, out: Tensor) -> None:
        H = value.shape[0]
        torch.bmm(weight[..., H:], value, out=out)
        lines = out.transpose(0, 1)
        torch.baddbmm(lines, weight.transpose(0, 1)[..., :H], value.transpose(0, 1), out=lines)

    @staticmethod
    def _spread(weight: Tensor, value: Tensor, out: Tensor) -> None:
        H = value.shape[0]
        torch.bmm(weight[..., H:].transpose(1, 2), value, out=out)
        lines = out.transpose(0, 1)
        torch.baddbmm(lines, weight[..., :H].permute(1, 2, 0), value.transpose(0, 1), out=lines)


def _projections(attention: CrissCrossAttention) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    return attention.query_conv, attention.key_conv, attention.value_conv


def _columns(x_BCHW: Tensor) -> Tensor:
    """Every column as a matrix of its own, copied: (B W, C, H)."""
    return x_BCHW.permute(0, 3, 1, 2).contiguous().flatten(0, 1)


def _rows(x_BCHW: Tensor) -> Tensor:
    """Every row as a matrix of its own, copied: (B H, C, W)."""
    return x_BCHW.permute(0, 2, 1, 3).contiguous().flatten(0, 1)
