"""The network as inference runs it: no auxiliary head, batch norms folded, each convolution one operator.

On the CPU, oneDNN computes a convolution, its bias, the sum that it may belong to and its activation in one pass over
memory, by the operators that torch's compiler emits. Where they are missing, plain torch takes several passes. Where
there is much to do, Winograd's minimal filtering takes the place of the 3x3 convolutions.
"""

import copy
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccnet_cli.devices import PRECISIONS, FreedMemory
from ccnet_cli.errors import InputError
from ccnet_cli.models.heads.rcca3d import FoldedClipHead
from ccnet_cli.models.network import CCNet, maps_of
from ccnet_cli.ops import convolution
from ccnet_cli.ops.cpu import convolution as kernels

# B batch, C channels, H height, W width

# a float32 3x3 convolution over more channels is a fifth faster as a sum of convolutions over this many; in bfloat16 it
# would gain a twentieth, and round each partial sum
MAX_CONV_CHANNELS = 512
# images that are worth a compilation, which takes a minute or so
MIN_IMAGES_TO_COMPILE = 500
# images that are worth the start of the CPU's attention kernels: half a second, some seconds the first time of all
MIN_IMAGES_FOR_KERNELS = 100
# multiply-adds in 3x3 convolutions that are worth the start of their kernels, and their filters' transformation and
# memory: a second's worth for two cores
MIN_MACS_FOR_WINOGRAD = 1 << 37
COMPILE = ("off", "auto", "on")


class Convolution(nn.Module):
    """A convolution with its batch norm folded in, and the activation after it.

    Of several inputs, whose channels are widths, it is the convolution over their concatenation.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d | None = None,
        act: nn.Module | None = None,
        widths: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        fused: bool = False,
    ) -> None:
        super().__init__()
        weight, bias = (x.to(dtype) for x in fold_conv(conv, norm))
        self.groups = conv.groups
        widths = widths or [weight.shape[1]]
        split = fused and dtype == torch.float32 and conv.kernel_size != (1, 1)
        self.part = conv.in_channels if conv.groups > 1 else MAX_CONV_CHANNELS if split else max(widths)
        parts = [part for own in weight.split(list(widths), dim=1) for part in own.split(self.part, dim=1)]
        self.weights = nn.ParameterList(nn.Parameter(part.contiguous(), requires_grad=False) for part in parts)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        self.padding = [int(side) for side in conv.padding]
        self.slope = slope(act)
        self.fused = fused
        suits = convolution.supports(conv) and all(kernels.supports(width, len(weight)) for width in widths)
        # multiply-adds of a pixel where the kernels could take it
        self.worth = weight.numel() if suits and convolution.is_faster(dtype, *widths, len(weight)) else 0
        self.widths, self.quick, self.keeps_filters = list(widths), False, True
        self.memory: ReusedMemory | None = None

    @cached_property
    def filters(self) -> list[kernels.Filters]:
        """Winograd's, of each input, made once."""
        whole = torch.cat(list(self.weights), dim=1)
        return [kernels.transform_filters(own) for own in whole.split(self.widths, dim=1)]

    def forward(self, *inputs: Tensor, onto: Tensor | None = None) -> Tensor:
        """(B, C, H, W) of each input -> (B, outputs, h, w), added to `onto` in place where that is given."""
        if self.memory is not None and onto is None:
            self.memory.make_room(len(self.bias) * inputs[0][:, 0, :: self.stride[0], :: self.stride[1]].numel())
        if self.quick:
            return self._convolve_transformed(*inputs, onto=onto)
        parts = self._split(inputs)
        last = len(parts) - 1
        for index, (x, weight) in enumerate(zip(parts, self.weights, strict=True)):
            bias, slope = self.bias if index == 0 else None, self.slope if index == last else None
            onto = (self._convolve_fused if self.fused else self._convolve_plain)(x, weight, bias, slope, onto)
        assert onto is not None
        return onto

    def divide(self) -> list["Convolution"]:
        """A convolution of each input, with the same weights: all but the first add `onto` what comes before."""
        parts, convs = iter(self.weights), list[Convolution]()
        for width in self.widths:
            own = copy.deepcopy(self, {id(weight): weight for weight in self.parameters()})
            own.weights = nn.ParameterList(islice(parts, -(-width // self.part)))
            own.widths = [width]
            own.worth = sum(weight.numel() for weight in own.weights) if self.worth else 0
            if convs:
                own.bias = nn.Parameter(self.bias.new_zeros(len(self.bias)), requires_grad=False)
                convs[-1].slope = None
            convs.append(own)
        return convs

    def narrow(self, start: int, length: int) -> "Convolution":
        """The convolution to some of the outputs alone."""
        own, rows = copy.deepcopy(self), slice(start, start + length)
        for part in (own.bias, *own.weights):
            part.data = part[rows].clone()
        return own

    def _split(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [part for x in inputs for part in x.split(self.part, dim=1)]

    def _convolve_transformed(self, *inputs: Tensor, onto: Tensor | None) -> Tensor:
        parts = inputs if self.keeps_filters else self._split(inputs)
        filters = self.filters if self.keeps_filters else [kernels.lend_filters(weight) for weight in self.weights]
        last, after = len(parts) - 1, 1.0 if self.slope is None else self.slope
        for index, (x, own) in enumerate(zip(parts, filters, strict=True)):
            bias = self.bias.float() if index == 0 else None
            onto = kernels.convolve_transformed(x, own, self.dilation[0], bias, onto, after if index == last else 1.0)
        assert onto is not None
        return onto

    def _convolve_plain(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, slope: float | None, onto: Tensor | None
    ) -> Tensor:
        out = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return _activate(out if onto is None else onto.add_(out), slope)

    def _convolve_fused(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, slope: float | None, onto: Tensor | None
    ) -> Tensor:
        operands = (x, weight, bias, self.padding, self.stride, self.dilation, self.groups)
        name = "none" if slope is None else "leaky_relu" if slope else "relu"
        if onto is None:
            out: Tensor = torch.ops.mkldnn._convolution_pointwise(*operands, name, [slope] if slope else [], "")
            return out
        # after a sum, the operator knows no other activation than ReLU
        torch.ops.mkldnn._convolution_pointwise_.binary(
            onto, *operands, "add", 1.0, name if name == "relu" else None, [], None
        )
        return _activate(onto, slope) if slope else onto


class ReusedMemory(FreedMemory):
    """Keeps what is freed while maps of at most `numbers` are made, of which a network makes many of each size."""

    numbers = 0.0

    def make_room(self, numbers: int) -> None:
        """Choose for a map of that many numbers, and those after it."""
        self.stay(numbers <= self.numbers)

    def __exit__(self, *error: object) -> None:
        self.numbers = 0.0
        super().__exit__(*error)


class Engine(nn.Module):
    """Normalised image (B, 3, H, W) -> class scores (B, K, h, w), float32: what the model answers, faster.

    A backbone or head without `fold` runs as it is, in the engine's type.
    """

    def __init__(self, model: CCNet, dtype: torch.dtype, fused: bool, images: int = 0) -> None:
        super().__init__()

        def make(conv: Any, norm: Any = None, act: Any = None, widths: Any = None, dtype: str = "") -> Convolution:
            return Convolution(conv, norm, act, widths, PRECISIONS[dtype] if dtype else self.dtype, fused)

        self.dtype, self.fused = dtype, fused
        levels = getattr(model.head, "levels", len(model.backbone.channels))
        self.backbone = _fold_part(model.backbone, dtype, make, levels)
        self.head = _fold_part(model.head, dtype, make)
        self.normalisation = model.normalisation
        self.align_corners = model.align_corners
        self.stride = model.stride
        self.takes_clips = model.takes_clips
        # how many are expected, 0 where the kernels are out of the question
        self.images = images
        self.memory: ReusedMemory | None = None
        self.kept_numbers = 0.0

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The main scores."""
        self._choose(x)
        if self.memory is not None:
            self.memory.numbers = self.kept_numbers * x[:, 0].numel()
        with self.memory or nullcontext():
            # a list of its own: the head may empty it
            features = [*maps_of(self._backbone, x.to(self.dtype))]
            scores: Tensor = self.head(features)
            del features
        return scores.float()

    @torch.no_grad()
    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Of each of B frames its deepest map, and what it gives to the attention in every clip that it is in."""
        self._choose(x)
        features = self._backbone(x.to(self.dtype))
        return features[-1], *cast(FoldedClipHead, self.head).encode(features)

    @torch.no_grad()
    def decode(
        self, deepest_BChw: Tensor, frames: Sequence[tuple[Tensor, ...]], place: int, repeats: int = 1
    ) -> Tensor:
        """The main scores of a frame of a clip, see FoldedClipHead."""
        return cast(FoldedClipHead, self.head).decode(deepest_BChw, frames, place, repeats).float()

    def _backbone(self, x: Tensor) -> Sequence[Tensor]:
        maps: Sequence[Tensor] = self.backbone(x.contiguous(memory_format=torch.channels_last))
        return maps

    def _choose(self, x: Tensor) -> None:
        """Use Winograd's filtering where that many images of this size are worth it, whatever came before."""
        pixels = x.shape[-2] * x.shape[-1] // self.stride**2
        quick = self.images * pixels * sum(conv.worth for conv in self.convolutions) >= MIN_MACS_FOR_WINOGRAD
        for conv in self.convolutions:
            conv.quick = quick and conv.worth > 0

    def count_filters(self) -> int:
        """The numbers in transformed filters: of all that are kept or, where none are, of the largest block."""
        counts = [kernels.FILTER_GROWTH * conv.worth for conv in self.convolutions]
        if all(conv.keeps_filters for conv in self.convolutions):
            return sum(counts)
        return min(max(counts, default=0), kernels.FILTER_GROWTH * kernels.BLOCK_WEIGHTS)

    def save_memory(self) -> None:
        """Transform Winograd's filters anew for each image, which takes little time beside a large one.

        The attention's own kernels, which copy nothing, are worth their start then.
        """
        for conv in self.convolutions:
            conv.keeps_filters = False
        self.choose_attention("auto")

    def release_maps(self) -> None:
        """Let go of the backbone's maps before the attention runs, where the head can read them first; same bits."""
        if release := getattr(self.head, "release_maps", None):
            release()
            self.__dict__.pop("convolutions", None)

    def reuse_memory(self, numbers: float) -> None:
        """On the CPU, keep the memory of maps that have up to N numbers for each pixel, while it sees an image."""
        if self.convolutions and self.convolutions[0].bias.device.type == "cpu":
            self.memory, self.kept_numbers = ReusedMemory(), numbers
            for conv in self.convolutions:
                conv.memory = self.memory

    def choose_attention(self, implementation: str) -> None:
        """Use an implementation where "auto" is what the network was built with."""
        for module in self._attentions:
            module.__dict__["implementation"] = implementation

    @cached_property
    def _attentions(self) -> list[nn.Module]:
        modules = [module for module in self.modules() if not isinstance(module, nn.Conv2d)]
        return [module for module in modules if getattr(module, "implementation", None) == "auto"]

    @cached_property
    def convolutions(self) -> list[Convolution]:
        """All of them."""
        return [module for module in self.modules() if isinstance(module, Convolution)]


def _fold_part(part: nn.Module, dtype: torch.dtype, *arguments: Any) -> nn.Module:
    """A part for inference: folded by itself or, where it has no `fold`, a copy of it in the engine's type."""
    fold = getattr(part, "fold", None)
    module: nn.Module = copy.deepcopy(part).to(dtype) if fold is None else fold(*arguments)
    return module


@torch.no_grad()
def prepare(
    model: CCNet,
    device: torch.device,
    precision: str = "fp32",
    compiled: bool = False,
    images: int = MIN_IMAGES_FOR_KERNELS,
) -> nn.Module:
    """A copy of a model for inference on the device, its weights folded in float64 and rounded once.

    precision is fp32, bf16 or fp16; compiled (see `compiles`) lets torch compile it at the first image of a size, and
    images is how many all processes together will see.
    """
    dtype = PRECISIONS[precision]
    here = device.type == "cpu"
    engine = Engine(model, dtype, here and fuses(dtype), images if here and not compiled else 0).to(device).eval()
    engine.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if here and images < MIN_IMAGES_FOR_KERNELS:
        engine.choose_attention("gemm")
    return cast(nn.Module, torch.compile(engine)) if compiled else engine


def compiles(choice: str, device: torch.device, images: int) -> bool:
    """Whether to compile for this many images: off, on, or auto, which does for many of them where it can.

    InputError for an unknown choice, and for on where it cannot be had.
    """
    if choice not in COMPILE:
        raise InputError(f"option --compile {choice}", "unknown", f"use {', '.join(COMPILE)}")
    if choice == "off":
        return False
    why = _obstacle(device)
    if choice == "on" and why:
        raise InputError("option --compile on", why, "leave it out")
    return not why and (choice == "on" or images >= MIN_IMAGES_TO_COMPILE)


def _obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "brings nothing on the CPU, whose operators are fused without it"
    if find_spec("triton") is None:
        return "torch compiles for CUDA with Triton, which is not installed"
    compilers = (os.environ.get("CC"), "gcc", "clang")
    if not any(shutil.which(name) for name in compilers if name):
        return "Triton needs a C compiler, and there is none"
    return None


def fold_conv(conv: nn.Conv2d, norm: Any = None) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of a convolution and the batch norm after it as one convolution."""
    weight = conv.weight.double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
    if norm is None:
        return weight, bias
    scale: Tensor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return weight * scale[:, None, None, None], (bias - norm.running_mean.double()) * scale + norm.bias.double()


def slope(act: nn.Module | None) -> float | None:
    """What an activation multiplies negative numbers with: 0 for ReLU, None for no activation."""
    if act is None or isinstance(act, nn.Identity):
        return None
    if isinstance(act, nn.ReLU):
        return 0.0
    if isinstance(act, nn.LeakyReLU):
        return float(act.negative_slope)
    raise TypeError(f"no such activation in the engine: {act}")


@cache
def fuses(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused operators are here and take tensors of this type."""
    x = torch.zeros(1, 8, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        conv = Convolution(nn.Conv2d(8, 8, 1), act=nn.LeakyReLU(), dtype=dtype, fused=True)
    try:
        conv(x, onto=conv(x))
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.backends.mkldnn.is_available())


def _activate(x: Tensor, slope: float | None) -> Tensor:
    if slope is None:
        return x
    return F.leaky_relu_(x, slope) if slope else x.relu_()
