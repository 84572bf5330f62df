"""Each head a second time: plain functions over a state dict, attention as matrices of all pairs or loops."""

import itertools

import torch
from torch.nn import functional as F


def conv(s, name, x, dilation=1, groups=1):
    weight = s[f"{name}.weight"]
    padding = tuple(dilation * (side // 2) for side in weight.shape[2:])
    return F.conv2d(x, weight, s.get(f"{name}.bias"), 1, padding, dilation, groups)


def norm(s, name, x, eps=1e-5):
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale, shift, mean, variance = (
        s[f"{name}.{part}"].view(shape) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (variance + eps).sqrt() * scale + shift


def act(x, settings, default="leaky_relu"):
    negative = 0.0 if settings.get("activation", default) == "relu" else 0.01
    return torch.where(x > 0, x, negative * x)


class R:
    """A state dict with the activation of its settings."""

    def __init__(self, s, settings, default="leaky_relu"):
        self.s, self.settings, self.default = s, settings, default

    def act(self, x):
        return act(x, self.settings, self.default)

    def cna(self, name, x, at=0, dilation=1, groups=1):
        return self.act(norm(self.s, f"{name}.{at + 1}", conv(self.s, f"{name}.{at}", x, dilation, groups)))

    def conv(self, name, x):
        return conv(self.s, name, x)

    def separable(self, name, x, at=0, dilation=1):
        x = self.cna(name, x, at, dilation, groups=x.shape[1])
        return self.cna(name, x, at + 3)


def up(x, like, align_corners):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=align_corners)


def dense(query, key, value, scale):
    """All pairs of positions at once."""
    energy = torch.einsum("bchw,bcyx->bhwyx", query, key) * scale
    weights = energy.flatten(3).softmax(-1).view(energy.shape)
    return torch.einsum("bhwyx,bcyx->bchw", weights, value)


def half(x):
    h, w = x.shape[2] // 2, x.shape[3] // 2
    return x[:, :, : 2 * h, : 2 * w].reshape(*x.shape[:2], h, 2, w, 2).amax((3, 5))


def pooled(x, bins):
    """Adaptive average pooling by its definition."""
    H, W = x.shape[2:]
    out = x.new_zeros(*x.shape[:2], bins, bins)
    for i, j in itertools.product(range(bins), repeat=2):
        top, bottom = i * H // bins, -(-(i + 1) * H // bins)
        left, right = j * W // bins, -(-(j + 1) * W // bins)
        out[:, :, i, j] = x[:, :, top:bottom, left:right].mean((2, 3))
    return out


def criss_cross(r, name, x):
    s = r.s
    query, key, value = (conv(s, f"{name}.{part}_conv", x) for part in ("query", "key", "value"))
    H = x.shape[2]
    column = torch.einsum("bchw,bcyw->bhwy", query, key).masked_fill(
        torch.eye(H, dtype=torch.bool)[:, None], float("-inf")
    )
    row = torch.einsum("bchw,bchx->bhwx", query, key)
    weights = torch.cat([column, row], -1).softmax(-1)
    out = torch.einsum("bhwy,bcyw->bchw", weights[..., :H], value)
    out = out + torch.einsum("bhwx,bchx->bchw", weights[..., H:], value)
    return s[f"{name}.gamma"] * out + x


def nonlocal_block(r, name, x, mode="embedded_gaussian", sub_sample=False):
    query, key, value = (r.conv(f"{name}.{part}", x) for part in ("query", "key", "value"))
    if sub_sample:
        key, value = half(key), half(value)
    if mode == "dot_product":
        pairs = torch.einsum("bchw,bcyx->bhwyx", query, key) / (key.shape[2] * key.shape[3])
        gathered = torch.einsum("bhwyx,bcyx->bchw", pairs, value)
    else:
        gathered = dense(query, key, value, query.shape[1] ** -0.5)
    return x + norm(r.s, f"{name}.out.1", r.conv(f"{name}.out.0", gathered))


def gc_block(r, name, x):
    weights = r.conv(f"{name}.mask", x).flatten(1).softmax(1).view(len(x), 1, *x.shape[2:])
    mean = (x * weights).sum((2, 3))
    hidden = mean @ r.s[f"{name}.transform.0.weight"][:, :, 0, 0].T + r.s[f"{name}.transform.0.bias"]
    centred = hidden - hidden.mean(1, keepdim=True)
    hidden = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    hidden = hidden * r.s[f"{name}.transform.1.weight"].flatten() + r.s[f"{name}.transform.1.bias"].flatten()
    out = hidden.clamp(min=0) @ r.s[f"{name}.transform.3.weight"][:, :, 0, 0].T + r.s[f"{name}.transform.3.bias"]
    return x + out[:, :, None, None]


def pam_block(r, name, x):
    query, key, value = (r.conv(f"{name}.{part}_conv", x) for part in ("query", "key", "value"))
    return r.s[f"{name}.gamma"] * dense(query, key, value, 1.0) + x


def cam_block(r, name, x):
    energy = torch.einsum("bchw,bdhw->bcd", x, x)
    weights = (-energy).softmax(-1)
    return r.s[f"{name}.gamma"] * torch.einsum("bcd,bdhw->bchw", weights, x) + x


def projected(r, name, x):
    at = 0
    while f"{name}.{at}.weight" in r.s:
        x = r.cna(name, x, at)
        at += 3
    return x


def isa_block(r, name, x, cell=8):
    """One group at a time, by the positions that it holds."""
    H, W = x.shape[2:]
    tall, wide = -H % cell, -W % cell
    top, left = tall // 2, wide // 2
    x = F.pad(x, (left, wide - left, top, tall - top))
    rows, columns = x.shape[2:]

    def attend(part, x, groups):
        out = torch.zeros_like(x)
        for ys, xs in groups:
            own = x[:, :, ys][:, :, :, xs]
            key, query = (projected(r, f"{name}.{part}.{each}", own) for each in ("key", "query"))
            value = r.conv(f"{name}.{part}.value", own)
            gathered = r.cna(f"{name}.{part}.out", dense(query, key, value, key.shape[1] ** -0.5))
            index = torch.zeros(rows, columns, dtype=torch.bool)
            index[torch.tensor(list(ys))[:, None], torch.tensor(list(xs))] = True
            out = out.masked_scatter(index.expand_as(out), gathered)
        return out

    ys, xs = range(rows), range(columns)
    long = [(list(ys)[i::cell], list(xs)[j::cell]) for i in range(cell) for j in range(cell)]
    short = [(list(ys)[i : i + cell], list(xs)[j : j + cell]) for i in ys[::cell] for j in xs[::cell]]
    x = attend("short", attend("long", x, long), short)
    return x[:, :, top : top + H, left : left + W]


def wrapper(s, taken, settings, block, name):
    r, x = R(s, settings), taken[-1]
    gathered = block(r, name, r.cna("conva", x))
    joined = r.cna("bottleneck", torch.cat([x, r.cna("convb", gathered)], 1))
    return r.conv("bottleneck.4", joined)


def rcca(s, taken, head, settings, align_corners):
    def passes(r, name, x):
        for _ in range(settings.get("recurrence", 2)):
            x = criss_cross(r, "rcca.attention", x)
        return x

    return wrapper(s, taken, settings, passes, "rcca")


def wrapped(s, taken, head, settings, align_corners):
    blocks = {
        "none": lambda r, name, x: x,
        "criss_cross": lambda r, name, x: criss_cross(r, "block.attention", criss_cross(r, "block.attention", x)),
        "nonlocal": nonlocal_block,
        "gc": gc_block,
        "pam": pam_block,
        "cam": cam_block,
        "isa": isa_block,
    }
    return wrapper(s, taken, settings, blocks[settings["block"]], "block")


def nonlocal_(s, taken, head, settings, align_corners):
    options = {key: settings[key] for key in ("mode", "sub_sample") if key in settings}
    return wrapper(s, taken, settings, lambda r, name, x: nonlocal_block(r, name, x, **options), "block")


def gc(s, taken, head, settings, align_corners):
    return wrapper(s, taken, settings, gc_block, "block")


def fcn(s, taken, head, settings, align_corners):
    r, x = R(s, settings), taken[-1]
    return r.conv("4", r.act(norm(s, "1", r.conv("0", x))))


def pyramid(r, name, x, align_corners, resize_first=False):
    maps = []
    for index, bins in enumerate((1, 2, 3, 6)):
        small = pooled(x, bins)
        small = up(small, x, align_corners) if resize_first else small
        maps.append(up(r.cna(f"{name}.stages.{index}", small), x, align_corners))
    return maps


def psp(s, taken, head, settings, align_corners):
    r, x = R(s, settings), taken[-1]
    maps = pyramid(r, "pyramid", x, align_corners)
    joined = [x, *maps] if settings.get("order") == "map_first" else [*maps, x]
    return r.conv("classify.1", r.cna("bottleneck", torch.cat(joined, 1)))


def aspp(s, taken, head, settings, align_corners):
    r, x = R(s, settings), taken[-1]
    mean = r.cna("pyramid.pool", x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
    rates = (1, *settings.get("dilations", (12, 24, 36)))
    maps = [r.cna(f"pyramid.branches.{i}", x, dilation=rate) for i, rate in enumerate(rates)]
    form = settings.get("form")
    x = r.cna("bottleneck", torch.cat([*maps, mean] if form == "torchvision" else [mean, *maps], 1))
    if form == "torchvision":
        x = r.cna("bottleneck", x, at=4)
    return r.conv("classify.1", x)


def aspp_plus(s, taken, head, settings, align_corners):
    r, x = R(s, settings), taken[-1]
    mean = r.cna("pyramid.pool", x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
    maps = [mean, r.cna("pyramid.branches.0", x)]
    for index, rate in enumerate(settings["dilations"], 1):
        maps.append(r.separable(f"pyramid.branches.{index}", x, dilation=rate))
    context = r.cna("bottleneck", torch.cat(maps, 1))
    fine = r.cna("fine", taken[0])
    joined = torch.cat([up(context, fine, align_corners), fine], 1)
    return r.conv("classify.1", r.separable("decode", r.separable("decode", joined), at=6))


def danet(s, taken, head, settings, align_corners):
    r, x = R(s, settings, "relu"), taken[-1]
    pam = r.cna("pam_convolve", pam_block(r, "pam", r.cna("pam_reduce", x)))
    cam = r.cna("cam_convolve", cam_block(r, "cam", r.cna("cam_reduce", x)))
    outputs = head.outputs(taken).auxiliary
    for name, own in (("pam", pam), ("cam", cam)):
        torch.testing.assert_close(outputs[name], r.conv(f"{name}_classify.1", own))
    return r.conv("classify.1", pam + cam)


def object_context(r, name, x, align_corners, pool=False, grid=1):
    small = half(x) if pool else x
    key = projected(r, f"{name}.key", small)
    query = projected(r, f"{name}.query", small) if f"{name}.query.0.weight" in r.s else key
    value = r.conv(f"{name}.value", small)
    H, W = small.shape[2:]
    y, x_ = (torch.arange(side).div(max(side // grid, 1), rounding_mode="floor").clamp(max=grid - 1) for side in (H, W))
    if H < grid:
        y = torch.zeros_like(y)
    if W < grid:
        x_ = torch.zeros_like(x_)
    cell = (y[:, None] * grid + x_).flatten()
    energy = torch.einsum("bcn,bcm->bnm", query.flatten(2), key.flatten(2)) * key.shape[1] ** -0.5
    weights = energy.masked_fill(cell[:, None] != cell, float("-inf")).softmax(-1)
    gathered = torch.einsum("bnm,bcm->bcn", weights, value.flatten(2)).view(len(x), -1, H, W)
    out = r.conv(f"{name}.out", gathered)
    return up(out, x, align_corners) if pool else out


def oc(s, taken, head, settings, align_corners):
    r, form = R(s, settings), settings.get("form", "base")
    x = norm(s, "reduce.1", r.conv("reduce.0", taken[-1]))
    x = x if form == "pyramid" else r.act(x)
    if form == "base":
        maps = [object_context(r, "context.attention", x, align_corners, settings.get("pooled", False)), x]
    elif form == "pyramid":
        grids = enumerate((1, 2, 3, 6))
        maps = [r.cna("context.widen", x)]
        maps += [object_context(r, f"context.attentions.{i}", x, align_corners, grid=grid) for i, grid in grids]
    else:
        own = object_context(r, "context.attention", r.cna("context.narrow", x), align_corners, pool=True)
        maps = [r.cna("context.after", own)]
        maps += [r.cna(f"context.branches.{i}", x, dilation=rate) for i, rate in enumerate((1, 12, 24, 36))]
    return r.conv("classify.1", r.cna("context.join", torch.cat(maps, 1)))


def isa(s, taken, head, settings, align_corners):
    r = R(s, settings, "relu")
    x = r.cna("reduce", taken[-1])
    context = isa_block(r, "isa", x, settings.get("cell", 8))
    joined = [context, x] if settings.get("form") == "mmseg" else [x, context]
    return r.conv("classify.1", r.cna("bottleneck", torch.cat(joined, 1)))


def encnet(s, taken, head, settings, align_corners):
    r = R(s, settings, "relu")
    x = r.cna("reduce", taken[-1])
    if settings.get("lateral"):
        sides = [up(r.cna(f"lateral.{i}", side), x, align_corners) for i, side in enumerate(taken[:-1])]
        x = r.cna("join", torch.cat([x, *sides], 1))
    positions = r.cna("encode.project", x).flatten(2).transpose(1, 2)
    words, scale = s["encode.encoding.codewords"], s["encode.encoding.scale"]
    rest = positions[:, :, None] - words
    weights = (scale * rest.square().sum(-1)).softmax(-1)
    encoded = norm(s, "encode.norm", (weights[..., None] * rest).sum(1)).clamp(min=0).mean(1)
    torch.testing.assert_close(
        head.outputs(taken).auxiliary["presence"], encoded @ s["presence.weight"].T + s["presence.bias"]
    )
    gate = (encoded @ s["encode.gate.weight"].T + s["encode.gate.bias"]).sigmoid()[:, :, None, None]
    return r.conv("classify.1", (x * (1 + gate)).clamp(min=0))


def upernet(s, taken, head, settings, align_corners):
    r = R(s, settings, "relu")
    maps = pyramid(r, "pyramid", taken[-1], align_corners, settings.get("resize_first", False))
    tops = [r.cna("bottleneck", torch.cat([taken[-1], *maps], 1))]
    total = tops[0]
    for index in (2, 1, 0):
        total = r.cna(f"lateral.{index}", taken[index]) + up(total, taken[index], align_corners)
        tops.insert(0, r.cna(f"smooth.{index}", total))
    joined = torch.cat([up(each, taken[0], align_corners) for each in tops], 1)
    return r.conv("classify.1", r.cna("join", joined))


def gcn(s, taken, head, settings, align_corners):
    r, x = R(s, settings), taken[-1]
    ways = [
        r.conv(f"global_convolution.{way}.1", r.conv(f"global_convolution.{way}.0", x)) for way in ("down", "across")
    ]
    x = ways[0] + ways[1]
    return x + r.conv("refine.2", r.conv("refine.0", x).clamp(min=0))


RENDERINGS = {
    "rcca": rcca,
    # of images, which are clips of one frame
    "rcca3d": rcca,
    "fcn": fcn,
    "wrapped": wrapped,
    "nonlocal": nonlocal_,
    "gc": gc,
    "psp": psp,
    "aspp": aspp,
    "aspp_plus": aspp_plus,
    "danet": danet,
    "oc": oc,
    "isa": isa,
    "encnet": encnet,
    "upernet": upernet,
    "gcn": gcn,
}
