"""Every head against a second rendering in plain functions over its weights, and against its published size."""

import pytest
import torch
from renderings import RENDERINGS
from torch.utils.flop_counter import FlopCounterMode

from ccnet_cli import config
from ccnet_cli.bench.meter import peak_bytes
from ccnet_cli.losses import LOSSES
from ccnet_cli.losses.presence import presence
from ccnet_cli.models.attention import attention_map
from ccnet_cli.models.backbones import BACKBONES
from ccnet_cli.models.blocks import NonLocal, PositionAttention
from ccnet_cli.models.heads import HEADS
from ccnet_cli.models.network import build
from ccnet_cli.parts import Outputs

# odd, small and wide
SIZES = [(11, 9), (5, 6), (7, 26)]
MAPS, STRIDES, CLASSES = (6, 8, 10, 12), (4, 2, 1, 1), 3
SMALL = {"channels": 8}
TINY = ("model.backbone.width=4", "model.head={kind: psp, channels: 8}", "model.auxiliary={kind: psp, channels: 8}")
# name: settings that differ from the defaults
CASES = {
    "rcca, R=0": ("rcca", {**SMALL, "recurrence": 0}),
    "rcca, R=2": ("rcca", {**SMALL, "query_channels": 4}),
    "rcca3d, R=3": ("rcca3d", {**SMALL, "query_channels": 4, "recurrence": 3}),
    "fcn": ("fcn", {**SMALL, "bias": False, "activation": "relu"}),
    "wrapped, none": ("wrapped", {**SMALL, "block": "none"}),
    "wrapped, criss_cross": ("wrapped", {**SMALL, "block": "criss_cross"}),
    "wrapped, nonlocal": ("wrapped", {**SMALL, "block": "nonlocal"}),
    "wrapped, gc": ("wrapped", {**SMALL, "block": "gc"}),
    "wrapped, pam": ("wrapped", {**SMALL, "block": "pam"}),
    "wrapped, cam": ("wrapped", {**SMALL, "block": "cam"}),
    "wrapped, isa": ("wrapped", {**SMALL, "block": "isa"}),
    "nonlocal": ("nonlocal", {**SMALL, "inner": 3}),
    "nonlocal, pooled": ("nonlocal", {**SMALL, "sub_sample": True}),
    "nonlocal, dot product": ("nonlocal", {**SMALL, "mode": "dot_product"}),
    "gc": ("gc", {**SMALL, "ratio": 0.5, "activation": "relu"}),
    "psp": ("psp", {**SMALL}),
    "psp, map first": ("psp", {**SMALL, "order": "map_first", "activation": "relu"}),
    "aspp, toolbox": ("aspp", {**SMALL, "width": 5, "dilations": [1, 2, 4]}),
    "aspp, mmseg": ("aspp", {**SMALL, "width": 5, "form": "mmseg", "activation": "relu"}),
    "aspp, torchvision": ("aspp", {**SMALL, "width": 5, "form": "torchvision", "activation": "relu"}),
    "aspp_plus": ("aspp_plus", {**SMALL, "fine": 4, "dilations": [1, 2, 3]}),
    "danet": ("danet", {**SMALL, "query_channels": 3}),
    "oc, base": ("oc", {**SMALL}),
    "oc, separate and pooled": ("oc", {**SMALL, "separate": True, "pooled": True, "activation": "relu"}),
    "oc, pyramid": ("oc", {**SMALL, "form": "pyramid"}),
    "oc, asp": ("oc", {**SMALL, "form": "asp"}),
    "isa": ("isa", {**SMALL, "cell": 4}),
    "isa, mmseg": ("isa", {**SMALL, "form": "mmseg", "inner": 3, "value_bias": True}),
    "encnet": ("encnet", {**SMALL, "codewords": 5}),
    "encnet, lateral": ("encnet", {**SMALL, "codewords": 5, "lateral": True}),
    "upernet": ("upernet", {**SMALL}),
    "upernet, resized first": ("upernet", {**SMALL, "pooled_channels": 5, "resize_first": True}),
    "gcn": ("gcn", {"kernel": 5}),
}


def make(kind, maps=MAPS, classes=CLASSES, **settings):
    part = HEADS[kind]
    own = part.settings(kind=kind, **settings)
    first = () if part.first is None else (part.first(own),)
    return part.build(own, maps, classes, *first)


def drawn(case: str):
    """A head with weights of which none is 0 or 1, in evaluation mode and float64."""
    kind, settings = CASES[case]
    torch.manual_seed(0)
    head = make(kind, **settings).double().eval()
    with torch.no_grad():
        for name, tensor in head.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_(0, 1 if tensor.ndim < 2 else 1.5 / tensor[0].numel() ** 0.5)
    return head


def features(size):
    torch.manual_seed(1)
    sides = [(size[0] * stride - stride // 2, size[1] * stride - stride // 2) for stride in STRIDES]
    return [torch.randn(2, c, *hw, dtype=torch.double) for c, hw in zip(MAPS, sides, strict=True)]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_it_equals_a_second_rendering_with_its_gradients(case, size, align_corners):
    head, maps = drawn(case), features(size)
    head.align_corners = align_corners
    kind, settings = CASES[case]
    maps = [x.requires_grad_() for x in maps]
    taken = maps[-getattr(head, "levels", 4) :]
    got = head(taken)
    own = {name: parameter.detach().clone() for name, parameter in head.state_dict(keep_vars=True).items()}
    parameters = {name: own[name].requires_grad_() for name, _ in head.named_parameters()}
    wanted = RENDERINGS[kind]({**own, **parameters}, taken, head, settings, align_corners)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 1e-9 * wanted.std(), case
    factor = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(2))
    used = dict(head.named_parameters())
    left = torch.autograd.grad((got * factor).sum(), [*used.values(), *taken], allow_unused=True)
    right = torch.autograd.grad(
        (wanted * factor).sum(), [*(parameters[n] for n in used), *taken], allow_unused=True, materialize_grads=True
    )
    for name, a, b in zip([*used, *range(len(taken))], left, right, strict=True):
        a = torch.zeros_like(b) if a is None else a
        assert (a - b).abs().max() <= 1e-8 * max(float(b.abs().max()), 1.0), (case, name)


# millions of parameters and GFLOP, of the published structures at 97x97 and 19 classes
PUBLISHED = {
    "rcca": ({}, 23.934, 460.72),
    "rcca, R=0": ({"recurrence": 0}, 23.606, 444.16),
    "wrapped": ({"block": "none"}, 23.606, 444.16),
    "wrapped, pam": ({"block": "pam"}, 23.934, 552.32),
    "fcn": ({"bias": False}, 9.448, 177.77),
    "psp": ({}, 23.084, 355.47),
    "aspp": ({}, 15.873, 288.77),
    "aspp, mmseg": ({"form": "mmseg"}, 42.221, 774.67),
    "aspp, torchvision": ({"form": "torchvision"}, 16.130, 293.61),
    "nonlocal": ({}, 24.132, 544.69),
    "gc": ({}, 23.738, 444.18),
    "danet": ({}, 23.955, 562.55),
    "oc": ({}, 10.369, 288.20),
    "oc, asp": ({"form": "asp"}, 15.188, 287.60),
    "isa": ({}, 11.814, 231.20),
    "encnet": ({}, 10.000, 184.0),
    "encnet, lateral": ({"lateral": True}, 17.867, None),
    "upernet": ({}, 40.523, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_its_published_size_and_cost(name):
    settings, millions, gflop = PUBLISHED[name]
    maps = (256, 512, 1024, 2048)
    with torch.device("meta"):
        head = make(name.partition(",")[0], maps, 19, **settings).eval()
        count = sum(p.numel() for p in head.parameters()) / 1e6
        assert count == pytest.approx(millions, rel=1e-3)
        x = [torch.empty(1, c, 97, 97) for c in maps]
    if gflop is not None:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            # training's outputs are not counted
            head(x)
        assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=5e-3)


def test_the_global_convolution_has_its_published_size():
    for kernel, millions in ((7, 0.550), (15, 1.178)):
        with torch.device("meta"):
            head = make("gcn", (1024, 2048), 19, kernel=kernel)
        count = sum(p.numel() for p in head.global_convolution.parameters())
        assert count / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("gcn", "aspp, torchvision")])
def test_dropout_in_training_takes_whole_channels_just_before_the_classifier(case):
    kind, settings = CASES[case]
    torch.manual_seed(0)
    head = make(kind, classes=7, **{**settings, "channels": 32, "activation": "leaky_relu", "dropout": 0.5})
    planes = []
    for module in head.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels == 7:
            module.register_forward_pre_hook(lambda _, args: planes.append((args[0] == 0).flatten(2).all(2)))
    maps = [x.float() for x in features((6, 7))]
    own = getattr(head.train(), "outputs", None)
    taken = maps[-getattr(head, "levels", 4) :]
    _ = own(taken) if own else head(taken)
    assert len(planes) == (3 if kind == "danet" else 1)
    assert all(0.2 < whole_BC.float().mean() < 0.8 for whole_BC in planes)
    planes.clear()
    head.eval()(taken)
    assert planes[0].float().mean() < 0.1


def test_the_authors_choices_are_the_defaults():
    """What neither sizes nor costs show."""
    dropouts = {kind: make(kind).classify[0].p for kind in ("psp", "aspp", "danet", "encnet", "upernet", "isa", "oc")}
    assert dropouts == dict.fromkeys(("psp", "aspp", "danet", "encnet", "upernet"), 0.1) | {"isa": 0.05, "oc": 0.05}
    assert [make("oc", form=form).classify[0].p for form in ("pyramid", "asp")] == [0.05, 0.1]
    assert (make("rcca").bottleneck[3].p, make("fcn")[3].p) == (0.1, 0.1)
    convs = (each for kind in ("aspp", "aspp_plus") for each in make(kind).pyramid.branches)
    assert [branch[0].dilation[0] for branch in convs] == [1, 12, 24, 36] * 2
    torchvision = make("aspp", form="torchvision")
    assert torchvision.bottleneck[3].p == 0.5 and type(torchvision.bottleneck[3]) is torch.nn.Dropout
    # CCNet's auxiliary head has a bias before its norm, its head has none
    assert make("fcn")[0].bias is not None and make("rcca").conva[0].bias is None
    assert make("psp").pyramid.bins == (1, 2, 3, 6) and make("isa").isa.cell == 8


IDENTITY = ("wrapped, nonlocal", "wrapped, gc", "wrapped, pam", "wrapped, cam", "nonlocal", "gc", "rcca, R=2")


@pytest.mark.parametrize("case", [*IDENTITY, "rcca3d, R=3"])
def test_a_block_that_starts_as_the_identity_does(case):
    kind, settings = CASES[case]
    torch.manual_seed(0)
    head = make(kind, **settings).eval()
    reduced = head.conva(features((5, 6))[-1].float())
    assert torch.equal(getattr(head, head.name)(reduced), reduced)


@torch.no_grad()
def test_weights_begin_where_the_authors_put_them():
    torch.manual_seed(0)
    block = NonLocal(64, 32)
    for conv in (block.query, block.key, block.value):
        assert conv.weight.std() == pytest.approx(0.01, rel=0.1) and not conv.bias.any()
    mask = make("gc", channels=256).block.mask
    # kaiming normal, fan in, as mmcv has it
    assert mask.weight.std() == pytest.approx((2 / 256) ** 0.5, rel=0.15) and not mask.bias.any()
    encoding = make("encnet", channels=64, codewords=16).encode.encoding
    bound = (16 * 64) ** -0.5
    assert 0.9 * bound < encoding.codewords.abs().max() <= bound
    assert -1 <= encoding.scale.min() < encoding.scale.max() < 0


@torch.no_grad()
def test_an_encoding_stays_out_of_half_precision():
    """Under autocast it is as in float32 on the same, rounded, map."""
    encoding, x = drawn("encnet").float().encode.encoding, torch.randn(1, 8, 40, 40).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        got = encoding(x)
    wanted = encoding(x.float())
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("align_corners", [True, False])
def test_heads_resize_as_the_network_does(align_corners):
    preset = config.load("cityscapes-r2", [f"model.align_corners={align_corners}".lower(), *TINY])
    network = build(preset.model, 3)
    assert network.head.align_corners == network.auxiliary.align_corners == align_corners


def test_the_context_of_an_untrained_ocnet_is_zero():
    torch.manual_seed(0)
    head = make("oc", **SMALL).eval()
    assert not head.context.attention(torch.randn(1, 8, 5, 6)).any()


def test_every_kind_has_a_case_and_a_rendering():
    assert {kind for kind, _ in CASES.values()} == set(HEADS) == set(RENDERINGS)


def test_a_resnet_hands_out_all_maps_at_its_strides():
    part = BACKBONES["resnet18"]
    for stride, expected in ((8, (4, 8, 8, 8)), (16, (4, 8, 16, 16)), (32, (4, 8, 16, 32))):
        with torch.device("meta"):
            backbone = part.build(part.settings(kind="resnet18", width=8, stride=stride, pool="floor"))
            backbone.levels = 4
            maps = backbone(torch.empty(1, 3, 64, 96))
        assert backbone.strides == expected and backbone.stride == expected[-1]
        assert [(x.shape[1], x.shape[2], x.shape[3]) for x in maps] == [
            (c, 64 // s, 96 // s) for c, s in zip(backbone.channels, expected, strict=True)
        ]
        # where no stride is taken, layers are dilated instead
        assert backbone.layer4[1].conv2.dilation == (32 // stride, 32 // stride)
    with torch.device("meta"):
        backbone = part.build(part.settings(kind="resnet50", width=8, multi_grid=True))
    assert [block.conv2.dilation[0] for block in backbone.layer4] == [4, 8, 16]


@torch.no_grad()
def test_the_map_of_a_point_is_the_row_of_its_weights():
    head, maps = drawn("nonlocal, pooled"), features((7, 6))
    scores, passes = head.attend(maps[-1:])
    assert torch.equal(scores, head(maps[-1:]))
    reduced = head.conva(maps[-1])[:1]
    query, key = head.block.query(reduced), torch.nn.functional.max_pool2d(head.block.key(reduced), 2)
    weights = query[0, :, 3, 2] @ key[0].flatten(1) * head.block.query.out_channels**-0.5
    expected = torch.zeros(7, 6, dtype=torch.double)
    # a pooled cell's weight is shared by the four that it was made of, and the odd last row has none
    expected[:6] = weights.softmax(0).view(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1) / 4
    torch.testing.assert_close(attention_map(passes, 3, 2), expected)


@torch.no_grad()
def test_the_maps_of_interlaced_attention_compose():
    head, maps = drawn("isa"), features((8, 8))
    _, passes = head.attend(maps[-1:])
    first, both = attention_map(passes[:1], 5, 2), attention_map(passes, 5, 2)
    own = torch.zeros(8, 8, dtype=torch.bool)
    own[1::4, 2::4] = True
    assert (first[~own] == 0).all() and (first[own] > 0).all()
    assert (both > 0).all() and both.sum() == pytest.approx(1)
    # the second pass looks in the point's cell of 4 x 4, each of whose positions looked at its own offset before
    point = torch.zeros(8, 8, dtype=torch.double)
    point[5, 2] = 1
    short = passes[1].spread(point)
    assert (short[4:, :4] > 0).all() and short.sum() == pytest.approx(1) and not short[:4].any()
    total = sum(short[y, x] * attention_map(passes[:1], y, x) for y in range(4, 8) for x in range(4))
    torch.testing.assert_close(both, total)


@torch.no_grad()
def test_the_map_of_a_pooled_context_is_that_of_the_point_s_cell():
    head, maps = drawn("oc, separate and pooled"), features((7, 6))
    x = head.reduce(maps[-1])
    query, key = head.context.attention.project(torch.nn.functional.max_pool2d(x, 2))
    # of seven rows the last has no cell: it asks as the one above it does, and nobody looks at it
    for y, row in ((3, 1), (6, 2)):
        weights = (query[0, :, row, 1] @ key[0].flatten(1) * head.context.attention.scale).softmax(0).view(3, 3)
        expected = torch.zeros(7, 6, dtype=torch.double)
        expected[:6] = weights.repeat_interleave(2, 0).repeat_interleave(2, 1) / 4
        torch.testing.assert_close(attention_map(head.attend(maps[-1:])[1], y, 2), expected)


@torch.no_grad()
def test_the_maps_of_a_pyramid_lie_in_the_grid_cells_of_the_point():
    head, maps = drawn("oc, pyramid"), features((11, 9))
    _, passes = head.attend(maps[-1:])
    x, y = 4, 7
    for grid, each, attention in zip((1, 2, 3, 6), passes, head.context.attentions, strict=True):
        rows, columns = ([min(i // (length // grid), grid - 1) for i in range(length)] for length in (11, 9))
        own = torch.tensor([[r == rows[y] and c == columns[x] for c in columns] for r in rows])
        query, key = (part[0] for part in attention.project(head.reduce(maps[-1])))
        energy = torch.einsum("c,chw->hw", query[:, y, x], key) * attention.scale
        expected = energy.masked_fill(~own, -torch.inf).flatten().softmax(0).view(11, 9)
        torch.testing.assert_close(attention_map([each], y, x), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(11, 9), (5, 6), (7, 26), (1, 13)])
def test_grid_attention_is_the_same_with_a_mask_for_export(size):
    x = torch.randn(2, 8, *size, dtype=torch.double)
    for each in drawn("oc, pyramid").context.attentions[1:]:
        torch.testing.assert_close(each.portable()(x), each(x))


@pytest.mark.parametrize("case", ["danet", "wrapped, cam"])
def test_the_map_of_a_class_is_of_the_channel_that_moves_it_most(case):
    """By differences: what the class's scores gain as a channel's gathered part grows, on the cells of the class."""
    head, maps = drawn(case), features((6, 5))
    with torch.no_grad():
        scores, passes = head.attend(maps[-1:])
        each, cam = passes[-1], head.cam if case == "danet" else head.block
        x = (head.cam_reduce if case == "danet" else head.conva)(maps[-1])[:1]
        flat = x[0].flatten(1)
        energy = flat @ flat.T
        gathered = ((energy.max(1, keepdim=True).values - energy).softmax(1) @ flat).view(x.shape)
        for index in range(CLASSES):
            own = scores[0].argmax(0) == index
            own = own if own.any() else ~own
            gains = []
            for channel in range(len(flat)):
                grown = x + cam.gamma * gathered
                grown[:, channel] += 1e-6 * cam.gamma * gathered[:, channel]
                gains.append(float((each.answer(grown)[0, index] - scores[0, index])[own].sum()))
            channel, part = each.of_class(index)
            assert channel == int(torch.tensor(gains).argmax())
            wanted = gathered[0, channel].abs()
            torch.testing.assert_close(part, wanted / wanted.sum())


@torch.no_grad()
def test_attention_over_all_positions_takes_a_quarter_of_the_memory_at_most():
    torch.manual_seed(0)
    for block in (NonLocal(32, 16), PositionAttention(32, 4)):
        x = torch.randn(1, 32, 72, 72)
        materialised = 72**4 * 4
        assert peak_bytes(lambda block=block, x=x: block(x), x.device) <= (materialised + x.nbytes) / 4


def test_presence_is_what_each_image_holds():
    label = torch.tensor([[[0, 2], [255, 2]], [[255, 255], [255, 255]]])
    assert presence(label, 4).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]
    scores = torch.tensor([[2.0, -1.0, 0.5, 0.0], [1.0, -3.0, 0.0, 0.25]])
    settings = LOSSES["presence"].settings(kind="presence")
    term = LOSSES["presence"].build(settings, 255, True)(Outputs(scores, {"presence": scores}, scores), label)
    p, y = scores.sigmoid().double(), presence(label, 4).double()
    assert float(term) == pytest.approx(float(-(y * p.log() + (1 - y) * (1 - p).log()).mean()), rel=1e-6)
    assert settings.weight == 0.2
