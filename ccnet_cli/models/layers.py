"""Layers that backbones and heads share."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# what a part's fold is given: make(conv, norm=None, act=None, widths=None, dtype=None) -> the three as one module. It
# is called as module(*inputs, onto=None), works on the concatenation of inputs of these widths, and adds to onto
Make = Callable[..., Any]


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size at stride 1, and its batch normalisation."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def conv_norm_act(
    inputs: int, outputs: int, activation: str, bias: bool = False, kernel: int = 3, dilation: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the size, its batch normalisation, and the activation of that name."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=bias)
    return [conv, nn.BatchNorm2d(outputs), activate(activation)]


def separable(inputs: int, outputs: int, activation: str, dilation: int = 1) -> list[nn.Module]:
    """A 3x3 convolution of each channel by itself and a 1x1 one, each with its norm and activation."""
    conv = nn.Conv2d(inputs, inputs, 3, padding=dilation, dilation=dilation, groups=inputs, bias=False)
    return [conv, nn.BatchNorm2d(inputs), activate(activation), *conv_norm_act(inputs, outputs, activation, kernel=1)]


def activate(name: str) -> nn.Module:
    """ "relu", "leaky_relu" (slope 0.01) or "none"."""
    if name == "none":
        return nn.Identity()
    return nn.ReLU(inplace=True) if name == "relu" else nn.LeakyReLU(0.01, inplace=True)


def exactly(x: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast, for sums that half precision would spoil."""
    device = "cuda" if x.is_cuda else "cpu"
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def resize(x_BCHW: Tensor, like_BCHW: Tensor, align_corners: bool) -> Tensor:
    """Bilinear, to the height and width of another map."""
    return F.interpolate(x_BCHW, like_BCHW.shape[2:], mode="bilinear", align_corners=align_corners)


def initialise(module: nn.Module) -> None:
    """Kaiming normal convolutions for training from scratch (ICCV 2015, He et al., equation 14, fan out)."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


class FoldedStages(nn.Module):
    """Stages of folded layers, for inference: image -> the maps of the last `levels` stages, the deepest last."""

    def __init__(self, stages: Sequence[Sequence[nn.Module]], levels: int) -> None:
        super().__init__()
        count = len(stages) - levels + 1
        # in one sequence, maps that nobody takes are freed at once
        self.trunk = nn.Sequential(*(layer for stage in stages[:count] for layer in stage))
        self.rest = nn.ModuleList(nn.Sequential(*stage) for stage in stages[count:])

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps, (B, C, h, w) each."""
        maps = [self.trunk(x)]
        for stage in self.rest:
            maps.append(stage(maps[-1]))
        return maps


class Head(nn.Module):
    """A head of layers that fold by themselves; the network sets align_corners to that of its preset."""

    levels = 1
    align_corners = True

    def fold(self, make: Make) -> nn.Module:
        """Itself for inference."""
        return fold_layers(self, make)


class Classify(nn.Sequential):
    """Dropout of whole channels, and class scores (B, K, h, w)."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__(nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1))

    def fold(self, make: Make) -> nn.Module:
        """Itself for inference."""
        return FoldedClassify(make(self[1], dtype="fp32"))


class FoldedClassify(nn.Module):
    """Class scores in float32: those that lie close together would be equal in bfloat16."""

    def __init__(self, classify: nn.Module) -> None:
        super().__init__()
        self.classify = classify

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, K, h, w)."""
        scores: Tensor = self.classify(x.float())
        return scores


def fold_layers(module: nn.Module, make: Make) -> nn.Module:
    """A copy for inference in which a convolution and the norm and activation after it in a sequence are one layer.

    Parts with a `fold` of their own fold themselves; other parameters stay in float32.
    """
    folded = copy.deepcopy(module)
    _fold_children(folded, make)
    return folded


def _fold_children(module: nn.Module, make: Make) -> None:
    if type(module) is nn.Sequential:
        layers = list(_join(list(module), make))
        module._modules.clear()
        module.extend(layers)
        return
    for name, child in list(module.named_children()):
        setattr(module, name, _fold(child, make))


def _fold(module: nn.Module, make: Make) -> nn.Module:
    own = getattr(module, "fold", None)
    if own is None and not isinstance(module, nn.Conv2d):
        _fold_children(module, make)
        return module
    folded: nn.Module = make(module) if own is None else own(make)
    return folded


def _join(layers: Sequence[nn.Module], make: Make) -> Iterator[nn.Module]:
    """The layers of a sequence, those that belong together as one."""
    rest = [layer for layer in layers if not isinstance(layer, nn.Dropout | nn.Dropout2d)]
    while rest:
        first = rest.pop(0)
        if not isinstance(first, nn.Conv2d):
            yield _fold(first, make)
            continue
        norm = rest.pop(0) if rest and isinstance(rest[0], nn.BatchNorm2d) else None
        act = rest.pop(0) if rest and isinstance(rest[0], nn.ReLU | nn.LeakyReLU | nn.Identity) else None
        yield make(first, norm, act)
