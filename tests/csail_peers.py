"""MIT CSAIL's encoders and decoders: state dicts by their names, and their scores from these dicts."""

import torch
from head_peers import CHANNELS, CLASSES, resize, trunk
from other_peers import Plain, PlainDraw, pooled
from peers import DEEP, State
from torch import Tensor

BINS = (1, 2, 3, 6)


def csail(arch: str, depth: int = 50, width: int = 8) -> tuple[State, State]:
    """An encoder's and a decoder's state dict; arch is c1, ppm, with _deepsup or without, or upernet."""
    d = PlainDraw(0, counts=True, signed=False)
    last = d.residual("", depth, width, d.stem(DEEP, width))
    encoder, d.state = d.state, {}
    if arch.startswith("c1"):
        d.seq("cbr", last // 4, last, 3)
        d.conv("conv_last", CLASSES, last // 4, 1, bias=True)
    elif arch.startswith("ppm"):
        for i in range(4):
            d.seq(f"ppm.{i}", CHANNELS, last, at=1)
        d.seq("conv_last", CHANNELS, last + 4 * CHANNELS, 3)
        d.conv("conv_last.4", CLASSES, CHANNELS, 1, bias=True)
    else:
        for i in range(4):
            d.seq(f"ppm_conv.{i}", 2 * CHANNELS, last)
        d.seq("ppm_last_conv", CHANNELS, last + 8 * CHANNELS, 3)
        for i, inputs in enumerate((last // 8, last // 4, last // 2)):
            d.seq(f"fpn_in.{i}", CHANNELS, inputs)
            d.seq(f"fpn_out.{i}.0", CHANNELS, CHANNELS, 3)
        d.seq("conv_last.0", CHANNELS, 4 * CHANNELS, 3)
        d.conv("conv_last.1", CLASSES, CHANNELS, 1, bias=True)
    if arch.endswith("_deepsup"):
        d.seq("cbr_deepsup", last // 4, last // 2, 3)
        d.conv("conv_last_deepsup", CLASSES, last // 4, 1, bias=True)
    for state in (encoder, d.state):
        for key in [key for key in state if key.endswith("running_mean")]:
            norm = key.removesuffix("running_mean")
            state |= {f"{norm}_tmp_running_mean": state[key] * 3, f"{norm}_tmp_running_var": state[key] * 2}
            state[f"{norm}_running_iter"] = torch.ones(1)
    return encoder, d.state


@torch.no_grad()
def csail_forward(arch: str, parts: tuple[State, State], x: Tensor) -> tuple[Tensor, ...]:
    """Main and, with deep supervision, auxiliary scores."""
    encoder, p = (Plain(state, abn=False, slope=0.0, contracted=True, ceil=False) for state in parts)
    maps = trunk(encoder, x, "", DEEP, 32 if arch == "upernet" else 8, "mit")
    if arch.startswith("c1"):
        main = p.conv(p.seq(maps[3], "cbr"), "conv_last")
    elif arch.startswith("ppm"):
        small = [p.seq(pooled(maps[3], bins), f"ppm.{i}", at=1) for i, bins in enumerate(BINS)]
        joined = torch.cat([maps[3], *(resize(each, maps[3], False) for each in small)], 1)
        main = p.conv(p.seq(joined, "conv_last"), "conv_last.4")
    else:
        # here maps are enlarged before their convolution
        large = [p.seq(resize(pooled(maps[3], bins), maps[3], False), f"ppm_conv.{i}") for i, bins in enumerate(BINS)]
        f = p.seq(torch.cat([maps[3], *large], 1), "ppm_last_conv")
        outs = [f]
        for i in (2, 1, 0):
            lateral = p.seq(maps[i], f"fpn_in.{i}")
            f = lateral + resize(f, lateral, False)
            outs.insert(0, p.seq(f, f"fpn_out.{i}.0"))
        joined = torch.cat([resize(each, outs[0], False) for each in outs], 1)
        main = p.conv(p.seq(joined, "conv_last.0"), "conv_last.1")
    if not arch.endswith("_deepsup"):
        return (main,)
    return main, p.conv(p.seq(maps[2], "cbr_deepsup"), "conv_last_deepsup")
