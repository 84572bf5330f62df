"""Other people's networks, written from their descriptions over plain state dicts, and state dicts drawn at random.

Nothing here is shared with ccnet_cli: convolutions and norms are torch's functions, attention is a loop over pixels'
crosses.
"""

import re

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Draw:
    """A state dict under construction; scales of norms take both signs, as in-place ABN leaves them."""

    def __init__(self, seed: int, counts: bool, signed: bool) -> None:
        self.state: State = {}
        self.random = torch.Generator().manual_seed(seed)
        self.counts = counts
        self.signed = signed

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def conv(self, name: str, outputs: int, inputs: int, kernel: int, bias: bool = False) -> None:
        self.state[f"{name}.weight"] = self.normal(outputs, inputs, kernel, kernel) * (2 / (inputs * kernel**2)) ** 0.5
        if bias:
            self.state[f"{name}.bias"] = self.normal(outputs) * 0.1

    def norm(self, name: str, channels: int) -> None:
        scale = 0.5 + torch.rand(channels, generator=self.random)
        if self.signed:
            scale = scale * torch.where(torch.rand(channels, generator=self.random) < 0.4, -1.0, 1.0)
            scale[0] = 0.0
        self.state[f"{name}.weight"] = scale
        self.state[f"{name}.bias"] = self.normal(channels) * 0.1
        self.state[f"{name}.running_mean"] = self.normal(channels) * 0.1
        self.state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=self.random)
        if self.counts:
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def residual(self, prefix: str, depth: int, width: int, inputs: int) -> int:
        for index, blocks in enumerate(DEPTHS[depth]):
            planes = width * 2**index
            for block in range(blocks):
                name = f"{prefix}layer{index + 1}.{block}"
                outputs = planes if depth == 18 else 4 * planes
                shapes = [(planes, inputs, 3), (planes, planes, 3)]
                if depth > 18:
                    shapes = [(planes, inputs, 1), (planes, planes, 3), (outputs, planes, 1)]
                for number, (out, into, kernel) in enumerate(shapes, 1):
                    self.conv(f"{name}.conv{number}", out, into, kernel)
                    self.norm(f"{name}.bn{number}", out)
                # small last scales keep a deep random network in range, and its attention from being all or nothing
                self.state[f"{name}.bn{len(shapes)}.weight"] *= 0.1
                if block == 0 and (inputs != outputs or index):
                    self.conv(f"{name}.downsample.0", outputs, inputs, 1)
                    self.norm(f"{name}.downsample.1", outputs)
                inputs = outputs
        return inputs

    def attention(self, name: str, channels: int) -> None:
        for part, size in (("query_conv", channels // 8), ("key_conv", channels // 8), ("value_conv", channels)):
            self.conv(f"{name}.{part}", size, channels, 1, bias=True)
        # energies are not scaled: at full size they would make the attention all or nothing, and float32 a coin toss
        self.state[f"{name}.query_conv.weight"] *= 16 / channels


def authors(seed=0, depth=101, width=64, channels=512, classes=19, counts=False, port=False) -> State:
    """A state dict in the layout of the authors' release, or of its plain PyTorch port."""
    draw = Draw(seed, counts, signed=True)
    for number, (out, into) in enumerate(((width, 3), (width, width), (2 * width, width)), 1):
        draw.conv(f"conv{number}", out, into, 3)
        draw.norm(f"bn{number}", out)
    features = draw.residual("", depth, width, 2 * width)
    last = 4 if port else 3
    for name, into in (("conva", features), ("convb", channels), ("bottleneck", features + channels)):
        draw.conv(f"head.{name}.0", channels, into, 3)
        draw.norm(f"head.{name}.1", channels)
    draw.attention("head.cca", channels)
    draw.state["head.cca.gamma"] = torch.tensor([0.7])
    draw.conv(f"head.bottleneck.{last}", classes, channels, 1, bias=True)
    draw.conv("dsn.0", channels, features // 2, 3, bias=True)
    draw.norm("dsn.1", channels)
    draw.conv(f"dsn.{last}", classes, channels, 1, bias=True)
    return draw.state


def mmseg(seed=0, depth=101, width=64, channels=512, classes=19) -> State:
    """A state dict in the layout of mmsegmentation's CCNet on a v1c ResNet."""
    draw = Draw(seed, counts=True, signed=False)
    half = width // 2
    for number, (out, into) in zip((0, 3, 6), ((half, 3), (half, half), (width, half)), strict=True):
        draw.conv(f"backbone.stem.{number}", out, into, 3)
        draw.norm(f"backbone.stem.{number + 1}", out)
    features = draw.residual("backbone.", depth, width, width)
    parts = (("convs.0", features), ("convs.1", channels), ("conv_cat", features + channels))
    for name, into in parts:
        draw.conv(f"decode_head.{name}.conv", channels, into, 3)
        draw.norm(f"decode_head.{name}.bn", channels)
    draw.attention("decode_head.cca", channels)
    draw.state["decode_head.cca.gamma.scale"] = torch.tensor(0.7)
    draw.conv("decode_head.conv_seg", classes, channels, 1, bias=True)
    draw.conv("auxiliary_head.convs.0.conv", channels // 2, features // 2, 3)
    draw.norm("auxiliary_head.convs.0.bn", channels // 2)
    draw.conv("auxiliary_head.conv_seg", classes, channels // 2, 1, bias=True)
    return draw.state


def backbone(kind: str, seed=0, depth=50, width=64) -> State:
    """A ResNet of "mit", "mit 2019", "v1c" or "torchvision", classifier included; mit's is for pixels of 0 to 255."""
    draw = Draw(seed, counts=not kind.startswith("mit"), signed=False)
    half = width // 2
    if kind == "torchvision":
        draw.conv("conv1", width, 3, 7)
        draw.norm("bn1", width)
        features = draw.residual("", depth, width, width)
    else:
        sizes = ((width, 3), (width, width), (2 * width, width))
        if kind == "v1c":
            sizes = ((half, 3), (half, half), (width, half))
        for number, (out, into) in enumerate(sizes):
            conv, norm = (f"stem.{3 * number}", f"stem.{3 * number + 1}")
            if kind.startswith("mit"):
                conv, norm = f"conv{number + 1}", f"bn{number + 1}"
            draw.conv(conv, out, into, 3)
            draw.norm(norm, out)
        if kind == "mit":
            for name, factor in (("conv1.weight", 57), ("bn1.running_mean", 57), ("bn1.running_var", 57**2)):
                draw.state[name] /= factor
        features = draw.residual("", depth, width, sizes[-1][0])
    draw.state["fc.weight"], draw.state["fc.bias"] = draw.normal(10, features), draw.normal(10)
    return draw.state


class Peer:
    """Forward passes over a state dict, in evaluation mode and the dtype of x."""

    def __init__(self, state: State, abn: bool, slope: float, contracted: bool, ceil: bool) -> None:
        self.state = state
        self.abn = abn
        self.slope = slope
        self.contracted = contracted
        self.ceil = ceil

    def conv(self, x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"].to(x)
        bias = self.state.get(f"{name}.bias")
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, None if bias is None else bias.to(x), stride, padding, dilation)

    def norm(self, x: Tensor, name: str) -> Tensor:
        scale, shift, mean, variance = (
            self.state[f"{name}.{part}"].to(x)[:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if self.abn:
            scale = scale.abs() + 1e-5
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def trunk(self, x: Tensor, prefix: str, stem: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        """Features of layers 3 and 4."""
        for number, (conv, norm) in enumerate(stem):
            x = F.relu(self.norm(self.conv(x, f"{prefix}{conv}", stride=1 if number else 2), f"{prefix}{norm}"))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=self.ceil)
        outputs = []
        for layer, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
            found = [re.match(rf"{re.escape(prefix)}layer{layer}\.(\d+)\.", key) for key in self.state]
            for block in sorted({int(match[1]) for match in found if match}):
                first = block == 0
                rate = max(dilation // 2, 1) if first and self.contracted else dilation
                x = self.block(x, f"{prefix}layer{layer}.{block}", stride if first else 1, rate)
            outputs.append(x)
        return outputs[2], outputs[3]

    def block(self, x: Tensor, name: str, stride: int, dilation: int) -> Tensor:
        out = F.relu(self.norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1"))
        out = F.relu(self.norm(self.conv(out, f"{name}.conv2", stride, dilation), f"{name}.bn2"))
        out = self.norm(self.conv(out, f"{name}.conv3"), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return F.relu(out + x)

    def attend(self, x: Tensor, name: str, gamma: Tensor) -> Tensor:
        """One pass over every pixel's cross, line by line of the cross."""
        query, key, value = (self.conv(x, f"{name}.{part}_conv") for part in ("query", "key", "value"))
        height, width = x.shape[2:]
        out = torch.empty_like(value)
        for i in range(height):
            for j in range(width):
                rows = [r for r in range(height) if r != i]
                keys = torch.cat([key[:, :, rows, j], key[:, :, i, :]], dim=2)
                values = torch.cat([value[:, :, rows, j], value[:, :, i, :]], dim=2)
                weights = torch.einsum("nc,ncp->np", query[:, :, i, j], keys).softmax(dim=1)
                out[:, :, i, j] = torch.einsum("np,ncp->nc", weights, values)
        return gamma.to(x) * out + x

    def act(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)

    def head(self, x: Tensor, names: list[tuple[str, str]], cca: str, gamma: Tensor, last: str, passes: int) -> Tensor:
        reduced, after, joined = names
        out = self.act(self.norm(self.conv(x, reduced[0]), reduced[1]))
        for _ in range(passes):
            out = self.attend(out, cca, gamma)
        out = self.act(self.norm(self.conv(out, after[0]), after[1]))
        out = self.act(self.norm(self.conv(torch.cat([x, out], 1), joined[0]), joined[1]))
        return self.conv(out, last)


DEEP = [(f"conv{n}", f"bn{n}") for n in (1, 2, 3)]
V1C = [(f"stem.{n}", f"stem.{n + 1}") for n in (0, 3, 6)]


@torch.no_grad()
def authors_forward(
    state: State, x: Tensor, passes: int, abn: bool = True, port: bool = False
) -> tuple[Tensor, Tensor]:
    """Main and auxiliary scores of the authors' network; abn False leaves the conversion out."""
    peer = Peer(state, abn=abn, slope=0.0 if port else 0.01, contracted=False, ceil=True)
    c3, c4 = peer.trunk(x, "", DEEP)
    last = 4 if port else 3
    names = [(f"head.{name}.0", f"head.{name}.1") for name in ("conva", "convb", "bottleneck")]
    main = peer.head(c4, names, "head.cca", state["head.cca.gamma"], f"head.bottleneck.{last}", passes)
    return main, peer.conv(peer.act(peer.norm(peer.conv(c3, "dsn.0"), "dsn.1")), f"dsn.{last}")


@torch.no_grad()
def mmseg_forward(state: State, x: Tensor, passes: int = 2) -> tuple[Tensor, Tensor]:
    """Main and auxiliary scores of mmsegmentation's CCNet."""
    peer = Peer(state, abn=False, slope=0.0, contracted=True, ceil=False)
    c3, c4 = peer.trunk(x, "backbone.", V1C)
    names = [(f"decode_head.{name}.conv", f"decode_head.{name}.bn") for name in ("convs.0", "convs.1", "conv_cat")]
    gamma = state["decode_head.cca.gamma.scale"]
    main = peer.head(c4, names, "decode_head.cca", gamma, "decode_head.conv_seg", passes)
    name = "auxiliary_head.convs.0"
    hidden = peer.act(peer.norm(peer.conv(c3, f"{name}.conv"), f"{name}.bn"))
    return main, peer.conv(hidden, "auxiliary_head.conv_seg")


@torch.no_grad()
def backbone_forward(state: State, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Features of layers 3 and 4 of a ResNet with the strides of its last two layers turned into dilation."""
    stem = {"torchvision": DEEP[:1], "v1c": V1C}.get(kind, DEEP)
    return Peer(state, abn=False, slope=0.0, contracted=True, ceil=False).trunk(x, "", stem)
