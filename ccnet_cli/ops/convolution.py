"""3x3 convolutions: a module like torch's own, which uses the CPU kernels where they are faster."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from ccnet_cli.ops.cpu import convolution as kernels
from ccnet_cli.ops.define import operator

# with fewer input or output channels the kernels are slower: they move tiles more than they multiply
MIN_CHANNELS = {torch.float32: 64, torch.bfloat16: 128}


class Conv2d(nn.Conv2d):
    """torch's convolution; on the CPU, large 3x3 ones are computed by Winograd's minimal filtering.

    They take a third to a half of the time in float32, and half to all of it in bfloat16, where the weights are not
    rounded. Results are as exact as float32's, not the same to the bit. implementation "auto" chooses by size, "direct"
    is always torch's own.
    """

    implementation = "auto"

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, h, w)."""
        if self.implementation == "direct" or not pays_off(self, x):
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        out: Tensor = torch.ops.ccnet.convolution(x, self.weight, self.bias, self.dilation[0])
        return out


def accelerate(network: nn.Module) -> nn.Module:
    """Make each nn.Conv2d that the CPU kernels support a Conv2d, in place: same objects, parameters and keys."""
    for module in network.modules():
        if type(module) is nn.Conv2d and supports(module):
            module.__class__ = Conv2d
    return network


def pays_off(conv: nn.Conv2d, x_BCHW: Tensor) -> bool:
    """Whether the kernels support this convolution of this input, are faster, and repay their start."""
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x_BCHW.dtype
    plain = x_BCHW.device.type == "cpu" and conv.weight.dtype == (torch.float32 if autocast else dtype)
    channels = conv.in_channels, conv.out_channels
    if not plain or torch.compiler.is_compiling() or not supports(conv) or not is_faster(dtype, *channels):
        return False
    B, C, H, W = x_BCHW.shape
    return B * H * W * C * conv.out_channels * 9 >= kernels.MIN_MACS


def is_faster(dtype: torch.dtype, *channels: int) -> bool:
    """Whether the kernels are known to be faster on this processor for these numbers of input and output channels.

    They need AVX; for bfloat16, the processor's matrix instructions (AMX) are faster still.
    """
    return (
        _has_avx()
        and min(channels) >= MIN_CHANNELS.get(dtype, math.inf)
        and not (dtype != torch.float32 and _has_amx())
    )


@cache
def _has_avx() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX")


@cache
def _has_amx() -> bool:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


def supports(conv: nn.Conv2d) -> bool:
    """Whether the kernels compute this convolution: 3x3, stride 1, the same size out, whole panels of channels."""
    same = conv.dilation[0] == conv.dilation[1] and conv.padding == conv.dilation and conv.padding_mode == "zeros"
    square = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.groups == 1
    return square and same and kernels.supports(conv.in_channels, conv.out_channels)


@operator("convolution")
def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return kernels.convolve(x, weight, bias, dilation)


@operator("convolution_input")
def _input(grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return kernels.input_gradient(grad, weight, dilation)


@operator("convolution_weight")
def _weight(x: Tensor, grad: Tensor, dilation: int) -> Tensor:
    return kernels.weight_gradient(x, grad, dilation)


@_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return _like(x, weight.shape[0])


@_input.register_fake
def _(grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return _like(grad, weight.shape[1])


@_weight.register_fake
def _(x: Tensor, grad: Tensor, dilation: int) -> Tensor:
    return x.new_empty(grad.shape[1], 3, 3, x.shape[1], dtype=torch.float32).permute(0, 3, 1, 2)


def _like(x: Tensor, channels: int) -> Tensor:
    B, _, H, W = x.shape
    return x.new_empty(B, H, W, channels).permute(0, 3, 1, 2)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    d_bias = grad.sum((0, 2, 3), dtype=weight.dtype) if wanted[2] else None
    if torch.is_grad_enabled():
        # the caller wants gradients of these gradients, which torch's operator has
        once = [1, 1], [ctx.dilation] * 2, [ctx.dilation] * 2, False, [0, 0], 1, [wanted[0], wanted[1], False]
        d_x, d_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight.to(x.dtype), None, *once)
    else:
        d_x = torch.ops.ccnet.convolution_input(grad, weight, ctx.dilation) if wanted[0] else None
        d_weight = torch.ops.ccnet.convolution_weight(x, grad, ctx.dilation) if wanted[1] else None
    return d_x, None if d_weight is None else d_weight.to(weight.dtype), d_bias, None


_convolution.register_autograd(_gradients, setup_context=_save)


# FLOPs as torch counts those of its own convolutions, not those that Winograd's filtering takes


@register_flop_formula(torch.ops.ccnet.convolution)
def _flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * x[2] * x[3] * weight[0] * weight[1] * 9


@register_flop_formula(torch.ops.ccnet.convolution_input)
def _input_flops(grad: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return _flops(grad, weight)


@register_flop_formula(torch.ops.ccnet.convolution_weight)
def _weight_flops(x: Sequence[int], grad: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * x[1] * x[2] * x[3] * grad[1] * 9
