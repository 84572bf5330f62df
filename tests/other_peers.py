"""Networks of other projects than mmsegmentation: state dicts by their names, and their scores from these dicts."""

import torch
from head_peers import CHANNELS, CLASSES, resize, trunk
from peers import DEEP, Draw, Peer, State
from renderings import dense, half, pooled
from torch import Tensor
from torch.nn import functional as F


class Plain(Peer):
    """Sequences of a convolution and a norm at indices; abn norms have their activation inside."""

    def seq(self, x: Tensor, name: str, at: int = 0, dilation: int = 1, norm: str = "") -> Tensor:
        conv = f"{name}.{at}"
        return self.act(self.norm(self.conv(x, conv, dilation=dilation), norm or f"{name}.{at + 1}"))


class PlainDraw(Draw):
    def seq(self, name: str, outputs: int, inputs: int, kernel: int = 1, at: int = 0, **options) -> None:
        self.conv(f"{name}.{at}", outputs, inputs, kernel, bias=options.get("bias", False))
        self.norm(options.get("norm") or f"{name}.{at + 1}", outputs)

    def stem(self, names, width: int, deep: bool = True) -> int:
        sizes = ((width, 3), (width, width), (2 * width, width)) if deep else ((width, 3),)
        for (conv, norm), (out, into) in zip(names, sizes, strict=True):
            self.conv(conv, out, into, 3 if deep else 7)
            self.norm(norm, out)
        return sizes[-1][0]


def draw_aux(
    d: PlainDraw, name: str, inputs: int, last: int, width: int = 6, bias: bool = True, norm: str = ""
) -> None:
    d.seq(name, width, inputs, 3, bias=bias, norm=norm)
    d.conv(f"{name}.{last}", CLASSES, width, 1, bias=True)


def aux(p: Plain, x: Tensor, name: str, last: int, norm: str = "") -> Tensor:
    return p.conv(p.seq(x, name, norm=norm), f"{name}.{last}")


def draw_toolbox(d, last, which, abn):
    c = CHANNELS
    if which == "PSPNet":
        for i in range(4):
            d.seq(f"head.0.stages.{i}", c, last, at=1)
        d.seq("head.0.bottleneck", c, last + 4 * c, 3)
    else:
        d.seq("head.0.conv1", 6, last, at=1)
        for i, kernel in ((2, 1), (3, 3), (4, 3), (5, 3)):
            d.seq(f"head.0.conv{i}", 6, last, kernel)
        d.seq("head.0.bottleneck", c, 30)
    d.conv("head.1", CLASSES, c, 1, bias=True)
    draw_aux(d, "dsn", last // 2, 3 if abn else 4)


def toolbox(p, maps, which, abn):
    x = maps[3]
    if which == "PSPNet":
        small = [p.seq(pooled(x, bins), f"head.0.stages.{i}", at=1) for i, bins in enumerate((1, 2, 3, 6))]
        joined = [*(resize(each, x, True) for each in small), x]
    else:
        mean = p.seq(x.mean((2, 3), keepdim=True), "head.0.conv1", at=1).expand(-1, -1, *x.shape[2:])
        rates = ((2, 1), (3, 12), (4, 24), (5, 36))
        joined = [mean, *(p.seq(x, f"head.0.conv{i}", dilation=rate) for i, rate in rates)]
    out = p.conv(p.seq(torch.cat(joined, 1), "head.0.bottleneck"), "head.1")
    return out, aux(p, maps[2], "dsn", 3 if abn else 4)


def draw_torchvision(d, last, which):
    if which == "FCN":
        draw_aux(d, "classifier", last, 4, CHANNELS, bias=False)
    else:
        d.seq("classifier.0.convs.0", 8, last)
        for i in (1, 2, 3):
            d.seq(f"classifier.0.convs.{i}", 8, last, 3)
        d.seq("classifier.0.convs.4", 8, last, at=1)
        d.seq("classifier.0.project", CHANNELS, 40)
        d.seq("classifier", CHANNELS, CHANNELS, 3, at=1)
        d.conv("classifier.4", CLASSES, CHANNELS, 1, bias=True)
    draw_aux(d, "aux_classifier", last // 2, 4, bias=False)


def torchvision(p, maps, which):
    x = maps[3]
    second = aux(p, maps[2], "aux_classifier", 4)
    if which == "FCN":
        return aux(p, x, "classifier", 4), second
    rates = ((0, 1), (1, 12), (2, 24), (3, 36))
    branches = [p.seq(x, f"classifier.0.convs.{i}", dilation=rate) for i, rate in rates]
    mean = p.seq(x.mean((2, 3), keepdim=True), "classifier.0.convs.4", at=1).expand(-1, -1, *x.shape[2:])
    out = p.seq(torch.cat([*branches, mean], 1), "classifier.0.project")
    return p.conv(p.seq(out, "classifier", at=1), "classifier.4"), second


def draw_semseg(d, last):
    for i in range(4):
        d.seq(f"ppm.features.{i}", CHANNELS, last, at=1)
    draw_aux(d, "cls", last + 4 * CHANNELS, 4, CHANNELS, bias=False)
    draw_aux(d, "aux", last // 2, 4, bias=False)


def semseg(p, maps):
    x = maps[3]
    small = [p.seq(pooled(x, bins), f"ppm.features.{i}", at=1) for i, bins in enumerate((1, 2, 3, 6))]
    joined = torch.cat([x, *(resize(each, x, True) for each in small)], 1)
    return aux(p, joined, "cls", 4), aux(p, maps[2], "aux", 4)


def draw_danet_2018(d, last):
    for a, b in (("conv5a", "conv51"), ("conv5c", "conv52")):
        d.seq(f"head.{a}", CHANNELS, last, 3)
        d.seq(f"head.{b}", CHANNELS, CHANNELS, 3)
    for name, size in (("query_conv", 4), ("key_conv", 4), ("value_conv", CHANNELS)):
        d.conv(f"head.sa.{name}", size, CHANNELS, 1, bias=True)
    d.state["head.sa.gamma"], d.state["head.sc.gamma"] = torch.tensor([0.6]), torch.tensor([0.4])
    for i in (6, 7, 8):
        d.conv(f"head.conv{i}.1", CLASSES, CHANNELS, 1, bias=True)
    d.state["pretrained.fc.weight"], d.state["pretrained.fc.bias"] = d.normal(7, last), d.normal(7)


def danet_2018(p, maps):
    x = p.seq(maps[3], "head.conv5a")
    query, key, value = (p.conv(x, f"head.sa.{name}_conv") for name in ("query", "key", "value"))
    pam = p.seq(p.state["head.sa.gamma"] * dense(query, key, value, 1.0) + x, "head.conv51")
    x = p.seq(maps[3], "head.conv5c")
    energy = x.flatten(2) @ x.flatten(2).transpose(1, 2)
    weights = (energy.amax(2, keepdim=True) - energy).softmax(2)
    cam = p.seq(p.state["head.sc.gamma"] * (weights @ x.flatten(2)).view_as(x) + x, "head.conv52")
    return (p.conv(pam + cam, "head.conv8.1"),)


def draw_encoding(d, last, lateral):
    c = CHANNELS
    d.seq("head.conv5", c, last, 3)
    if lateral:
        d.seq("head.connect.0", c, last // 4)
        d.seq("head.connect.1", c, last // 2)
        d.seq("head.fusion", c, 3 * c, 3)
    d.seq("head.encmodule.encoding", c, c)
    for name, shape in (("3.codewords", (7, c)), ("3.scale", (7,))):
        d.state[f"head.encmodule.encoding.{name}"] = 0.3 * d.normal(*shape)
    d.norm("head.encmodule.encoding.4", 7)
    for name, outputs in (("fc.0", c), ("selayer", CLASSES)):
        d.state[f"head.encmodule.{name}.weight"] = 0.3 * d.normal(outputs, c)
        d.state[f"head.encmodule.{name}.bias"] = 0.3 * d.normal(outputs)
    d.conv("head.conv6.1", CLASSES, c, 1, bias=True)
    draw_aux(d, "auxlayer.conv5", last // 2, 4, bias=False)


def encoding(p, maps, lateral):
    x = p.seq(maps[3], "head.conv5")
    if lateral:
        x = p.seq(torch.cat([x, *(p.seq(maps[i + 1], f"head.connect.{i}") for i in (0, 1))], 1), "head.fusion")
    own, name = p.state, "head.encmodule"
    positions = p.seq(x, f"{name}.encoding").flatten(2).transpose(1, 2)
    rest = positions[:, :, None] - own[f"{name}.encoding.3.codewords"]
    weights = (own[f"{name}.encoding.3.scale"] * rest.square().sum(-1)).softmax(-1)
    encoded = p.norm((weights[..., None] * rest).sum(1)[..., None], f"{name}.encoding.4")[..., 0]
    gate = F.linear(F.relu(encoded).mean(1), own[f"{name}.fc.0.weight"], own[f"{name}.fc.0.bias"]).sigmoid()
    out = F.relu(x + x * gate[:, :, None, None])
    return p.conv(out, "head.conv6.1"), aux(p, maps[2], "auxlayer.conv5", 4)


def draw_context(d, name, inputs, key, value):
    d.seq(f"{name}.f_key", key, inputs, bias=True)
    for part in ("weight", "bias"):
        d.state[f"{name}.f_query.0.{part}"] = d.state[f"{name}.f_key.0.{part}"]
    for part in ("weight", "bias", "running_mean", "running_var"):
        d.state[f"{name}.f_query.1.{part}"] = d.state[f"{name}.f_key.1.{part}"]
    d.conv(f"{name}.f_value", value, inputs, 1, bias=True)
    d.conv(f"{name}.W", inputs, value, 1, bias=True)


def draw_ocnet(d, last, form):
    c = CHANNELS
    if form == "baseline":
        d.seq("layer5", c, last, 3, bias=True)
        d.conv("layer6", CLASSES, c, 1, bias=True)
        return
    d.seq("layer5" if form == "pyramid-oc" else "context", c, last, 3, bias=True)
    if form == "base-oc":
        draw_context(d, "context.2.stages.0", c, c // 2, c // 2)
        d.seq("context.2.conv_bn_dropout", c, 2 * c, bias=True)
    elif form == "asp-oc":
        half_ = c // 2
        d.seq("context.2.context", half_, c, 3, bias=True)
        draw_context(d, "context.2.context.2.stages.0", half_, half_ // 2, half_)
        d.seq("context.2.context.2.conv_bn_dropout", half_, half_, bias=True)
        for i, kernel in ((2, 1), (3, 3), (4, 3), (5, 3)):
            d.seq(f"context.2.conv{i}", half_, c, kernel)
        d.seq("context.2.conv_bn_dropout", c, 5 * half_)
    else:
        for i in range(4):
            draw_context(d, f"context.stages.{i}", c, c // 2, c)
        d.seq("context.up_dr", 4 * c, c, bias=True)
        d.seq("context.conv_bn_dropout", c, 8 * c, bias=True)
    d.conv("cls", CLASSES, c, 1, bias=True)
    draw_aux(d, "dsn", last // 2, 3)


def context(p, x, name, grid=1, pool=False):
    small = half(x) if pool else x
    key = p.seq(small, f"{name}.f_key")
    value = p.conv(small, f"{name}.f_value")
    H, W = small.shape[2:]
    out = torch.empty_like(value)
    for i in range(grid):
        for j in range(grid):
            rows = slice(i * (H // grid), H if i == grid - 1 else (i + 1) * (H // grid))
            columns = slice(j * (W // grid), W if j == grid - 1 else (j + 1) * (W // grid))
            own = (each[:, :, rows, columns] for each in (key, key, value))
            out[:, :, rows, columns] = dense(*own, key.shape[1] ** -0.5)
    out = p.conv(out, f"{name}.W")
    return resize(out, x, True) if pool else out


def ocnet(p, maps, form):
    if form == "baseline":
        return (p.conv(p.seq(maps[3], "layer5"), "layer6"),)
    second = aux(p, maps[2], "dsn", 3)
    if form == "base-oc":
        x = p.seq(maps[3], "context")
        out = p.seq(torch.cat([context(p, x, "context.2.stages.0"), x], 1), "context.2.conv_bn_dropout")
    elif form == "asp-oc":
        x = p.seq(maps[3], "context")
        own = context(p, p.seq(x, "context.2.context"), "context.2.context.2.stages.0", pool=True)
        maps = [p.seq(own, "context.2.context.2.conv_bn_dropout")]
        maps += [p.seq(x, f"context.2.conv{i}", dilation=rate) for i, rate in ((2, 1), (3, 12), (4, 24), (5, 36))]
        out = p.seq(torch.cat(maps, 1), "context.2.conv_bn_dropout")
    else:
        x = p.norm(p.conv(maps[3], "layer5.0"), "layer5.1")
        second = p.conv(p.norm(p.conv(maps[2], "dsn.0"), "dsn.1"), "dsn.3")
        own = [context(p, x, f"context.stages.{i}", grid) for i, grid in enumerate((1, 2, 3, 6))]
        out = p.seq(torch.cat([p.seq(x, "context.up_dr"), *own], 1), "context.conv_bn_dropout")
    return p.conv(out, "cls"), second


def draw_openseg(d, last, which, plain):
    c, index = CHANNELS, "1.0" if plain else "1"

    def chain(name, outputs, inputs, bias):
        for at, into in ((0, inputs), (2, outputs)):
            norm = f"{name}.{at + 1}" + (".0" if plain else "")
            d.seq(name, outputs, into, at=at, bias=bias, norm=norm)

    if which == "OCNet":
        d.seq("oc_module_pre", c, last, 3, bias=True, norm=f"oc_module_pre.{index}")
        stage = "oc_module.stages.0"
        for part in ("f_key", "f_query"):
            chain(f"{stage}.{part}", c // 2, c, True)
        d.conv(f"{stage}.f_value", c // 2, c, 1, bias=True)
        d.conv(f"{stage}.W", c, c // 2, 1, bias=True)
        d.seq("oc_module.conv_bn_dropout", c, 2 * c, bias=True, norm=f"oc_module.conv_bn_dropout.{index}")
        d.conv("cls", CLASSES, c, 1, bias=True)
        draw_aux(d, "dsn", last // 2, 2, norm=f"dsn.{index}")
        return
    d.seq("isa_head", c, last, 3, bias=True, norm=f"isa_head.{index}")
    for name in ("long", "short"):
        stage = f"isa_head.2.stages.0.{name}_range_sa"
        for part in ("f_key", "f_query"):
            chain(f"{stage}.{part}", c // 2, c, False)
        d.conv(f"{stage}.f_value", c, c, 1)
        d.seq(f"{stage}.W", c, c, norm=f"{stage}.W.{index}")
    d.seq("isa_head.2.conv_bn", c, 2 * c, norm=f"isa_head.2.conv_bn.{index}")
    d.conv("cls_head", CLASSES, c, 1, bias=True)
    draw_aux(d, "dsn_head", last // 2, 3, norm=f"dsn_head.{index}")


def openseg(p, maps, which, plain):
    index, end = ("1.0", ".0") if plain else ("1", "")

    def chain(x, name):
        x = p.seq(x, name, norm=f"{name}.1{end}")
        return p.seq(x, name, at=2, norm=f"{name}.3{end}")

    def gather(x, stage):
        key, query = chain(x, f"{stage}.f_key"), chain(x, f"{stage}.f_query")
        return dense(query, key, p.conv(x, f"{stage}.f_value"), key.shape[1] ** -0.5)

    if which == "OCNet":
        x = p.seq(maps[3], "oc_module_pre", norm=f"oc_module_pre.{index}")
        own = p.conv(gather(x, "oc_module.stages.0"), "oc_module.stages.0.W")
        name = "oc_module.conv_bn_dropout"
        out = p.seq(torch.cat([own, x], 1), name, norm=f"{name}.{index}")
        return p.conv(out, "cls"), aux(p, maps[2], "dsn", 2, norm=f"dsn.{index}")
    x = out = p.seq(maps[3], "isa_head", norm=f"isa_head.{index}")
    H, W = x.shape[2:]
    tall, wide = -H % 8, -W % 8
    out = F.pad(out, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
    for name in ("long", "short"):
        stage, new = f"isa_head.2.stages.0.{name}_range_sa", torch.empty_like(out)
        for i in range(8) if name == "long" else range(0, out.shape[2], 8):
            for j in range(8) if name == "long" else range(0, out.shape[3], 8):
                group = (
                    (..., slice(i, None, 8), slice(j, None, 8))
                    if name == "long"
                    else (..., slice(i, i + 8), slice(j, j + 8))
                )
                new[group] = p.seq(gather(out[group], stage), f"{stage}.W", norm=f"{stage}.W.{index}")
        out = new
    out = out[:, :, tall // 2 : tall // 2 + H, wide // 2 : wide // 2 + W]
    out = p.seq(torch.cat([x, out], 1), "isa_head.2.conv_bn", norm=f"isa_head.2.conv_bn.{index}")
    return p.conv(out, "cls_head"), aux(p, maps[2], "dsn_head", 3, norm=f"dsn_head.{index}")


SEQUENCE = [(f"layer0.{i}", f"layer0.{i + 1}") for i in (0, 3, 6)]
ENCODING = [("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")]
RESINIT = [(f"resinit.conv{i}", f"resinit.bn{i}") for i in (1, 2, 3)]
# prefix, stem, rule of dilation, ceil, abn, multi-grid
AUTHORS = ("", DEEP, "dilated", True)
TORCHVISION = ("backbone.", DEEP[:1], "contracted", False, False, None)
DEEP_ENCODING = ("pretrained.", ENCODING, "contracted", False, False, None)
SHALLOW_ENCODING = ("pretrained.", DEEP[:1], "contracted", False, False, None)
# name: draw, forward and their options, then as above
OTHERS = {
    **{
        f"the toolbox's {which}{',' if abn else ' with plain norms'}": (
            *(draw_toolbox, toolbox, (which, abn)),
            *(*AUTHORS, abn, None),
        )
        for which in ("PSPNet", "DeepLabv3")
        for abn in (True, False)
    },
    "torchvision's FCN": (draw_torchvision, torchvision, ("FCN",), *TORCHVISION),
    "torchvision's DeepLabv3": (draw_torchvision, torchvision, ("DeepLabv3",), *TORCHVISION),
    "semseg's PSPNet": (draw_semseg, semseg, (), "", SEQUENCE, "dilated", False, False, None),
    "the authors' DANet": (draw_danet_2018, danet_2018, (), *SHALLOW_ENCODING[:-1], (4, 8, 16)),
    "PyTorch-Encoding's EncNet": (draw_encoding, encoding, (False,), *DEEP_ENCODING),
    "PyTorch-Encoding's EncNet, lateral": (draw_encoding, encoding, (True,), *SHALLOW_ENCODING),
    **{
        f"OCNet's {form}": (draw_ocnet, ocnet, (form,), *AUTHORS, True, None)
        for form in ("base-oc", "asp-oc", "pyramid-oc", "baseline")
    },
    **{
        f"openseg's {which}{'' if plain else ', abn'}": (
            *(draw_openseg, openseg, (which, plain)),
            *("backbone.", RESINIT, "contracted", True, not plain, None),
        )
        for which in ("OCNet", "ISANet")
        for plain in (True, False)
    },
}


def other(name: str, depth: int = 50, width: int = 8, seed: int = 0) -> State:
    """A state dict of the network of that name."""
    draw, _, options, prefix, stem, _, _, abn, _ = OTHERS[name]
    d = PlainDraw(seed, counts=not abn, signed=abn)
    inputs = d.stem([(f"{prefix}{a}", f"{prefix}{b}") for a, b in stem], width, deep=len(stem) == 3)
    draw(d, d.residual(prefix, depth, width, inputs), *options)
    return d.state


@torch.no_grad()
def other_forward(name: str, state: State, x: Tensor) -> tuple[Tensor, ...]:
    """Main and, where there are such, auxiliary scores."""
    _, forward, options, prefix, stem, rule, ceil, abn, grid = OTHERS[name]
    p = Plain(state, abn=abn, slope=0.01 if abn else 0.0, contracted=rule != "dilated", ceil=ceil)
    return forward(p, trunk(p, x, prefix, stem, 8, rule, grid), *options)
