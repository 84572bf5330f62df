"""Layers that backbones and heads share."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

# what a part's fold is given: make(conv, norm=None, act=None, widths=None, dtype=None) -> the three as one module. It
# is called as module(*inputs, onto=None), works on the concatenation of inputs of these widths, and adds to onto
Make = Callable[..., Any]


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size at stride 1, and its batch normalisation."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def conv_norm_act(inputs: int, outputs: int, activation: str, bias: bool = False) -> list[nn.Module]:
    """A 3x3 convolution, its batch normalisation, and "relu" or "leaky_relu" (slope 0.01)."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    act = nn.ReLU(inplace=True) if activation == "relu" else nn.LeakyReLU(0.01, inplace=True)
    return [conv, nn.BatchNorm2d(outputs), act]


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
