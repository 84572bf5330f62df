"""Other people's networks with other heads: state dicts by their names, and their scores from these dicts alone."""

import torch
from peers import V1C, Draw, Peer, State
from renderings import dense, half, pooled
from torch import Tensor
from torch.nn import functional as F

CHANNELS, CLASSES = 16, 5


def resize(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=align_corners)


class Mmseg(Peer):
    """mmsegmentation's modules of a convolution (conv) and a norm (bn), below decode_head."""

    def module(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        name = f"decode_head.{name}"
        return F.relu(self.norm(self.conv(x, f"{name}.conv", dilation=dilation), f"{name}.bn"))

    def plain(self, x: Tensor, name: str) -> Tensor:
        return self.conv(x, f"decode_head.{name}")

    def separable(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        own = f"decode_head.{name}.depthwise_conv"
        weight = self.state[f"{own}.conv.weight"]
        x = F.conv2d(x, weight, None, 1, dilation, dilation, len(weight))
        return self.module(F.relu(self.norm(x, f"{own}.bn")), f"{name}.pointwise_conv")


class MmsegDraw(Draw):
    def module(self, name: str, outputs: int, inputs: int, kernel: int = 3) -> None:
        self.conv(f"decode_head.{name}.conv", outputs, inputs, kernel)
        self.norm(f"decode_head.{name}.bn", outputs)

    def plain(self, name: str, outputs: int, inputs: int) -> None:
        self.conv(f"decode_head.{name}", outputs, inputs, 1, bias=True)

    def separable(self, name: str, outputs: int, inputs: int) -> None:
        self.conv(f"decode_head.{name}.depthwise_conv.conv", inputs, 1, 3)
        self.norm(f"decode_head.{name}.depthwise_conv.bn", inputs)
        self.module(f"{name}.pointwise_conv", outputs, inputs, 1)

    def tensor(self, name: str, *shape: int, scale: float = 0.3) -> None:
        self.state[f"decode_head.{name}"] = self.normal(*shape) * scale


def draw_wrapper(d: MmsegDraw, c: int, maps: list[int]) -> None:
    d.module("convs.0", c, maps[3])
    d.module("convs.1", c, c)
    d.module("conv_cat", c, maps[3] + c)


def wrapper(p: Mmseg, maps: list[Tensor], block) -> Tensor:
    out = p.module(block(p.module(maps[3], "convs.0")), "convs.1")
    return p.module(torch.cat([maps[3], out], 1), "conv_cat")


def draw_nonlocal(d, c, maps, pooled=False):
    draw_wrapper(d, c, maps)
    inner = "0.conv" if pooled else "conv"
    for name in (f"g.{inner}", "theta.conv", f"phi.{inner}"):
        d.plain(f"nl_block.{name}", c // 4, c)
    d.module("nl_block.conv_out", c, c // 4, 1)


def nonlocal_(p, maps, align, pooled=False):
    inner = "0.conv" if pooled else "conv"

    def block(x):
        value, query, key = (p.plain(x, f"nl_block.{name}") for name in (f"g.{inner}", "theta.conv", f"phi.{inner}"))
        if pooled:
            value, key = half(value), half(key)
        out = p.conv(dense(query, key, value, query.shape[1] ** -0.5), "decode_head.nl_block.conv_out.conv")
        return x + p.norm(out, "decode_head.nl_block.conv_out.bn")

    return wrapper(p, maps, block)


def draw_gc(d, c, maps):
    draw_wrapper(d, c, maps)
    d.plain("gc_block.conv_mask", 1, c)
    d.plain("gc_block.channel_add_conv.0", c // 4, c)
    d.tensor("gc_block.channel_add_conv.1.weight", c // 4, 1, 1)
    d.tensor("gc_block.channel_add_conv.1.bias", c // 4, 1, 1)
    d.plain("gc_block.channel_add_conv.3", c, c // 4)


def gc(p, maps, align):
    def block(x):
        weights = p.plain(x, "gc_block.conv_mask").flatten(2).softmax(2)
        mean = (x.flatten(2) * weights).sum(2)[:, :, None, None]
        name = "decode_head.gc_block.channel_add_conv.1"
        hidden = F.layer_norm(
            p.plain(mean, "gc_block.channel_add_conv.0"),
            p.state[f"{name}.weight"].shape,
            p.state[f"{name}.weight"],
            p.state[f"{name}.bias"],
        )
        return x + p.plain(F.relu(hidden), "gc_block.channel_add_conv.3")

    return wrapper(p, maps, block)


def draw_psp(d, c, maps):
    for i in range(4):
        d.module(f"psp_modules.{i}.1", c, maps[3], 1)
    d.module("bottleneck", c, maps[3] + 4 * c)


def psp(p, maps, align):
    x = maps[3]
    small = [p.module(pooled(x, bins), f"psp_modules.{i}.1") for i, bins in enumerate((1, 2, 3, 6))]
    return p.module(torch.cat([x, *(resize(each, x, align) for each in small)], 1), "bottleneck")


def draw_aspp(d, c, maps, plus=False):
    d.module("image_pool.1", c, maps[3], 1)
    d.module("aspp_modules.0", c, maps[3], 1)
    for i in (1, 2, 3):
        (d.separable if plus else d.module)(f"aspp_modules.{i}", c, maps[3])
    d.module("bottleneck", c, 5 * c)
    if plus:
        d.module("c1_bottleneck", 6, maps[0], 1)
        d.separable("sep_bottleneck.0", c, c + 6)
        d.separable("sep_bottleneck.1", c, c)


def aspp(p, maps, align, plus=False):
    x = maps[3]
    mean = p.module(x.mean((2, 3), keepdim=True), "image_pool.1").expand(-1, -1, *x.shape[2:])
    branch = p.separable if plus else p.module
    branches = [branch(x, f"aspp_modules.{i}", rate) for i, rate in ((1, 12), (2, 24), (3, 36))]
    out = p.module(torch.cat([mean, p.module(x, "aspp_modules.0"), *branches], 1), "bottleneck")
    if not plus:
        return out
    fine = p.module(maps[0], "c1_bottleneck")
    out = torch.cat([resize(out, fine, align), fine], 1)
    return p.separable(p.separable(out, "sep_bottleneck.0"), "sep_bottleneck.1")


def draw_danet(d, c, maps):
    for name in ("pam", "cam"):
        d.module(f"{name}_in_conv", c, maps[3])
        d.module(f"{name}_out_conv", c, c)
        d.plain(f"{name}_conv_seg", CLASSES, c)
        d.state[f"decode_head.{name}.gamma.scale"] = torch.tensor(0.7)
    for name in ("query", "key"):
        d.plain(f"pam.{name}_project", 4, c)
    d.plain("pam.value_project", c, c)


def danet(p, maps, align):
    gamma = {name: p.state[f"decode_head.{name}.gamma.scale"] for name in ("pam", "cam")}
    x = p.module(maps[3], "pam_in_conv")
    query, key, value = (p.plain(x, f"pam.{name}_project") for name in ("query", "key", "value"))
    pam = p.module(gamma["pam"] * dense(query, key, value, 1.0) + x, "pam_out_conv")
    x = p.module(maps[3], "cam_in_conv")
    energy = x.flatten(2) @ x.flatten(2).transpose(1, 2)
    weights = (energy.amax(2, keepdim=True) - energy).softmax(2)
    cam = p.module(gamma["cam"] * (weights @ x.flatten(2)).view_as(x) + x, "cam_out_conv")
    return pam + cam


def draw_isa(d, c, maps):
    d.module("in_conv", c, maps[3])
    for name in ("global_relation", "local_relation"):
        for part in ("key_project", "query_project"):
            d.module(f"{name}.{part}.0", 6, c, 1)
            d.module(f"{name}.{part}.1", 6, 6, 1)
        d.plain(f"{name}.value_project", c, c)
        d.module(f"{name}.output_project", c, c, 1)
    d.module("out_conv", c, 2 * c, 1)


def isa(p, maps, align):
    x = residual = p.module(maps[3], "in_conv")
    H, W = x.shape[2:]
    tall, wide = -H % 8, -W % 8
    x = F.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))

    def relate(own, name):
        key, query = (
            p.module(p.module(own, f"{name}.{part}.0"), f"{name}.{part}.1") for part in ("key_project", "query_project")
        )
        gathered = dense(query, key, p.plain(own, f"{name}.value_project"), query.shape[1] ** -0.5)
        return p.module(gathered, f"{name}.output_project")

    far = torch.empty_like(x)
    for i in range(8):
        for j in range(8):
            far[:, :, i::8, j::8] = relate(x[:, :, i::8, j::8], "global_relation")
    near = torch.empty_like(x)
    for i in range(0, x.shape[2], 8):
        for j in range(0, x.shape[3], 8):
            near[:, :, i : i + 8, j : j + 8] = relate(far[:, :, i : i + 8, j : j + 8], "local_relation")
    near = near[:, :, tall // 2 : tall // 2 + H, wide // 2 : wide // 2 + W]
    return p.module(torch.cat([near, residual], 1), "out_conv")


def draw_encnet(d, c, maps, lateral=False):
    d.module("bottleneck", c, maps[3])
    if lateral:
        d.module("lateral_convs.0", c, maps[1], 1)
        d.module("lateral_convs.1", c, maps[2], 1)
        d.module("fusion", c, 3 * c)
    d.module("enc_module.encoding_project", c, c, 1)
    d.tensor("enc_module.encoding.0.codewords", 7, c)
    d.tensor("enc_module.encoding.0.scale", 7)
    d.norm("decode_head.enc_module.encoding.1", 7)
    d.tensor("enc_module.fc.0.weight", c, c)
    d.tensor("enc_module.fc.0.bias", c)
    d.tensor("se_layer.weight", CLASSES, c)
    d.tensor("se_layer.bias", CLASSES)


def encnet(p, maps, align, lateral=False):
    x = p.module(maps[3], "bottleneck")
    if lateral:
        sides = [resize(p.module(maps[i + 1], f"lateral_convs.{i}"), x, align) for i in (0, 1)]
        x = p.module(torch.cat([x, *sides], 1), "fusion")
    own = {key.rpartition("enc_module.")[2]: tensor for key, tensor in p.state.items() if "enc_module" in key}
    positions = p.module(x, "enc_module.encoding_project").flatten(2).transpose(1, 2)
    rest = positions[:, :, None] - own["encoding.0.codewords"]
    weights = (own["encoding.0.scale"] * rest.square().sum(-1)).softmax(-1)
    encoded = p.norm((weights[..., None] * rest).sum(1)[..., None], "decode_head.enc_module.encoding.1")[..., 0]
    gate = F.linear(F.relu(encoded).mean(1), own["fc.0.weight"], own["fc.0.bias"]).sigmoid()
    return F.relu(x + x * gate[:, :, None, None])


def draw_upernet(d, c, maps):
    draw_psp(d, c, maps)
    for i in range(3):
        d.module(f"lateral_convs.{i}", c, maps[i], 1)
        d.module(f"fpn_convs.{i}", c, c)
    d.module("fpn_bottleneck", c, 4 * c)


def upernet(p, maps, align):
    laterals = [p.module(maps[i], f"lateral_convs.{i}") for i in range(3)]
    laterals.append(psp(p, maps, align))
    for i in (3, 2, 1):
        laterals[i - 1] = laterals[i - 1] + resize(laterals[i], laterals[i - 1], align)
    outs = [p.module(laterals[i], f"fpn_convs.{i}") for i in range(3)]
    outs.append(laterals[3])
    return p.module(torch.cat([resize(each, outs[0], align) for each in outs], 1), "fpn_bottleneck")


# name: what draws its decode head, what computes it up to the classifier, its stride
MMSEG = {
    "FCN": (draw_wrapper, lambda p, maps, align: wrapper(p, maps, lambda x: x), 8),
    "non-local network": (draw_nonlocal, nonlocal_, 8),
    "non-local network with sub-sampling": (
        lambda *a: draw_nonlocal(*a, pooled=True),
        lambda *a: nonlocal_(*a, pooled=True),
        8,
    ),
    "GCNet": (draw_gc, gc, 8),
    "PSPNet": (draw_psp, psp, 8),
    "DeepLabv3": (draw_aspp, aspp, 8),
    "DeepLabv3+": (lambda *a: draw_aspp(*a, plus=True), lambda *a: aspp(*a, plus=True), 8),
    "DANet": (draw_danet, danet, 8),
    "ISANet": (draw_isa, isa, 8),
    "EncNet": (draw_encnet, encnet, 8),
    "EncNet, lateral": (lambda *a: draw_encnet(*a, lateral=True), lambda *a: encnet(*a, lateral=True), 8),
    "UPerNet": (draw_upernet, upernet, 32),
    "plain FCN": (
        lambda d, c, maps: d.module("convs.0", c, maps[3]),
        lambda p, maps, align: p.module(maps[3], "convs.0"),
        8,
    ),
}


def mmseg(name: str, depth: int = 50, width: int = 8, seed: int = 0) -> State:
    """A state dict of mmsegmentation's network of that name, on a v1c ResNet."""
    d = MmsegDraw(seed, counts=True, signed=False)
    half_ = width // 2
    for number, (out, into) in zip((0, 3, 6), ((half_, 3), (half_, half_), (width, half_)), strict=True):
        d.conv(f"backbone.stem.{number}", out, into, 3)
        d.norm(f"backbone.stem.{number + 1}", out)
    last = d.residual("backbone.", depth, width, width)
    maps = [last // 8, last // 4, last // 2, last]
    MMSEG[name][0](d, CHANNELS, maps)
    d.plain("conv_seg", CLASSES, CHANNELS)
    d.conv("auxiliary_head.convs.0.conv", 6, maps[2], 3)
    d.norm("auxiliary_head.convs.0.bn", 6)
    d.conv("auxiliary_head.conv_seg", CLASSES, 6, 1, bias=True)
    return d.state


@torch.no_grad()
def mmseg_forward(name: str, state: State, x: Tensor, align: bool = False) -> tuple[Tensor, Tensor]:
    """Main and auxiliary scores."""
    stride = MMSEG[name][2]
    basic = "backbone.layer1.0.conv3.weight" not in state
    p = Mmseg(state, abn=False, slope=0.0, contracted=True, ceil=False)
    maps = trunk(p, x, "backbone.", V1C, stride, "mmseg" if basic else "contracted")
    main = p.plain(MMSEG[name][1](p, maps, align), "conv_seg")
    hidden = F.relu(p.norm(p.conv(maps[2], "auxiliary_head.convs.0.conv"), "auxiliary_head.convs.0.bn"))
    return main, p.conv(hidden, "auxiliary_head.conv_seg")


def trunk(p: Peer, x: Tensor, prefix: str, stem, stride: int = 8, rule: str = "dilated", grid=None) -> list[Tensor]:
    """All four maps. rule: the dilation of the first block of a layer that has lost its stride, and of basic blocks."""
    for number, (conv, norm) in enumerate(stem):
        x = F.relu(p.norm(p.conv(x, f"{prefix}{conv}", stride=1 if number else 2), f"{prefix}{norm}"))
    x, maps, rate, now = F.max_pool2d(x, 3, 2, 1, ceil_mode=p.ceil), [], 1, 4
    for layer in (1, 2, 3, 4):
        step, before = (1 if layer == 1 else 2), rate
        if step == 2 and now == stride:
            rate, step = rate * 2, 1
        now *= step
        own = [key for key in p.state if f"{prefix}layer{layer}." in key and key.endswith("conv1.weight")]
        blocks = sorted({int(key.split(".")[-3]) for key in own})
        for block in blocks:
            name = f"{prefix}layer{layer}.{block}"
            first = rate if block or rule == "dilated" else before
            if grid and layer == 4:
                first = grid[block]
            x = _block(p, x, name, 1 if block else step, first, rate, rule)
        maps.append(x)
    return maps


def _block(p: Peer, x: Tensor, name: str, stride: int, first: int, rate: int, rule: str) -> Tensor:
    if f"{name}.conv3.weight" in p.state:
        return p.block(x, name, stride, first)
    second = {"mmseg": 1, "mit": rate}.get(rule, first)
    out = F.relu(p.norm(p.conv(x, f"{name}.conv1", stride, first), f"{name}.bn1"))
    out = p.norm(p.conv(out, f"{name}.conv2", 1, second), f"{name}.bn2")
    if f"{name}.downsample.0.weight" in p.state:
        x = p.norm(p.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
    return F.relu(out + x)
