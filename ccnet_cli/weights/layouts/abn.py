"""In-place activated batch norm (ABN), which scales by abs(w) + 1e-5: its scales to plain ones and back."""

import torch
from torch import Tensor

from ccnet_cli.errors import notice
from ccnet_cli.weights.layouts.network import is_scale

# what in-place ABN adds to the absolute value of its scale
ABN_EPS = 1e-5


def take_absolute_scales(weights: dict[str, Tensor]) -> str:
    """Turn the scales of in-place ABN into plain ones, and say how many there are."""
    scales = [key for key in weights if is_scale(key, weights)]
    for key in scales:
        weights[key] = weights[key].abs() + ABN_EPS
    return f"{len(scales)} batch-norm scales w taken as abs(w) + 1e-5, as in-place ABN does"


def give_abn_scales(weights: dict[str, Tensor]) -> None:
    """Turn plain scales into those of in-place ABN; a notice says how many are moved into convolutions."""
    moved = 0
    for key in [key for key in weights if is_scale(key, weights)]:
        moved += _move_small_scales(weights, key)
        weights[key] = scale_before_abs(weights[key])
    if moved:
        notice(f"{moved} batch-norm scales below 1e-5 moved into the convolutions before them")


def _move_small_scales(state: dict[str, Tensor], key: str) -> int:
    """Move sign and size of scales below 1e-5 into the convolution before the norm; the number of such scales."""
    scale, least = state[key], torch.tensor(ABN_EPS, dtype=state[key].dtype)
    small = scale < least
    if not small.any():
        return 0
    factor = torch.where(small, scale.sign() * (scale.abs() / least).clamp(max=1), torch.ones_like(scale))
    norm = key.removesuffix(".weight")
    conv = _convolution_before(norm)
    state[f"{conv}.weight"] = state[f"{conv}.weight"] * factor.view(-1, 1, 1, 1)
    for name in (f"{conv}.bias", f"{norm}.running_mean"):
        if name in state:
            state[name] = state[name] * factor
    state[key] = torch.where(small, scale.abs().clamp(min=ABN_EPS), scale)
    return int(small.sum())


def _convolution_before(norm: str) -> str:
    """The convolution whose output a norm of our ResNets and heads takes: conv2 for bn2, else the layer before."""
    parent, _, name = norm.rpartition(".")
    return f"{parent}.{name.replace('bn', 'conv')}" if name.startswith("bn") else f"{parent}.{int(name) - 1}"


def scale_before_abs(scale: Tensor) -> Tensor:
    """The w with w + 1e-5 == scale in the scale's own arithmetic, for scales of at least 1e-5.

    Between 2**-14 and 2**-13 the sum is a tie in float32, and every other scale is the sum of no w: off by one bit.
    """
    w = (scale - ABN_EPS).clamp(min=0)
    for _ in range(2):
        high, low = w + ABN_EPS > scale, w + ABN_EPS < scale
        w = torch.where(high, w.nextafter(torch.zeros_like(w)), torch.where(low, w.nextafter(scale), w))
    return w
