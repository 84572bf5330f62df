"""Other people's weights: every layout against an independent network over the same state dict."""

from pathlib import Path

import numpy as np
import peers
import pytest
import torch

import ccnet_cli
from ccnet_cli import config
from ccnet_cli.datasets import known_classes
from ccnet_cli.errors import InputError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.weights.recognise import recognise

# a full ResNet-101 of a quarter of the paper's width: deep enough to be the real thing, quick enough for every run
WIDTH, CHANNELS = 16, 64
SIZES = [(97, 129), (193, 193)]


def save(content, path: Path, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def picture(size, seed=5):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def difference(got, wanted):
    return float((got - wanted).abs().max() / wanted.std())


@torch.no_grad()
def scores(model, x):
    main, named, _ = model.outputs(x)
    auxiliary = named.get("auxiliary")
    assert torch.equal(main, model(x))
    return main, auxiliary


@pytest.mark.parametrize("passes", [0, 1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_the_authors_layout(tmp_path, size, passes):
    state, x = peers.authors(width=WIDTH, channels=CHANNELS), picture(size)
    model = ccnet_cli.load(save(state, tmp_path / "CS_scenes_60000.pth"), recurrence=passes)
    assert not model.training and model.recurrence == passes
    for got, wanted, raw in zip(
        scores(model, x),
        peers.authors_forward(state, x, passes),
        peers.authors_forward(state, x, passes, abn=False),
        strict=True,
    ):
        assert difference(got, wanted) < 1e-4
        # the scales' signs and the 0 among them matter
        assert difference(raw, wanted) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("passes", [0, 1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_the_authors_layout_at_full_width(tmp_path, size, passes):
    state, x = peers.authors(seed=passes), picture(size)
    model = ccnet_cli.load(save(state, tmp_path / "a.pth"), recurrence=passes)
    for got, wanted in zip(scores(model, x), peers.authors_forward(state, x, passes), strict=True):
        assert difference(got, wanted) < 1e-4


def test_the_attention_of_these_tests_is_neither_flat_nor_all_or_nothing(tmp_path):
    model = ccnet_cli.load(save(peers.authors(width=WIDTH, channels=CHANNELS), tmp_path / "a.pth"))
    with torch.no_grad():
        _, maps = model.attend(picture(SIZES[0]))
    for attention in maps:
        largest = float(attention.max(1).values.mean())
        assert 2 / attention.shape[1] < largest < 0.9


def test_the_default_is_two_passes_and_told(tmp_path, capsys):
    model = ccnet_cli.load(save(peers.authors(width=8, channels=16), tmp_path / "a.pth"))
    told = capsys.readouterr().err
    assert model.recurrence == 2 and told.count("\n") == 1
    assert "the authors' CCNet, resnet101, 19 classes" in told
    assert "110 batch-norm scales w taken as abs(w) + 1e-5" in told and "taken as 2" in told
    # and the number of passes can be changed on the model as well
    x = picture((65, 65))
    model.recurrence = 1
    with torch.no_grad():
        got = model(x)
    assert difference(got, peers.authors_forward(peers.authors(width=8, channels=16), x, 1)[0]) < 1e-4


@pytest.mark.parametrize("beside", [{"recurrence": 1}, {"args": {"recurrence": 1, "lr": 0.01}}])
def test_recurrence_kept_beside_the_weights_is_taken(tmp_path, beside, capsys):
    state = peers.authors(width=8, channels=16, depth=50)
    path = save({"model": state, **beside}, tmp_path / "a.pth")
    assert ccnet_cli.load(path).recurrence == 1 and "taken as 2" not in capsys.readouterr().err
    assert ccnet_cli.load(path, recurrence=2).recurrence == 2
    assert ccnet_cli.load(save({"model": state, "recurrence": 9}, tmp_path / "b.pth")).recurrence == 2
    # no passes at all are a number too
    assert ccnet_cli.load(save({"model": state, "recurrence": 0}, tmp_path / "c.pth")).recurrence == 0


def test_the_port_has_plain_norms_and_relu(tmp_path):
    state, x = peers.authors(width=WIDTH, channels=CHANNELS, depth=50, port=True), picture((65, 97))
    model = ccnet_cli.load(save({"state_dict": state}, tmp_path / "port.pth"))
    for got, wanted in zip(scores(model, x), peers.authors_forward(state, x, 2, abn=False, port=True), strict=True):
        assert difference(got, wanted) < 1e-4
    assert torch.equal(model.backbone.bn1.weight, state["bn1.weight"])


@pytest.mark.parametrize("wrap", ["model", "state_dict", "module", "module twice", "legacy", "counts", "half"])
def test_wrappers_prefixes_and_old_formats(tmp_path, wrap):
    state = peers.authors(width=8, channels=16, depth=50, counts=wrap == "counts")
    plain = ccnet_cli.load(save(state, tmp_path / "plain.pth")).state_dict()
    content = {
        "model": {"model": state, "epoch": 3, "best": np.float64(0.5)},
        "state_dict": {"state_dict": state, "optimizer": {"lr": 0.1}},
        "module": {f"module.{key}": tensor for key, tensor in state.items()},
        "module twice": {"model": {f"module.module.{key}": tensor for key, tensor in state.items()}},
        "half": {key: tensor.half() if key == "dsn.0.bias" else tensor for key, tensor in state.items()},
    }.get(wrap, state)
    loaded = ccnet_cli.load(save(content, tmp_path / "b.pth", legacy=wrap == "legacy")).state_dict()
    for key, tensor in loaded.items():
        if key.endswith("num_batches_tracked"):
            assert int(tensor) == (7 if wrap == "counts" else 0)
        elif wrap != "half" or key != "auxiliary.0.bias":
            assert torch.equal(tensor, plain[key]), key


@pytest.mark.parametrize("depth", [50, 101])
def test_the_mmsegmentation_layout(tmp_path, depth):
    state = peers.mmseg(depth=depth, width=WIDTH, channels=CHANNELS)
    x = picture((96, 130))
    model = ccnet_cli.load(save({"meta": {}, "state_dict": state}, tmp_path / "ccnet_r50-d8.pth"))
    for got, wanted in zip(scores(model, x), peers.mmseg_forward(state, x), strict=True):
        assert got.shape[2:] == (12, 17) and difference(got, wanted) < 1e-4
    assert vars(model.normalisation) == {
        "channel_order": "rgb",
        "mean": (123.675, 116.28, 103.53),
        "std": (58.395, 57.12, 57.375),
    }


@pytest.mark.parametrize(("kind", "depth"), [("mit", 50), ("mit 2019", 101), ("v1c", 50), ("torchvision", 101)])
def test_a_backbone_alone(tmp_path, kind, depth):
    state, x = peers.backbone(kind, depth=depth, width=WIDTH), picture((97, 130))
    model = ccnet_cli.load(save(state, tmp_path / "resnet.pth"))
    with torch.no_grad():
        features = model.backbone(x)
    for got, wanted in zip(features, peers.backbone_forward(state, x, kind), strict=True):
        assert difference(got, wanted) < 1e-4
    # every tensor of the file but the classifier landed, under whatever name
    landed = [tensor for key, tensor in model.state_dict().items() if key.startswith("backbone.")]
    for key, tensor in state.items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        assert sum(t.shape == tensor.shape and torch.equal(t, tensor) for t in landed) >= 1, key
    n = model.normalisation
    assert (n.channel_order, n.mean[0], n.std[0]) == {
        "mit": ("bgr", 102.9801, 1.0),
        "mit 2019": ("rgb", 123.675, 58.395),
        "v1c": ("rgb", 123.675, 58.395),
        "torchvision": ("rgb", 123.675, 58.395),
    }[kind]


@pytest.mark.parametrize(("kind", "stem"), [("mit 2019", "deep"), ("v1c", "v1c")])
def test_a_stem_that_is_a_sequence(tmp_path, kind, stem):
    """As PyTorch-Encoding and timm write it: the sequence is called conv1, and its last norm bn1."""
    state, x = peers.backbone(kind, depth=50, width=WIDTH), picture((65, 66))
    names = {f"{part}{i + 1}.": f"conv1.{3 * i + (part == 'bn')}." for i in range(3) for part in ("conv", "bn")}
    names |= {f"stem.{i}.": f"conv1.{i}." for i in (0, 1, 3, 4, 6, 7)}
    renamed = {}
    for key, tensor in state.items():
        head = next((name for name in names if key.startswith(name)), "")
        new = names.get(head, "") + key.removeprefix(head)
        renamed[new.replace("conv1.7.", "bn1.")] = tensor
    assert "conv1.6.weight" in renamed and "bn1.running_var" in renamed and len(renamed) == len(state)
    model = ccnet_cli.load(save(renamed, tmp_path / "resnet50s.pth"))
    with torch.no_grad():
        features = model.backbone(x)
    for got, wanted in zip(features, peers.backbone_forward(state, x, kind), strict=True):
        assert difference(got, wanted) < 1e-4
    assert model.normalisation.channel_order == "rgb" and model.backbone.conv3 is not None


def test_a_basic_block_backbone_and_a_prefix(tmp_path):
    state = {f"backbone.{key}": tensor for key, tensor in peers.backbone("torchvision", depth=18, width=8).items()}
    model = ccnet_cli.load(save({"state_dict": state}, tmp_path / "r18.pth"))
    assert torch.equal(model.backbone.layer4[1].conv2.weight, state["backbone.layer4.1.conv2.weight"])


TEXT_0 = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    decode_head=dict(type='CCHead', in_channels=2048, recurrence=1, num_classes=19, align_corners=True,
        loss_decode=dict(type='CrossEntropyLoss')),
    auxiliary_head=dict(type='FCNHead', align_corners=False))
"""
TEXT_1 = "{'decode_head': {'type': 'CCHead', 'align_corners': True, 'recurrence': 1}, 'auxiliary_head': {}}"


@pytest.mark.parametrize(
    ("meta", "wanted"),
    [
        ({}, (False, 2, True)),
        ({"config": TEXT_0}, (True, 1, False)),
        ({"cfg": TEXT_1}, (True, 1, False)),
        (
            {"cfg": TEXT_0.replace("recurrence=1, ", "").replace("align_corners=True", "align_corners=False")},
            (False, 2, False),
        ),
        # what only the auxiliary head says does not count
        ({"cfg": TEXT_0.replace("align_corners=True,", "").replace("=False", "=True")}, (False, 1, True)),
    ],
)
def test_what_a_configuration_s_text_tells(meta, wanted):
    found = recognise({"state_dict": peers.mmseg(depth=50, width=8, channels=16), "meta": meta}, Path("f"))
    assert (found.model["align_corners"], found.model["head"]["recurrence"], "taken as false" in str(found)) == wanted


def test_class_names_and_colours_of_both_generations(tmp_path):
    state = peers.mmseg(depth=50, width=8, channels=16, classes=3)
    names, palette = ("sky", "cat", "dog"), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    for meta in (
        {"CLASSES": names, "PALETTE": palette},
        {"dataset_meta": {"classes": names, "palette": [tuple(colour) for colour in palette]}},
    ):
        restored = load_model(save({"state_dict": state, "meta": meta}, tmp_path / "m.pth"))
        assert restored.classes.names == names
        assert restored.classes.palette == tuple(map(tuple, palette))
        assert restored.preset.data.dataset == "folder"
    nameless = load_model(save({"state_dict": state, "meta": {"CLASSES": ("a",)}}, tmp_path / "m.pth"))
    assert nameless.classes.names == ("class 0", "class 1", "class 2")
    told = {**state, "data_preprocessor.mean": torch.tensor([1.0, 2, 3]), "data_preprocessor.std": torch.ones(3, 1, 1)}
    model = load_model(save(told, tmp_path / "m.pth")).network
    assert model.normalisation.mean == (1.0, 2.0, 3.0) and model.normalisation.std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("align_corners", [True, False])
def test_mmsegmentation_s_cityscapes_is_scored_as_it_was_there(tmp_path, align_corners):
    state = peers.mmseg(depth=50, width=8, channels=16)
    meta = {"config": f"model = dict(decode_head=dict(type='CCHead', align_corners={align_corners}))"}
    preset = load_model(save({"state_dict": state, "meta": meta}, tmp_path / "m.pth")).preset
    wanted = ("sliding", (769, 769), (2049, 1025)) if align_corners else ("whole", (512, 1024), (2048, 1024))
    assert (preset.eval.mode, preset.eval.tile, preset.eval.fit) == wanted
    assert preset.model.align_corners == align_corners


@pytest.mark.parametrize(
    ("classes", "dataset"),
    [(19, "cityscapes"), (11, "camvid"), (150, "ade20k"), (21, "voc"), (20, "lip"), (171, "cocostuff"), (4, "folder")],
)
def test_the_preset_is_inferred_by_the_classes(tmp_path, classes, dataset):
    state = peers.authors(depth=50, width=8, channels=16, classes=classes)
    restored = load_model(save(state, tmp_path / "a.pth"))
    assert restored.preset.data.dataset == dataset
    assert (restored.preset.data.root is None) == (dataset in ("lip", "cocostuff", "folder"))
    assert bool(restored.classes.mirrored) == (dataset == "lip")
    assert len(restored.classes) == classes
    assert restored.preset.model.backbone.kind == "resnet50" and restored.preset.name == "inferred"
    assert config.from_mapping(config.to_mapping(restored.preset)) == restored.preset


def test_classes_are_known_by_their_names_however_they_are_spelt(tmp_path):
    state = peers.mmseg(depth=50, width=8, channels=16, classes=20)
    names = [name.replace(" ", "-").capitalize() for name in known_classes()["lip"].names]
    names[5], names[0] = "UpperClothes", "Background "
    for spelt, dataset in ((names, "lip"), ([*names[1:], names[0]], "folder")):
        path = save({"state_dict": state, "meta": {"CLASSES": spelt}}, tmp_path / "m.pth")
        assert load_model(path).preset.data.dataset == dataset


def test_a_named_preset_replaces_the_inferred_one(tmp_path):
    path = save(peers.authors(width=8, channels=16, depth=50), tmp_path / "a.pth")
    small = ["model.backbone=resnet50", "model.width=8", "model.channels=16", "model.query_channels=2"]
    restored = load_model(path, "cityscapes-r1", [*small, "model.auxiliary_channels=16"])
    assert restored.preset.name == "cityscapes-r1" and restored.network.recurrence == 1
    with pytest.raises(InputError, match="do not fit") as refused:
        load_model(path, "cityscapes-r1")
    assert "set model.backbone.kind=resnet50, model.backbone.width=8, model.head.channels=16" in str(refused.value)
    with pytest.raises(InputError, match="has 19 classes, preset camvid 11"):
        load_model(path, "camvid")


WRONG = {
    "a list": ([torch.ones(2)], "holds a list"),
    "nothing": ({}, "no state dict"),
    "psp": ({"decode_head.psp_modules.0.1.conv.weight": torch.ones(2)}, "PSPNet"),
    "vgg": ({"features.0.weight": torch.ones(2)}, "VGG"),
    "text": ({"epoch": 3, "name": "x"}, r"holds epoch \(int\)"),
    "nan": (lambda state: state["layer1.0.bn1.bias"].fill_(float("nan")), "layer1.0.bn1.bias is not finite"),
    "infinite": (lambda state: state["head.cca.gamma"].fill_(float("inf")), "head.cca.gamma is not finite"),
    "a part short": (lambda state: state.pop("head.convb.0.weight"), "head.convb.0.weight is missing"),
    "no classifier": (lambda state: state.pop("head.bottleneck.3.weight"), "head.bottleneck"),
    "a layer short": (lambda state: [state.pop(k) for k in list(state) if k.startswith("layer3.4")], "3-4-5-3 blocks"),
    "a part more": (lambda state: state.update({"head.extra.weight": torch.ones(2)}), "head.extra.weight has no place"),
    "wide": (lambda state: state.update({"layer1.0.conv3.weight": torch.ones(16, 8, 1, 1)}), "wide or grouped"),
    "bent": (lambda state: state.update({"head.conva.1.bias": torch.ones(3)}), r"head.conva.1.bias is \(3,\)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_told_in_one_line(tmp_path, kind):
    content, words = WRONG[kind]
    if callable(content):
        state = peers.authors(width=8, channels=16, depth=50)
        content(state)
        content = state
    with pytest.raises(InputError, match=words) as refused:
        load_model(save(content, tmp_path / "wrong.pth"))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
