"""Presets that are based on others, and families of them: what they inherit, and the recipes that they are."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from ccnet_cli import config
from ccnet_cli.errors import InputError
from ccnet_cli.losses import objective as objectives
from ccnet_cli.models.network import build

SMALLEST = """\
name: mine
source: my desk
published: mIoU 99
model: {backbone: {kind: tiny, width: 8}, head: {kind: rcca, recurrence: 1, channels: 16, activation: relu}}
data: {dataset: toyscapes, crop: [64, 128]}
train: {batch: 4, optimizer: adamw, precision: fp32}
schedule: {steps: 10, lr: 1e-2}
loss:
  cross_entropy: {average: all}
  auxiliary: {kind: cross_entropy, weight: 0.4, output: auxiliary}
"""


def write(folder: Path, name: str, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_preset_says_what_differs_from_its_base(tmp_path: Path):
    below = config.load(write(tmp_path, "below.yaml", SMALLEST))
    text = "name: above\nbase: below.yaml\nschedule: {steps: 20}\nmodel: {head: {kind: psp, order: map_first}}\n"
    above = config.load(write(tmp_path, "above.yaml", text))
    changed = {"name", "source", "published", "schedule.steps"}
    head = {"model.head.kind", "model.head.order", "model.head.bins", "model.head.recurrence"}
    assert (
        set(config.differences(below, above))
        - head
        - {
            "model.head.query_channels",
            "model.head.implementation",
        }
        == changed
    )
    # a head of another kind keeps what both kinds have
    assert (above.model.head.channels, above.model.head.activation) == (16, "relu")
    assert (above.source, above.published) == ("", None)
    # and may itself be a base, from another folder too
    text = "name: top\nbase: ../above.yaml\nloss: {auxiliary: null, cross_entropy: {average: valid}}\n"
    top = config.load(write(tmp_path / "deeper", "top.yaml", text), ["schedule.steps=30"])
    assert (list(top.loss), top.loss["cross_entropy"].average, top.schedule.steps) == (["cross_entropy"], "valid", 30)
    named = config.load(write(tmp_path, "named.yaml", "name: named\nbase: camvid\nseed: 3\n"))
    assert set(config.differences(config.load("camvid"), named)) == {"name", "description", "source", "seed"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("base: none.yaml\nname: a\n", "none.yaml: does not exist"),
        ("base: camvit\nname: a\n", "preset camvit: unknown; did you mean camvid?"),
        ("base: a.yaml\nname: a\n", "is based on it"),
        ("base: b.yaml\nname: a\n", "is based on it"),
        ("base: [1]\nname: a\n", "base is the name or the file of another preset"),
        ("base: camvid\n", "preset key name: missing"),
        ("base: camvid\nname: a\nsteps: 3\n", "preset key steps: unknown"),
    ],
)
def test_a_wrong_base_is_refused_in_one_line(text: str, why: str, tmp_path: Path):
    write(tmp_path, "b.yaml", "base: ./a.yaml\nname: b\n")
    with pytest.raises(InputError) as refused:
        config.load(write(tmp_path, "a.yaml", text))
    assert why in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["mmseg-encnet-r50-voc-512-20k", "csail-r101-upernet", "camvid"])
def test_a_copy_of_any_preset_stands_alone(name: str, tmp_path: Path):
    path = tmp_path / "copy.yaml"
    path.write_bytes(config.source(name))
    assert config.load(str(path)) == config.load(name)
    assert "base:" not in path.read_text()


# what each family is known by: its head's keys, and the millions of parameters of its head with 19 classes
HEADS = {
    "fcn": ("rcca", {"recurrence": 0}, 23.606),
    "psp": ("psp", {"order": "map_first"}, 23.084),
    "aspp": ("aspp", {"form": "mmseg"}, 42.221),
    "aspp-plus": ("aspp_plus", {"fine": 48}, None),
    "nonlocal": ("nonlocal", {"inner": 256, "mode": "embedded_gaussian", "sub_sample": False}, 24.132),
    "gc": ("gc", {"ratio": 0.25}, 23.738),
    "danet": ("danet", {"query_channels": 64}, 23.955),
    # 11.814 without the biases of its two values
    "isa": ("isa", {"form": "mmseg", "inner": 256, "cell": 8}, 11.815),
    "encnet": ("encnet", {"codewords": 32, "lateral": False}, 10.000),
    "upernet": ("upernet", {"resize_first": False}, 40.523),
}
# mIoU on val: Cityscapes R101 769 40k and 80k, with (scales and flip), R101 512x1024 40k and 80k, R50 769 80k; then
# ADE20K 160k and VOC 40k, R101 (R50)
PUBLISHED = """
fcn       73.93 (75.14) 75.52 (76.61) 75.45 75.13 72.64 | 39.91 (36.10) 69.91 (66.97)
psp       79.08 (80.28) 79.77 (81.06) 78.34 79.76 79.59 | 44.39 (42.48) 78.52 (77.29)
aspp      79.27 (80.11) 79.67 (80.81) 77.12 80.20 79.89 | 45.00 (42.66) 77.92 (77.68)
aspp-plus 79.46 (80.50) 80.65 (81.47) 80.21 80.97 79.83 | 45.47 (43.95) 78.62 (76.81)
nonlocal  78.57 (80.29) 79.40 (80.85) 78.66 78.93 79.05 | 44.63 (42.03) 78.27 (76.65)
gc        78.95 (80.71) 79.18 (80.71) 78.28 79.03 78.68 | 43.69 (42.37) 77.84 (76.24)
danet     79.88 (81.47) 80.47 (82.02) 80.52 80.41 79.27 | 44.17 (42.45) 76.51 (76.37)
isa       79.68 (80.95) 80.61 (81.59) 79.58 80.32 79.29 | 43.80 (42.59) 78.12 (76.20)
upernet   79.03 (80.77) 80.10 (81.49) 78.69 79.40 79.39 | 43.82 (42.05) 77.43 (75.92)
encnet    74.25 (76.25) 76.10 (76.97) 75.81 78.55 77.44 | 42.61 (40.10) - -
"""
ROWS = [f"r{d}-cityscapes-{c}-{s}k" for d in (50, 101) for c in ("769", "512x1024") for s in (40, 80)]
ROWS += [f"r{d}-{rest}k" for d in (50, 101) for rest in ("ade20k-512-80", "ade20k-512-160", "voc-512-20", "voc-512-40")]


@pytest.mark.parametrize("row", PUBLISHED.strip().splitlines())
def test_published_figures_are_those_of_mmsegmentation(row: str):
    head, *words = row.replace("|", "").replace("(", "").replace(")", "").split()
    shorts = ["101-cityscapes-769-40k", "", "101-cityscapes-769-80k", "", "101-cityscapes-512x1024-40k"]
    shorts += ["101-cityscapes-512x1024-80k", "50-cityscapes-769-80k"]
    shorts += ["101-ade20k-512-160k", "50-ade20k-512-160k", "101-voc-512-40k", "50-voc-512-40k"]
    for index, (name, score) in enumerate(zip(shorts, words, strict=True)):
        published = config.load(f"mmseg-{head}-r{name or shorts[index - 1]}").published
        if score == "-":
            assert published is None
        elif name:
            assert published.startswith(f"mIoU {score} on val, single scale")
        else:
            assert published.endswith(f"; {score} with scales and flip")


@pytest.mark.parametrize("head", HEADS)
def test_a_family_is_mmsegmentation_s_recipe_with_another_head(head: str):
    kind, keys, millions = HEADS[head]
    own = [name for name in config.names() if name.removeprefix(f"mmseg-{head}-") in ROWS]
    assert sorted(own) == sorted(f"mmseg-{head}-{row}" for row in ROWS)
    for name in own:
        preset, base = config.load(name), config.load(name.replace(f"{head}-", "", 1))
        assert preset.name == name and preset.description and "configs/" in preset.source
        settings = preset.model.head
        assert settings.kind == kind and {key: getattr(settings, key) for key in keys} == keys
        assert (settings.activation, settings.dropout, settings.channels or 512) == ("relu", 0.1, 512)
        changed = {key.partition(".")[0] for key in config.differences(base, preset)}
        assert changed <= {"name", "description", "source", "published", "model", "loss"}
        assert preset.model.backbone.stride == (32 if head == "upernet" else 8)
        assert preset.model.auxiliary == base.model.auxiliary
        assert {term: preset.loss[term] for term in base.loss} == base.loss
        more = {term: (each.output, each.weight) for term, each in preset.loss.items() if term not in base.loss}
        expected = {"danet": {"pam": ("pam", 1.0), "cam": ("cam", 1.0)}, "encnet": {"presence": ("presence", 0.2)}}
        assert more == expected.get(head, {})
    if millions:
        network = on_meta(config.load(f"mmseg-{head}-r101-cityscapes-769-80k"))
        assert round(sum(weight.numel() for weight in network.head.parameters()) / 1e6, 3) == millions


def on_meta(preset):
    with torch.device("meta"):
        return build(preset.model, 19)


def test_every_preset_has_what_its_loss_looks_at():
    # the rows of a family have one head and one loss
    names = [
        name
        for name in config.names()
        if name.endswith("-r50-cityscapes-769-40k") or (config.folder() / f"{name}.yaml").is_file()
    ]
    presets = {p.model.head.model_dump_json() + str(p.loss.keys()): p for p in map(config.load, names)}
    assert len(presets) > 20
    for preset in presets.values():
        small = config.from_mapping(
            config.to_mapping(preset)
            | {"model": config.to_mapping(preset)["model"] | {"backbone": {"kind": "resnet18"}}}
        )
        network = on_meta(small)
        objectives.build(preset.loss, 255, preset.model.align_corners).check(network.output_names)
        outputs = network.outputs(torch.empty(2, 3, 65, 97, device="meta"))
        assert outputs.main.shape[:2] == (2, 19) and len(outputs.auxiliary) == len(network.output_names) - 1


def test_the_toolbox_s_and_ocnet_s_recipes():
    authors = config.load("cityscapes-r2")
    for name, kind in (("toolbox-psp", "psp"), ("toolbox-aspp", "aspp")):
        preset = config.load(name)
        assert (preset.model.head.kind, preset.model.head.activation) == (kind, "leaky_relu")
        assert (preset.model.backbone, preset.model.auxiliary) == (authors.model.backbone, authors.model.auxiliary)
        assert (preset.seed, preset.schedule.steps, preset.train.weight_decay) == (1234, 40000, 5e-4)
        assert (preset.data, preset.loss, preset.schedule.lr) == (authors.data, authors.loss, 0.01)
        assert (preset.eval.mode, preset.eval.tile, preset.eval.scales) == ("sliding", (769, 769), [1.0])
    assert round(sum(w.numel() for w in on_meta(config.load("toolbox-psp")).parameters()) / 1e6, 2) == 70.44
    assert round(sum(w.numel() for w in on_meta(config.load("toolbox-aspp")).parameters()) / 1e6, 2) == 63.23
    for form, dropout, millions in (("base", 0.05, 57.72), ("asp", 0.1, 62.54), ("pyramid", 0.05, None)):
        preset = config.load(f"ocnet-{form}")
        assert (preset.model.head.kind, preset.model.head.form, preset.model.head.dropout) == ("oc", form, dropout)
        assert (preset.model.auxiliary.dropout, preset.loss["auxiliary"].weight) == (dropout, 0.4)
        assert (preset.data.scale_min, preset.data.scale_max, preset.data.scale_step) == (0.5, 2.1, 0.1)
        assert (preset.seed, preset.eval.mode, preset.train.weight_decay) == (304, "whole", 5e-4)
        weights = [preset.loss[term].class_weights for term in ("cross_entropy", "auxiliary")]
        assert weights[0] == weights[1] and len(weights[0]) == 19 and round(sum(weights[0]), 4) == 19.0001
        if millions:
            assert round(sum(w.numel() for w in on_meta(preset).parameters()) / 1e6, 2) == millions


def test_danet_s_new_modules_learn_ten_times_as_fast():
    preset = config.load("danet")
    assert (preset.schedule.lr, preset.schedule.head_lr_factor, preset.train.weight_decay) == (0.003, 10, 1e-4)
    assert (preset.model.backbone.stem, preset.model.backbone.multi_grid, preset.model.auxiliary) == ("7x7", True, None)
    assert [(term.output, term.weight) for term in preset.loss.values()] == [("main", 1), ("pam", 1), ("cam", 1)]
    assert preset.schedule.steps == 240 * (2975 // preset.train.batch)
    assert round(sum(w.numel() for w in on_meta(preset).head.parameters()) / 1e6, 3) == 23.955


def test_csail_s_recipes():
    steps = {"r18-ppm": 20, "r50-ppm": 20, "r101-ppm": 25, "r50-upernet": 30, "r101-upernet": 40}
    for name, epochs in steps.items():
        preset = config.load(f"csail-{name}")
        assert preset.schedule.steps == epochs * 5000
        assert (preset.train.batch, preset.schedule.lr, preset.train.decay_vectors) == (16, 0.02, False)
        assert (preset.model.backbone.dilation, preset.model.align_corners, preset.seed) == ("mit", False, 304)
        # a picture of 3 to 4, at the least and the largest scale
        assert [preset.data.fit[1] * scale for scale in (preset.data.scale_min, preset.data.scale_max)] == [300, 600]
        with torch.device("meta"):
            network = build(preset.model, 150)
        parameters = Counter({part: sum(w.numel() for w in getattr(network, part).parameters()) for part in ("head",)})
        if "upernet" in name:
            assert (preset.model.auxiliary, list(preset.loss)) == (None, ["cross_entropy"])
            assert round(parameters["head"] / 1e6, 3) == 40.590
        elif name != "r18-ppm":
            assert round(parameters["head"] / 1e6, 3) == 23.151
            assert round(sum(w.numel() for w in network.auxiliary.parameters()) / 1e6, 3) == 4.797
